//! Two builds of the storage protos, in both directions: what a newer one wrote survives being changed by this one, at
//! every level, and it reads what this one wrote.

use prost::Message;
use shared::id::ShopperId;
use shared::pb::session as pb;
use sqlx::{PgConnection, Row as _};

use crate::harness::Answer as _;
use crate::harness::shop::owner;
use crate::history::{append, list, refs, view};
use crate::preferences::{consent, get_preferences, set_locale};
use crate::wishlist::{add_item, create_wishlist, get_wishlist, skus, start};

/// As a newer build knows them: every message has a field more, of another kind each, and some have new messages.
mod newer {
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct PreferencesContent {
        #[prost(message, repeated, tag = "1")]
        pub(super) preferences: Vec<Preference>,
        #[prost(message, repeated, tag = "2")]
        pub(super) consent_decisions: Vec<ConsentDecision>,
        #[prost(message, optional, tag = "3")]
        pub(super) sizes: Option<Preference>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Preference {
        #[prost(int32, tag = "1")]
        pub(super) key: i32,
        #[prost(string, repeated, tag = "2")]
        pub(super) values: Vec<String>,
        #[prost(int64, tag = "3")]
        pub(super) set_at_us: i64,
        #[prost(bytes = "vec", tag = "4")]
        pub(super) session_id: Vec<u8>,
        #[prost(string, tag = "5")]
        pub(super) source: String,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct ConsentDecision {
        #[prost(int32, tag = "1")]
        pub(super) purpose: i32,
        #[prost(bool, tag = "2")]
        pub(super) granted: bool,
        #[prost(string, tag = "3")]
        pub(super) policy_version: String,
        #[prost(int64, tag = "4")]
        pub(super) decided_at_us: i64,
        #[prost(bytes = "vec", tag = "5")]
        pub(super) session_id: Vec<u8>,
        #[prost(fixed64, tag = "6")]
        pub(super) proof: u64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct HistoryContent {
        #[prost(message, repeated, tag = "1")]
        pub(super) entries: Vec<HistoryEntry>,
        #[prost(double, tag = "2")]
        pub(super) weight: f64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct HistoryEntry {
        #[prost(int32, tag = "1")]
        pub(super) kind: i32,
        #[prost(string, tag = "2")]
        pub(super) r#ref: String,
        #[prost(int64, tag = "3")]
        pub(super) at_us: i64,
        #[prost(int64, tag = "4")]
        pub(super) dwell_ms: i64,
        #[prost(fixed32, tag = "5")]
        pub(super) position: u32,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct WishlistTitle {
        #[prost(string, tag = "1")]
        pub(super) name: String,
        #[prost(bool, tag = "2")]
        pub(super) hides_guests: bool,
        #[prost(string, tag = "3")]
        pub(super) occasion: String,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct WishlistContent {
        #[prost(message, repeated, tag = "1")]
        pub(super) items: Vec<WishlistItem>,
        #[prost(sint64, tag = "2")]
        pub(super) budget: i64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct WishlistItem {
        #[prost(string, tag = "1")]
        pub(super) sku: String,
        #[prost(int32, tag = "2")]
        pub(super) desired_quantity: i32,
        #[prost(int32, tag = "3")]
        pub(super) priority: i32,
        #[prost(string, tag = "4")]
        pub(super) note: String,
        #[prost(int64, tag = "8")]
        pub(super) added_at_us: i64,
        #[prost(int32, repeated, tag = "9")]
        pub(super) notify_on: Vec<i32>,
        #[prost(message, repeated, tag = "10")]
        pub(super) guests: Vec<WishlistGuest>,
        #[prost(message, optional, tag = "11")]
        pub(super) variant: Option<WishlistTitle>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct WishlistGuest {
        #[prost(bytes = "vec", tag = "1")]
        pub(super) shopper_id: Vec<u8>,
        #[prost(int32, tag = "3")]
        pub(super) quantity: i32,
        #[prost(string, tag = "4")]
        pub(super) name: String,
        #[prost(int64, tag = "5")]
        pub(super) noted_at_us: i64,
        #[prost(bool, tag = "6")]
        pub(super) is_wrapped: bool,
    }
}

async fn read<T: Message + Default>(db: &mut PgConnection, select: &'static str) -> T {
    let stored: Vec<u8> = sqlx::query(select).fetch_one(db).await.unwrap().get(0);
    T::decode(stored.as_slice()).unwrap()
}

async fn write(db: &mut PgConnection, update: &'static str, message: &impl Message) {
    sqlx::query(update).bind(message.encode_to_vec()).execute(db).await.unwrap();
}

#[tokio::test]
async fn preferences_of_a_newer_build_survive_a_change_and_it_reads_the_change() {
    const SELECT: &str = "select preferences from session.shoppers";
    const UPDATE: &str = "update session.shoppers set preferences = $1";
    let (stack, caller, token) = start().await;
    set_locale(&caller, owner(&token), "de").await;
    consent(&caller, owner(&token), true).await;
    let mut db = stack.database.connect().await;
    let mut content: newer::PreferencesContent = read(&mut db, SELECT).await;
    assert_eq!((content.preferences[0].key, &*content.preferences[0].values[0]), (1, "de"));
    assert_eq!((content.consent_decisions[0].purpose, content.consent_decisions[0].granted), (2, true));
    // A key, a theme and a purpose that this build does not know, and a field more everywhere.
    let unknown = newer::Preference {
        key: 99,
        values: vec!["42".to_owned()],
        source: "app".to_owned(),
        ..Default::default()
    };
    content.preferences[0].source = "browser".to_owned();
    content.preferences.push(unknown.clone());
    content.consent_decisions[0].proof = 7;
    let odd = newer::ConsentDecision { purpose: 9, granted: true, proof: 8, ..Default::default() };
    content.consent_decisions.push(odd);
    content.sizes = Some(unknown);
    write(&mut db, UPDATE, &content).await;
    let seen = get_preferences(&caller, owner(&token)).await;
    assert_eq!((&*seen.preferences.unwrap().locale, seen.consents.len()), ("de", 2));
    let zone = pb::Preferences { time_zone: "UTC".to_owned(), ..Default::default() };
    let request = crate::preferences::setting(owner(&token), zone, &["time_zone"]);
    caller.shoppers().update_preferences(request).await.answer();
    let mut after: newer::PreferencesContent = read(&mut db, SELECT).await;
    let added = after.preferences.pop().unwrap();
    assert_eq!((added.key, &*added.values[0], added.session_id.len()), (5, "UTC", 16));
    assert_eq!(after, content);
}

#[tokio::test]
async fn history_of_a_newer_build_survives_an_addition_and_it_reads_the_addition() {
    const SELECT: &str = "select history from session.shoppers";
    const UPDATE: &str = "update session.shoppers set history = $1";
    let (stack, caller, token) = start().await;
    consent(&caller, owner(&token), true).await;
    append(&caller, owner(&token), vec![view("lamp")]).await;
    let mut db = stack.database.connect().await;
    let mut content: newer::HistoryContent = read(&mut db, SELECT).await;
    assert_eq!((content.entries[0].kind, &*content.entries[0].r#ref), (1, "lamp"));
    content.weight = 0.5;
    content.entries[0].position = 3;
    let at_us = content.entries[0].at_us;
    let unknown =
        newer::HistoryEntry { kind: 99, r#ref: "video".to_owned(), at_us, position: 4, ..Default::default() };
    content.entries.push(unknown);
    write(&mut db, UPDATE, &content).await;
    append(&caller, owner(&token), vec![view("rug")]).await;
    let listed = list(&caller, owner(&token)).await;
    assert_eq!(refs(&listed), ["rug", "video", "lamp"]);
    let mut after: newer::HistoryContent = read(&mut db, SELECT).await;
    assert_eq!(&*after.entries.pop().unwrap().r#ref, "rug");
    assert_eq!(after, content);
}

#[tokio::test]
async fn wishlists_of_a_newer_build_survive_a_change_and_it_reads_the_change() {
    const SELECT: &str = "select content from session.wishlists";
    const UPDATE: &str = "update session.wishlists set content = $1";
    let (stack, caller, token) = start().await;
    let made = create_wishlist(&caller, &token, "Birthday").await;
    add_item(&caller, &token, &made, "lamp").await;
    let mut db = stack.database.connect().await;
    let mut title: newer::WishlistTitle = read(&mut db, "select title from session.wishlists").await;
    assert_eq!(&*title.name, "Birthday");
    title.occasion = "40th".to_owned();
    write(&mut db, "update session.wishlists set title = $1", &title).await;
    let mut content: newer::WishlistContent = read(&mut db, SELECT).await;
    assert_eq!((&*content.items[0].sku, content.items[0].desired_quantity), ("lamp", 1));
    let guest: ShopperId = made.shopper_id.parse().unwrap();
    content.budget = -5;
    content.items[0].priority = 9;
    content.items[0].notify_on = vec![1, 99];
    content.items[0].variant = Some(title.clone());
    content.items[0].guests = vec![newer::WishlistGuest {
        shopper_id: guest.uuid().as_bytes().to_vec(),
        quantity: 1,
        name: "Bob".to_owned(),
        noted_at_us: 1,
        is_wrapped: true,
    }];
    write(&mut db, UPDATE, &content).await;
    let seen = add_item(&caller, &token, &made, "rug").await;
    assert_eq!((skus(&seen), &*seen.items[0].guests[0].guest_name), (vec!["lamp", "rug"], "Bob"));
    let mut after: newer::WishlistContent = read(&mut db, SELECT).await;
    assert_eq!(&*after.items.pop().unwrap().sku, "rug");
    assert_eq!(after, content);
    assert_eq!(read::<newer::WishlistTitle>(&mut db, "select title from session.wishlists").await, title);
    assert_eq!(get_wishlist(&caller, &token, &made).await, seen);
}

#[tokio::test]
async fn a_section_of_an_unknown_format_is_no_empty_one() {
    let (stack, caller, token) = start().await;
    set_locale(&caller, owner(&token), "de").await;
    let mut db = stack.database.connect().await;
    let wrapped = sqlx::query("update session.shoppers set preferences = '\\x01ff'")
        .execute(&mut db)
        .await;
    wrapped.unwrap();
    let request = pb::GetPreferencesRequest { owner: Some(owner(&token)) };
    let status = caller.shoppers().get_preferences(request).await;
    status.refused(tonic::Code::Internal, "INTERNAL");
}
