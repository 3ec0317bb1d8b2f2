//! How soon session-svc serves.

use crate::Outcome;
use crate::cpu::Processes;
use crate::page::{Bound, Section, Verdict, disturbance, figure};
use crate::rounds::Spread;
use crate::stand::Stand;

const STARTS: usize = 10;

pub(super) async fn start(stand: &Stand) -> Outcome<Section> {
    let url = stand.database.create("start").await?;
    // Migrates.
    stand.session_svc(&url).await?.stop().await?;
    let (mut times, before) = (vec![], Processes::now()?);
    for _ in 0..STARTS {
        let server = stand.session_svc(&url).await?;
        times.push(server.start.as_secs_f64() * 1e3);
        server.stop().await?;
    }
    let foreign = Processes::now()?.foreign_since(&before);
    let Spread { median, min, max } = Spread::of(times).ok_or("nothing was started")?;
    Ok(Section {
        title: "Start",
        goal: "ready in at most 300 ms on a migrated database",
        method: format!(
            "{STARTS} starts: from before the process is made until health, asked again and again, says SERVING. session-svc \
             only; without release-svc."
        ),
        body: format!(
            "| | median ms | least | greatest |\n|---|---|---|---|\n| start | {} | {} | {} |\n\n{}",
            figure(median),
            figure(min),
            figure(max),
            disturbance(foreign)
        ),
        verdicts: vec![Verdict::value("median", median, "ms", Bound::AtMost(300.0))],
    })
}
