//! Windows and overrides as they stood at each time, from the events that told of them. A window denies from the moment it
//! was made, changed or confirmed, until it was changed or deleted: what is done to it today rewrites nothing.

use std::borrow::Cow;
use std::collections::BTreeSet;

use serde::Deserialize;
use serde::de::Error as _;
use serde_json::Value;
use shared::id::{WindowId, WindowOverrideId};
use shared::time::Time;

use super::record::Record;
use super::timetable::without;
use super::{Action, Effect, OverrideSubject, Span, Target, Terms, Window, schedule};

/// A change of the calendar, as an event tells of it.
#[derive(Debug, Clone, PartialEq)]
pub enum Told {
    /// A window says this from then on.
    Set(WindowId, Box<Terms>),
    Deleted(WindowId),
    Overridden {
        id: WindowOverrideId,
        window: WindowId,
        subject: OverrideSubject,
        ends_at: Time,
    },
    OverrideEnded(WindowOverrideId),
}

/// What windows said, and who lifted them.
#[derive(Debug, Default)]
pub struct Past {
    versions: Vec<Version>,
    lifts: Vec<Lift>,
}

/// A window while nobody changed it.
#[derive(Debug)]
struct Version {
    window: WindowId,
    terms: Terms,
    stood: Span,
}

/// An override while it held.
#[derive(Debug)]
struct Lift {
    id: WindowOverrideId,
    window: WindowId,
    subject: OverrideSubject,
    span: Span,
}

/// When rollouts of a component were denied.
#[derive(Debug, Default)]
pub struct Denied {
    /// What each window denied, but for where it was lifted for the place.
    by_window: Vec<(WindowId, Vec<Span>)>,
    /// All of it.
    usual: Vec<Span>,
    /// Which windows were lifted for which release, and when.
    lifted: Vec<(String, WindowId, Span)>,
}

#[derive(Deserialize)]
struct Named {
    window_id: String,
}

#[derive(Deserialize)]
struct Overridden {
    window_override_id: String,
    window_id: String,
    component: Option<String>,
    environment: Option<String>,
    release_id: Option<String>,
    ends_at: Time,
}

#[derive(Deserialize)]
struct Ended {
    window_override_id: String,
}

fn id<T: std::str::FromStr<Err: std::fmt::Display>>(text: &str) -> serde_json::Result<T> {
    text.parse().map_err(serde_json::Error::custom)
}

impl Told {
    /// What the event of this kind tells; none where it is of something else.
    pub fn read(kind: &str, data: &Value) -> serde_json::Result<Option<Self>> {
        Ok(Some(match kind {
            "window.created" | "window.updated" => {
                let terms: Terms =
                    Record::deserialize(data)?.try_into().map_err(serde_json::Error::custom)?;
                Self::Set(id(&Named::deserialize(data)?.window_id)?, Box::new(terms))
            }
            "window.deleted" => Self::Deleted(id(&Named::deserialize(data)?.window_id)?),
            "window.overridden" => {
                let Overridden { window_override_id, window_id, component, environment, release_id, ends_at } =
                    Overridden::deserialize(data)?;
                let subject = match (component.zip(environment), release_id) {
                    (Some((component, environment)), None) => {
                        OverrideSubject::Place { component, environment }
                    }
                    (None, Some(release)) => OverrideSubject::Release(id(&release)?),
                    _ => return Err(serde_json::Error::custom("neither a place nor a release")),
                };
                let (id, window) = (id(&window_override_id)?, id(&window_id)?);
                Self::Overridden { id, window, subject, ends_at }
            }
            "window.override_ended" => {
                Self::OverrideEnded(id(&Ended::deserialize(data)?.window_override_id)?)
            }
            _ => return Ok(None),
        }))
    }
}

