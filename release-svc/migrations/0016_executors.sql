-- Programs that deploy: what there is for them to do, and what they found running.
alter table release.environments add column needs_executor boolean not null default false;
comment on column release.environments.needs_executor is 'Whether rollouts that begin here wait for an executor at each step.';

create table release.tasks (
    tenant_id text not null,
    task_id uuid not null,
    seq bigint generated always as identity,
    kind text not null,
    component text not null,
    environment text not null,
    rollout_id uuid not null,
    step integer not null,
    release_id uuid not null,
    exposure_bps integer not null,
    state text not null,
    not_before timestamptz not null,
    fencing_token bigint not null,
    failures integer not null,
    executor text,
    lease_ends_at timestamptz,
    message text not null,
    counted_rollout_id uuid,
    counted_since timestamptz,
    forced_at timestamptz,
    created_at timestamptz not null,
    ended_at timestamptz,
    constraint tasks_pkey primary key (tenant_id, task_id),
    constraint tasks_step_key unique (tenant_id, rollout_id, kind, step),
    constraint tasks_component_fkey foreign key (tenant_id, component)
        references release.components (tenant_id, component),
    constraint tasks_environment_fkey foreign key (tenant_id, environment)
        references release.environments (tenant_id, environment),
    constraint tasks_rollout_fkey foreign key (tenant_id, rollout_id)
        references release.rollouts (tenant_id, rollout_id),
    constraint tasks_release_fkey foreign key (tenant_id, release_id)
        references release.releases (tenant_id, release_id),
    constraint tasks_kind_check check (kind in ('EXPOSE', 'RETIRE')),
    constraint tasks_state_check check (state in ('QUEUED', 'LEASED', 'DONE', 'FAILED', 'CANCELLED')),
    constraint tasks_step_check check (step >= 0 and exposure_bps between 0 and 10000 and failures >= 0),
    constraint tasks_lease_check check (
        (lease_ends_at is not null) = (state = 'LEASED')
        and (executor is not null) = (fencing_token > 0)
        and (fencing_token > 0 or state in ('QUEUED', 'CANCELLED'))
    ),
    constraint tasks_retire_check check (
        num_nulls(counted_rollout_id, counted_since, forced_at) = case kind when 'RETIRE' then 0 else 3 end
    ),
    constraint tasks_end_check check ((ended_at is not null) = (state in ('DONE', 'FAILED', 'CANCELLED')))
);
comment on table release.tasks is 'What executors are to do for rollouts.';
comment on column release.tasks.seq is 'Order of creation, also within one instant.';
comment on column release.tasks.step is 'The rollout''s step then.';
comment on column release.tasks.exposure_bps is 'Of EXPOSE: the share of visits to be ready for.';
comment on column release.tasks.not_before is 'Not handed out earlier, as the last attempt failed.';
comment on column release.tasks.fencing_token is 'Counts how often it was handed out; whoever names an older one is refused.';
comment on column release.tasks.lease_ends_at is 'Whoever asks from then on gets it; a row stays LEASED until somebody does.';
comment on column release.tasks.counted_rollout_id is 'Of RETIRE: the rollout whose live visits tell whether the release is in use, as its own release where it is the task''s rollout, else as what it replaced.';
comment on column release.tasks.counted_since is 'Of RETIRE: older counts of them do not tell.';
comment on column release.tasks.forced_at is 'Of RETIRE: handed out from then on whatever is counted.';

create unique index tasks_seq_idx on release.tasks (tenant_id, seq);
create index tasks_open_idx on release.tasks (tenant_id, environment, seq) where state in ('QUEUED', 'LEASED');
create index tasks_counted_idx on release.tasks (tenant_id, counted_rollout_id) where state in ('QUEUED', 'LEASED');
create index tasks_release_idx on release.tasks (tenant_id, release_id, environment);

create table release.observed_versions (
    tenant_id text not null,
    component text not null,
    environment text not null,
    versions text[] not null,
    is_drift boolean not null,
    observer text not null,
    observed_at timestamptz not null,
    constraint observed_versions_pkey primary key (tenant_id, component, environment),
    constraint observed_versions_component_fkey foreign key (tenant_id, component)
        references release.components (tenant_id, component),
    constraint observed_versions_environment_fkey foreign key (tenant_id, environment)
        references release.environments (tenant_id, environment)
);
comment on table release.observed_versions is 'What executors found running, where it is not what they had found before.';
comment on column release.observed_versions.versions is 'Sorted, each once.';
comment on column release.observed_versions.observed_at is 'When it was found first.';
