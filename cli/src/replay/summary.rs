//! The end of a replay, in aligned columns for people and as one JSON object for programs.

use std::fmt::{self, Display, Formatter};

use hdrhistogram::Histogram;
use serde::Serialize;

use super::call::PATIENCE;
use super::canary::Course;
use super::report::{Promises, Releases, Shop, Tally};

/// What was asked for, and how long it took.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Run {
    pub(crate) seed: u64,
    pub(crate) concurrency: usize,
    /// Sessions in the data.
    pub(crate) sessions_known: usize,
    /// One page in so many was viewed.
    pub(crate) page_divisor: u32,
    /// Invoice lines that no cart can hold.
    pub(crate) lines_skipped: usize,
    /// The component whose history was entered.
    pub(crate) component: &'static str,
    /// Releases in that history.
    pub(crate) releases_known: usize,
    /// Of every price.
    pub(crate) currency_code: &'static str,
    /// Of the traffic, without setting up and reading back.
    pub(crate) seconds: f64,
}

/// Everything there is to say.
#[derive(Debug, Serialize)]
pub(crate) struct Summary {
    run: Run,
    shop: Shop,
    visits: Vec<Arrivals>,
    releases: Releases,
    moved_by_rollback: u64,
    calls: Vec<Calls>,
    retries: Vec<Retries>,
    errors: Vec<Failures>,
    promises: Promises,
    /// Of a canary that was broken on purpose.
    #[serde(skip_serializing_if = "Option::is_none")]
    canary: Option<Course>,
}

#[derive(Debug, Serialize)]
struct Arrivals {
    component: String,
    version: String,
    arm: &'static str,
    visits: u64,
}

#[derive(Debug, Serialize)]
struct Calls {
    method: &'static str,
    count: u64,
    p50_ms: f64,
    p90_ms: f64,
    p99_ms: f64,
    max_ms: f64,
}

#[derive(Debug, Serialize)]
struct Retries {
    reason: String,
    count: u64,
}

#[derive(Debug, Serialize)]
struct Failures {
    method: &'static str,
    reason: String,
    /// What the first of them said.
    message: String,
    count: u64,
}

impl Summary {
    /// Of all workers' counts, and what explained the moves in them.
    pub(crate) fn new(run: Run, tally: Tally, moved_by_rollback: u64) -> Self {
        let Tally { shop, releases, promises, visits, moves: _, latencies, retries, errors } = tally;
        let visits = visits.into_iter().map(|((component, version, arm), visits)| Arrivals {
            component,
            version,
            arm,
            visits,
        });
        let calls = latencies.iter().map(|(method, times)| Calls::new(method, times));
        let retries = retries.into_iter().map(|(reason, count)| Retries { reason, count });
        let errors = errors.into_iter().map(|((method, reason), (count, message))| Failures {
            method,
            reason,
            message,
            count,
        });
        Self {
            run,
            shop,
            visits: visits.collect(),
            releases,
            moved_by_rollback,
            calls: calls.collect(),
            retries: retries.collect(),
            errors: errors.collect(),
            promises,
            canary: None,
        }
    }

    /// With what became of the canary, instead of a history of releases.
    pub(crate) fn with_canary(self, course: Course) -> Self {
        Self { canary: Some(course), ..self }
    }

    /// Whether every promise was kept, every call answered, and the canary taken back by its guard if there was one.
    pub(crate) fn is_good(&self) -> bool {
        let is_back = self.canary.as_ref().is_none_or(Course::is_good);
        self.promises.are_kept() && self.errors.is_empty() && is_back
    }

    fn shop(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Shop { sessions, pages, carts, lines, purchases, failures, purchased_minor_units, degraded } =
            self.shop;
        let mut rows = vec![
            row(["sessions", &grouped(sessions)]),
            row(["pages validated", &grouped(pages)]),
            row(["carts", &grouped(carts)]),
            row(["cart lines added", &grouped(lines)]),
            row(["purchases", &grouped(purchases)]),
            row([&format!("worth {}", self.run.currency_code), &decimal(purchased_minor_units)]),
        ];
        if failures > 0 {
            rows.push(row(["checkouts failed", &grouped(failures)]));
        }
        if degraded > 0 {
            rows.push(row(["verdicts while the database was away", &grouped(degraded)]));
        }
        table(f, "Shop", 1, &rows)
    }

