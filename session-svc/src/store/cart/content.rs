//! What a cart's sections hold: its contents, and the record of its merge.

use prost::Message as _;
use shared::id::{LineId, SessionId};
use shared::pb::storage;
use shared::time::from_micros;
use uuid::Uuid;

use crate::domain::cart::{Applied, Cart, Fulfilment, Line, Pin, Pricing};
use crate::domain::merge::Merge;
use crate::store::section;

/// The last field of each message that this build knows.
const CONTENT: u32 = 4;
const LINE: u32 = 12;
const APPLIED: u32 = 3;
const PRICING: u32 = 7;
/// The fields of the contents whose messages may hold what a newer build wrote.
const LINES: u32 = 1;
const APPLIED_REQUESTS: u32 = 2;
const PRICING_CONTEXT: u32 = 4;
/// As [`LINES`], of a merge.
const REPLACED_LINES: u32 = 3;
const PRICING_BEFORE: u32 = 6;

/// What a cart has besides its columns.
pub(super) struct Content {
    pub(super) lines: Vec<Line>,
    pub(super) codes: Vec<String>,
    pub(super) pricing: Option<Pricing>,
    pub(super) applied: Vec<Applied>,
    pub(super) newer: Vec<u8>,
}

/// None where it is corrupt.
pub(super) fn read(stored: &[u8]) -> Option<Content> {
    let message = section::open(stored)?;
    let content = storage::CartContent::decode(message).ok()?;
    let of_lines = section::newer_in(message, LINES, LINE)?;
    let of_applied = section::newer_in(message, APPLIED_REQUESTS, APPLIED)?;
    let of_pricing = section::newer_in(message, PRICING_CONTEXT, PRICING)?.pop();
    let pricing = content.pricing.zip(of_pricing);
    let applied = content.applied_requests.into_iter().zip(of_applied);
    Some(Content {
        lines: read_lines(content.lines, of_lines)?,
        codes: content.codes,
        pricing: match pricing {
            Some((pricing, newer)) => Some(read_pricing(pricing, newer)?),
            None => None,
        },
        applied: applied
            .map(|(applied, newer)| read_applied(applied, newer))
            .collect::<Option<_>>()?,
        newer: section::newer(message, CONTENT)?,
    })
}

pub(super) fn write(cart: &Cart) -> sqlx::Result<Vec<u8>> {
    let mut message = Vec::with_capacity(64 * (1 + cart.lines.len() + cart.applied.len()));
    for line in &cart.lines {
        section::put(&mut message, LINES, &line_of(line), &line.newer);
    }
    for applied in &cart.applied {
        section::put(&mut message, APPLIED_REQUESTS, &applied_of(applied), &applied.newer);
    }
    if let Some(pricing) = &cart.pricing {
        section::put(&mut message, PRICING_CONTEXT, &pricing_of(pricing), &pricing.newer);
    }
    let rest = storage::CartContent { codes: cart.codes.clone(), ..Default::default() };
    message.extend(rest.encode_to_vec());
    message.extend_from_slice(&cart.newer);
    seal(message)
}

/// None where it is corrupt.
pub(super) fn read_merge(stored: &[u8]) -> Option<Merge> {
    let message = section::open(stored)?;
    let record = storage::MergeRecord::decode(message).ok()?;
    let change = |change: storage::LineChange| Some((line_id(&change.line_id)?, change.quantity));
    Some(Merge {
        at: from_micros(record.merged_at_us),
        changes: record.line_changes.into_iter().map(change).collect::<Option<_>>()?,
        replaced: read_lines(record.replaced_lines, section::newer_in(message, REPLACED_LINES, LINE)?)?,
        codes_added: record.added_codes,
        codes_replaced: record.replaced_codes,
        pricing_before: match record
            .pricing_before
            .zip(section::newer_in(message, PRICING_BEFORE, PRICING)?.pop())
        {
            Some((pricing, newer)) => Some(read_pricing(pricing, newer)?),
            None => None,
        },
    })
}

pub(super) fn write_merge(merge: &Merge) -> sqlx::Result<Vec<u8>> {
    let change = |(id, quantity): &(LineId, i64)| storage::LineChange {
        line_id: id.uuid().as_bytes().to_vec(),
        quantity: *quantity,
    };
    let mut message = storage::MergeRecord {
        merged_at_us: merge.at.timestamp_micros(),
        line_changes: merge.changes.iter().map(change).collect(),
        replaced_lines: vec![],
        added_codes: merge.codes_added.clone(),
        replaced_codes: merge.codes_replaced.clone(),
        pricing_before: None,
    }
    .encode_to_vec();
    for line in &merge.replaced {
        section::put(&mut message, REPLACED_LINES, &line_of(line), &line.newer);
    }
    if let Some(pricing) = &merge.pricing_before {
        section::put(&mut message, PRICING_BEFORE, &pricing_of(pricing), &pricing.newer);
    }
    seal(message)
}

