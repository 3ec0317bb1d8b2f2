-- Shoppers who look at articles and take none, and rows that nobody needs any more. As with carts, the timer is a column of
-- the row, and rows that an earlier binary made, or makes beside this one, are due at once by the default.

alter table session.shoppers
    add column due_at timestamptz not null default '2000-01-01T00:00:00Z',
    add column active_at timestamptz,
    add column touchpoint_id text,
    add column browsed_at timestamptz,
    add column browse_epoch integer not null default 1,
    add column browse_abandoned_at timestamptz,
    add column browse_lost_at timestamptz,
    add constraint shoppers_browse_check check ((browse_abandoned_at is null or browsed_at is not null)
        and (browse_lost_at is null or browse_abandoned_at is not null)) not valid;
create index shoppers_due_idx on session.shoppers (due_at);
comment on column session.shoppers.due_at is 'Nothing becomes of the shopper by time alone before; as that of carts.';
comment on column session.shoppers.active_at is 'When anything of theirs was last changed, wishlists included; when a login emptied it, if one did. Null where an earlier binary made the row and nobody has looked at it since.';
comment on column session.shoppers.touchpoint_id is 'Where they last looked at an article, whose policy holds; null where no session did.';
comment on column session.shoppers.browsed_at is 'When they last looked at an article, as far as nothing came of it; only while there is history.';
comment on column session.shoppers.browse_epoch is 'Rises when the flag is lowered; cart.abandoned is told once in each.';
comment on column session.shoppers.browse_abandoned_at is 'When they were found gone without having taken anything: the flag; null while it is down.';
