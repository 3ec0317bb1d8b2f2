-- The session side of rollouts: what holds and what stops, who was dealt an arm by chance, what became of them, and the
-- counts that release-svc is told. The previous binary goes on writing rows without the new columns.

alter table session.sessions
    add column pin_held_until timestamptz,
    add column pin_hold_reason text,
    add column left_rollout_ids uuid[],
    add constraint sessions_pin_hold_check check ((pin_held_until is null) = (pin_hold_reason is null)) not valid;
comment on column session.sessions.pin_held_until is 'HoldPin holds the visit on its releases until then; whether it is over is decided when it is read.';
comment on column session.sessions.left_rollout_ids is 'Rollouts whose canary the session was taken off, newest last: it does not come back to them. Null where there is none.';

alter table session.routes
    add column step integer not null default 0,
    add column guards text[] not null default '{}',
    add column ended_release_ids uuid[] not null default '{}';
comment on column session.routes.step is 'Present step of the rollout; 0 where there is none.';
comment on column session.routes.guards is 'Names of the outcomes that the rollout asks for.';
comment on column session.routes.ended_release_ids is 'Those withdrawn whose visits end with their next call.';

create table session.kills (
    tenant_id text not null,
    release_id uuid not null,
    component_id text not null,
    principal text not null,
    reason text not null,
    killed_at timestamptz not null,
    reported_at timestamptz,
    constraint kills_pkey primary key (tenant_id, release_id)
);
comment on table session.kills is 'Releases that are stopped here. Every statement that writes pins looks here, too: none stores a killed release anew.';
comment on column session.kills.reported_at is 'When release-svc took note; null until then.';

create table session.enrolments (
    tenant_id text not null,
    session_id uuid not null,
    rollout_id uuid not null,
    step integer not null,
    is_canary boolean not null,
    enrolled_at timestamptz not null,
    is_counted boolean not null default false,
    constraint enrolments_pkey primary key (tenant_id, session_id, rollout_id)
);
create index enrolments_uncounted_idx on session.enrolments (tenant_id, rollout_id) where not is_counted;
comment on table session.enrolments is 'Sessions that chance dealt an arm of a rollout, once each, written with the pins. Deleted with the session.';
comment on column session.enrolments.step is 'The rollout''s step then.';
comment on column session.enrolments.is_counted is 'Whether it is in signal_counts; set in the transaction that adds it there.';

create table session.outcomes (
    tenant_id text not null,
    session_id uuid not null,
    rollout_id uuid not null,
    guard text not null,
    step integer not null,
    is_canary boolean not null,
    occurred_at timestamptz not null,
    is_counted boolean not null default false,
    constraint outcomes_pkey primary key (tenant_id, session_id, rollout_id, guard)
);
create index outcomes_uncounted_idx on session.outcomes (tenant_id, rollout_id) where not is_counted;
comment on table session.outcomes is 'What became of enrolled sessions, at most one of each guard. Deleted with the session.';
comment on column session.outcomes.step is 'What it is booked under: the step of enrolment, or the present one where the rollout assigns all sessions; the arm alike.';

create table session.signal_counts (
    tenant_id text not null,
    rollout_id uuid not null,
    step integer not null,
    is_canary boolean not null,
    guard text not null,
    count bigint not null,
    ended_at timestamptz,
    constraint signal_counts_pkey primary key (tenant_id, rollout_id, step, is_canary, guard)
);
comment on table session.signal_counts is 'Enrolments and outcomes, added up since each rollout began. They only grow.';
comment on column session.signal_counts.guard is 'Empty for enrolments.';
comment on column session.signal_counts.ended_at is 'When release-svc asked for no more of them; deleted a day later.';

create table session.visit_counts (
    tenant_id text not null,
    rollout_id uuid not null,
    canary bigint not null,
    control bigint not null,
    counted_at timestamptz not null,
    constraint visit_counts_pkey primary key (tenant_id, rollout_id)
);
comment on table session.visit_counts is 'Live visits on the release of a rollout, and on the one that it replaces, by the last scan.';

create table session.signal_source (
    is_only boolean not null default true,
    source_id uuid not null,
    cluster text not null,
    epoch text not null,
    scan_holder uuid,
    scan_held_until timestamptz,
    constraint signal_source_pkey primary key (is_only),
    constraint signal_source_only_check check (is_only)
);
comment on table session.signal_source is 'What this database is called in reports, and which replica counts live visits. One row, no tenant''s.';
comment on column session.signal_source.cluster is 'The database server''s own name for itself; another one means that this was restored, or failed over, and begins an epoch.';
