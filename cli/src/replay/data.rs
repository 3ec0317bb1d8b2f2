//! The real data, parsed: sessions of a shop, invoice lines of another, and the release history of a component.
//!
//! It is part of the executable, so that an installed one can replay it too; `tests/data/README.md` says where it is from
//! and under which licences.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use serde::Deserialize;

const SESSIONS: &str = "online_shoppers_intention.csv";
const INVOICES: &str = "online_retail_sample.csv";
/// A row has a cart if it saw this many product pages, or bought. About half of the sessions do, so that one cart in
/// three becomes an order.
const CART_PRODUCT_PAGES: u32 = 20;

/// Everything that is replayed.
pub(crate) struct Data {
    pub(crate) sessions: Vec<SessionRow>,
    /// Those with a line to sell, in the order of the file.
    pub(crate) invoices: Vec<Invoice>,
    /// Lines that are cancellations or cost nothing, which no cart can hold.
    pub(crate) lines_skipped: usize,
    /// In the order they came out.
    pub(crate) releases: Vec<ReleaseFacts>,
}

/// One visit to the shop, as it was counted there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct SessionRow {
    administrative: u32,
    informational: u32,
    product_related: u32,
    /// 1 if it bought.
    revenue: u8,
}

/// What was bought at once.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Invoice {
    pub(crate) number: String,
    pub(crate) lines: Vec<InvoiceLine>,
}

/// So many of one article at one price.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct InvoiceLine {
    pub(crate) sku: String,
    pub(crate) quantity: i32,
    /// Of one, in pence.
    pub(crate) price: i64,
}

/// What the public history says about a release.
#[derive(Debug, Deserialize)]
pub(crate) struct ReleaseFacts {
    pub(crate) version: String,
    released_at: String,
    previous: String,
    commits: u32,
    authors: u32,
    files_changed: u32,
    insertions: u64,
    deletions: u64,
    fix_commits: u32,
    revert_commits: u32,
}

/// What to do for one row.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Visit {
    /// Page views.
    pub(crate) pages: u32,
    /// Index of the invoice whose lines go into the cart; `None` where there is no cart.
    pub(crate) invoice: Option<usize>,
    /// Whether the cart becomes an order.
    pub(crate) buys: bool,
}

/// A file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DataError {
    #[error("cannot read {0}: {1}")]
    File(PathBuf, std::io::Error),
    #[error("{0}: {1}")]
    Csv(&'static str, csv::Error),
    #[error("{0}, line {1}: {2}")]
    Line(String, usize, String),
    #[error("{0} holds nothing to replay")]
    Empty(String),
}

/// Which component's history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Component {
    /// 195 releases, many of them weekly
    Linkerd2Proxy,
    /// 195 releases with maintenance lines in parallel
    Unleash,
}

impl Component {
    /// Its name, here and as a component of the stack.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Linkerd2Proxy => "linkerd2-proxy",
            Self::Unleash => "unleash",
        }
    }

    fn file(self) -> String {
        format!("releases/{}.jsonl", self.name())
    }

    const fn built_in(self) -> &'static [u8] {
        match self {
            Self::Linkerd2Proxy => include_bytes!("../../../tests/data/releases/linkerd2-proxy.jsonl"),
            Self::Unleash => include_bytes!("../../../tests/data/releases/unleash.jsonl"),
        }
    }
}

