-- What a rollback leaves behind: nothing that was made before it goes out by itself.
create table release.holds (
    tenant_id text not null,
    component text not null,
    environment text not null,
    rollout_id uuid not null,
    semver text not null,
    since timestamptz not null,
    constraint holds_pkey primary key (tenant_id, component, environment),
    constraint holds_component_fkey foreign key (tenant_id, component)
        references release.components (tenant_id, component),
    constraint holds_environment_fkey foreign key (tenant_id, environment)
        references release.environments (tenant_id, environment),
    constraint holds_rollout_fkey foreign key (tenant_id, rollout_id)
        references release.rollouts (tenant_id, rollout_id)
);
comment on table release.holds is 'Components that were rolled back in an environment, each by its last rollback. Releases created before do not begin there until a person lifts it, which deletes the row.';
comment on column release.holds.rollout_id is 'The rollout that went back, or took back.';
comment on column release.holds.semver is 'The version that was rolled back.';
comment on column release.holds.since is 'When exposure was taken to 0.';
