//! What requests are parsed with, at the edge and once: each function names the field it refuses.

use std::str::FromStr;
use std::time::Duration;

use crate::status::{Reason, Refusal};

/// An id, a name or anything else with a text form.
pub fn parse<T: FromStr<Err: std::fmt::Display>>(field: &str, text: &str) -> Result<T, Refusal> {
    text.parse().map_err(|error| Refusal::field(field, error))
}

/// As [`parse`], but empty is none.
pub fn optional<T: FromStr<Err: std::fmt::Display>>(field: &str, text: &str) -> Result<Option<T>, Refusal> {
    if text.is_empty() { Ok(None) } else { parse(field, text).map(Some) }
}

/// A message that must be there.
pub fn required<T>(field: &str, value: Option<T>) -> Result<T, Refusal> {
    value.ok_or_else(|| Refusal::field(field, "is required"))
}

/// Text of `min` to `max` characters without control characters; line breaks count as such.
pub fn line(field: &str, text: String, min: usize, max: usize) -> Result<String, Refusal> {
    if text.chars().any(char::is_control) {
        return Err(Refusal::field(field, "must not contain control characters"));
    }
    text_of(field, text, min, max)
}

/// Text of `min` to `max` characters; line breaks and tabs are fine, other control characters are not.
pub fn text_of(field: &str, text: String, min: usize, max: usize) -> Result<String, Refusal> {
    if text.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t')) {
        return Err(Refusal::field(field, "must not contain control characters"));
    }
    if (min..=max).contains(&text.chars().count()) {
        return Ok(text);
    }
    let problem = if min == 0 {
        format!("must have at most {max} characters")
    } else {
        format!("must have {min} to {max} characters")
    };
    Err(Refusal::field(field, problem))
}

/// A value of an enum that is known and specified.
pub fn known<T: TryFrom<i32> + Default + PartialEq>(field: &str, number: i32) -> Result<T, Refusal> {
    match T::try_from(number) {
        Ok(value) if value != T::default() => Ok(value),
        _ => {
            Err(Refusal::field(field, "must be one of the values that the proto lists, and not unspecified"))
        }
    }
}

/// As [`known`], but unspecified is fine, too.
pub fn known_or_default<T: TryFrom<i32>>(field: &str, number: i32) -> Result<T, Refusal> {
    T::try_from(number).map_err(|_| Refusal::field(field, "must be one of the values that the proto lists"))
}

/// A number in a range.
pub fn within<T: PartialOrd + std::fmt::Display + Copy>(
    field: &str,
    value: T,
    min: T,
    max: T,
) -> Result<T, Refusal> {
    if min <= value && value <= max {
        return Ok(value);
    }
    Err(Refusal::field(field, format_args!("must be {min} to {max}")))
}

/// A duration that is not negative, within the 10,000 years that the proto allows; `None` where none was given.
pub fn duration(field: &str, value: Option<prost_types::Duration>) -> Result<Option<Duration>, Refusal> {
    const SECONDS_MAX: u64 = 315_576_000_000;
    let Some(prost_types::Duration { seconds, nanos }) = value else { return Ok(None) };
    let seconds = u64::try_from(seconds).ok().filter(|seconds| *seconds <= SECONDS_MAX);
    let nanos = u32::try_from(nanos).ok().filter(|nanos| *nanos < 1_000_000_000);
    match seconds.zip(nanos) {
        Some((seconds, nanos)) => Ok(Some(Duration::new(seconds, nanos))),
        None => Err(Refusal::field(field, "must be a duration that is not negative")),
    }
}

/// Refuses an etag that is not the current one; empty asks for nothing.
pub fn etag(sent: &str, version: i64) -> Result<(), Refusal> {
    if sent.is_empty() || sent == etag_of(version) {
        return Ok(());
    }
    Err(Refusal::new(Reason::EtagMismatch, "the object changed since it was read; read it again")
        .with("etag", etag_of(version)))
}

/// The etag of a row's version.
pub fn etag_of(version: i64) -> String {
    format!("v{version}")
}

/// Requests of no more elements than this.
pub fn at_most<T>(field: &str, values: &[T], max: usize) -> Result<(), Refusal> {
    if values.len() <= max {
        return Ok(());
    }
    Err(Refusal::field(field, format_args!("must have at most {max} elements")))
}
