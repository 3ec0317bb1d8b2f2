//! What a session takes on disk.

use sqlx::{Connection as _, PgConnection};

use crate::Outcome;
use crate::page::{Bound, Section, Verdict, count, figure};
use crate::population::Size;
use crate::shop::Shop;
use crate::stand::Stand;

const SESSIONS: u64 = 1_000_000;

#[expect(clippy::cast_precision_loss, reason = "far fewer bytes than 2^52")]
pub(super) async fn space(stand: &Stand) -> Outcome<Section> {
    let size = Size { sessions: stand.plan.scaled(SESSIONS), tenants: 1, staleness: None };
    let shop = Shop::open(stand, "space", size).await?;
    let mut db = PgConnection::connect(&shop.url).await?;
    let (table, indexes, total): (i64, i64, i64) = sqlx::query_as(
        "select pg_table_size('session.sessions'), pg_indexes_size('session.sessions'),
            pg_total_relation_size('session.sessions')",
    )
    .fetch_one(&mut db)
    .await?;
    db.close().await?;
    shop.close(stand).await?;
    // The copies, and what they are copies of.
    let rows = size.sessions + 1;
    let each = |bytes: i64| bytes as f64 / rows as f64;
    Ok(Section {
        title: "Space",
        goal: "at most 300 bytes a session with indexes (anonymous, no state), measured over 1 M",
        method: format!(
            "{} rows: one that `CreateSession` wrote, and copies of it, each with an id and a token of its own, inserted in the \
             order of their ids; then `pg_total_relation_size` by the number of rows.",
            count(rows)
        ),
        body: format!(
            "| | bytes a session |\n|---|---|\n| table | {} |\n| indexes | {} |\n| total | {} |",
            figure(each(table)),
            figure(each(indexes)),
            figure(each(total))
        ),
        verdicts: vec![Verdict::value("total", each(total), "bytes", Bound::AtMost(300.0))],
    })
}
