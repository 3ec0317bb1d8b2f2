//! Freeze windows: when a kind of change is denied, or allowed, to what. One pure function answers for every caller, at
//! the instant that is asked about and for one target, so that what is shown is what holds.
//!
//! A window that denies beats one that allows. Where windows that allow apply to an action and a target, it is closed
//! outside all of them. Spans are half-open. Where a wall clock shows the same twice, a freeze covers both; what is
//! allowed ends at the first: doubt keeps closed.

use chrono::TimeDelta;
use chrono_tz::Tz;
use shared::id::{ReleaseId, WindowId, WindowOverrideId};
use shared::time::Time;

mod past;
#[cfg(test)]
mod properties;
mod proposal;
mod record;
mod schedule;
#[cfg(test)]
mod tests;
mod timetable;

use timetable::Timetable;

pub use past::{Denied, Past, Told};
pub use proposal::{Change, Proposed, looser};
pub use record::{Corrupt, Record};
pub use schedule::{BadSchedule, End, Parts, Recurrence, Schedule, Span, local_text};

/// How far ahead an opening or closing is looked for.
pub const HORIZON: TimeDelta = TimeDelta::days(400);
/// The longest that a window may be overridden for.
pub const OVERRIDE_MAX: TimeDelta = TimeDelta::hours(24);

/// A window.
#[derive(Debug, Clone, PartialEq)]
pub struct Window {
    pub id: WindowId,
    pub terms: Terms,
    /// `issuer|sub`.
    pub creator: String,
    pub created_at: Time,
    pub deleted_at: Option<Time>,
    pub row_version: i64,
    pub proposed: Option<Proposed>,
}

/// What people set in a window.
#[derive(Debug, Clone, PartialEq)]
pub struct Terms {
    pub name: String,
    pub effect: Effect,
    /// None at all only for one that marks a peak.
    pub actions: Vec<Action>,
    pub scope: Scope,
    pub zone: Tz,
    pub schedule: Schedule,
    pub reason: String,
    /// Peak trading, quarter close: raises the calendar factor of risk.
    pub is_peak: bool,
}

/// What a window does to the actions that it names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    Deny,
    Allow,
}

/// A kind of change that windows restrict by itself, so that a dark deployment can go where an exposure may not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    Deploy,
    Expose,
    Schema,
}

/// What a window is about. Each list that is empty stands for all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scope {
    pub tiers: Vec<String>,
    pub components: Vec<String>,
    pub environments: Vec<String>,
    pub regions: Vec<String>,
}

/// What is asked about. What is not said matches only windows that are about all of that kind.
#[derive(Debug, Clone, Copy, Default)]
pub struct Target<'a> {
    pub component: Option<&'a str>,
    pub tier: Option<&'a str>,
    pub environment: Option<&'a str>,
    pub region: Option<&'a str>,
    pub release: Option<ReleaseId>,
}

/// A person's word that a window does not hold for a target, for a while.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Override {
    pub id: WindowOverrideId,
    pub window: WindowId,
    pub subject: OverrideSubject,
    pub reason: String,
    /// `issuer|sub`.
    pub creator: String,
    pub span: Span,
    pub ending: Option<Ending>,
}

/// Somebody took an override back before its time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    /// `issuer|sub`.
    pub ender: String,
    pub reason: String,
}

/// What an override is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OverrideSubject {
    /// A component in an environment.
    Place { component: String, environment: String },
    /// A release, wherever it goes.
    Release(ReleaseId),
}

/// Somebody stopped the line: nothing of the tenant's is exposed further.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stop {
    pub at: Time,
    /// `issuer|sub`.
    pub stopper: String,
    pub reason: String,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// What keeps it closed; nothing if it is open.
    pub blockers: Vec<Held>,
    /// Overrides without which it would be closed.
    pub overrides: Vec<WindowOverrideId>,
    /// If it is closed: when it opens, if it does within [`HORIZON`].
    pub next_open: Option<Time>,
}

/// A window that keeps something closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    pub id: WindowId,
    pub name: String,
    pub effect: Effect,
    pub zone: Tz,
    /// When it ends or, one that allows, when it begins next; none if not within [`HORIZON`].
    pub until: Option<Time>,
}

impl Effect {
    /// As on the wire, without its prefix, and in the database.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Deny => "DENY",
            Self::Allow => "ALLOW",
        }
    }

    const fn end(self) -> End {
        match self {
            Self::Deny => End::Last,
            Self::Allow => End::First,
        }
    }
}

