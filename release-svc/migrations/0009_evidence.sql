create table release.evidence (
    tenant_id text not null,
    evidence_id uuid not null,
    seq bigint generated always as identity,
    component text not null,
    artifact_digest text not null,
    kind text not null,
    suite text not null,
    passed boolean not null,
    count_passed integer not null,
    count_failed integer not null,
    count_skipped integer not null,
    url text not null,
    summary text not null,
    reviewer text,
    authors text[],
    statement_type text,
    statement bytea,
    producer text not null,
    produced_at timestamptz not null,
    submitted_at timestamptz not null,
    revoker text,
    revoked_at timestamptz,
    revoke_reason text,
    constraint evidence_pkey primary key (tenant_id, evidence_id),
    constraint evidence_component_fkey foreign key (tenant_id, component)
        references release.components (tenant_id, component),
    constraint evidence_kind_check check (kind in ('TEST_REPORT', 'REVIEW', 'SCAN', 'ROLLBACK_REHEARSAL')),
    constraint evidence_passed_check check (not passed or count_failed = 0),
    constraint evidence_review_check check (
        (reviewer is null) = (kind <> 'REVIEW')
        and (authors is null) = (reviewer is null)
        and reviewer <> all (authors)
    ),
    constraint evidence_statement_check check ((statement is null) = (statement_type is null)),
    constraint evidence_revocation_check check (
        (revoked_at is null) = (revoker is null)
        and (revoked_at is null) = (revoke_reason is null)
    )
);
comment on table release.evidence is 'What was found out about artifacts. Nothing in a row changes but that it is revoked, once.';
comment on column release.evidence.seq is 'Order of arrival, also within one instant.';
comment on column release.evidence.artifact_digest is 'What it is about; it says nothing of any other artifact.';
comment on column release.evidence.reviewer is 'Of a REVIEW: who looked, and at whose work (authors).';
comment on column release.evidence.statement is 'As it was handed in; nobody has checked its signature.';
comment on column release.evidence.producer is 'Who handed it in.';

create unique index evidence_seq_idx on release.evidence (tenant_id, seq);
create index evidence_suite_idx on release.evidence
    (tenant_id, component, artifact_digest, kind, suite, produced_at, seq);
create index evidence_digest_idx on release.evidence (tenant_id, artifact_digest, seq);