impl Data {
    /// Reads a folder laid out as `tests/data`, or what is built in.
    pub(crate) fn load(folder: Option<&Path>, component: Component) -> Result<Self, DataError> {
        let read = |name: &str, built_in: &'static [u8]| match folder {
            None => Ok(Cow::Borrowed(built_in)),
            Some(folder) => {
                let path = folder.join(name);
                std::fs::read(&path)
                    .map(Cow::Owned)
                    .map_err(|error| DataError::File(path, error))
            }
        };
        let sessions = read(SESSIONS, include_bytes!("../../../tests/data/online_shoppers_intention.csv"))?;
        let invoices = read(INVOICES, include_bytes!("../../../tests/data/online_retail_sample.csv"))?;
        let releases = read(&component.file(), component.built_in())?;
        let (invoices, lines_skipped) = parse_invoices(&invoices)?;
        let data = Self {
            sessions: parse_sessions(&sessions)?,
            invoices,
            lines_skipped,
            releases: parse_releases(&component.file(), &releases)?,
        };
        let empty = |name: &str| Err(DataError::Empty(name.to_owned()));
        match &data {
            Self { sessions, .. } if sessions.is_empty() => empty(SESSIONS),
            Self { invoices, .. } if invoices.is_empty() => empty(INVOICES),
            Self { releases, .. } if releases.is_empty() => empty(&component.file()),
            Self { .. } => Ok(data),
        }
    }

    /// The visits of a run: `sessions` rows spread evenly over the file, hence over the year, one page in `page_divisor`
    /// of each, rounded up. The same numbers and seed give the same visits.
    pub(crate) fn plan(&self, sessions: usize, page_divisor: u32, rng: &mut StdRng) -> Vec<Visit> {
        let numbers: Vec<usize> = (0..self.invoices.len()).collect();
        let count = sessions.min(self.sessions.len());
        let rows = (0..count).map(|index| self.sessions[index * self.sessions.len() / count]);
        let visit = |row: SessionRow| Visit {
            pages: row.pages().div_ceil(page_divisor),
            invoice: row.has_cart().then(|| numbers.choose(rng).copied()).flatten(),
            buys: row.buys(),
        };
        rows.map(visit).collect()
    }
}

impl SessionRow {
    fn pages(self) -> u32 {
        self.administrative + self.informational + self.product_related
    }

    fn buys(self) -> bool {
        self.revenue == 1
    }

    fn has_cart(self) -> bool {
        self.buys() || self.product_related >= CART_PRODUCT_PAGES
    }
}

impl ReleaseFacts {
    /// What people read about it.
    pub(crate) fn notes(&self) -> String {
        let Self { version: _, released_at, previous, commits, authors, .. } = self;
        let Self { files_changed, insertions, deletions, fix_commits, revert_commits, .. } = self;
        format!(
            "Released {released_at} after {previous}: {commits} commits by {authors} authors, of which {fix_commits} fix \
             and {revert_commits} revert; {files_changed} files changed, {insertions} lines added, {deletions} removed."
        )
    }
}

fn parse_sessions(bytes: &[u8]) -> Result<Vec<SessionRow>, DataError> {
    let rows = csv::Reader::from_reader(bytes).into_deserialize();
    rows.collect::<Result<_, _>>().map_err(|error| DataError::Csv(SESSIONS, error))
}

/// A line of the file; lines of one invoice follow each other.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RetailRow {
    invoice_no: String,
    stock_code: String,
    quantity: i32,
    unit_price: String,
}

fn parse_invoices(bytes: &[u8]) -> Result<(Vec<Invoice>, usize), DataError> {
    let mut invoices: Vec<Invoice> = Vec::new();
    let mut skipped = 0;
    for (index, row) in csv::Reader::from_reader(bytes).into_deserialize().enumerate() {
        let RetailRow { invoice_no: number, stock_code: sku, quantity, unit_price } =
            row.map_err(|error| DataError::Csv(INVOICES, error))?;
        let price = pence(&unit_price).ok_or_else(|| {
            let problem = format!("{unit_price} is no price in pounds and pence");
            DataError::Line(INVOICES.to_owned(), index + 2, problem)
        })?;
        if quantity <= 0 || price <= 0 {
            skipped += 1;
            continue;
        }
        let line = InvoiceLine { sku, quantity, price };
        match invoices.last_mut().filter(|invoice| invoice.number == number) {
            Some(invoice) => invoice.lines.push(line),
            None => invoices.push(Invoice { number, lines: vec![line] }),
        }
    }
    Ok((invoices, skipped))
}

/// Pounds, written as a decimal, to pence; exact, so that it is `None` for parts of a penny.
fn pence(pounds: &str) -> Option<i64> {
    let (sign, digits) = pounds.strip_prefix('-').map_or((1, pounds), |digits| (-1, digits));
    let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
    let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || part.len() > 2 || !is_number(whole) || !is_number(part) {
        return None;
    }
    let part: i64 = format!("{part:0<2}").parse().ok()?;
    whole
        .parse::<i64>()
        .ok()?
        .checked_mul(100)?
        .checked_add(part)?
        .checked_mul(sign)
}

