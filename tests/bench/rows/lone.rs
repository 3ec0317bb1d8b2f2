//! One call at a time with nothing else running: what batching and caching cost who is alone.

use shared::pb::session::Consistency;

use crate::Outcome;
use crate::page::{Bound, Section, Verdict, table};
use crate::population::Size;
use crate::rounds::Rounds;
use crate::rows::validate::{SESSIONS, validations};
use crate::shop::Shop;
use crate::stand::Stand;

pub(super) async fn lone(stand: &Stand) -> Outcome<Section> {
    let size = Size { sessions: stand.plan.scaled(SESSIONS), tenants: 1, staleness: None };
    let shop = Shop::open(stand, "lone", size).await?;
    let (constant, same) = shop.constant(stand).await?;
    let (one_query, one) = shop.one_query(stand).await?;
    shop.warm(size.sessions).await?;
    let variants = [
        validations("cached", &shop.client, 1, Consistency::Bounded),
        validations("constant answer", &same, 1, Consistency::Bounded),
        validations("STRONG", &shop.client, 1, Consistency::Strong),
        validations("one query a call", &one, 1, Consistency::Strong),
    ];
    let rounds = Rounds::run(stand, &variants).await?;
    let noise = rounds.noise(|run| run.p50);
    let p50 = |of, to| rounds.ratio(of, to, |run| run.p50);
    let verdicts = vec![
        Verdict::ratio("p50, cached of the constant answer", p50(0, 1), Bound::AtMost(1.15), noise),
        Verdict::ratio("p50, STRONG of one query a call", p50(2, 3), Bound::AtMost(1.3), noise),
    ];
    for server in [constant, one_query] {
        server.stop().await?;
    }
    shop.close(stand).await?;
    Ok(Section {
        title: "A lone request",
        goal: "p50 of cached validate at most 1.15x, of strong validate at most 1.3x the same without batching",
        method: "One call in flight, over one connection. Without batching are the constant answer for the cached, and one \
                 query a call for the strong validation."
            .to_owned(),
        body: table(&rounds),
        verdicts,
    })
}
