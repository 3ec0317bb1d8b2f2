//! Carts that nobody comes back to, as far as requests have to do with them: who comes back, how their shoppers may be written
//! to, and `ListAbandonedCarts`. What time makes of a cart, `workers::carts` does.

use std::collections::HashMap;

use chrono::SecondsFormat;
use serde_json::{Value, json};
use shared::auth::Caller;
use shared::id::{CartId, GroupId, ShopperId};
use shared::mutation::{Actor, Begun, Call};
use shared::page::{self, List};
use shared::parse::{at_most, known, known_or_default, line, optional, parse};
use shared::pb::common::Money;
use shared::pb::session as pb;
use shared::pb::session::shopper_selector::Owner;
use shared::status::{Failure, Refusal};
use shared::time::{Time, from_micros, from_proto, to_proto};
use sqlx::PgConnection;
use tonic::Request;
use uuid::Uuid;

use super::App;
use super::cart::no_cart;
use super::live::name_session;
use crate::OUTBOX;
use crate::domain::abandonment::{Abandonment, Kind};
use crate::domain::cart::{Cart, Currency, State};
use crate::domain::contact::{Channel, Consent, Contact};
use crate::store;
use crate::store::abandonment::{Filter, Found};
use crate::store::cart::{Key, Place};

const CHANNELS_MAX: usize = 4;

/// The shopper came back to a locked cart: lowers its flag if that is up, and tells of it.
pub(super) async fn recover(db: &mut PgConnection, actor: &Actor, cart: &mut Cart) -> sqlx::Result<()> {
    if cart.abandonment.raised.is_none() {
        return Ok(());
    }
    let (before, now) = (cart.clone(), actor.now);
    let Some(raised) = cart.abandonment.recover(now) else { return Ok(()) };
    let key = Key { tenant: actor.tenant.clone(), shopper: cart.shopper, cart: cart.id };
    let contact = store::abandonment::recover(db, &key, before.abandonment.epoch, now).await?;
    let Some(contact) = contact else { return Ok(()) };
    let mut data = told(&before, Some(raised.kind), &contact);
    data["abandon_time"] = timestamp(raised.at);
    if let Some(lost_at) = raised.lost_at {
        data["lost_time"] = timestamp(lost_at);
    }
    OUTBOX
        .append(db, &actor.event("cart.recovered", cart.id.to_string(), data))
        .await
}

/// What events of abandonment tell, so that who writes to shoppers has to ask nothing.
pub(crate) fn told(cart: &Cart, kind: Option<Kind>, contact: &Contact) -> Value {
    let channels: Vec<_> = contact.channels.iter().map(|channel| channel.name()).collect();
    let consent = contact.consent.as_ref();
    let consent = consent.map(|it| json!({"granted": it.granted, "policy_version": it.policy_version}));
    json!({
        "shopper_id": cart.shopper.to_string(),
        "touchpoint_group": cart.group.as_str(),
        "state": cart.state.name(),
        "kind": kind.map(Kind::name),
        "epoch": cart.abandonment.epoch,
        "currency_code": cart.currency.as_str(),
        "total_minor_units": cart.total(),
        "line_count": cart.lines.len(),
        "last_activity_time": timestamp(cart.updated_at),
        "channels": channels,
        "consent": consent,
        "marketing_consent": contact.marketing,
        "contactable": contact.is_contactable(),
    })
}

pub(super) fn timestamp(time: Time) -> Value {
    time.to_rfc3339_opts(SecondsFormat::Micros, true).into()
}

