create table release.outbox_positions (
    name text not null,
    position text,
    cluster text,
    constraint outbox_positions_pkey primary key (name),
    constraint outbox_positions_name_check check (name in ('fan_out', 'purge'))
);
comment on table release.outbox_positions is 'How far those are who go through the events of all tenants. One row each, no tenant''s; who works locks it.';
comment on column release.outbox_positions.position is 'fan_out: up to where webhooks were told, while there are any. purge: a snapshot that sees all that was deleted; null before the first time.';
comment on column release.outbox_positions.cluster is 'purge: the database that the position is of.';
insert into release.outbox_positions (name, position) values ('fan_out', pg_current_snapshot()::text), ('purge', null);

create table release.webhooks (
    tenant_id text not null,
    webhook_id uuid not null,
    url text not null,
    types text[] not null,
    description text not null,
    salt bytea not null,
    old_salt bytea,
    old_salt_until timestamptz,
    disabled_reason text,
    failing_since timestamptz,
    created_at timestamptz not null,
    version bigint not null,
    constraint webhooks_pkey primary key (tenant_id, webhook_id),
    constraint webhooks_old_salt_check check ((old_salt is null) = (old_salt_until is null)),
    constraint webhooks_disabled_reason_check check (disabled_reason in ('REQUESTED', 'GONE', 'FAILING'))
);
comment on table release.webhooks is 'Receivers of events over HTTP.';
comment on column release.webhooks.salt is 'What the secret is derived from, with the ring''s key that it names; the secret itself is nowhere.';
comment on column release.webhooks.old_salt is 'The one before the last rotation, which signs, too, until then.';
comment on column release.webhooks.failing_since is 'When the first of the attempts failed that have all failed since; null after a success.';

create table release.webhook_deliveries (
    tenant_id text not null,
    webhook_id uuid not null,
    event_id bigint not null,
    kind text not null,
    subject text not null,
    occurred_at timestamptz not null,
    body text not null,
    trace_parent text not null,
    state text not null,
    attempts integer not null,
    first_attempted_at timestamptz,
    attempted_at timestamptz,
    latency_ms integer,
    http_status integer,
    error text,
    excerpt text,
    created_at timestamptz not null,
    constraint webhook_deliveries_pkey primary key (tenant_id, webhook_id, event_id),
    constraint webhook_deliveries_state_check check (state in ('PENDING', 'DELIVERED', 'DEAD_LETTERED'))
);
create index webhook_deliveries_pending_idx on release.webhook_deliveries (tenant_id, webhook_id, subject, event_id)
    where state = 'PENDING';
-- The purge goes through all tenants'.
create index webhook_deliveries_created_at_idx on release.webhook_deliveries (created_at);
comment on table release.webhook_deliveries is 'One row a webhook and event: the log, and what is still to be sent.';
comment on column release.webhook_deliveries.body is 'The CloudEvent, the same bytes with every attempt; outlives the event.';
comment on column release.webhook_deliveries.attempted_at is 'This and the next four columns are of the last attempt.';

create table release.webhook_lanes (
    tenant_id text not null,
    webhook_id uuid not null,
    subject text not null,
    next_attempt_at timestamptz not null,
    claim bigint not null,
    constraint webhook_lanes_pkey primary key (tenant_id, webhook_id, subject)
);
create index webhook_lanes_due_idx on release.webhook_lanes (tenant_id, webhook_id, next_attempt_at);
comment on table release.webhook_lanes is 'What is pending for one webhook about one subject: the event with the smallest id goes next. Exists while anything is pending.';
comment on column release.webhook_lanes.next_attempt_at is 'When the next attempt is due; while one is under way, when its lease ends.';
comment on column release.webhook_lanes.claim is 'The transaction that leased it last: who comes back with another one has lost the lease.';
