//! What components need of each other: constraints on versions, the cycles that they must not make, the order that
//! follows from them, and what must be taken back first.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use semver::{BuildMetadata, Comparator, Prerelease, VersionReq};
use shared::id::{ComponentId, EnvironmentId, RolloutId};

use crate::domain::version::Version;

/// Most characters of a constraint.
const CONSTRAINT_MAX: usize = 200;

/// What a component needs of another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dependency {
    pub on: ComponentId,
    /// Where; none is everywhere.
    pub environment: Option<EnvironmentId>,
    pub constraint: Constraint,
}

/// A dependency and whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edge {
    pub component: ComponentId,
    pub needs: Dependency,
}

/// Versions that will do, as written; at least one does. What it matches is what Cargo's rules say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Constraint {
    text: String,
    req: VersionReq,
}

/// The text is no constraint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MalformedConstraint {
    #[error("must be a constraint on versions such as ^1.4 or >=1.4, <3: {0}")]
    Form(String),
    #[error("no version can meet it")]
    Unsatisfiable,
    #[error("must have at most {CONSTRAINT_MAX} characters")]
    Long,
}

/// Dependencies that no component may have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadDependencies {
    #[error("a component cannot depend on itself")]
    Itself,
    #[error("{on} is named twice for the same place")]
    Twice { on: ComponentId },
    #[error("no version of {on} can meet all that is asked of it")]
    Unsatisfiable { on: ComponentId },
}

/// Dependencies that lead back to where they began: each component needs the next, the last is the first again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} would depend on itself: {}", path[0], names(path))]
pub struct Cycle {
    pub path: Vec<ComponentId>,
    /// Where; none is everywhere.
    pub environment: Option<EnvironmentId>,
}

fn names(path: &[ComponentId]) -> String {
    path.iter().map(ComponentId::as_str).collect::<Vec<_>>().join(" -> ")
}

impl Dependency {
    /// Whether it holds in an environment; none asks for those that hold everywhere.
    pub fn holds_in(&self, environment: Option<&EnvironmentId>) -> bool {
        self.environment.as_ref().is_none_or(|own| Some(own) == environment)
    }
}

impl Constraint {
    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub fn is_met_by(&self, version: &Version) -> bool {
        self.req.matches(version.as_semver())
    }
}

impl FromStr for Constraint {
    type Err = MalformedConstraint;

    fn from_str(text: &str) -> Result<Self, MalformedConstraint> {
        if text.len() > CONSTRAINT_MAX {
            return Err(MalformedConstraint::Long);
        }
        let req = VersionReq::parse(text).map_err(|error| MalformedConstraint::Form(error.to_string()))?;
        let constraint = Self { text: text.to_owned(), req };
        if is_satisfiable(&[&constraint]) { Ok(constraint) } else { Err(MalformedConstraint::Unsatisfiable) }
    }
}

impl fmt::Display for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Whether one version can meet all. What meets them lies between bounds that comparators name, so that if any version
/// does, one at such a bound or just above it does, too.
fn is_satisfiable(constraints: &[&Constraint]) -> bool {
    let comparators = constraints.iter().flat_map(|constraint| &constraint.req.comparators);
    let lowest = [semver::Version::new(0, 0, 0)];
    lowest
        .into_iter()
        .chain(comparators.flat_map(bounds))
        .any(|version| constraints.iter().all(|constraint| constraint.req.matches(&version)))
}

fn bounds(comparator: &Comparator) -> Vec<semver::Version> {
    let (major, minor, patch) =
        (comparator.major, comparator.minor.unwrap_or(0), comparator.patch.unwrap_or(0));
    let release = |major: Option<u64>, minor, patch: Option<u64>| {
        major.zip(patch).map(|(major, patch)| semver::Version::new(major, minor, patch))
    };
    let next_minor = minor.checked_add(1).and_then(|minor| release(Some(major), minor, Some(0)));
    let releases = [
        release(Some(major), minor, Some(patch)),
        release(Some(major), minor, patch.checked_add(1)),
        next_minor,
        release(major.checked_add(1), 0, Some(0)),
    ];
    let mut bounds: Vec<_> = releases.into_iter().flatten().collect();
    if !comparator.pre.is_empty() {
        // The first pre-release of this version, the one named, and the one that follows it.
        for text in ["0".to_owned(), comparator.pre.to_string(), format!("{}.0", comparator.pre)] {
            let pre = Prerelease::new(&text).unwrap_or(Prerelease::EMPTY);
            bounds.push(semver::Version { major, minor, patch, pre, build: BuildMetadata::EMPTY });
        }
    }
    bounds
}

