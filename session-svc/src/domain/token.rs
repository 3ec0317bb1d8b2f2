//! The session token: `tds_` and base64url of a version byte, the session's id, 32 secret bytes and a CRC-32.
//!
//! The id finds the row, the checksum lets scanners and typing mistakes be told apart from guesses, and only SHA-256 of
//! the secret is ever stored.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use shared::id::SessionId;
use shared::secret::{Secret, sha256};
use subtle::ConstantTimeEq as _;

const PREFIX: &str = "tds_";
const VERSION: u8 = 1;
const BODY: usize = 1 + 16 + 32;

/// A bearer secret. Shown to its holder once, never stored.
#[derive(Debug)]
pub struct SessionToken {
    id: SessionId,
    secret: Secret<[u8; 32]>,
}

/// SHA-256 of a token's secret, what the database holds.
#[derive(Debug, Clone, Copy)]
pub struct TokenHash([u8; 32]);

/// Not a session token at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a session token")]
pub struct NotASessionToken;

impl SessionToken {
    /// The token of a session.
    pub fn new(id: SessionId, secret: [u8; 32]) -> Self {
        Self { id, secret: Secret::new(secret) }
    }

    /// Reads the text form.
    pub fn parse(text: &str) -> Result<Self, NotASessionToken> {
        let encoded = text.strip_prefix(PREFIX).ok_or(NotASessionToken)?;
        let bytes = URL_SAFE_NO_PAD.decode(encoded).map_err(|_| NotASessionToken)?;
        let (body, checksum) = bytes.split_last_chunk::<4>().ok_or(NotASessionToken)?;
        let body: &[u8; BODY] = body.try_into().map_err(|_| NotASessionToken)?;
        if body[0] != VERSION || checksum_of(body) != *checksum {
            return Err(NotASessionToken);
        }
        let mut id = [0; 16];
        let mut secret = [0; 32];
        id.copy_from_slice(&body[1..17]);
        secret.copy_from_slice(&body[17..]);
        Ok(Self::new(SessionId::from_uuid(uuid::Uuid::from_bytes(id)), secret))
    }

    /// The text form, for the holder only.
    pub fn expose(&self) -> String {
        let mut body = [0; BODY];
        body[0] = VERSION;
        body[1..17].copy_from_slice(self.id.uuid().as_bytes());
        body[17..].copy_from_slice(self.secret.expose());
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode([&body[..], &checksum_of(&body)].concat()))
    }

    /// The session that it claims to be of.
    pub fn session_id(&self) -> SessionId {
        self.id
    }

    /// What to store.
    pub fn hash(&self) -> TokenHash {
        TokenHash(sha256(&[b"session", self.secret.expose()]))
    }
}

impl TokenHash {
    /// As it was stored.
    pub fn from_stored(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// As it is stored.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl PartialEq for TokenHash {
    /// In constant time.
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

fn checksum_of(body: &[u8; BODY]) -> [u8; 4] {
    crc32fast::hash(body).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::time::at;

    fn token() -> SessionToken {
        SessionToken::new(SessionId::new(at(1_800_000_000), [3; 10]), [9; 32])
    }

    #[test]
    fn a_token_reads_back() {
        let text = token().expose();
        assert_eq!(text.len(), 75);
        let read = SessionToken::parse(&text).unwrap();
        assert_eq!(read.session_id(), token().session_id());
        assert!(read.hash() == token().hash());
    }

    #[test]
    fn a_change_of_any_character_is_noticed() {
        let text = token().expose();
        for i in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[i] = if bytes[i] == b'x' { b'y' } else { b'x' };
            assert!(SessionToken::parse(&String::from_utf8(bytes).unwrap()).is_err(), "{i}");
        }
    }

    #[test]
    fn other_texts_are_no_tokens() {
        let text = token().expose();
        for bad in
            ["", "tds_", &text[..74], &text[4..], "tds_ä", &text.replace("tds_", "tde_"), &format!("{text}A")]
        {
            assert_eq!(SessionToken::parse(bad).err(), Some(NotASessionToken), "{bad}");
        }
    }

    #[test]
    fn debug_shows_no_secret() {
        let shown = format!("{:?}", token());
        assert!(!shown.contains("[9, 9") && !shown.contains("tds_"));
    }
}