    fn visits(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut rows = vec![row(["component", "version", "arm", "visits"])];
        for Arrivals { component, version, arm, visits } in &self.visits {
            rows.push(row([component, version, arm, &grouped(*visits)]));
        }
        table(f, "Visits by the release they began with", 3, &rows)
    }

    fn history(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Releases { entered, approved, rolled_out, rolled_back, refused } = self.releases;
        let title = format!("Releases of {} ({} known)", self.run.component, self.run.releases_known);
        let mut rows = vec![
            row(["entered", &grouped(entered)]),
            row(["approved", &grouped(approved)]),
            row(["rolled out", &grouped(rolled_out)]),
            row(["rolled back by hand", &grouped(rolled_back)]),
            row(["visits moved by it", &grouped(self.moved_by_rollback)]),
        ];
        if refused > 0 {
            rows.push(row(["refused as not greater", &grouped(refused)]));
        }
        table(f, &title, 1, &rows)
    }

    fn canary(&self, course: &Course, f: &mut Formatter<'_>) -> fmt::Result {
        let Course { component, version, previous_version, on_canary, on_control, open_checkouts, .. } =
            course;
        let rows = [
            row([&format!("failures on {version}"), &grouped(*on_canary)]),
            row([&format!("failures on {previous_version}"), &grouped(*on_control)]),
            row(["visits moved back", &grouped(self.moved_by_rollback)]),
            row(["checkouts open meanwhile", &grouped(*open_checkouts)]),
        ];
        table(
            f,
            &format!("Canary of {component}, with what its guard had counted when it was sure"),
            1,
            &rows,
        )
    }

    fn calls(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut rows = vec![row(["method", "calls", "p50 ms", "p90 ms", "p99 ms", "max ms"])];
        for Calls { method, count, p50_ms, p90_ms, p99_ms, max_ms } in &self.calls {
            let times = [p50_ms, p90_ms, p99_ms, max_ms].map(|time| format!("{time:.1}"));
            let [p50, p90, p99, max] = &times;
            rows.push(row([method, &grouped(*count), p50, p90, p99, max]));
        }
        table(f, "Calls, retries included", 1, &rows)
    }

    fn troubles(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let total: u64 = self.retries.iter().map(|retry| retry.count).sum();
        let rows = self.retries.iter().map(|retry| row([&retry.reason, &grouped(retry.count)]));
        let title = format!("Retries: {} (each call for up to {} s)", grouped(total), PATIENCE.as_secs());
        table(f, &title, 1, &rows.collect::<Vec<_>>())?;
        let total: u64 = self.errors.iter().map(|error| error.count).sum();
        let rows = self
            .errors
            .iter()
            .map(|error| row([error.method, &error.reason, &grouped(error.count)]));
        table(f, &format!("Errors: {}", grouped(total)), 2, &rows.collect::<Vec<_>>())?;
        for Failures { method, message, .. } in self.errors.iter().filter(|error| !error.message.is_empty()) {
            writeln!(f, "  {method} said: {message}")?;
        }
        Ok(())
    }
}

impl Calls {
    fn new(method: &'static str, times: &Histogram<u64>) -> Self {
        let quantile = |q| millis(times.value_at_quantile(q));
        Self {
            method,
            count: times.len(),
            p50_ms: quantile(0.5),
            p90_ms: quantile(0.9),
            p99_ms: quantile(0.99),
            max_ms: millis(times.max()),
        }
    }
}

