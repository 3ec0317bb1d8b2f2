//! The one key ring: keys by purpose, several a purpose while one is being replaced.
//!
//! What is derived, sealed or signed carries the id of the key that did it. All keys of a purpose check; the newest whose
//! time has come makes. A new key's time comes after every replica has it, so that nobody meets what it cannot check.
//! The subject-digest key names people for ever and is never replaced.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use subtle::ConstantTimeEq as _;

use crate::secret::{Entropy, Secret};
use crate::time::Time;

/// What a key is for. A key never serves two purposes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// Secrets in answers, derived so that a repeated request gets the same one.
    Token,
    /// Page and resume tokens.
    Cursor,
    /// Pseudonyms of subjects.
    SubjectDigest,
    /// Signatures of assertions: the key is the seed of an Ed25519 key pair (RFC 8032).
    Assertion,
    /// Secrets of webhooks, derived with every use.
    Webhook,
    /// Signatures of audit trails' heads: as with assertions.
    AuditHead,
}

impl Purpose {
    /// Every purpose.
    pub const ALL: [Self; 6] =
        [Self::Token, Self::Cursor, Self::SubjectDigest, Self::Assertion, Self::Webhook, Self::AuditHead];
    /// Those that rings of earlier versions lack.
    const LATER: [Self; 3] = [Self::Assertion, Self::Webhook, Self::AuditHead];
}

/// The key ring cannot be used, or not in this way.
#[derive(Debug, thiserror::Error)]
pub enum KeyRingError {
    /// Not the form below.
    #[error(
        "the key ring is not JSON of the form {{\"keys\":[{{\"id\":1,\"purpose\":\"token\",\"secret\":\"<32 bytes in \
         base64>\"}}]}} (line {}, column {})",
        .0.line(),
        .0.column()
    )]
    Json(#[from] serde_json::Error),
    /// Not 32 bytes in base64.
    #[error("key {0} of the key ring is not 32 bytes in base64")]
    Secret(u32),
    /// Two keys with one id.
    #[error("the key ring has two keys with id {0}")]
    Duplicate(u32),
    /// Nothing to work with.
    #[error("the key ring has no key for {0:?}; `tandem keys` makes one")]
    Missing(Purpose),
    /// Which of them made the digests that are stored?
    #[error("the key ring has two keys for subject digests; there can only be one, for ever")]
    TwoDigestKeys,
    /// It would make strangers of everyone known.
    #[error("the subject-digest key never rotates: the digests of everyone known hang on it")]
    Fixed,
    /// Nothing to retire.
    #[error("the key ring has no key {0}")]
    Unknown(u32),
    /// It is in use, or will be.
    #[error(
        "key {0} makes what is new, or will; rotate first, and retire it when the next key has taken over"
    )]
    InUse(u32),
}

/// What a key does at some instant. Every key checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It makes nothing, any more or ever.
    Checks,
    /// It will make what is new then.
    MakesFrom(Time),
    /// It makes what is new.
    Makes,
}

#[derive(Debug)]
struct Key {
    purpose: Purpose,
    secret: Secret<[u8; 32]>,
    makes_from: Option<Time>,
}

/// Keys in memory.
#[derive(Debug)]
pub struct KeyRing {
    keys: BTreeMap<u32, Key>,
}

#[derive(Serialize, Deserialize)]
struct File {
    keys: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    id: u32,
    purpose: Purpose,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    makes_from: Option<Time>,
    secret: String,
}

impl KeyRing {
    /// A ring with one fresh key for every purpose.
    pub fn generate(entropy: &Entropy) -> Self {
        let mut ring = Self { keys: BTreeMap::new() };
        for purpose in Purpose::ALL {
            ring.add(purpose, None, entropy);
        }
        ring
    }

    /// Reads the JSON form of a ring that has a key for every purpose.
    pub fn parse(json: &str) -> Result<Self, KeyRingError> {
        let ring = Self::read(json)?;
        match Purpose::ALL.into_iter().find(|purpose| ring.of(*purpose).next().is_none()) {
            Some(purpose) => Err(KeyRingError::Missing(purpose)),
            None => Ok(ring),
        }
    }

