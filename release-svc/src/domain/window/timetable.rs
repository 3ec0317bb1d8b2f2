//! What the windows that matter to a question say over a time: who keeps it closed, and when that changes.

use shared::time::Time;

use super::{Action, Effect, Held, Override, Span, Target, Terms, Window};

/// Steps of a search; each goes to an edge of a window.
const STEPS_MAX: usize = 2000;

/// The windows that are about the target, with what they cover over a time.
pub(super) struct Timetable<'a> {
    windows: Vec<(&'a Window, Vec<Span>)>,
    /// Those that some window allows, so that they are closed outside of all that do.
    limited: Vec<Action>,
    end: Time,
}

impl<'a> Timetable<'a> {
    pub(super) fn new(
        windows: &'a [Window],
        overrides: &[Override],
        actions: &[Action],
        target: &Target,
        within: Span,
    ) -> Self {
        let windows = windows.iter().filter(|window| window.holds_for(target, actions));
        let windows: Vec<_> = windows
            .map(|window| {
                let lifted = overrides
                    .iter()
                    .filter(|lifted| lifted.window == window.id && lifted.is_for(target));
                let lifted =
                    lifted.fold(window.terms.spans(within), |spans, lifted| match window.terms.effect {
                        Effect::Deny => without(&spans, lifted.span),
                        Effect::Allow => with(spans, lifted.span),
                    });
                (window, lifted)
            })
            .collect();
        let is_limited = |action: &Action| {
            windows.iter().any(|(window, _)| {
                window.terms.effect == Effect::Allow && window.terms.actions.contains(action)
            })
        };
        let limited = actions.iter().copied().filter(is_limited).collect();
        Self { windows, limited, end: within.end }
    }

    /// Those that keep it closed at that instant.
    pub(super) fn held(&self, at: Time) -> Vec<Held> {
        let closed: Vec<_> = self.closed(at).collect();
        let held = self.windows.iter().filter_map(|(window, spans)| {
            let until = match window.terms.effect {
                Effect::Deny => containing(spans, at)?.end,
                Effect::Allow if window.terms.actions.iter().any(|action| closed.contains(action)) => {
                    next_start(spans, at).unwrap_or(self.end)
                }
                Effect::Allow => return None,
            };
            let until = (until < self.end).then_some(until);
            let Terms { name, effect, zone, .. } = &window.terms;
            Some(Held { id: window.id, name: name.clone(), effect: *effect, zone: *zone, until })
        });
        held.collect()
    }

    /// Of what only some times allow, what that instant does not.
    fn closed(&self, at: Time) -> impl Iterator<Item = Action> {
        let is_closed =
            move |action: &Action| self.allowing(*action).all(|spans| containing(spans, at).is_none());
        self.limited.iter().copied().filter(is_closed)
    }

    fn allowing(&self, action: Action) -> impl Iterator<Item = &[Span]> {
        let windows = self.windows.iter();
        let windows = windows.filter(move |(window, _)| {
            window.terms.effect == Effect::Allow && window.terms.actions.contains(&action)
        });
        windows.map(|(_, spans)| spans.as_slice())
    }

    fn denying(&self) -> impl Iterator<Item = &[Span]> {
        let windows = self.windows.iter().filter(|(window, _)| window.terms.effect == Effect::Deny);
        windows.map(|(_, spans)| spans.as_slice())
    }

    /// The first instant from `at` on that is open.
    pub(super) fn next_open(&self, mut at: Time) -> Option<Time> {
        for _ in 0..STEPS_MAX {
            let denied = self.denying().filter_map(|spans| containing(spans, at));
            let denied = denied.map(|span| span.end).max();
            // Nothing before the last of these can be open.
            let mut next = denied.unwrap_or(at);
            for action in self.closed(at) {
                let allowed = self.allowing(action).filter_map(|spans| next_start(spans, at)).min();
                next = next.max(allowed?);
            }
            if next >= self.end {
                return None;
            }
            if next == at {
                return Some(at);
            }
            at = next;
        }
        None
    }

    /// The first instant after `at`, which is open, that is not.
    pub(super) fn next_close(&self, mut at: Time) -> Option<Time> {
        for _ in 0..STEPS_MAX {
            let denied = self.denying().filter_map(|spans| next_start(spans, at)).min();
            let mut next = denied.unwrap_or(self.end);
            for action in &self.limited {
                let allowed = self.allowing(*action).filter_map(|spans| containing(spans, at));
                next = next.min(allowed.map(|span| span.end).max()?);
            }
            if next >= self.end {
                return None;
            }
            if !self.held(next).is_empty() {
                return Some(next);
            }
            at = next;
        }
        None
    }
}

fn containing(spans: &[Span], at: Time) -> Option<&Span> {
    let begun = spans.partition_point(|span| span.start <= at);
    spans[..begun].last().filter(|span| span.contains(at))
}

fn next_start(spans: &[Span], at: Time) -> Option<Time> {
    spans.get(spans.partition_point(|span| span.start <= at)).map(|span| span.start)
}

pub(super) fn without(spans: &[Span], hole: Span) -> Vec<Span> {
    let parts = spans.iter().flat_map(|span| {
        let (before, after) = (span.end.min(hole.start), span.start.max(hole.end));
        [Span { start: span.start, end: before }, Span { start: after, end: span.end }]
    });
    parts.filter(|span| span.start < span.end).collect()
}

fn with(mut spans: Vec<Span>, more: Span) -> Vec<Span> {
    spans.push(more);
    spans.sort_by_key(|span| span.start);
    super::schedule::merged(spans)
}
