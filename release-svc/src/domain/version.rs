//! Semantic versions (semver.org, 2.0.0) and the order that releases keep: within a `major.minor` line upwards, and a new
//! line above all.

use std::cmp::Ordering;
use std::fmt;
use std::fmt::Write as _;
use std::str::FromStr;

const MAX_BYTES: usize = 128;

/// A version as its author wrote it. `1.1` and `1.1.0` are equal.
#[derive(Debug, Clone)]
pub struct Version {
    text: String,
    semver: semver::Version,
}

/// The text is no version that a release may have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MalformedVersion {
    #[error("must be a semantic version such as 1.4.2, 1.4 or 2.0.0-rc.1: {0}")]
    Form(String),
    #[error("must not have build metadata (`+...`), which does not take part in the order of versions")]
    Build,
    #[error("must have at most {MAX_BYTES} characters")]
    Long,
}

/// The version comes too late: this one is there already.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotGreater {
    #[error("the version is not greater than {0}, the last of its line")]
    OfLine(Version),
    #[error(
        "the version is not greater than {0}, the last of all, and opens a line; to mend an older line, set \
        `change.hotfix_line`"
    )]
    OfAll(Version),
}

/// The greatest versions that a component has, of those that count.
#[derive(Debug, Clone, Default)]
pub struct Latest {
    /// Of the line that is asked about.
    pub of_line: Option<Version>,
    pub of_all: Option<Version>,
}

impl Latest {
    /// With other versions, among those that count; those of the line of `asked` in it.
    #[must_use]
    pub fn with(self, asked: &Version, others: impl IntoIterator<Item = Version>) -> Self {
        others.into_iter().fold(self, |latest, other| Self {
            of_line: if other.line_key() == asked.line_key() {
                latest.of_line.max(Some(other.clone()))
            } else {
                latest.of_line
            },
            of_all: latest.of_all.max(Some(other)),
        })
    }

    /// Refuses a version that is not greater than the last of its line or, where it opens a line, than all.
    pub fn admit(&self, version: &Version) -> Result<(), NotGreater> {
        match (&self.of_line, &self.of_all) {
            (Some(last), _) if version <= last => Err(NotGreater::OfLine(last.clone())),
            (None, Some(last)) if version <= last => Err(NotGreater::OfAll(last.clone())),
            (Some(_), _) | (None, Some(_) | None) => Ok(()),
        }
    }
}

impl NotGreater {
    /// The version that it must follow.
    pub const fn last(&self) -> &Version {
        match self {
            Self::OfLine(last) | Self::OfAll(last) => last,
        }
    }
}

impl Version {
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// As constraints are checked with.
    pub(crate) const fn as_semver(&self) -> &semver::Version {
        &self.semver
    }

    /// What the keys of its `major.minor` line, and of no other, begin with.
    pub fn line_key(&self) -> String {
        format!("{:020}.{:020}.", self.semver.major, self.semver.minor)
    }

    /// Text whose byte order is the order of versions: numbers padded, a pre-release (`!`) before its release (`~`),
    /// its numeric identifiers by length and before the others, fewer identifiers before more.
    pub fn order_key(&self) -> String {
        let mut key = format!("{}{:020}", self.line_key(), self.semver.patch);
        if self.semver.pre.is_empty() {
            key.push('~');
            return key;
        }
        for identifier in self.semver.pre.split('.') {
            let _ = if identifier.bytes().all(|byte| byte.is_ascii_digit()) {
                write!(key, "!0{:03}{identifier}", identifier.len())
            } else {
                write!(key, "!1{identifier}")
            };
        }
        key
    }
}

impl FromStr for Version {
    type Err = MalformedVersion;

