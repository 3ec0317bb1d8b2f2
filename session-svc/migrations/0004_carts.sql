-- Carts can be thrown away and expire, and what a merge did can be taken back. The previous binary goes on writing rows
-- without the new column.

alter table session.carts
    add column merge_record bytea,
    drop constraint carts_state_check,
    add constraint carts_state_check check (state in ('ACTIVE', 'CHECKOUT', 'ORDERED', 'MERGED', 'EXPIRED',
        'DISCARDED')) not valid,
    add constraint carts_merge_record_check check (merge_record is null or state = 'MERGED') not valid;
comment on column session.carts.merge_record is 'tandem.session.storage.v1.MergeRecord of a merged cart, for taking the merge back.';
