-- Whoever measures delivery asks for rollout.exposed, too; an index that lacks a kind serves no question that names it.
create index events_delivery_idx on release.events
    (tenant_id, (data::jsonb ->> 'component'), occurred_at, event_id)
    where kind in ('release.approval_lapsed', 'release.approved', 'release.cancelled', 'release.rejected',
        'release.revised', 'release.submitted', 'release.superseded', 'rollout.advanced', 'rollout.exposed',
        'rollout.rollback_started', 'rollout.rolled_back', 'rollout.started', 'rollout.succeeded');
drop index release.events_component_idx;
