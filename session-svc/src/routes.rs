//! The route table in memory: what visits are pinned by, read by every validation without a lock.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use shared::id::{ComponentId, ReleaseId, RolloutId, TenantId};
use shared::time::Time;

use crate::domain::signal::Counted;
use crate::domain::visit::{Route, Routing};

/// Names a route.
pub type Key = (TenantId, ComponentId);

/// Routes of one environment, of all tenants.
pub struct RouteTable {
    table: ArcSwap<Table>,
    changes: AtomicU64,
    exposes_until: AtomicI64,
    awaited: ArcSwap<Vec<(TenantId, Counted)>>,
}

impl Default for RouteTable {
    fn default() -> Self {
        Self {
            table: ArcSwap::default(),
            changes: AtomicU64::new(1),
            exposes_until: AtomicI64::new(0),
            awaited: ArcSwap::default(),
        }
    }
}

#[derive(Default, Clone)]
struct Table {
    epoch: String,
    routes: HashMap<Key, Arc<Route>>,
    /// Of `routes`, those with a rollout under way, for what goes by tenant.
    rolling: HashMap<TenantId, Vec<(ComponentId, Arc<Route>)>>,
    /// Releases that are stopped here.
    killed: Arc<HashSet<(TenantId, ReleaseId)>>,
}

impl Table {
    fn index(mut self) -> Self {
        self.rolling.clear();
        for ((tenant, component), route) in &self.routes {
            if route.rollout.is_some() {
                let rolling = self.rolling.entry(tenant.clone()).or_default();
                rolling.push((component.clone(), Arc::clone(route)));
            }
        }
        self
    }
}

impl RouteTable {
    /// Replaces every route but the `unread` ones, of which stays what is known in this epoch.
    pub fn reset(
        &self,
        epoch: &str,
        routes: impl IntoIterator<Item = (TenantId, ComponentId, Route)>,
        unread: &[Key],
    ) {
        let routes = routes
            .into_iter()
            .map(|(tenant, component, route)| ((tenant, component), Arc::new(route)));
        let routes: HashMap<_, _> = routes.collect();
        self.table.rcu(|table| {
            let mut routes = routes.clone();
            for key in unread.iter().filter(|_| table.epoch == epoch) {
                routes.extend(table.routes.get(key).map(|known| (key.clone(), Arc::clone(known))));
            }
            let killed = Arc::clone(&table.killed);
            Table { epoch: epoch.to_owned(), routes, killed, ..Table::default() }.index()
        });
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    /// Replaces what is stopped here.
    pub fn set_killed(&self, killed: HashSet<(TenantId, ReleaseId)>) {
        if *self.table.load().killed == killed {
            return;
        }
        let killed = Arc::new(killed);
        self.table
            .rcu(|table| Table { killed: Arc::clone(&killed), ..Table::clone(table) });
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    /// The tenant's rollouts that ask for this outcome.
    pub fn asking(&self, tenant: &TenantId, guard: &str) -> Vec<RolloutId> {
        let table = self.table.load();
        let rollouts = table.rolling.get(tenant).into_iter().flatten();
        let asking = rollouts
            .filter_map(|(_, route)| route.rollout.as_ref())
            .filter(|rollout| rollout.guards.iter().any(|name| name == guard));
        asking.map(|rollout| rollout.id).collect()
    }

    /// Rollouts that are over, and whose last visits release-svc waits for; in place of those before.
    pub fn set_awaited(&self, awaited: Vec<(TenantId, Counted)>) {
        self.awaited.store(Arc::new(awaited));
    }

    /// The rollouts whose live visits are counted, by tenant, each once.
    pub fn counted(&self) -> HashMap<TenantId, Vec<Counted>> {
        let (table, awaited) = (self.table.load(), self.awaited.load());
        let mut counted: HashMap<_, Vec<_>> = HashMap::new();
        for (tenant, routes) in &table.rolling {
            let of = |(component, route): &(ComponentId, Arc<Route>)| {
                let (component, rollout) = (component.clone(), route.rollout.as_ref()?);
                let previous = route.stable.as_ref().map(|stable| stable.id);
                Some(Counted { component, rollout: rollout.id, release: rollout.release.id, previous })
            };
            counted.insert(tenant.clone(), routes.iter().filter_map(of).collect());
        }
        for (tenant, awaited) in awaited.iter() {
            let known = counted.entry(tenant.clone()).or_default();
            if known.iter().all(|known| known.rollout != awaited.rollout) {
                known.push(awaited.clone());
            }
        }
        counted
    }

    /// Whether live visits of a rollout are counted.
    pub fn is_counted(&self, tenant: &TenantId, rollout: RolloutId) -> bool {
        let awaited = self.awaited.load();
        let mut awaited = awaited.iter().filter(|(of, _)| of == tenant);
        awaited.any(|(_, awaited)| awaited.rollout == rollout) || self.is_rolling(tenant, rollout)
    }

    /// Whether a rollout is under way here.
    pub fn is_rolling(&self, tenant: &TenantId, rollout: RolloutId) -> bool {
        let table = self.table.load();
        let mut routes = table.rolling.get(tenant).into_iter().flatten();
        routes.any(|(_, route)| route.rollout.as_ref().is_some_and(|under_way| under_way.id == rollout))
    }

    /// Takes a route in, unless a later revision of the same epoch is there.
    pub fn apply(&self, epoch: &str, tenant: &TenantId, component: &ComponentId, route: &Route) {
        self.table.rcu(|table| {
            let mut next = if table.epoch == epoch {
                Table::clone(table)
            } else {
                Table { epoch: epoch.to_owned(), killed: Arc::clone(&table.killed), ..Table::default() }
            };
            let key = (tenant.clone(), component.clone());
            if next.routes.get(&key).is_none_or(|known| known.revision < route.revision) {
                next.routes.insert(key, Arc::new(route.clone()));
            }
            next.index()
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
    /// Whether release-svc was heard of within the lease.
    pub const fn may_expose(&self) -> bool {
        self.may_expose
    }

    /// Decides about pins of a tenant's visits.
    pub fn with<T>(
        &self,
        tenant: &TenantId,
        components: &[ComponentId],
        f: impl FnOnce(&Routing<'_>) -> T,
    ) -> T {
        let Table { routes, killed, .. } = &*self.table;
        let route = |component: &ComponentId| routes.get(&(tenant.clone(), component.clone())).cloned();
        let is_killed = |release| !killed.is_empty() && killed.contains(&(tenant.clone(), release));
        f(&Routing { components, route: &route, is_killed: &is_killed, may_expose: self.may_expose })
    }
}
