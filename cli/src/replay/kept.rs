//! What a cart must hold, by what was acknowledged, compared with what it holds.

use std::collections::BTreeMap;

use shared::pb::session::{Cart, CartLine, CartState};

use super::CURRENCY;
use super::call::Refused;
use super::data::InvoiceLine;
use super::report::Promises;

/// By article and price, as the cart merges lines that have both in common.
type Quantities = BTreeMap<(String, i64), i64>;

/// What was acknowledged of one cart.
pub(crate) struct KeptCart {
    pub(crate) shopper_id: String,
    pub(crate) cart_id: String,
    /// Whether it may have left the state in which it is the shopper's open cart.
    pub(crate) at_checkout: bool,
    /// Set once its order was acknowledged.
    pub(crate) order_ref: Option<String>,
    lines: Quantities,
    /// Of a line that was given up, so that nobody knows: it may be there or not.
    doubtful: Quantities,
}

impl KeptCart {
    /// Nothing yet.
    pub(crate) fn new(shopper_id: String) -> Self {
        Self {
            shopper_id,
            cart_id: String::new(),
            at_checkout: false,
            order_ref: None,
            lines: Quantities::new(),
            doubtful: Quantities::new(),
        }
    }

    /// A line was acknowledged.
    pub(crate) fn keep(&mut self, line: &InvoiceLine) {
        add(&mut self.lines, line);
    }

    /// A line was neither acknowledged nor refused.
    pub(crate) fn doubt(&mut self, line: &InvoiceLine) {
        add(&mut self.doubtful, line);
    }

    /// What it is worth, in minor units.
    pub(crate) fn value(&self) -> i64 {
        self.lines.iter().map(|((_, price), quantity)| price * quantity).sum()
    }

    /// Counts what is not as it was acknowledged.
    pub(crate) fn compare(&self, cart: &Cart, promises: &mut Promises) {
        let id = &self.cart_id;
        let mut found = Quantities::new();
        for CartLine { sku, quantity, unit_price, .. } in &cart.lines {
            let price = unit_price.as_ref().filter(|price| price.currency_code == CURRENCY);
            let price = price.map_or(-1, |price| price.minor_units);
            *found.entry((sku.clone(), price)).or_default() += i64::from(*quantity);
        }
        for (key, quantity) in &self.lines {
            let there = found.get(key).copied().unwrap_or_default();
            if there < *quantity {
                let (sku, price) = key;
                promises.lines_missing += 1;
                promises
                    .list(format!("missing: {id} has {there} of {quantity} {sku} at {price} minor units"));
            }
        }
        for (key, there) in &found {
            let known = |lines: &Quantities| lines.get(key).copied().unwrap_or_default();
            if *there > known(&self.lines) + known(&self.doubtful) {
                let (sku, price) = key;
                let asked = known(&self.lines);
                promises.lines_unexpected += 1;
                promises
                    .list(format!("unexpected: {id} has {there} of {asked} {sku} at {price} minor units"));
            }
        }
        if let Some(order_ref) = &self.order_ref
            && (cart.state() != CartState::Ordered || cart.order_ref != *order_ref)
        {
            promises.orders_missing += 1;
            promises
                .list(format!("missing: {id} is {} and not order {order_ref}", cart.state().as_str_name()));
        }
    }

    /// The cart could not be read at all: everything in it is missing.
    pub(crate) fn lost(&self, refused: &Refused, promises: &mut Promises) {
        promises.lines_missing += self.lines.len() as u64;
        promises.orders_missing += u64::from(self.order_ref.is_some());
        promises.list(format!("missing: all of {}: {refused}", self.cart_id));
    }
}

fn add(lines: &mut Quantities, line: &InvoiceLine) {
    *lines.entry((line.sku.clone(), line.price)).or_default() += i64::from(line.quantity);
}

#[cfg(test)]
mod tests {
    use shared::pb::common::Money;

    use super::*;

    fn line(sku: &str, quantity: i32, price: i64) -> InvoiceLine {
        InvoiceLine { sku: sku.to_owned(), quantity, price }
    }

    fn stored(sku: &str, quantity: i32, minor_units: i64) -> CartLine {
        let unit_price = Some(Money { currency_code: CURRENCY.to_owned(), minor_units });
        CartLine { sku: sku.to_owned(), quantity, unit_price, ..CartLine::default() }
    }

    fn kept() -> KeptCart {
        let mut kept = KeptCart::new("shp_1".to_owned());
        for line in [line("a", 2, 100), line("b", 1, 250), line("a", 3, 100)] {
            kept.keep(&line);
        }
        kept
    }

    /// (missing, unexpected, orders missing)
    fn compare(kept: &KeptCart, lines: Vec<CartLine>, order_ref: &str) -> (u64, u64, u64) {
        let state = if order_ref.is_empty() { CartState::Active } else { CartState::Ordered };
        let cart = Cart { lines, order_ref: order_ref.to_owned(), state: state.into(), ..Cart::default() };
        let mut promises = Promises::default();
        kept.compare(&cart, &mut promises);
        (promises.lines_missing, promises.lines_unexpected, promises.orders_missing)
    }

    #[test]
    fn what_is_as_acknowledged_is_fine() {
        assert_eq!(kept().value(), 750);
        assert_eq!(compare(&kept(), vec![stored("a", 5, 100), stored("b", 1, 250)], ""), (0, 0, 0));
    }

    #[test]
    fn less_is_missing_and_more_is_unexpected() {
        for (lines, missing, unexpected) in [
            (vec![stored("a", 5, 100)], 1, 0),
            (vec![stored("a", 2, 100), stored("b", 1, 250)], 1, 0),
            (vec![stored("a", 5, 100), stored("b", 1, 251)], 1, 1),
            (vec![stored("a", 8, 100), stored("b", 1, 250)], 0, 1),
            (vec![stored("a", 5, 100), stored("b", 1, 250), stored("c", 1, 1)], 0, 1),
        ] {
            assert_eq!(compare(&kept(), lines, ""), (missing, unexpected, 0));
        }
    }

    #[test]
    fn a_line_in_doubt_may_be_there_once() {
        let mut kept = kept();
        kept.doubt(&line("b", 1, 250));
        assert_eq!(compare(&kept, vec![stored("a", 5, 100), stored("b", 1, 250)], ""), (0, 0, 0));
        assert_eq!(compare(&kept, vec![stored("a", 5, 100), stored("b", 2, 250)], ""), (0, 0, 0));
        assert_eq!(compare(&kept, vec![stored("a", 5, 100), stored("b", 3, 250)], ""), (0, 1, 0));
    }

    #[test]
    fn an_acknowledged_order_has_its_number() {
        let mut kept = kept();
        kept.order_ref = Some("536365/ses_1".to_owned());
        let lines = || vec![stored("a", 5, 100), stored("b", 1, 250)];
        assert_eq!(compare(&kept, lines(), "536365/ses_1"), (0, 0, 0));
        assert_eq!(compare(&kept, lines(), "536365/ses_2"), (0, 0, 1));
        assert_eq!(compare(&kept, lines(), ""), (0, 0, 1));
    }
}
