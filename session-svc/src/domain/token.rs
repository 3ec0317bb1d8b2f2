//! Bearer secrets: a prefix that names the kind, and base64url of a version byte, the id of the session or shopper that it is
//! of, 32 secret bytes and a CRC-32.
//!
//! The id finds the row, the checksum lets scanners and typing mistakes be told apart from guesses, and only SHA-256 of
//! the secret is ever stored. Kinds are types: no function that takes one can be given another.

use std::marker::PhantomData;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use shared::id::{SessionId, ShopperId};
use shared::secret::{Secret, sha256};
use subtle::ConstantTimeEq as _;
use uuid::Uuid;

const VERSION: u8 = 1;
const BODY: usize = 1 + 16 + 32;

/// What a token is for.
pub trait Kind {
    /// What it is of, by whose id its row is found.
    type Owner: Owner;
    /// How its text begins.
    const PREFIX: &str;
    /// What its secret is hashed with, so that no two kinds share a hash.
    const LABEL: &[u8];
}

/// What a token is of.
pub trait Owner: Copy {
    /// With this UUID.
    fn from_uuid(uuid: Uuid) -> Self;
    /// Its UUID.
    fn uuid(self) -> Uuid;
}

impl Owner for SessionId {
    fn from_uuid(uuid: Uuid) -> Self {
        Self::from_uuid(uuid)
    }

    fn uuid(self) -> Uuid {
        self.uuid()
    }
}

impl Owner for ShopperId {
    fn from_uuid(uuid: Uuid) -> Self {
        Self::from_uuid(uuid)
    }

    fn uuid(self) -> Uuid {
        self.uuid()
    }
}

/// Being a session.
#[derive(Debug)]
pub struct OfSession;

/// Doing one thing that a session may do.
#[derive(Debug)]
pub struct OfElevation;

/// Opening a cart.
#[derive(Debug)]
pub struct OfRecovery;

/// Seeing a wishlist that is shared.
#[derive(Debug)]
pub struct OfWishlist;

impl Kind for OfSession {
    type Owner = SessionId;
    const PREFIX: &str = "tds_";
    const LABEL: &[u8] = b"session";
}

impl Kind for OfElevation {
    type Owner = SessionId;
    const PREFIX: &str = "tde_";
    const LABEL: &[u8] = b"elevation";
}

impl Kind for OfRecovery {
    type Owner = ShopperId;
    const PREFIX: &str = "tdr_";
    const LABEL: &[u8] = b"recovery";
}

impl Kind for OfWishlist {
    type Owner = ShopperId;
    const PREFIX: &str = "tdw_";
    const LABEL: &[u8] = b"wishlist";
}

/// A bearer secret. Shown to its holder once, never stored.
#[derive(Debug)]
pub struct Token<K> {
    owner: Uuid,
    secret: Secret<[u8; 32]>,
    kind: PhantomData<K>,
}

/// Stands for a session.
pub type SessionToken = Token<OfSession>;
/// Stands for leave to do one thing.
pub type ElevationToken = Token<OfElevation>;
/// Stands for leave to open a cart.
pub type RecoveryToken = Token<OfRecovery>;
/// Shows a wishlist; it names the list's owner.
pub type WishlistToken = Token<OfWishlist>;

/// SHA-256 of a token's secret, what the database holds.
#[derive(Debug, Clone, Copy)]
pub struct TokenHash([u8; 32]);

/// Not a token of this kind at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a token of this kind")]
pub struct NotAToken;

impl<K: Kind> Token<K> {
    /// The token of a session or shopper.
    pub fn new(owner: K::Owner, secret: [u8; 32]) -> Self {
        Self { owner: owner.uuid(), secret: Secret::new(secret), kind: PhantomData }
    }

    /// Reads the text form.
    pub fn parse(text: &str) -> Result<Self, NotAToken> {
        let encoded = text.strip_prefix(K::PREFIX).ok_or(NotAToken)?;
        let bytes = URL_SAFE_NO_PAD.decode(encoded).map_err(|_| NotAToken)?;
        let (body, checksum) = bytes.split_last_chunk::<4>().ok_or(NotAToken)?;
        let body: &[u8; BODY] = body.try_into().map_err(|_| NotAToken)?;
        if body[0] != VERSION || checksum_of(body) != *checksum {
            return Err(NotAToken);
        }
        let mut id = [0; 16];
        let mut secret = [0; 32];
        id.copy_from_slice(&body[1..17]);
        secret.copy_from_slice(&body[17..]);
        Ok(Self::new(K::Owner::from_uuid(Uuid::from_bytes(id)), secret))
    }

    /// The text form, for the holder only.
    pub fn expose(&self) -> String {
        let mut body = [0; BODY];
        body[0] = VERSION;
        body[1..17].copy_from_slice(self.owner.as_bytes());
        body[17..].copy_from_slice(self.secret.expose());
        let encoded = URL_SAFE_NO_PAD.encode([&body[..], &checksum_of(&body)].concat());
        format!("{}{encoded}", K::PREFIX)
    }

    /// The bare secret, which a successor's is derived from.
    pub fn secret(&self) -> &[u8; 32] {
        self.secret.expose()
    }

    /// What to store.
    pub fn hash(&self) -> TokenHash {
        TokenHash(sha256(&[K::LABEL, self.secret.expose()]))
    }
}

impl<K: Kind<Owner = SessionId>> Token<K> {
    /// The session that it claims to be of.
    pub fn session_id(&self) -> SessionId {
        SessionId::from_uuid(self.owner)
    }
}

impl<K: Kind<Owner = ShopperId>> Token<K> {
    /// The shopper whose cart or list it claims to open.
    pub fn shopper_id(&self) -> ShopperId {
        ShopperId::from_uuid(self.owner)
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

    /// Half of it, enough to know a token again that is good for nothing any more.
    pub fn short(&self) -> [u8; 16] {
        let mut short = [0; 16];
        short.copy_from_slice(&self.0[..16]);
        short
    }
}

impl Eq for TokenHash {}

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
            assert_eq!(SessionToken::parse(bad).err(), Some(NotAToken), "{bad}");
        }
    }

    #[test]
    fn kinds_share_neither_text_nor_hash() {
        let (session, elevation) = (token(), ElevationToken::new(token().session_id(), [9; 32]));
        let of_shopper = ShopperId::from_uuid(session.owner);
        let (recovery, wishlist) =
            (RecoveryToken::new(of_shopper, [9; 32]), WishlistToken::new(of_shopper, [9; 32]));
        let texts = [session.expose(), elevation.expose(), recovery.expose(), wishlist.expose()];
        let read = |text: &String| {
            [
                SessionToken::parse(text).is_ok(),
                ElevationToken::parse(text).is_ok(),
                RecoveryToken::parse(text).is_ok(),
                WishlistToken::parse(text).is_ok(),
            ]
        };
        let only = |n| [0, 1, 2, 3].map(|kind| kind == n);
        assert_eq!(texts.each_ref().map(read), [0, 1, 2, 3].map(only));
        let hashes = [session.hash(), elevation.hash(), recovery.hash(), wishlist.hash()];
        for (n, hash) in hashes.iter().enumerate() {
            assert!(hashes[..n].iter().all(|other| other != hash));
        }
    }

    #[test]
    fn debug_shows_no_secret() {
        let shown = format!("{:?}", token());
        assert!(!shown.contains("[9, 9") && !shown.contains("tds_"));
    }
}