fn seal(message: Vec<u8>) -> sqlx::Result<Vec<u8>> {
    section::seal(message).map_err(|error| sqlx::Error::Encode(Box::new(error)))
}

fn line_id(bytes: &[u8]) -> Option<LineId> {
    Some(LineId::from_uuid(Uuid::from_slice(bytes).ok()?))
}

fn read_lines(lines: Vec<storage::CartLine>, newer: Vec<Vec<u8>>) -> Option<Vec<Line>> {
    lines
        .into_iter()
        .zip(newer)
        .map(|(line, newer)| read_line(line, newer))
        .collect()
}

fn read_line(line: storage::CartLine, newer: Vec<u8>) -> Option<Line> {
    Some(Line {
        id: line_id(&line.line_id)?,
        sku: line.sku,
        quantity: line.quantity,
        unit_price: line.unit_price_minor_units,
        price_observed_at: from_micros(line.price_observed_at_us),
        created_at: from_micros(line.created_at_us),
        attributes: line.attributes,
        fulfilment: match line.fulfilment {
            0 => Fulfilment::Ship,
            1 => Fulfilment::Pickup { store: line.store_id },
            2 => Fulfilment::Store,
            number => Fulfilment::Newer(number, line.store_id),
        },
        catalogue_version: line.catalogue_version,
        source: line.source,
        saved_for_later: line.is_saved_for_later,
        newer,
    })
}

fn line_of(line: &Line) -> storage::CartLine {
    let (fulfilment, store) = match &line.fulfilment {
        Fulfilment::Ship => (0, ""),
        Fulfilment::Pickup { store } => (1, store.as_str()),
        Fulfilment::Store => (2, ""),
        Fulfilment::Newer(number, store) => (*number, store.as_str()),
    };
    storage::CartLine {
        line_id: line.id.uuid().as_bytes().to_vec(),
        sku: line.sku.clone(),
        quantity: line.quantity,
        unit_price_minor_units: line.unit_price,
        price_observed_at_us: line.price_observed_at.timestamp_micros(),
        created_at_us: line.created_at.timestamp_micros(),
        attributes: line.attributes.clone(),
        fulfilment,
        store_id: store.to_owned(),
        catalogue_version: line.catalogue_version.clone(),
        source: line.source.clone(),
        is_saved_for_later: line.saved_for_later,
    }
}

fn read_applied(applied: storage::AppliedRequest, newer: Vec<u8>) -> Option<Applied> {
    Some(Applied {
        request_id: Uuid::from_slice(&applied.request_id).ok()?,
        body_hash: applied.body_hash.try_into().ok()?,
        line: if applied.line_id.is_empty() { None } else { Some(line_id(&applied.line_id)?) },
        newer,
    })
}

fn applied_of(applied: &Applied) -> storage::AppliedRequest {
    storage::AppliedRequest {
        request_id: applied.request_id.as_bytes().to_vec(),
        body_hash: applied.body_hash.to_vec(),
        line_id: applied.line.map(|line| line.uuid().as_bytes().to_vec()).unwrap_or_default(),
    }
}

fn read_pricing(pricing: storage::PricingContext, newer: Vec<u8>) -> Option<Pricing> {
    let said = |text: String| Some(text).filter(|text| !text.is_empty());
    let pin = if pricing.session_id.is_empty() {
        None
    } else {
        let session = SessionId::from_uuid(Uuid::from_slice(&pricing.session_id).ok()?);
        Some(Pin { session, at: from_micros(pricing.pinned_at_us) })
    };
    Some(Pricing {
        price_list: pricing.price_list,
        promotions: pricing.promotions,
        country: said(pricing.country_code),
        store: said(pricing.store_id),
        expires_at: from_micros(pricing.expires_at_us),
        pin,
        newer,
    })
}

