//! Windows, overrides and the line between their wire form and the domain.

use std::collections::BTreeSet;

use chrono::{Datelike as _, TimeDelta};
use chrono_tz::Tz;
use shared::id::ComponentId;
use shared::parse::{at_most, duration, etag_of, known, line, parse, required, text_of};
use shared::pb::release as pb;
use shared::pb::release::window::Schedule as PbSchedule;
use shared::pb::release::window_override::Subject;
use shared::status::Refusal;
use shared::time::{Time, duration_to_proto, from_proto, to_proto};

use crate::domain::blocker::Blocker;
use crate::domain::window::{
    Action, BadSchedule, Change, Effect, Ending, Override, OverrideSubject, Proposed, Schedule, Scope, Span,
    Stop, Terms, Window, local_text,
};
use crate::rpc::release::REASON_MAX;

/// Names that a list of a scope has at most.
const NAMES_MAX: usize = 100;

/// How long ago a recurrence may have begun.
const STARTED_MAX: TimeDelta = TimeDelta::days(5 * 366);

/// What people set in a window, the id they sent with it, and its etag.
pub(super) fn parse_window(
    window: Option<pb::Window>,
    now: Time,
) -> Result<(Terms, String, String), Refusal> {
    let pb::Window {
        window_id,
        name,
        effect,
        actions,
        scope,
        time_zone,
        schedule,
        reason,
        is_peak,
        creator: _,
        create_time: _,
        delete_time: _,
        etag,
        proposed: _,
        is_pending: _,
    } = required("window", window)?;
    let zone = time_zone.parse::<Tz>();
    let zone = zone.map_err(|_| {
        Refusal::field("window.time_zone", "must be the name of an IANA time zone such as Europe/London")
    })?;
    let actions = parse_actions("window.actions", &actions)?;
    if actions.is_empty() && !is_peak {
        return Err(Refusal::field("window.actions", "must have an element where the window marks no peak"));
    }
    let terms = Terms {
        name: line("window.name", name, 1, 200)?,
        effect: match known("window.effect", effect)? {
            pb::WindowEffect::Deny | pb::WindowEffect::Unspecified => Effect::Deny,
            pb::WindowEffect::Allow => Effect::Allow,
        },
        actions,
        scope: parse_scope(scope.unwrap_or_default())?,
        zone,
        schedule: parse_schedule(zone, required("window.schedule", schedule)?, now)?,
        reason: text_of("window.reason", reason, 1, REASON_MAX)?,
        is_peak,
    };
    Ok((terms, window_id, etag))
}

fn parse_schedule(zone: Tz, schedule: PbSchedule, now: Time) -> Result<Schedule, Refusal> {
    let parsed = match schedule {
        PbSchedule::Local(pb::LocalSpan { start, end }) => Schedule::local(zone, &start, &end),
        PbSchedule::Instants(pb::InstantSpan { start, end }) => Schedule::instants(
            parse_time("window.instants.start", start)?,
            parse_time("window.instants.end", end)?,
        ),
        PbSchedule::Recurrence(pb::Recurrence { rule, start, duration: lasts }) => {
            let lasts = duration("window.recurrence.duration", lasts)?;
            let lasts = lasts
                .and_then(|lasts| i64::try_from(lasts.as_secs()).ok())
                .and_then(TimeDelta::try_seconds);
            Schedule::recurring(zone, &rule, &start, lasts.unwrap_or_default())
        }
    };
    let schedule = parsed
        .map_err(|BadSchedule { field, problem }| Refusal::field(format!("window.{field}"), problem))?;
    // Some rules are counted from their start each time they are asked.
    if let Schedule::Recurring(recurrence) = &schedule
        && recurrence.start + STARTED_MAX < now.naive_utc()
    {
        return Err(Refusal::field("window.recurrence.start", "must not be more than five years ago"));
    }
    Ok(schedule)
}

/// An instant that may be asked about.
pub(super) fn parse_time(field: &str, time: Option<prost_types::Timestamp>) -> Result<Time, Refusal> {
    let time = from_proto(required(field, time)?);
    let time = time.filter(|time| (2000..=2200).contains(&time.year()));
    time.ok_or_else(|| Refusal::field(field, "must be an instant of the years 2000 to 2200"))
}

/// Each once, in the order of the proto.
pub(super) fn parse_actions(field: &str, actions: &[i32]) -> Result<Vec<Action>, Refusal> {
    at_most(field, actions, 16)?;
    let actions = actions.iter().map(|number| {
        Ok(match known(field, *number)? {
            pb::ReleaseAction::Deploy | pb::ReleaseAction::Unspecified => Action::Deploy,
            pb::ReleaseAction::Expose => Action::Expose,
            pb::ReleaseAction::Schema => Action::Schema,
        })
    });
    let actions: BTreeSet<_> = actions.collect::<Result<_, Refusal>>()?;
    Ok(actions.into_iter().collect())
}

fn parse_scope(scope: pb::WindowScope) -> Result<Scope, Refusal> {
    let pb::WindowScope { tiers, components, environments, regions } = scope;
    at_most("window.scope.tiers", &tiers, 16)?;
    let tiers = tiers.iter().map(|number| {
        let tier = known::<pb::ComponentTier>("window.scope.tiers", *number)?;
        Ok(tier.as_str_name().trim_start_matches("COMPONENT_").to_owned())
    });
    let tiers: BTreeSet<_> = tiers.collect::<Result<_, Refusal>>()?;
    Ok(Scope {
        tiers: tiers.into_iter().collect(),
        components: parse_names("window.scope.components", &components)?,
        environments: parse_names("window.scope.environments", &environments)?,
        regions: parse_names("window.scope.regions", &regions)?,
    })
}

