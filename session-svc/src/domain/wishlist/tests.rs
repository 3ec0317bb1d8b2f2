//! What wishlists and their guests do.

use std::collections::BTreeMap;

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use shared::time::at;

use super::*;

fn wishlist(items: impl IntoIterator<Item = Item>) -> Wishlist {
    Wishlist {
        id: WishlistId::new(at(0), [1; 10]),
        shopper: ShopperId::new(at(0), [1; 10]),
        title: Title::default(),
        visibility: Visibility::Private,
        items: items.into_iter().collect(),
        newer: vec![],
        created_at: at(0),
        updated_at: at(0),
        version: 1,
    }
}

fn item(sku: &str, desired_quantity: i32) -> Item {
    Item {
        sku: sku.to_owned(),
        desired_quantity,
        priority: 2,
        note: String::new(),
        noted_at: None,
        price: None,
        added_at: at(0),
        notify_on: vec![],
        guests: vec![],
        newer: vec![],
    }
}

fn guest(n: u8, session: Option<u8>, quantity: i32) -> Guest {
    Guest {
        shopper: ShopperId::new(at(0), [n; 10]),
        session: session.map(|n| SessionId::new(at(0), [n; 10])),
        quantity,
        name: String::new(),
        noted_at: at(1),
        newer: vec![],
    }
}

#[test]
fn an_article_added_again_keeps_its_beginnings() {
    let euros = Some(("EUR".parse().unwrap(), 500));
    let mut list = wishlist([Item { price: euros, guests: vec![guest(1, None, 1)], ..item("a", 1) }]);
    let again = Item { note: "size M".to_owned(), priority: 3, added_at: at(9), ..item("a", 4) };
    list.add(again, at(9)).unwrap();
    let expected = Item {
        price: euros,
        note: "size M".to_owned(),
        noted_at: Some(at(9)),
        priority: 3,
        guests: vec![guest(1, None, 1)],
        ..item("a", 4)
    };
    assert_eq!(list.items, [expected]);
}

#[test]
fn limits_hold() {
    let mut list = wishlist((0..200).map(|n| item(&n.to_string(), 1_000_000)));
    assert_eq!(list.add(item("new", 1), at(1)), Err(Refused::Limit { limit: "items", max: 200 }));
    assert_eq!(list.add(item("7", 60), at(1)), Ok(()));
    for n in 0..50 {
        list.note_interest("7", guest(n, None, 1)).unwrap();
    }
    let limit = Err(Refused::Limit { limit: "guests", max: 50 });
    assert_eq!(list.note_interest("7", guest(50, None, 1)), limit);
    assert_eq!(list.note_interest("7", guest(49, None, 2)), Ok(()), "a guest who is there already");
}

#[test]
fn two_guests_do_not_buy_the_same() {
    let mut list = wishlist([item("a", 2)]);
    list.note_interest("a", guest(1, Some(1), 2)).unwrap();
    assert_eq!(list.note_interest("a", guest(2, None, 1)), Err(Refused::Taken { open: 0 }));
    list.note_interest("a", guest(1, Some(1), 1)).unwrap();
    list.note_interest("a", guest(2, None, 1)).unwrap();
    assert_eq!((list.items[0].noted_quantity(), list.items[0].open_quantity()), (2, 0));
    // The first logged in meanwhile, and is another shopper in the same session.
    list.note_interest("a", guest(3, Some(1), 0)).unwrap();
    assert_eq!(list.items[0].guests, [guest(2, None, 1)]);
    assert_eq!(list.note_interest("b", guest(1, None, 1)), Err(Refused::NoSuchItem));
}

#[test]
fn whoever_buys_may_buy_fewer_though_fewer_are_wished_for() {
    let mut list = wishlist([item("a", 5)]);
    list.note_interest("a", guest(1, None, 5)).unwrap();
    let fewer = ItemChange { desired_quantity: Some(1), ..ItemChange::default() };
    list.change("a", fewer, at(1)).unwrap();
    assert_eq!(list.items[0].open_quantity(), 0);
    assert_eq!(list.note_interest("a", guest(1, None, 3)), Ok(()));
    assert_eq!(list.note_interest("a", guest(1, None, 4)), Err(Refused::Taken { open: 1 }));
}

