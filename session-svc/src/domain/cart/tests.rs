use std::collections::BTreeMap;

use super::*;
use proptest::prelude::*;
use shared::time::at;
use uuid::Uuid;

pub(in crate::domain) fn cart() -> Cart {
    let (id, shopper) = (CartId::new(at(0), [0; 10]), ShopperId::new(at(0), [0; 10]));
    Cart::new(id, shopper, "web".parse().unwrap(), "EUR".parse().unwrap(), at(0))
}

pub(in crate::domain) fn line(n: u8, quantity: i32, unit_price: i64) -> Line {
    Line {
        id: LineId::new(at(0), [n; 10]),
        sku: format!("sku-{n}"),
        quantity,
        unit_price,
        price_observed_at: at(0),
        created_at: at(0),
        attributes: BTreeMap::new(),
        fulfilment: Fulfilment::Ship,
        catalogue_version: String::new(),
        source: String::new(),
        saved_for_later: false,
        newer: vec![],
    }
}

fn pricing() -> Pricing {
    Pricing {
        price_list: "retail".to_owned(),
        promotions: vec![],
        country: None,
        store: None,
        expires_at: at(100),
        pin: None,
        newer: vec![],
    }
}

fn quantities(cart: &Cart) -> Vec<i32> {
    cart.lines.iter().map(|line| line.quantity).collect()
}

#[test]
fn the_same_article_at_the_same_price_is_one_line() {
    let mut cart = cart();
    let first = cart.add(line(1, 2, 255), at(1)).unwrap();
    assert_eq!(cart.add(Line { id: LineId::new(at(5), [9; 10]), ..line(1, 3, 255) }, at(2)), Ok(first));
    cart.add(Line { id: LineId::new(at(5), [8; 10]), ..line(1, 1, 300) }, at(3))
        .unwrap();
    assert_eq!(quantities(&cart), [5, 1]);
    assert_eq!(cart.total(), 5 * 255 + 300);
}

#[test]
fn what_tells_an_article_apart_is_a_line_of_its_own() {
    let mut cart = cart();
    let named = |value: &str| BTreeMap::from([("engraving".to_owned(), value.to_owned())]);
    let pickup = |store: &str| Fulfilment::Pickup { store: store.to_owned() };
    let kinds = [
        line(1, 1, 255),
        line(1, 1, 300),
        Line { attributes: named("A"), ..line(1, 1, 255) },
        Line { attributes: named("B"), ..line(1, 1, 255) },
        Line { fulfilment: pickup("berlin"), ..line(1, 1, 255) },
        Line { fulfilment: pickup("wien"), ..line(1, 1, 255) },
        Line { fulfilment: Fulfilment::Store, ..line(1, 1, 255) },
        Line { newer: vec![0x70, 1], ..line(1, 1, 255) },
    ];
    for round in 1..3 {
        for (n, kind) in kinds.iter().enumerate() {
            let id = LineId::new(at(round), [u8::try_from(n).unwrap(); 10]);
            let found =
                Line { id, catalogue_version: "v2".to_owned(), source: "search".to_owned(), ..kind.clone() };
            cart.add(found, at(round)).unwrap();
        }
    }
    assert_eq!(quantities(&cart), [2; 8]);
}

