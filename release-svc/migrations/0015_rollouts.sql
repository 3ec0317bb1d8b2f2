-- Rollouts that wait, pause, drain, and go on by themselves; and those that take a succeeded one back.
alter table release.rollouts
    add column mode text not null default 'FORWARD',
    add column rollback_of uuid,
    add column plan text not null default '{}',
    add column phase text,
    add column entered_at timestamptz,
    add column waiting_for text[] not null default '{}',
    add column pause text,
    add column harms text not null default '[]',
    add column superseded_by uuid,
    drop constraint rollouts_state_check,
    add constraint rollouts_state_check check (state in ('WAITING', 'RUNNING', 'PAUSED', 'DRAINING', 'SUCCEEDED',
        'ROLLING_BACK', 'ROLLBACK_FAILED', 'ROLLED_BACK', 'CANCELLED', 'SUPERSEDED')) not valid,
    add constraint rollouts_mode_check check (
        case mode
            when 'FORWARD' then rollback_of is null
            when 'ROLLBACK' then rollback_of is not null and state in ('ROLLING_BACK', 'ROLLBACK_FAILED', 'ROLLED_BACK')
            else false
        end
    ) not valid,
    add constraint rollouts_rollback_of_fkey foreign key (tenant_id, rollback_of)
        references release.rollouts (tenant_id, rollout_id) not valid,
    add constraint rollouts_superseded_by_fkey foreign key (tenant_id, superseded_by)
        references release.rollouts (tenant_id, rollout_id) deferrable initially deferred not valid,
    add constraint rollouts_phase_check check (
        phase is null or (phase in ('DEPLOYING', 'EXPOSING', 'BAKING') and state in ('RUNNING', 'PAUSED'))
    ) not valid,
    add constraint rollouts_pause_check check ((pause is not null) = (state = 'PAUSED')) not valid,
    add constraint rollouts_superseded_check check ((superseded_by is not null) = (state = 'SUPERSEDED')) not valid,
    drop constraint rollouts_exposure_check,
    add constraint rollouts_exposure_check check (
        case
            when state in ('RUNNING', 'PAUSED') then exposure_bps between 0 and step_exposures_bps[step + 1]
            when state in ('DRAINING', 'SUCCEEDED') then exposure_bps = 10000
            else exposure_bps = 0
        end
    ) not valid,
    drop constraint rollouts_end_check,
    add constraint rollouts_end_check check (
        (ended_at is not null) = (state in ('SUCCEEDED', 'ROLLED_BACK', 'CANCELLED', 'SUPERSEDED'))
    ) not valid,
    drop constraint rollouts_reason_check,
    add constraint rollouts_reason_check check (
        (rollback_reason is not null) = (state in ('ROLLING_BACK', 'ROLLBACK_FAILED', 'ROLLED_BACK', 'CANCELLED'))
    ) not valid;
comment on column release.rollouts.version is 'Counts transitions.';
comment on column release.rollouts.mode is 'FORWARD; or ROLLBACK, which takes back what rollback_of brought.';
comment on column release.rollouts.plan is 'JSON: how long steps are watched, what guards them, and what happens when nobody can tell.';
comment on column release.rollouts.phase is 'What a step is at; null where an older version wrote it, which is EXPOSING.';
comment on column release.rollouts.entered_at is 'When the present state or phase began; null where an older version wrote it.';
comment on column release.rollouts.waiting_for is 'Kinds of what held a WAITING one back when that was last looked at.';
comment on column release.rollouts.pause is 'JSON: who keeps a PAUSED one, and why.';
comment on column release.rollouts.harms is 'JSON: what guards found, each once, and who cleared it. Only grows.';
comment on column release.rollouts.exposure_bps is 'Share of visits that session services are told; below the step''s while an executor makes room for it.';

-- Forward, at most one is under way in an environment, and at most one waits; nothing keeps anything from going back.
drop index release.rollouts_under_way_key;
create unique index rollouts_under_way_key on release.rollouts (tenant_id, component, environment)
    where mode = 'FORWARD' and state in ('RUNNING', 'PAUSED', 'DRAINING', 'ROLLING_BACK', 'ROLLBACK_FAILED');
create unique index rollouts_waiting_key on release.rollouts (tenant_id, component, environment)
    where state = 'WAITING';
-- What the controller looks at, in every tenant.
drop index release.rollouts_rolling_back_idx;
create index rollouts_live_idx on release.rollouts (tenant_id, rollout_id)
    where state in ('WAITING', 'RUNNING', 'PAUSED', 'DRAINING', 'ROLLING_BACK');

alter table release.routes
    add column ended_release_ids uuid[] not null default '{}',
    add column step integer not null default 0,
    add column guards text not null default '[]';
comment on column release.routes.ended_release_ids is 'Those of withdrawn_release_ids whose visits end, whatever holds them.';
comment on column release.routes.step is 'The rollout''s present step.';
comment on column release.routes.guards is 'JSON: the rollout''s guards.';

create table release.signal_sources (
    environment text not null,
    source_id text not null,
    source_epoch text not null,
    past_epochs text[] not null default '{}',
    seen_at timestamptz not null,
    constraint signal_sources_pkey primary key (environment, source_id),
    constraint signal_sources_past_check check (source_epoch <> all (past_epochs))
);
comment on table release.signal_sources is 'Databases of session services that count outcomes. They serve every tenant, so none leads the key.';
comment on column release.signal_sources.source_epoch is 'New when the source''s database was restored; counts of past epochs do not count.';

create table release.signal_counts (
    tenant_id text not null,
    rollout_id uuid not null,
    source_id text not null,
    step integer not null,
    is_canary boolean not null,
    guard text not null,
    source_epoch text not null,
    count bigint not null,
    constraint signal_counts_pkey primary key (tenant_id, rollout_id, source_id, step, is_canary, guard),
    constraint signal_counts_rollout_fkey foreign key (tenant_id, rollout_id)
        references release.rollouts (tenant_id, rollout_id),
    constraint signal_counts_count_check check (count >= 0 and step >= 0)
);
comment on table release.signal_counts is 'What a source counted of a rollout since it began.';
comment on column release.signal_counts.guard is 'Whose outcomes; empty for units.';
comment on column release.signal_counts.count is 'Grows within an epoch of the source.';

create table release.visit_counts (
    tenant_id text not null,
    rollout_id uuid not null,
    source_id text not null,
    counted_at timestamptz not null,
    canary bigint not null,
    control bigint not null,
    constraint visit_counts_pkey primary key (tenant_id, rollout_id, source_id),
    constraint visit_counts_rollout_fkey foreign key (tenant_id, rollout_id)
        references release.rollouts (tenant_id, rollout_id)
);
comment on table release.visit_counts is 'Live visits on a rollout''s release (canary) and on what it replaces (control), as a source last counted them.';
