create table release.window_proposals (
    tenant_id text not null,
    window_id uuid not null,
    version bigint not null,
    change text not null,
    terms text,
    reason text,
    author text not null,
    author_person text not null,
    proposed_at timestamptz not null,
    constraint window_proposals_pkey primary key (tenant_id, window_id),
    constraint window_proposals_window_fkey foreign key (tenant_id, window_id)
        references release.windows (tenant_id, window_id),
    constraint window_proposals_change_check check (
        change in ('CREATE', 'UPDATE', 'DELETE')
        and (change = 'UPDATE') = (terms is not null) and (change = 'DELETE') = (reason is not null)
    )
);
comment on table release.window_proposals is 'The last change of each window that takes two people. It waits for the second one as long as it is of the window''s present version; whatever happens to the window ends it.';
comment on column release.window_proposals.change is 'CREATE: a window that is there, as deleted, and would hold. UPDATE: it would say terms. DELETE: it would hold nothing any more.';
comment on column release.window_proposals.terms is 'JSON as in the events of windows.';
comment on column release.window_proposals.reason is 'Why it would be deleted.';
comment on column release.window_proposals.author_person is 'The human being that author is, who does not confirm it.';

-- One that is taken back at the instant at which it was given held at none.
alter table release.window_overrides
    add column ender text,
    add column end_reason text,
    drop constraint window_overrides_span_check,
    add constraint window_overrides_span_check check (
        ends_at >= created_at and ends_at <= created_at + interval '24 hours'
    ) not valid,
    add constraint window_overrides_ender_check check ((ender is null) = (end_reason is null)) not valid;
comment on column release.window_overrides.ender is 'Who took it back, which made ends_at earlier; null where nobody did.';

-- What windows said in the past is read from their events, in time order. Whoever reads by it names all kinds.
create index events_windows_idx on release.events (tenant_id, occurred_at, event_id)
    where kind in ('window.created', 'window.deleted', 'window.overridden', 'window.override_ended', 'window.updated');
