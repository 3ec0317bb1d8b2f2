//! What executors find running, beside what should run.

use std::collections::BTreeSet;

use shared::auth::Caller;
use shared::edge::Deadline;
use shared::id::{ComponentId, EnvironmentId};
use shared::parse::{at_most, line, parse};
use shared::pb::release as pb;
use shared::status::{Failure, Refusal};
use tonic::Request;

use super::{require_environment, require_owned};
use crate::apply;
use crate::domain::task::is_drift;
use crate::rpc::App;
use crate::store;
use crate::store::observed::Place;

const VERSIONS_MAX: usize = 16;
/// Whatever it is that runs may be called more than releases are.
const VERSION_MAX: usize = 128;

impl App {
    pub(super) async fn report_observed(
        &self,
        request: Request<pb::ReportObservedRequest>,
    ) -> Result<pb::ReportObservedResponse, Failure> {
        let (caller, deadline) = (Caller::of(&request)?, Deadline::of(&request));
        let pb::ReportObservedRequest { environment, component, versions } = request.into_inner();
        let environment: EnvironmentId = parse("environment", &environment)?;
        let component: ComponentId = parse("component", &component)?;
        at_most("versions", &versions, VERSIONS_MAX)?;
        let versions = versions
            .into_iter()
            .map(|version| line("versions", version, 1, VERSION_MAX))
            .collect::<Result<BTreeSet<_>, Refusal>>()?;
        let versions: Vec<_> = versions.into_iter().collect();
        let (actor, tenant) = (self.actor(&caller), &caller.tenant);
        let place = Place { component: &component, environment: &environment };
        let mut tx = self.db.begin(deadline).await?;
        require_owned(&mut tx, &caller, &component).await?;
        require_environment(&mut tx, tenant, &environment).await?;
        let (wanted, tolerated) = store::observed::list_expected(&mut tx, tenant, &place).await?;
        let is_drift = is_drift(&wanted, &tolerated, &versions);
        let (found, by) = ((versions.as_slice(), is_drift), (actor.principal.as_str(), actor.now));
        let is_new = store::observed::upsert(&mut tx, tenant, &place, found, by).await?;
        if is_new && is_drift {
            apply::tell_drift(&mut tx, &actor, &place, &wanted, &versions).await?;
        }
        tx.commit().await?;
        Ok(pb::ReportObservedResponse { wanted_versions: wanted, is_drift })
    }
}
