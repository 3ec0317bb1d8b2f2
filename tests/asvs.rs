//! The scorecard of docs/security.md says what the tests show, all of it and no more.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// A row of the table.
struct Row {
    id: String,
    what: String,
    /// None where the requirement waits.
    test: Option<String>,
    score: f64,
}

fn folder() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn section() -> String {
    let page = fs::read_to_string(folder().join("../docs/security.md")).unwrap();
    let (_, rest) = page.split_once("\n## Scorecard\n").expect("the page has a scorecard");
    rest.split("\n## ").next().unwrap().to_owned()
}

fn rows(section: &str) -> Vec<Row> {
    let rows = section.lines().filter(|line| line.starts_with("| ")).skip(1);
    rows.map(|line| {
        let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [id, what, test, score] = cells[..] else { panic!("four cells: {line}") };
        let (id, level) = id.split_once(' ').unwrap_or_else(|| panic!("an id and a level: {line}"));
        assert!(["(1)", "(2)", "(3)"].contains(&level), "{line}");
        let named = test.strip_prefix('`').and_then(|test| test.strip_suffix('`'));
        assert!(named.is_some() || test == "waits", "a test or `waits`: {line}");
        let (what, test) = (what.to_owned(), named.map(str::to_owned));
        Row { id: id.to_owned(), what, test, score: score.parse().unwrap() }
    })
    .collect()
}

/// The tests `asvs_*` of this folder's sources.
fn tests() -> BTreeSet<String> {
    let mut tests = BTreeSet::new();
    for entry in fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<_> = text.lines().collect();
        for pair in lines.windows(2) {
            let is_test = ["#[test]", "#[tokio::test]"].contains(&pair[0]);
            let name = pair[1].split_once("fn ").and_then(|(_, rest)| rest.split_once('('));
            if let Some((name, _)) = name
                && is_test
                && name.starts_with("asvs_")
            {
                assert!(tests.insert(name.to_owned()), "two tests {name}");
            }
        }
    }
    tests
}

#[test]
fn the_scorecard_names_every_test_there_is_and_none_that_is_not() {
    let rows = rows(&section());
    let claimed: Vec<_> = rows.iter().filter_map(|row| row.test.clone()).collect();
    let distinct: BTreeSet<_> = claimed.iter().cloned().collect();
    assert_eq!(claimed.len(), distinct.len(), "a row has a test of its own");
    assert_eq!(distinct, tests());
    for row in &rows {
        let prefix = format!("asvs_{}_", row.id.replace('.', "_"));
        assert!(row.test.as_ref().is_none_or(|test| test.starts_with(&prefix)), "{prefix}");
    }
    let ids: BTreeSet<_> = rows.iter().map(|row| &row.id).collect();
    assert_eq!(ids.len(), rows.len(), "a requirement has one row");
}

#[test]
fn the_scorecard_counts_what_is_shown() {
    let section = section();
    let rows = rows(&section);
    for row in &rows {
        let waits = row.what.contains("waits");
        let scores = match (&row.test, waits) {
            (None, _) => [0.0].as_slice(),
            (Some(_), true) => &[0.5],
            (Some(_), false) => &[1.0],
        };
        assert!(scores.contains(&row.score), "{} has {}", row.id, row.score);
    }
    let sum: f64 = rows.iter().map(|row| row.score).sum();
    let printed = format!("Sum: {sum} of {}.", rows.len());
    assert!(section.lines().any(|line| line == printed), "the page should say `{printed}`");
}
