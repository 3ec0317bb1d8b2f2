//! Regulars: shoppers on both releases who are logged in, half of them with an open checkout, and who stay while the canary
//! breaks and goes back.

use std::time::Duration;

use shared::pb::session::authenticate_session_request::Proof;
use shared::pb::session::{AssertedIdentity, AuthenticateSessionRequest, Subject};
use shared::secret::Secret;
use tokio::time::Instant;

use super::call::{Caller, Refused, request_id};
use super::shop::{Shop, Walk};
use crate::error::Error;

/// On each release.
const REGULARS: usize = 8;
/// How long a share of visits takes to reach the canary.
const ARRIVE_LIMIT: Duration = Duration::from_secs(30);
/// From one look of theirs to the next.
const INTERVAL: Duration = Duration::from_millis(500);
const ISSUER: &str = "https://login.example";

impl Shop {
    /// Opens sessions until there are enough on the broken release and off it. Those that are one too many stay anonymous,
    /// with nothing in the cart.
    pub(super) async fn gather(&self, broken: &str, caller: &mut Caller) -> Result<Vec<Walk>, Error> {
        let failed = |refused: Refused| Error::Failed(refused.to_string());
        let begin = Instant::now();
        let mut walks = Vec::new();
        let mut wanted = [REGULARS; 2];
        while wanted != [0, 0] {
            if begin.elapsed() > ARRIVE_LIMIT {
                let limit = ARRIVE_LIMIT.as_secs();
                return Err(Error::Failed(format!("no visits on both releases within {limit} s")));
            }
            let mut walk = self.enter(caller).await.map_err(failed)?;
            let wanted = &mut wanted[usize::from(walk.is_on(broken))];
            if *wanted > 0 {
                *wanted -= 1;
                let has_checkout = *wanted % 2 == 0;
                self.settle(has_checkout, &mut walk, caller).await.map_err(failed)?;
            }
            walks.push(walk);
        }
        Ok(walks)
    }

    async fn settle(&self, has_checkout: bool, walk: &mut Walk, caller: &mut Caller) -> Result<(), Refused> {
        self.log_in(walk, caller).await?;
        if let Some(invoice) = self.data.invoices.first() {
            self.add_all(&invoice.lines, walk, caller).await?;
        }
        if has_checkout { self.begin_checkout(walk, caller).await } else { Ok(()) }
    }

    /// The shop's word is enough; each is somebody else.
    async fn log_in(&self, walk: &mut Walk, caller: &mut Caller) -> Result<(), Refused> {
        let sub = format!("regular {}", walk.session_id);
        let subject = Subject { issuer: ISSUER.to_owned(), sub: sub.clone() };
        let identity = AssertedIdentity { subject: Some(subject), level: 1, ..AssertedIdentity::default() };
        let request = AuthenticateSessionRequest {
            session_token: walk.token.expose().clone(),
            proof: Some(Proof::Asserted(identity)),
            request_id: request_id(&self.entropy),
            ..AuthenticateSessionRequest::default()
        };
        let authenticate = async |request| self.sessions.clone().authenticate_session(request).await;
        let answer = caller.call("AuthenticateSession", request, authenticate).await?;
        walk.token = Secret::new(answer.session_token);
        walk.shopper_id = answer.session.unwrap_or_default().shopper_id;
        walk.subject = Some(sub);
        walk.sees(answer.pins, &mut caller.tally);
        Ok(())
    }

    /// Looks at a page of every regular's again and again until the shop stops.
    pub(super) async fn stay(&self, walks: &mut [Walk], caller: &mut Caller) {
        while !self.stop.is_cancelled() {
            for walk in walks.iter_mut().filter(|walk| walk.subject.is_some()) {
                if let Err(refused) = self.view(walk, caller).await {
                    caller.tally.failed(refused);
                }
            }
            tokio::select! {
                () = tokio::time::sleep(INTERVAL) => {}
                () = self.stop.cancelled() => {}
            }
        }
    }

    /// Ends checkouts that have been open all the time, and says how many; the look before sees whether they stayed.
    pub(super) async fn leave(&self, walks: &mut [Walk], caller: &mut Caller) -> u64 {
        let mut open = 0;
        for walk in walks.iter_mut().filter(|walk| walk.in_checkout) {
            open += 1;
            let mut order = async || {
                self.view(walk, caller).await?;
                self.complete_checkout("regular", walk, caller).await
            };
            if let Err(refused) = order().await {
                caller.tally.failed(refused);
            }
        }
        open
    }
}