    fn from_str(text: &str) -> Result<Self, MalformedVersion> {
        if text.len() > MAX_BYTES {
            return Err(MalformedVersion::Long);
        }
        let core_end = text.find(['-', '+']).unwrap_or(text.len());
        let (core, rest) = text.split_at(core_end);
        let whole = if core.matches('.').count() == 1 { format!("{core}.0{rest}") } else { text.to_owned() };
        let semver =
            semver::Version::parse(&whole).map_err(|error| MalformedVersion::Form(error.to_string()))?;
        if !semver.build.is_empty() {
            return Err(MalformedVersion::Build);
        }
        Ok(Self { text: text.to_owned(), semver })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl PartialEq for Version {
    fn eq(&self, other: &Self) -> bool {
        self.semver == other.semver
    }
}

impl Eq for Version {}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        self.semver.cmp(&other.semver)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn version(text: &str) -> Version {
        text.parse().unwrap()
    }

    #[test]
    fn a_short_version_is_its_long_one_and_kept_as_written() {
        assert_eq!(version("1.1"), version("1.1.0"));
        assert_eq!(version("1.1-rc.1"), version("1.1.0-rc.1"));
        assert_eq!(version("1.1").to_string(), "1.1");
        assert_eq!(version("1.1").order_key(), version("1.1.0").order_key());
    }

    #[test]
    fn what_is_no_version_is_refused() {
        for bad in
            ["", "1", "v1.0", "1.0.0.0", "01.0.0", "1.0.0-", "1.0.0-01", "1.0 ", "1.0.0-ä", "-1.0.0", "1..0"]
        {
            assert!(matches!(bad.parse::<Version>(), Err(MalformedVersion::Form(_))), "{bad}");
        }
        assert_eq!("1.0.0+b".parse::<Version>(), Err(MalformedVersion::Build));
        assert_eq!("1.0+b".parse::<Version>(), Err(MalformedVersion::Build));
        assert_eq!(format!("1.0.0-{}", "a".repeat(123)).parse::<Version>(), Err(MalformedVersion::Long));
    }

    #[test]
    fn the_example_of_the_specification_is_in_order() {
        let rising = [
            "1.0.0-alpha",
            "1.0.0-alpha.1",
            "1.0.0-alpha.beta",
            "1.0.0-beta",
            "1.0.0-beta.2",
            "1.0.0-beta.11",
            "1.0.0-rc.1",
            "1.0.0",
            "1.0.1",
            "1.2.0",
            "1.10.0",
            "2.0.0",
        ];
        for pair in rising.windows(2) {
            assert!(version(pair[0]) < version(pair[1]), "{pair:?}");
            assert!(version(pair[0]).order_key() < version(pair[1]).order_key(), "{pair:?}");
        }
    }

    #[test]
    fn a_version_is_above_its_line_and_a_new_line_above_all() {
        let latest = |of_line: Option<&str>, of_all: Option<&str>| Latest {
            of_line: of_line.map(version),
            of_all: of_all.map(version),
        };
        for (latest, asked, refused_by) in [
            (latest(None, None), "0.1.0", None),
            (latest(Some("1.0.3"), Some("2.0.0")), "1.0.4", None),
            (latest(Some("1.0.3"), Some("2.0.0")), "1.0.3", Some("1.0.3")),
            (latest(Some("1.0.3"), Some("2.0.0")), "1.0.3-rc.1", Some("1.0.3")),
            (latest(None, Some("2.0.0")), "1.1.0", Some("2.0.0")),
            (latest(None, Some("2.0.0")), "2.1", None),
        ] {
            let refused = latest.admit(&version(asked)).err().map(|error| error.last().clone());
            assert_eq!(refused, refused_by.map(version), "{asked}");
        }
    }

    #[test]
    fn only_a_version_that_opens_a_line_is_told_of_hotfixes() {
        let latest = |line: &str| {
            Latest { of_line: None, of_all: Some(version("2.0.0")) }
                .with(&version(line), [version("1.0.9"), version("1.0.10"), version("1.2.0")])
        };
        for (asked, last, is_told) in [("1.0.3", "1.0.10", false), ("1.1.0", "2.0.0", true)] {
            let refused = latest(asked).admit(&version(asked)).unwrap_err();
            assert_eq!(*refused.last(), version(last));
            assert_eq!(refused.to_string().contains("change.hotfix_line"), is_told, "{refused}");
        }
        assert_eq!(latest("1.0.11").admit(&version("1.0.11")), Ok(()));
    }

    fn versions() -> impl Strategy<Value = Version> {
        let identifier = prop_oneof!["0|[1-9][0-9]{0,12}", "[0-9]{0,2}[a-zA-Z-][0-9a-zA-Z-]{0,3}"];
        let pre = proptest::collection::vec(identifier, 0..4);
        (prop_oneof![0_u64..3, Just(u64::MAX)], 0_u64..12, 0_u64..120, pre).prop_map(
            |(major, minor, patch, pre)| {
                let pre = if pre.is_empty() { String::new() } else { format!("-{}", pre.join(".")) };
                version(&format!("{major}.{minor}.{patch}{pre}"))
            },
        )
    }

    proptest! {
        #[test]
        fn keys_are_ordered_as_versions_are(a in versions(), b in versions()) {
            prop_assert_eq!(a.cmp(&b), a.order_key().cmp(&b.order_key()));
        }

        #[test]
        fn keys_of_a_line_begin_alike(a in versions(), b in versions()) {
            let same_line = a.semver.major == b.semver.major && a.semver.minor == b.semver.minor;
            prop_assert_eq!(a.order_key().starts_with(&b.line_key()), same_line);
        }
    }
}
