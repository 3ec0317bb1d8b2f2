//! Secrets that are derived, so that a repeated request gets the same one and the database holds none: HMAC-SHA256 under a
//! key of the ring. And the pseudonyms of subjects, derived alike.

use shared::id::{SessionId, ShopperId, TenantId, WishlistId};
use shared::keyring::Purpose;
use shared::status::Failure;
use uuid::Uuid;

use super::App;
use crate::domain::session::Subject;
use crate::domain::token::{ElevationToken, RecoveryToken, SessionToken, WishlistToken};

/// Random bytes that a secret is derived from, beside the id of the key.
const SALT: usize = 16;

impl App {
    /// Key id and random bytes: all that must be kept to make the same secret again.
    pub(super) fn new_salt(&self) -> Result<Vec<u8>, Failure> {
        let key = self.keys.load().current(Purpose::Token, self.clock.now())?;
        Ok([&key.to_be_bytes()[..], &self.entropy.bytes::<SALT>()].concat())
    }

    /// A session's token that nothing came before.
    pub(super) fn session_token(
        &self,
        tenant: &TenantId,
        id: SessionId,
        salt: &[u8],
    ) -> Result<SessionToken, Failure> {
        let secret = self.derive(b"session", tenant, id.uuid(), &[], salt)?;
        Ok(SessionToken::new(id, secret))
    }

    /// What replaces a session's token: to be had with the token only.
    pub(super) fn child_token(
        &self,
        tenant: &TenantId,
        parent: &SessionToken,
        salt: &[u8],
    ) -> Result<SessionToken, Failure> {
        let id = parent.session_id();
        Ok(SessionToken::new(id, self.derive(b"child", tenant, id.uuid(), parent.secret(), salt)?))
    }

    /// Leave to do one thing.
    pub(super) fn elevation_token(
        &self,
        tenant: &TenantId,
        id: SessionId,
        salt: &[u8],
    ) -> Result<ElevationToken, Failure> {
        let secret = self.derive(b"elevation", tenant, id.uuid(), &[], salt)?;
        Ok(ElevationToken::new(id, secret))
    }

    /// Leave to open a cart.
    pub(super) fn recovery_token(
        &self,
        tenant: &TenantId,
        id: ShopperId,
        salt: &[u8],
    ) -> Result<RecoveryToken, Failure> {
        let secret = self.derive(b"recovery", tenant, id.uuid(), &[], salt)?;
        Ok(RecoveryToken::new(id, secret))
    }

    /// Shows a wishlist.
    pub(super) fn wishlist_token(
        &self,
        tenant: &TenantId,
        owner: ShopperId,
        id: WishlistId,
        salt: &[u8],
    ) -> Result<WishlistToken, Failure> {
        let secret = self.derive(b"wishlist", tenant, id.uuid(), &[], salt)?;
        Ok(WishlistToken::new(owner, secret))
    }

    fn derive(
        &self,
        label: &[u8],
        tenant: &TenantId,
        id: Uuid,
        parent: &[u8],
        salt: &[u8],
    ) -> Result<[u8; 32], Failure> {
        let parts: [&[u8]; 5] = [label, tenant.as_str().as_bytes(), id.as_bytes(), parent, salt];
        let key = salt.first_chunk().map(|id| u32::from_be_bytes(*id));
        key.and_then(|key| self.keys.load().mac(Purpose::Token, key, &parts))
            .ok_or_else(|| Failure::Bug("the ring lacks the key that a token was derived with".to_owned()))
    }

    /// A subject's pseudonym.
    pub(super) fn subject_digest(&self, tenant: &TenantId, subject: &Subject) -> Result<[u8; 32], Failure> {
        let parts: [&[u8]; 3] =
            [tenant.as_str().as_bytes(), subject.issuer.as_bytes(), subject.sub.as_bytes()];
        let keys = self.keys.load();
        let key = keys.current(Purpose::SubjectDigest, self.clock.now())?;
        keys.mac(Purpose::SubjectDigest, key, &parts)
            .ok_or_else(|| Failure::Bug("no subject-digest key".to_owned()))
    }
}
