create table release.routes (
    tenant_id text not null,
    component text not null,
    environment text not null,
    revision bigint not null,
    stable_release_id uuid,
    stable_semver text,
    rollout_id uuid,
    rollout_release_id uuid,
    rollout_semver text,
    exposure_bps integer,
    assignment_policy text,
    withdrawn_release_ids uuid[] not null,
    trace_parent text not null,
    constraint routes_pkey primary key (tenant_id, component, environment),
    constraint routes_component_fkey foreign key (tenant_id, component)
        references release.components (tenant_id, component),
    constraint routes_environment_fkey foreign key (tenant_id, environment)
        references release.environments (tenant_id, environment),
    constraint routes_stable_check check ((stable_release_id is null) = (stable_semver is null)),
    constraint routes_rollout_check check (
        num_nulls(rollout_id, rollout_release_id, rollout_semver, exposure_bps, assignment_policy) in (0, 5)
    ),
    constraint routes_withdrawn_check check (cardinality(withdrawn_release_ids) <= 32)
);
comment on table release.routes is 'Which releases of a component an environment serves; written with every transition of a rollout.';
comment on column release.routes.revision is 'Rises by one with every change.';
comment on column release.routes.rollout_id is 'The rollout under way, with the columns up to assignment_policy; null where there is none.';
comment on column release.routes.withdrawn_release_ids is 'Releases that were rolled back here, newest first.';
comment on column release.routes.trace_parent is 'W3C trace context of the request that made this revision; empty where there was none.';

-- Session services ask for one environment in every tenant, so this index is not led by tenant_id.
create index routes_environment_idx on release.routes (environment, tenant_id, component);

create table release.route_replicas (
    environment text not null,
    replica_id uuid not null,
    seen_at timestamptz not null,
    constraint route_replicas_pkey primary key (environment, replica_id)
);
comment on table release.route_replicas is 'Session services that watch routes. They serve every tenant, so none leads the key.';
comment on column release.route_replicas.seen_at is 'When it last had its watch open or reported; written every few seconds.';

create table release.routes_applied (
    tenant_id text not null,
    component text not null,
    environment text not null,
    replica_id uuid not null,
    revision bigint not null,
    applied_at timestamptz not null,
    constraint routes_applied_pkey primary key (tenant_id, component, environment, replica_id),
    constraint routes_applied_route_fkey foreign key (tenant_id, component, environment)
        references release.routes (tenant_id, component, environment),
    constraint routes_applied_replica_fkey foreign key (environment, replica_id)
        references release.route_replicas (environment, replica_id) on delete cascade
);
comment on table release.routes_applied is 'Which revision of a route a session service acts on, as it reported.';

-- For the cascade from route_replicas.
create index routes_applied_replica_idx on release.routes_applied (environment, replica_id);
