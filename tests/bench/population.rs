//! Sessions in bulk: each one's id and token follow from its number, and its row is a copy of one that session-svc made.

use std::time::Duration;

use session_svc::domain::token::SessionToken;
use shared::id::SessionId;
use shared::pb::session as pb;
use shared::pb::session::session_service_client::SessionServiceClient;
use shared::pb::session::touchpoint_service_client::TouchpointServiceClient;
use shared::secret::sha256;
use shared::time::{duration_to_proto, from_micros};
use sqlx::{AssertSqlSafe, PgConnection};
use tonic::Request;
use tonic::metadata::{Ascii, MetadataValue};
use uuid::Uuid;

use crate::Outcome;
use crate::client::connect;
use crate::server::Server;
use crate::stand::Stand;

/// Where all sessions are.
pub(crate) const TOUCHPOINT: &str = "web";
/// No session ends, and no visit, while it is measured.
const DAY: Duration = Duration::from_hours(24);
/// Of the first session's id; whatever is created later has a later one.
const FIRST_MILLIS: i64 = 1_700_000_000_000;
const PER_MILLI: i64 = 16;
const CHUNK: u64 = 20_000;

/// Sessions by number, dealt out to tenants in turn.
pub(crate) struct Population {
    pub(crate) count: u64,
    bearers: Vec<MetadataValue<Ascii>>,
}

impl Population {
    /// Fills a database that has only been migrated: touchpoint and first session through the session-svc that is on it, the
    /// others beside it.
    pub(crate) async fn make(
        stand: &Stand,
        server: &Server,
        db: &mut PgConnection,
        size: Size,
    ) -> Outcome<Self> {
        let bearers = (0..size.tenants).map(|tenant| stand.bearer(&tenant_name(tenant), "bench"));
        let bearers: Vec<_> = bearers.collect::<Outcome<_>>()?;
        let model = make_model(server, &bearers[0], size.staleness).await?;
        let population = Self { count: size.sessions, bearers };
        population.copy_touchpoint(db).await?;
        population.copy_session(db, model).await?;
        for sql in ["vacuum (analyze) session.sessions", "vacuum (analyze) session.touchpoints", "checkpoint"]
        {
            sqlx::raw_sql(sql).execute(&mut *db).await?;
        }
        Ok(population)
    }

    /// `authorization` of the tenant of a session.
    pub(crate) fn bearer(&self, number: u64) -> &MetadataValue<Ascii> {
        &self.bearers[self.tenant(number)]
    }

    fn tenant(&self, number: u64) -> usize {
        usize::try_from(number).unwrap_or(0) % self.bearers.len()
    }

    async fn copy_touchpoint(&self, db: &mut PgConnection) -> Outcome<()> {
        let copy = copy_into(db, "session.touchpoints", &[("tenant_id", "tenant")]).await?;
        let sql = format!("{copy} from unnest($1::text[]) tenant, session.touchpoints model");
        let tenants: Vec<_> = (1..self.bearers.len()).map(tenant_name).collect();
        sqlx::query(AssertSqlSafe(sql)).bind(tenants).execute(db).await?;
        Ok(())
    }

    async fn copy_session(&self, db: &mut PgConnection, model: SessionId) -> Outcome<()> {
        let own =
            [("tenant_id", "tenant"), ("session_id", "id"), ("shopper_id", "id"), ("token_hash", "hash")];
        let copy = copy_into(db, "session.sessions", &own).await?;
        let sql = format!(
            "{copy} from unnest($1::text[], $2::uuid[], $3::bytea[]) new (tenant, id, hash), session.sessions model
            where model.tenant_id = $4 and model.session_id = $5"
        );
        for first in (0..self.count).step_by(usize::try_from(CHUNK)?) {
            let numbers = first..(first + CHUNK).min(self.count);
            let tenants: Vec<_> = numbers.clone().map(|number| tenant_name(self.tenant(number))).collect();
            let ids: Vec<Uuid> = numbers.clone().map(|number| id_of(number).uuid()).collect();
            let hashes: Vec<_> = numbers.map(|number| token_of(number).hash().bytes().to_vec()).collect();
            sqlx::query(AssertSqlSafe(sql.clone()))
                .bind(tenants)
                .bind(ids)
                .bind(hashes)
                .bind(tenant_name(0))
                .bind(model.uuid())
                .execute(&mut *db)
                .await?;
        }
        Ok(())
    }
}