#[test]
fn every_operation_has_its_states() {
    type Op = fn(&mut Cart) -> Result<(), Refused>;
    let when_active: [(&str, Op); 11] = [
        ("add", |cart| cart.add(line(2, 1, 1), at(9)).map(drop)),
        ("set", |cart| cart.set_quantity(line(1, 1, 1).id, 7, at(9))),
        ("remove", |cart| cart.remove(line(1, 1, 1).id, at(9))),
        ("move", |cart| cart.move_line(line(1, 1, 1).id, true, at(9)).map(drop)),
        ("refresh", |cart| cart.refresh_prices(&[(line(1, 1, 1).id, 2)], "v2", at(9))),
        ("apply", |cart| cart.apply_code("A".to_owned(), at(9))),
        ("take out", |cart| cart.remove_code("A", at(9))),
        ("discard", |cart| cart.discard(at(9))),
        ("expire", Cart::expire),
        ("begin", |cart| cart.begin_checkout(None, at(9))),
        ("pin", |cart| cart.pin_pricing(pricing())),
    ];
    let in_checkout: [(&str, Op); 2] = [
        ("complete", |cart| cart.complete_checkout("o".into(), at(9)).map(drop)),
        ("fail", |cart| cart.fail_checkout(true, at(9)).map(drop)),
    ];
    let states = [
        State::Active,
        State::Checkout { session: None },
        State::Ordered { order_ref: "o".into() },
        State::Merged { into: CartId::new(at(0), [0; 10]), merge: None },
        State::Expired,
        State::Discarded,
    ];
    let ops = when_active
        .into_iter()
        .map(|op| (op, 0))
        .chain(in_checkout.into_iter().map(|op| (op, 1)));
    for ((name, op), allowed) in ops {
        for (n, state) in states.iter().enumerate() {
            let before = Cart { state: state.clone(), lines: vec![line(1, 1, 1)], ..cart() };
            let mut after = before.clone();
            let outcome = op(&mut after);
            assert_eq!(outcome.is_ok(), n == allowed, "{name} in {state:?}");
            if n != allowed {
                assert_eq!(outcome, Err(Refused::WrongState(state.name())));
                assert_eq!(format!("{after:?}"), format!("{before:?}"), "a refusal changes nothing");
            }
        }
    }
}

#[test]
fn what_is_saved_for_later_is_neither_counted_nor_ordered_and_comes_back() {
    let mut cart = cart();
    for n in [1, 2] {
        cart.add(line(n, 3, 100), at(1)).unwrap();
    }
    let (first, second) = (line(1, 0, 0).id, line(2, 0, 0).id);
    assert_eq!(cart.move_line(first, true, at(2)), Ok(first));
    assert_eq!(cart.total(), 300);
    // More of it goes into the cart, not to what was set aside; brought together it is one line again.
    let added = cart
        .add(Line { id: LineId::new(at(5), [9; 10]), ..line(1, 2, 100) }, at(3))
        .unwrap();
    assert_ne!(added, first);
    assert_eq!(cart.move_line(first, false, at(4)), Ok(added));
    assert_eq!((quantities(&cart), cart.total()), (vec![3, 5], 800));
    assert_eq!(cart.move_line(first, true, at(4)), Err(Refused::NoSuchLine));
    cart.move_line(added, true, at(5)).unwrap();
    cart.begin_checkout(None, at(6)).unwrap();
    let (_, saved) = cart.complete_checkout("o".to_owned(), at(7)).unwrap();
    assert_eq!(saved.iter().map(|line| (line.id, line.quantity)).collect::<Vec<_>>(), [(added, 5)]);
    assert_eq!(cart.lines.iter().map(|line| line.id).collect::<Vec<_>>(), [second]);
}

#[test]
fn a_cart_with_nothing_but_what_was_saved_is_not_checked_out() {
    let mut cart = cart();
    let id = cart.add(line(1, 1, 1), at(1)).unwrap();
    cart.move_line(id, true, at(2)).unwrap();
    assert_eq!(cart.begin_checkout(None, at(3)), Err(Refused::Empty));
}

#[test]
fn a_refresh_of_prices_is_no_activity_and_passes_over_what_is_gone() {
    let mut cart = cart();
    cart.add(line(1, 2, 255), at(1)).unwrap();
    let (here, gone) = (line(1, 0, 0).id, line(2, 0, 0).id);
    cart.refresh_prices(&[(gone, 1), (here, 199)], "v7", at(5)).unwrap();
    let line = &cart.lines[0];
    assert_eq!((line.unit_price, &line.catalogue_version[..], line.price_observed_at), (199, "v7", at(5)));
    assert_eq!((cart.total(), cart.updated_at), (398, at(1)));
}

#[test]
fn a_code_is_there_once_and_there_is_a_limit() {
    let mut cart = cart();
    for code in ["A", "a", "A"] {
        cart.apply_code(code.to_owned(), at(1)).unwrap();
    }
    assert_eq!(cart.codes, ["A", "a"]);
    cart.remove_code("A", at(1)).unwrap();
    cart.remove_code("A", at(1)).unwrap();
    assert_eq!(cart.codes, ["a"]);
    for n in 1..20 {
        cart.apply_code(n.to_string(), at(1)).unwrap();
    }
    assert_eq!(cart.apply_code("more".to_owned(), at(1)), Err(TOO_MANY_CODES));
    assert_eq!(cart.apply_code("a".to_owned(), at(1)), Ok(()));
}