    /// Reads the JSON form of a ring that may lack keys, to add them.
    pub fn read(json: &str) -> Result<Self, KeyRingError> {
        let file: File = serde_json::from_str(json)?;
        let mut keys = BTreeMap::new();
        for Entry { id, purpose, makes_from, secret } in file.keys {
            let bytes = STANDARD.decode(&secret).ok().and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
            let secret = Secret::new(bytes.ok_or(KeyRingError::Secret(id))?);
            if keys.insert(id, Key { purpose, secret, makes_from }).is_some() {
                return Err(KeyRingError::Duplicate(id));
            }
        }
        let ring = Self { keys };
        if ring.of(Purpose::SubjectDigest).count() > 1 {
            return Err(KeyRingError::TwoDigestKeys);
        }
        Ok(ring)
    }

    /// The JSON form, secrets included: for the file only.
    pub fn to_json(&self) -> Result<String, KeyRingError> {
        let entry = |(id, key): (&u32, &Key)| Entry {
            id: *id,
            purpose: key.purpose,
            makes_from: key.makes_from,
            secret: STANDARD.encode(key.secret.expose()),
        };
        Ok(serde_json::to_string_pretty(&File { keys: self.keys.iter().map(entry).collect() })?)
    }

    /// Adds keys for the purposes that came later than the ring, and says whether there were any. A ring that lacks
    /// another one is damaged, and not to be mended in silence.
    pub fn add_later(&mut self, entropy: &Entropy) -> bool {
        let missing: Vec<_> = Purpose::LATER
            .into_iter()
            .filter(|purpose| self.of(*purpose).next().is_none())
            .collect();
        for purpose in &missing {
            self.add(*purpose, None, entropy);
        }
        !missing.is_empty()
    }

    /// Adds a key that makes what is new from then on; older keys go on checking what they made.
    pub fn rotate(
        &mut self,
        purpose: Purpose,
        makes_from: Time,
        entropy: &Entropy,
    ) -> Result<u32, KeyRingError> {
        if purpose == Purpose::SubjectDigest {
            return Err(KeyRingError::Fixed);
        }
        Ok(self.add(purpose, Some(makes_from), entropy))
    }

    /// Takes a key out that makes no more; what it made is good no longer. The last key of a purpose always makes or
    /// will, and stays, so that no id is ever given twice.
    pub fn retire(&mut self, id: u32, now: Time) -> Result<Purpose, KeyRingError> {
        let purpose = self.keys.get(&id).ok_or(KeyRingError::Unknown(id))?.purpose;
        if purpose == Purpose::SubjectDigest {
            return Err(KeyRingError::Fixed);
        }
        if id >= self.current(purpose, now)? {
            return Err(KeyRingError::InUse(id));
        }
        self.keys.remove(&id);
        Ok(purpose)
    }

    /// Id of the key that makes what is new: the newest whose time has come, or else the oldest.
    pub fn current(&self, purpose: Purpose, now: Time) -> Result<u32, KeyRingError> {
        let makes = |key: &Key| key.makes_from.is_none_or(|from| from <= now);
        let newest = self.of(purpose).filter(|(_, key)| makes(key)).last();
        let (id, _) = newest
            .or_else(|| self.of(purpose).next())
            .ok_or(KeyRingError::Missing(purpose))?;
        Ok(id)
    }

    /// What each key is for and does.
    pub fn roles(&self, now: Time) -> impl Iterator<Item = (u32, Purpose, Role)> {
        self.keys.iter().map(move |(id, key)| {
            let role = match (self.current(key.purpose, now), key.makes_from) {
                (Ok(maker), _) if maker == *id => Role::Makes,
                (Ok(maker), Some(from)) if maker < *id => Role::MakesFrom(from),
                _ => Role::Checks,
            };
            (*id, key.purpose, role)
        })
    }

