//! The stack's private PostgreSQL: started, given its database, and started again when it dies, under the same URL, so
//! that the services go on when it is back.

use std::time::{Duration, Instant};

use shared::config;
use shared::postgres::{Postgres, Settings};
use sqlx::{Connection as _, PgConnection};

use super::restart::Restarts;
use crate::error::Error;
use crate::stack::Stack;
use crate::term;

const DATABASE: &str = "tandem";

/// A running one.
pub(super) struct Database {
    settings: Settings,
    /// `None` only until it is started again.
    server: Option<Postgres>,
    url: String,
    /// When it was up.
    born: Instant,
}

impl Database {
    /// Starts it.
    pub(super) async fn start(
        stack: &Stack,
        fetch: bool,
        notes: impl Fn(&str) + Send + 'static,
    ) -> Result<Self, Error> {
        let settings = Settings {
            folder: stack.path("postgres"),
            durable: true,
            temporary: false,
            bin: config::variable("TANDEM_PG_BIN").map(Into::into),
            path: config::variable("PATH").map(Into::into),
            fetch,
            cache: stack.cache()?,
        };
        let server = Postgres::start(settings.clone(), notes).await?;
        create(&server.url("postgres"))
            .await
            .map_err(|error| Error::Failed(format!("cannot create database {DATABASE}: {error}")))?;
        let url = server.url(DATABASE);
        Ok(Self { settings, server: Some(server), url, born: Instant::now() })
    }

    /// Where the services connect.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// Its first process.
    pub(super) fn pid(&self) -> Option<u32> {
        self.server.as_ref().map(Postgres::pid)
    }

    /// Starts it again whenever it dies, and tells; ends when that does not help.
    pub(super) async fn keep(&mut self, changed: impl Fn(u32)) -> Error {
        let mut restarts = Restarts::default();
        let mut how = "died".to_owned();
        loop {
            let lived = match &mut self.server {
                Some(server) => {
                    server.wait().await;
                    self.born.elapsed()
                }
                None => Duration::ZERO,
            };
            // What it left behind stops when this is dropped; the new one waits for that.
            self.server = None;
            let Some(delay) = restarts.after(lived) else {
                return Error::Failed(format!("PostgreSQL does not stay up: it {how}"));
            };
            term::note(format_args!("PostgreSQL {how}; it is started again in {:.1} s", delay.as_secs_f64()));
            tokio::time::sleep(delay).await;
            match Postgres::start(self.settings.clone(), |line| term::note(line)).await {
                Ok(server) if server.url(DATABASE) == self.url => {
                    changed(server.pid());
                    self.server = Some(server);
                    self.born = Instant::now();
                    "died".clone_into(&mut how);
                }
                // Only where the folder's path is too long for a socket, and the old one was left behind.
                Ok(server) => {
                    server.stop().await;
                    return Error::Failed(
                        "PostgreSQL's socket had to move: start the stack again".to_owned(),
                    );
                }
                Err(error) => how = format!("did not start: {}", Error::from(error)),
            }
        }
    }

    /// Stops it.
    pub(super) async fn stop(&mut self) {
        if let Some(server) = self.server.take() {
            server.stop().await;
        }
    }
}

async fn create(url: &str) -> sqlx::Result<()> {
    let mut connection = PgConnection::connect(url).await?;
    let exists: bool = sqlx::query_scalar("select exists (select from pg_database where datname = 'tandem')")
        .fetch_one(&mut connection)
        .await?;
    if !exists {
        sqlx::query("create database tandem").execute(&mut connection).await?;
    }
    connection.close().await
}
