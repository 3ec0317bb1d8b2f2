//! Pages of lists (AIP-158): a clamped size, and an opaque token that holds the last key and is good for the same list,
//! tenant and filters only.

use crate::id::TenantId;
use crate::keys::Keys;
use crate::status::{Failure, Reason, Refusal};
use crate::time::Time;

const SIZE_DEFAULT: i32 = 50;
const SIZE_MAX: i32 = 1000;

/// Which list, for whom, filtered how.
pub struct List<'a> {
    /// The method's name.
    pub name: &'a str,
    /// Whose objects.
    pub tenant: &'a TenantId,
    /// Everything that selects; a token for other filters is refused.
    pub filter: &'a str,
}

impl List<'_> {
    fn context(&self) -> [&[u8]; 4] {
        [b"page", self.name.as_bytes(), self.tenant.as_str().as_bytes(), self.filter.as_bytes()]
    }

    /// The key that the page before ended with; `None` for the first page.
    pub fn after(&self, keys: &Keys, page_token: &str) -> Result<Option<String>, Refusal> {
        if page_token.is_empty() {
            return Ok(None);
        }
        let key = keys
            .load()
            .open(&self.context(), page_token)
            .and_then(|bytes| String::from_utf8(bytes).ok());
        let invalid =
            || Refusal::new(Reason::PageTokenInvalid, "not a page token of this list with these filters");
        key.map(Some).ok_or_else(invalid)
    }

    /// Cuts `rows`, of which one more than the page was asked for, to the page, and makes the token of the next.
    pub fn cut<T>(
        &self,
        keys: &Keys,
        rows: &mut Vec<T>,
        size: i64,
        now: Time,
        key: impl Fn(&T) -> String,
    ) -> Result<String, Failure> {
        let size = usize::try_from(size).unwrap_or(0);
        if rows.len() <= size {
            return Ok(String::new());
        }
        rows.truncate(size);
        let last = rows.last().map(key).unwrap_or_default();
        Ok(keys.load().seal(&self.context(), last.as_bytes(), now)?)
    }
}

/// Rows a page.
pub fn size(page_size: i32) -> Result<i64, Refusal> {
    match page_size {
        0 => Ok(SIZE_DEFAULT.into()),
        1.. => Ok(page_size.min(SIZE_MAX).into()),
        _ => Err(Refusal::field("page_size", "must not be negative")),
    }
}
