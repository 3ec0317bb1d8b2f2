//! The way to PostgreSQL: a bounded pool whose every connection limits its statements, transactions that know the
//! caller's deadline, migrations, and waiting for a database that is not there yet.

use std::time::{Duration, Instant};

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, PgPool, Postgres};

use crate::time::{Clock, Time};

/// A transaction. Dropped without a commit, it never happened.
pub type Tx = sqlx::Transaction<'static, Postgres>;

const STATEMENT_TIMEOUT: Duration = Duration::from_secs(2);
const LOCK_TIMEOUT: Duration = Duration::from_secs(1);
const IDLE_TIMEOUT: Duration = Duration::from_secs(1);
const POOL_WAIT: Duration = Duration::from_secs(1);
/// Serializes migrations of one database; the number is arbitrary.
const MIGRATION_LOCK: i64 = 0x7a_6e_64_6d;

/// The database cannot be used as it is; waiting would not help.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// Not a URL of PostgreSQL.
    #[error("the database URL is not of the form postgres://user@host/database: {0}")]
    Url(sqlx::Error),
    /// Refused by the server.
    #[error("PostgreSQL refuses the connection: {0}. Check user, password and database of the URL")]
    Refused(sqlx::Error),
    /// Before 15.
    #[error("PostgreSQL {0} is too old: Tandem needs 15 or newer")]
    TooOld(String),
    /// Something between us and PostgreSQL drops connection settings.
    #[error(
        "the connection goes through a pooler (such as PgBouncer) that drops Tandem's connection settings; \
         connect to PostgreSQL itself, or use session pooling without `ignore_startup_parameters`"
    )]
    Pooler,
    /// The schema cannot be brought up to date.
    #[error("migration failed: {0}")]
    Migrate(#[from] MigrateError),
    /// Told to stop before the database was there.
    #[error("stopped while waiting for PostgreSQL")]
    Stopped,
}

/// A pool of connections.
#[derive(Clone)]
pub struct Db {
    pool: PgPool,
}

impl Db {
    /// Prepares a pool; connects to nothing yet.
    pub fn new(url: &str, max_connections: u32, application: &str) -> Result<Self, DbError> {
        let options = options(url, application)?.options([
            ("statement_timeout", millis(STATEMENT_TIMEOUT)),
            ("lock_timeout", millis(LOCK_TIMEOUT)),
            ("idle_in_transaction_session_timeout", millis(IDLE_TIMEOUT)),
            // Of a statement on arrays PostgreSQL would believe that the next plan is better, and plan it anew each time,
            // which costs more than the statement.
            ("plan_cache_mode", "force_generic_plan".to_owned()),
        ]);
        let pool = PgPoolOptions::new()
            .max_connections(max_connections)
            .acquire_timeout(POOL_WAIT)
            // A ping costs a round trip a request; a stale connection costs one UNAVAILABLE after a restart instead.
            .test_before_acquire(false)
            .connect_lazy_with(options);
        Ok(Self { pool })
    }

    /// Begins a transaction whose statements end before `deadline`, in one round trip.
    pub async fn begin(&self, deadline: Option<Instant>) -> sqlx::Result<Tx> {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        match left {
            Some(left) if left < STATEMENT_TIMEOUT => {
                let millis = left.as_millis().max(1);
                self.pool
                    .begin_with(AssertSqlSafe(format!("begin; set local statement_timeout = {millis}")))
                    .await
            }
            _ => self.pool.begin_with("begin").await,
        }
    }

    /// Begins a transaction whose commit does not wait for the disk, and that waits for nobody for long: for what may be
    /// lost in a crash, and can be tried again.
    pub async fn begin_relaxed(&self) -> sqlx::Result<Tx> {
        let begin = "begin; set local synchronous_commit = off; set local lock_timeout = 20";
        self.pool.begin_with(begin).await
    }

    /// A connection for single statements, each its own transaction.
    pub async fn connection(&self) -> sqlx::Result<sqlx::pool::PoolConnection<Postgres>> {
        self.pool.acquire().await
    }

    /// What the database's clock says, and brings `clock` to it.
    pub async fn read_clock(&self, clock: &Clock) -> sqlx::Result<Time> {
        let mut connection = self.connection().await?;
        let sent = Instant::now();
        let now: Time = sqlx::query_scalar("select clock_timestamp()")
            .fetch_one(&mut *connection)
            .await?;
        clock.adjust(sent, now);
        Ok(now)
    }

    /// Whether the database answers.
    pub async fn ping(&self) -> sqlx::Result<()> {
        sqlx::query("select 1").execute(&mut *self.connection().await?).await.map(drop)
    }

    /// Names this database and its cluster's timeline, so that positions in another one, or from before a failover or
    /// restore, are known. The timeline is that of what is written now: the last checkpoint's lags behind a promotion.
    pub async fn cluster(&self) -> sqlx::Result<String> {
        let sql = "select (select system_identifier from pg_control_system())::text || '.' || \
                   left(pg_walfile_name(pg_current_wal_lsn()), 8) || '.' || \
                   (select oid from pg_database where datname = current_database())::text";
        sqlx::query_scalar(sql).fetch_one(&mut *self.connection().await?).await
    }

