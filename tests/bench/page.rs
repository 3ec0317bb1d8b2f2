//! The page of one run: the machine, and for every row its goal, what was measured, and whether that meets it. It holds
//! nothing that was not measured in that run.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use shared::time::Clock;

use crate::Outcome;
use crate::rounds::{Measure, Measured, Rounds, Spread};
use crate::stand::Stand;

/// One row of the page.
pub(crate) struct Section {
    pub(crate) title: &'static str,
    /// As it was set.
    pub(crate) goal: &'static str,
    /// What was done to find out.
    pub(crate) method: String,
    /// Markdown.
    pub(crate) body: String,
    pub(crate) verdicts: Vec<Verdict>,
}

/// Whether a goal was met, or why that cannot be said.
pub(crate) struct Verdict {
    what: String,
    is_met: Option<bool>,
}

impl Verdict {
    /// A ratio that should not be below `goal`, with what the same comparison says of two equal things.
    pub(crate) fn ratio(
        what: &str,
        ratio: Option<Spread>,
        goal: impl Into<Bound>,
        noise: Option<Spread>,
    ) -> Self {
        let goal = goal.into();
        let Some(ratio) = ratio else { return Self { what: format!("{what}: not measured"), is_met: None } };
        let noise = noise.map_or(String::new(), |noise| format!("; a thing to itself {}", times(noise)));
        Self {
            what: format!("{what}: {}, goal {goal}{noise}", times(ratio)),
            is_met: Some(goal.admits(ratio.median)),
        }
    }

    /// A value with a unit that should be within `goal`.
    pub(crate) fn value(what: &str, value: f64, unit: &str, goal: Bound) -> Self {
        Self {
            what: format!("{what}: {} {unit}, goal {goal} {unit}", figure(value)),
            is_met: Some(goal.admits(value)),
        }
    }

    /// Something to say that no goal speaks of.
    pub(crate) fn remark(what: String) -> Self {
        Self { what, is_met: None }
    }
}

/// What a goal allows.
#[derive(Clone, Copy)]
pub(crate) enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

impl Bound {
    fn admits(self, value: f64) -> bool {
        match self {
            Self::AtLeast(least) => value >= least,
            Self::AtMost(most) => value <= most,
        }
    }
}

impl std::fmt::Display for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AtLeast(least) => write!(f, ">= {}", figure(*least)),
            Self::AtMost(most) => write!(f, "<= {}", figure(*most)),
        }
    }
}

/// The variants of a comparison, a line each: medians over the rounds, throughput with its ends.
pub(crate) fn table(rounds: &Rounds) -> String {
    let mut text = String::from(
        "| variant | calls/s | p50 ms | p99 ms | server CPU us | PostgreSQL CPU us |\n|---|---|---|---|---|---|\n",
    );
    for Measured { name, runs } in &rounds.variants {
        let of = |value: fn(&Measure) -> Option<f64>| Spread::of(runs.iter().filter_map(value));
        let cell = |value| of(value).map_or_else(|| "-".to_owned(), |spread| figure(spread.median));
        let rate = of(|run| Some(run.per_second)).map_or_else(String::new, |rate| {
            format!("{} [{}-{}]", figure(rate.median), figure(rate.min), figure(rate.max))
        });
        let (p50, p99) = (cell(|run| run.p50), cell(|run| run.p99));
        let (server, postgres) = (cell(|run| run.server), cell(|run| Some(run.postgres)));
        let _ = writeln!(text, "| {name} | {rate} | {p50} | {p99} | {server} | {postgres} |");
    }
    if rounds.disturbed > 0 {
        let _ = writeln!(
            text,
            "\nDisturbed runs, beside which others used the processors: {}.",
            rounds.disturbed
        );
    }
    text
}

