-- What shoppers have besides carts. Personal state is opaque: bytes of a versioned message, beside the few columns that
-- queries need. The previous binary knows neither table.

create table session.shoppers (
    tenant_id text not null,
    shopper_id uuid not null,
    preferences bytea,
    preferences_version bigint not null,
    preferences_updated_at timestamptz,
    marketing_consent boolean,
    history bytea,
    merged_into_shopper_id uuid,
    created_at timestamptz not null,
    constraint shoppers_pkey primary key (tenant_id, shopper_id),
    constraint shoppers_merged_check check (merged_into_shopper_id is null or num_nonnulls(preferences, history) = 0)
);
comment on table session.shoppers is 'One a shopper who has more than carts. Whoever changes anything of theirs, wishlists included, locks it first.';
comment on column session.shoppers.preferences is 'tandem.session.storage.v1.PreferencesContent; null until something is set.';
comment on column session.shoppers.preferences_version is 'Rises with every change of preferences or consent.';
comment on column session.shoppers.marketing_consent is 'What stands in preferences of the consent to marketing; null where nothing was said.';
comment on column session.shoppers.history is 'tandem.session.storage.v1.HistoryContent; null where there is none.';
comment on column session.shoppers.merged_into_shopper_id is 'Whose what this one had is since a login; nothing changes here any more.';

create table session.wishlists (
    tenant_id text not null,
    shopper_id uuid not null,
    wishlist_id uuid not null,
    visibility text not null,
    share_hash bytea,
    share_salt bytea,
    title bytea not null,
    content bytea not null,
    item_count integer not null,
    created_at timestamptz not null,
    updated_at timestamptz not null,
    version bigint not null,
    constraint wishlists_pkey primary key (tenant_id, shopper_id, wishlist_id),
    constraint wishlists_visibility_check check (visibility in ('PRIVATE', 'SHARED', 'PUBLIC')),
    constraint wishlists_share_check check (
        num_nulls(share_hash, share_salt) = case visibility when 'PRIVATE' then 2 else 0 end)
);
comment on table session.wishlists is 'Articles that shoppers would like to have; at most 50 lists each.';
comment on column session.wishlists.share_hash is 'SHA-256 of the share token''s secret; the token names the shopper, so that no index is needed.';
comment on column session.wishlists.share_salt is 'What the share token is derived from, with the ring''s key.';
comment on column session.wishlists.title is 'tandem.session.storage.v1.WishlistTitle, apart from the items, as lists of lists need no more.';
comment on column session.wishlists.content is 'tandem.session.storage.v1.WishlistContent.';
