use super::{Strategy, *};
use crate::domain::cart::Fulfilment;
use proptest::prelude::*;
use shared::id::{LineId, ShopperId};
use shared::time::at;
use std::collections::BTreeMap;
use uuid::Uuid;

const ALL: [Strategy; 7] = [
    Strategy::SumCapped,
    Strategy::Max,
    Strategy::GuestWins,
    Strategy::UseGuest,
    Strategy::KeepExisting,
    Strategy::GuestIfExistingEmpty,
    Strategy::None,
];

fn cart(n: u8, lines: Vec<Line>) -> Cart {
    let (id, shopper) = (CartId::new(at(0), [n; 10]), ShopperId::new(at(0), [n; 10]));
    let cart = Cart::new(id, shopper, "web".parse().unwrap(), "EUR".parse().unwrap(), at(0));
    Cart { lines, ..cart }
}

/// Lines of these articles, each at one price, added one a second.
fn lines(owner: u8, articles: &BTreeMap<u16, i32>) -> Vec<Line> {
    let line = |(second, (n, quantity)): (usize, (&u16, &i32))| {
        let [high, low] = n.to_be_bytes();
        let created_at = at(i64::try_from(second).unwrap() * 2 + i64::from(owner));
        Line {
            id: LineId::new(at(0), [owner, 0, 0, high, low, 0, 0, 0, 0, 0]),
            sku: format!("sku-{n}"),
            quantity: *quantity,
            unit_price: 255,
            price_observed_at: created_at,
            created_at,
            attributes: BTreeMap::new(),
            fulfilment: Fulfilment::Ship,
            catalogue_version: String::new(),
            source: String::new(),
            saved_for_later: n % 5 == 4,
            newer: vec![],
        }
    };
    articles.iter().enumerate().map(line).collect()
}

fn by_article(cart: &Cart) -> BTreeMap<&str, i32> {
    cart.lines.iter().map(|line| (line.sku.as_str(), line.quantity)).collect()
}

fn units(cart: &Cart) -> i64 {
    cart.lines.iter().map(|line| i64::from(line.quantity)).sum()
}

fn applied(n: u128) -> Applied {
    Applied { request_id: Uuid::from_u128(n), body_hash: [0; 16], line: None, newer: vec![] }
}

/// Few articles and quantities about the limit, so that carts share lines and overflow them; or very many.
fn articles() -> impl proptest::strategy::Strategy<Value = BTreeMap<u16, i32>> {
    let quantity = prop_oneof![1..100, QUANTITY_MAX - 100..=QUANTITY_MAX];
    prop_oneof![
        proptest::collection::btree_map(0_u16..12, quantity.clone(), 0..10),
        proptest::collection::btree_map(0_u16..500, quantity, 100..=LINES_MAX),
    ]
}

/// What a line is expected to have, by what the target had and what came.
fn expected(strategy: Strategy, mine: Option<&i32>, guests: Option<&i32>, is_saved: bool) -> Option<i32> {
    match (strategy, mine, guests) {
        (_, None, None) => panic!("it came from nowhere"),
        (Strategy::UseGuest, Some(_), guests) if !is_saved => guests.copied(),
        (Strategy::SumCapped, Some(a), Some(b)) => Some((a + b).min(QUANTITY_MAX)),
        (Strategy::GuestWins, Some(_), Some(b)) => Some(*b),
        (_, a, b) => a.max(b).copied(),
    }
}

