//! Free text: fields that anybody can type into, and into which card numbers get lost.

use shared::parse::line;
use shared::status::Refusal;

use crate::domain::card_number;

/// As [`line`], for a field that must not hold the number of a payment card.
pub(super) fn free_line(field: &str, text: String, min: usize, max: usize) -> Result<String, Refusal> {
    let text = line(field, text, min, max)?;
    if card_number::is_in(&text) {
        return Err(Refusal::field(field, "must not hold the number of a payment card"));
    }
    Ok(text)
}
