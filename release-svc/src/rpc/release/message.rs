//! Releases on the wire.

use shared::parse::{at_most, etag_of, known_or_default, line, required, text_of, within};
use shared::pb::release as pb;
use shared::status::Refusal;
use shared::time::{from_proto, to_proto};

use crate::domain::approval::{Approval, Basis, Vote};
use crate::domain::release::{Release, Risk, State};
use crate::domain::risk::{Band, Reversibility};
use crate::domain::snapshot::{Change, Commit};

pub(super) const NOTES_MAX: usize = 16_000;
/// Longest ticket, work item or incident, in characters.
const REF_MAX: usize = 500;

pub(super) fn parse_change(change: Option<pb::Change>) -> Result<Change, Refusal> {
    let pb::Change {
        commits,
        changed_lines,
        components_touched,
        has_schema_migration,
        has_config_change,
        reversibility,
        rollback_plan,
        change_ticket,
        work_items,
        is_unplanned,
        incident,
        hotfix_line: is_hotfix,
    } = change.unwrap_or_default();
    let reversibility = match known_or_default("change.reversibility", reversibility)? {
        pb::Reversibility::Irreversible => Reversibility::Irreversible,
        pb::Reversibility::Redeploy | pb::Reversibility::Unspecified => Reversibility::Redeploy,
        pb::Reversibility::VariantSwitch => Reversibility::VariantSwitch,
    };
    at_most("change.commits", &commits, 500)?;
    let commits = commits.into_iter().enumerate().map(|(n, commit)| parse_commit(n, commit));
    let changed_lines = within("change.changed_lines", changed_lines, 0, i32::MAX)?;
    let incident = line("change.incident", incident, 0, REF_MAX)?;
    Ok(Change {
        commits: commits.collect::<Result<_, _>>()?,
        changed_lines: u32::try_from(changed_lines).unwrap_or(0),
        components_touched: lines("change.components_touched", components_touched, 200)?,
        has_schema_migration,
        touches_config: has_config_change,
        reversibility,
        rollback_plan: text_of("change.rollback_plan", rollback_plan, 0, NOTES_MAX)?,
        ticket: line("change.change_ticket", change_ticket, 0, REF_MAX)?,
        work_items: lines("change.work_items", work_items, REF_MAX)?,
        is_unplanned,
        incident: (!incident.is_empty()).then_some(incident),
        is_hotfix,
    })
}

fn lines(field: &str, values: Vec<String>, max: usize) -> Result<Vec<String>, Refusal> {
    at_most(field, &values, 100)?;
    let values = values.into_iter().enumerate();
    values.map(|(n, value)| line(&format!("{field}[{n}]"), value, 1, max)).collect()
}

fn parse_commit(n: usize, commit: pb::Commit) -> Result<Commit, Refusal> {
    let pb::Commit { sha, author, commit_time } = commit;
    let field = |name: &str| format!("change.commits[{n}].{name}");
    let at = required(&field("commit_time"), commit_time)?;
    let invalid = || Refusal::field(field("commit_time"), "must be a time");
    Ok(Commit {
        sha: line(&field("sha"), sha, 1, 128)?,
        author: line(&field("author"), author, 1, 320)?,
        at: from_proto(at).ok_or_else(invalid)?,
    })
}

impl From<&Release> for pb::Release {
    fn from(release: &Release) -> Self {
        let submission = release.state.submission();
        let snapshot = submission.and_then(|submission| submission.snapshot.as_ref());
        let is_binding = submission.is_some_and(|submission| submission.terms().rules.risk_binding);
        Self {
            release_id: release.id.to_string(),
            component: release.component.to_string(),
            version: release.version.to_string(),
            state: state_to_proto(&release.state).into(),
            artifact_digest: release.artifact_digest.as_ref().map(ToString::to_string).unwrap_or_default(),
            notes: release.notes.clone(),
            author: release.author.clone(),
            submitter: submission.map(|submission| submission.submitter.clone()).unwrap_or_default(),
            quorum: submission.map_or(0, |submission| submission.quorum),
            votes: release.votes.iter().map(Into::into).collect(),
            create_time: Some(to_proto(release.created_at)),
            submit_time: submission.map(|submission| to_proto(submission.at)),
            etag: etag_of(release.row_version),
            revision: release.revision,
            change: Some((&release.change).into()),
            editors: release.editors.clone(),
            snapshot_digest: snapshot.map(|snapshot| snapshot.digest.to_string()).unwrap_or_default(),
            approval_policy: snapshot.map(|snapshot| snapshot.policy.to_string()).unwrap_or_default(),
            approval_policy_version: snapshot.map_or(0, |snapshot| snapshot.policy_version),
            risk: submission
                .and_then(|submission| submission.risk.as_ref())
                .map(|risk| pb::Risk { is_binding, ..risk.into() }),
            approval: release.approval.as_ref().map(Into::into),
            quarantine: release.quarantine.as_ref().map(|quarantine| pb::Quarantine {
                reason: quarantine.reason.clone(),
                principal: quarantine.by.clone(),
                quarantine_time: Some(to_proto(quarantine.at)),
            }),
        }
    }
}

