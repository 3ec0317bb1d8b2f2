//! One PostgreSQL a test process, one migrated template in it, and a database of its own for every test.
//!
//! A thread keeps the one connection that makes and drops databases, so that any test can ask for it, also one that
//! panics. On a server of the user's (`DATABASE_URL`), what a killed run left behind goes with the next one: databases
//! are named after the run, and the run's connection bears the same name for as long as it lives.

use std::os::unix::fs::MetadataExt as _;
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, Sender, channel};

use shared::config::variable;
use shared::postgres::{Postgres, Settings};
use shared::secret::Entropy;
use shared::serve::Lifecycle;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

/// A database with both schemas, gone when this is dropped.
pub(crate) struct Database {
    name: String,
    pub(crate) url: String,
}

enum Order {
    /// Answers name and URL of a fresh clone of the template, or of an empty database.
    Make {
        migrated: bool,
        made: Sender<(String, String)>,
    },
    /// Cuts every connection and lets nobody in, or lets everybody in again.
    Open {
        name: String,
        is_open: bool,
        done: Sender<()>,
    },
    Drop {
        name: String,
        done: Sender<()>,
    },
}

impl Database {
    /// With both services' schemas.
    pub(crate) fn migrated() -> Self {
        Self::make(true)
    }

    /// With nothing in it.
    pub(crate) fn empty() -> Self {
        Self::make(false)
    }

    fn make(migrated: bool) -> Self {
        let (made, answer) = channel();
        order(Order::Make { migrated, made });
        let (name, url) = answer.recv().expect("the thread that makes databases says why it ended");
        Self { name, url }
    }

    /// Goes away, as PostgreSQL does when it is stopped, or comes back.
    pub(crate) fn set_open(&self, is_open: bool) {
        let (done, wait) = channel();
        order(Order::Open { name: self.name.clone(), is_open, done });
        wait.recv().expect("the thread that makes databases says why it ended");
    }

    /// The other takes its name, as a restored backup does; it must have no connections.
    pub(crate) async fn replace_with(&self, other: &Self) {
        self.set_open(false);
        let beside = Self::empty();
        let mut db = beside.connect().await;
        let aside = format!("{}_aside", self.name);
        for (from, to) in [(&self.name, &aside), (&other.name, &self.name), (&aside, &other.name)] {
            let rename = format!("alter database {from} rename to {to}");
            sqlx::raw_sql(AssertSqlSafe(rename)).execute(&mut db).await.unwrap();
        }
    }

    /// A connection beside the services'.
    pub(crate) async fn connect(&self) -> PgConnection {
        PgConnection::connect(&self.url).await.expect("the test's own connection")
    }

    /// What a statement counts.
    pub(crate) async fn count(&self, sql: &'static str) -> i64 {
        sqlx::query_scalar(sql).fetch_one(&mut self.connect().await).await.unwrap()
    }

    /// Every row of every table of ours, as text.
    pub(crate) async fn dump(&self) -> String {
        let mut db = self.connect().await;
        let tables = "select format('%I.%I', schemaname, tablename) from pg_tables \
                      where schemaname in ('session', 'release')";
        let tables: Vec<String> = sqlx::query_scalar(tables).fetch_all(&mut db).await.unwrap();
        let mut dump = String::new();
        for table in tables {
            let sql = format!("select coalesce(string_agg(t::text, ' '), '') from {table} t");
            let text: String = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut db).await.unwrap();
            dump.push_str(&text);
        }
        dump
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let (done, wait) = channel();
        order(Order::Drop { name: std::mem::take(&mut self.name), done });
        let _ = wait.recv();
    }
}

fn order(order: Order) {
    static ORDERS: OnceLock<Sender<Order>> = OnceLock::new();
    let orders = ORDERS.get_or_init(|| {
        let (orders, inbox) = channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(Keeper::run(&inbox));
        });
        orders
    });
    orders.send(order).expect("the thread that makes databases says why it ended");
}

struct Keeper {
    /// Stops the private server when the process ends, however it does.
    private: Option<Postgres>,
    given: Option<String>,
    admin: PgConnection,
    run: String,
    made: u32,
    alive: u32,
    has_template: bool,
}

impl Keeper {
    async fn run(inbox: &Receiver<Order>) {
        let mut keeper = Self::start().await;
        while let Ok(order) = inbox.recv() {
            match order {
                Order::Make { migrated, made } => {
                    let _ = made.send(keeper.make(migrated).await);
                }
                Order::Open { name, is_open, done } => {
                    keeper.set_open(&name, is_open).await;
                    let _ = done.send(());
                }
                Order::Drop { name, done } => {
                    keeper.forget(&name).await;
                    let _ = done.send(());
                }
            }
        }
    }

