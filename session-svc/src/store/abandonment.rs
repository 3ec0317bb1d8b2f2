//! What time makes of `session.carts`: which are due, what became of them, and which are abandoned.

use shared::id::{CartId, GroupId, ShopperId, TenantId};
use shared::time::Time;
use sqlx::PgConnection;
use uuid::Uuid;

use super::cart::Key;
use crate::domain::abandonment::Kind;
use crate::domain::contact::{Channel, Consent, Contact};
use crate::store::corrupt;

/// A cart that is due or abandoned, and what is not read with carts.
#[derive(Debug)]
pub struct Found {
    /// Which.
    pub key: Key,
    /// When it was last found idle.
    pub idle_at: Option<Time>,
    /// Since when it is abandoned.
    pub abandoned_at: Option<Time>,
    /// How its shopper may be written to.
    pub contact: Contact,
}

/// What became of a cart of this version, all at one instant.
#[derive(Debug)]
pub struct Fate {
    /// Which cart.
    pub key: Key,
    /// The version that it was decided on.
    pub version: i64,
    /// When it is due next.
    pub due_at: Time,
    /// Whether it was found idle.
    pub is_idle: bool,
    /// Whether it was found abandoned, and as what.
    pub abandoned: Option<Kind>,
    /// Whether it was found lost.
    pub is_lost: bool,
    /// Another state, without a checkout.
    pub state: Option<&'static str>,
}

struct Row {
    tenant_id: String,
    shopper_id: Uuid,
    cart_id: Uuid,
    idle_at: Option<Time>,
    abandoned_at: Option<Time>,
    contact_channels: Vec<String>,
    consent_granted: Option<bool>,
    consent_version: Option<String>,
    marketing_consent: Option<bool>,
}

impl TryFrom<Row> for Found {
    type Error = sqlx::Error;

    fn try_from(row: Row) -> sqlx::Result<Self> {
        let tenant = row.tenant_id.parse().map_err(|_| corrupt("carts", "tenant_id", &row.cart_id))?;
        let contact =
            contact(&row.contact_channels, row.consent_granted, row.consent_version, row.marketing_consent);
        let (shopper, cart) = (ShopperId::from_uuid(row.shopper_id), CartId::from_uuid(row.cart_id));
        let key = Key { tenant, shopper, cart };
        Ok(Self { key, idle_at: row.idle_at, abandoned_at: row.abandoned_at, contact })
    }
}

/// Channels that only a newer build knows are left out.
fn contact(
    channels: &[String],
    granted: Option<bool>,
    version: Option<String>,
    marketing: Option<bool>,
) -> Contact {
    let consent = granted.zip(version);
    Contact {
        channels: channels.iter().filter_map(|name| Channel::from_name(name)).collect(),
        consent: consent.map(|(granted, policy_version)| Consent { granted, policy_version }),
        marketing,
    }
}

/// Locks carts that are due, those first that are due longest. What somebody else holds stays for the next time.
#[tracing::instrument(name = "db.abandonment.lock_due", skip_all)]
pub async fn lock_due(
    db: &mut PgConnection,
    now: Time,
    in_checkout: bool,
    limit: i64,
) -> sqlx::Result<Vec<Found>> {
    let rows = sqlx::query_as!(
        Row,
        r#"select tenant_id, shopper_id, cart_id, idle_at, abandoned_at, contact_channels, consent_granted, consent_version,
            marketing_consent as "marketing_consent?"
        from session.carts cart left join session.shoppers shopper using (tenant_id, shopper_id)
        where cart.due_at <= $1 and (cart.state = 'CHECKOUT') = $2
        order by cart.due_at
        limit $3
        for update of cart skip locked"#,
        now,
        in_checkout,
        limit,
    )
    .fetch_all(db)
    .await?;
    rows.into_iter().map(Found::try_from).collect()
}