/// Refuses what is wrong with a component's dependencies by themselves.
pub fn check(component: &ComponentId, dependencies: &[Dependency]) -> Result<(), BadDependencies> {
    let mut places = BTreeSet::new();
    for dependency in dependencies {
        let on = &dependency.on;
        if on == component {
            return Err(BadDependencies::Itself);
        }
        if !places.insert((on, &dependency.environment)) {
            return Err(BadDependencies::Twice { on: on.clone() });
        }
    }
    for dependency in dependencies {
        let on = &dependency.on;
        let together = dependencies
            .iter()
            .filter(|other| other.on == *on && other.holds_in(dependency.environment.as_ref()));
        let together: Vec<_> = together.map(|other| &other.constraint).collect();
        if !is_satisfiable(&together) {
            return Err(BadDependencies::Unsatisfiable { on: on.clone() });
        }
    }
    Ok(())
}

/// Everything that depends on something in one environment, or everywhere.
type Graph<'a> = BTreeMap<&'a ComponentId, BTreeSet<&'a ComponentId>>;

fn graph<'a>(edges: &'a [Edge], environment: Option<&EnvironmentId>) -> Graph<'a> {
    let mut graph = Graph::new();
    for edge in edges.iter().filter(|edge| edge.needs.holds_in(environment)) {
        graph.entry(&edge.component).or_default().insert(&edge.needs.on);
    }
    graph
}

/// Refuses edges that lead from a component back to it, in any one environment.
pub fn refuse_cycle(component: &ComponentId, edges: &[Edge]) -> Result<(), Cycle> {
    let everywhere = edges.iter().map(|edge| edge.needs.environment.as_ref());
    let places: BTreeSet<_> = everywhere.chain([None]).collect();
    for environment in places {
        if let Some(path) = path_back(component, &graph(edges, environment)) {
            return Err(Cycle { path, environment: environment.cloned() });
        }
    }
    Ok(())
}

/// The shortest way from a component back to it.
fn path_back(start: &ComponentId, graph: &Graph<'_>) -> Option<Vec<ComponentId>> {
    let mut reached_from: BTreeMap<&ComponentId, &ComponentId> = BTreeMap::new();
    let mut queue = vec![start];
    while !queue.is_empty() {
        let mut next = Vec::new();
        for at in queue {
            for &on in graph.get(at).into_iter().flatten() {
                if reached_from.contains_key(on) {
                    continue;
                }
                reached_from.insert(on, at);
                next.push(on);
            }
        }
        queue = next;
    }
    let mut path = vec![start.clone()];
    let mut at = *reached_from.get(start)?;
    while at != start {
        path.push(at.clone());
        at = reached_from.get(at)?;
    }
    path.push(start.clone());
    path.reverse();
    Some(path)
}

/// What an environment serves of a component: its stable release, and another one to some visits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Served {
    pub stable: Option<Version>,
    /// Of the rollout under way, which can be rolled back.
    pub canary: Option<Version>,
}

/// What an environment serves. Components that are not in it are exposed to nobody there.
pub type Serving = BTreeMap<ComponentId, Served>;

/// A dependency that does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unmet {
    pub component: ComponentId,
    pub on: ComponentId,
    pub constraint: Constraint,
    /// What is there instead, if anything is.
    pub found: Option<Version>,
}

impl fmt::Display for Unmet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { component, on, constraint, found } = self;
        match found {
            Some(found) => write!(f, "{component} needs {on} {constraint}, and {on} is {found}"),
            None => write!(f, "{component} needs {on} {constraint}, and {on} is not there"),
        }
    }
}

impl Edge {
    fn unmet_with(&self, found: Option<&Version>) -> Option<Unmet> {
        if found.is_some_and(|found| self.needs.constraint.is_met_by(found)) {
            return None;
        }
        Some(Unmet {
            component: self.component.clone(),
            on: self.needs.on.clone(),
            constraint: self.needs.constraint.clone(),
            found: found.cloned(),
        })
    }

    /// Whether everything that is served of what is needed will do; a canary alone will not.
    fn unmet_in(&self, serving: &Serving) -> Option<Unmet> {
        let served = serving.get(&self.needs.on);
        let stable = served.and_then(|served| served.stable.as_ref());
        let canary = served.and_then(|served| served.canary.as_ref());
        self.unmet_with(stable)
            .or_else(|| canary.and_then(|canary| self.unmet_with(Some(canary))))
    }
}

fn within<'a>(edges: &'a [Edge], environment: &'a EnvironmentId) -> impl Iterator<Item = &'a Edge> {
    edges.iter().filter(|edge| edge.needs.holds_in(Some(environment)))
}