    /// HMAC-SHA256 (RFC 2104) of the parts under key `id`; `None` if the ring has no such key for the purpose.
    pub fn mac(&self, purpose: Purpose, id: u32, parts: &[&[u8]]) -> Option<[u8; 32]> {
        let key = self.keys.get(&id).filter(|key| key.purpose == purpose)?;
        let mut mac = Hmac::<Sha256>::new_from_slice(key.secret.expose()).ok()?;
        for part in parts {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part);
        }
        Some(mac.finalize().into_bytes().into())
    }

    /// `payload` with a tag that binds it to `context`, as URL-safe text.
    pub fn seal(&self, context: &[&[u8]], payload: &[u8], now: Time) -> Result<String, KeyRingError> {
        let id = self.current(Purpose::Cursor, now)?;
        let tag = self
            .mac(Purpose::Cursor, id, &[context, &[payload]].concat())
            .ok_or(KeyRingError::Missing(Purpose::Cursor))?;
        let sealed = [&id.to_be_bytes(), &tag[..16], payload].concat();
        Ok(URL_SAFE_NO_PAD.encode(sealed))
    }

    /// What was sealed for `context`; `None` for anything else.
    pub fn open(&self, context: &[&[u8]], text: &str) -> Option<Vec<u8>> {
        let sealed = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (id, rest) = sealed.split_first_chunk::<4>()?;
        let (tag, payload) = rest.split_first_chunk::<16>()?;
        let expected = self.mac(Purpose::Cursor, u32::from_be_bytes(*id), &[context, &[payload]].concat())?;
        bool::from(expected[..16].ct_eq(tag)).then(|| payload.to_vec())
    }

    /// The seeds of the keys of a purpose that signs, oldest first.
    pub(crate) fn seeds(&self, purpose: Purpose) -> impl Iterator<Item = (u32, &Secret<[u8; 32]>)> {
        self.of(purpose).map(|(id, key)| (id, &key.secret))
    }

    /// Whether both make the same pseudonyms.
    pub(crate) fn knows_the_same_people(&self, other: &Self) -> bool {
        let (one, another) =
            (self.of(Purpose::SubjectDigest).next(), other.of(Purpose::SubjectDigest).next());
        let same = |one: &Key, another: &Key| one.secret.expose().ct_eq(another.secret.expose()).into();
        one.zip(another).is_some_and(|((_, one), (_, another))| same(one, another))
    }

    fn of(&self, purpose: Purpose) -> impl Iterator<Item = (u32, &Key)> {
        let all = self.keys.iter().map(|(id, key)| (*id, key));
        all.filter(move |(_, key)| key.purpose == purpose)
    }

    fn add(&mut self, purpose: Purpose, makes_from: Option<Time>, entropy: &Entropy) -> u32 {
        let id = self.keys.keys().next_back().map_or(1, |last| last + 1);
        self.keys
            .insert(id, Key { purpose, secret: Secret::new(entropy.bytes()), makes_from });
        id
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::at;

    #[test]
    fn sealed_text_opens_only_in_its_context_and_unchanged() {
        let ring = KeyRing::generate(&Entropy::seeded(1));
        let text = ring.seal(&[b"tenant", b"list"], b"payload", at(0)).expect("has keys");
        assert_eq!(ring.open(&[b"tenant", b"list"], &text).as_deref(), Some(b"payload".as_slice()));
        assert_eq!(ring.open(&[b"other", b"list"], &text), None);
        for i in 0..text.len() {
            let mut bad = text.clone().into_bytes();
            bad[i] = if bad[i] == b'A' { b'B' } else { b'A' };
            assert_eq!(ring.open(&[b"tenant", b"list"], &String::from_utf8(bad).expect("ascii")), None);
        }
    }

    #[test]
    fn a_new_key_checks_at_once_and_makes_when_its_time_has_come() {
        let entropy = Entropy::seeded(2);
        let mut ring = KeyRing::generate(&entropy);
        let known = KeyRing::parse(&ring.to_json().expect("writes")).expect("reads");
        let before = ring.current(Purpose::Cursor, at(0)).expect("has keys");
        let next = ring.rotate(Purpose::Cursor, at(120), &entropy).expect("rotates");
        let ring = KeyRing::parse(&ring.to_json().expect("writes")).expect("reads");
        for (now, maker) in [(0, before), (119, before), (120, next), (1_000_000, next)] {
            assert_eq!(ring.current(Purpose::Cursor, at(now)).ok(), Some(maker), "at {now}");
        }
        // A replica that has not seen the new ring reads what one that has makes, until the key's time has come.
        let sealed = ring.seal(&[], b"x", at(119)).expect("has keys");
        assert_eq!(known.open(&[], &sealed).as_deref(), Some(b"x".as_slice()));
        let sealed = ring.seal(&[], b"x", at(120)).expect("has keys");
        assert_eq!(known.open(&[], &sealed), None);
        let old = known.seal(&[], b"x", at(120)).expect("has keys");
        assert_eq!(ring.open(&[], &old).as_deref(), Some(b"x".as_slice()));
    }

    #[test]
    fn of_keys_whose_time_has_not_come_the_oldest_makes() {
        let entropy = Entropy::seeded(3);
        let mut ring = KeyRing { keys: BTreeMap::new() };
        let first = ring.rotate(Purpose::Token, at(120), &entropy).expect("rotates");
        ring.rotate(Purpose::Token, at(240), &entropy).expect("rotates");
        assert_eq!(ring.current(Purpose::Token, at(0)).ok(), Some(first));
    }

    #[test]
    fn only_a_key_that_makes_no_more_is_retired() {
        let entropy = Entropy::seeded(4);
        let mut ring = KeyRing::generate(&entropy);
        let first = ring.current(Purpose::Token, at(0)).expect("has keys");
        assert!(matches!(ring.retire(first, at(0)), Err(KeyRingError::InUse(_))));
        let next = ring.rotate(Purpose::Token, at(120), &entropy).expect("rotates");
        let roles = |ring: &KeyRing, now| {
            let of = |(id, purpose, role)| (purpose == Purpose::Token).then_some((id, role));
            ring.roles(at(now)).filter_map(of).collect::<Vec<_>>()
        };
        assert_eq!(roles(&ring, 119), [(first, Role::Makes), (next, Role::MakesFrom(at(120)))]);
        for id in [first, next] {
            assert!(matches!(ring.retire(id, at(119)), Err(KeyRingError::InUse(_))), "{id}");
        }
        assert_eq!(roles(&ring, 120), [(first, Role::Checks), (next, Role::Makes)]);
        assert_eq!(ring.retire(first, at(120)).ok(), Some(Purpose::Token));
        assert!(matches!(ring.retire(first, at(120)), Err(KeyRingError::Unknown(_))));
        assert_eq!(ring.mac(Purpose::Token, first, &[]), None);
    }

    #[test]
    fn the_subject_digest_key_stays() {
        let entropy = Entropy::seeded(5);
        let mut ring = KeyRing::generate(&entropy);
        let id = ring.current(Purpose::SubjectDigest, at(0)).expect("has keys");
        assert!(matches!(ring.rotate(Purpose::SubjectDigest, at(0), &entropy), Err(KeyRingError::Fixed)));
        assert!(matches!(ring.retire(id, at(0)), Err(KeyRingError::Fixed)));
    }

    #[test]
    fn a_ring_of_an_earlier_version_gets_what_came_later_and_nothing_else() {
        let entropy = Entropy::seeded(6);
        let entry = |id: u32, purpose: &str| {
            format!(r#"{{"id":{id},"purpose":"{purpose}","secret":"{}"}}"#, STANDARD.encode([7; 32]))
        };
        let ring = |purposes: &[&str]| {
            let keys: Vec<_> = (1..).zip(purposes).map(|(id, purpose)| entry(id, purpose)).collect();
            format!(r#"{{"keys":[{}]}}"#, keys.join(","))
        };
        let old = ring(&["token", "cursor", "subject_digest"]);
        assert!(matches!(KeyRing::parse(&old), Err(KeyRingError::Missing(Purpose::Assertion))));
        let mut read = KeyRing::read(&old).expect("reads");
        assert!(read.add_later(&entropy) && !read.add_later(&entropy));
        let whole = KeyRing::parse(&read.to_json().expect("writes")).expect("is whole");
        let keys = Purpose::LATER.map(|purpose| whole.current(purpose, at(0)).ok());
        assert_eq!(keys, [Some(4), Some(5), Some(6)]);
        let mut damaged = KeyRing::read(&ring(&["token", "cursor"])).expect("reads");
        damaged.add_later(&entropy);
        let json = damaged.to_json().expect("writes");
        assert!(matches!(KeyRing::parse(&json), Err(KeyRingError::Missing(Purpose::SubjectDigest))));
    }

    #[test]
    fn rings_that_cannot_work_are_refused() {
        let key = |id: u32, purpose: &str, secret: &str| {
            format!(r#"{{"id":{id},"purpose":"{purpose}","secret":"{secret}"}}"#)
        };
        let good = STANDARD.encode([1; 32]);
        let ring = |keys: &[String]| KeyRing::parse(&format!(r#"{{"keys":[{}]}}"#, keys.join(",")));
        assert!(matches!(ring(&[]), Err(KeyRingError::Missing(Purpose::Token))));
        assert!(matches!(ring(&[key(1, "token", "c2hvcnQ=")]), Err(KeyRingError::Secret(1))));
        assert!(matches!(
            ring(&[key(1, "token", &good), key(1, "cursor", &good)]),
            Err(KeyRingError::Duplicate(1))
        ));
        assert!(matches!(
            ring(&[key(1, "subject_digest", &good), key(2, "subject_digest", &good)]),
            Err(KeyRingError::TwoDigestKeys)
        ));
        assert!(matches!(KeyRing::parse("nonsense"), Err(KeyRingError::Json(_))));
    }
}
