create table release.releases (
    tenant_id text not null,
    release_id uuid not null,
    seq bigint generated always as identity,
    component text not null,
    semver text not null,
    semver_key text collate "C" not null,
    state text not null,
    artifact_digest text,
    notes text not null,
    author text not null,
    submitter text,
    submitted_at timestamptz,
    quorum integer,
    created_at timestamptz not null,
    version bigint not null,
    constraint releases_pkey primary key (tenant_id, release_id),
    constraint releases_semver_key unique (tenant_id, component, semver_key),
    constraint releases_component_fkey foreign key (tenant_id, component)
        references release.components (tenant_id, component),
    constraint releases_state_check check (state in ('DRAFT', 'PENDING_APPROVAL', 'APPROVED', 'ACTIVE', 'RELEASED',
        'REJECTED', 'CANCELLED', 'ROLLED_BACK', 'SUPERSEDED')),
    constraint releases_submission_check check (
        (submitter is null) = (submitted_at is null)
        and (submitter is null) = (quorum is null)
        and (state = 'CANCELLED' or (submitter is null) = (state = 'DRAFT'))
    )
);
comment on table release.releases is 'Versions of components on their way through governance.';
comment on column release.releases.seq is 'Order of creation, also within one instant.';
comment on column release.releases.semver is 'The version as its author wrote it.';
comment on column release.releases.semver_key is 'The version in a form whose byte order is the order of semantic versions; 1.1 and 1.1.0 have one.';
comment on column release.releases.quorum is 'Approvals it needs, as its policy said when it was submitted.';
comment on column release.releases.version is 'Counts transitions; the etag.';

create unique index releases_seq_idx on release.releases (tenant_id, seq);
create index releases_component_seq_idx on release.releases (tenant_id, component, seq);

create table release.votes (
    tenant_id text not null,
    release_id uuid not null,
    voter text not null,
    approve boolean not null,
    reason text not null,
    voted_at timestamptz not null,
    constraint votes_pkey primary key (tenant_id, release_id, voter),
    constraint votes_release_fkey foreign key (tenant_id, release_id)
        references release.releases (tenant_id, release_id),
    constraint votes_reason_check check (approve or reason <> '')
);
comment on table release.votes is 'Votes on submitted releases. The key lets nobody vote twice.';