#[test]
fn a_pinned_pricing_lasts_as_long_as_the_visit_and_its_quote() {
    let [mine, other] = [1, 2].map(|n| SessionId::new(at(0), [n; 10]));
    let pricing = Pricing { pin: Some(Pin { session: mine, at: at(10) }), ..pricing() };
    let by = |session, since| Some(Visiting { session, since: at(since) });
    for (asks, now, holds) in [
        (by(mine, 5), 10, true),
        (by(mine, 10), 99, true),
        (by(mine, 50), 60, false), // another visit
        (by(other, 50), 60, true),
        (None, 60, true),
        (None, 100, false), // the quote is over
        (by(mine, 5), 100, false),
    ] {
        assert_eq!(pricing.holds(asks, at(now)), holds, "{asks:?} at {now}");
    }
}

#[test]
fn limits_hold() {
    let mut cart = cart();
    for n in 0..200 {
        cart.add(line(n, 1, 1), at(1)).unwrap();
    }
    assert_eq!(cart.add(line(200, 1, 1), at(1)), Err(Refused::Limit { limit: "lines", max: 200 }));
    assert_eq!(cart.add(line(1, QUANTITY_MAX, 1), at(1)), Err(TOO_MANY));
    assert_eq!(cart.begin_checkout(None, at(1)), Ok(()));
}

#[test]
fn lines_have_a_limit_of_bytes_together() {
    let mut cart = cart();
    let large =
        |n| Line { attributes: BTreeMap::from([("note".to_owned(), "x".repeat(250))]), ..line(n, 1, 1) };
    let refused = (0..200).find_map(|n| cart.add(large(n), at(1)).err());
    assert_eq!(refused, Some(TOO_MANY_BYTES));
}

#[test]
fn an_empty_cart_is_not_checked_out() {
    assert_eq!(cart().begin_checkout(None, at(1)), Err(Refused::Empty));
}

#[test]
fn the_largest_cart_has_an_exact_total() {
    let lines = (0..200).map(|n| line(n, QUANTITY_MAX, UNIT_PRICE_MAX)).collect();
    assert_eq!(Cart { lines, ..cart() }.total(), 2_000_000_000_000_000_000);
}

#[test]
fn of_two_carts_changes_the_newest_of_each_are_remembered() {
    let changes = |range: std::ops::Range<u128>| -> Vec<_> {
        let applied =
            |n| Applied { request_id: Uuid::from_u128(n), body_hash: [0; 16], line: None, newer: vec![] };
        range.map(applied).collect()
    };
    let remembered = |own, theirs| {
        let mut cart = Cart { applied: changes(own), ..cart() };
        cart.remember_all(&changes(theirs));
        let mut ids: Vec<_> = cart.applied.iter().map(|applied| applied.request_id.as_u128()).collect();
        ids.sort_unstable();
        ids
    };
    let ids = |a: std::ops::Range<u128>, b| a.chain(b).collect::<Vec<u128>>();
    assert_eq!(remembered(0..3, 100..102), ids(0..3, 100..102));
    assert_eq!(remembered(0..64, 100..110), ids(10..64, 100..110));
    assert_eq!(remembered(0..64, 100..164), ids(32..64, 132..164));
}

proptest! {
    #[test]
    fn additions_from_several_tabs_are_all_there_in_any_order(adds in proptest::collection::vec((0_u8..5, 1_i32..50), 0..40), seed: u64) {
        let sum = |adds: &[(u8, i32)]| {
            let mut cart = cart();
            for (n, quantity) in adds {
                cart.add(line(*n, *quantity, 10), at(1)).unwrap();
            }
            let mut lines: Vec<_> = cart.lines.into_iter().map(|line| (line.sku, line.quantity)).collect();
            lines.sort();
            lines
        };
        let mut shuffled = adds.clone();
        let len = shuffled.len().max(1);
        shuffled.rotate_left(usize::try_from(seed % len as u64).unwrap());
        shuffled.reverse();
        prop_assert_eq!(sum(&adds), sum(&shuffled));
    }
}