impl Action {
    pub const ALL: [Self; 3] = [Self::Deploy, Self::Expose, Self::Schema];

    /// As on the wire, without its prefix, and in the database.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Deploy => "DEPLOY",
            Self::Expose => "EXPOSE",
            Self::Schema => "SCHEMA",
        }
    }
}

impl Scope {
    /// Whether it may be about something of which this is known; what is not said may be anything.
    fn may_cover(&self, target: &Target) -> bool {
        let may_hold = |names: &[String], name: Option<&str>| {
            names.is_empty() || name.is_none_or(|name| names.iter().any(|listed| listed == name))
        };
        may_hold(&self.tiers, target.tier)
            && may_hold(&self.components, target.component)
            && may_hold(&self.environments, target.environment)
            && may_hold(&self.regions, target.region)
    }

    fn covers(&self, target: &Target) -> bool {
        let holds = |names: &[String], name: Option<&str>| {
            names.is_empty() || name.is_some_and(|name| names.iter().any(|listed| listed == name))
        };
        holds(&self.tiers, target.tier)
            && holds(&self.components, target.component)
            && holds(&self.environments, target.environment)
            && holds(&self.regions, target.region)
    }
}

impl Override {
    /// As it is once somebody took it back, which only ever makes it shorter.
    #[must_use]
    pub fn ended(self, at: Time, ending: Ending) -> Self {
        // The clock of whoever made it may be ahead.
        let span = Span { end: self.span.end.min(at.max(self.span.start)), ..self.span };
        Self { span, ending: Some(ending), ..self }
    }

    fn is_for(&self, target: &Target) -> bool {
        match &self.subject {
            OverrideSubject::Place { component, environment } => {
                target.component == Some(component) && target.environment == Some(environment)
            }
            OverrideSubject::Release(release) => target.release == Some(*release),
        }
    }
}

impl Window {
    /// From when on it says nothing any more; none if it always does, as one that allows does: it denies all other times.
    pub fn over_at(&self) -> Option<Time> {
        match self.terms.effect {
            Effect::Deny => self.terms.schedule.over_at(self.terms.zone),
            Effect::Allow => None,
        }
    }

    fn holds_for(&self, target: &Target, actions: &[Action]) -> bool {
        self.deleted_at.is_none() && self.terms.hold_for(target, actions)
    }
}

impl Terms {
    fn hold_for(&self, target: &Target, actions: &[Action]) -> bool {
        self.actions.iter().any(|action| actions.contains(action)) && self.scope.covers(target)
    }

    fn spans(&self, within: Span) -> Vec<Span> {
        self.schedule.spans(self.zone, self.effect.end(), within)
    }
}

/// Whether a window marks this instant as a peak for the target.
pub fn is_peak(windows: &[Window], at: Time, target: &Target) -> bool {
    windows.iter().any(|window| {
        let is_about =
            window.deleted_at.is_none() && window.terms.is_peak && window.terms.scope.covers(target);
        is_about && !window.terms.spans(instant(at)).is_empty()
    })
}

/// Whether these actions may all happen to the target at that instant; if not, what keeps them from it, and until when.
/// Looks beyond the instant only then.
pub fn evaluate(
    windows: &[Window],
    overrides: &[Override],
    at: Time,
    actions: &[Action],
    target: &Target,
) -> Verdict {
    let held = Timetable::new(windows, &[], actions, target, instant(at)).held(at);
    if held.is_empty() {
        return Verdict { blockers: vec![], overrides: vec![], next_open: None };
    }
    let lifted = overrides
        .iter()
        .filter(|lifted| lifted.span.contains(at) && lifted.is_for(target));
    let lifted = lifted.filter(|lifted| held.iter().any(|held| held.id == lifted.window));
    let table = Timetable::new(windows, overrides, actions, target, ahead(at));
    Verdict {
        overrides: lifted.map(|lifted| lifted.id).collect(),
        next_open: table.next_open(at),
        blockers: table.held(at),
    }
}

/// When what is open at that instant closes, if it does within [`HORIZON`].
pub fn next_close(
    windows: &[Window],
    overrides: &[Override],
    at: Time,
    actions: &[Action],
    target: &Target,
) -> Option<Time> {
    Timetable::new(windows, overrides, actions, target, ahead(at)).next_close(at)
}

fn ahead(at: Time) -> Span {
    Span { start: at, end: at + HORIZON }
}

fn instant(at: Time) -> Span {
    Span { start: at, end: at + TimeDelta::microseconds(1) }
}
