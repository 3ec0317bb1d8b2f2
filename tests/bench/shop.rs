//! A database full of sessions with a session-svc on it, and the servers that it is compared with.

use std::sync::Arc;

use shared::pb::session::{self as pb, Consistency};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use crate::Outcome;
use crate::client::Client;
use crate::load::{self, Turn};
use crate::population::{Population, Size, copy_into};
use crate::rounds::SETTLING;
use crate::server::Server;
use crate::stand::{Stand, note};

/// In flight while caches are filled.
const WARMING: usize = 64;

/// What most rows measure.
pub(crate) struct Shop {
    name: String,
    pub(crate) url: String,
    pub(crate) server: Server,
    pub(crate) client: Client,
}

impl Shop {
    /// Makes the database and fills it.
    pub(crate) async fn open(stand: &Stand, name: &str, size: Size) -> Outcome<Self> {
        let url = stand.database.create(name).await?;
        let server = stand.session_svc(&url).await?;
        note(&format!("  making {} sessions of {} tenants", size.sessions, size.tenants));
        let mut db = PgConnection::connect(&url).await?;
        let population = Population::make(stand, &server, &mut db, size).await?;
        db.close().await?;
        let client = Client::new(&server, &Arc::new(population)).await?;
        Ok(Self { name: name.to_owned(), url, server, client })
    }

    /// The server that does nothing but answer as session-svc does.
    pub(crate) async fn constant(&self, stand: &Stand) -> Outcome<(Server, Client)> {
        self.compared(stand, "serve-constant").await
    }

    /// The server that answers with one query a call.
    pub(crate) async fn one_query(&self, stand: &Stand) -> Outcome<(Server, Client)> {
        self.compared(stand, "serve-one-query").await
    }

    /// Validates so many sessions once, so that whatever of them and their tenants can be cached is.
    pub(crate) async fn warm(&self, sessions: u64) -> Outcome<()> {
        let client = self.client.clone();
        let call = move |turn| {
            let client = client.clone();
            async move { client.validate(turn, Consistency::Bounded).await }
        };
        load::each(sessions, WARMING, call).await?;
        tokio::time::sleep(SETTLING).await;
        Ok(())
    }

    /// Gives every other shopper a copy of the one cart that there is.
    pub(crate) async fn copy_cart(&self) -> Outcome<()> {
        let mut db = PgConnection::connect(&self.url).await?;
        let own = [("shopper_id", "owner.shopper_id"), ("cart_id", "owner.shopper_id")];
        let copy = copy_into(&mut db, "session.carts", &own).await?;
        let sql = format!(
            "{copy} from session.carts model, session.sessions owner
            where owner.tenant_id = model.tenant_id and owner.shopper_id <> model.shopper_id"
        );
        let copied = sqlx::query(AssertSqlSafe(sql)).execute(&mut db).await?.rows_affected();
        if copied + 1 < self.client.population.count {
            return Err(format!("only {copied} carts were copied").into());
        }
        sqlx::raw_sql("vacuum (analyze) session.carts").execute(&mut db).await?;
        sqlx::raw_sql("checkpoint").execute(&mut db).await?;
        log_pages(&mut db, "session.carts").await?;
        Ok(db.close().await?)
    }

    /// Stops session-svc and drops its database, so that no later row is measured beside what PostgreSQL still does there.
    pub(crate) async fn close(self, stand: &Stand) -> Outcome<()> {
        self.server.stop().await?;
        stand.database.forget(&self.name).await
    }

    /// The server that does nothing but answer one cart to every change.
    pub(crate) async fn constant_cart(&self, stand: &Stand, cart: pb::Cart) -> Outcome<(Server, Client)> {
        let answer = pb::SetCartLineQuantityResponse { cart: Some(cart) };
        self.answering(stand, "serve-constant-cart", &answer).await
    }

    async fn compared(&self, stand: &Stand, command: &str) -> Outcome<(Server, Client)> {
        let answer = self.client.verdict(Turn { worker: 0, number: 0 }, Consistency::Bounded).await?;
        self.answering(stand, command, &answer).await
    }

    async fn answering(
        &self,
        stand: &Stand,
        command: &str,
        answer: &impl prost::Message,
    ) -> Outcome<(Server, Client)> {
        let path = stand.folder.0.join("answer");
        std::fs::write(&path, answer.encode_to_vec())?;
        let server = stand.launch(command, &self.url, Some(path)).await?;
        let client = Client::new(&server, &self.client.population).await?;
        Ok((server, client))
    }
}

/// Has PostgreSQL log every page of the table whole, as it does with a page's first change after a checkpoint: whoever is
/// measured finds that done, however few pages it comes to in its time.
pub(crate) async fn log_pages(db: &mut PgConnection, table: &str) -> Outcome<()> {
    let sql = format!("select count(*) from (select from {table} for update) locked");
    sqlx::query(AssertSqlSafe(sql)).execute(db).await?;
    Ok(())
}