    async fn start() -> Self {
        let id = format!("{:08x}", u32::from_be_bytes(Entropy::system().bytes()));
        let (run, given) = (format!("tandem_test_{id}"), variable("DATABASE_URL"));
        let private = match given {
            Some(_) => None,
            None => Some(Postgres::start_blocking(&settings(&run), &|line| eprintln!("{line}")).unwrap()),
        };
        let url = url(private.as_ref(), given.as_deref(), "postgres");
        let options: PgConnectOptions = url.parse().unwrap();
        let admin = PgConnection::connect_with(&options.application_name(&run)).await.unwrap();
        let mut keeper = Self { private, given, admin, run, made: 0, alive: 0, has_template: false };
        keeper.sweep().await;
        keeper
    }

    async fn make(&mut self, migrated: bool) -> (String, String) {
        let template = format!("{}_template", self.run);
        if !self.has_template {
            self.execute(format!("create database {template}")).await;
            let (url, stop) = (self.url(&template), Lifecycle::default().stop);
            shared::db::migrate(&url, &session_svc::MIGRATOR, &stop).await.unwrap();
            shared::db::migrate(&url, &release_svc::MIGRATOR, &stop).await.unwrap();
            self.has_template = true;
        }
        self.made += 1;
        self.alive += 1;
        let name = format!("{}_{}", self.run, self.made);
        let template = if migrated { &template } else { "template1" };
        self.execute(format!("create database {name} template {template}")).await;
        let url = self.url(&name);
        (name, url)
    }

    async fn set_open(&mut self, name: &str, is_open: bool) {
        self.execute(format!("alter database {name} allow_connections {is_open}")).await;
        if !is_open {
            let cut = format!(
                "select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = '{name}'"
            );
            self.execute(cut).await;
        }
    }

    async fn forget(&mut self, name: &str) {
        self.drop_database(name).await;
        self.alive -= 1;
        // The private server goes as a whole; a server of the user's is left as it was found.
        if self.alive == 0 && self.given.is_some() {
            let template = format!("{}_template", self.run);
            self.drop_database(&template).await;
            self.has_template = false;
        }
    }

    /// Drops databases of runs that are over.
    async fn sweep(&mut self) {
        let left: Vec<String> = sqlx::query_scalar(
            "select datname::text from pg_database where datname ~ '^tandem_test_[0-9a-f]{8}_' \
             and left(datname, 20) not in (select application_name from pg_stat_activity)",
        )
        .fetch_all(&mut self.admin)
        .await
        .unwrap();
        for name in left {
            self.drop_database(&name).await;
        }
    }

    async fn drop_database(&mut self, name: &str) {
        self.execute(format!("drop database if exists {name} with (force)")).await;
    }

    async fn execute(&mut self, sql: String) {
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut self.admin).await.unwrap();
    }

    fn url(&self, database: &str) -> String {
        url(self.private.as_ref(), self.given.as_deref(), database)
    }
}

fn url(private: Option<&Postgres>, given: Option<&str>, database: &str) -> String {
    match (private, given) {
        (Some(private), _) => private.url(database),
        (None, Some(given)) => {
            let (base, query) = given
                .split_once('?')
                .map_or((given, String::new()), |(base, query)| (base, format!("?{query}")));
            let server = base.splitn(4, '/').take(3).collect::<Vec<_>>().join("/");
            format!("{server}/{database}{query}")
        }
        (None, None) => unreachable!("one of the two"),
    }
}

fn settings(run: &str) -> Settings {
    let home = || Some(format!("{}/.cache", variable("HOME")?));
    let cache = if is_root(run) { None } else { variable("XDG_CACHE_HOME").or_else(home) };
    Settings {
        folder: std::env::temp_dir().join(run),
        durable: false,
        temporary: true,
        bin: variable("TANDEM_PG_BIN").map(Into::into),
        path: variable("PATH").map(Into::into),
        fetch: true,
        cache: cache.unwrap_or_else(|| "/var/cache/tandem".to_owned()).into(),
    }
}

/// Whether what we make is root's; then what is fetched has to be where PostgreSQL's user gets to.
fn is_root(run: &str) -> bool {
    let probe = std::env::temp_dir().join(format!("{run}.probe"));
    let owner = std::fs::File::create(&probe).and_then(|file| file.metadata()).unwrap().uid();
    std::fs::remove_file(probe).unwrap();
    owner == 0
}
