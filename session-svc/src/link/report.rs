//! What release-svc is told of rollouts: how they go.
//!
//! Every replica tells the same sums, those of the database, so it does not matter which of them is heard, or how often.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Instant;

use shared::id::{EnvironmentId, RolloutId, TenantId};
use shared::pb::release as pb;
use shared::time::{Time, to_proto};
use tonic::{Code, Request};

use super::{Broken, CALL_LIMIT, Client, INTERVAL, INTERVAL_MAX};
use crate::domain::signal::Counted;
use crate::rpc::App;
use crate::store;
use crate::store::signal::Source;
use crate::store::signal::scan::Visits;
use crate::store::signal::sum::Sum;

/// One message names at most so many rollouts, and so many counts of a rollout.
const ROLLOUTS_MAX: usize = 100;
const COUNTS_MAX: usize = 1000;

type Key = (TenantId, RolloutId);

/// The reports of one connection.
pub(super) struct Reports<'a> {
    app: &'a App,
    environment: &'a EnvironmentId,
    client: Client,
    source: Option<(Arc<str>, Source)>,
    /// What was told of each rollout, and when all of it was.
    told: HashMap<Key, Signals>,
    told_at: Option<Instant>,
}

/// What there is to tell of a rollout.
#[derive(Debug, Clone, Default, PartialEq)]
struct Signals {
    counts: Vec<pb::SignalCount>,
    visits: Option<pb::VisitCounts>,
}

impl<'a> Reports<'a> {
    pub(super) fn new(app: &'a App, environment: &'a EnvironmentId, client: Client) -> Self {
        Self { app, environment, client, source: None, told: HashMap::new(), told_at: None }
    }

