//! What becomes of an anonymous shopper's cart when it logs in.

/// How two carts of one currency become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strategy {
    /// Adds quantities, up to the limit of a line.
    SumCapped,
    /// Takes the larger quantity.
    Max,
    /// Takes the guest's quantity; lines that only the subject has stay.
    GuestWins,
    /// The guest's cart takes the place of the subject's.
    UseGuest,
    /// The subject's cart stays as it is.
    KeepExisting,
    /// As `UseGuest` where the subject's cart is empty, else as `KeepExisting`.
    GuestIfExistingEmpty,
    /// They stay apart.
    None,
}