fn pricing_of(pricing: &Pricing) -> storage::PricingContext {
    storage::PricingContext {
        price_list: pricing.price_list.clone(),
        promotions: pricing.promotions.clone(),
        country_code: pricing.country.clone().unwrap_or_default(),
        store_id: pricing.store.clone().unwrap_or_default(),
        expires_at_us: pricing.expires_at.timestamp_micros(),
        session_id: pricing
            .pin
            .map(|pin| pin.session.uuid().as_bytes().to_vec())
            .unwrap_or_default(),
        pinned_at_us: pricing.pin.map_or(0, |pin| pin.at.timestamp_micros()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::cart::{CODES_MAX, LINES_BYTES_MAX, LINES_MAX, QUANTITY_MAX, UNIT_PRICE_MAX};
    use crate::store::section::last_field;
    use shared::id::{CartId, ShopperId};
    use shared::time::at;
    use std::collections::BTreeMap;

    fn cart() -> Cart {
        let (id, shopper) = (CartId::new(at(0), [0; 10]), ShopperId::new(at(0), [0; 10]));
        Cart::new(id, shopper, "web".parse().unwrap(), "EUR".parse().unwrap(), at(0))
    }

    fn line(n: u8) -> Line {
        Line {
            id: LineId::new(at(i64::from(n)), [n; 10]),
            sku: format!("sku-{n}"),
            quantity: QUANTITY_MAX,
            unit_price: UNIT_PRICE_MAX,
            price_observed_at: at(4_000_000_000),
            created_at: at(4_000_000_000),
            attributes: BTreeMap::new(),
            fulfilment: Fulfilment::Ship,
            catalogue_version: String::new(),
            source: String::new(),
            saved_for_later: true,
            newer: vec![],
        }
    }

    #[test]
    fn this_build_knows_the_fields_of_its_protos() {
        let known = [
            ("CartContent", CONTENT),
            ("CartLine", LINE),
            ("AppliedRequest", APPLIED),
            ("PricingContext", PRICING),
        ];
        for (message, last) in known {
            assert_eq!(last_field(message), last, "{message}");
        }
    }

    /// What a newer build wrote: field 99, a number.
    const NEWER: [u8; 3] = [0x98, 0x06, 1];

    /// A cart with everything at its limit; its lines are as many as there is room for.
    fn largest() -> Cart {
        let mut cart = cart();
        let wide = "\u{10ffff}";
        for n in 0..LINES_MAX {
            let name = |i| (format!("{i:02}{}", wide.repeat(20)), wide.repeat(40));
            let attributes = (0..n % 32).map(name).collect();
            let fulfilment = Fulfilment::Newer(-1, wide.repeat(n % 64));
            let line =
                Line { attributes, fulfilment, newer: NEWER.repeat(n % 3), ..line(u8::try_from(n).unwrap()) };
            if cart.add(line, at(1)).is_err() {
                break;
            }
        }
        cart.codes = (0..CODES_MAX).map(|n| format!("{n:02}{}", wide.repeat(62))).collect();
        let session = SessionId::new(at(0), [0; 10]);
        cart.pricing = Some(Pricing {
            price_list: wide.repeat(64),
            promotions: vec![wide.repeat(64); 20],
            country: Some("DE".to_owned()),
            store: Some(wide.repeat(64)),
            expires_at: at(4_000_000_000),
            pin: Some(Pin { session, at: at(4_000_000_000) }),
            newer: vec![],
        });
        for n in 1..100 {
            let line = Some(cart.lines[0].id);
            cart.remember(Applied {
                request_id: Uuid::from_u128(n),
                body_hash: [0xff; 16],
                line,
                newer: vec![],
            });
        }
        cart
    }

    #[test]
    fn the_largest_cart_and_the_record_of_its_merge_fit_into_a_section() {
        let cart = largest();
        let bytes: usize = cart.lines.iter().map(Line::bytes_max).sum();
        assert!(bytes > LINES_BYTES_MAX - 16 * 1024, "{bytes} bytes are a large cart");
        let mut alone = Cart { codes: vec![], pricing: None, applied: vec![], ..cart.clone() };
        assert!(write(&alone).unwrap().len() <= bytes);
        write(&cart).unwrap();
        let mut merge = Merge::handing_over(&cart, at(4_000_000_000));
        (merge.replaced, merge.codes_replaced) = (cart.lines.clone(), cart.codes.clone());
        merge.pricing_before.clone_from(&cart.pricing);
        merge.changes = vec![(cart.lines[0].id, i64::from(QUANTITY_MAX)); LINES_MAX];
        let read = read_merge(&write_merge(&merge).unwrap());
        assert!(read == Some(merge), "it is read as it was written");
        alone.newer = NEWER.repeat(22 * 1024);
        assert!(write(&alone).is_err(), "what does not fit is not cut off");
    }

    #[test]
    fn what_is_written_is_read() {
        let cart = largest();
        let content = read(&write(&cart).unwrap()).unwrap();
        assert_eq!((content.lines, content.codes), (cart.lines, cart.codes));
        assert_eq!(
            (content.pricing, content.applied, content.newer),
            (cart.pricing, cart.applied, cart.newer)
        );
    }
}
