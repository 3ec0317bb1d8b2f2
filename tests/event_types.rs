//! Types of events: what is listed is what the code tells of, and what the documentation says.

use std::fs;
use std::path::{Path, PathBuf};

use shared::pb::common::{EventType, ListEventTypesRequest};

use crate::harness::{Answer as _, Stack, workload};

fn sources(folder: &Path) -> Vec<(PathBuf, String)> {
    let mut sources = vec![];
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources.extend(self::sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            sources.push((path, text.split("#[cfg(test)]").next().unwrap().to_owned()));
        }
    }
    sources
}

/// That an event is told of is checked where it is appended, in every test; here, that what is listed is told of.
#[tokio::test]
async fn every_type_that_is_listed_is_told_of_and_documented() {
    let stack = Stack::pair();
    let caller = stack.caller(&workload("reader"));
    let of_session = caller
        .session_events()
        .list_event_types(ListEventTypesRequest {})
        .await
        .answer();
    let of_release = caller
        .release_events()
        .list_event_types(ListEventTypesRequest {})
        .await
        .answer();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let docs = fs::read_to_string(root.join("docs/events.md")).unwrap();
    let shared = sources(&root.join("shared/src/webhook"));
    for (types, service) in [(of_session.event_types, "session-svc"), (of_release.event_types, "release-svc")]
    {
        assert!(types.is_sorted_by(|a, b| a.r#type < b.r#type) && types.len() > 20, "{types:?}");
        let mut code = sources(&root.join(service).join("src"));
        code.retain(|(path, _)| !path.ends_with("kinds.rs"));
        for EventType { r#type, description } in types {
            let literal = format!("\"{type}\"");
            let is_told = code.iter().chain(&shared).any(|(_, text)| text.contains(&literal));
            assert!(is_told, "{service} never tells of {type}");
            assert!(docs.contains(&format!("| `{type}` | {description} |")), "| `{type}` | {description} |");
        }
    }
}
