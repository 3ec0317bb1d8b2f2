//! Free text: fields that anybody can type into, and into which card numbers get lost.

use shared::parse::{line, text_of};
use shared::status::Refusal;

use crate::domain::card_number;

/// As [`line`], for a field that must not hold the number of a payment card.
pub(super) fn free_line(field: &str, text: String, min: usize, max: usize) -> Result<String, Refusal> {
    without_card_number(field, line(field, text, min, max)?)
}

/// The same of several lines.
pub(super) fn free_text(field: &str, text: String, max: usize) -> Result<String, Refusal> {
    without_card_number(field, text_of(field, text, 0, max)?)
}

fn without_card_number(field: &str, text: String) -> Result<String, Refusal> {
    if card_number::is_in(&text) {
        return Err(Refusal::field(field, "must not hold the number of a payment card"));
    }
    Ok(text)
}
