//! What becomes of an anonymous shopper's cart when it logs in and its subject has one already, and how that is taken back.
//! The carts are of one group and currency; which they are, and what is written, the caller knows.

use std::collections::HashMap;

use chrono::TimeDelta;
use shared::id::{CartId, LineId};
use shared::time::Time;

use super::cart::{
    Applied, CODES_MAX, Cart, LINES_BYTES_MAX, LINES_MAX, Line, Pricing, QUANTITY_MAX, Refused, State,
};

/// For how long a merge can be taken back.
pub const UNDO_WINDOW: TimeDelta = TimeDelta::hours(24);

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

/// What became of the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is in the target, but for so many units that found no room.
    Merged {
        /// How many.
        left_out: i64,
    },
    /// Both are as they were, by the strategy, or as the source ended before.
    KeptApart,
    /// Both are as they were: they are of two stores.
    OtherStore,
}

/// What a merge did to the target, for taking it back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Merge {
    /// When.
    pub at: Time,
    /// By how much its lines grew, new ones from nothing, or shrank.
    pub changes: Vec<(LineId, i64)>,
    /// Lines that went.
    pub replaced: Vec<Line>,
    /// Codes that came.
    pub codes_added: Vec<String>,
    /// Codes that went.
    pub codes_replaced: Vec<String>,
    /// What its prices were made by.
    pub pricing_before: Option<Pricing>,
}

/// Why a merge stands.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Final {
    /// One of the carts is not in the state that this asks for.
    #[error(transparent)]
    State(#[from] Refused),
    /// It was too long ago.
    #[error("the carts were merged more than 24 hours ago")]
    WindowOver,
    /// An older release did it.
    #[error("what the merge did was not recorded")]
    NotRecorded,
}

/// Merges `source` into `target`, which takes over its request ids, too, so that no change is made twice.
pub fn merge(
    target: &mut Cart,
    source: &mut Cart,
    strategy: Strategy,
    now: Time,
) -> Result<Outcome, InCheckout> {
    if !source.state.is_open() {
        return Ok(Outcome::KeptApart);
    }
    let Some(Merged { lines, codes, pricing, left_out }) = merge_contents(target, source, strategy) else {
        return Ok(Outcome::KeptApart);
    };
    if are_of_two_stores(target, source) {
        return Ok(Outcome::OtherStore);
    }
    let is_changed = lines != target.lines || codes != target.codes;
    for (cart, is_changed) in [(&*source, true), (&*target, is_changed)] {
        if is_changed && matches!(cart.state, State::Checkout { .. }) {
            return Err(InCheckout(cart.id));
        }
    }
    let applied: Vec<_> = source.applied.iter().map(|applied| told_of(applied, source, &lines)).collect();
    target.remember_all(&applied);
    let merge = Merge::between(target, &lines, &codes, now);
    if target.newer.is_empty() {
        target.newer.clone_from(&source.newer);
    }
    if is_changed {
        (target.lines, target.codes, target.pricing) = (lines, codes, pricing);
        target.updated_at = now;
    }
    source.state = State::Merged { into: target.id, merge: Some(Box::new(merge)) };
    source.updated_at = now;
    Ok(Outcome::Merged { left_out })
}

/// Takes back what the merge of `source` brought into `target`, as far as it is still there, and opens `source` again.
/// Answers how many units that the merge had taken out of the target found no room there any more.
pub fn undo(target: &mut Cart, source: &mut Cart, now: Time) -> Result<i64, Final> {
    let merge = match &source.state {
        State::Merged { merge, .. } => merge.clone().ok_or(Final::NotRecorded)?,
        State::Active
        | State::Checkout { .. }
        | State::Ordered { .. }
        | State::Expired
        | State::Discarded => return Err(Refused::WrongState(source.state.name()).into()),
    };
    if now >= merge.at + UNDO_WINDOW {
        return Err(Final::WindowOver);
    }
    target.require_active()?;
    let grew: HashMap<_, _> = merge.changes.iter().copied().collect();
    target.lines.retain_mut(|line| {
        let without = i64::from(line.quantity) - grew.get(&line.id).copied().unwrap_or(0);
        let most = i64::from(QUANTITY_MAX);
        line.quantity = i32::try_from(without.clamp(0, most)).unwrap_or(QUANTITY_MAX);
        line.quantity > 0
    });
    let left_out = put_in(&mut target.lines, &merge.replaced, capped_sum);
    target.codes.retain(|code| !merge.codes_added.contains(code));
    put_codes_in(&mut target.codes, &merge.codes_replaced);
    // Unless something else was pinned since.
    if target.pricing == source.pricing {
        target.pricing = merge.pricing_before;
    }
    target.updated_at = now;
    source.state = State::Active;
    source.updated_at = now;
    Ok(left_out)
}

