//! PostgreSQL by itself, under the load tool that comes with it: what one statement a round trip reaches.

use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tokio::process::Command;

use crate::Outcome;
use crate::load::{Load, histogram};
use crate::rounds::Variant;
use crate::shop::log_pages;
use crate::stand::Stand;

/// As many as reach most on small machines.
const CLIENTS: usize = 32;
/// Of the sessions' form, empty, and the same with a number to find rows by.
const TABLES: &str = "create schema bench;
    create table bench.inserted (like session.sessions including all);
    create table bench.selected as select row_number() over () as number, * from session.sessions;
    alter table bench.selected add primary key (tenant_id, number);
    vacuum (analyze) bench.selected";

/// A row as session-svc inserts it for an anonymous session, with an id that sorts by time, too.
const INSERT: &str = r"\set random random(0, 999999999999999)
insert into bench.inserted (tenant_id, session_id, touchpoint_id, token_hash, shopper_id, created_at, last_seen_at,
    absolute_deadline, visit_started_at, pins)
select 'tenant-0', id, 'web', hash, id, now, now, now + interval '1 day', now, ''
from (select clock_timestamp() as now,
        (lpad(to_hex((extract(epoch from clock_timestamp()) * 1000)::bigint), 12, '0') || '7000a'
            || lpad(to_hex(:random::bigint), 15, '0'))::uuid as id,
        '\x0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef'::bytea as hash) new;
";

/// Needs the number of rows.
const SELECT: &str = r"\set number random(1, :rows)
select session_id, touchpoint_id, token_hash, shopper_id, subject_sub, created_at, last_seen_at, absolute_deadline,
    visit_started_at, pins, revoked_at
from bench.selected
where tenant_id = 'tenant-0' and number = :number;
";

/// The carts that are there, by number, as they are stored, and with the same contents as JSON.
const CARTS: &str = "create schema bench;
    create table bench.carts with (fillfactor = 80) as select row_number() over () as number, tenant_id, content, updated_at, version
        from session.carts;
    create table bench.json_carts with (fillfactor = 80) as select number, tenant_id, null::jsonb as content, updated_at, version from bench.carts;
    alter table bench.carts add primary key (tenant_id, number);
    alter table bench.json_carts add primary key (tenant_id, number);
    create table bench.events (like session.events including all);
    create table bench.event as select * from session.events where kind like 'cart.%' limit 1";

/// Needs the table, the number of rows, and the content.
const UPDATE: &str = r"\set number random(1, :rows)
update bench.{table} set content = {content}, updated_at = clock_timestamp(), version = version + 1
where tenant_id = 'tenant-0' and number = :number and version < 1000000000;
";

/// Needs the number of rows, how many carts a transaction, and the content. The order keeps two such from waiting in a circle.
const UPDATE_MANY: &str = r"with chosen as materialized (
    select distinct 1 + floor(random() * :rows)::bigint as number from generate_series(1, {count}) order by number
), changed as (
    update bench.carts cart set content = {content}, updated_at = clock_timestamp(), version = version + 1
    from chosen
    where cart.tenant_id = 'tenant-0' and cart.number = chosen.number and cart.version < 1000000000
    returning cart.number
)
insert into bench.events (tenant_id, kind, subject, principal, occurred_at, data, trace_parent)
select tenant_id, kind, subject, principal, clock_timestamp(), data, trace_parent from bench.event, changed;
";

/// The tool, ready for one database.
#[derive(Clone)]
pub(crate) struct Pgbench {
    program: PathBuf,
    url: String,
    /// Of scripts.
    folder: PathBuf,
    rows: u64,
}

impl Pgbench {
    /// Makes its tables beside the service's, of what is there.
    pub(crate) async fn prepare(stand: &Stand, url: &str, rows: u64) -> Outcome<Self> {
        let mut db = PgConnection::connect(url).await?;
        for sql in TABLES.split(';') {
            sqlx::raw_sql(sql).execute(&mut db).await?;
        }
        db.close().await?;
        let tool = Self::new(stand, url, rows);
        std::fs::write(tool.folder.join("insert.sql"), INSERT)?;
        std::fs::write(tool.folder.join("select.sql"), SELECT)?;
        Ok(tool)
    }

