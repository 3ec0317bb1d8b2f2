//! Several tabs change one cart at once: what comes out is what some order of their changes makes of it, one after the other,
//! and no change is lost.
//!
//! The cart's version, which every answer carries, tells the order; a model that knows nothing of the service replays it.

use futures_util::future::join_all;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use shared::pb::session as pb;
use tonic::{Response, Status};

use crate::harness::shop::{
    create_session, create_touchpoint, euros, get_cart, line, owner, request_id, web,
};
use crate::harness::{Caller, Options, Stack, reason_of, workload};

const TABS: u64 = 4;
const CHANGES: usize = 15;
const ROUNDS: u64 = 12;

/// One change that a tab makes.
#[derive(Debug, Clone)]
enum Op {
    Add { sku: String, quantity: i32 },
    Set { line: String, quantity: i32 },
    Remove { line: String },
    Move { line: String, saved: bool },
    Apply { code: String },
    TakeOut { code: String },
}

/// A change that was made: which cart it answered, and which line.
struct Made {
    tab: u64,
    op: Op,
    cart: pb::Cart,
    line: String,
}

/// What the model has of a line: id, article, quantity, saved.
type Line = (String, String, i32, bool);

#[derive(Default)]
struct Model {
    lines: Vec<Line>,
    codes: Vec<String>,
}

impl Model {
    fn find(&mut self, sku: &str, saved: bool) -> Option<&mut Line> {
        self.lines.iter_mut().find(|line| line.1 == sku && line.3 == saved)
    }

    fn apply(&mut self, op: &Op, answered: &str) {
        match op {
            Op::Add { sku, quantity } => match self.find(sku, false) {
                Some(line) => line.2 += quantity,
                None => self.lines.push((answered.to_owned(), sku.clone(), *quantity, false)),
            },
            Op::Set { line, quantity } => self.line(line).2 = *quantity,
            Op::Remove { line } => {
                self.line(line);
                self.lines.retain(|other| other.0 != *line);
            }
            Op::Move { line, saved } => {
                let (id, sku, quantity, was_saved) = self.line(line).clone();
                if was_saved == *saved {
                    return;
                }
                match self.find(&sku, *saved) {
                    Some(other) => {
                        other.2 += quantity;
                        self.lines.retain(|other| other.0 != id);
                    }
                    None => self.line(line).3 = *saved,
                }
            }
            Op::Apply { code } if self.codes.contains(code) => {}
            Op::Apply { code } => self.codes.push(code.clone()),
            Op::TakeOut { code } => self.codes.retain(|other| other != code),
        }
    }

    fn line(&mut self, id: &str) -> &mut Line {
        self.lines
            .iter_mut()
            .find(|line| line.0 == id)
            .expect("a change of a line that was not there")
    }
}

fn seen(cart: &pb::Cart) -> Vec<Line> {
    let line =
        |line: &pb::CartLine| (line.line_id.clone(), line.sku.clone(), line.quantity, line.saved_for_later);
    cart.lines.iter().map(line).collect()
}

fn version(cart: &pb::Cart) -> usize {
    cart.etag.strip_prefix('v').unwrap().parse().unwrap()
}

/// Any change; of a line, one that the tab saw last.
fn draw(rng: &mut StdRng, lines: &[Line]) -> Op {
    let text = |prefix: &str, n: i32| format!("{prefix}-{n}");
    let line = lines.choose(rng).map(|line| line.0.clone());
    match (rng.random_range(0..10), line) {
        (4 | 5, Some(line)) => Op::Set { line, quantity: rng.random_range(1..50) },
        (6, Some(line)) => Op::Remove { line },
        (7, Some(line)) => Op::Move { line, saved: rng.random_bool(0.5) },
        (8, _) => Op::Apply { code: text("code", rng.random_range(0..3)) },
        (9, _) => Op::TakeOut { code: text("code", rng.random_range(0..3)) },
        _ => Op::Add { sku: text("sku", rng.random_range(0..5)), quantity: rng.random_range(1..10) },
    }
}