fn parse_releases(name: &str, bytes: &[u8]) -> Result<Vec<ReleaseFacts>, DataError> {
    let parse = |(index, line): (usize, &[u8])| {
        serde_json::from_slice(line)
            .map_err(|error| DataError::Line(name.to_owned(), index + 1, error.to_string()))
    };
    let lines = bytes.split(|byte| *byte == b'\n').enumerate();
    lines.filter(|(_, line)| !line.is_empty()).map(parse).collect()
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;

    fn data() -> Data {
        Data::load(None, Component::Linkerd2Proxy).expect("the built-in data is good")
    }

    #[test]
    fn sessions_are_those_of_the_year() {
        let sessions = data().sessions;
        assert_eq!(sessions.len(), 12_330);
        assert_eq!(sessions.iter().filter(|row| row.buys()).count(), 1_908);
        assert_eq!(sessions.iter().map(|row| row.pages()).sum::<u32>(), 426_004);
        assert_eq!(sessions.iter().filter(|row| row.has_cart()).count(), 6_462);
    }

    #[test]
    fn invoices_keep_every_line_that_can_be_sold() {
        let Data { invoices, lines_skipped, .. } = data();
        let lines = || invoices.iter().flat_map(|invoice| &invoice.lines);
        assert_eq!((lines().count(), lines_skipped), (988, 11));
        assert_eq!(lines().map(|line| i64::from(line.quantity) * line.price).sum::<i64>(), 2_470_288);
        let mut numbers: Vec<_> = invoices.iter().map(|invoice| invoice.number.as_str()).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), invoices.len(), "each invoice once");
    }

    #[test]
    fn cancelled_invoices_are_the_ones_left_out() {
        let all = include_str!("../../../tests/data/online_retail_sample.csv");
        let mut numbers: Vec<_> = all.lines().skip(1).filter_map(|line| line.split(',').next()).collect();
        assert_eq!(numbers.len(), 999);
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), 66);
        let kept: Vec<_> = data().invoices.into_iter().map(|invoice| invoice.number).collect();
        numbers.retain(|number| !kept.iter().any(|kept| kept == number));
        assert!(numbers.iter().all(|number| number.starts_with('C') || *number == "536414"), "{numbers:?}");
    }

    #[test]
    fn both_histories_have_195_releases() {
        for component in [Component::Linkerd2Proxy, Component::Unleash] {
            let releases = Data::load(None, component).expect("the built-in data is good").releases;
            assert_eq!(releases.len(), 195);
            assert!(releases.iter().all(|release| release.notes().len() < 1_000));
        }
    }

    #[test]
    fn prices_are_exact() {
        for (text, value) in
            [("2.55", Some(255)), ("27.5", Some(2750)), ("3", Some(300)), ("0", Some(0)), ("-0.05", Some(-5))]
        {
            assert_eq!(pence(text), value, "{text}");
        }
        for text in ["", ".5", "1.234", "1e3", "--1", "+1", "1.-2", "99999999999999999999"] {
            assert_eq!(pence(text), None, "{text}");
        }
    }

    #[test]
    fn a_plan_follows_from_its_seed_and_spans_the_file() {
        let data = data();
        let plan = |seed| data.plan(1_000, 4, &mut StdRng::seed_from_u64(seed));
        assert_eq!(plan(7), plan(7));
        assert_ne!(plan(7), plan(8));
        assert_eq!(plan(7).len(), 1_000);
        let bought = plan(7).iter().filter(|visit| visit.buys).count();
        assert!((120..190).contains(&bought), "about as many as in the whole file: {bought}");
        assert!(plan(7).iter().all(|visit| !visit.buys || visit.invoice.is_some()));
        assert_eq!(data.plan(usize::MAX, 1, &mut StdRng::seed_from_u64(7)).len(), 12_330);
    }

    #[test]
    fn what_is_wrong_in_a_file_is_named() {
        let broken = b"InvoiceNo,StockCode,Quantity,UnitPrice\n1,a,2,1.005\n";
        let problem = parse_invoices(broken).expect_err("is no price").to_string();
        assert!(problem.contains("line 2: 1.005"), "{problem}");
        let problem = parse_releases("x.jsonl", b"{}\n").expect_err("lacks everything").to_string();
        assert!(problem.starts_with("x.jsonl, line 1: missing field"), "{problem}");
    }
}
