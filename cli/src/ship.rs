//! `tandem ship`: create, submit and start in one go. Each step looks at what is there first and has a request id derived
//! from what it asks for, so that running the command again goes on where it stopped.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::Duration;

use shared::pb::common::Reason;
use shared::pb::release::{
    AssignmentPolicy, CreateReleaseRequest, GetApprovalPolicyRequest, GetComponentRequest,
    GetEnvironmentRequest, GetReleaseRequest, GovernanceProfile, Guard, Release, ReleaseRef, ReleaseState,
    Rollout, SubmitReleaseRequest, UpdateReleaseRequest, get_release_request,
};
use shared::secret::sha256;

use crate::client::{self, ReleaseClients};
use crate::error::Error;
use crate::percent::Percent;
use crate::release::change::{Text, Written};
use crate::rollout::plan::guard;
use crate::stack::{self, Stack};
use crate::term;
use crate::token::{Identity, duration};
use crate::up::hints::Shell;

mod advice;
mod rollout;

pub(crate) use rollout::{EXPOSED, newest as newest_rollout};

/// The environment of the local stack.
pub(crate) const ENVIRONMENT: &str = "local";
/// Exit code of a release that waits, so that a pipeline does not take it for shipped.
const WAITS: u8 = 3;

/// Options of the command.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The component
    #[arg(value_name = "NAME")]
    component: String,
    /// The version, such as 1.1
    version: String,
    /// Share of visits at each step before everyone, such as 10% or 1%,10%,50% [default: everyone at once]
    #[arg(long, value_name = "SHARES", value_delimiter = ',')]
    canary: Vec<Percent>,
    /// Where to
    #[arg(long, default_value = ENVIRONMENT, value_name = "NAME")]
    environment: String,
    #[command(flatten)]
    text: Text,
    /// Move running visits, too, as they are seen while the rollout runs, except those with an open checkout
    #[arg(long, requires = "canary")]
    all_sessions: bool,
    /// What must not get worse, as of `tandem rollout start`, such as checkout or slow:pause; may be given again
    #[arg(long = "guard", value_name = "NAME[:MODE]", value_parser = guard, requires = "canary")]
    guards: Vec<Guard>,
    /// Watch each step for so long, such as 10m, and then go on by itself [default: every step is advanced by hand]
    #[arg(long, value_name = "TIME", value_parser = duration, requires = "canary")]
    bake: Option<Duration>,
    #[command(flatten)]
    identity: Identity,
    #[command(flatten)]
    stack: stack::Args,
}

/// What to ship.
pub(crate) struct Plan {
    pub(crate) component: String,
    pub(crate) version: String,
    pub(crate) environment: String,
    /// What a new release says, and a draft instead of what it says.
    pub(crate) text: Text,
    /// Basis points of each step; empty is everyone at once.
    pub(crate) steps: Vec<i32>,
    pub(crate) assignment: AssignmentPolicy,
    pub(crate) guards: Vec<Guard>,
    /// For how long each step is watched before the next; none leaves going on to people.
    pub(crate) bake: Option<Duration>,
}

impl Plan {
    /// Whether its steps and guards make sense, as the service would ask.
    fn check(&self) -> Result<(), Error> {
        if !self.steps.is_sorted_by(|one, next| one < next) {
            return Err(Error::Unusable(
                "--canary: shares must rise from step to step, such as 10%,50%".to_owned(),
            ));
        }
        let names: BTreeSet<_> = self.guards.iter().map(|guard| &guard.name).collect();
        if names.len() < self.guards.len() {
            return Err(Error::Unusable("--guard: each name may be given once".to_owned()));
        }
        Ok(())
    }
}

/// How far it came.
pub(crate) enum Shipped {
    /// The release needs evidence or votes first.
    Waits(Release),
    /// The release's rollout in the environment, and whether it was started just now.
    Rollout(Rollout, bool),
    /// The release has ended before.
    Ended(Release),
}

