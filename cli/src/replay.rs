//! `tandem replay`: real shoppers and a real release history, driven through the running stack at the same time.
//!
//! Workers walk through the visits of the plan, one page at a time on one schedule; beside them the history is entered,
//! approved and rolled out. At the end every acknowledged cart line is read back.

mod broken;
mod call;
mod canary;
mod data;
mod history;
mod kept;
mod moves;
mod regular;
mod report;
mod setup;
mod shop;
mod summary;

use std::path::PathBuf;
use std::pin::pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use chrono::TimeDelta;
use futures_util::future::join_all;
use indicatif::{ProgressBar, ProgressStyle};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use shared::issuer::Grant;
use shared::pb::release::approval_service_client::ApprovalServiceClient;
use shared::pb::release::catalog_service_client::CatalogServiceClient;
use shared::pb::release::release_service_client::ReleaseServiceClient;
use shared::pb::release::rollout_service_client::RolloutServiceClient;
use shared::pb::session::cart_service_client::CartServiceClient;
use shared::pb::session::session_service_client::SessionServiceClient;
use shared::pb::session::touchpoint_service_client::TouchpointServiceClient;
use shared::secret::Entropy;
use tokio::time::{Instant, interval_at};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::client::{self, Bearer};
use crate::error::Error;
use crate::stack::{self, Stack};
use crate::term;
use call::{Caller, Refused};
use data::{Component, Data, Visit};
use history::History;
use shop::{Pace, Shop, Walk};
use summary::{Run, Summary};

const TENANT: &str = "shop";
const TOUCHPOINT: &str = "web";
const ENVIRONMENT: &str = "local";
const CURRENCY: &str = "GBP";
/// Longer than any replay.
const TOKEN_LIFETIME: TimeDelta = TimeDelta::days(2);
const SHOP_SCOPES: &str = "session.write session.assert session.validate cart.read cart.write shopper.any";
const AUTHOR_SCOPES: &str = "catalog.read catalog.write policy.write touchpoint.read touchpoint.write release.read \
                             release.write rollout.read rollout.write";
const APPROVER_SCOPES: &str = "release.read release.approve";
const QUICK_SESSIONS: usize = 1_000;
const QUICK_PAGE_DIVISOR: u32 = 4;
const QUICK_DURATION: Duration = Duration::from_secs(55);
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// Options of the command.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Take about a minute: 1,000 sessions spread evenly over the year, and one page in four of each
    #[arg(long)]
    quick: bool,
    /// Have checkouts fail on a canary of `storefront`, the one under way or one that is shipped now, until its guard has
    /// taken it back; then look for every session and cart
    #[arg(long, conflicts_with_all = ["sessions", "duration", "speed", "component_history", "bake"])]
    break_canary: bool,
    /// Replay this many sessions, spread evenly over the year [default: all 12,330]
    #[arg(long, value_name = "N", value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    sessions: Option<usize>,
    /// Spread the pages over this long, such as 55s or 10m [default: as fast as the stack answers]
    #[arg(long, value_parser = duration, value_name = "TIME")]
    duration: Option<Duration>,
    /// View this many pages a second instead
    #[arg(long, value_name = "N", conflicts_with = "duration", value_parser = clap::value_parser!(u32).range(1..))]
    speed: Option<u32>,
    /// Visits at the same time
    #[arg(long, default_value = "32", value_name = "N", value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=10_000))]
    concurrency: usize,
    /// Choose the same carts again
    #[arg(long, default_value = "1", value_name = "N")]
    seed: u64,
    /// Whose releases are rolled out meanwhile
    #[arg(long, value_enum, default_value = "linkerd2-proxy", value_name = "NAME")]
    component_history: Component,
    /// How long each step of a rollout lasts
    #[arg(long, default_value = "1s", value_parser = duration, value_name = "TIME")]
    bake: Duration,
    /// Folder with the data, instead of what is built in
    #[arg(long, value_name = "FOLDER")]
    data: Option<PathBuf>,
    /// Print the summary as one JSON object
    #[arg(long)]
    json: bool,
    /// Which stack to drive.
    #[command(flatten)]
    pub(crate) stack: stack::Args,
}

