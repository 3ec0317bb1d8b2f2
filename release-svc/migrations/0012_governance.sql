-- Approval policies with rules, of which every version is kept.
alter table release.approval_policies
    add column rules text,
    drop constraint approval_policies_profile_check,
    add constraint approval_policies_profile_check check (profile in ('STARTER', 'STANDARD', 'SOX', 'PCI_DSS'));
comment on column release.approval_policies.rules is 'JSON; null stands for what the profile says.';

create table release.approval_policy_versions (
    tenant_id text not null,
    approval_policy text not null,
    version bigint not null,
    profile text not null,
    quorum integer not null,
    rules text,
    state text not null,
    author text not null,
    author_person text not null,
    created_at timestamptz not null,
    confirmer text,
    confirmed_at timestamptz,
    constraint approval_policy_versions_pkey primary key (tenant_id, approval_policy, version),
    constraint approval_policy_versions_policy_fkey foreign key (tenant_id, approval_policy)
        references release.approval_policies (tenant_id, approval_policy),
    constraint approval_policy_versions_state_check check (state in ('PROPOSED', 'IN_FORCE', 'DROPPED')),
    constraint approval_policy_versions_confirmed_check check (
        (confirmer is null) = (confirmed_at is null)
        and (confirmer is null or (state = 'IN_FORCE' and confirmer <> author))
    )
);
comment on table release.approval_policy_versions is 'Every version that an approval policy had or was meant to have. IN_FORCE says that it came into force, not that it still is.';
comment on column release.approval_policy_versions.author_person is 'The human being that author is, by the aliases of then.';
comment on column release.approval_policy_versions.confirmer is 'The second person, where the profile asks for two.';

-- One change of a policy waits for its second person at a time.
create unique index approval_policy_versions_proposed_key on release.approval_policy_versions (tenant_id, approval_policy)
    where state = 'PROPOSED';

alter table release.releases
    add column revision integer not null default 1,
    add column change text not null default '{}',
    add column editors text[] not null default '{}',
    add column risk text,
    add column band text,
    add column quarantine_reason text,
    add column quarantined_by text,
    add column quarantined_at timestamptz,
    add constraint releases_quarantine_check check (
        num_nulls(quarantine_reason, quarantined_by, quarantined_at) in (0, 3)
    ) not valid,
    drop constraint releases_state_check,
    add constraint releases_state_check check (state in ('DRAFT', 'ASSESSING', 'PENDING_APPROVAL', 'APPROVED', 'ACTIVE',
        'RELEASED', 'REJECTED', 'CANCELLED', 'ABANDONED', 'ROLLED_BACK', 'SUPERSEDED')) not valid;
comment on column release.releases.revision is 'Which draft of it this is; a revised one is handed in and voted on anew.';
comment on column release.releases.change is 'JSON: commits, size, reversibility, rollback plan and what else people say of the change.';
comment on column release.releases.editors is 'Who wrote it beside its author: `issuer|sub`.';
comment on column release.releases.risk is 'JSON: the score with its factors, as of when the band last changed.';
comment on column release.releases.band is 'The band that its approval goes by; LOW where risk is advice.';

create table release.snapshots (
    tenant_id text not null,
    release_id uuid not null,
    revision integer not null,
    body bytea not null,
    digest bytea not null,
    approval_policy text not null,
    policy_version bigint not null,
    profile text not null,
    quorum integer not null,
    rules text,
    identities text[] not null,
    authors text[] not null,
    taken_at timestamptz not null,
    constraint snapshots_pkey primary key (tenant_id, release_id, revision),
    constraint snapshots_release_fkey foreign key (tenant_id, release_id)
        references release.releases (tenant_id, release_id),
    constraint snapshots_digest_check check (digest = sha256(body))
);
comment on table release.snapshots is 'What was handed in, revision by revision, in the bytes that its digest is of. Never changes.';
comment on column release.snapshots.identities is 'Who wrote it, as the release names them: author, submitter, editors and committers.';
comment on column release.snapshots.authors is 'The human beings among them, by the aliases of then. None of them approves it.';

create function release.refuse_rewriting() returns trigger language plpgsql as $$
begin
    raise exception 'what is frozen in %.% does not change', tg_table_schema, tg_table_name using errcode = 'restrict_violation';
end
$$;
comment on function release.refuse_rewriting() is 'For triggers whose condition says what must not happen.';

create trigger snapshots_frozen before update or delete on release.snapshots
    for each row execute function release.refuse_rewriting();