    /// Connections open and idle, for the metrics.
    pub fn connections(&self) -> (u32, usize) {
        (self.pool.size(), self.pool.num_idle())
    }

    /// Closes every connection after its last statement.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}

/// Waits until PostgreSQL answers, checks that it will do, and brings the schema up to date.
pub async fn prepare(
    db: &Db,
    url: &str,
    migrator: &Migrator,
    stop: &tokio_util::sync::CancellationToken,
) -> Result<(), DbError> {
    let mut waits = 0_u32;
    loop {
        match check(db).await {
            Ok(()) => break,
            Err(CheckError::Fatal(error)) => return Err(error),
            Err(CheckError::Away(error)) => {
                if waits.is_multiple_of(10) {
                    tracing::warn!(%error, "waiting for PostgreSQL");
                }
                waits += 1;
                tokio::select! {
                    () = stop.cancelled() => return Err(DbError::Stopped),
                    () = tokio::time::sleep(Duration::from_millis(500)) => {}
                }
            }
        }
    }
    migrate(url, migrator, stop).await
}

/// Does what a start needs of the database, again and again while it is away.
pub async fn once_there<T>(
    stop: &tokio_util::sync::CancellationToken,
    mut attempt: impl AsyncFnMut() -> sqlx::Result<T>,
) -> Result<T, DbError> {
    loop {
        match attempt().await {
            Ok(value) => return Ok(value),
            Err(error) if crate::status::is_away(&error) => tracing::warn!(%error, "waiting for PostgreSQL"),
            Err(error) => return Err(DbError::Refused(error)),
        }
        tokio::select! {
            () = stop.cancelled() => return Err(DbError::Stopped),
            () = tokio::time::sleep(Duration::from_millis(500)) => {}
        }
    }
}

enum CheckError {
    Fatal(DbError),
    Away(sqlx::Error),
}

impl From<sqlx::Error> for CheckError {
    fn from(error: sqlx::Error) -> Self {
        let code = error
            .as_database_error()
            .and_then(|error| error.code().map(std::borrow::Cow::into_owned));
        match code.as_deref() {
            // Bad password, no such role, no such database, no right to connect.
            Some("28P01" | "28000" | "3D000" | "42501") => Self::Fatal(DbError::Refused(error)),
            // PgBouncer: "unsupported startup parameter".
            Some("08P01") => Self::Fatal(DbError::Pooler),
            _ => Self::Away(error),
        }
    }
}

async fn check(db: &Db) -> Result<(), CheckError> {
    let mut connection = db.connection().await?;
    let (number, version, timeout): (String, String, String) = sqlx::query_as(
        "select current_setting('server_version_num'), current_setting('server_version'), current_setting('statement_timeout')",
    )
    .fetch_one(&mut *connection)
    .await?;
    if number.parse().unwrap_or(0) < 150_000 {
        return Err(CheckError::Fatal(DbError::TooOld(version)));
    }
    if timeout != "2s" {
        return Err(CheckError::Fatal(DbError::Pooler));
    }
    Ok(())
}

/// Runs what is missing of the migrations, one process at a time. Migrations of a newer binary are left alone.
pub async fn migrate(
    url: &str,
    migrator: &Migrator,
    stop: &tokio_util::sync::CancellationToken,
) -> Result<(), DbError> {
    let options = options(url, "tandem-migrate")?;
    let mut connection = PgConnection::connect_with(&options).await.map_err(DbError::Refused)?;
    while !sqlx::query_scalar("select pg_try_advisory_lock($1)")
        .bind(MIGRATION_LOCK)
        .fetch_one(&mut connection)
        .await
        .map_err(DbError::Refused)?
    {
        tokio::select! {
            () = stop.cancelled() => return Err(DbError::Stopped),
            () = tokio::time::sleep(Duration::from_millis(100)) => {}
        }
    }
    let migrator = Migrator {
        migrations: migrator.migrations.clone(),
        ignore_missing: true,
        locking: migrator.locking,
        no_tx: migrator.no_tx,
        table_name: migrator.table_name.clone(),
        create_schemas: migrator.create_schemas.clone(),
    };
    migrator.run(&mut connection).await?;
    // Closing the connection gives the lock back.
    connection.close().await.map_err(DbError::Refused)
}

fn options(url: &str, application: &str) -> Result<PgConnectOptions, DbError> {
    let options: PgConnectOptions = url.parse().map_err(DbError::Url)?;
    Ok(options.application_name(application))
}

fn millis(duration: Duration) -> String {
    duration.as_millis().to_string()
}

/// The constraint that a statement broke.
pub fn broken_constraint(error: &sqlx::Error) -> Option<&str> {
    error.as_database_error().and_then(|error| error.constraint())
}