/// Each once, in order. All are of the form of a component's name.
fn parse_names(field: &str, names: &[String]) -> Result<Vec<String>, Refusal> {
    at_most(field, names, NAMES_MAX)?;
    let names = names.iter().enumerate();
    let names = names.map(|(i, name)| Ok(parse::<ComponentId>(&format!("{field}[{i}]"), name)?.to_string()));
    let names: BTreeSet<_> = names.collect::<Result<_, Refusal>>()?;
    Ok(names.into_iter().collect())
}

impl From<&Terms> for pb::Window {
    fn from(terms: &Terms) -> Self {
        let Terms { name, effect, actions, scope, zone, schedule, reason, is_peak } = terms;
        Self {
            name: name.clone(),
            effect: effect_to_proto(*effect).into(),
            actions: actions.iter().map(|action| action_to_proto(*action).into()).collect(),
            scope: Some(scope.into()),
            time_zone: zone.name().to_owned(),
            schedule: Some(schedule.into()),
            reason: reason.clone(),
            is_peak: *is_peak,
            ..Self::default()
        }
    }
}

impl From<&Window> for pb::Window {
    fn from(window: &Window) -> Self {
        let is_pending = window.is_pending();
        Self {
            window_id: window.id.to_string(),
            creator: window.creator.clone(),
            create_time: Some(to_proto(window.created_at)),
            delete_time: window.deleted_at.filter(|_| !is_pending).map(to_proto),
            etag: etag_of(window.row_version),
            proposed: window
                .proposed
                .as_ref()
                .map(|proposed| Box::new(proposal_to_proto(proposed, window.row_version))),
            is_pending,
            ..(&window.terms).into()
        }
    }
}

fn proposal_to_proto(proposed: &Proposed, version: i64) -> pb::WindowProposal {
    let Proposed { change, author, person: _, at } = proposed;
    let (window, deletion_reason) = match change {
        Change::Creation => (None, String::new()),
        Change::Update(terms) => (Some(Box::new((&**terms).into())), String::new()),
        Change::Deletion { reason } => (None, reason.clone()),
    };
    let create_time = Some(to_proto(*at));
    pb::WindowProposal { version, window, deletion_reason, author: author.clone(), create_time }
}

impl From<&Scope> for pb::WindowScope {
    fn from(scope: &Scope) -> Self {
        let tier = |name: &String| pb::ComponentTier::from_str_name(&format!("COMPONENT_{name}"));
        Self {
            tiers: scope.tiers.iter().filter_map(tier).map(Into::into).collect(),
            components: scope.components.clone(),
            environments: scope.environments.clone(),
            regions: scope.regions.clone(),
        }
    }
}

impl From<&Schedule> for PbSchedule {
    fn from(schedule: &Schedule) -> Self {
        match schedule {
            Schedule::Instants(Span { start, end }) => {
                let (start, end) = (Some(to_proto(*start)), Some(to_proto(*end)));
                Self::Instants(pb::InstantSpan { start, end })
            }
            Schedule::Local { start, end } => {
                Self::Local(pb::LocalSpan { start: local_text(*start), end: local_text(*end) })
            }
            Schedule::Recurring(recurrence) => Self::Recurrence(pb::Recurrence {
                rule: recurrence.text.clone(),
                start: local_text(recurrence.start),
                duration: recurrence.duration.to_std().ok().map(duration_to_proto),
            }),
        }
    }
}

pub(super) const fn effect_to_proto(effect: Effect) -> pb::WindowEffect {
    match effect {
        Effect::Deny => pb::WindowEffect::Deny,
        Effect::Allow => pb::WindowEffect::Allow,
    }
}

const fn action_to_proto(action: Action) -> pb::ReleaseAction {
    match action {
        Action::Deploy => pb::ReleaseAction::Deploy,
        Action::Expose => pb::ReleaseAction::Expose,
        Action::Schema => pb::ReleaseAction::Schema,
    }
}

impl From<&Override> for pb::WindowOverride {
    fn from(lifted: &Override) -> Self {
        let subject = match &lifted.subject {
            OverrideSubject::Place { component, environment } => {
                let (component, environment) = (component.clone(), environment.clone());
                Subject::Place(pb::WindowPlace { component, environment })
            }
            OverrideSubject::Release(release) => Subject::ReleaseId(release.to_string()),
        };
        let ending = lifted.ending.clone();
        let (ender, end_reason) = ending.map(|Ending { ender, reason }| (ender, reason)).unwrap_or_default();
        Self {
            window_override_id: lifted.id.to_string(),
            window_id: lifted.window.to_string(),
            subject: Some(subject),
            reason: lifted.reason.clone(),
            end_time: Some(to_proto(lifted.span.end)),
            creator: lifted.creator.clone(),
            create_time: Some(to_proto(lifted.span.start)),
            ender,
            end_reason,
        }
    }
}

pub(super) fn line_to_proto(stop: Option<&Stop>) -> pb::Line {
    let Some(Stop { at, stopper, reason }) = stop else { return pb::Line::default() };
    pb::Line {
        is_stopped: true,
        reason: reason.clone(),
        stopper: stopper.clone(),
        stop_time: Some(to_proto(*at)),
    }
}

impl From<Blocker> for pb::Blocker {
    fn from(blocker: Blocker) -> Self {
        let Blocker { kind, subject, description, lifted_by, next_open } = blocker;
        let next_open_time = next_open.map(to_proto);
        Self { r#type: kind.name().to_owned(), subject, description, lifted_by, next_open_time }
    }
}
