create table release.approval_policies (
    tenant_id text not null,
    approval_policy text not null,
    profile text not null,
    quorum integer not null,
    created_at timestamptz not null,
    version bigint not null,
    constraint approval_policies_pkey primary key (tenant_id, approval_policy),
    constraint approval_policies_profile_check check (profile in ('STARTER')),
    constraint approval_policies_quorum_check check (quorum between 0 and 10)
);
comment on table release.approval_policies is 'What releases need before they may be rolled out. Every tenant has `starter` as soon as somebody asks for it.';
comment on column release.approval_policies.version is 'Counts changes; the etag.';

create table release.components (
    tenant_id text not null,
    component text not null,
    display_name text not null,
    owner_groups text[] not null,
    approval_policy text not null,
    created_at timestamptz not null,
    version bigint not null,
    constraint components_pkey primary key (tenant_id, component),
    constraint components_approval_policy_fkey foreign key (tenant_id, approval_policy)
        references release.approval_policies (tenant_id, approval_policy)
);
comment on table release.components is 'Deployable things. Whoever changes one of its releases, rollouts or routes locks its row first, so that a component changes in one transaction at a time.';
comment on column release.components.owner_groups is 'Whose members may change and release it; empty leaves it to the scopes alone.';
comment on column release.components.version is 'Counts changes; the etag.';

create table release.environments (
    tenant_id text not null,
    environment text not null,
    display_name text not null,
    promotion_order integer not null,
    created_at timestamptz not null,
    version bigint not null,
    constraint environments_pkey primary key (tenant_id, environment),
    constraint environments_promotion_order_check check (promotion_order between 0 and 1000)
);
comment on table release.environments is 'Where components run.';
comment on column release.environments.version is 'Counts changes; the etag.';