/// Writes what became of locked carts, as far as nothing became of them since and no flag is raised twice; answers the
/// positions of those that it wrote.
#[tracing::instrument(name = "db.abandonment.write", skip_all, fields(count = fates.len()))]
pub async fn write(db: &mut PgConnection, fates: &[Fate], now: Time) -> sqlx::Result<Vec<usize>> {
    let positions = sqlx::query_scalar!(
        r#"update session.carts cart
        set due_at = fate.due_at,
            idle_at = case when fate.is_idle then $10 else cart.idle_at end,
            abandoned_at = case when fate.abandoned_kind is null then cart.abandoned_at else $10 end,
            abandoned_kind = coalesce(fate.abandoned_kind, cart.abandoned_kind),
            lost_at = case when fate.is_lost then $10 else cart.lost_at end,
            state = coalesce(fate.state, cart.state),
            checkout_session_id = case when fate.state is null then cart.checkout_session_id end,
            version = cart.version + case when fate.state is null then 0 else 1 end
        from unnest($1::text[], $2::uuid[], $3::uuid[], $4::bigint[], $5::timestamptz[], $6::boolean[], $7::text[],
            $8::boolean[], $9::text[]) with ordinality as fate (tenant_id, shopper_id, cart_id, version, due_at, is_idle,
            abandoned_kind, is_lost, state, position)
        where cart.tenant_id = fate.tenant_id and cart.shopper_id = fate.shopper_id and cart.cart_id = fate.cart_id
            and cart.version = fate.version
            and (fate.abandoned_kind is null or cart.abandoned_at is null)
            and (not fate.is_lost or cart.lost_at is null)
        returning position as "position!""#,
        &fates.iter().map(|fate| fate.key.tenant.to_string()).collect::<Vec<_>>(),
        &fates.iter().map(|fate| fate.key.shopper.uuid()).collect::<Vec<_>>(),
        &fates.iter().map(|fate| fate.key.cart.uuid()).collect::<Vec<_>>(),
        &fates.iter().map(|fate| fate.version).collect::<Vec<_>>(),
        &fates.iter().map(|fate| fate.due_at).collect::<Vec<_>>(),
        &fates.iter().map(|fate| fate.is_idle).collect::<Vec<_>>(),
        &fates.iter().map(|fate| fate.abandoned.map(Kind::name)).collect::<Vec<_>>() as &[Option<&str>],
        &fates.iter().map(|fate| fate.is_lost).collect::<Vec<_>>(),
        &fates.iter().map(|fate| fate.state).collect::<Vec<_>>() as &[Option<&str>],
        now,
    )
    .fetch_all(db)
    .await?;
    let position = |position: i64| usize::try_from(position - 1).ok();
    Ok(positions.into_iter().filter_map(position).collect())
}

/// Looks at locked carts again at `due_at`, whatever they are.
#[tracing::instrument(name = "db.abandonment.put_off", skip_all, fields(count = keys.len()))]
pub async fn put_off(db: &mut PgConnection, keys: &[Key], due_at: Time) -> sqlx::Result<()> {
    sqlx::query!(
        "update session.carts cart
        set due_at = $4
        from unnest($1::text[], $2::uuid[], $3::uuid[]) as key (tenant_id, shopper_id, cart_id)
        where cart.tenant_id = key.tenant_id and cart.shopper_id = key.shopper_id and cart.cart_id = key.cart_id",
        &keys.iter().map(|key| key.tenant.to_string()).collect::<Vec<_>>(),
        &keys.iter().map(|key| key.shopper.uuid()).collect::<Vec<_>>(),
        &keys.iter().map(|key| key.cart.uuid()).collect::<Vec<_>>(),
        due_at,
    )
    .execute(db)
    .await
    .map(drop)
}

/// Deletes locked carts, with their recoveries; says how many.
#[tracing::instrument(name = "db.abandonment.delete", skip_all, fields(count = keys.len()))]
pub async fn delete(db: &mut PgConnection, keys: &[Key]) -> sqlx::Result<u64> {
    let deleted = sqlx::query_scalar!(
        r#"with key as materialized (
            select * from unnest($1::text[], $2::uuid[], $3::uuid[]) as key (tenant_id, shopper_id, cart_id)
        ), recoveries as (
            delete from session.cart_recoveries recovery using key
            where recovery.tenant_id = key.tenant_id and recovery.shopper_id = key.shopper_id
                and recovery.cart_id = key.cart_id
        ), deleted as (
            delete from session.carts cart using key
            where cart.tenant_id = key.tenant_id and cart.shopper_id = key.shopper_id and cart.cart_id = key.cart_id
                and cart.state not in ('ACTIVE', 'CHECKOUT')
            returning 1
        )
        select count(*) as "deleted!" from deleted"#,
        &keys.iter().map(|key| key.tenant.to_string()).collect::<Vec<_>>(),
        &keys.iter().map(|key| key.shopper.uuid()).collect::<Vec<_>>(),
        &keys.iter().map(|key| key.cart.uuid()).collect::<Vec<_>>(),
    )
    .fetch_one(db)
    .await?;
    Ok(deleted.unsigned_abs())
}

/// Lowers the flag of a locked cart, opens the next epoch, and has the cart looked at at once, so that its timer is set anew.
/// Answers how its shopper may be written to; none if the flag is not up in this epoch.
#[tracing::instrument(name = "db.abandonment.recover", skip_all)]
pub async fn recover(
    db: &mut PgConnection,
    key: &Key,
    epoch: i32,
    now: Time,
) -> sqlx::Result<Option<Contact>> {
    let row = sqlx::query!(
        "update session.carts
        set abandoned_at = null, abandoned_kind = null, lost_at = null, recovered_at = $5,
            activity_epoch = activity_epoch + 1, due_at = $5
        where tenant_id = $1 and shopper_id = $2 and cart_id = $3 and activity_epoch = $4 and abandoned_at is not null
        returning contact_channels, consent_granted, consent_version, (
            select marketing_consent from session.shoppers where tenant_id = $1 and shopper_id = $2) as marketing_consent",
        key.tenant.as_str(),
        key.shopper.uuid(),
        key.cart.uuid(),
        epoch,
        now,
    )
    .fetch_optional(db)
    .await?;
    Ok(row.map(|row| {
        contact(&row.contact_channels, row.consent_granted, row.consent_version, row.marketing_consent)
    }))
}

