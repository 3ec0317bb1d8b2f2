//! End-to-end tests of both services, in process and over gRPC: one binary, so that it links once and its tests share one
//! PostgreSQL.

#[cfg(test)]
mod abandonment;
#[cfg(test)]
mod abandonment_list;
#[cfg(test)]
mod abandonment_races;
#[cfg(test)]
mod approval;
#[cfg(test)]
mod arm_properties;
#[cfg(test)]
mod assertion;
#[cfg(test)]
mod asvs;
#[cfg(test)]
mod asvs_oauth;
#[cfg(test)]
mod asvs_revocation;
#[cfg(test)]
mod asvs_session;
#[cfg(test)]
mod asvs_token;
#[cfg(test)]
mod attribute;
#[cfg(test)]
mod audit;
#[cfg(test)]
mod audit_denied;
#[cfg(test)]
mod audit_trail;
#[cfg(test)]
mod auth;
#[cfg(test)]
mod auth_keys;
#[cfg(test)]
mod authenticate;
#[cfg(test)]
mod bad_input;
#[cfg(test)]
mod bad_tokens;
#[cfg(test)]
mod break_glass;
#[cfg(test)]
mod browsing;
#[cfg(test)]
mod cart;
#[cfg(test)]
mod cart_bad_input;
#[cfg(test)]
mod cart_batch;
#[cfg(test)]
mod cart_interleaving;
#[cfg(test)]
mod cart_invoice;
#[cfg(test)]
mod cart_newer;
#[cfg(test)]
mod cart_vocabulary;
#[cfg(test)]
mod catalog;
#[cfg(test)]
mod component;
#[cfg(test)]
mod controller;
#[cfg(test)]
mod dependency;
#[cfg(test)]
mod dependency_properties;
#[cfg(test)]
mod elevation;
#[cfg(test)]
mod elevation_once;
#[cfg(test)]
mod event;
#[cfg(test)]
mod event_retention;
#[cfg(test)]
mod event_types;
#[cfg(test)]
mod evidence;
#[cfg(test)]
mod executor;
#[cfg(test)]
mod facts;
#[cfg(test)]
mod failover;
#[cfg(test)]
mod floors;
#[cfg(test)]
mod governance;
#[cfg(test)]
mod governance_guards;
#[cfg(test)]
mod harness;
#[cfg(test)]
mod history;
#[cfg(test)]
mod id_token;
#[cfg(test)]
mod insight;
#[cfg(test)]
mod insight_import;
#[cfg(test)]
mod isolation;
#[cfg(test)]
mod kill;
#[cfg(test)]
mod leak;
#[cfg(test)]
mod lifecycle;
#[cfg(test)]
mod limits;
#[cfg(test)]
mod merge;
#[cfg(test)]
mod merge_undo;
#[cfg(test)]
mod page;
#[cfg(test)]
mod pair;
#[cfg(test)]
mod policy;
#[cfg(test)]
mod preferences;
#[cfg(test)]
mod promotion;
#[cfg(test)]
mod purge;
#[cfg(test)]
mod recovery;
#[cfg(test)]
mod release;
#[cfg(test)]
mod replicas;
#[cfg(test)]
mod request_id;
#[cfg(test)]
mod retention;
mod retire;
#[cfg(test)]
mod rollback_ground;
#[cfg(test)]
mod rollback_matrix;
#[cfg(test)]
mod rollout;
#[cfg(test)]
mod rollout_back;
#[cfg(test)]
mod rollout_bad_input;
#[cfg(test)]
mod rollout_confirm;
#[cfg(test)]
mod rollout_control;
#[cfg(test)]
mod rollout_hold;
#[cfg(test)]
mod rollout_killed;
#[cfg(test)]
mod rollout_properties;
#[cfg(test)]
mod rollout_signal;
#[cfg(test)]
mod rollout_trail;
#[cfg(test)]
mod routing;
#[cfg(test)]
mod session;
#[cfg(test)]
mod session_limit;
#[cfg(test)]
mod shopper_context;
#[cfg(test)]
mod shopper_merge;
#[cfg(test)]
mod shopper_retention;
#[cfg(test)]
mod shopper_section;
#[cfg(test)]
mod signal;
#[cfg(test)]
mod signal_sums;
#[cfg(test)]
mod store;
#[cfg(test)]
mod threads;
#[cfg(test)]
mod tls;
#[cfg(test)]
mod touchpoint;
#[cfg(test)]
mod trust_properties;
#[cfg(test)]
mod visit;
#[cfg(test)]
mod visit_properties;
#[cfg(test)]
mod webhook;
#[cfg(test)]
mod webhook_delivery;
#[cfg(test)]
mod webhook_faults;
#[cfg(test)]
mod webhook_guard;
#[cfg(test)]
mod window;
#[cfg(test)]
mod window_hold;
#[cfg(test)]
mod window_override;
#[cfg(test)]
mod window_properties;
#[cfg(test)]
mod window_two_people;
#[cfg(test)]
mod window_wait;
#[cfg(test)]
mod wishlist;
#[cfg(test)]
mod wishlist_share;