impl From<&Change> for pb::Change {
    fn from(change: &Change) -> Self {
        let commit = |commit: &Commit| pb::Commit {
            sha: commit.sha.clone(),
            author: commit.author.clone(),
            commit_time: Some(to_proto(commit.at)),
        };
        let reversibility = match change.reversibility {
            Reversibility::Irreversible => pb::Reversibility::Irreversible,
            Reversibility::Redeploy => pb::Reversibility::Redeploy,
            Reversibility::VariantSwitch => pb::Reversibility::VariantSwitch,
        };
        Self {
            commits: change.commits.iter().map(commit).collect(),
            changed_lines: i32::try_from(change.changed_lines).unwrap_or(i32::MAX),
            components_touched: change.components_touched.clone(),
            has_schema_migration: change.has_schema_migration,
            has_config_change: change.touches_config,
            reversibility: reversibility.into(),
            rollback_plan: change.rollback_plan.clone(),
            change_ticket: change.ticket.clone(),
            work_items: change.work_items.clone(),
            is_unplanned: change.is_unplanned,
            incident: change.incident.clone().unwrap_or_default(),
            hotfix_line: change.is_hotfix,
        }
    }
}

impl From<&Risk> for pb::Risk {
    fn from(risk: &Risk) -> Self {
        let factors = risk.factors.iter().cloned();
        let multipliers = risk.multipliers.iter().cloned();
        Self {
            score: risk.score.into(),
            band: Band::from_name(&risk.band)
                .map_or(pb::RiskBand::Unspecified, band_to_proto)
                .into(),
            likelihood: risk.likelihood,
            impact: risk.impact,
            factors: factors
                .map(|(name, value, weight, contribution)| pb::RiskFactor {
                    name,
                    value,
                    weight,
                    contribution,
                })
                .collect(),
            multipliers: multipliers
                .map(|(name, choice, value)| pb::RiskMultiplier { name, choice, value })
                .collect(),
            floor: risk.floor.clone().unwrap_or_default(),
            weights_version: risk.weights_version,
            is_binding: false,
        }
    }
}

impl From<&Approval> for pb::Approval {
    fn from(approval: &Approval) -> Self {
        let (kind, break_glass) = match approval.basis {
            Basis::StandardChange => (pb::ApprovalKind::StandardChange, None),
            Basis::Votes => (pb::ApprovalKind::Votes, None),
            Basis::BreakGlass(id) => (pb::ApprovalKind::BreakGlass, Some(id)),
        };
        Self {
            approval_id: approval.id.to_string(),
            kind: kind.into(),
            band: band_to_proto(approval.band).into(),
            approve_time: Some(to_proto(approval.at)),
            expire_time: approval.expires_at.map(to_proto),
            break_glass_id: break_glass.map(|id| id.to_string()).unwrap_or_default(),
        }
    }
}

impl From<&Vote> for pb::Vote {
    fn from(vote: &Vote) -> Self {
        Self {
            voter: vote.voter.clone(),
            approve: vote.approve,
            reason: vote.reason.clone(),
            vote_time: Some(to_proto(vote.at)),
            groups: vote.groups.clone(),
            band: band_to_proto(vote.band).into(),
            expire_time: vote.expires_at.map(to_proto),
        }
    }
}

const fn state_to_proto(state: &State) -> pb::ReleaseState {
    match state {
        State::Draft => pb::ReleaseState::Draft,
        State::Assessing(_) => pb::ReleaseState::Assessing,
        State::PendingApproval(_) => pb::ReleaseState::PendingApproval,
        State::Approved(_) => pb::ReleaseState::Approved,
        State::Active(_) => pb::ReleaseState::Active,
        State::Released(_) => pb::ReleaseState::Released,
        State::Rejected(_) => pb::ReleaseState::Rejected,
        State::Cancelled(_) => pb::ReleaseState::Cancelled,
        State::Abandoned(_) => pb::ReleaseState::Abandoned,
        State::RolledBack(_) => pb::ReleaseState::RolledBack,
        State::Superseded(_) => pb::ReleaseState::Superseded,
    }
}

const fn band_to_proto(band: Band) -> pb::RiskBand {
    match band {
        Band::Low => pb::RiskBand::Low,
        Band::Medium => pb::RiskBand::Medium,
        Band::High => pb::RiskBand::High,
        Band::Critical => pb::RiskBand::Critical,
    }
}