/// Sets how the shopper of an open cart may be written to; false if it is not open any more.
#[tracing::instrument(name = "db.abandonment.set_contact", skip_all)]
pub async fn set_contact(db: &mut PgConnection, key: &Key, contact: &Contact) -> sqlx::Result<bool> {
    let Contact { channels, consent, marketing: _ } = contact;
    let done = sqlx::query!(
        "update session.carts
        set contact_channels = $4, consent_granted = $5, consent_version = $6
        where tenant_id = $1 and shopper_id = $2 and cart_id = $3 and state in ('ACTIVE', 'CHECKOUT')",
        key.tenant.as_str(),
        key.shopper.uuid(),
        key.cart.uuid(),
        &channels.iter().map(|channel| channel.name().to_owned()).collect::<Vec<_>>(),
        consent.as_ref().map(|consent| consent.granted),
        consent.as_ref().map(|consent| consent.policy_version.as_str()),
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// What is known of a cart's shopper goes along to the cart that it went into, where nothing is known there.
#[tracing::instrument(name = "db.abandonment.bring_contact", skip_all)]
pub async fn bring_contact(db: &mut PgConnection, from: &Key, into: &Key) -> sqlx::Result<()> {
    sqlx::query!(
        "update session.carts target
        set contact_channels = source.contact_channels, consent_granted = source.consent_granted,
            consent_version = source.consent_version
        from session.carts source
        where target.tenant_id = $1 and target.shopper_id = $4 and target.cart_id = $5
            and target.contact_channels = '{}' and target.consent_granted is null
            and source.tenant_id = $1 and source.shopper_id = $2 and source.cart_id = $3
            and (source.contact_channels <> '{}' or source.consent_granted is not null)",
        from.tenant.as_str(),
        from.shopper.uuid(),
        from.cart.uuid(),
        into.shopper.uuid(),
        into.cart.uuid(),
    )
    .execute(db)
    .await
    .map(drop)
}

/// What came along so goes again, as far as it is still the same: nobody is written to on another's word.
#[tracing::instrument(name = "db.abandonment.take_back_contact", skip_all)]
pub async fn take_back_contact(db: &mut PgConnection, from: &Key, into: &Key) -> sqlx::Result<()> {
    sqlx::query!(
        "update session.carts target
        set contact_channels = '{}', consent_granted = null, consent_version = null
        from session.carts source
        where target.tenant_id = $1 and target.shopper_id = $4 and target.cart_id = $5
            and source.tenant_id = $1 and source.shopper_id = $2 and source.cart_id = $3
            and target.contact_channels = source.contact_channels
            and target.consent_granted is not distinct from source.consent_granted
            and target.consent_version is not distinct from source.consent_version",
        from.tenant.as_str(),
        from.shopper.uuid(),
        from.cart.uuid(),
        into.shopper.uuid(),
        into.cart.uuid(),
    )
    .execute(db)
    .await
    .map(drop)
}

/// Which abandoned carts to list.
#[derive(Debug)]
pub struct Filter<'a> {
    /// Of these touchpoints.
    pub group: Option<&'a GroupId>,
    /// Abandoned then or later.
    pub since: Time,
    /// As this.
    pub kind: Option<Kind>,
    /// Of shoppers who may be written to, or who may not.
    pub is_contactable: Option<bool>,
    /// Beyond this one.
    pub after: (Time, ShopperId, CartId),
}

/// Open carts that are abandoned, by when they were found so.
#[tracing::instrument(name = "db.abandonment.list", skip_all)]
pub async fn list(
    db: &mut PgConnection,
    tenant: &TenantId,
    filter: &Filter<'_>,
    limit: i64,
) -> sqlx::Result<Vec<Found>> {
    let (after_at, after_shopper, after_cart) = filter.after;
    let rows = sqlx::query_as!(
        Row,
        r#"select tenant_id, shopper_id, cart_id, idle_at, abandoned_at, contact_channels, consent_granted, consent_version,
            marketing_consent as "marketing_consent?"
        from session.carts left join session.shoppers using (tenant_id, shopper_id)
        where tenant_id = $1 and abandoned_at is not null and state in ('ACTIVE', 'CHECKOUT')
            and abandoned_at >= $2 and (abandoned_at, shopper_id, cart_id) > ($3, $4, $5)
            and ($6::text is null or group_id = $6)
            and ($7::text is null or abandoned_kind = $7)
            and ($8::boolean is null or $8 = (contact_channels <> '{}'
                and (consent_granted is true or marketing_consent is true)
                and consent_granted is not false and marketing_consent is not false))
        order by abandoned_at, shopper_id, cart_id
        limit $9"#,
        tenant.as_str(),
        filter.since,
        after_at,
        after_shopper.uuid(),
        after_cart.uuid(),
        filter.group.map(GroupId::as_str),
        filter.kind.map(Kind::name),
        filter.is_contactable,
        limit,
    )
    .fetch_all(db)
    .await?;
    rows.into_iter().map(Found::try_from).collect()
}
