//! The route table in memory: what visits are pinned by, read by every validation without a lock.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use shared::id::{ComponentId, TenantId};
use shared::time::Time;

use crate::domain::visit::{Route, Routing};

type Key = (TenantId, ComponentId);

/// Routes of one environment, of all tenants.
pub struct RouteTable {
    table: ArcSwap<Table>,
    changes: AtomicU64,
    exposes_until: AtomicI64,
}

impl Default for RouteTable {
    fn default() -> Self {
        Self { table: ArcSwap::default(), changes: AtomicU64::new(1), exposes_until: AtomicI64::new(0) }
    }
}

#[derive(Default, Clone)]
struct Table {
    epoch: String,
    routes: HashMap<Key, Arc<Route>>,
}

impl RouteTable {
    /// Replaces everything.
    pub fn reset(&self, epoch: &str, routes: impl IntoIterator<Item = (TenantId, ComponentId, Route)>) {
        let routes = routes
            .into_iter()
            .map(|(tenant, component, route)| ((tenant, component), Arc::new(route)));
        self.table
            .store(Arc::new(Table { epoch: epoch.to_owned(), routes: routes.collect() }));
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    /// Takes a route in, unless a later revision of the same epoch is there.
    pub fn apply(&self, epoch: &str, tenant: &TenantId, component: &ComponentId, route: &Route) {
        self.table.rcu(|table| {
            let mut next = if table.epoch == epoch {
                Table::clone(table)
            } else {
                Table { epoch: epoch.to_owned(), ..Table::default() }
            };
            let key = (tenant.clone(), component.clone());
            if next.routes.get(&key).is_none_or(|known| known.revision < route.revision) {
                next.routes.insert(key, Arc::new(route.clone()));
            }
            next
        });
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    /// Renews the exposure lease.
    pub fn heard_of(&self, now: Time, lease: Duration) {
        self.exposes_until.fetch_max((now + lease).timestamp_micros(), Ordering::AcqRel);
    }

    /// What decides about pins at `now`.
    pub fn view(&self, now: Time) -> View {
        // In this order: a change in between is then known to be new by the next one who looks.
        let number = self.changes.load(Ordering::Acquire) << 1;
        let table = self.table.load_full();
        let may_expose = now.timestamp_micros() < self.exposes_until.load(Ordering::Acquire);
        View { number: number | u64::from(may_expose), table, may_expose }
    }
}

/// The routes at one instant.
pub struct View {
    /// Another one after every change; never 0.
    pub number: u64,
    table: Arc<Table>,
    may_expose: bool,
}

impl View {
    /// Decides about pins of a tenant's visits.
    pub fn with<T>(
        &self,
        tenant: &TenantId,
        components: &[ComponentId],
        f: impl FnOnce(&Routing<'_>) -> T,
    ) -> T {
        let route =
            |component: &ComponentId| self.table.routes.get(&(tenant.clone(), component.clone())).cloned();
        f(&Routing { components, route: &route, may_expose: self.may_expose })
    }
}