impl App {
    /// Not activity: a program says what the shop knows.
    pub(super) async fn set_cart_contact(
        &self,
        mut request: Request<pb::SetCartContactRequest>,
    ) -> Result<pb::SetCartContactResponse, Failure> {
        let caller = Caller::of(&request)?;
        // What a repetition must equal names the session, and holds no credential.
        let owner = request.get_ref().owner.clone();
        if let Some(Owner::SessionToken(token)) =
            request.get_mut().owner.as_mut().and_then(|selector| selector.owner.as_mut())
        {
            name_session(token);
        }
        let (call, message) = Call::of(request, "SetCartContact", |message| &mut message.request_id)?;
        let pb::SetCartContactRequest { owner: _, currency_code, contact, request_id: _ } = message;
        let currency: Currency = parse("currency_code", &currency_code)?;
        let contact = parse_contact(contact.unwrap_or_default())?;
        let shopper = self.shopper(&caller, owner, self.clock.now()).await?;
        let mut work = match self.begin(call).await? {
            Begun::Fresh(work) => work,
            // What was kept is what was sent, which is the same: records of requests hold no consent.
            Begun::Replayed(before) => {
                let answer: pb::SetCartContactResponse = before.answer;
                return Ok(pb::SetCartContactResponse {
                    contact: Some(contact_to_proto(&contact)),
                    ..answer
                });
            }
        };
        let tenant = &caller.tenant;
        self.require_live_shopper(tenant, &shopper, work.now)?;
        let place = Place { tenant, shopper: shopper.id, group: &shopper.group, currency };
        let cart = store::cart::lock_open(&mut work.tx, &place).await?.ok_or_else(no_cart)?;
        let key = Key { tenant: tenant.clone(), shopper: cart.shopper, cart: cart.id };
        if !store::abandonment::set_contact(&mut work.tx, &key, &contact).await? {
            return Err(no_cart().into());
        }
        let data = json!({
            "shopper_id": cart.shopper.to_string(),
            "channels": contact.channels.iter().map(|channel| channel.name()).collect::<Vec<_>>(),
            "contactable": contact.is_contactable(),
        });
        work.tell("cart.contact_set", cart.id.to_string(), data);
        let kept = pb::SetCartContactResponse { cart_id: cart.id.to_string(), contact: None };
        let answer = work.answer(kept).await?;
        Ok(pb::SetCartContactResponse { contact: Some(contact_to_proto(&contact)), ..answer })
    }

    pub(super) async fn list_abandoned_carts(
        &self,
        request: Request<pb::ListAbandonedCartsRequest>,
    ) -> Result<pb::ListAbandonedCartsResponse, Failure> {
        let caller = Caller::of(&request)?;
        let pb::ListAbandonedCartsRequest {
            touchpoint_group,
            since,
            kind,
            contactable,
            page_size,
            page_token,
        } = request.into_inner();
        caller.require_unlimited()?;
        let group: Option<GroupId> = optional("touchpoint_group", &touchpoint_group)?;
        let no_instant = || Refusal::field("since", "is no instant");
        let since = since.map(|since| from_proto(since).ok_or_else(no_instant)).transpose()?;
        let kind: pb::AbandonmentKind = known_or_default("kind", kind)?;
        let filter = format!("{group:?} {since:?} {kind:?} {contactable:?}");
        let list = List { name: "ListAbandonedCarts", tenant: &caller.tenant, filter: &filter };
        let (size, after) = (page::size(page_size)?, list.after(&self.keys, &page_token)?);
        let kind = match kind {
            // Those have no cart.
            pb::AbandonmentKind::Browse => return Ok(pb::ListAbandonedCartsResponse::default()),
            pb::AbandonmentKind::Unspecified => None,
            pb::AbandonmentKind::Cart => Some(Kind::Cart),
            pb::AbandonmentKind::Checkout => Some(Kind::Checkout),
        };
        let first = (Time::default(), ShopperId::from_uuid(Uuid::nil()), CartId::from_uuid(Uuid::nil()));
        let filter = Filter {
            group: group.as_ref(),
            since: since.unwrap_or_default(),
            kind,
            is_contactable: contactable,
            after: after.map_or(Ok(first), |key| parse_position(&key))?,
        };
        let mut db = self.db.connection().await?;
        let mut rows = store::abandonment::list(&mut db, &caller.tenant, &filter, size + 1).await?;
        let next_page_token = list.cut(&self.keys, &mut rows, size, self.clock.now(), position)?;
        let keys: Vec<_> = rows.iter().map(|found| found.key.clone()).collect();
        let mut carts = HashMap::new();
        for cart in store::cart::batch::find(&mut db, &keys).await? {
            let cart = cart?;
            carts.insert((cart.shopper, cart.id), cart);
        }
        // Who came back since it was listed is not shown.
        let is_abandoned = |cart: &&Cart| cart.abandonment.raised.is_some();
        let shown = rows.iter().filter_map(|found| {
            let cart = carts.get(&(found.key.shopper, found.key.cart)).filter(is_abandoned)?;
            Some(abandoned_cart(cart, &found.contact))
        });
        Ok(pb::ListAbandonedCartsResponse { carts: shown.collect(), next_page_token })
    }
}