impl Past {
    /// Takes in what was told, in the order in which it came about. Clocks differ, so what came later is not earlier. Live windows of which nothing is told have stood as they are since
    /// they were made.
    pub fn of(told: impl IntoIterator<Item = (Time, Told)>, live: Vec<Window>) -> Self {
        let (mut past, mut known) = (Self::default(), BTreeSet::new());
        let mut last = Time::MIN_UTC;
        for (at, told) in told {
            let at = at.max(last);
            last = at;
            match told {
                Told::Set(window, terms) => {
                    known.insert(window);
                    past.end(window, at);
                    past.begin(window, *terms, at);
                }
                Told::Deleted(window) => {
                    known.insert(window);
                    past.end(window, at);
                }
                Told::Overridden { id, window, subject, ends_at } => {
                    let span = Span { start: at, end: ends_at };
                    past.lifts.push(Lift { id, window, subject, span });
                }
                Told::OverrideEnded(id) => {
                    for lift in past.lifts.iter_mut().filter(|lift| lift.id == id) {
                        lift.span.end = lift.span.end.min(at);
                    }
                }
            }
        }
        for window in live.into_iter().filter(|window| !known.contains(&window.id)) {
            past.begin(window.id, window.terms, window.created_at);
        }
        past
    }

    fn begin(&mut self, window: WindowId, terms: Terms, at: Time) {
        self.versions
            .push(Version { window, terms, stood: Span { start: at, end: Time::MAX_UTC } });
    }

    fn end(&mut self, window: WindowId, at: Time) {
        for version in self.versions.iter_mut().filter(|version| version.window == window) {
            version.stood.end = version.stood.end.min(at);
        }
    }

    /// When windows denied one of the actions to one of the targets within that time.
    pub fn denied(&self, actions: &[Action], targets: &[Target], within: Span) -> Denied {
        let mut by_window = Vec::new();
        for version in &self.versions {
            let held: Vec<_> = targets
                .iter()
                .filter(|target| version.terms.hold_for(target, actions))
                .collect();
            // Schedules take long to expand, and say the same to all.
            let denied = if held.is_empty() { Vec::new() } else { version.denied(within) };
            for target in held {
                let spans = self.lifted_at(target, version.window, denied.clone());
                if !spans.is_empty() {
                    by_window.push((version.window, spans));
                }
            }
        }
        let lifted = self.lifts.iter().filter_map(|lift| match &lift.subject {
            OverrideSubject::Release(release) => Some((release.to_string(), lift.window, lift.span)),
            OverrideSubject::Place { .. } => None,
        });
        let usual = union(by_window.iter().flat_map(|(_, spans)| spans.iter().copied()));
        Denied { usual, lifted: lifted.collect(), by_window }
    }

    /// Leaves what was not lifted for the place.
    fn lifted_at(&self, target: &Target, window: WindowId, spans: Vec<Span>) -> Vec<Span> {
        let lifts = self.lifts.iter().filter(|lift| {
            lift.window == window
                && matches!(&lift.subject, OverrideSubject::Place { component, environment }
                    if target.component == Some(component) && target.environment == Some(environment))
        });
        lifts.fold(spans, |spans, lift| without(&spans, lift.span))
    }
}

impl Version {
    fn denied(&self, within: Span) -> Vec<Span> {
        let Self { terms, stood, .. } = self;
        let within = Span { start: within.start.max(stood.start), end: within.end.min(stood.end) };
        if terms.effect != Effect::Deny || within.start >= within.end {
            return Vec::new();
        }
        let spans = terms.spans(within).into_iter();
        spans
            .map(|span| Span { start: span.start.max(within.start), end: span.end.min(within.end) })
            .collect()
    }
}

impl Denied {
    /// When it was denied to this release, in order.
    pub fn to(&self, release: &str) -> Cow<'_, [Span]> {
        let lifted: Vec<_> = self.lifted.iter().filter(|(lifted, ..)| lifted == release).collect();
        if lifted.is_empty() {
            return Cow::Borrowed(&self.usual);
        }
        let left = self.by_window.iter().flat_map(|(window, spans)| {
            let lifts = lifted.iter().filter(|(_, lifted, _)| lifted == window);
            lifts.fold(spans.clone(), |spans, (_, _, lift)| without(&spans, *lift))
        });
        Cow::Owned(union(left))
    }

    /// Whether nothing was.
    pub fn is_empty(&self) -> bool {
        self.usual.is_empty()
    }
}

fn union(spans: impl IntoIterator<Item = Span>) -> Vec<Span> {
    let mut spans: Vec<_> = spans.into_iter().collect();
    spans.sort_by_key(|span| span.start);
    schedule::merged(spans)
}