/// Replays; exit code 1 if a promise was broken or a call failed for good.
pub(crate) async fn run(args: Args, stack: &Stack) -> ExitCode {
    let json = args.json;
    let outcome = Box::pin(replay(&args, stack)).await.and_then(|summary| {
        let text = if json {
            serde_json::to_string(&summary).map_err(|error| Error::Failed(error.to_string()))?
        } else {
            summary.to_string()
        };
        term::say(text.trim_end());
        Ok(if summary.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    });
    outcome.unwrap_or_else(|error| {
        term::note(&error);
        error.exit_code()
    })
}

async fn replay(args: &Args, stack: &Stack) -> Result<Summary, Error> {
    let data = Data::load(args.data.as_deref(), args.component_history)
        .map_err(|error| Error::Unusable(error.to_string()))?;
    let data = Arc::new(data);
    if args.break_canary {
        return Box::pin(broken::replay(args, stack, data)).await;
    }
    let cast = Cast::new(stack)?;
    let mut rng = StdRng::seed_from_u64(args.seed);
    let visits = data.plan(args.sessions(&data), args.page_divisor(), &mut rng);
    let mut office = Caller::new(StdRng::from_rng(&mut rng));
    let workers = (0..args.concurrency).map(|_| Caller::new(StdRng::from_rng(&mut rng)));
    let mut workers: Vec<_> = workers.collect();

    let bar = progress(visits.len(), "sessions");
    let history = cast.history(args, data.clone(), bar.clone());
    let group = cast.set_up(&history, &mut office).await?;
    let pace = Pace::new(args.gap(&visits));
    let shop = cast.shop(data.clone(), visits, group, pace, bar);
    let walks = traffic(&shop, &history, &mut workers, &mut office).await;
    let seconds = shop.pace.elapsed().as_secs_f64();
    read_back(&shop, &mut workers, &walks).await;
    for worker in workers {
        office.tally.add(worker.tally);
    }
    let moved_by_rollback = moves::explain(&history.rollouts, &mut office).await;
    let run = Run {
        seed: args.seed,
        concurrency: args.concurrency,
        sessions_known: data.sessions.len(),
        page_divisor: args.page_divisor(),
        lines_skipped: data.lines_skipped,
        component: args.component_history.name(),
        releases_known: data.releases.len(),
        currency_code: CURRENCY,
        seconds,
    };
    Ok(Summary::new(run, office.tally, moved_by_rollback))
}

impl Args {
    fn sessions(&self, data: &Data) -> usize {
        let usual = if self.quick && !self.break_canary { QUICK_SESSIONS } else { data.sessions.len() };
        self.sessions.unwrap_or(usual)
    }

    const fn page_divisor(&self) -> u32 {
        if self.quick { QUICK_PAGE_DIVISOR } else { 1 }
    }

    /// From one page to the next.
    fn gap(&self, visits: &[Visit]) -> Option<Duration> {
        if let Some(speed) = self.speed {
            return Some(Duration::from_secs(1) / speed);
        }
        let duration = self.duration.or_else(|| self.quick.then_some(QUICK_DURATION))?;
        let pages: u32 = visits.iter().map(|visit| visit.pages).sum();
        Some(duration / pages.max(1))
    }
}

/// Who takes part, and the way to the services.
struct Cast {
    session: Channel,
    release: Channel,
    /// The shop's back end.
    shop: Bearer,
    /// The person who releases.
    author: Bearer,
    /// The person who approves.
    approver: Bearer,
    entropy: Entropy,
}

impl Cast {
    fn new(stack: &Stack) -> Result<Self, Error> {
        let state = stack.state()?;
        let bearer = |sub: &str, kind: &str, scope: &str| {
            let grant = Grant {
                sub: sub.to_owned(),
                tenant: TENANT.to_owned(),
                scope: scope.to_owned(),
                groups: Vec::new(),
                touchpoints: None,
                kind: kind.to_owned(),
            };
            stack.sign(&grant, TOKEN_LIFETIME).map(|token| Bearer::new(&token))
        };
        Ok(Self {
            session: client::channel(state.session.address),
            release: client::channel(state.release.address),
            shop: bearer("replay", "workload", SHOP_SCOPES)?,
            author: bearer("alice", "person", AUTHOR_SCOPES)?,
            approver: bearer("bob", "person", APPROVER_SCOPES)?,
            entropy: Entropy::system(),
        })
    }

    fn history(&self, args: &Args, data: Arc<Data>, bar: ProgressBar) -> History {
        let (channel, author) = (&self.release, &self.author);
        History {
            releases: ReleaseServiceClient::with_interceptor(channel.clone(), author.clone()),
            rollouts: RolloutServiceClient::with_interceptor(channel.clone(), author.clone()),
            approvals: ApprovalServiceClient::with_interceptor(channel.clone(), self.approver.clone()),
            component: args.component_history.name(),
            data,
            bake: args.bake,
            bar,
            entropy: self.entropy.clone(),
            stop: CancellationToken::new(),
        }
    }

    fn shop(&self, data: Arc<Data>, visits: Vec<Visit>, group: String, pace: Pace, bar: ProgressBar) -> Shop {
        Shop {
            sessions: SessionServiceClient::with_interceptor(self.session.clone(), self.shop.clone()),
            carts: CartServiceClient::with_interceptor(self.session.clone(), self.shop.clone()),
            touchpoint_group: group,
            data,
            visits,
            broken: None,
            next: AtomicUsize::new(0),
            pace,
            bar,
            entropy: self.entropy.clone(),
            stop: CancellationToken::new(),
        }
    }

    /// Makes what is missing, with the first release; answers the group of touchpoints whose carts are used.
    async fn set_up(&self, history: &History, caller: &mut Caller) -> Result<String, Error> {
        let catalog = CatalogServiceClient::with_interceptor(self.release.clone(), self.author.clone());
        let touchpoints =
            TouchpointServiceClient::with_interceptor(self.session.clone(), self.author.clone());
        let component = history.component;
        let failed = |refused: Refused| Error::Failed(refused.to_string());
        setup::component(&catalog, component, &self.entropy, caller)
            .await
            .map_err(failed)?;
        history.begin(caller).await.map_err(failed)?;
        let touchpoint = setup::touchpoint(&touchpoints, component, &self.entropy, caller)
            .await
            .map_err(failed)?;
        Ok(touchpoint.group)
    }
}

/// All visits, and the history beside them; an interrupt ends both early. Answers what each worker's visits were.
///
/// Everyone takes turns in one task: the waiting is for the services, and their connections have tasks of their own.
async fn traffic(
    shop: &Shop,
    history: &History,
    workers: &mut [Caller],
    office: &mut Caller,
) -> Vec<Vec<Walk>> {
    let visits = async {
        let crowd = join_all(workers.iter_mut().map(|caller| shop.work(caller)));
        let walks = watched(crowd, shop).await;
        history.stop.cancel();
        shop.bar.finish_and_clear();
        walks
    };
    let (walks, ()) = tokio::join!(visits, history.run(office));
    walks
}

/// Shows how far it is where there is no bar, and takes an interrupt for the wish to end early.
async fn watched<T>(work: impl Future<Output = T>, shop: &Shop) -> T {
    let mut work = pin!(work);
    let mut interrupt = pin!(tokio::signal::ctrl_c());
    let mut lines = interval_at(Instant::now() + LINE_INTERVAL, LINE_INTERVAL);
    loop {
        tokio::select! {
            done = &mut work => return done,
            _ = lines.tick() => if shop.bar.is_hidden() {
                let of = shop.bar.length().map(|all| format!(" of {all}")).unwrap_or_default();
                term::note(format_args!("{}{of} sessions; {}", shop.bar.position(), shop.bar.message()));
            },
            Ok(()) = &mut interrupt, if !shop.stop.is_cancelled() => {
                term::note("stopping: no visit is begun any more, and carts are read back");
                shop.stop.cancel();
            }
        }
    }
}

/// Reads what the carts of each worker's visits hold, as many at a time as there were workers.
async fn read_back(shop: &Shop, workers: &mut [Caller], walks: &[Vec<Walk>]) {
    let carts = walks.iter().flatten().filter(|walk| walk.cart.is_some()).count();
    let bar = progress(carts, "carts read back");
    let readers = workers.iter_mut().zip(walks);
    join_all(readers.map(|(caller, walks)| shop.read_back(walks, &bar, caller))).await;
    bar.finish_and_clear();
}

/// On a terminal; elsewhere it only counts.
fn progress(length: usize, of: &'static str) -> ProgressBar {
    let template = format!("{{bar:30}} {{pos}}/{{len}} {of} {{elapsed}} {{msg}}");
    let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(length as u64).with_style(style);
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// A whole number and its unit.
fn duration(text: &str) -> Result<Duration, &'static str> {
    const EXPECTED: &str = "must be a whole number and a unit, such as 500ms, 55s or 10m, and at most a day";
    let split = text.find(|letter: char| !letter.is_ascii_digit()).ok_or(EXPECTED)?;
    let (number, unit) = text.split_at(split);
    let number: u32 = number.parse().map_err(|_| EXPECTED)?;
    let duration = match unit {
        "ms" => Duration::from_millis(number.into()),
        "s" => Duration::from_secs(number.into()),
        "m" => Duration::from_secs(u64::from(number) * 60),
        "h" => Duration::from_secs(u64::from(number) * 3_600),
        _ => return Err(EXPECTED),
    };
    if duration <= Duration::from_hours(24) { Ok(duration) } else { Err(EXPECTED) }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn args(options: &[&str]) -> Result<Args, clap::Error> {
        Cli::try_parse_from(["replay"].iter().chain(options)).map(|cli| cli.args)
    }

    #[test]
    fn durations_have_a_unit_and_a_bound() {
        for (text, millis) in [("500ms", 500), ("55s", 55_000), ("10m", 600_000), ("24h", 86_400_000)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)));
        }
        for bad in ["", "5", "s", "-1s", "1.5s", "25h", "1d", "99999999999s", "1ä"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn pages_are_spread_over_the_time_that_was_asked_for() {
        let visits = [1, 9].map(|pages| Visit { pages, invoice: None, buys: false });
        let gap = |options: &[&str]| args(options).expect("parses").gap(&visits);
        assert_eq!(gap(&[]), None);
        assert_eq!(gap(&["--quick"]), Some(QUICK_DURATION / 10));
        assert_eq!(gap(&["--quick", "--duration", "20s"]), Some(Duration::from_secs(2)));
        assert_eq!(gap(&["--speed", "50"]), Some(Duration::from_millis(20)));
    }

    #[test]
    fn options_that_make_no_sense_are_refused() {
        for options in [
            &["--sessions", "0"][..],
            &["--concurrency", "0"],
            &["--speed", "0"],
            &["--speed", "1", "--duration", "1s"],
            &["--component-history", "storefront"],
            &["--break-canary", "--duration", "1m"],
        ] {
            assert!(args(options).is_err(), "{options:?}");
        }
    }
}
