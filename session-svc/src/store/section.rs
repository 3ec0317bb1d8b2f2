//! Sections: parts of a shopper's state that are kept whole, each a message of `tandem.session.storage.v1` in a column.
//!
//! A build that rewrites what a newer one wrote keeps what it does not know: at every level of nesting, the fields of
//! numbers above the last that this build has are kept as bytes beside what was decoded, and written again behind it. So
//! numbers are given without gaps, and one that is given up is `reserved`.

use prost::Message;
use prost::encoding::{WireType, decode_key, decode_varint, encode_key, encode_varint, encoded_len_varint};

/// Largest section, in bytes.
pub const BYTES_MAX: usize = 64 * 1024;
/// A first byte below this names a wrapped format, such as one that is encrypted: no protobuf message begins with it, as it
/// would be of field 0. There is none yet.
const WRAPPED: u8 = 8;

/// A section would be larger than [`BYTES_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("would take more than {BYTES_MAX} bytes")]
pub struct TooLarge;

/// The message that a column holds; none where it is in a format that this build does not read.
pub fn open(stored: &[u8]) -> Option<&[u8]> {
    let is_wrapped = stored.first().is_some_and(|first| *first < WRAPPED);
    (!is_wrapped).then_some(stored)
}

/// What a column holds for this message.
pub fn seal(message: Vec<u8>) -> Result<Vec<u8>, TooLarge> {
    if message.len() <= BYTES_MAX { Ok(message) } else { Err(TooLarge) }
}

/// The fields of a message beyond number `last`, as they are; none where the bytes are no message.
pub fn newer(message: &[u8], last: u32) -> Option<Vec<u8>> {
    let mut newer = Vec::new();
    for field in fields(message) {
        let field = field?;
        if field.number > last {
            newer.extend_from_slice(field.raw);
        }
    }
    Some(newer)
}

/// As [`newer`], for each message that is in field `number` of the given one, in their order.
pub fn newer_in(message: &[u8], number: u32, last: u32) -> Option<Vec<Vec<u8>>> {
    let mut all = Vec::new();
    for field in fields(message) {
        let field = field?;
        if field.number == number {
            all.push(newer(field.contents?, last)?);
        }
    }
    Some(all)
}

/// Writes a message into field `number`, and behind its own fields those that a newer build gave it.
pub fn put(into: &mut Vec<u8>, number: u32, message: &impl Message, newer: &[u8]) {
    let len = message.encoded_len() + newer.len();
    into.reserve(encoded_len_varint(u64::from(number) << 3) + encoded_len_varint(len as u64) + len);
    encode_key(number, WireType::LengthDelimited, into);
    encode_varint(len as u64, into);
    message.encode_raw(into);
    into.extend_from_slice(newer);
}

/// One field as it is written.
struct Field<'a> {
    number: u32,
    /// Tag and value.
    raw: &'a [u8],
    /// Of text, bytes or a message, what is inside.
    contents: Option<&'a [u8]>,
}

/// The fields of a message, in their order; the last is none where the bytes are no message.
fn fields(mut message: &[u8]) -> impl Iterator<Item = Option<Field<'_>>> {
    std::iter::from_fn(move || {
        if message.is_empty() {
            return None;
        }
        let field = first_field(message);
        message = field.as_ref().map_or(&[], |field| &message[field.raw.len()..]);
        Some(field)
    })
}

fn first_field(message: &[u8]) -> Option<Field<'_>> {
    let mut rest = message;
    let (number, wire_type) = decode_key(&mut rest).ok()?;
    let mut contents = None;
    match wire_type {
        WireType::Varint => {
            decode_varint(&mut rest).ok()?;
        }
        WireType::SixtyFourBit => rest = rest.get(8..)?,
        WireType::ThirtyTwoBit => rest = rest.get(4..)?,
        WireType::LengthDelimited => {
            let len = usize::try_from(decode_varint(&mut rest).ok()?).ok()?;
            let inside;
            (inside, rest) = rest.split_at_checked(len)?;
            contents = Some(inside);
        }
        // Groups, which proto3 does not have.
        WireType::StartGroup | WireType::EndGroup => return None,
    }
    Some(Field { number, raw: &message[..message.len() - rest.len()], contents })
}

/// Every message of `tandem.session.storage.v1`, by the protos that this build is made of.
#[cfg(test)]
fn stored_messages() -> Vec<prost_types::DescriptorProto> {
    let set = prost_types::FileDescriptorSet::decode(shared::pb::DESCRIPTORS).unwrap();
    let is_storage = |file: &prost_types::FileDescriptorProto| file.package() == "tandem.session.storage.v1";
    set.file
        .into_iter()
        .filter(is_storage)
        .flat_map(|file| file.message_type)
        .collect()
}