#[test]
fn the_newest_note_wins_and_the_earliest_addition() {
    let price = |amount| Some(("EUR".parse().unwrap(), amount));
    let noted = |note: &str, noted: i64, added: i64, amount| Item {
        note: note.to_owned(),
        noted_at: Some(at(noted)),
        added_at: at(added),
        price: price(amount),
        ..item("a", 1)
    };
    let (old, new) = (noted("old", 1, 7, 100), noted("new", 2, 9, 200));
    for (mine, theirs) in [(&old, &new), (&new, &old)] {
        let mut merged = wishlist([mine.clone()]);
        merged.merge(&mut wishlist([theirs.clone()]), at(9));
        assert_eq!(merged.items, [noted("new", 2, 7, 100)]);
    }
}

#[test]
fn what_finds_no_room_is_left() {
    let mut mine = wishlist((0..199).map(|n| item(&n.to_string(), 1)));
    let mut theirs = wishlist(["a", "7", "b"].map(|sku| item(sku, 3)));
    mine.merge(&mut theirs, at(1));
    assert_eq!(theirs.items, [item("b", 3)]);
    assert_eq!((mine.items.len(), mine.items[7].desired_quantity), (200, 3));
}

fn items() -> impl Strategy<Value = Vec<Item>> {
    let parts = ("[a-c]{0,2}", proptest::option::of(1_i64..5), 1_i32..9, 1..4, vec(1..3, 0..3), 0_i64..9);
    let one = parts.prop_map(|(note, noted_at, desired_quantity, priority, mut notify_on, added)| {
        notify_on.sort_unstable();
        notify_on.dedup();
        let note = if noted_at.is_some() { note } else { String::new() };
        let noted_at = noted_at.map(at);
        Item { note, noted_at, priority, notify_on, added_at: at(added), ..item("", desired_quantity) }
    });
    let named =
        |map: BTreeMap<String, Item>| map.into_iter().map(|(sku, item)| Item { sku, ..item }).collect();
    btree_map("[a-h]", one, 0..8).prop_map(named)
}

fn union(mine: &[Item], theirs: &[Item]) -> Vec<Item> {
    let mut merged = wishlist(mine.to_vec());
    merged.merge(&mut wishlist(theirs.to_vec()), at(9));
    merged.items.sort_by(|a, b| a.sku.cmp(&b.sku));
    merged.items
}

proptest! {
    #[test]
    fn a_merge_is_a_union(a in items(), b in items(), c in items()) {
        let both = union(&a, &b);
        let skus = |items: &[Item]| items.iter().map(|item| item.sku.clone()).collect::<std::collections::BTreeSet<_>>();
        prop_assert_eq!(skus(&both), skus(&a).union(&skus(&b)).cloned().collect());
        prop_assert_eq!(both.len(), skus(&both).len());
        prop_assert_eq!(&union(&both, &b), &both, "once is enough");
        prop_assert_eq!(&union(&a, &a), &union(&a, &[]), "with itself it is itself");
        prop_assert_eq!(&union(&b, &a), &both, "either way round");
        prop_assert_eq!(union(&both, &c), union(&a, &union(&b, &c)), "in any grouping");
    }

    #[test]
    fn guests_never_buy_more_than_is_wished_for(desired in 1_i32..20, notes in vec((0_u8..5, 0_i32..9), 0..40)) {
        let (mut list, mut buying) = (wishlist([item("a", desired)]), BTreeMap::new());
        for (n, quantity) in notes {
            if list.note_interest("a", guest(n, None, quantity)).is_ok() {
                buying.insert(n, quantity);
            }
            prop_assert_eq!(list.items[0].noted_quantity(), buying.values().sum::<i32>());
            prop_assert!(list.items[0].noted_quantity() <= desired);
        }
    }
}
