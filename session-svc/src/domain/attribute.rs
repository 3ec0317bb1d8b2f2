//! What applications keep with a session: a small map, changed key by key with compare-and-set.

use std::collections::{BTreeMap, BTreeSet};

const KEY_MAX: usize = 64;
/// Longest value, in bytes.
pub const VALUE_MAX: usize = 16 * 1024;
/// Most changes at once.
pub const CHANGES_MAX: usize = 64;
/// Most of all keys and values together, in bytes.
const TOTAL_MAX: usize = 64 * 1024;
/// Most keys.
const KEYS_MAX: usize = 256;

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attribute {
    /// Its name.
    pub key: String,
    /// Its value.
    pub value: String,
    /// Rises with every change of this key.
    pub version: i64,
}

/// A change of one key.
#[derive(Debug, Clone)]
pub struct Change {
    /// Which.
    pub key: String,
    /// The new value; none removes the key.
    pub value: Option<String>,
    /// The version that it must have, 0 for no such key; none where any will do.
    pub expected: Option<i64>,
}

/// What changes come to.
#[derive(Debug, PartialEq, Eq)]
pub struct Changed {
    /// All attributes afterwards, by key.
    pub attributes: Vec<Attribute>,
    /// Keys that were given a value, or lost theirs, in order.
    pub keys: Vec<String>,
}

/// Why attributes stay as they are.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Somebody else changed it.
    #[error("attribute {key} has another version than expected: read it again")]
    Version {
        /// Which.
        key: String,
        /// The version that it has; 0 where there is no such key.
        version: i64,
    },
    /// They are too many.
    #[error("the session would have more than {max} attributes")]
    Keys {
        /// Most that there may be.
        max: usize,
    },
    /// They are too large together.
    #[error("the attributes would be larger than {max} bytes together")]
    TotalBytes {
        /// Most that they may be.
        max: usize,
    },
}

/// Whether this can be a key.
pub fn is_key(text: &str) -> bool {
    let is_part = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    (1..=KEY_MAX).contains(&text.len()) && text.bytes().all(is_part)
}

/// Makes the changes, all of them or none. `version` becomes that of every key that is given a value: it is higher than any
/// that an attribute of the session ever had, so that a version once seen never means another value.
pub fn change(before: Vec<Attribute>, changes: Vec<Change>, version: i64) -> Result<Changed, Refused> {
    let by_key = |attribute: Attribute| (attribute.key.clone(), attribute);
    let mut attributes: BTreeMap<_, _> = before.into_iter().map(by_key).collect();
    let mut keys = BTreeSet::new();
    for Change { key, value, expected } in changes {
        let found = attributes.get(&key).map_or(0, |attribute| attribute.version);
        if expected.is_some_and(|expected| expected != found) {
            return Err(Refused::Version { key, version: found });
        }
        let is_changed = match value {
            Some(value) => {
                attributes.insert(key.clone(), Attribute { key: key.clone(), value, version });
                true
            }
            None => attributes.remove(&key).is_some(),
        };
        if is_changed {
            keys.insert(key);
        }
    }
    if attributes.len() > KEYS_MAX {
        return Err(Refused::Keys { max: KEYS_MAX });
    }
    let total: usize = attributes.values().map(|it| it.key.len() + it.value.len()).sum();
    if total > TOTAL_MAX {
        return Err(Refused::TotalBytes { max: TOTAL_MAX });
    }
    Ok(Changed { attributes: attributes.into_values().collect(), keys: keys.into_iter().collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(key: &str, value: &str, version: i64) -> Attribute {
        Attribute { key: key.to_owned(), value: value.to_owned(), version }
    }

    fn set(key: &str, value: &str, expected: Option<i64>) -> Change {
        Change { key: key.to_owned(), value: Some(value.to_owned()), expected }
    }

    fn remove(key: &str, expected: Option<i64>) -> Change {
        Change { key: key.to_owned(), value: None, expected }
    }

    fn moved(key: &str, version: i64) -> Refused {
        Refused::Version { key: key.to_owned(), version }
    }

    #[test]
    fn a_change_needs_the_version_that_it_expects() {
        let before = || vec![attribute("a", "1", 3)];
        let cases = [
            (set("a", "2", None), None),
            (set("a", "2", Some(3)), None),
            (set("a", "2", Some(0)), Some(moved("a", 3))),
            (set("a", "2", Some(4)), Some(moved("a", 3))),
            (set("b", "2", Some(0)), None),
            (set("b", "2", Some(3)), Some(moved("b", 0))),
            (remove("a", Some(3)), None),
            (remove("a", Some(2)), Some(moved("a", 3))),
            (remove("b", None), None),
            (remove("b", Some(0)), None),
            (remove("b", Some(1)), Some(moved("b", 0))),
        ];
        for (asked, refused) in cases {
            let shown = format!("{asked:?}");
            assert_eq!(change(before(), vec![asked], 5).err(), refused, "{shown}");
        }
    }

    #[test]
    fn what_changed_has_the_new_version_and_the_rest_keeps_its_own() {
        let before = vec![attribute("a", "1", 3), attribute("c", "1", 4)];
        let changes = vec![set("b", "2", None), remove("c", None), remove("d", None)];
        let after = change(before, changes, 5).unwrap();
        assert_eq!(after.attributes, [attribute("a", "1", 3), attribute("b", "2", 5)]);
        assert_eq!(after.keys, ["b", "c"], "what was not there did not change");
    }

    #[test]
    fn keys_and_values_together_are_bounded_to_the_byte() {
        let value = "v".repeat(VALUE_MAX);
        let mut changes: Vec<_> = ["a", "b", "c"].map(|key| set(key, &value, None)).into();
        changes.push(set("d", &value[4..], None));
        let after = change(vec![], changes.clone(), 1).unwrap();
        assert_eq!(after.attributes.len(), 4);
        let refused = Err(Refused::TotalBytes { max: TOTAL_MAX });
        assert_eq!(change(after.attributes.clone(), vec![set("e", "", None)], 2), refused);
        let traded = vec![set("e", &value[4..], None), remove("d", None)];
        assert!(change(after.attributes, traded, 2).is_ok(), "what counts is how it ends");
    }

    #[test]
    fn keys_are_plain() {
        let (longest, too_long) = ("k".repeat(64), "k".repeat(65));
        for good in ["a", "Cart.Step_2-b", longest.as_str()] {
            assert!(is_key(good), "{good}");
        }
        for bad in ["", "a b", "ä", "a\0", "a/b", too_long.as_str()] {
            assert!(!is_key(bad), "{bad:?}");
        }
    }
}