    /// Reports until dropped. What fails is tried again: that release-svc is away, the stream of routes will tell.
    pub(super) async fn run(mut self) -> Infallible {
        loop {
            let pause = match self.pass().await {
                Ok(()) => INTERVAL,
                Err(broken) => {
                    tracing::warn!(reason = %broken, "a report was not taken; another one follows");
                    // An older release-svc takes none; it will be replaced before long.
                    let is_older =
                        matches!(&broken, Broken::Call(status) if status.code() == Code::Unimplemented);
                    if is_older { INTERVAL_MAX } else { INTERVAL }
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    async fn pass(&mut self) -> Result<(), Broken> {
        let now = self.app.clock.now();
        let mut db = self.app.db.connection().await?;
        let source = self.source(&mut db, now).await?;
        let counts = store::signal::sum::counts(&mut db).await?;
        let visits = store::signal::scan::list(&mut db).await?;
        drop(db);
        let is_full = self.told_at.is_none_or(|at| at.elapsed() >= INTERVAL_MAX);
        let there_is = self.signals(counts, visits);
        let told: Vec<_> = there_is
            .iter()
            .filter(|(key, signals)| is_full || self.told.get(key) != Some(signals))
            .flat_map(|(key, signals)| self.messages(key, signals))
            .collect();
        // The answer says what to count, so one is asked for even where there is nothing to tell.
        let mut rest = told.chunks(ROLLOUTS_MAX);
        self.tell(&source, rest.next().unwrap_or_default().to_vec(), now).await?;
        for rollouts in rest {
            self.tell(&source, rollouts.to_vec(), now).await?;
        }
        if is_full {
            self.told_at = Some(Instant::now());
        }
        self.told = there_is.into_iter().collect();
        Ok(())
    }

    /// What the database is called, asked anew when it is another one.
    async fn source(&mut self, db: &mut sqlx::PgConnection, now: Time) -> sqlx::Result<Source> {
        let cluster = self.app.feed.cluster();
        match &self.source {
            Some((of, source)) if *of == cluster => Ok(source.clone()),
            _ => {
                let drawn = uuid::Builder::from_random_bytes(self.app.entropy.bytes()).into_uuid();
                let source = store::signal::source(db, &cluster, drawn, now).await?;
                self.source = Some((cluster, source.clone()));
                // Whatever was told was told under another name.
                self.told.clear();
                Ok(source)
            }
        }
    }

    /// Live visits only of what they are counted of by now: of the rest the last count is an old one.
    fn signals(&self, counts: Vec<Sum>, visits: Vec<Visits>) -> BTreeMap<Key, Signals> {
        let mut signals: BTreeMap<Key, Signals> = BTreeMap::new();
        for Sum { tenant, rollout, step, is_canary, guard, count } in counts {
            let of = signals.entry((tenant, rollout)).or_default();
            of.counts.push(pb::SignalCount { step, is_canary, guard, count });
        }
        for Visits { tenant, rollout, canary, control, counted_at } in visits {
            if self.app.routes.is_counted(&tenant, rollout) {
                let count_time = Some(to_proto(counted_at));
                let of = signals.entry((tenant, rollout)).or_default();
                of.visits = Some(pb::VisitCounts { count_time, canary, control });
            }
        }
        signals
    }

    /// As many as it takes; visits go with the first, and not twice.
    fn messages(&self, key: &Key, signals: &Signals) -> Vec<pb::RolloutSignals> {
        let (tenant, rollout) = key;
        let before = self.told.get(key).and_then(|before| before.visits.as_ref());
        let mut visits = signals.visits.filter(|visits| Some(visits) != before);
        let message = |counts: &[pb::SignalCount]| pb::RolloutSignals {
            tenant: tenant.to_string(),
            rollout_id: rollout.to_string(),
            counts: counts.to_vec(),
            visits: visits.take(),
        };
        if signals.counts.is_empty() {
            return [&[][..]].map(message).to_vec();
        }
        signals.counts.chunks(COUNTS_MAX).map(message).collect()
    }

    async fn tell(
        &mut self,
        source: &Source,
        rollouts: Vec<pb::RolloutSignals>,
        now: Time,
    ) -> Result<(), Broken> {
        let told: Vec<_> = rollouts
            .iter()
            .map(|signals| (signals.tenant.clone(), signals.rollout_id.clone()))
            .collect();
        let mut request = Request::new(pb::ReportSignalsRequest {
            environment: self.environment.to_string(),
            source_id: source.id.to_string(),
            source_epoch: source.epoch.clone(),
            rollouts,
        });
        request.set_timeout(CALL_LIMIT);
        let answer = self.client.report_signals(request).await?.into_inner();
        let pb::ReportSignalsResponse { ended_rollout_ids: ended, awaited } = answer;
        self.app.routes.set_awaited(awaited.iter().filter_map(read_awaited).collect());
        let ended: Vec<Key> = told
            .iter()
            .filter(|(_, id)| ended.contains(id))
            .filter_map(|(tenant, id)| Some((tenant.parse().ok()?, id.parse().ok()?)))
            // Of a rollout that is under way here, release-svc has yet to hear itself.
            .filter(|(tenant, rollout)| !self.app.routes.is_rolling(tenant, *rollout))
            .collect();
        if !ended.is_empty() {
            store::signal::sum::end(&mut *self.app.db.connection().await?, &ended, now).await?;
        }
        Ok(())
    }
}

/// One that makes no sense is not counted; release-svc waits for it only so long.
fn read_awaited(awaited: &pb::AwaitedVisits) -> Option<(TenantId, Counted)> {
    let pb::AwaitedVisits { tenant, component, rollout_id, release_id, previous_release_id } = awaited;
    let read = || {
        let previous = Some(previous_release_id).filter(|id| !id.is_empty());
        let counted = Counted {
            component: component.parse().ok()?,
            rollout: rollout_id.parse().ok()?,
            release: release_id.parse().ok()?,
            previous: previous.map(|id| id.parse().ok()).unwrap_or_default(),
        };
        Some((tenant.parse().ok()?, counted))
    };
    let counted = read();
    if counted.is_none() {
        tracing::error!(?awaited, "release-svc asks for visits of what makes no sense");
    }
    counted
}
