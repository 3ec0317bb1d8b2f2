//! Typed ids. Objects that Tandem names have a UUID version 7 (RFC 9562) behind a prefix; objects that people name have
//! a short name. Neither is a secret.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use uuid::Uuid;

use crate::time::Time;

/// The text is no id of this kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("must be {expected}")]
pub struct Malformed {
    expected: String,
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident $prefix:literal;)+) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, sqlx::Type)]
        #[sqlx(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// A new id that sorts by `now`.
            pub fn new(now: Time, random: [u8; 10]) -> Self {
                let millis = u64::try_from(now.timestamp_millis()).unwrap_or(0);
                Self(uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid())
            }

            /// The bare UUID.
            pub const fn uuid(self) -> Uuid {
                self.0
            }

            /// The id with this UUID.
            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "_{}"), self.0.simple())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = Malformed;

            fn from_str(text: &str) -> Result<Self, Malformed> {
                text.strip_prefix(concat!($prefix, "_"))
                    .filter(|hex| hex.len() == 32 && !hex.bytes().any(|b| b.is_ascii_uppercase()))
                    .and_then(|hex| Uuid::try_parse(hex).ok())
                    .map(Self)
                    .ok_or_else(|| Malformed {
                        expected: concat!("`", $prefix, "_` and 32 lower-case hexadecimal digits").to_owned(),
                    })
            }
        }
    )+};
}

ids! {
    /// One device's presence at a touchpoint.
    SessionId "ses";
    /// The owner of a cart.
    ShopperId "shp";
    /// One cart.
    CartId "crt";
    /// One line of a cart.
    LineId "lin";
    /// One wishlist.
    WishlistId "wsl";
    /// One version of one component.
    ReleaseId "rel";
    /// One release moving into one environment.
    RolloutId "rlo";
    /// What was found out about one artifact.
    EvidenceId "evd";
    /// That a release had all that it needed.
    ApprovalId "apv";
    /// That somebody approved a release alone.
    BreakGlassId "bgl";
    /// One receiver of events over HTTP.
    WebhookId "whk";
    /// One freeze window.
    WindowId "wnd";
    /// One person's word that a window does not hold for a while.
    WindowOverrideId "wov";
    /// Something for an executor to do.
    TaskId "tsk";
}

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident;)+) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, sqlx::Type)]
        #[sqlx(transparent, no_pg_array)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as people write it.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = Malformed;

            fn from_str(text: &str) -> Result<Self, Malformed> {
                if is_name(text) {
                    Ok(Self(text.into()))
                } else {
                    Err(Malformed {
                        expected: "1 to 63 lower-case letters, digits and inner hyphens, starting with a letter".to_owned(),
                    })
                }
            }
        }
    )+};
}

names! {
    /// A company, the unit of isolation.
    TenantId;
    /// One way in.
    TouchpointId;
    /// Touchpoints that share carts.
    GroupId;
    /// A deployable thing.
    ComponentId;
    /// Where components run.
    EnvironmentId;
    /// What releases of a component need.
    ApprovalPolicyId;
}

/// `[a-z]([a-z0-9-]{0,61}[a-z0-9])?`, the form that host names (RFC 1123) and cluster tools accept, too.
fn is_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    (1..=63).contains(&bytes.len())
        && bytes[0].is_ascii_lowercase()
        && bytes[bytes.len() - 1] != b'-'
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::at;

    #[test]
    fn ids_read_back_what_they_write() {
        let id = SessionId::new(at(1_700_000_000), [7; 10]);
        assert!(id.to_string().starts_with("ses_018bcfe568007"));
        assert_eq!(id.to_string().parse(), Ok(id));
    }

    #[test]
    fn ids_of_another_kind_or_form_are_refused() {
        let id = SessionId::new(at(0), [0; 10]);
        let text = id.to_string();
        let hyphenated = format!("ses_{}", id.uuid());
        for bad in ["", "ses_", &text[4..], &text.replace("ses", "rel"), &text.to_uppercase(), &hyphenated] {
            assert!(bad.parse::<SessionId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn names_are_host_labels() {
        for good in ["a", "web", "prod-eu-2"] {
            assert!(good.parse::<ComponentId>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "1a", "a_b", "ä", &"a".repeat(64)] {
            assert!(bad.parse::<ComponentId>().is_err(), "{bad}");
        }
    }
}
