create table release.events (
    event_id bigint generated always as identity,
    xid xid8 not null default pg_current_xact_id(),
    tenant_id text not null,
    kind text not null,
    subject text not null,
    principal text not null,
    occurred_at timestamptz not null,
    data text not null,
    trace_parent text not null,
    constraint events_pkey primary key (tenant_id, event_id)
);
comment on table release.events is 'What happened, written with the change it tells of: the outbox and the audit trail.';
comment on column release.events.event_id is 'Orders the events of one subject; across subjects late commits come out of order.';
comment on column release.events.xid is 'The writing transaction, for readers who go on from a snapshot.';
comment on column release.events.data is 'JSON, kept byte for byte.';
comment on column release.events.trace_parent is 'W3C trace context of the request that caused it; empty where there was none.';

-- The feed reads every tenant's events, so this index is not led by tenant_id.
create index events_xid_idx on release.events (xid, event_id);

create table release.requests (
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
comment on table release.requests is 'Mutations that carried a request id, so that a repetition gets the same answer.';
comment on column release.requests.answer is 'The encoded response; null only inside the transaction that makes it.';
comment on column release.requests.salt is 'What a secret in the answer is derived from; no answer of this service carries one.';

create index requests_created_at_idx on release.requests (created_at);
