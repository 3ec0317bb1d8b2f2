//! How results look: a table or sentences for people, JSON for programs. Colours are `console`'s, which leaves them off where
//! nobody looks, or where `NO_COLOR` is set.

use std::fmt::Display;

use console::{Alignment, Style, measure_text_width, pad_str};
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor};
use serde::Serialize;
use shared::pb;
use shared::time::from_proto;

use crate::error::Error;
use crate::term;

/// In which form to answer.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Output {
    /// Answer in JSON, as the service's messages are in grpcurl; lists are arrays of them
    #[arg(long)]
    pub(crate) json: bool,
}

/// Columns, each as wide as what is in it; the last is not padded. Without a row, that sentence.
pub(crate) fn table<const N: usize>(head: [&str; N], rows: &[[String; N]], none: &str) {
    if rows.is_empty() {
        return term::say(none);
    }
    for line in columns(head, rows) {
        term::say(line);
    }
}

/// The lines of a table.
pub(crate) fn columns<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> Vec<String> {
    let mut widths = head.map(measure_text_width);
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(measure_text_width(cell));
        }
    }
    let line = |cells: [&str; N]| {
        let padded = cells
            .iter()
            .zip(widths)
            .map(|(cell, width)| pad_str(cell, width, Alignment::Left, None));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let head = Style::new().dim().apply_to(line(head)).to_string();
    let rows = rows.iter().map(|row| line(row.each_ref().map(String::as_str)));
    std::iter::once(head).chain(rows).collect()
}

/// A message of that full name, as protobuf's JSON.
pub(crate) fn json(name: &str, message: &impl Message) -> Result<(), Error> {
    write(&dynamic(&descriptor(name)?, message)?)
}

/// The same in one line, as one of many that are told one after the other.
pub(crate) fn json_line(name: &str, message: &impl Message) -> Result<(), Error> {
    let message = dynamic(&descriptor(name)?, message)?;
    term::say(serde_json::to_string(&message).map_err(|error| in_json(&error))?);
    Ok(())
}

/// Messages of that full name, as an array, which is empty where there are none.
pub(crate) fn json_list(name: &str, messages: &[impl Message]) -> Result<(), Error> {
    let descriptor = descriptor(name)?;
    let all = messages.iter().map(|message| dynamic(&descriptor, message));
    write(&all.collect::<Result<Vec<_>, _>>()?)
}

fn descriptor(name: &str) -> Result<MessageDescriptor, Error> {
    let pool = DescriptorPool::decode(pb::DESCRIPTORS).map_err(|error| in_json(&error))?;
    pool.get_message_by_name(name)
        .ok_or_else(|| in_json(&format_args!("{name} is not known")))
}

fn dynamic(descriptor: &MessageDescriptor, message: &impl Message) -> Result<DynamicMessage, Error> {
    let bytes = message.encode_to_vec();
    DynamicMessage::decode(descriptor.clone(), bytes.as_slice()).map_err(|error| in_json(&error))
}

fn write(value: &impl Serialize) -> Result<(), Error> {
    term::say(serde_json::to_string_pretty(value).map_err(|error| in_json(&error))?);
    Ok(())
}

fn in_json(why: &dyn Display) -> Error {
    Error::Failed(format!("this cannot be told in JSON: {why}"))
}

/// An instant, in UTC to the minute; `-` for none.
pub(crate) fn instant(time: Option<prost_types::Timestamp>) -> String {
    let time = time.and_then(from_proto);
    time.map_or_else(|| "-".to_owned(), |time| time.format("%Y-%m-%d %H:%MZ").to_string())
}

/// An enum's value without the name of the enum.
pub(crate) fn short<'a>(name: &'a str, prefix: &str) -> &'a str {
    name.strip_prefix(prefix).unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instant_is_in_utc_and_none_is_a_dash() {
        let time = prost_types::Timestamp { seconds: 1_795_445_999, nanos: 0 };
        assert_eq!(instant(Some(time)), "2026-11-23 14:59Z");
        assert_eq!(instant(None), "-");
    }

    #[test]
    fn every_message_that_is_shown_is_known_by_its_name() {
        let pool = DescriptorPool::decode(pb::DESCRIPTORS).unwrap();
        for name in [
            "Release",
            "ExplainReleaseResponse",
            "BreakGlass",
            "Rollout",
            "GetRolloutResponse",
            "WatchRolloutResponse",
            "RollBackRolloutResponse",
        ] {
            assert!(pool.get_message_by_name(&format!("tandem.release.v1.{name}")).is_some(), "{name}");
        }
    }
}