/// Ids sort by number, as they would have been made.
pub(crate) fn id_of(number: u64) -> SessionId {
    let made = FIRST_MILLIS + i64::try_from(number).unwrap_or(0) / PER_MILLI;
    let hash = sha256(&[b"id", &number.to_be_bytes()]);
    SessionId::new(from_micros(made * 1000), std::array::from_fn(|i| hash[i]))
}

/// The token of a session.
pub(crate) fn token_of(number: u64) -> SessionToken {
    SessionToken::new(id_of(number), sha256(&[b"secret", &number.to_be_bytes()]))
}

/// How many there shall be.
#[derive(Clone, Copy)]
pub(crate) struct Size {
    pub(crate) sessions: u64,
    pub(crate) tenants: usize,
    /// The touchpoint's staleness bound, where it is not the default one.
    pub(crate) staleness: Option<Duration>,
}

/// As tokens name it.
pub(crate) fn tenant_name(number: usize) -> String {
    format!("tenant-{number}")
}

/// A touchpoint and an anonymous session at it, through the service.
async fn make_model(
    server: &Server,
    bearer: &MetadataValue<Ascii>,
    staleness: Option<Duration>,
) -> Outcome<SessionId> {
    let channel = connect(server.address).await?;
    let policy = pb::SessionPolicy {
        idle_timeout: Some(duration_to_proto(DAY)),
        absolute_lifetime: Some(duration_to_proto(DAY)),
        visit_gap: Some(duration_to_proto(DAY)),
        staleness_bound: staleness.map(duration_to_proto),
        ..pb::SessionPolicy::default()
    };
    let touchpoint = pb::Touchpoint {
        touchpoint: TOUCHPOINT.to_owned(),
        display_name: "Web".to_owned(),
        has_shoppers: true,
        session_policy: Some(policy),
        ..pb::Touchpoint::default()
    };
    let mut request =
        Request::new(pb::CreateTouchpointRequest { touchpoint: Some(touchpoint), request_id: String::new() });
    request.metadata_mut().insert("authorization", bearer.clone());
    TouchpointServiceClient::new(channel.clone()).create_touchpoint(request).await?;
    let mut request = Request::new(pb::CreateSessionRequest {
        touchpoint: TOUCHPOINT.to_owned(),
        ..pb::CreateSessionRequest::default()
    });
    request.metadata_mut().insert("authorization", bearer.clone());
    let made = SessionServiceClient::new(channel).create_session(request).await?.into_inner();
    Ok(made.session.ok_or("no session in the answer")?.session_id.parse()?)
}

/// The head of a statement that copies rows, called `model`, into their own table, but for these columns.
pub(crate) async fn copy_into(db: &mut PgConnection, table: &str, own: &[(&str, &str)]) -> Outcome<String> {
    let columns: Vec<String> = sqlx::query_scalar(
        "select attname::text from pg_attribute
        where attrelid = $1::regclass and attnum > 0 and not attisdropped and attgenerated = ''
        order by attnum",
    )
    .bind(table)
    .fetch_all(db)
    .await?;
    let value = |column: &String| {
        let own = own.iter().find(|(name, _)| name == column);
        own.map_or_else(|| format!("model.{column}"), |(_, value)| (*value).to_owned())
    };
    let values: Vec<_> = columns.iter().map(value).collect();
    Ok(format!("insert into {table} ({}) select {}", columns.join(", "), values.join(", ")))
}
