//! `tandem replay --break-canary`: checkouts fail on a canary, its guard finds out, the rollout goes back by itself, and
//! every session and cart is looked at afterwards.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use indicatif::{ProgressBar, ProgressStyle};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use shared::pb::release::Rollout;
use shared::pb::session::touchpoint_service_client::TouchpointServiceClient;
use tokio::time::Instant;

use super::call::{Caller, Refused};
use super::canary::{self, COMPONENT, Course};
use super::data::Data;
use super::shop::{Pace, Shop, Walk};
use super::summary::{Run, Summary};
use super::{Args, CURRENCY, Cast, moves, read_back, setup, watched};
use crate::client::ReleaseClients;
use crate::error::Error;
use crate::stack::Stack;
use crate::term;

/// How long a guard may take to be sure: of a page in four, and of all.
const QUICK_LIMIT: Duration = Duration::from_mins(3);
const LIMIT: Duration = Duration::from_mins(15);
/// How long the rollout may take to go back from there.
const BACK_LIMIT: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Everyone who takes calls.
struct Callers {
    /// Follows the rollout, and has everyone's counts in the end.
    office: Caller,
    /// The regulars'.
    host: Caller,
    workers: Vec<Caller>,
}

pub(super) async fn replay(args: &Args, stack: &Stack, data: Arc<Data>) -> Result<Summary, Error> {
    let cast = Cast::new(stack)?;
    let mut rng = StdRng::seed_from_u64(args.seed);
    let mut visits = data.plan(args.sessions(&data), args.page_divisor(), &mut rng);
    // The file goes through the year, and hardly anybody bought at its beginning.
    visits.shuffle(&mut rng);
    let mut caller = || Caller::new(StdRng::from_rng(&mut rng));
    let mut callers = Callers {
        office: caller(),
        host: caller(),
        workers: (0..args.concurrency).map(|_| caller()).collect(),
    };
    let mut clients = ReleaseClients::over(&cast.release, &cast.author);
    let rollout = canary::find_or_ship(&mut clients).await?;
    let touchpoints = TouchpointServiceClient::with_interceptor(cast.session.clone(), cast.author.clone());
    let touchpoint = setup::touchpoint(&touchpoints, COMPONENT, &cast.entropy, &mut callers.office).await;
    let group = touchpoint.map_err(|refused: Refused| Error::Failed(refused.to_string()))?.group;
    let mut shop = cast.shop(data.clone(), visits, group, Pace::new(None), spinner());
    shop.broken = Some(rollout.release_id.clone());
    let regulars = shop.gather(&rollout.release_id, &mut callers.host).await?;
    let limit = if args.quick { QUICK_LIMIT } else { LIMIT };
    let (walks, course) = traffic(&shop, &rollout, limit, regulars, &mut callers, &clients).await;
    let seconds = shop.pace.elapsed().as_secs_f64();
    shop.bar.finish_and_clear();
    let Callers { mut office, host, mut workers } = callers;
    workers.push(host);
    check(&shop, &mut workers, walks).await;
    for worker in workers {
        office.tally.add(worker.tally);
    }
    let moved_by_rollback = moves::explain(&clients.rollouts, &mut office).await;
    if !course.is_good() {
        term::note(format_args!(
            "{COMPONENT} {} did not go back for its guard's finding: see `tandem rollout show {}`",
            rollout.version, rollout.rollout_id
        ));
    }
    let run = Run {
        seed: args.seed,
        concurrency: args.concurrency,
        sessions_known: data.sessions.len(),
        page_divisor: args.page_divisor(),
        lines_skipped: data.lines_skipped,
        component: COMPONENT,
        releases_known: 0,
        currency_code: CURRENCY,
        seconds,
    };
    Ok(Summary::new(run, office.tally, moved_by_rollback).with_canary(course))
}

/// Shoppers come and regulars stay until the rollout is over, or took too long. Answers everyone, the regulars last.
async fn traffic(
    shop: &Shop,
    rollout: &Rollout,
    limit: Duration,
    mut regulars: Vec<Walk>,
    callers: &mut Callers,
    clients: &ReleaseClients,
) -> (Vec<Vec<Walk>>, Course) {
    let Callers { office, host, workers } = callers;
    let follow = async {
        let course = follow(shop, rollout, limit, clients, office).await;
        shop.stop.cancel();
        course
    };
    let crowd = join_all(workers.iter_mut().map(|caller| shop.work(caller)));
    let all = Box::pin(async { tokio::join!(crowd, shop.stay(&mut regulars, host), follow) });
    let (mut walks, (), mut course) = watched(all, shop).await;
    course.open_checkouts = shop.leave(&mut regulars, host).await;
    walks.push(regulars);
    (walks, course)
}

/// Looks at the rollout until it is final, nobody has time for it any more, or the shop stops.
async fn follow(
    shop: &Shop,
    rollout: &Rollout,
    limit: Duration,
    clients: &ReleaseClients,
    caller: &mut Caller,
) -> Course {
    let mut course = Course::new(rollout);
    let mut deadline = Instant::now() + limit;
    while Instant::now() < deadline && !shop.stop.is_cancelled() {
        let was_harm = course.is_harm;
        match moves::rollout(&clients.rollouts, &rollout.rollout_id, caller).await {
            Ok(answer) => {
                if course.sees(answer) {
                    break;
                }
            }
            Err(refused) => {
                caller.tally.failed(refused);
                break;
            }
        }
        if course.is_harm && !was_harm {
            deadline = Instant::now() + BACK_LIMIT;
        }
        shop.bar.set_message(course.so_far());
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    course
}

/// Asks for every session, and for every cart.
async fn check(shop: &Shop, workers: &mut [Caller], mut walks: Vec<Vec<Walk>>) {
    let looks = workers.iter_mut().zip(&mut walks);
    join_all(looks.map(|(caller, walks)| shop.look_again(walks, caller))).await;
    read_back(shop, workers, &walks).await;
}

/// Nobody knows how many it will take.
fn spinner() -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} {pos} sessions {elapsed} {msg}");
    let bar = ProgressBar::no_length().with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}