impl Display for Summary {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Run { seed, concurrency, sessions_known, page_divisor, lines_skipped, seconds, .. } = &self.run;
        let pages =
            if *page_divisor == 1 { "every page".to_owned() } else { format!("one page in {page_divisor}") };
        writeln!(
            f,
            "Replayed {} of {} sessions, {pages}, in {seconds:.1} s, {concurrency} at once, seed {seed}.",
            grouped(self.shop.sessions),
            grouped(*sessions_known as u64),
        )?;
        writeln!(f, "Not drawn: {lines_skipped} invoice lines that are cancelled or free.")?;
        self.shop(f)?;
        self.visits(f)?;
        match &self.canary {
            None => self.history(f)?,
            Some(course) => self.canary(course, f)?,
        }
        self.calls(f)?;
        self.troubles(f)?;
        let rows = self.promises.named().map(|(name, count)| row([name, &grouped(count)]));
        table(f, "Promises", 1, &rows)?;
        self.promises.listed.iter().try_for_each(|line| writeln!(f, "  {line}"))?;
        let Some(course) = &self.canary else { return Ok(()) };
        let Promises { checkouts_moved, lines_missing, false_logouts, .. } = self.promises;
        writeln!(
            f,
            "\n{course}; open checkouts moved {checkouts_moved}; cart lines lost {lines_missing}; logins lost \
             {false_logouts}"
        )
    }
}

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).into()
}

/// A title and rows under it, columns aligned: the first `texts` of them to the left, numbers to the right.
fn table(f: &mut Formatter<'_>, title: &str, texts: usize, rows: &[Vec<String>]) -> fmt::Result {
    writeln!(f, "\n{title}")?;
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<_> = (0..columns).map(width).collect();
    for row in rows {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let cell = if column < texts { format!("  {cell:<width$}") } else { format!("  {cell:>width$}") };
            line.push_str(&cell);
        }
        writeln!(f, "{}", line.trim_end())?;
    }
    Ok(())
}

/// Thousands apart: 12,330.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Pence as pounds, exact.
fn decimal(minor_units: i64) -> String {
    let sign = if minor_units < 0 { "-" } else { "" };
    let units = minor_units.unsigned_abs();
    format!("{sign}{}.{:02}", grouped(units / 100), units % 100)
}

#[expect(clippy::cast_precision_loss, reason = "at most a minute in microseconds")]
fn millis(micros: u64) -> f64 {
    micros as f64 / 1_000.0
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn run() -> Run {
        Run {
            seed: 1,
            concurrency: 32,
            sessions_known: 12_330,
            page_divisor: 4,
            lines_skipped: 11,
            component: "linkerd2-proxy",
            releases_known: 195,
            currency_code: "GBP",
            seconds: 55.04,
        }
    }

    #[test]
    fn numbers_read_well() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([0, 5, -123_405, 2_470_288].map(decimal), ["0.00", "0.05", "-1,234.05", "24,702.88"]);
    }

    #[test]
    fn columns_are_aligned_and_both_forms_say_the_same() {
        let mut tally = Tally::default();
        tally.took("ValidateSession", Duration::from_micros(1_500));
        tally.took("AddCartLine", Duration::from_millis(20));
        tally.shop.purchases = 155;
        let summary = Summary::new(run(), tally, 3);
        assert!(summary.is_good());
        let text = summary.to_string();
        assert!(text.starts_with("Replayed 0 of 12,330 sessions, one page in 4, in 55.0 s"), "{text}");
        let column = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(name)).expect("is there");
            line.find(" 1 ").expect("one call")
        };
        assert_eq!(column("  ValidateSession"), column("  AddCartLine    "));
        let json = serde_json::to_value(&summary).expect("writes");
        assert_eq!(json["shop"]["purchases"], 155);
        assert_eq!(json["promises"]["lines_missing"], 0);
    }

    #[test]
    fn a_broken_promise_or_an_error_is_not_good() {
        let mut tally = Tally::default();
        tally.promises.lines_missing = 1;
        assert!(!Summary::new(run(), tally, 0).is_good());
    }
}