/// Three digits that count.
pub(crate) fn figure(value: f64) -> String {
    match value.abs() {
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn times(Spread { median, min, max }: Spread) -> String {
    format!("{median:.2}x [{min:.2}-{max:.2}]")
}

/// Writes the page.
pub(crate) async fn write(path: &Path, stand: &Stand, rows: &[Outcome<Section>]) -> Outcome<()> {
    let mut text = head(stand).await?;
    for row in rows {
        match row {
            Ok(section) => section.write(&mut text),
            Err(error) => {
                let _ = writeln!(text, "\n## A row that failed\n\n{error}");
            }
        }
    }
    std::fs::write(path, text)?;
    Ok(())
}

impl Section {
    fn write(&self, text: &mut String) {
        let Self { title, goal, method, body, verdicts } = self;
        let _ = writeln!(text, "\n## {title}\n\nGoal: {goal}.\n\n{method}\n\n{}", body.trim_end());
        if !verdicts.is_empty() {
            text.push('\n');
        }
        for Verdict { what, is_met } in verdicts {
            let verdict = match is_met {
                Some(true) => ": **met**",
                Some(false) => ": **not met**",
                None => "",
            };
            let _ = writeln!(text, "- {what}{verdict}");
        }
    }
}

async fn head(stand: &Stand) -> Outcome<String> {
    let plan = stand.plan;
    let mut text = format!(
        "# Benchmarks\n\n\
         Written by `{}`; nothing on this page was edited, or measured at another time. Client, servers and PostgreSQL share \
         the machine, so compare figures with each other, not with another machine's. Every comparison runs its variants in \
         turn, {} rounds of {:?} each, the first variant twice a round; ratios are medians of the rounds' ratios, with the \
         least and the greatest. CPU is that of the process and all below it, a call. A run beside which other programs used \
         more than 5 % of a processor is made again, three times at most.\n\n\
         The servers run with everything on: identity, limits, metrics, and traces of 1 % of calls, sent to a collector in \
         the load tool, which keeps eight connections.\n\n",
        command(),
        plan.rounds,
        plan.time
    );
    if cfg!(debug_assertions) || plan.quick {
        text.push_str(
            "**This run only tried the tool**, on an unoptimized build or with small data: its figures mean nothing.\n\n",
        );
    }
    text.push_str("| | |\n|---|---|\n");
    let mut facts = machine()?;
    facts.push((
        "file system of the data",
        output("stat", &["-f", "-c", "%T", &stand.folder.0.to_string_lossy()]),
    ));
    facts.push(("commit", commit()));
    facts.push(("measured", Clock::system().now().format("%Y-%m-%d %H:%M UTC").to_string()));
    for (name, value) in facts {
        let _ = writeln!(text, "| {name} | {value} |");
    }
    for (name, value) in stand.database.settings().await? {
        let _ = writeln!(text, "| PostgreSQL `{name}` | {value} |");
    }
    Ok(text)
}

/// As it would be typed again.
fn command() -> String {
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench").peekable();
    let separator = if args.peek().is_some() { " --" } else { "" };
    args.fold(format!("cargo bench -p tests{separator}"), |command, arg| format!("{command} {arg}"))
}

fn machine() -> Outcome<Vec<(&'static str, String)>> {
    let (cpu, memory) =
        (std::fs::read_to_string("/proc/cpuinfo")?, std::fs::read_to_string("/proc/meminfo")?);
    let after = |text: &str, name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.map(|rest| rest.trim_start_matches([':', ' ', '\t']).to_owned())
            .unwrap_or_default()
    };
    let kib: u64 = after(&memory, "MemTotal").trim_end_matches(" kB").parse()?;
    Ok(vec![
        ("processors", format!("{} x {}", std::thread::available_parallelism()?, after(&cpu, "model name"))),
        ("memory", format!("{} GiB", (kib >> 20) + 1)),
        ("kernel", std::fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned()),
    ])
}

fn commit() -> String {
    let changed = !output("git", &["status", "--porcelain", "--untracked-files=no"]).is_empty();
    let commit = output("git", &["rev-parse", "--short=12", "HEAD"]);
    if changed { format!("{commit}, with changes") } else { commit }
}

/// What a program prints; nothing where it does not run.
fn output(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    output.map_or_else(|_| String::new(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