/// The last field number of one of them.
#[cfg(test)]
#[track_caller]
pub(super) fn last_field(message: &str) -> u32 {
    let found = stored_messages().into_iter().find(|found| found.name() == message);
    let found = found.unwrap_or_else(|| panic!("there is no {message}"));
    let fields = found.field.iter().map(prost_types::FieldDescriptorProto::number);
    let reserved = found.reserved_range.iter().flat_map(|range| range.start()..range.end());
    let mut numbers: Vec<_> = fields.chain(reserved).collect();
    numbers.sort_unstable();
    let last = *numbers.last().unwrap();
    assert_eq!(numbers, (1..=last).collect::<Vec<_>>(), "{message} has gaps");
    u32::try_from(last).unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    /// A message of two levels, as this build knows it.
    #[derive(Clone, PartialEq, Message)]
    struct Outer {
        #[prost(message, repeated, tag = "1")]
        inner: Vec<Inner>,
        #[prost(string, tag = "2")]
        name: String,
    }

    #[derive(Clone, PartialEq, Message)]
    struct Inner {
        #[prost(int64, tag = "1")]
        count: i64,
    }

    /// The same as a newer build knows it: more of each kind of field, and a level more.
    #[derive(Clone, PartialEq, Message)]
    struct NewerOuter {
        #[prost(message, repeated, tag = "1")]
        inner: Vec<NewerInner>,
        #[prost(string, tag = "2")]
        name: String,
        #[prost(fixed64, tag = "3")]
        wide: u64,
        #[prost(message, optional, tag = "4")]
        extra: Option<NewerInner>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct NewerInner {
        #[prost(int64, tag = "1")]
        count: i64,
        #[prost(string, repeated, tag = "2")]
        notes: Vec<String>,
        #[prost(fixed32, tag = "3")]
        narrow: u32,
        #[prost(sint64, tag = "536870911")]
        far: i64,
    }

    /// What the older build makes of a message: it reads it, counts up, and writes it again.
    fn rewrite(stored: &[u8]) -> Option<Vec<u8>> {
        let message = open(stored)?;
        let mut outer = Outer::decode(message).ok()?;
        let (of_inner, of_outer) = (newer_in(message, 1, 1)?, newer(message, 2)?);
        let mut written = vec![];
        for (mut inner, newer) in std::mem::take(&mut outer.inner).into_iter().zip(of_inner) {
            inner.count = inner.count.wrapping_add(1);
            put(&mut written, 1, &inner, &newer);
        }
        outer.encode(&mut written).unwrap();
        written.extend(of_outer);
        seal(written).ok()
    }

    fn inner() -> impl Strategy<Value = NewerInner> {
        let parts = (any::<i64>(), vec(".{0,8}", 0..4), any::<u32>(), any::<i64>());
        parts.prop_map(|(count, notes, narrow, far)| NewerInner { count, notes, narrow, far })
    }

    fn outer() -> impl Strategy<Value = NewerOuter> {
        let parts = (vec(inner(), 0..5), ".{0,8}", any::<u64>(), proptest::option::of(inner()));
        parts.prop_map(|(inner, name, wide, extra)| NewerOuter { inner, name, wide, extra })
    }

    proptest! {
        #[test]
        fn an_older_build_keeps_what_a_newer_one_wrote_at_every_level(mut message in outer()) {
            let rewritten = rewrite(&message.encode_to_vec()).unwrap();
            for inner in &mut message.inner {
                inner.count = inner.count.wrapping_add(1);
            }
            prop_assert_eq!(NewerOuter::decode(rewritten.as_slice()).unwrap(), message);
        }

        #[test]
        fn any_bytes_are_fields_or_are_refused(bytes in vec(any::<u8>(), 0..200), number in 0_u32..20, last in 0_u32..20) {
            let found: Vec<_> = fields(&bytes).collect();
            let raw: Vec<u8> = found.iter().flatten().flat_map(|field| field.raw).copied().collect();
            prop_assert!(bytes.starts_with(&raw));
            if found.iter().all(Option::is_some) {
                prop_assert_eq!(&raw, &bytes);
                prop_assert_eq!(newer(&bytes, 0), Some(bytes.clone()));
            } else {
                prop_assert_eq!(newer(&bytes, last), None);
            }
            newer_in(&bytes, number, last);
            rewrite(&bytes);
        }

        #[test]
        fn no_message_begins_as_a_wrapped_format_does(message in outer(), first in 0..WRAPPED, rest in vec(any::<u8>(), 0..9)) {
            let message = message.encode_to_vec();
            prop_assert_eq!(open(&message), Some(message.as_slice()));
            let wrapped = [&[first], rest.as_slice()].concat();
            prop_assert_eq!(open(&wrapped), None);
        }
    }

    #[test]
    fn stored_messages_have_numbers_without_gaps() {
        let messages = stored_messages();
        assert!(!messages.is_empty());
        assert!(messages.iter().all(|message| last_field(message.name()) > 0));
    }

    #[test]
    fn a_section_has_a_largest_size() {
        assert_eq!(seal(vec![8; BYTES_MAX]).map(|sealed| sealed.len()), Ok(BYTES_MAX));
        assert_eq!(seal(vec![8; BYTES_MAX + 1]), Err(TooLarge));
    }
}
