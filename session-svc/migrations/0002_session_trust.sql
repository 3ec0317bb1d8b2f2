-- Identity, token lineages and mass revocation. Columns are added with defaults that the previous binary's rows mean, and
-- it goes on writing rows without them.

alter table session.sessions
    add column epoch integer not null default 0,
    add column is_remembered boolean not null default false,
    add column place text,
    add column authenticated_at timestamptz,
    add column assurance_level smallint,
    add column acr text,
    add column amr text[],
    add column upstream_session text,
    add column lineage bytea,
    drop constraint sessions_revoke_reason_check,
    add constraint sessions_revoke_reason_check check (revoke_reason in ('LOGOUT', 'ADMIN', 'COMPROMISED', 'EVICTED',
        'SUBJECT_DISABLED', 'CREDENTIAL_CHANGED', 'STALE_LINEAGE', 'LEAKED')) not valid,
    add constraint sessions_assurance_level_check check (assurance_level between 1 and 3) not valid,
    add constraint sessions_authenticated_check check (authenticated_at is null or subject_digest is not null) not valid;
comment on column session.sessions.epoch is 'session_epoch of the touchpoint when it was made; a lower one than there means revoked.';
comment on column session.sessions.authenticated_at is 'Of the last authentication; null beside a subject means created_at.';
comment on column session.sessions.assurance_level is 'Reached then, 1 to 3 (NIST SP 800-63B-4); null beside a subject means 1.';
comment on column session.sessions.upstream_session is '`sid` of the identity provider.';
comment on column session.sessions.lineage is 'tandem.session.storage.v1.TokenLineage; null until the token is first replaced.';

alter table session.touchpoints
    add column remember_idle_timeout_secs integer,
    add column remember_absolute_lifetime_secs integer,
    add column level_2_max_age_secs integer not null default 86400,
    add column level_3_max_age_secs integer not null default 43200,
    add column session_limit integer,
    add column session_limit_action text,
    add column rotation_grace_secs integer not null default 30,
    add column allowed_issuers text[] not null default '{}',
    add column session_epoch integer not null default 0,
    add column sessions_revoked_at timestamptz,
    add column sessions_revoke_reason text,
    add constraint touchpoints_remember_check check (
        num_nulls(remember_idle_timeout_secs, remember_absolute_lifetime_secs) in (0, 2)
        and remember_idle_timeout_secs <= remember_absolute_lifetime_secs),
    add constraint touchpoints_session_limit_check check (
        num_nulls(session_limit, session_limit_action) in (0, 2)
        and session_limit > 0 and session_limit_action in ('REJECT', 'EVICT_LEAST_RECENT'));
comment on column session.touchpoints.session_epoch is 'Rises with every revocation of all sessions made until then.';

create table session.subjects (
    tenant_id text not null,
    subject_digest bytea not null,
    shopper_id uuid,
    disabled_at timestamptz,
    created_at timestamptz not null,
    constraint subjects_pkey primary key (tenant_id, subject_digest)
);
comment on table session.subjects is 'Known identities: locked by whoever binds, counts or ends their sessions.';
comment on column session.subjects.shopper_id is 'Their shopper on every device; null until a first session with a shopper.';

create table session.attributes (
    tenant_id text not null,
    session_id uuid not null,
    key text not null,
    value text not null,
    version bigint not null,
    constraint attributes_pkey primary key (tenant_id, session_id, key)
);
comment on table session.attributes is 'What applications keep with a session; written under its row''s lock, which the 64 KiB are counted under.';

create table session.elevations (
    tenant_id text not null,
    session_id uuid not null,
    token_hash bytea not null,
    action text not null,
    detail_hash bytea not null,
    expires_at timestamptz not null,
    redeemed_at timestamptz,
    constraint elevations_pkey primary key (tenant_id, session_id, token_hash)
);
comment on table session.elevations is 'Leave for one action each, used once: by the update from redeemed_at null.';

create table session.id_tokens (
    tenant_id text not null,
    digest bytea not null,
    expires_at timestamptz not null,
    constraint id_tokens_pkey primary key (tenant_id, digest)
);
create index id_tokens_expires_idx on session.id_tokens (expires_at);
comment on table session.id_tokens is 'ID tokens that were used, until nobody would take them anyway.';

create table session.purge_walk (
    singleton boolean not null default true,
    tenant_id text not null,
    session_id uuid not null,
    began_at timestamptz not null,
    completed_at timestamptz,
    constraint purge_walk_pkey primary key (singleton),
    constraint purge_walk_singleton_check check (singleton)
);
comment on table session.purge_walk is 'Where the walk over all sessions is. One row, no tenant''s; whoever locks it walks on.';
comment on column session.purge_walk.completed_at is 'When a walk last reached the end.';

alter table session.carts
    add column merged_into_cart_id uuid,
    drop constraint carts_state_check,
    add constraint carts_state_check check (state in ('ACTIVE', 'CHECKOUT', 'ORDERED', 'MERGED')) not valid,
    add constraint carts_merged_check check ((state = 'MERGED') = (merged_into_cart_id is not null)) not valid;
