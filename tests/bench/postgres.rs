//! PostgreSQL as it is run in earnest: durable, and with more memory than the local stack gives it.

use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use shared::config::variable;
use shared::postgres::{Postgres, Settings};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use crate::Outcome;
use crate::stand::note;

/// A private server, and where its programs are.
pub(crate) struct Database {
    pub(crate) server: Postgres,
    pub(crate) programs: PathBuf,
}

/// What the page tells of it.
const TOLD: [&str; 8] = [
    "server_version",
    "shared_buffers",
    "fsync",
    "synchronous_commit",
    "full_page_writes",
    "max_wal_size",
    "max_connections",
    "autovacuum",
];

impl Database {
    /// Starts it in a folder of its own. A private server's settings are fixed on its command line, where the last one wins:
    /// so it is started once to learn where its programs are, and again through a script that adds a setting.
    pub(crate) async fn start(folder: &Path, shared_buffers: &str) -> Outcome<Self> {
        let settings = Settings {
            folder: folder.join("probe"),
            durable: false,
            temporary: true,
            bin: variable("TANDEM_PG_BIN").map(Into::into),
            path: variable("PATH").map(Into::into),
            fetch: true,
            cache: folder.join("cache"),
        };
        let probe = Postgres::start(settings.clone(), note).await?;
        let postgres = std::fs::read_link(format!("/proc/{}/exe", probe.pid()))?;
        let programs = postgres.parent().ok_or("a program without a folder")?.to_owned();
        probe.stop().await;
        let bin = folder.join("bin");
        std::fs::DirBuilder::new().mode(0o755).create(&bin)?;
        symlink(programs.join("initdb"), bin.join("initdb"))?;
        let script = bin.join("postgres");
        std::fs::write(
            &script,
            format!("#!/bin/sh\nexec '{}' \"$@\" -c 'shared_buffers={shared_buffers}'\n", postgres.display()),
        )?;
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755))?;
        let settings =
            Settings { folder: folder.join("postgres"), durable: true, bin: Some(bin), ..settings };
        Ok(Self { server: Postgres::start(settings, note).await?, programs })
    }

    /// A new database; answers its URL.
    pub(crate) async fn create(&self, name: &str) -> Outcome<String> {
        let mut admin = PgConnection::connect(&self.server.url("postgres")).await?;
        sqlx::raw_sql(AssertSqlSafe(format!("create database {name}")))
            .execute(&mut admin)
            .await?;
        admin.close().await?;
        Ok(self.server.url(name))
    }

    /// Drops one.
    pub(crate) async fn forget(&self, name: &str) -> Outcome<()> {
        let mut admin = PgConnection::connect(&self.server.url("postgres")).await?;
        sqlx::raw_sql(AssertSqlSafe(format!("drop database {name} with (force)")))
            .execute(&mut admin)
            .await?;
        admin.close().await?;
        Ok(())
    }

    /// Name and value of what matters of its settings.
    pub(crate) async fn settings(&self) -> Outcome<Vec<(String, String)>> {
        let mut admin = PgConnection::connect(&self.server.url("postgres")).await?;
        let mut settings = vec![];
        for name in TOLD {
            let value = sqlx::query_scalar("select current_setting($1)")
                .bind(name)
                .fetch_one(&mut admin)
                .await?;
            settings.push((name.to_owned(), value));
        }
        Ok(settings)
    }
}