impl Merge {
    /// What makes these lines and codes of the target's.
    fn between(target: &Cart, lines: &[Line], codes: &[String], at: Time) -> Self {
        let quantities = |lines: &[Line]| -> HashMap<_, _> {
            lines.iter().map(|line| (line.id, i64::from(line.quantity))).collect()
        };
        let (before, after) = (quantities(&target.lines), quantities(lines));
        let grew = |line: &Line| (line.id, after[&line.id] - before.get(&line.id).copied().unwrap_or(0));
        let beside = |these: &[String], those: &[String]| -> Vec<_> {
            these.iter().filter(|code| !those.contains(code)).cloned().collect()
        };
        let went = target.lines.iter().filter(|line| !after.contains_key(&line.id));
        Self {
            at,
            changes: lines.iter().map(grew).filter(|(_, quantity)| *quantity != 0).collect(),
            replaced: went.cloned().collect(),
            codes_added: beside(codes, &target.codes),
            codes_replaced: beside(&target.codes, codes),
            pricing_before: target.pricing.clone(),
        }
    }

    /// What it is to give a shopper without a cart this one as it is.
    pub fn handing_over(cart: &Cart, at: Time) -> Self {
        let nothing = Cart { lines: vec![], codes: vec![], pricing: None, ..cart.clone() };
        Self::between(&nothing, &cart.lines, &cart.codes, at)
    }
}

/// Contents of two carts together.
struct Merged {
    lines: Vec<Line>,
    codes: Vec<String>,
    pricing: Option<Pricing>,
    /// Units that found no room.
    left_out: i64,
}

/// Of the quantity that is there and the one that comes: what the line gets, and what is too much.
type Together = fn(i32, i32) -> (i32, i32);

/// None where nothing is taken over. What the target has comes first where there is not room for all.
fn merge_contents(target: &Cart, source: &Cart, strategy: Strategy) -> Option<Merged> {
    let larger: Together = |a, b| (a.max(b), 0);
    let (is_replaced, together): (bool, Together) = match strategy {
        Strategy::SumCapped => (false, capped_sum),
        Strategy::Max => (false, larger),
        Strategy::GuestWins => (false, |_, b| (b, 0)),
        Strategy::UseGuest => (true, larger),
        Strategy::GuestIfExistingEmpty if target.lines.iter().all(|line| line.saved_for_later) => {
            (true, larger)
        }
        Strategy::GuestIfExistingEmpty | Strategy::KeepExisting | Strategy::None => return None,
    };
    let (mut lines, mut codes, mut pricing) =
        (target.lines.clone(), target.codes.clone(), target.pricing.clone());
    if is_replaced {
        lines.retain(|line| line.saved_for_later);
        codes.clear();
        pricing = None;
    }
    let left_out = put_in(&mut lines, &source.lines, together);
    put_codes_in(&mut codes, &source.codes);
    Some(Merged { lines, codes, pricing: pricing.or_else(|| source.pricing.clone()), left_out })
}

fn capped_sum(a: i32, b: i32) -> (i32, i32) {
    ((a + b).min(QUANTITY_MAX), (a + b - QUANTITY_MAX).max(0))
}

/// Puts lines in, in the order that they were first added; answers how many units found no room. Two of them that are the
/// same, as a refresh of prices may make them, stay two.
fn put_in(lines: &mut Vec<Line>, more: &[Line], together: Together) -> i64 {
    let (mut left_out, there) = (0, lines.len());
    let mut bytes: usize = lines.iter().map(Line::bytes_max).sum();
    for line in more {
        if let Some(same) = lines[..there].iter_mut().find(|other| are_one(other, line)) {
            let (quantity, excess) = together(same.quantity, line.quantity);
            same.quantity = quantity;
            same.price_observed_at = same.price_observed_at.max(line.price_observed_at);
            same.created_at = same.created_at.min(line.created_at);
            left_out += i64::from(excess);
        } else if lines.len() < LINES_MAX && bytes + line.bytes_max() <= LINES_BYTES_MAX {
            bytes += line.bytes_max();
            lines.push(line.clone());
        } else {
            left_out += i64::from(line.quantity);
        }
    }
    lines.sort_by_key(|line| line.created_at);
    left_out
}

/// Whether two lines become one: the same, or one that came by a merge that was taken back, whatever became of it since.
fn are_one(one: &Line, other: &Line) -> bool {
    one.id == other.id || one.is_same_as(other)
}

/// Adds codes that are not there, as many as there is room for.
fn put_codes_in(codes: &mut Vec<String>, more: &[String]) {
    for code in more {
        if codes.len() < CODES_MAX && !codes.contains(code) {
            codes.push(code.clone());
        }
    }
}

fn are_of_two_stores(one: &Cart, other: &Cart) -> bool {
    let store = |cart: &'_ Cart| cart.pricing.as_ref().and_then(|pricing| pricing.store.clone());
    store(one).zip(store(other)).is_some_and(|(one, other)| one != other)
}

/// A change of the source as one of the target: about the line that its line went into.
fn told_of(applied: &Applied, source: &Cart, lines: &[Line]) -> Applied {
    let went_into = |id| {
        let line = source.lines.iter().find(|line| line.id == id)?;
        lines.iter().find(|other| are_one(other, line)).map(|other| other.id)
    };
    Applied { line: applied.line.map(|id| went_into(id).unwrap_or(id)), ..applied.clone() }
}

#[cfg(test)]
mod tests;