/// Sends a change; answers the cart after it, and the line that it was about.
async fn send(
    caller: &Caller,
    token: &str,
    op: &Op,
    request_id: String,
) -> Result<(pb::Cart, String), Status> {
    let (owner, currency_code, mut carts) = (Some(owner(token)), "EUR".to_owned(), caller.carts());
    let whole = |cart: Option<pb::Cart>| (cart.unwrap(), String::new());
    match op.clone() {
        Op::Add { sku, quantity } => {
            let request = pb::AddCartLineRequest { request_id, ..line(token, &sku, quantity) };
            let answer = carts.add_cart_line(request).await.map(Response::into_inner)?;
            Ok((answer.cart.unwrap(), answer.line_id))
        }
        Op::Set { line, quantity } => {
            let request =
                pb::SetCartLineQuantityRequest { owner, currency_code, line_id: line, quantity, request_id };
            Ok(whole(carts.set_cart_line_quantity(request).await?.into_inner().cart))
        }
        Op::Remove { line } => {
            let request = pb::RemoveCartLineRequest { owner, currency_code, line_id: line, request_id };
            Ok(whole(carts.remove_cart_line(request).await?.into_inner().cart))
        }
        Op::Move { line, saved } => {
            let request = pb::MoveCartLineRequest {
                owner,
                currency_code,
                line_id: line,
                saved_for_later: saved,
                request_id,
            };
            Ok(whole(carts.move_cart_line(request).await?.into_inner().cart))
        }
        Op::Apply { code } => {
            let request = pb::ApplyCartCodeRequest { owner, currency_code, code, request_id };
            Ok(whole(carts.apply_cart_code(request).await?.into_inner().cart))
        }
        Op::TakeOut { code } => {
            let request = pb::RemoveCartCodeRequest { owner, currency_code, code, request_id };
            Ok(whole(carts.remove_cart_code(request).await?.into_inner().cart))
        }
    }
}

/// A tab makes its changes one after the other, some of them twice at once, as after a lost answer; what was made.
async fn shop(caller: Caller, token: String, tab: u64, seed: u64) -> Vec<Made> {
    let mut rng = StdRng::seed_from_u64(seed * TABS + tab);
    let (mut lines, mut made) = (vec![], vec![]);
    for n in 0..CHANGES {
        let op = draw(&mut rng, &lines);
        let id = request_id(u128::from(tab) * 1000 + n as u128 + 1);
        let outcome = if rng.random_bool(0.3) {
            let (one, two) =
                tokio::join!(send(&caller, &token, &op, id.clone()), send(&caller, &token, &op, id));
            // Whichever was made first answers the version that it made.
            match (one, two) {
                (Ok(one), Ok(two)) => {
                    assert_eq!(one.1, two.1, "one change is about one line");
                    Ok(if version(&one.0) <= version(&two.0) { one } else { two })
                }
                (Ok(made), Err(_)) | (Err(_), Ok(made)) => Ok(made),
                (Err(refused), Err(_)) => Err(refused),
            }
        } else {
            send(&caller, &token, &op, id).await
        };
        match outcome {
            Ok((cart, line)) => {
                lines = seen(&cart);
                made.push(Made { tab, op, cart, line });
            }
            // Another tab took the line out, or made no cart yet.
            Err(status) => {
                let reason = reason_of(&status);
                assert!(["CART_LINE_NOT_FOUND", "CART_NOT_FOUND"].contains(&&*reason), "{op:?}: {status:?}");
                lines = vec![];
            }
        }
    }
    made
}

#[tokio::test]
async fn changes_from_several_tabs_are_made_in_some_order_and_none_is_lost() {
    let stack = Stack::sessions();
    let caller = stack.caller(&workload("storefront"));
    create_touchpoint(&caller, web()).await;
    let replica = stack.session_svc(&Options::default());
    let other = caller.at_session(&replica);
    for seed in 0..ROUNDS {
        let (_, token) = create_session(&caller).await;
        let tabs = (0..TABS).map(|tab| {
            let caller = if tab % 2 == 0 { caller.clone() } else { other.clone() };
            shop(caller, token.clone(), tab, seed)
        });
        let mut made: Vec<_> = join_all(tabs).await.into_iter().flatten().collect();
        made.sort_by_key(|made| version(&made.cart));
        let versions: Vec<_> = made.iter().map(|made| version(&made.cart)).collect();
        assert_eq!(
            versions,
            (2..made.len() + 2).collect::<Vec<_>>(),
            "round {seed}: each change is one version"
        );
        let mut model = Model::default();
        for Made { op, cart, line, tab } in &made {
            model.apply(op, line);
            assert_eq!(seen(cart), model.lines, "round {seed}, tab {tab}: {op:?}");
            assert_eq!(cart.codes, model.codes, "round {seed}, tab {tab}: {op:?}");
        }
        let last = get_cart(&caller, &token).await;
        assert_eq!((seen(&last), &last.codes), (model.lines.clone(), &model.codes), "round {seed}");
        let counted = model.lines.iter().filter(|line| !line.3);
        assert_eq!(last.total, Some(euros(counted.map(|line| i64::from(line.2) * 255).sum())));
    }
}