/// Ships, and says what was done, what was not asked for, and what to do next.
pub(crate) async fn run(args: Args) -> Result<ExitCode, Error> {
    let stack = Stack::open(&args.stack)?;
    let address = stack.state()?.release.address;
    let grant = args.identity.grant();
    let mut releases = ReleaseClients::new(address, &stack.sign(&grant, chrono::TimeDelta::minutes(10))?);
    let plan = Plan {
        component: args.component,
        version: args.version,
        environment: args.environment,
        text: args.text,
        steps: args.canary.iter().map(|share| share.0).collect(),
        assignment: if args.all_sessions {
            AssignmentPolicy::AllSessions
        } else {
            AssignmentPolicy::NewVisits
        },
        guards: args.guards,
        bake: args.bake,
    };
    let shell = Shell::new(&stack, &args.identity);
    let shipped = ship(&mut releases, &plan, term::say).await?;
    let Plan { component, version, environment, .. } = &plan;
    match shipped {
        Shipped::Ended(release) => Err(Error::Failed(format!(
            "{component} {version} is {}, which is final: ship a new version",
            release.state().as_str_name().trim_start_matches("RELEASE_STATE_")
        ))),
        Shipped::Waits(release) => {
            advice::tell(&mut releases, &release, environment, &shell, address).await?;
            Ok(ExitCode::from(WAITS))
        }
        Shipped::Rollout(rollout, is_new) => {
            if !is_new && !rollout::goes_by_what_is_asked(&rollout, &plan) && rollout.end_time.is_none() {
                term::note("it is under way already, with the steps and guards that it was started with");
            }
            if is_new && !plan.steps.is_empty() && rollout.previous_version.is_empty() {
                term::note(format_args!(
                    "--canary is left aside: this is the first release of {component} in {environment}, so there is no other \
                     one for the rest of the visits"
                ));
            }
            if is_new {
                tell_own(&plan.guards);
                tell_governance(&mut releases, component, &shell, address).await?;
            }
            rollout::tell(&rollout, environment, &shell)
        }
    }
}

/// A name that is not counted from carts may be meant, or a slip.
pub(crate) fn tell_own(guards: &[Guard]) {
    for guard in guards
        .iter()
        .filter(|guard| !["checkout", "purchase"].contains(&guard.name.as_str()))
    {
        term::note(format_args!(
            "{} is an outcome of your own: `RecordOutcome` has to tell of it",
            guard.name
        ));
    }
}

/// Takes the release as far as it goes.
pub(crate) async fn ship(
    clients: &mut ReleaseClients,
    plan: &Plan,
    say: impl Fn(String),
) -> Result<Shipped, Error> {
    let mut release = if let Some(release) = find(clients, plan).await? {
        rewrite(clients, plan, release).await?
    } else {
        // What is written stays, also where its rollout is refused.
        plan.check()?;
        let environment = plan.environment.clone();
        clients.catalog.get_environment(GetEnvironmentRequest { environment }).await?;
        create(clients, plan, &say).await?
    };
    if release.state() == ReleaseState::Draft {
        release = submit(clients, release).await?;
        say(format!("submitted {} {}", plan.component, plan.version));
    }
    match release.state() {
        ReleaseState::Assessing | ReleaseState::PendingApproval => return Ok(Shipped::Waits(release)),
        ReleaseState::Approved | ReleaseState::Active | ReleaseState::Released => {}
        ReleaseState::Unspecified
        | ReleaseState::Draft
        | ReleaseState::Rejected
        | ReleaseState::Cancelled
        | ReleaseState::Abandoned
        | ReleaseState::RolledBack
        | ReleaseState::Superseded => return Ok(Shipped::Ended(release)),
    }
    let (standing, newest) = rollout::under_way(clients, plan, &release.release_id).await?;
    if let Some(rollout) = standing {
        return Ok(Shipped::Rollout(rollout, false));
    }
    let rollout = rollout::start(clients, plan, release.release_id, &newest).await?;
    Ok(Shipped::Rollout(rollout, true))
}

/// The release, if there is one of this component and version.
async fn find(clients: &mut ReleaseClients, plan: &Plan) -> Result<Option<Release>, Error> {
    let name = ReleaseRef { component: plan.component.clone(), version: plan.version.clone() };
    let request = GetReleaseRequest { name: Some(get_release_request::Name::Ref(name)) };
    match clients.releases.get_release(request).await {
        Ok(answer) => Ok(answer.into_inner().release),
        Err(status) if client::reason(&status) == Some(Reason::ReleaseNotFound) => Ok(None),
        Err(status) => Err(status.into()),
    }
}