proptest! {
    #[test]
    fn every_strategy_keeps_its_law_and_is_taken_back(mine in articles(), guests in articles()) {
        for strategy in ALL {
            let (existing, guest) = (cart(1, lines(1, &mine)), cart(2, lines(2, &guests)));
            let (mut target, mut source) = (existing.clone(), guest.clone());
            let outcome = merge(&mut target, &mut source, strategy, at(9)).unwrap();
            let (before, came, after) = (by_article(&existing), by_article(&guest), by_article(&target));
            prop_assert!(target.lines.len() <= LINES_MAX);
            prop_assert!(target.lines.is_sorted_by_key(|line| line.created_at));
            let has_nothing = existing.lines.iter().all(|line| line.saved_for_later);
            let does_as = match strategy {
                Strategy::GuestIfExistingEmpty if has_nothing => Strategy::UseGuest,
                Strategy::GuestIfExistingEmpty | Strategy::KeepExisting | Strategy::None => {
                    prop_assert_eq!(outcome, Outcome::KeptApart);
                    prop_assert_eq!((&target.lines, &source.state), (&existing.lines, &State::Active));
                    continue;
                }
                Strategy::SumCapped | Strategy::Max | Strategy::GuestWins | Strategy::UseGuest => strategy,
            };
            for line in &target.lines {
                let sku = line.sku.as_str();
                let expected = expected(does_as, before.get(sku), came.get(sku), line.saved_for_later);
                prop_assert_eq!(Some(line.quantity), expected);
            }
            // What was there stays, unless the guest's takes its place; of what came, what is missing is told.
            let stays = |line: &&Line| does_as != Strategy::UseGuest || line.saved_for_later;
            prop_assert!(existing.lines.iter().filter(stays).all(|line| after.contains_key(&*line.sku)));
            let missing = came.iter().filter(|(sku, _)| !after.contains_key(*sku));
            let mut missing: i64 = missing.map(|(_, quantity)| i64::from(*quantity)).sum();
            if does_as == Strategy::SumCapped {
                missing = units(&existing) + units(&guest) - units(&target);
            }
            prop_assert_eq!(outcome, Outcome::Merged { left_out: missing });
            prop_assert_eq!(&source.lines, &guest.lines, "what was merged can still be seen");
            let ended = source.state.clone();
            let is_recorded = matches!(&ended, State::Merged { into, merge: Some(_) } if *into == target.id);
            prop_assert!(is_recorded);
            // Merged once, however often it is asked for.
            let merged = target.lines.clone();
            prop_assert_eq!(merge(&mut target, &mut source, strategy, at(10)), Ok(Outcome::KeptApart));
            prop_assert_eq!((&target.lines, &source.state), (&merged, &ended));
            prop_assert_eq!(undo(&mut target, &mut source, at(11)), Ok(0));
            prop_assert_eq!(by_article(&target), before);
            prop_assert_eq!((&source.lines, &source.state), (&guest.lines, &State::Active));
            let again = undo(&mut target, &mut source, at(12));
            prop_assert_eq!(again, Err(Final::State(Refused::WrongState("ACTIVE"))));
        }
    }

    #[test]
    fn what_the_shopper_did_since_the_merge_stays_when_it_is_taken_back(
        mine in few(), guests in few(), since in few(), removed in 0_u16..8,
    ) {
        let (mut target, mut source) = (cart(1, lines(1, &mine)), cart(2, lines(2, &guests)));
        merge(&mut target, &mut source, Strategy::SumCapped, at(9)).unwrap();
        for line in lines(3, &since) {
            target.add(line, at(10)).unwrap();
        }
        let gone = target.lines.iter().find(|line| line.sku == format!("sku-{removed}")).map(|line| line.id);
        if let Some(id) = gone {
            target.remove(id, at(10)).unwrap();
        }
        prop_assert_eq!(undo(&mut target, &mut source, at(11)), Ok(0));
        let mut expected = mine;
        for (n, quantity) in since {
            *expected.entry(n).or_default() += quantity;
        }
        expected.remove(&removed);
        let expected = cart(1, lines(1, &expected));
        prop_assert_eq!(by_article(&target), by_article(&expected));
    }
}

/// A handful of articles, far from any limit.
fn few() -> impl proptest::strategy::Strategy<Value = BTreeMap<u16, i32>> {
    proptest::collection::btree_map(0_u16..8, 1..100, 0..6)
}

