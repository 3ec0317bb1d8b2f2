create table release.audit_heads (
    tenant_id text not null,
    seq bigint not null,
    hash bytea not null,
    purged_seq bigint not null,
    purged_hash bytea not null,
    constraint audit_heads_pkey primary key (tenant_id),
    constraint audit_heads_purged_check check (purged_seq between 0 and seq),
    constraint audit_heads_hash_check check (octet_length(hash) = 32 and octet_length(purged_hash) = 32)
);
comment on table release.audit_heads is 'The end of each tenant''s audit trail. Locked by the commit of every transaction that tells of something, after all else, so that numbers have no gaps and are in the order of commits.';
comment on column release.audit_heads.hash is 'Of the event seq; 32 zero bytes before the first.';
comment on column release.audit_heads.purged_seq is 'The last event that the purge deleted, with its hash, from which the first one kept goes on; 0 before any.';

alter table release.events
    add column seq bigint,
    add column verdict text,
    add column record text,
    add column hash bytea,
    add constraint events_seq_key unique (tenant_id, seq),
    add constraint events_verdict_check check (verdict in ('ALLOW', 'DENY')) not valid,
    add constraint events_linked_check check (num_nulls(seq, verdict, record, hash) in (0, 4)) not valid;
comment on column release.events.seq is 'Place in the tenant''s audit trail, from 1 without gaps. This and the next three are null only inside the transaction that writes the event: its commit links it.';
comment on column release.events.verdict is 'DENY where a rule refused what was asked, ALLOW where it happened.';
comment on column release.events.record is 'The event as it was linked, JSON whose bytes are hashed; the other columns say the same.';
comment on column release.events.hash is 'SHA-256 of the hash before it, the tenant, seq and the SHA-256 of the record; docs/security.md has the bytes.';

create function release.link_event(of_tenant text, of_event bigint) returns void language plpgsql as $$
declare
    last_seq bigint;
    last_hash bytea;
    told release.events;
    nothing constant bytea := decode(repeat('00', 32), 'hex');
begin
    insert into release.audit_heads (tenant_id, seq, hash, purged_seq, purged_hash)
    values (of_tenant, 0, nothing, 0, nothing)
    on conflict do nothing;
    select seq, hash into strict last_seq, last_hash from release.audit_heads where tenant_id = of_tenant for update;
    select * into strict told from release.events where tenant_id = of_tenant and event_id = of_event;
    told.seq := last_seq + 1;
    told.verdict := case told.kind when 'audit.denied' then 'DENY' else 'ALLOW' end;
    told.record := json_build_object(
        'tenant', told.tenant_id,
        'seq', told.seq,
        'kind', told.kind,
        'subject', told.subject,
        'principal', told.principal,
        'occurred_at', to_char(told.occurred_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
        'verdict', told.verdict,
        'trace_parent', told.trace_parent,
        'data', told.data::json
    )::text;
    told.hash := sha256(
        last_hash
        || int8send(octet_length(convert_to(told.tenant_id, 'UTF8'))) || convert_to(told.tenant_id, 'UTF8')
        || int8send(told.seq)
        || sha256(convert_to(told.record, 'UTF8'))
    );
    update release.events
    set seq = told.seq, verdict = told.verdict, record = told.record, hash = told.hash
    where tenant_id = of_tenant and event_id = of_event;
    update release.audit_heads set seq = told.seq, hash = told.hash where tenant_id = of_tenant;
end
$$;
comment on function release.link_event is 'Links an event to the end of its tenant''s audit trail.';

-- What was told before gets its place, so that trails are whole. It is vouched for from here on only.
select release.link_event(tenant_id, event_id)
from (select tenant_id, event_id from release.events order by tenant_id, event_id) as told;

create function release.link_new_event() returns trigger language plpgsql as $$
begin
    perform release.link_event(new.tenant_id, new.event_id);
    return null;
end
$$;
-- Deferred, so that whoever writes, whenever in its transaction, waits for the head last and holds it for its commit only.
create constraint trigger events_linked after insert on release.events
    deferrable initially deferred
    for each row execute function release.link_new_event();

create function release.refuse_change() returns trigger language plpgsql as $$
begin
    raise exception 'release.events is the audit trail: nothing in it changes' using errcode = 'restrict_violation';
end
$$;
create trigger events_unchanged before update on release.events
    for each row when (old.seq is not null) execute function release.refuse_change();
create trigger events_not_truncated before truncate on release.events
    for each statement execute function release.refuse_change();

create function release.note_purge() returns trigger language plpgsql as $$
begin
    if current_setting('release.purge', true) is distinct from 'on' then
        raise exception 'release.events is the audit trail: only the purge deletes' using errcode = 'restrict_violation';
    end if;
    update release.audit_heads as head
    set purged_seq = purged.seq, purged_hash = purged.hash
    from (select distinct on (tenant_id) tenant_id, seq, hash from gone order by tenant_id, seq desc) as purged
    where head.tenant_id = purged.tenant_id and head.purged_seq < purged.seq;
    return null;
end
$$;
create trigger events_purged after delete on release.events
    referencing old table as gone
    for each statement execute function release.note_purge();
