//! Lines of a cart, and when two of them are the same.

use std::collections::BTreeMap;

use shared::id::LineId;
use shared::time::Time;

/// So many of one article at one price.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Its id.
    pub id: LineId,
    /// Stock keeping unit.
    pub sku: String,
    /// 1 to [`super::QUANTITY_MAX`].
    pub quantity: i32,
    /// Of one, in minor units; 0 to [`super::UNIT_PRICE_MAX`].
    pub unit_price: i64,
    /// When that price was shown.
    pub price_observed_at: Time,
    /// When it was first added.
    pub created_at: Time,
    /// What was chosen of the article.
    pub attributes: BTreeMap<String, String>,
    /// How it comes to the shopper.
    pub fulfilment: Fulfilment,
    /// Of the price; empty where nobody said.
    pub catalogue_version: String,
    /// Where the article was found; empty where nobody said.
    pub source: String,
    /// Set aside: neither counted nor ordered.
    pub saved_for_later: bool,
    /// What a newer release stored with it.
    pub newer: Vec<u8>,
}

/// How an article comes to the shopper.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fulfilment {
    /// Sent.
    Ship,
    /// Picked up.
    Pickup {
        /// In which store.
        store: String,
    },
    /// Taken along from the store in which it is bought.
    Store,
    /// Of a kind that a newer release knows, with its number and what it says of a store.
    Newer(i32, String),
}

impl Line {
    /// Whether quantities of the two add up. What a newer release knows of them may tell them apart, too.
    pub fn is_same_as(&self, other: &Self) -> bool {
        self.sku == other.sku
            && self.unit_price == other.unit_price
            && self.attributes == other.attributes
            && self.fulfilment == other.fulfilment
            && self.saved_for_later == other.saved_for_later
            && self.newer == other.newer
    }

    /// As many bytes as it takes stored, or a few more.
    pub fn bytes_max(&self) -> usize {
        // Ids and numbers, and the tags and lengths of all fields.
        const FIXED: usize = 96;
        const ATTRIBUTE: usize = 12;
        let attributes = self.attributes.iter().map(|(name, value)| ATTRIBUTE + name.len() + value.len());
        let store = match &self.fulfilment {
            Fulfilment::Pickup { store } | Fulfilment::Newer(_, store) => store.len(),
            Fulfilment::Ship | Fulfilment::Store => 0,
        };
        let texts = self.sku.len() + self.catalogue_version.len() + self.source.len() + store;
        FIXED + texts + attributes.sum::<usize>() + self.newer.len()
    }
}
