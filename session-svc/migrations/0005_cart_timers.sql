-- Carts that nobody comes back to. The timer is a column of the cart: a cart and what is due of it are one row under one
-- lock, and carts that an earlier binary made, or makes beside this one, are due at once by the default. No change of a
-- line touches it, so that such a change still writes no index: whoever finds it due puts it off.

alter table session.carts
    add column due_at timestamptz not null default '2000-01-01T00:00:00Z',
    add column touchpoint_id text,
    add column idle_at timestamptz,
    add column activity_epoch integer not null default 1,
    add column abandoned_at timestamptz,
    add column abandoned_kind text,
    add column lost_at timestamptz,
    add column recovered_at timestamptz,
    add column contact_channels text[] not null default '{}',
    add column consent_granted boolean,
    add column consent_version text,
    add constraint carts_abandoned_check check ((abandoned_at is null) = (abandoned_kind is null)
        and abandoned_kind in ('CART', 'CHECKOUT') and (lost_at is null or abandoned_at is not null)) not valid,
    add constraint carts_consent_check check ((consent_granted is null) = (consent_version is null)) not valid;
create index carts_due_idx on session.carts (due_at);
create index carts_checkout_due_idx on session.carts (due_at) where state = 'CHECKOUT';
create index carts_abandoned_idx on session.carts (tenant_id, abandoned_at, shopper_id, cart_id)
    where abandoned_at is not null and state in ('ACTIVE', 'CHECKOUT');
comment on column session.carts.due_at is 'Nothing becomes of the cart by time alone before; moved by who looks at it then, and by who comes back to it.';
comment on column session.carts.touchpoint_id is 'Where it was last changed, whose policy holds; null where no session changed it.';
comment on column session.carts.idle_at is 'When it was last found idle; it is so while this is after updated_at.';
comment on column session.carts.activity_epoch is 'Rises when an abandoned cart is come back to; cart.abandoned is told once in each.';
comment on column session.carts.abandoned_at is 'When it was found abandoned; null while it is not.';
comment on column session.carts.contact_channels is 'Where the shop has an address of the shopper''s; the addresses are not here.';

create index subjects_shopper_idx on session.subjects (tenant_id, shopper_id) where shopper_id is not null;

create table session.cart_recoveries (
    tenant_id text not null,
    shopper_id uuid not null,
    token_hash bytea not null,
    cart_id uuid not null,
    expires_at timestamptz not null,
    ended_at timestamptz,
    end_reason text,
    constraint cart_recoveries_pkey primary key (tenant_id, shopper_id, token_hash),
    constraint cart_recoveries_ended_check check ((ended_at is null) = (end_reason is null)
        and end_reason in ('REDEEMED', 'REVOKED'))
);
comment on table session.cart_recoveries is 'Tokens that open one cart each, used once: by the update from ended_at null. Deleted with the cart.';

alter table session.touchpoints
    add column cart_idle_after_secs integer not null default 1800,
    add column cart_abandoned_after_secs integer not null default 3600,
    add column cart_lost_after_secs integer not null default 2592000,
    add column cart_checkout_timeout_secs integer not null default 86400,
    add constraint touchpoints_cart_policy_check check (
        0 < cart_idle_after_secs and cart_idle_after_secs < cart_abandoned_after_secs
        and cart_abandoned_after_secs <= cart_checkout_timeout_secs
        and cart_checkout_timeout_secs <= cart_lost_after_secs);