-- What was handed in changes in a new revision only, revisions only rise, and the end is the end.
create trigger releases_frozen before update on release.releases
    for each row when (
        (old.state <> 'DRAFT' and old.revision = new.revision
            and (old.change, old.artifact_digest, old.notes, old.editors) is distinct from
                (new.change, new.artifact_digest, new.notes, new.editors))
        or (old.component, old.semver, old.author) is distinct from (new.component, new.semver, new.author)
        or (new.revision <> old.revision and not (new.revision = old.revision + 1
            and old.state in ('ASSESSING', 'PENDING_APPROVAL') and new.state = 'DRAFT'))
        or (old.state in ('REJECTED', 'CANCELLED', 'ABANDONED', 'ROLLED_BACK', 'SUPERSEDED') and old.state <> new.state)
    )
    execute function release.refuse_rewriting();

alter table release.votes
    add column vote_id uuid not null default gen_random_uuid(),
    add column revision integer not null default 1,
    add column person text,
    add column groups text[] not null default '{}',
    add column band text not null default 'LOW',
    add column expires_at timestamptz,
    add column ended_at timestamptz,
    add column ended_by text,
    drop constraint votes_pkey,
    add constraint votes_pkey primary key (tenant_id, vote_id),
    add constraint votes_end_check check (
        (ended_at is null) = (ended_by is null) and ended_by in ('WITHDRAWN', 'INVALIDATED', 'REPLACED')
    ) not valid;
comment on table release.votes is 'Votes on submitted releases, also those that count no more.';
comment on column release.votes.person is 'The human being that voter is; null where an older version wrote it and they are the same.';
comment on column release.votes.groups is 'The voter''s groups then.';
comment on column release.votes.band is 'The band that the release was in; the vote counts up to it.';
comment on column release.votes.expires_at is 'When it stops counting; null where it never does.';
comment on column release.votes.ended_by is 'What ended it before its time: WITHDRAWN, INVALIDATED by a revision, or REPLACED by the voter''s next one.';

-- Each human being counts once, under whatever name.
create unique index votes_person_key on release.votes (tenant_id, release_id, revision, coalesce(person, voter))
    where ended_at is null;
create index votes_release_idx on release.votes (tenant_id, release_id);

create table release.break_glasses (
    tenant_id text not null,
    break_glass_id uuid not null,
    seq bigint generated always as identity,
    release_id uuid not null,
    revision integer not null,
    principal text not null,
    person text not null,
    reason text not null,
    used_at timestamptz not null,
    due_at timestamptz not null,
    verdict text,
    reviewer text,
    reviewer_person text,
    review_reason text,
    reviewed_at timestamptz,
    version bigint not null,
    constraint break_glasses_pkey primary key (tenant_id, break_glass_id),
    constraint break_glasses_release_fkey foreign key (tenant_id, release_id)
        references release.releases (tenant_id, release_id),
    constraint break_glasses_verdict_check check (verdict in ('ACCEPTED', 'VIOLATION')),
    constraint break_glasses_review_check check (
        num_nulls(verdict, reviewer, reviewer_person, review_reason, reviewed_at) in (0, 5)
        and reviewer_person <> person
    )
);
comment on table release.break_glasses is 'Releases that somebody approved alone, each of which somebody else reviews until it is due.';
comment on column release.break_glasses.person is 'The human being that principal is. One with an overdue review breaks no other glass.';

create unique index break_glasses_seq_idx on release.break_glasses (tenant_id, seq);
create index break_glasses_open_idx on release.break_glasses (tenant_id, due_at) where verdict is null;

create table release.approvals (
    tenant_id text not null,
    approval_id uuid not null,
    release_id uuid not null,
    revision integer not null,
    kind text not null,
    band text not null,
    break_glass_id uuid,
    approved_at timestamptz not null,
    expires_at timestamptz,
    ended_at timestamptz,
    constraint approvals_pkey primary key (tenant_id, approval_id),
    constraint approvals_release_fkey foreign key (tenant_id, release_id)
        references release.releases (tenant_id, release_id),
    constraint approvals_break_glass_fkey foreign key (tenant_id, break_glass_id)
        references release.break_glasses (tenant_id, break_glass_id),
    constraint approvals_kind_check check (kind in ('STANDARD_CHANGE', 'VOTES', 'BREAK_GLASS')),
    constraint approvals_break_glass_check check ((kind = 'BREAK_GLASS') = (break_glass_id is not null))
);
comment on table release.approvals is 'That a release had all that it needed, by what and until when. A rollout begins under one.';
comment on column release.approvals.expires_at is 'When it stops standing; null where it never does.';
comment on column release.approvals.ended_at is 'When it was found to stand no more.';

-- A release has one approval at a time.
create unique index approvals_release_key on release.approvals (tenant_id, release_id) where ended_at is null;

alter table release.rollouts
    add column approval_id uuid,
    add constraint rollouts_approval_fkey foreign key (tenant_id, approval_id)
        references release.approvals (tenant_id, approval_id) not valid;
comment on column release.rollouts.approval_id is 'The approval that stood when it began; null where an older version began it.';

-- For whoever asks what waits for their vote.
create index releases_pending_idx on release.releases (tenant_id, seq) where state = 'PENDING_APPROVAL';
