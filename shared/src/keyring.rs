//! The one key ring: symmetric keys by purpose, several a purpose while one is being replaced.
//!
//! What is derived or sealed carries the id of the key that did it; the newest key of a purpose makes, all of them check.
//! The subject-digest key names people for ever and is never replaced.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use subtle::ConstantTimeEq as _;

use crate::secret::{Entropy, Secret};

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
}

impl Purpose {
    /// Every purpose.
    pub const ALL: [Self; 3] = [Self::Token, Self::Cursor, Self::SubjectDigest];
}

/// The key ring cannot be used.
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
}

/// Keys in memory.
#[derive(Debug)]
pub struct KeyRing {
    keys: BTreeMap<u32, (Purpose, Secret<[u8; 32]>)>,
}

#[derive(Serialize, Deserialize)]
struct File {
    keys: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    id: u32,
    purpose: Purpose,
    secret: String,
}

impl KeyRing {
    /// A ring with one fresh key for every purpose.
    pub fn generate(entropy: &Entropy) -> Self {
        let key = |(id, purpose)| (id, (purpose, Secret::new(entropy.bytes())));
        Self { keys: (1..).zip(Purpose::ALL).map(key).collect() }
    }

    /// Reads the JSON form.
    pub fn parse(json: &str) -> Result<Self, KeyRingError> {
        let file: File = serde_json::from_str(json)?;
        let mut keys = BTreeMap::new();
        for Entry { id, purpose, secret } in file.keys {
            let bytes = STANDARD.decode(&secret).ok().and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
            let key = Secret::new(bytes.ok_or(KeyRingError::Secret(id))?);
            if keys.insert(id, (purpose, key)).is_some() {
                return Err(KeyRingError::Duplicate(id));
            }
        }
        if keys.values().filter(|(purpose, _)| *purpose == Purpose::SubjectDigest).count() > 1 {
            return Err(KeyRingError::TwoDigestKeys);
        }
        let ring = Self { keys };
        match Purpose::ALL.into_iter().find(|purpose| ring.newest(*purpose).is_none()) {
            Some(purpose) => Err(KeyRingError::Missing(purpose)),
            None => Ok(ring),
        }
    }

    /// The JSON form, secrets included: for the file only.
    pub fn to_json(&self) -> Result<String, KeyRingError> {
        let entry = |(id, (purpose, key)): (&u32, &(Purpose, Secret<[u8; 32]>))| Entry {
            id: *id,
            purpose: *purpose,
            secret: STANDARD.encode(key.expose()),
        };
        Ok(serde_json::to_string_pretty(&File { keys: self.keys.iter().map(entry).collect() })?)
    }

    /// Adds a key that makes what is new; older keys go on checking what they made.
    pub fn rotate(&mut self, purpose: Purpose, entropy: &Entropy) -> Result<u32, KeyRingError> {
        if purpose == Purpose::SubjectDigest {
            return Err(KeyRingError::Fixed);
        }
        let id = self.keys.keys().next_back().map_or(1, |last| last + 1);
        self.keys.insert(id, (purpose, Secret::new(entropy.bytes())));
        Ok(id)
    }

    /// Id of the key that makes what is new.
    pub fn current(&self, purpose: Purpose) -> Result<u32, KeyRingError> {
        self.newest(purpose).ok_or(KeyRingError::Missing(purpose))
    }

    /// HMAC-SHA256 (RFC 2104) of the parts under key `id`; `None` if the ring has no such key for the purpose.
    pub fn mac(&self, purpose: Purpose, id: u32, parts: &[&[u8]]) -> Option<[u8; 32]> {
        let (of, key) = self.keys.get(&id)?;
        if *of != purpose {
            return None;
        }
        let mut mac = Hmac::<Sha256>::new_from_slice(key.expose()).ok()?;
        for part in parts {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part);
        }
        Some(mac.finalize().into_bytes().into())
    }

    /// `payload` with a tag that binds it to `context`, as URL-safe text.
    pub fn seal(&self, context: &[&[u8]], payload: &[u8]) -> Result<String, KeyRingError> {
        let id = self.current(Purpose::Cursor)?;
        let tag = self
            .mac(Purpose::Cursor, id, &[context, &[payload]].concat())
            .ok_or(KeyRingError::Missing(Purpose::Cursor))?;
        let sealed = [&id.to_be_bytes(), &tag[..16], payload].concat();
        Ok(base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(sealed))
    }

    /// What was sealed for `context`; `None` for anything else.
    pub fn open(&self, context: &[&[u8]], text: &str) -> Option<Vec<u8>> {
        let sealed = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(text).ok()?;
        let (id, rest) = sealed.split_first_chunk::<4>()?;
        let (tag, payload) = rest.split_first_chunk::<16>()?;
        let expected = self.mac(Purpose::Cursor, u32::from_be_bytes(*id), &[context, &[payload]].concat())?;
        bool::from(expected[..16].ct_eq(tag)).then(|| payload.to_vec())
    }

    fn newest(&self, purpose: Purpose) -> Option<u32> {
        self.keys.iter().rev().find(|(_, (of, _))| *of == purpose).map(|(id, _)| *id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sealed_text_opens_only_in_its_context_and_unchanged() {
        let ring = KeyRing::generate(&Entropy::seeded(1));
        let text = ring.seal(&[b"tenant", b"list"], b"payload").expect("has keys");
        assert_eq!(ring.open(&[b"tenant", b"list"], &text).as_deref(), Some(b"payload".as_slice()));
        assert_eq!(ring.open(&[b"other", b"list"], &text), None);
        for i in 0..text.len() {
            let mut bad = text.clone().into_bytes();
            bad[i] = if bad[i] == b'A' { b'B' } else { b'A' };
            assert_eq!(ring.open(&[b"tenant", b"list"], &String::from_utf8(bad).expect("ascii")), None);
        }
    }

    #[test]
    fn what_an_older_key_sealed_still_opens_after_a_rotation() {
        let entropy = Entropy::seeded(2);
        let mut ring = KeyRing::generate(&entropy);
        let old = ring.seal(&[], b"x").expect("has keys");
        let id = ring.rotate(Purpose::Cursor, &entropy).expect("rotates");
        assert_eq!(ring.current(Purpose::Cursor).ok(), Some(id));
        let read = KeyRing::parse(&ring.to_json().expect("writes")).expect("reads");
        assert_eq!(read.open(&[], &old).as_deref(), Some(b"x".as_slice()));
    }

    #[test]
    fn the_subject_digest_key_stays() {
        let entropy = Entropy::seeded(3);
        assert!(matches!(
            KeyRing::generate(&entropy).rotate(Purpose::SubjectDigest, &entropy),
            Err(KeyRingError::Fixed)
        ));
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
        assert!(matches!(KeyRing::parse("nonsense"), Err(KeyRingError::Json(_))));
    }
}