#[test]
fn a_merge_is_taken_back_for_a_day_and_from_an_active_cart_only() {
    let articles = BTreeMap::from([(1, 2)]);
    let merged = || {
        let (mut target, mut source) = (cart(1, lines(1, &articles)), cart(2, lines(2, &articles)));
        merge(&mut target, &mut source, Strategy::SumCapped, at(0)).unwrap();
        (target, source)
    };
    let refused = |mut target: Cart, mut source: Cart, now| {
        let before = format!("{target:?} {source:?}");
        let outcome = undo(&mut target, &mut source, now).unwrap_err();
        assert_eq!(format!("{target:?} {source:?}"), before, "a refusal changes nothing");
        outcome
    };
    let (target, source) = merged();
    let end = at(0) + UNDO_WINDOW;
    assert_eq!(refused(target.clone(), source.clone(), end), Final::WindowOver);
    let unrecorded = State::Merged { into: target.id, merge: None };
    let older = Cart { state: unrecorded, ..source.clone() };
    assert_eq!(refused(target.clone(), older, at(1)), Final::NotRecorded);
    for state in [State::Checkout { session: None }, State::Ordered { order_ref: "o".into() }, State::Expired]
    {
        let name = state.name();
        let target = Cart { state, ..target.clone() };
        assert_eq!(refused(target, source.clone(), at(1)), Final::State(Refused::WrongState(name)));
    }
    let (mut target, mut source) = (target, source);
    let last = end - TimeDelta::microseconds(1);
    assert_eq!(undo(&mut target, &mut source, last), Ok(0));
    assert_eq!((target.updated_at, source.updated_at), (last, last));
}

#[test]
fn a_cart_that_came_by_a_merge_taken_back_can_be_merged_again() {
    let (mut target, mut source) = (cart(1, vec![]), cart(2, lines(2, &BTreeMap::from([(1, 2)]))));
    merge(&mut target, &mut source, Strategy::SumCapped, at(9)).unwrap();
    let id = target.lines[0].id;
    target.set_quantity(id, 5, at(10)).unwrap();
    target.refresh_prices(&[(id, 199)], "v2", at(10)).unwrap();
    undo(&mut target, &mut source, at(11)).unwrap();
    merge(&mut target, &mut source, Strategy::SumCapped, at(12)).unwrap();
    let found: Vec<_> = target.lines.iter().map(|line| (line.id, line.quantity)).collect();
    assert_eq!(found, [(id, 5)], "no two lines have one id");
}

#[test]
fn codes_come_along_and_go_again() {
    let codes = |codes: &[&str]| -> Vec<String> { codes.iter().map(|code| (*code).to_owned()).collect() };
    for (strategy, expected) in
        [(Strategy::Max, codes(&["A", "B", "C"])), (Strategy::UseGuest, codes(&["B", "C"]))]
    {
        let (mut target, mut source) = (cart(1, vec![]), cart(2, vec![]));
        (target.codes, source.codes) = (codes(&["A", "B"]), codes(&["B", "C"]));
        merge(&mut target, &mut source, strategy, at(9)).unwrap();
        assert_eq!(target.codes, expected);
        undo(&mut target, &mut source, at(10)).unwrap();
        target.codes.sort();
        assert_eq!(target.codes, codes(&["A", "B"]));
    }
}

#[test]
fn carts_of_two_stores_stay_apart() {
    let of = |store: Option<&str>| Pricing {
        price_list: "retail".to_owned(),
        promotions: vec![],
        country: None,
        store: store.map(str::to_owned),
        expires_at: at(99),
        pin: None,
        newer: vec![],
    };
    let articles = BTreeMap::from([(1, 2)]);
    let merged = Outcome::Merged { left_out: 0 };
    for (mine, guests, outcome) in [
        (Some("berlin"), Some("wien"), Outcome::OtherStore),
        (Some("berlin"), Some("berlin"), merged),
        (Some("berlin"), None, merged),
        (None, Some("wien"), merged),
    ] {
        let (mut target, mut source) = (cart(1, lines(1, &articles)), cart(2, lines(2, &articles)));
        (target.pricing, source.pricing) = (Some(of(mine)), Some(of(guests)));
        let before = format!("{target:?} {source:?}");
        assert_eq!(merge(&mut target, &mut source, Strategy::SumCapped, at(9)), Ok(outcome));
        assert_eq!(format!("{target:?} {source:?}") == before, outcome == Outcome::OtherStore);
    }
}

