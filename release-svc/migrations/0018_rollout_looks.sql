-- When the controller looks again at what something holds back, when a step began, and what was found of a rollout's visits.
alter table release.rollouts
    add column held_seq bigint,
    add column look_at timestamptz,
    add column step_begins timestamptz[],
    add column mismatched_at timestamptz;
comment on column release.rollouts.held_seq is 'The end of the tenant''s audit trail when something held back what the controller was about to do; nothing that was told since lifts it while the trail ends there. Null where nothing was seen to hold it.';
comment on column release.rollouts.look_at is 'When it is looked at again whatever was told, as some things lift with time.';
comment on column release.rollouts.step_begins is 'When each step began, by its index from 1, or was resumed; null where an older version went on to it, which is entered_at.';
comment on column release.rollouts.mismatched_at is 'When its visits were first found not to be dealt as planned. Stays.';
