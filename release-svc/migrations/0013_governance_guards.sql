-- What may wait for votes is not what was written down as waiting: approvals lapse, and bands rise, before anybody looks.
create index releases_open_idx on release.releases (tenant_id, seq)
    where state in ('ASSESSING', 'PENDING_APPROVAL', 'APPROVED', 'ACTIVE', 'RELEASED');