#[test]
fn what_prices_are_made_by_comes_back_unless_something_was_pinned_since() {
    let of = |price_list: &str| Pricing {
        price_list: price_list.to_owned(),
        promotions: vec![],
        country: None,
        store: None,
        expires_at: at(99),
        pin: None,
        newer: vec![],
    };
    for (mine, pinned_since, expected) in
        [(Some("own"), None, Some("own")), (None, None, None), (Some("own"), Some("later"), Some("later"))]
    {
        let articles = BTreeMap::from([(1, 2)]);
        let (mut target, mut source) = (cart(1, vec![]), cart(2, lines(2, &articles)));
        (target.pricing, source.pricing) = (mine.map(of), Some(of("guest's")));
        merge(&mut target, &mut source, Strategy::UseGuest, at(9)).unwrap();
        assert_eq!(target.pricing, Some(of("guest's")));
        if let Some(pinned) = pinned_since {
            target.pricing = Some(of(pinned));
        }
        undo(&mut target, &mut source, at(10)).unwrap();
        assert_eq!(target.pricing, expected.map(of));
        assert_eq!(source.pricing, Some(of("guest's")));
    }
}

#[test]
fn a_price_of_its_own_is_a_line_of_its_own() {
    let articles = BTreeMap::from([(1, 2)]);
    let (mut target, mut source) = (cart(1, lines(1, &articles)), cart(2, lines(2, &articles)));
    source.lines[0].unit_price = 199;
    assert_eq!(
        merge(&mut target, &mut source, Strategy::SumCapped, at(9)),
        Ok(Outcome::Merged { left_out: 0 })
    );
    let found: Vec<_> = target.lines.iter().map(|line| (line.quantity, line.unit_price)).collect();
    assert_eq!(found, [(2, 255), (2, 199)]);
}

#[test]
fn a_checkout_is_in_the_way_where_lines_would_change() {
    let (one, two) = (BTreeMap::from([(1, 1)]), BTreeMap::from([(1, 2)]));
    let paying = State::Checkout { session: None };
    let outcome = |target_pays, source_pays, mine, guests, strategy| {
        let (mut target, mut source) = (cart(1, lines(1, mine)), cart(2, lines(1, guests)));
        if target_pays {
            target.state = paying.clone();
        }
        if source_pays {
            source.state = paying.clone();
        }
        let (lines, states) = (target.lines.clone(), (target.state.clone(), source.state.clone()));
        let outcome = merge(&mut target, &mut source, strategy, at(9));
        if outcome.is_err() {
            assert_eq!((target.lines, (target.state, source.state)), (lines, states));
        }
        outcome
    };
    let [target, source] = [1, 2].map(|n| Err(InCheckout(cart(n, vec![]).id)));
    for strategy in [Strategy::SumCapped, Strategy::Max, Strategy::GuestWins, Strategy::UseGuest] {
        assert_eq!(outcome(true, false, &one, &two, strategy), target, "{strategy:?}");
        assert_eq!(outcome(false, true, &one, &two, strategy), source, "{strategy:?}");
    }
    for strategy in [Strategy::KeepExisting, Strategy::GuestIfExistingEmpty, Strategy::None] {
        assert_eq!(outcome(true, true, &one, &two, strategy), Ok(Outcome::KeptApart), "{strategy:?}");
    }
    assert_eq!(
        outcome(true, false, &two, &one, Strategy::Max),
        Ok(Outcome::Merged { left_out: 0 }),
        "no line changes"
    );
    assert_eq!(outcome(false, true, &two, &one, Strategy::Max), source, "it would end while it is paid");
}

#[test]
fn changes_of_both_are_remembered_and_name_the_line_that_is_there() {
    let articles = BTreeMap::from([(1, 2)]);
    let (mut target, mut source) = (cart(1, lines(1, &articles)), cart(2, lines(2, &articles)));
    source.applied = vec![Applied { line: Some(source.lines[0].id), ..applied(2) }, applied(3)];
    target.applied = vec![applied(1)];
    merge(&mut target, &mut source, Strategy::SumCapped, at(9)).unwrap();
    let line = |n| target.applied(Uuid::from_u128(n)).map(|applied| applied.line);
    assert_eq!((line(1), line(2), line(3)), (Some(None), Some(Some(target.lines[0].id)), Some(None)));
}
