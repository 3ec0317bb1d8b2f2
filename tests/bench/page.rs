//! The page: the machine, and for every row its goal, what was measured, when and of which commit, and whether that meets it.
//! A run writes the rows that it measured anew, and leaves the others as an earlier one on this machine wrote them.

use std::fmt::Write as _;
use std::path::Path;

use crate::rounds::{Measure, Measured, Rounds, Spread};
use crate::stand::Stand;
use crate::{Outcome, machine};

/// Title of a row that could not be measured.
const FAILED: &str = "A row that failed";

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
    pub(crate) fn ratio(what: &str, ratio: Option<Spread>, goal: Bound, noise: Option<Spread>) -> Self {
        let Some(ratio) = ratio else { return Self { what: format!("{what}: not measured"), is_met: None } };
        let noise = noise.map_or(String::new(), |noise| format!(", noise {}", times(noise)));
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
    let runs: usize = rounds.variants.iter().map(|variant| variant.runs.len()).sum();
    let _ = writeln!(text, "\nDisturbed: {} of {runs} runs.", rounds.disturbed);
    text
}

/// What others used of the processors beside a row that is measured once.
pub(crate) fn disturbance(share: f64) -> String {
    format!("Other programs used {:.0} % of a processor meanwhile.", share * 100.0)
}

/// With commas.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.char_indices() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
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

/// Writes the page with these rows in the place of their earlier ones.
pub(crate) async fn write(path: &Path, stand: &Stand, rows: &[Outcome<Section>]) -> Outcome<()> {
    let mut text = head(stand).await?;
    let machine = machine_lines(&text);
    let earlier = std::fs::read_to_string(path).unwrap_or_default();
    let is_comparable = !is_trial(stand) && machine_lines(&earlier) == machine;
    let mut sections = if is_comparable { sections(&earlier) } else { vec![] };
    for row in rows {
        let (title, section) = match row {
            Ok(section) => (section.title.to_owned(), section.text()),
            Err(error) => {
                let first = error.to_string().lines().next().unwrap_or_default().to_owned();
                (FAILED.to_owned(), format!("\n## {FAILED}\n\n{first}\n"))
            }
        };
        match sections.iter_mut().find(|(known, _)| *known == title && title != FAILED) {
            Some((_, known)) => *known = section,
            None => sections.push((title, section)),
        }
    }
    text.extend(sections.into_iter().map(|(_, section)| section));
    std::fs::write(path, text)?;
    Ok(())
}

/// What says whether two runs were made on the same machine.
fn machine_lines(page: &str) -> Vec<&str> {
    page.lines()
        .filter(|line| line.starts_with("| processors ") || line.starts_with("| memory "))
        .collect()
}

/// Titles and texts of a page's rows, but for those that failed.
fn sections(page: &str) -> Vec<(String, String)> {
    let parts = page.split("\n## ").skip(1);
    let named = parts.filter_map(|part| {
        let (title, _) = part.split_once('\n')?;
        (title != FAILED).then(|| (title.to_owned(), format!("\n## {}\n", part.trim_end())))
    });
    named.collect()
}

/// Whether the run only tries the tool.
fn is_trial(stand: &Stand) -> bool {
    cfg!(debug_assertions) || stand.plan.quick
}

impl Section {
    fn text(&self) -> String {
        let Self { title, goal, method, body, verdicts } = self;
        let mut text = format!(
            "\n## {title}\n\nGoal: {goal}.\n\n{method}\n\n{}\n\n{}\n",
            machine::measured(),
            body.trim_end()
        );
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
        text
    }
}

async fn head(stand: &Stand) -> Outcome<String> {
    let mut text = "# Benchmarks\n\n\
         Written by `cargo bench -p tests`, row by row: each says by which command it was measured, when, and of which commit. \
         Nothing on this page was edited. Client, servers and PostgreSQL share the machine, so compare figures with each other, not \
         with another machine's.\n\n\
         Every comparison runs its variants in turn, in as many rounds and for as long each as the command says (5 and 2 s if it does \
         not); ratios are medians of the rounds' ratios, with \
         the least and the greatest. The first variant runs twice a round, and its ratio to itself is the noise. CPU is that \
         of the process and all below it, with what is left to do when the load has ended, divided by the calls. A run beside \
         which other programs used more than 5 % of a processor is made again, three times at most, and counted as disturbed \
         if that did not help. The load is a closed loop over eight connections, if nothing else is said.\n\n\
         The servers run with everything on: identity, limits (the caller's rate is counted, and set so high that it is never \
         reached), metrics, workers, and traces of 1 % of calls, which go to a collector in the load tool.\n\n"
        .to_owned();
    if is_trial(stand) {
        text.push_str(
            "**This run only tried the tool**, on an unoptimized build or with little data: its figures and verdicts mean \
             nothing.\n\n",
        );
    }
    text.push_str("| | |\n|---|---|\n");
    for (name, value) in machine::facts(&stand.folder.0)? {
        let _ = writeln!(text, "| {name} | {value} |");
    }
    for (name, value) in stand.database.settings().await? {
        let _ = writeln!(text, "| PostgreSQL `{name}` | {value} |");
    }
    Ok(text)
}
