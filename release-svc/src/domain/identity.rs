//! Who is who: the names under which people commit, and the person that each stands for.

use std::str::FromStr;

use shared::time::Time;

const ALIAS_MAX: usize = 320;
const PERSON_MAX: usize = 512;

/// Another name of a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityAlias {
    pub alias: Alias,
    pub person: Person,
    pub created_at: Time,
}

/// A name that is compared: an e-mail address in lower case, anything else as it was written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Alias(String);

/// `issuer|sub` of a human being.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Person(String);

/// The text is no alias.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("must be 1 to {ALIAS_MAX} characters without spaces and control characters")]
pub struct MalformedAlias;

/// The text is no person.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("must be `issuer|sub`, at most {PERSON_MAX} characters without spaces and control characters")]
pub struct MalformedPerson;

impl Alias {
    /// How a name is looked up that was not checked.
    pub fn folded(name: &str) -> String {
        if is_mail(name) { name.to_lowercase() } else { name.to_owned() }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is an address, which is nobody's business beside those who may read aliases.
    pub fn is_mail(&self) -> bool {
        is_mail(&self.0)
    }
}

impl Person {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Whether a name is `issuer|sub`, which stands for itself where nobody says otherwise.
pub fn is_principal(name: &str) -> bool {
    name.split_once('|')
        .is_some_and(|(issuer, sub)| !issuer.is_empty() && !sub.is_empty())
}

/// Whether a caller, by principal and person, is the one who did something: by the name that they called under, and by
/// the persons that this stood for then and stands for now.
pub fn is_by(doer: [&str; 3], caller: [&str; 2]) -> bool {
    doer.iter().any(|name| caller.contains(name))
}

fn is_mail(name: &str) -> bool {
    name.contains('@') && !name.contains('|')
}

fn is_plain(text: &str, max: usize) -> bool {
    let is_odd = |c: char| c.is_whitespace() || c.is_control();
    (1..=max).contains(&text.chars().count()) && !text.chars().any(is_odd)
}

impl FromStr for Alias {
    type Err = MalformedAlias;

    fn from_str(text: &str) -> Result<Self, MalformedAlias> {
        if is_plain(text, ALIAS_MAX) { Ok(Self(Self::folded(text))) } else { Err(MalformedAlias) }
    }
}

impl FromStr for Person {
    type Err = MalformedPerson;

    fn from_str(text: &str) -> Result<Self, MalformedPerson> {
        if is_plain(text, PERSON_MAX) && is_principal(text) {
            Ok(Self(text.to_owned()))
        } else {
            Err(MalformedPerson)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_compared_regardless_of_case_and_nothing_else_is() {
        for (text, folded, is_mail) in [
            ("Ada@Example.COM", "ada@example.com", true),
            ("AdaL", "AdaL", false),
            ("https://idp.example|Ada@Example.com", "https://idp.example|Ada@Example.com", false),
        ] {
            let alias: Alias = text.parse().unwrap();
            assert_eq!((alias.as_str(), alias.is_mail()), (folded, is_mail));
            assert_eq!(Alias::folded(text), folded);
        }
    }

    #[test]
    fn a_doer_is_known_under_every_name() {
        let doer = ["idp|ada", "idp|ada.then", "idp|ada.now"];
        for (principal, person, is_own) in [
            ("idp|ada", "idp|x", true),
            ("idp|x", "idp|ada", true),
            ("idp|ada.then", "idp|x", true),
            ("idp|x", "idp|ada.now", true),
            ("idp|bob", "idp|bob", false),
        ] {
            assert_eq!(is_by(doer, [principal, person]), is_own, "{principal}");
        }
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for bad in ["", " ", "ada lovelace", "ada\n", "ada\u{a0}l", &"a".repeat(321)] {
            assert_eq!(bad.parse::<Alias>(), Err(MalformedAlias), "{bad:?}");
        }
        for bad in ["", "ada", "|ada", "idp|", "idp|ada l", &format!("i|{}", "a".repeat(511))] {
            assert_eq!(bad.parse::<Person>(), Err(MalformedPerson), "{bad:?}");
        }
        assert!("idp|a|b".parse::<Person>().is_ok());
    }
}
