//! What applications keep with a session.

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attribute {
    /// Its name.
    pub key: String,
    /// Its value.
    pub value: String,
    /// Rises with every change of this key.
    pub version: i64,
}