    /// As [`Pgbench::prepare`], of carts that all have this content: one a transaction, as they are stored and as JSON, and as
    /// many a transaction as two batches of 32 and of 256 calls in flight can have, each with its event.
    pub(crate) async fn prepare_carts(
        stand: &Stand,
        url: &str,
        rows: u64,
        json: &str,
    ) -> Outcome<[Variant; 4]> {
        let mut db = PgConnection::connect(url).await?;
        for sql in CARTS.split(';') {
            sqlx::raw_sql(sql).execute(&mut db).await?;
        }
        let fill = sqlx::query("update bench.json_carts set content = $1::text::jsonb");
        fill.bind(json).execute(&mut db).await?;
        for table in ["bench.carts", "bench.json_carts"] {
            sqlx::raw_sql(AssertSqlSafe(format!("vacuum (full, analyze) {table}")))
                .execute(&mut db)
                .await?;
            log_pages(&mut db, table).await?;
        }
        let bytes: String = sqlx::query_scalar("select encode(content, 'hex') from bench.carts limit 1")
            .fetch_one(&mut db)
            .await?;
        db.close().await?;
        let tool = Self::new(stand, url, rows);
        let update = |what: &str, table: &str, content: String| {
            let script = format!("{table}.sql");
            let text = UPDATE.replace("{table}", table).replace("{content}", &content);
            std::fs::write(tool.folder.join(&script), text)?;
            Outcome::Ok(tool.variant(what, &script, CLIENTS, 1))
        };
        let content = format!(r"'\x{bytes}'::bytea");
        let update_many = |count: u64| {
            let script = format!("carts-{count}.sql");
            let text = UPDATE_MANY
                .replace("{count}", &count.to_string())
                .replace("{content}", &content);
            std::fs::write(tool.folder.join(&script), text)?;
            Outcome::Ok(tool.variant(&format!("update of {count} with events"), &script, 2, count))
        };
        Ok([
            update("update", "carts", content.clone())?,
            update("update of jsonb", "json_carts", format!("'{json}'::jsonb"))?,
            update_many(16)?,
            update_many(128)?,
        ])
    }

    /// Inserts one row a transaction, durably.
    pub(crate) fn inserting(&self) -> Variant {
        self.variant("insert", "insert.sql", CLIENTS, 1)
    }

    /// Selects one row by its primary key.
    pub(crate) fn selecting(&self) -> Variant {
        self.variant("select", "select.sql", CLIENTS, 1)
    }

    fn new(stand: &Stand, url: &str, rows: u64) -> Self {
        let program = stand.database.programs.join("pgbench");
        Self { program, url: url.to_owned(), folder: stand.folder.0.clone(), rows }
    }

    /// `each` is how many of what is counted a transaction makes.
    fn variant(&self, what: &str, script: &str, clients: usize, each: u64) -> Variant {
        let (tool, script) = (self.clone(), self.folder.join(script));
        Variant::new(format!("pgbench {what}, {clients} clients"), None, move |time| {
            let (tool, script) = (tool.clone(), script.clone());
            async move {
                let load = tool.run(&script, clients, time).await?;
                Ok(Load { calls: load.calls * each, ..load })
            }
        })
    }

    async fn run(&self, script: &Path, clients: usize, time: Duration) -> Outcome<Load> {
        let mut command = Command::new(&self.program);
        command
            .args(["--no-vacuum", "--protocol=prepared", "--jobs=2", "--client", &clients.to_string()])
            // It knows whole seconds only.
            .args(["--time", &time.as_secs().max(1).to_string()])
            .args(["--define", &format!("rows={}", self.rows), "--file"])
            .arg(script)
            .arg(&self.url)
            .env("LC_ALL", "C")
            .kill_on_drop(true);
        let output = command
            .output()
            .await
            .map_err(|error| format!("{}: {error}", self.program.display()))?;
        let said = String::from_utf8_lossy(&output.stdout);
        let number = |before: &str| {
            let line = said.lines().find_map(|line| line.strip_prefix(before))?;
            line.split([' ', '/']).next()?.parse::<f64>().ok()
        };
        let told = number("number of transactions actually processed: ").zip(number("tps = "));
        let (calls, per_second) = told
            .filter(|_| output.status.success())
            .ok_or_else(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a whole number above 0")]
        let count = calls as u64;
        let took = Duration::from_secs_f64(calls / per_second);
        Ok(Load { calls: count, took, latencies: histogram() })
    }
}