/// Where a page ended.
fn position(found: &Found) -> String {
    let at = found.abandoned_at.unwrap_or_default().timestamp_micros();
    format!("{at} {} {}", found.key.shopper, found.key.cart)
}

fn parse_position(text: &str) -> Result<(Time, ShopperId, CartId), Refusal> {
    let mut parts = text.split(' ');
    let mut part = || parts.next().unwrap_or_default();
    let at = parse("page_token", part())?;
    Ok((from_micros(at), parse("page_token", part())?, parse("page_token", part())?))
}

fn abandoned_cart(cart: &Cart, contact: &Contact) -> pb::AbandonedCart {
    let is_paying = matches!(cart.state, State::Checkout { .. });
    let state = if is_paying { pb::CartState::Checkout } else { pb::CartState::Active };
    pb::AbandonedCart {
        cart_id: cart.id.to_string(),
        shopper_id: cart.shopper.to_string(),
        touchpoint_group: cart.group.to_string(),
        state: state.into(),
        total: Some(Money { currency_code: cart.currency.as_str().to_owned(), minor_units: cart.total() }),
        line_count: i32::try_from(cart.lines.len()).unwrap_or(i32::MAX),
        update_time: Some(to_proto(cart.updated_at)),
        abandonment: Some((&cart.abandonment).into()),
        contact: Some(contact_to_proto(contact)),
        contactable: contact.is_contactable(),
    }
}

impl From<&Abandonment> for pb::CartAbandonment {
    fn from(abandonment: &Abandonment) -> Self {
        let raised = abandonment.raised;
        let kind = raised.map_or(pb::AbandonmentKind::Unspecified, |raised| match raised.kind {
            Kind::Cart => pb::AbandonmentKind::Cart,
            Kind::Checkout => pb::AbandonmentKind::Checkout,
        });
        Self {
            epoch: abandonment.epoch,
            kind: kind.into(),
            abandon_time: raised.map(|raised| to_proto(raised.at)),
            lost_time: raised.and_then(|raised| raised.lost_at).map(to_proto),
            recover_time: abandonment.recovered_at.map(to_proto),
        }
    }
}

fn parse_contact(contact: pb::CartContact) -> Result<Contact, Refusal> {
    let pb::CartContact { channels, consent } = contact;
    at_most("contact.channels", &channels, CHANNELS_MAX)?;
    let channel = |number| {
        Ok(match known("contact.channels", number)? {
            pb::ContactChannel::Unspecified | pb::ContactChannel::Email => Channel::Email,
            pb::ContactChannel::Sms => Channel::Sms,
            pb::ContactChannel::Push => Channel::Push,
            pb::ContactChannel::Phone => Channel::Phone,
        })
    };
    let mut channels = channels.into_iter().map(channel).collect::<Result<Vec<_>, Refusal>>()?;
    channels.sort_unstable();
    channels.dedup();
    let consent = consent.map(|pb::ContactConsent { granted, policy_version }| {
        let policy_version = line("contact.consent.policy_version", policy_version, 1, 64)?;
        Ok::<_, Refusal>(Consent { granted, policy_version })
    });
    Ok(Contact { channels, consent: consent.transpose()?, marketing: None })
}

fn contact_to_proto(contact: &Contact) -> pb::CartContact {
    let channel = |channel: &Channel| match channel {
        Channel::Email => pb::ContactChannel::Email,
        Channel::Sms => pb::ContactChannel::Sms,
        Channel::Push => pb::ContactChannel::Push,
        Channel::Phone => pb::ContactChannel::Phone,
    };
    let consent = contact.consent.as_ref();
    pb::CartContact {
        channels: contact.channels.iter().map(|it| channel(it).into()).collect(),
        consent: consent
            .map(|it| pb::ContactConsent { granted: it.granted, policy_version: it.policy_version.clone() }),
    }
}
