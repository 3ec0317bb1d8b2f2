//! What becomes of an anonymous shopper's cart when it logs in and its subject has one already. The carts are of one group
//! and currency; which they are, and what is written, the caller knows.

use shared::id::CartId;
use shared::time::Time;

use super::cart::{Applied, Cart, LINES_MAX, Line, QUANTITY_MAX, State};

/// How two carts of one currency become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strategy {
    /// Adds quantities, up to the limit of a line.
    SumCapped,
    /// Takes the larger quantity.
    Max,
    /// Takes the guest's quantity; lines that only the subject has stay.
    GuestWins,
    /// The guest's cart takes the place of the subject's.
    UseGuest,
    /// The subject's cart stays as it is.
    KeepExisting,
    /// As `UseGuest` where the subject's cart is empty, else as `KeepExisting`.
    GuestIfExistingEmpty,
    /// They stay apart.
    None,
}

impl Strategy {
    /// As events name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::SumCapped => "SUM_CAPPED",
            Self::Max => "MAX",
            Self::GuestWins => "GUEST_WINS",
            Self::UseGuest => "USE_GUEST",
            Self::KeepExisting => "KEEP_EXISTING",
            Self::GuestIfExistingEmpty => "GUEST_IF_EXISTING_EMPTY",
            Self::None => "NONE",
        }
    }
}

/// A merge would change the lines of this cart, which is being paid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the cart {0} is in checkout: complete or fail the checkout first, then log in")]
pub struct InCheckout(pub CartId);

/// Lines of two carts together.
struct Merged {
    lines: Vec<Line>,
    /// Units that found no room.
    left_out: i64,
}

/// Merges `source` into `target`, which takes over its request ids, too, so that no change is made twice. Answers how many
/// units found no room; or none where the strategy takes nothing over, or the source ended before, and both stay as they
/// are.
pub fn merge(
    target: &mut Cart,
    source: &mut Cart,
    strategy: Strategy,
    now: Time,
) -> Result<Option<i64>, InCheckout> {
    if matches!(source.state, State::Ordered { .. } | State::Merged { .. } | State::Expired) {
        return Ok(None);
    }
    let Some(Merged { lines, left_out }) = merge_lines(&target.lines, &source.lines, strategy) else {
        return Ok(None);
    };
    let is_changed = lines != target.lines;
    for (cart, is_changed) in [(&*source, true), (&*target, is_changed)] {
        if is_changed && matches!(cart.state, State::Checkout { .. }) {
            return Err(InCheckout(cart.id));
        }
    }
    let applied: Vec<_> = source.applied.iter().map(|applied| told_of(applied, source, &lines)).collect();
    target.remember_all(&applied);
    if is_changed {
        target.lines = lines;
        target.updated_at = now;
    }
    source.state = State::Merged { into: target.id };
    source.updated_at = now;
    Ok(Some(left_out))
}

/// None where nothing is taken over. What the target has comes first where there is not room for all.
fn merge_lines(target: &[Line], source: &[Line], strategy: Strategy) -> Option<Merged> {
    // Of the target's quantity and the source's: what the line gets, and what is too much.
    let together: fn(i32, i32) -> (i32, i32) = match strategy {
        Strategy::SumCapped => |a, b| ((a + b).min(QUANTITY_MAX), (a + b - QUANTITY_MAX).max(0)),
        Strategy::Max => |a, b| (a.max(b), 0),
        Strategy::GuestWins => |_, b| (b, 0),
        Strategy::GuestIfExistingEmpty if !target.is_empty() => return None,
        Strategy::UseGuest | Strategy::GuestIfExistingEmpty => {
            return Some(Merged { lines: source.to_vec(), left_out: 0 });
        }
        Strategy::KeepExisting | Strategy::None => return None,
    };
    let (mut lines, mut left_out) = (target.to_vec(), 0);
    for line in source {
        if let Some(same) = lines.iter_mut().find(|other| other.is_same_as(line)) {
            let (quantity, excess) = together(same.quantity, line.quantity);
            same.quantity = quantity;
            same.price_observed_at = same.price_observed_at.max(line.price_observed_at);
            same.created_at = same.created_at.min(line.created_at);
            left_out += i64::from(excess);
        } else if lines.len() < LINES_MAX {
            lines.push(line.clone());
        } else {
            left_out += i64::from(line.quantity);
        }
    }
    lines.sort_by_key(|line| line.created_at);
    Some(Merged { lines, left_out })
}

/// A change of the source as one of the target: about the line that its line went into.
fn told_of(applied: &Applied, source: &Cart, lines: &[Line]) -> Applied {
    let went_into = |id| {
        let line = source.lines.iter().find(|line| line.id == id)?;
        lines.iter().find(|other| other.is_same_as(line)).map(|other| other.id)
    };
    Applied { line: applied.line.map(|id| went_into(id).unwrap_or(id)), ..applied.clone() }
}

