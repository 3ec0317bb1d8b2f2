alter table release.components
    add column tier text not null default 'TIER_2',
    add column kind text not null default 'SERVICE',
    add column business_owner_groups text[] not null default '{}',
    add column data_scopes text[] not null default '{}',
    add constraint components_tier_check check (tier in ('TIER_1', 'TIER_2', 'TIER_3', 'TIER_4')) not valid,
    add constraint components_kind_check check (
        kind in ('SERVICE', 'APP', 'ML_MODEL', 'MOBILE_APP', 'SCHEMA')
    ) not valid,
    add constraint components_data_scopes_check check (
        data_scopes <@ array['CARD', 'LEDGER', 'PERSONAL']
    ) not valid;
comment on column release.components.tier is 'How much hangs on it; TIER_1 is most.';
comment on column release.components.business_owner_groups is 'Who answers for it to the business.';
comment on column release.components.data_scopes is 'What it handles that laws and contracts protect.';

alter table release.environments
    add column region text not null default '',
    add column is_production boolean not null default true,
    add column requires_promotion boolean not null default false,
    add column min_bake_seconds bigint not null default 0,
    add column required_evidence text[] not null default '{}',
    add constraint environments_min_bake_check check (min_bake_seconds between 0 and 2592000) not valid;
comment on column release.environments.region is 'A label that freeze windows can be limited to; empty for none.';
comment on column release.environments.requires_promotion is 'Whether a release must have succeeded in the environment before.';
comment on column release.environments.min_bake_seconds is 'For how long it must have been a success there.';
comment on column release.environments.required_evidence is 'Evidence a release needs here: a kind, or a kind, `/` and a suite.';

create table release.dependencies (
    tenant_id text not null,
    component text not null,
    depends_on text not null,
    environment text,
    version_constraint text not null,
    constraint dependencies_key unique nulls not distinct (tenant_id, component, depends_on, environment),
    constraint dependencies_component_fkey foreign key (tenant_id, component)
        references release.components (tenant_id, component),
    constraint dependencies_depends_on_fkey foreign key (tenant_id, depends_on)
        references release.components (tenant_id, component),
    constraint dependencies_environment_fkey foreign key (tenant_id, environment)
        references release.environments (tenant_id, environment),
    constraint dependencies_self_check check (component <> depends_on)
);
comment on table release.dependencies is 'What components need of others. Whoever changes those of a component locks its row and the rows of what it will depend on, and then all of the tenant''s dependencies.';
comment on column release.dependencies.environment is 'Where it is needed; null is everywhere.';
comment on column release.dependencies.version_constraint is 'Versions that will do, as written.';

create index dependencies_depends_on_idx on release.dependencies (tenant_id, depends_on);

create table release.identity_aliases (
    tenant_id text not null,
    alias text not null,
    person text not null,
    created_at timestamptz not null,
    constraint identity_aliases_pkey primary key (tenant_id, alias),
    constraint identity_aliases_self_check check (alias <> person)
);
comment on table release.identity_aliases is 'Other names of people. No person is an alias; whoever adds one locks all of the tenant''s aliases, so that none becomes one.';
comment on column release.identity_aliases.alias is 'An e-mail address in lower case, a log-in of a code host, or another `issuer|sub`.';
comment on column release.identity_aliases.person is '`issuer|sub`.';

create index identity_aliases_person_idx on release.identity_aliases (tenant_id, person, alias);
