//! What components need of each other, as components say it.

use shared::db::broken_constraint;
use shared::id::ComponentId;
use shared::mutation::Mutation;
use shared::parse::{at_most, optional, parse};
use shared::pb::release as pb;
use shared::status::{Failure, Reason, Refusal};

use crate::domain::dependency::{self, Cycle, Dependency, Edge};
use crate::store;
use crate::store::dependency::{DEPENDENCY_ENVIRONMENT_KEY, DEPENDS_ON_KEY, EDGES_MAX};

/// Most dependencies that a component has.
const OF_ONE_MAX: usize = 64;

impl From<&Dependency> for pb::Dependency {
    fn from(dependency: &Dependency) -> Self {
        Self {
            component: dependency.on.to_string(),
            environment: dependency.environment.as_ref().map(ToString::to_string).unwrap_or_default(),
            constraint: dependency.constraint.to_string(),
        }
    }
}

impl From<Cycle> for Failure {
    fn from(cycle: Cycle) -> Self {
        let names: Vec<_> = cycle.path.iter().map(ComponentId::as_str).collect();
        let environment = cycle.environment.as_ref().map(ToString::to_string).unwrap_or_default();
        Refusal::new(Reason::DependencyCycle, cycle.to_string())
            .with("cycle", names.join(","))
            .with("environment", environment)
            .into()
    }
}

/// In the order in which they are answered.
pub(super) fn parse_dependencies(
    component: &ComponentId,
    dependencies: Vec<pb::Dependency>,
) -> Result<Vec<Dependency>, Refusal> {
    const FIELD: &str = "component.dependencies";
    at_most(FIELD, &dependencies, OF_ONE_MAX)?;
    let dependencies = dependencies.into_iter().enumerate().map(|(i, dependency)| {
        let field = |name: &str| format!("{FIELD}[{i}].{name}");
        let pb::Dependency { component, environment, constraint } = dependency;
        Ok(Dependency {
            on: parse(&field("component"), &component)?,
            environment: optional(&field("environment"), &environment)?,
            constraint: parse(&field("constraint"), &constraint)?,
        })
    });
    let mut dependencies = dependencies.collect::<Result<Vec<_>, Refusal>>()?;
    dependencies.sort_by(|a, b| (&a.on, &a.environment).cmp(&(&b.on, &b.environment)));
    dependency::check(component, &dependencies).map_err(|error| Refusal::field(FIELD, error))?;
    Ok(dependencies)
}

/// Writes what a component needs, unless that leads back to it. The caller has locked it and what it will need, or has
/// just made it; then all dependencies of the tenant are locked, so that two changes do not make a cycle together.
pub(super) async fn replace_dependencies(
    work: &mut Mutation,
    component: &ComponentId,
    dependencies: &[Dependency],
) -> Result<(), Failure> {
    let (tx, tenant) = (&mut work.tx, &work.actor.tenant);
    let stored = store::dependency::list_of(tx, tenant, &[component.to_string()], EDGES_MAX).await?;
    if stored.iter().map(|edge| &edge.needs).eq(dependencies) {
        return Ok(());
    }
    store::dependency::lock_all(tx, tenant).await?;
    let mut edges = store::dependency::list(tx, tenant, EDGES_MAX).await?;
    edges.retain(|edge| edge.component != *component);
    edges.extend(
        dependencies
            .iter()
            .map(|needs| Edge { component: component.clone(), needs: needs.clone() }),
    );
    if i64::try_from(edges.len()).is_ok_and(|count| count > EDGES_MAX) {
        let text = format!("a tenant has at most {EDGES_MAX} dependencies");
        return Err(Refusal::new(Reason::DependencyLimit, text).with("max", EDGES_MAX).into());
    }
    dependency::refuse_cycle(component, &edges)?;
    store::dependency::delete(tx, tenant, component).await?;
    let inserted = store::dependency::insert(tx, tenant, component, dependencies).await;
    inserted.map_err(|error| match broken_constraint(&error) {
        Some(DEPENDS_ON_KEY) => {
            Refusal::new(Reason::ComponentNotFound, "a dependency names a component that is not there").into()
        }
        Some(DEPENDENCY_ENVIRONMENT_KEY) => {
            let text = "a dependency names an environment that is not there";
            Refusal::new(Reason::EnvironmentNotFound, text).into()
        }
        Some(_) | None => Failure::from(error),
    })
}
