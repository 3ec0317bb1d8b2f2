//! Rounds: every variant runs once, in turn, and then all again, so that whatever the machine does meanwhile hits all of
//! them. The first variant runs twice a round, under two names; how far the two are apart is the noise.

use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::LocalBoxFuture;

use crate::Outcome;
use crate::cpu::Processes;
use crate::load::Load;
use crate::stand::{Stand, note};

/// Longer than session-svc waits before it writes what a load has left: that counts with the load, and must be over before
/// the next one.
pub(crate) const SETTLING: Duration = Duration::from_millis(1_200);
/// A share of one processor; a run beside which others used more is made again.
const FOREIGN_MAX: f64 = 0.05;
/// So often at most.
pub(crate) const REPEATS: usize = 3;

type Run = Box<dyn Fn(Duration) -> LocalBoxFuture<'static, Outcome<Load>>>;

/// One of the things to compare.
pub(crate) struct Variant {
    name: String,
    /// The server's process, if it is not PostgreSQL itself.
    server: Option<u32>,
    run: Run,
}

impl Variant {
    /// `run` makes load for as long as it is told.
    pub(crate) fn new<F, Fut>(name: impl Into<String>, server: Option<u32>, run: F) -> Self
    where
        F: Fn(Duration) -> Fut + 'static,
        Fut: Future<Output = Outcome<Load>> + 'static,
    {
        Self { name: name.into(), server, run: Box::new(move |time| run(time).boxed_local()) }
    }
}

/// What one run showed.
#[derive(Clone, Copy)]
pub(crate) struct Measure {
    pub(crate) per_second: f64,
    /// In milliseconds; not every tool tells them.
    pub(crate) p50: Option<f64>,
    pub(crate) p99: Option<f64>,
    /// Microseconds of processor a call.
    pub(crate) server: Option<f64>,
    pub(crate) postgres: f64,
}

/// All runs of one variant, a round each.
pub(crate) struct Measured {
    pub(crate) name: String,
    pub(crate) runs: Vec<Measure>,
}

/// What all rounds showed.
pub(crate) struct Rounds {
    pub(crate) variants: Vec<Measured>,
    /// Runs beside which others used the processors, every time that they were made.
    pub(crate) disturbed: usize,
}

/// Middle and ends of one value over the rounds.
#[derive(Clone, Copy)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// Of these; `None` where there are none.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = if values.len().is_multiple_of(2) {
            f64::midpoint(values[middle - 1], values[middle])
        } else {
            values[middle]
        };
        Some(Self { median, min, max })
    }
}

impl Rounds {
    /// Warms every variant up, then runs the rounds.
    pub(crate) async fn run(stand: &Stand, variants: &[Variant]) -> Outcome<Self> {
        let first = variants.first().ok_or("nothing to measure")?;
        for variant in variants {
            (variant.run)(stand.plan.warm_up()).await?;
            tokio::time::sleep(SETTLING).await;
        }
        let mut measured: Vec<_> = variants
            .iter()
            .map(|variant| Measured { name: variant.name.clone(), runs: vec![] })
            .collect();
        measured.push(Measured { name: format!("{}, again", first.name), runs: vec![] });
        let mut disturbed = 0;
        for round in 1..=stand.plan.rounds {
            for (variant, measured) in variants.iter().chain([first]).zip(&mut measured) {
                let (run, is_disturbed) = measure(stand, variant).await?;
                disturbed += usize::from(is_disturbed);
                note(&format!("  round {round}, {}: {:.0}/s", measured.name, run.per_second));
                measured.runs.push(run);
            }
        }
        Ok(Self { variants: measured, disturbed })
    }

    /// How a value of two variants compares, round by round.
    pub(crate) fn ratio(
        &self,
        of: usize,
        to: usize,
        value: impl Fn(&Measure) -> Option<f64>,
    ) -> Option<Spread> {
        let (of, to) = (&self.variants.get(of)?.runs, &self.variants.get(to)?.runs);
        Spread::of(of.iter().zip(to).filter_map(|(of, to)| Some(value(of)? / value(to)?)))
    }

    /// How the first variant compares to itself.
    pub(crate) fn noise(&self, value: impl Fn(&Measure) -> Option<f64>) -> Option<Spread> {
        self.ratio(self.variants.len() - 1, 0, value)
    }
}

/// A run, and whether the machine was not ours in any of its repetitions; then the last one stands.
async fn measure(stand: &Stand, variant: &Variant) -> Outcome<(Measure, bool)> {
    let mut repeats = 0;
    loop {
        let before = Processes::now()?;
        let load = (variant.run)(stand.plan.time).await?;
        tokio::time::sleep(SETTLING).await;
        let after = Processes::now()?;
        let foreign = after.foreign_since(&before);
        let is_disturbed = foreign > FOREIGN_MAX;
        if is_disturbed && repeats < REPEATS {
            repeats += 1;
            note(&format!(
                "  {}: others used {:.0} % of a processor, once more",
                variant.name,
                foreign * 100.0
            ));
            continue;
        }
        return Ok((Measure::of(&load, variant.server, stand.postgres(), &before, &after), is_disturbed));
    }
}

impl Measure {
    /// Calls a second, for [`Rounds::ratio`].
    pub(crate) const RATE: fn(&Self) -> Option<f64> = |run| Some(run.per_second);

    #[expect(clippy::cast_precision_loss, reason = "a run has fewer calls than 2^52")]
    fn of(load: &Load, server: Option<u32>, postgres: u32, before: &Processes, after: &Processes) -> Self {
        let calls = load.calls as f64;
        let cpu = |pid| after.tree(pid).saturating_sub(before.tree(pid)).as_secs_f64() * 1e6 / calls;
        let quantile = |share| load.quantile(share).map(|time| time.as_secs_f64() * 1e3);
        Self {
            per_second: load.per_second(),
            p50: quantile(0.5),
            p99: quantile(0.99),
            server: server.map(cpu),
            postgres: cpu(postgres),
        }
    }
}