#[cfg(test)]
mod tests {
    use super::{Strategy, *};
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
        Cart {
            id: CartId::new(at(0), [n; 10]),
            shopper: ShopperId::new(at(0), [n; 10]),
            group: "web".parse().unwrap(),
            currency: "EUR".parse().unwrap(),
            state: State::Active,
            lines,
            applied: vec![],
            created_at: at(0),
            updated_at: at(1),
            version: 1,
            touchpoint: None,
            abandonment: crate::domain::abandonment::Abandonment::default(),
        }
    }

    /// Lines of these articles, each at one price, added one a second.
    fn lines(owner: u8, articles: &BTreeMap<u16, i32>) -> Vec<Line> {
        let line = |(second, (n, quantity)): (usize, (&u16, &i32))| {
            let [high, low] = n.to_be_bytes();
            let created_at = at(i64::try_from(second).unwrap() * 2 + i64::from(owner));
            Line {
                id: LineId::new(at(0), [owner, high, low, 0, 0, 0, 0, 0, 0, 0]),
                sku: format!("sku-{n}"),
                quantity: *quantity,
                unit_price: 255,
                price_observed_at: created_at,
                created_at,
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
        Applied { request_id: Uuid::from_u128(n), body_hash: [0; 16], line: None }
    }

    /// Few articles and quantities about the limit, so that carts share lines and overflow them; or very many.
    fn articles() -> impl proptest::strategy::Strategy<Value = BTreeMap<u16, i32>> {
        let quantity = prop_oneof![1..100, QUANTITY_MAX - 100..=QUANTITY_MAX];
        prop_oneof![
            proptest::collection::btree_map(0_u16..12, quantity.clone(), 0..10),
            proptest::collection::btree_map(0_u16..500, quantity, 100..=LINES_MAX),
        ]
    }

    proptest! {
        #[test]
        fn every_strategy_keeps_its_law(mine in articles(), guests in articles()) {
            for strategy in ALL {
                let (existing, guest) = (cart(1, lines(1, &mine)), cart(2, lines(2, &guests)));
                let (mut target, mut source) = (existing.clone(), guest.clone());
                let left_out = merge(&mut target, &mut source, strategy, at(9)).unwrap();
                let (before, came, after) = (by_article(&existing), by_article(&guest), by_article(&target));
                prop_assert!(target.lines.len() <= LINES_MAX);
                prop_assert!(target.lines.is_sorted_by_key(|line| line.created_at));
                let stays_apart = match strategy {
                    Strategy::SumCapped => {
                        prop_assert_eq!(units(&existing) + units(&guest), units(&target) + left_out.unwrap());
                        false
                    }
                    Strategy::Max | Strategy::GuestWins => {
                        for (sku, quantity) in &after {
                            let expected = match (before.get(sku), came.get(sku)) {
                                (Some(a), Some(b)) if strategy == Strategy::Max => a.max(b),
                                (_, Some(b)) => b,
                                (Some(a), None) => a,
                                (None, None) => panic!("{sku} came from nowhere"),
                            };
                            prop_assert_eq!(quantity, expected);
                        }
                        prop_assert!(before.keys().all(|sku| after.contains_key(sku)));
                        let missing = came.iter().filter(|(sku, _)| !after.contains_key(*sku));
                        let missing: i64 = missing.map(|(_, quantity)| i64::from(*quantity)).sum();
                        prop_assert_eq!(left_out, Some(missing));
                        false
                    }
                    Strategy::UseGuest => {
                        prop_assert_eq!((&target.lines, left_out), (&guest.lines, Some(0)));
                        false
                    }
                    Strategy::GuestIfExistingEmpty if existing.lines.is_empty() => {
                        prop_assert_eq!((&target.lines, left_out), (&guest.lines, Some(0)));
                        false
                    }
                    Strategy::GuestIfExistingEmpty | Strategy::KeepExisting | Strategy::None => true,
                };
                if stays_apart {
                    prop_assert_eq!(left_out, None);
                    prop_assert_eq!((&target.lines, &source.state), (&existing.lines, &State::Active));
                } else {
                    prop_assert_eq!(&source.state, &State::Merged { into: target.id });
                    prop_assert_eq!(&source.lines, &guest.lines, "what was merged can still be seen");
                }
            }
        }

        #[test]
        fn the_same_source_is_merged_once(mine in articles(), guests in articles()) {
            for strategy in ALL {
                let (mut target, mut source) = (cart(1, lines(1, &mine)), cart(2, lines(2, &guests)));
                merge(&mut target, &mut source, strategy, at(9)).unwrap();
                let (lines, state) = (target.lines.clone(), source.state.clone());
                prop_assert_eq!(merge(&mut target, &mut source, strategy, at(10)), Ok(None));
                prop_assert_eq!((target.lines, source.state), (lines, state));
            }
        }
    }

    #[test]
    fn a_price_of_its_own_is_a_line_of_its_own() {
        let articles = BTreeMap::from([(1, 2)]);
        let (mut target, mut source) = (cart(1, lines(1, &articles)), cart(2, lines(2, &articles)));
        source.lines[0].unit_price = 199;
        assert_eq!(merge(&mut target, &mut source, Strategy::SumCapped, at(9)), Ok(Some(0)));
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
            assert_eq!(outcome(true, true, &one, &two, strategy), Ok(None), "{strategy:?}");
        }
        assert_eq!(outcome(true, false, &two, &one, Strategy::Max), Ok(Some(0)), "no line changes");
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
}
