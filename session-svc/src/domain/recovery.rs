//! Leave to open one cart once, such as by a link in a message to its shopper. It logs nobody in.

use shared::id::CartId;
use shared::time::Time;

/// Most recoveries of one cart that are open at once.
pub const OPEN_MAX: i64 = 16;

/// What a token gives leave for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recovery {
    /// To open this cart, of the shopper that the token names.
    pub cart: CartId,
    /// It is good until then.
    pub expires_at: Time,
    /// What ended it before, if anything did.
    pub end: Option<End>,
}

/// What ended a recovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It was used.
    Redeemed,
    /// It was taken out of use.
    Revoked,
}

/// Why a recovery opens nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It was used.
    #[error("the recovery token was used")]
    Redeemed,
    /// It was taken out of use.
    #[error("the recovery token was taken out of use")]
    Revoked,
    /// Its time is over.
    #[error("the recovery token's time is over")]
    Expired,
}

impl End {
    /// As it is stored.
    pub fn name(self) -> &'static str {
        match self {
            Self::Redeemed => "REDEEMED",
            Self::Revoked => "REVOKED",
        }
    }

    /// The end of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Redeemed, Self::Revoked].into_iter().find(|end| end.name() == name)
    }
}

impl Recovery {
    /// The cart that it opens now.
    pub fn cart(&self, now: Time) -> Result<CartId, Refused> {
        match self.end {
            Some(End::Redeemed) => Err(Refused::Redeemed),
            Some(End::Revoked) => Err(Refused::Revoked),
            None if self.expires_at <= now => Err(Refused::Expired),
            None => Ok(self.cart),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::time::at;

    #[test]
    fn a_recovery_is_good_until_it_ends() {
        let cart = CartId::new(at(0), [1; 10]);
        for (end, now, expected) in [
            (None, 99, Ok(cart)),
            (None, 100, Err(Refused::Expired)),
            (Some(End::Redeemed), 99, Err(Refused::Redeemed)),
            (Some(End::Redeemed), 100, Err(Refused::Redeemed)),
            (Some(End::Revoked), 100, Err(Refused::Revoked)),
        ] {
            assert_eq!(Recovery { cart, expires_at: at(100), end }.cart(at(now)), expected);
        }
    }
}
