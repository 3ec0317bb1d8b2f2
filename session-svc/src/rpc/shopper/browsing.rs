//! Shoppers who looked at articles and took none, as far as requests have to do with them: who looks again is back. What
//! time makes of them, `workers::shoppers` does.

use serde_json::{Value, json};
use shared::id::{GroupId, ShopperId, TenantId};
use shared::mutation::Mutation;
use shared::status::Failure;

use crate::domain::browsing::{Browsing, KIND};
use crate::domain::consent::{Consents, Purpose};
use crate::domain::contact::{Channel, Consent, Contact};
use crate::rpc::abandonment::timestamp;
use crate::store;
use crate::store::browsing::{Left, Look};

/// A locked shopper looked at something.
pub(super) async fn look(
    work: &mut Mutation,
    tenant: &TenantId,
    shopper: ShopperId,
    look: &Look,
    consents: &Consents,
) -> Result<(), Failure> {
    match store::browsing::look(&mut work.tx, tenant, shopper, look).await? {
        Some(left) => tell_recovered(work, tenant, shopper, &left, consents).await,
        None => Ok(()),
    }
}

/// Tells that a shopper is back, if they were found gone.
pub(super) async fn tell_recovered(
    work: &mut Mutation,
    tenant: &TenantId,
    shopper: ShopperId,
    left: &Left,
    consents: &Consents,
) -> Result<(), Failure> {
    if left.browsing.raised.is_none() {
        return Ok(());
    }
    let mut around = store::browsing::around(&mut work.tx, &[(tenant, shopper)]).await?;
    let channels = around.pop().map(|around| around.channels).unwrap_or_default();
    let touchpoint = match &left.touchpoint {
        Some(id) => store::touchpoint::find(&mut work.tx, tenant, id).await?,
        None => None,
    };
    let group = touchpoint.map(|touchpoint| touchpoint.group);
    let data = recovered(shopper, &left.browsing, group.as_ref(), &contact(channels, consents));
    work.tell("cart.recovered", shopper.to_string(), data);
    Ok(())
}

/// How a shopper without a cart may be written to: where the shop has an address as it said of a cart before, if they agree
/// to marketing.
pub(crate) fn contact(channels: Vec<Channel>, consents: &Consents) -> Contact {
    let consent = consents.on(Purpose::MARKETING).map(|decision| Consent {
        granted: decision.is_granted,
        policy_version: decision.policy_version.clone(),
    });
    let marketing = consent.as_ref().map(|consent| consent.granted);
    Contact { channels, consent, marketing }
}

/// What events tell, by the names that those of carts have.
pub(crate) fn told(
    shopper: ShopperId,
    browsing: &Browsing,
    group: Option<&GroupId>,
    contact: &Contact,
) -> Value {
    let channels: Vec<_> = contact.channels.iter().map(|channel| channel.name()).collect();
    let consent = contact.consent.as_ref();
    let consent = consent.map(|it| json!({"granted": it.granted, "policy_version": it.policy_version}));
    json!({
        "shopper_id": shopper.to_string(),
        "touchpoint_group": group.map(GroupId::as_str),
        "kind": KIND,
        "epoch": browsing.epoch,
        "last_activity_time": browsing.looked_at.map(timestamp),
        "channels": channels,
        "consent": consent,
        "marketing_consent": contact.marketing,
        "contactable": contact.is_contactable(),
    })
}

/// The same of `cart.recovered`, whose flag was up.
pub(crate) fn recovered(
    shopper: ShopperId,
    browsing: &Browsing,
    group: Option<&GroupId>,
    contact: &Contact,
) -> Value {
    let mut data = told(shopper, browsing, group, contact);
    data["abandon_time"] = browsing.raised.map(|raised| timestamp(raised.at)).into();
    if let Some(lost_at) = browsing.raised.and_then(|raised| raised.lost_at) {
        data["lost_time"] = timestamp(lost_at);
    }
    data
}
