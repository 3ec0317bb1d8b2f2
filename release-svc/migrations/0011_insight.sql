-- Delivery is measured by the events of one component in time order. An index of the kinds that take part stays small;
-- whoever reads by it names them all.
create index events_component_idx on release.events
    (tenant_id, (data::jsonb ->> 'component'), occurred_at, event_id)
    where kind in ('release.approval_lapsed', 'release.approved', 'release.cancelled', 'release.rejected',
        'release.revised', 'release.submitted', 'release.superseded', 'rollout.advanced', 'rollout.rollback_started', 'rollout.rolled_back',
        'rollout.started', 'rollout.succeeded');

-- What was imported happened long before it was written down; its times are of one form, whose byte order is theirs.
create index events_imported_idx on release.events
    (tenant_id, (data::jsonb ->> 'component'), (data::jsonb ->> 'deployed_at') collate "C", event_id)
    where kind = 'history.deployment_imported';

-- However many callers import it, a deployment of the past is there once.
create unique index events_imported_key on release.events (tenant_id, subject)
    where kind = 'history.deployment_imported';
