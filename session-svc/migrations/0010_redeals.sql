-- Rollouts that assign all sessions deal to those that are enrolled again in each step: the later deals, beside the first one in
-- session.enrolments. The previous binary knows of the first ones only.

create table session.redeals (
    tenant_id text not null,
    session_id uuid not null,
    rollout_id uuid not null,
    step integer not null,
    is_canary boolean not null,
    dealt_at timestamptz not null,
    is_counted boolean not null default false,
    constraint redeals_pkey primary key (tenant_id, session_id, rollout_id, step)
);
create index redeals_uncounted_idx on session.redeals (tenant_id, rollout_id) where not is_counted;
comment on table session.redeals is 'What chance dealt to enrolled sessions in steps after that of their enrolment, written with the pins. Deleted with the session, or when the rollout is forgotten.';
comment on column session.redeals.is_counted is 'Whether it is in signal_counts; set in the transaction that adds it there.';

comment on table session.enrolments is 'Sessions that chance dealt an arm of a rollout, once each, written with the pins. Deleted with the session, or when the rollout is forgotten.';
comment on table session.outcomes is 'What became of enrolled sessions, at most one of each guard. Deleted with the session, or when the rollout is forgotten.';
comment on column session.outcomes.step is 'What it is booked under: the step in which the session was dealt an arm last; the arm alike.';
comment on column session.signal_counts.guard is 'Empty for units: enrolments and redeals.';