async fn create(clients: &mut ReleaseClients, plan: &Plan, say: impl Fn(String)) -> Result<Release, Error> {
    let Plan { component, version, .. } = plan;
    let written = plan.text.fill(Written::default())?;
    let request_id = request_id(&["create", component, version, &format!("{written:?}")]);
    let Written { artifact_digest, notes, change } = written;
    let request = CreateReleaseRequest {
        component: component.clone(),
        version: version.clone(),
        artifact_digest,
        notes,
        request_id,
        change: Some(change),
    };
    let release = clients
        .releases
        .create_release(request)
        .await?
        .into_inner()
        .release
        .unwrap_or_default();
    say(format!("created {component} {version} ({})", release.release_id));
    Ok(release)
}

/// A draft says what it is told to say. What was submitted is left as it is.
async fn rewrite(clients: &mut ReleaseClients, plan: &Plan, release: Release) -> Result<Release, Error> {
    let before = Written::from(&release);
    let written = plan.text.fill(before.clone())?;
    if written == before {
        return Ok(release);
    }
    if release.state() != ReleaseState::Draft {
        term::note(
            "it was submitted before, and says what it said then; `tandem release revise` makes it a draft again",
        );
        return Ok(release);
    }
    let Release { release_id, etag, .. } = release;
    let request_id = request_id(&["update", &release_id, &etag, &format!("{written:?}")]);
    let Written { artifact_digest, notes, change } = written;
    let change = Some(change);
    let request = UpdateReleaseRequest { release_id, artifact_digest, notes, change, etag, request_id };
    let answer = clients.releases.update_release(request).await?;
    Ok(answer.into_inner().release.unwrap_or_default())
}

async fn submit(clients: &mut ReleaseClients, release: Release) -> Result<Release, Error> {
    let Release { release_id, etag, artifact_digest, change, .. } = release;
    let request_id = request_id(&["submit", &release_id, &etag]);
    let request = SubmitReleaseRequest { release_id, etag, request_id };
    match clients.releases.submit_release(request).await {
        Ok(answer) => Ok(answer.into_inner().release.unwrap_or_default()),
        Err(status) if client::reason(&status) == Some(Reason::ReleaseIncomplete) => {
            let plan = change.unwrap_or_default().rollback_plan;
            let lacking = [(plan, "--rollback-plan TEXT"), (artifact_digest, "--digest sha256:HEX")];
            let options = lacking.iter().filter(|(text, _)| text.is_empty()).map(|(_, option)| *option);
            let options = options.collect::<Vec<_>>().join(" ");
            Err(Error::Failed(format!(
                "{}\nIt is kept as a draft: run this command again with {options}",
                client::sentence(&status)
            )))
        }
        Err(status) => Err(status.into()),
    }
}

/// Says which governance nobody asked for, and how to ask for it.
async fn tell_governance(
    clients: &mut ReleaseClients,
    component: &str,
    shell: &Shell,
    address: std::net::SocketAddr,
) -> Result<(), Error> {
    let request = GetComponentRequest { component: component.to_owned() };
    let component = clients
        .catalog
        .get_component(request)
        .await?
        .into_inner()
        .component
        .unwrap_or_default();
    let request = GetApprovalPolicyRequest { approval_policy: component.approval_policy, version: 0 };
    let answer = clients.catalog.get_approval_policy(request).await?.into_inner();
    let policy = answer.approval_policy.unwrap_or_default();
    if policy.quorum > 0 || policy.profile() != GovernanceProfile::Starter {
        return Ok(());
    }
    term::say(format_args!(
        "skipped: approvals. Policy `{}` (profile STARTER) has quorum 0; to ask for one approval from now on:\n  {}",
        policy.approval_policy,
        shell.ask_for_approval(address, &policy),
    ));
    Ok(())
}

/// The same for the same request, and for no other.
fn request_id(parts: &[&str]) -> String {
    let parts: Vec<_> = ["tandem ship"].iter().chain(parts).map(|part| part.as_bytes()).collect();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&sha256(&parts)[..16]);
    uuid::Builder::from_custom_bytes(bytes).into_uuid().to_string()
}
