create table release.calendars (
    tenant_id text not null,
    stopped_at timestamptz,
    stopper text,
    stop_reason text,
    version bigint not null,
    constraint calendars_pkey primary key (tenant_id),
    constraint calendars_stop_check check (
        (stopped_at is null) = (stopper is null) and (stopped_at is null) = (stop_reason is null)
    )
);
comment on table release.calendars is 'One row for each tenant that has windows or rollouts. Who changes a window, an override or the line locks it; who raises exposure shares it until the end of the transaction, so that neither happens while the other decides.';
comment on column release.calendars.stopped_at is 'Since when the line is stopped; null while it runs.';
comment on column release.calendars.version is 'Counts changes of windows, overrides and the line.';

create table release.windows (
    tenant_id text not null,
    window_id uuid not null,
    name text not null,
    effect text not null,
    actions text[] not null,
    tiers text[] not null,
    components text[] not null,
    environments text[] not null,
    regions text[] not null,
    time_zone text not null,
    starts_at timestamptz,
    ends_at timestamptz,
    local_start timestamp,
    local_end timestamp,
    rrule text,
    duration_secs bigint,
    over_at timestamptz,
    reason text not null,
    is_peak boolean not null,
    creator text not null,
    created_at timestamptz not null,
    deleted_at timestamptz,
    version bigint not null,
    constraint windows_pkey primary key (tenant_id, window_id),
    constraint windows_calendar_fkey foreign key (tenant_id) references release.calendars (tenant_id),
    constraint windows_effect_check check (effect in ('DENY', 'ALLOW')),
    constraint windows_actions_check check (
        actions <@ array['DEPLOY', 'EXPOSE', 'SCHEMA'] and (is_peak or cardinality(actions) > 0)
    ),
    constraint windows_schedule_check check (
        case
            when starts_at is not null
                then num_nulls(local_start, local_end, rrule, duration_secs) = 4 and ends_at is not null
                    and starts_at < ends_at
            when rrule is not null
                then num_nulls(ends_at, local_end) = 2 and num_nulls(local_start, duration_secs) = 0 and duration_secs > 0
            else num_nulls(ends_at, duration_secs) = 2 and num_nulls(local_start, local_end) = 0
        end
    )
);
comment on table release.windows is 'When which kind of change is denied, or allowed, to what. Deleted ones are kept.';
comment on column release.windows.tiers is 'Empty stands for all; likewise components, environments and regions.';
comment on column release.windows.local_start is 'On the wall clock of time_zone.';
comment on column release.windows.duration_secs is 'How long each recurrence lasts on the wall clock.';
comment on column release.windows.over_at is 'From when on it never holds again; null if it may always.';
comment on column release.windows.version is 'Counts changes; the etag.';

create table release.window_overrides (
    tenant_id text not null,
    window_override_id uuid not null,
    window_id uuid not null,
    component text,
    environment text,
    release_id uuid,
    reason text not null,
    creator text not null,
    created_at timestamptz not null,
    ends_at timestamptz not null,
    constraint window_overrides_pkey primary key (tenant_id, window_override_id),
    constraint window_overrides_window_fkey foreign key (tenant_id, window_id)
        references release.windows (tenant_id, window_id),
    constraint window_overrides_component_fkey foreign key (tenant_id, component)
        references release.components (tenant_id, component),
    constraint window_overrides_environment_fkey foreign key (tenant_id, environment)
        references release.environments (tenant_id, environment),
    constraint window_overrides_release_fkey foreign key (tenant_id, release_id)
        references release.releases (tenant_id, release_id),
    constraint window_overrides_subject_check check (
        (component is null) = (environment is null) and (component is null) <> (release_id is null)
    ),
    constraint window_overrides_span_check check (
        ends_at > created_at and ends_at <= created_at + interval '24 hours'
    )
);
comment on table release.window_overrides is 'Windows that a person lifted for one component in one environment, or for one release, for a while.';

create index window_overrides_ends_at_idx on release.window_overrides (tenant_id, ends_at);
