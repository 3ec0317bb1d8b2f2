create table release.rollouts (
    tenant_id text not null,
    rollout_id uuid not null,
    seq bigint generated always as identity,
    component text not null,
    environment text not null,
    release_id uuid not null,
    semver text not null,
    previous_release_id uuid,
    previous_semver text,
    state text not null,
    step_exposures_bps integer[] not null,
    step integer not null,
    exposure_bps integer not null,
    assignment_policy text not null,
    rollback_reason text,
    starter text not null,
    started_at timestamptz not null,
    ended_at timestamptz,
    version bigint not null,
    constraint rollouts_pkey primary key (tenant_id, rollout_id),
    constraint rollouts_component_fkey foreign key (tenant_id, component)
        references release.components (tenant_id, component),
    constraint rollouts_environment_fkey foreign key (tenant_id, environment)
        references release.environments (tenant_id, environment),
    constraint rollouts_release_fkey foreign key (tenant_id, release_id)
        references release.releases (tenant_id, release_id),
    constraint rollouts_previous_fkey foreign key (tenant_id, previous_release_id)
        references release.releases (tenant_id, release_id),
    constraint rollouts_previous_check check (
        (previous_release_id is null) = (previous_semver is null) and previous_release_id <> release_id
    ),
    constraint rollouts_state_check check (state in ('RUNNING', 'SUCCEEDED', 'ROLLING_BACK', 'ROLLED_BACK')),
    constraint rollouts_assignment_policy_check check (assignment_policy in ('NEW_VISITS', 'ALL_SESSIONS')),
    constraint rollouts_step_check check (
        step between 0 and cardinality(step_exposures_bps) - 1
        and step_exposures_bps[cardinality(step_exposures_bps)] = 10000
    ),
    constraint rollouts_exposure_check check (
        exposure_bps = case state
            when 'RUNNING' then step_exposures_bps[step + 1]
            when 'SUCCEEDED' then 10000
            else 0
        end
    ),
    constraint rollouts_end_check check ((ended_at is not null) = (state in ('SUCCEEDED', 'ROLLED_BACK'))),
    constraint rollouts_reason_check check (
        (rollback_reason is not null) = (state in ('ROLLING_BACK', 'ROLLED_BACK'))
    )
);
comment on table release.rollouts is 'Releases moving into environments.';
comment on column release.rollouts.seq is 'Order of creation, also within one instant.';
comment on column release.rollouts.semver is 'The release''s version as written, which never changes.';
comment on column release.rollouts.previous_release_id is 'What it replaces; null for a component''s first release in the environment.';
comment on column release.rollouts.step_exposures_bps is 'Exposure of each step in basis points, rising to 10000.';
comment on column release.rollouts.step is 'Index of the present step, from 0.';
comment on column release.rollouts.version is 'Counts transitions; the etag.';

-- At most one rollout of a component is under way in an environment.
create unique index rollouts_under_way_key on release.rollouts (tenant_id, component, environment)
    where state in ('RUNNING', 'ROLLING_BACK');
create unique index rollouts_seq_idx on release.rollouts (tenant_id, seq);
create index rollouts_component_seq_idx on release.rollouts (tenant_id, component, seq);
-- The pass that confirms rollbacks looks for these in every tenant.
create index rollouts_rolling_back_idx on release.rollouts (tenant_id, rollout_id) where state = 'ROLLING_BACK';
