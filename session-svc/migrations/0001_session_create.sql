-- Keys: `tenant_id` leads, then the one column that the table could be distributed by (session, shopper), so that no
-- unique constraint and no hot statement ever crosses shards. `events` and `requests` are distributed by tenant.

create table session.touchpoints (
    tenant_id text not null,
    touchpoint_id text not null,
    display_name text not null,
    group_id text not null,
    components text[] not null,
    has_shoppers boolean not null,
    idle_timeout_secs integer not null,
    absolute_lifetime_secs integer not null,
    visit_gap_secs integer not null,
    staleness_bound_ms integer not null,
    outage_bound_secs integer not null,
    created_at timestamptz not null,
    version bigint not null,
    constraint touchpoints_pkey primary key (tenant_id, touchpoint_id),
    constraint touchpoints_lifetimes_check check (0 < idle_timeout_secs and idle_timeout_secs <= absolute_lifetime_secs)
);
comment on table session.touchpoints is 'Ways in, each with the policy of its sessions.';
comment on column session.touchpoints.group_id is 'Touchpoints of one group share carts.';
comment on column session.touchpoints.components is 'Names of the components that visits are pinned to releases of.';

create table session.sessions (
    tenant_id text not null,
    session_id uuid not null,
    touchpoint_id text not null,
    token_hash bytea not null,
    shopper_id uuid,
    subject_digest bytea,
    subject_issuer text,
    subject_sub text,
    device text,
    created_at timestamptz not null,
    last_seen_at timestamptz not null,
    absolute_deadline timestamptz not null,
    visit_started_at timestamptz not null,
    pins bytea not null,
    checkout_cart_ids uuid[],
    revoked_at timestamptz,
    revoke_reason text,
    constraint sessions_pkey primary key (tenant_id, session_id),
    constraint sessions_token_hash_check check (octet_length(token_hash) = 32),
    constraint sessions_revoke_reason_check check (revoke_reason in ('LOGOUT', 'ADMIN', 'COMPROMISED')),
    constraint sessions_revoked_check check ((revoked_at is null) = (revoke_reason is null)),
    constraint sessions_subject_check check (num_nulls(subject_digest, subject_issuer, subject_sub) in (0, 3))
) with (fillfactor = 80);
create index sessions_subject_idx on session.sessions (tenant_id, subject_digest, session_id) where subject_digest is not null;
comment on table session.sessions is 'Presences of devices. Fill factor: a touch must find room beside its row, so that no index is written.';
comment on column session.sessions.token_hash is 'SHA-256 of the token''s secret; the secret itself is nowhere.';
comment on column session.sessions.subject_digest is 'HMAC of issuer and sub under the subject-digest key.';
comment on column session.sessions.last_seen_at is 'Up to the flush interval behind; never goes back.';
comment on column session.sessions.pins is 'tandem.session.storage.v1.VisitPins, equal bytes for equal pins.';
comment on column session.sessions.checkout_cart_ids is 'Carts in checkout, which hold the visit on its releases; null where there is none.';
alter table session.sessions add constraint sessions_checkout_check check (cardinality(checkout_cart_ids) > 0);

create table session.carts (
    tenant_id text not null,
    shopper_id uuid not null,
    cart_id uuid not null,
    group_id text not null,
    currency_code text not null,
    state text not null,
    content bytea not null,
    order_ref text,
    checkout_session_id uuid,
    created_at timestamptz not null,
    updated_at timestamptz not null,
    version bigint not null,
    constraint carts_pkey primary key (tenant_id, shopper_id, cart_id),
    constraint carts_state_check check (state in ('ACTIVE', 'CHECKOUT', 'ORDERED')),
    constraint carts_order_ref_check check ((state = 'ORDERED') = (order_ref is not null)),
    constraint carts_checkout_session_check check (checkout_session_id is null or state = 'CHECKOUT')
) with (fillfactor = 80);
create unique index carts_open_key on session.carts (tenant_id, shopper_id, group_id, currency_code)
    where state in ('ACTIVE', 'CHECKOUT');
comment on table session.carts is 'What shoppers mean to buy. One open cart a shopper, group and currency.';
comment on column session.carts.content is 'tandem.session.storage.v1.CartContent.';
comment on column session.carts.checkout_session_id is 'The session whose visit the checkout holds; locked after the cart.';

create table session.routes (
    tenant_id text not null,
    component_id text not null,
    revision bigint not null,
    stable_release_id uuid,
    stable_version text,
    rollout_id uuid,
    canary_release_id uuid,
    canary_version text,
    exposure_bps integer not null,
    salt text not null,
    is_all_sessions boolean not null,
    withdrawn_release_ids uuid[] not null,
    constraint routes_pkey primary key (tenant_id, component_id),
    constraint routes_exposure_check check (exposure_bps between 0 and 10000)
);
comment on table session.routes is 'The last routes that release-svc told of, to go on with while it is away.';

create table session.route_table (
    environment_id text not null,
    table_epoch text not null,
    constraint route_table_pkey primary key (environment_id)
);
comment on table session.route_table is 'Which environment the routes are of, and of which epoch of release-svc''s database. One row, no tenant''s.';

create table session.events (
    tenant_id text not null,
    event_id bigint not null generated always as identity,
    xid xid8 not null default pg_current_xact_id(),
    kind text not null,
    subject text not null,
    principal text not null,
    occurred_at timestamptz not null,
    data text not null,
    trace_parent text not null,
    constraint events_pkey primary key (tenant_id, event_id)
);
create index events_xid_idx on session.events (xid, event_id);
comment on table session.events is 'Outbox: what happened, written with the change it tells of.';
comment on column session.events.xid is 'The writing transaction, which readers'' snapshots are compared with; the feed reads all tenants by it.';
comment on column session.events.data is 'JSON object, kept verbatim.';

create table session.requests (
    tenant_id text not null,
    principal text not null,
    method text not null,
    request_id uuid not null,
    body_hash bytea not null,
    answer bytea,
    salt bytea,
    created_at timestamptz not null,
    constraint requests_pkey primary key (tenant_id, principal, method, request_id)
);
create index requests_created_idx on session.requests (created_at);
comment on table session.requests is 'Answers to requests with an id, for 24 hours.';
comment on column session.requests.salt is 'What the secret in the answer is derived from, with the ring''s key; the answer itself holds none.';
