//! Environments.

use shared::auth::Caller;
use shared::db::broken_constraint;
use shared::mutation::{Begun, Call};
use shared::page::{self, List};
use shared::parse::{etag_of, line, parse, required, within};
use shared::pb::release as pb;
use shared::status::{Failure, Reason, Refusal};
use shared::time::{Time, to_proto};
use tonic::Request;

use crate::apply;
use crate::domain::component::Environment;
use crate::rpc::{App, absent};
use crate::store;
use crate::store::component::ENVIRONMENT_KEY;

fn parse_environment(environment: Option<pb::Environment>) -> Result<Environment, Refusal> {
    let pb::Environment { environment: name, display_name, promotion_order, create_time: _, etag: _ } =
        required("environment", environment)?;
    Ok(Environment {
        name: parse("environment.environment", &name)?,
        display_name: line("environment.display_name", display_name, 0, 200)?,
        promotion_order: within("environment.promotion_order", promotion_order, 0, 1000)?,
        created_at: Time::default(),
        row_version: 1,
    })
}

impl From<&Environment> for pb::Environment {
    fn from(environment: &Environment) -> Self {
        Self {
            environment: environment.name.to_string(),
            display_name: environment.display_name.clone(),
            promotion_order: environment.promotion_order,
            create_time: Some(to_proto(environment.created_at)),
            etag: etag_of(environment.row_version),
        }
    }
}

impl App {
    pub(super) async fn create_environment(
        &self,
        request: Request<pb::CreateEnvironmentRequest>,
    ) -> Result<pb::CreateEnvironmentResponse, Failure> {
        let (call, message) = Call::of(request, "CreateEnvironment", |message| &mut message.request_id)?;
        let pb::CreateEnvironmentRequest { environment, request_id: _ } = message;
        let environment = parse_environment(environment)?;
        let mut work = match self.begin(call).await? {
            Begun::Fresh(mutation) => mutation,
            Begun::Replayed(before) => return Ok(before.answer),
        };
        let environment = Environment { created_at: work.now, ..environment };
        let inserted =
            store::component::insert_environment(&mut work.tx, &work.actor.tenant, &environment).await;
        inserted.map_err(|error| match broken_constraint(&error) {
            Some(ENVIRONMENT_KEY) => {
                let text = format!("there is an environment {} already", environment.name);
                Refusal::new(Reason::EnvironmentExists, text).into()
            }
            Some(_) | None => Failure::from(error),
        })?;
        apply::tell_environment(&mut work.tx, &work.actor, &environment).await?;
        work.answer(pb::CreateEnvironmentResponse { environment: Some((&environment).into()) })
            .await
    }

    pub(super) async fn get_environment(
        &self,
        request: Request<pb::GetEnvironmentRequest>,
    ) -> Result<pb::GetEnvironmentResponse, Failure> {
        let caller = Caller::of(&request)?;
        let pb::GetEnvironmentRequest { environment } = request.into_inner();
        let name = parse("environment", &environment)?;
        let mut db = self.db.connection().await?;
        let found = store::component::find_environment(&mut db, &caller.tenant, &name).await?;
        let found = found.ok_or_else(|| absent(Reason::EnvironmentNotFound, "environment", &name))?;
        Ok(pb::GetEnvironmentResponse { environment: Some((&found).into()) })
    }

    pub(super) async fn list_environments(
        &self,
        request: Request<pb::ListEnvironmentsRequest>,
    ) -> Result<pb::ListEnvironmentsResponse, Failure> {
        let caller = Caller::of(&request)?;
        let pb::ListEnvironmentsRequest { page_size, page_token } = request.into_inner();
        let list = List { name: "ListEnvironments", tenant: &caller.tenant, filter: "" };
        let (size, after) = (page::size(page_size)?, list.after(&self.keys, &page_token)?);
        let after = after.unwrap_or_default();
        let mut db = self.db.connection().await?;
        let mut rows = store::component::list_environments(&mut db, &caller.tenant, &after, size + 1).await?;
        let next_page_token =
            list.cut(&self.keys, &mut rows, size, self.clock.now(), |row| row.name.to_string())?;
        Ok(pb::ListEnvironmentsResponse {
            environments: rows.iter().map(Into::into).collect(),
            next_page_token,
        })
    }
}