/// What keeps more visits of an environment from this version of a component: what it needs and does not find, and what
/// those need who are exposed there and depend on it.
pub fn hold(
    component: &ComponentId,
    version: &Version,
    edges: &[Edge],
    environment: &EnvironmentId,
    serving: &Serving,
) -> Vec<Unmet> {
    let needs = within(edges, environment).filter(|edge| edge.component == *component);
    let is_dependant = |edge: &&Edge| edge.needs.on == *component && serving.contains_key(&edge.component);
    let dependants = within(edges, environment).filter(is_dependant);
    needs
        .filter_map(|edge| edge.unmet_in(serving))
        .chain(dependants.filter_map(|edge| edge.unmet_with(Some(version))))
        .collect()
}

/// What does not hold of a component where it is exposed.
pub fn unmet(
    component: &ComponentId,
    edges: &[Edge],
    environment: &EnvironmentId,
    serving: &Serving,
) -> Vec<Unmet> {
    let own = within(edges, environment).filter(|edge| edge.component == *component);
    let is_exposed = serving.contains_key(component);
    own.filter(|_| is_exposed).filter_map(|edge| edge.unmet_in(serving)).collect()
}

/// Components in waves: each after all that it needs of the others. Components of a cycle, which is refused before it is
/// stored, come last.
pub fn waves(
    components: &BTreeSet<ComponentId>,
    edges: &[Edge],
    environment: &EnvironmentId,
) -> Vec<Vec<ComponentId>> {
    let graph = graph(edges, Some(environment));
    let mut left = components.clone();
    let mut waves = Vec::new();
    while !left.is_empty() {
        let is_ready = |name: &&ComponentId| {
            graph.get(name).is_none_or(|needs| !needs.iter().any(|on| left.contains(*on)))
        };
        let mut wave: Vec<_> = left.iter().filter(is_ready).cloned().collect();
        if wave.is_empty() {
            wave = left.iter().cloned().collect();
        }
        left.retain(|name| !wave.contains(name));
        waves.push(wave);
    }
    waves
}

/// What would not hold once the planned versions are stable in an environment.
pub fn conflicts(
    planned: &BTreeMap<ComponentId, Version>,
    edges: &[Edge],
    environment: &EnvironmentId,
    serving: &Serving,
) -> Vec<Unmet> {
    let mut after = serving.clone();
    for (component, version) in planned {
        after.insert(component.clone(), Served { stable: Some(version.clone()), canary: None });
    }
    let touches =
        |edge: &&Edge| planned.contains_key(&edge.component) || planned.contains_key(&edge.needs.on);
    within(edges, environment)
        .filter(touches)
        .filter(|edge| after.contains_key(&edge.component))
        .filter_map(|edge| edge.unmet_in(&after))
        .collect()
}

/// What serves everyone, in the place of another one, by a rollout that began after the one that is taken back: what it
/// replaced has served beside what comes back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Came {
    pub rollout: RolloutId,
    /// What its own rollback brings back.
    pub before: Version,
}

/// What the rollback of a component means to those that depend on it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cascade {
    /// Who goes back before, in this order: each before what it depends on.
    pub before: Vec<ComponentId>,
    /// Those of them whose release serves everyone by now, with the rollout that brought it.
    pub succeeded: BTreeMap<ComponentId, RolloutId>,
    /// What will not hold, as what serves everyone is not rolled back further than that.
    pub unmet: Vec<Unmet>,
}

/// Follows the rollback of a component to what `comes_back`, to its dependants, theirs, and so on.
pub fn cascade(
    (component, comes_back): (&ComponentId, Option<&Version>),
    edges: &[Edge],
    environment: &EnvironmentId,
    serving: &Serving,
    came: &BTreeMap<ComponentId, Came>,
) -> Cascade {
    let mut cascade = Cascade::default();
    let mut back = BTreeSet::new();
    let mut queue = vec![(component, comes_back)];
    while let Some((on, found)) = queue.pop() {
        for edge in within(edges, environment).filter(|edge| edge.needs.on == *on) {
            let dependant = &edge.component;
            let (Some(served), Some(missing)) = (serving.get(dependant), edge.unmet_with(found)) else {
                continue;
            };
            let came = came.get(dependant);
            let left = came.map(|came| &came.before).or(served.stable.as_ref());
            if (served.canary.is_some() || came.is_some()) && back.insert(dependant.clone()) {
                queue.push((dependant, left));
            }
            cascade.succeeded.extend(came.map(|came| (dependant.clone(), came.rollout)));
            cascade.unmet.extend(left.map(|_| missing));
        }
    }
    back.remove(component);
    cascade.before = waves(&back, edges, environment).into_iter().rev().flatten().collect();
    cascade
}

#[cfg(test)]
mod tests;
