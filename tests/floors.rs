//! The house: which floor may know what, and that nothing on a floor is there for nobody.

use std::fs;
use std::path::{Path, PathBuf};

const SERVICES: [&str; 2] = ["session-svc", "release-svc"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Rust files below a folder, or nothing where there is no folder, with their text up to the unit tests.
fn sources(folder: &Path) -> Vec<(PathBuf, String)> {
    let mut sources = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources.extend(sources_of(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]").next().unwrap().to_owned();
            sources.push((path, code));
        }
    }
    sources
}

fn sources_of(folder: &Path) -> Vec<(PathBuf, String)> {
    let sources = sources(folder);
    assert!(!sources.is_empty(), "{} holds no source", folder.display());
    sources
}

/// Lines without comments.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
}

#[track_caller]
fn assert_free(sources: &[(PathBuf, String)], banned: &[&str]) {
    for (path, text) in sources {
        for (n, line) in code(text) {
            for word in banned {
                assert!(!line.contains(word), "{}:{}: {word}: {line}", path.display(), n + 1);
            }
        }
    }
}

#[test]
fn domain_is_pure() {
    let banned = [
        "sqlx",
        "tonic",
        "tokio",
        "tracing",
        "pb::",
        "prost",
        "Utc::now",
        "Instant::now",
        "SystemTime",
        "rand::",
        "Entropy",
        "std::env",
        "std::fs",
        "crate::store",
        "crate::rpc",
        "crate::workers",
    ];
    for service in SERVICES {
        assert_free(&sources_of(&root().join(service).join("src/domain")), &banned);
    }
}

#[test]
fn store_knows_no_rpc_no_clock_and_no_transaction_of_its_own() {
    let banned = [
        "tonic",
        "crate::rpc",
        "crate::workers",
        "pb::session",
        "pb::release",
        "Clock",
        "Utc::now",
        ".begin(",
        ".commit(",
    ];
    for service in SERVICES {
        assert_free(&sources_of(&root().join(service).join("src/store")), &banned);
    }
}

#[test]
fn services_do_not_know_each_other() {
    assert_free(&sources_of(&root().join("session-svc/src")), &["release_svc"]);
    let release = sources_of(&root().join("release-svc/src"));
    assert_free(
        &release,
        &["session_svc", "pb::session", "SessionId", "CartId", "ShopperId", "TouchpointId"],
    );
    assert_free(&sources_of(&root().join("shared/src")), &["session_svc::", "release_svc::"]);
}

#[test]
fn sql_asks_no_clock() {
    let banned = ["now()", "clock_timestamp", "current_timestamp", "localtime", "statement_timestamp"];
    for service in SERVICES {
        assert_free(&sources_of(&root().join(service).join("src/store")), &banned);
        for entry in fs::read_dir(root().join(service).join("migrations")).unwrap() {
            let path = entry.unwrap().path();
            let text = fs::read_to_string(&path).unwrap().to_lowercase();
            for word in banned {
                assert!(!text.contains(word), "{}: {word}", path.display());
            }
        }
    }
    // The statements that both services run; `db.rs` has the one that asks for the time.
    let outbox = root().join("shared/src/outbox.rs");
    assert_free(&[(outbox.clone(), fs::read_to_string(outbox).unwrap())], &banned);
}

#[test]
fn no_task_is_spawned_and_forgotten() {
    for service in [SERVICES[0], SERVICES[1], "shared", "cli"] {
        assert_free(
            &sources_of(&root().join(service).join("src")),
            &["tokio::spawn", "task::spawn(", "mem::forget"],
        );
    }
}

#[test]
fn every_statement_has_a_user() {
    for service in SERVICES {
        let src = root().join(service).join("src");
        let all = sources_of(&src);
        for (path, text) in sources_of(&src.join("store")) {
            let noun = path.file_stem().unwrap().to_str().unwrap().to_owned();
            for (_, line) in code(&text) {
                let Some(rest) = line.strip_prefix("pub async fn ") else { continue };
                let name = rest.split(['(', '<']).next().unwrap();
                let call = format!("{noun}::{name}(");
                let is_used = all.iter().any(|(_, text)| code(text).any(|(_, line)| line.contains(&call)));
                assert!(is_used, "{}: nobody calls {call}..)", path.display());
            }
        }
    }
}

#[test]
fn every_table_and_constraint_is_named() {
    for service in SERVICES {
        for entry in fs::read_dir(root().join(service).join("migrations")).unwrap() {
            let path = entry.unwrap().path();
            let text = fs::read_to_string(&path).unwrap();
            for table in text
                .split("create table ")
                .skip(1)
                .map(|rest| rest.split_whitespace().next().unwrap())
            {
                assert!(
                    text.contains(&format!("comment on table {table} is")),
                    "{}: {table}",
                    path.display()
                );
            }
            for line in text.lines().map(str::trim_start) {
                let unnamed = ["primary key", "unique (", "check (", "foreign key"];
                assert!(!unnamed.iter().any(|word| line.starts_with(word)), "{}: {line}", path.display());
            }
        }
    }
}
