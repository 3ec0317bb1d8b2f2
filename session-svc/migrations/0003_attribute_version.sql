-- A key that is removed takes its version along, and one of that name that comes later must not get it again.
alter table session.sessions add column attribute_version bigint;
comment on column session.sessions.attribute_version is 'Highest version that an attribute of it ever had; null until the first.';
