//! Visits whose release changed while they lasted: which changes had to be, and which broke a promise.

use std::collections::BTreeMap;

use shared::pb::release::rollout_service_client::RolloutServiceClient;
use shared::pb::release::{AssignmentPolicy, GetRolloutRequest, GetRolloutResponse, Rollout, RolloutState};
use shared::pb::session::Arm;

use super::call::{Caller, Refused};
use super::report::{Move, Promises};
use crate::client::Authorized;

/// A rollout with its guards, as it stands.
pub(crate) async fn rollout(
    rollouts: &RolloutServiceClient<Authorized>,
    rollout_id: &str,
    caller: &mut Caller,
) -> Result<GetRolloutResponse, Refused> {
    let request = GetRolloutRequest { rollout_id: rollout_id.to_owned() };
    let get = async |request| rollouts.clone().get_rollout(request).await;
    caller.call("GetRollout", request, get).await
}

/// Says which changes of a visit's release had to be, and counts those that broke a promise. Answers how many visits a
/// rollback moved.
pub(crate) async fn explain(rollouts: &RolloutServiceClient<Authorized>, caller: &mut Caller) -> u64 {
    let mut by_rollback = 0;
    let mut known = BTreeMap::new();
    for (moved, count) in std::mem::take(&mut caller.tally.moves) {
        for pin in [Some(&moved.from), moved.to.as_ref()].into_iter().flatten() {
            if pin.rollout_id.is_empty() || known.contains_key(&pin.rollout_id) {
                continue;
            }
            match rollout(rollouts, &pin.rollout_id, caller).await {
                Ok(answer) => _ = known.insert(pin.rollout_id.clone(), answer.rollout.unwrap_or_default()),
                Err(refused) => caller.tally.failed(refused),
            }
        }
        match Cause::of(&moved, &known) {
            Cause::Rollback => by_rollback += count,
            Cause::Assignment => {}
            Cause::None => broken(&moved, count, &mut caller.tally.promises),
        }
    }
    by_rollback
}

/// Why a visit's release changed.
#[derive(Debug, PartialEq, Eq)]
enum Cause {
    /// It was taken back.
    Rollback,
    /// A rollout that asks for running visits took it in.
    Assignment,
    /// Nothing that may be.
    None,
}

impl Cause {
    fn of(moved: &Move, rollouts: &BTreeMap<String, Rollout>) -> Self {
        let Move { from, to: Some(to), in_checkout: false, .. } = moved else { return Self::None };
        let left = rollouts.get(&from.rollout_id).map(Rollout::state);
        let is_back = matches!(
            left,
            Some(RolloutState::RollingBack | RolloutState::RollbackFailed | RolloutState::RolledBack)
        );
        let entered = rollouts.get(&to.rollout_id).map(Rollout::assignment_policy);
        if is_back && from.arm == Arm::Canary && to.arm != Arm::Canary {
            Self::Rollback
        } else if entered == Some(AssignmentPolicy::AllSessions) && to.rollout_id != from.rollout_id {
            Self::Assignment
        } else {
            Self::None
        }
    }
}

fn broken(moved: &Move, count: u64, promises: &mut Promises) {
    let Move { component, from, to, in_checkout } = moved;
    let (counted, kind) = if *in_checkout {
        (&mut promises.checkouts_moved, "moved in checkout")
    } else {
        (&mut promises.version_flips, "flipped")
    };
    *counted += count;
    let to = to
        .as_ref()
        .map_or_else(|| "nothing".to_owned(), |to| format!("{} {:?}", to.version, to.arm));
    promises
        .list(format!("{kind}: {count} visits of {component} from {} {:?} to {to}", from.version, from.arm));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::report::Pin;

    fn pin(arm: Arm, rollout_id: &str) -> Pin {
        let (version, release_id) = (format!("{arm:?}"), format!("{arm:?}"));
        Pin { version, arm, release_id, rollout_id: rollout_id.to_owned() }
    }

    fn rollouts(state: RolloutState, policy: AssignmentPolicy) -> BTreeMap<String, Rollout> {
        let rollout = Rollout { state: state.into(), assignment_policy: policy.into(), ..Rollout::default() };
        BTreeMap::from([("rlo_1".to_owned(), rollout)])
    }

    fn moved(from: Arm, to: Arm, in_checkout: bool) -> Move {
        let (from, to) = (pin(from, "rlo_1"), Some(pin(to, "rlo_1")));
        Move { component: "storefront".to_owned(), from, to, in_checkout }
    }

    #[test]
    fn only_a_rollback_moves_a_visit_and_none_in_checkout() {
        use AssignmentPolicy::NewVisits;
        let back = rollouts(RolloutState::RolledBack, NewVisits);
        let running = rollouts(RolloutState::Running, NewVisits);
        for (from, to, in_checkout, rollouts, cause) in [
            (Arm::Canary, Arm::Control, false, &back, Cause::Rollback),
            (Arm::Canary, Arm::Control, true, &back, Cause::None),
            (Arm::Canary, Arm::Control, false, &running, Cause::None),
            (Arm::Control, Arm::Canary, false, &back, Cause::None),
            (Arm::Control, Arm::Canary, false, &running, Cause::None),
        ] {
            assert_eq!(Cause::of(&moved(from, to, in_checkout), rollouts), cause, "{from:?} {to:?}");
        }
    }

    #[test]
    fn a_rollout_of_all_sessions_may_take_running_visits_in() {
        let all = rollouts(RolloutState::Running, AssignmentPolicy::AllSessions);
        let mut enters = moved(Arm::Unspecified, Arm::Canary, false);
        enters.from.rollout_id = String::new();
        assert_eq!(Cause::of(&enters, &all), Cause::Assignment);
        assert_eq!(Cause::of(&moved(Arm::Control, Arm::Canary, false), &all), Cause::None);
    }
}
