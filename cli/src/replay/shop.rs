//! Shoppers: each row of the data becomes a session that looks at its pages, fills its cart and perhaps buys.
//!
//! What was acknowledged is kept, and read back at the end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use indicatif::ProgressBar;
use shared::pb::common::Money;
use shared::pb::session::cart_service_client::CartServiceClient;
use shared::pb::session::session_service_client::SessionServiceClient;
use shared::pb::session::shopper_selector::Owner;
use shared::pb::session::{
    AddCartLineRequest, BeginCheckoutRequest, CheckoutFailure, CompleteCheckoutRequest, Consistency,
    CreateSessionRequest, FailCheckoutRequest, GetCartRequest, ReleasePin, ShopperRef, ShopperSelector,
    ValidateSessionRequest, Verdict,
};
use shared::secret::{Entropy, Secret};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::call::{Caller, Refused, request_id};
use super::data::{Data, InvoiceLine, Visit};
use super::kept::KeptCart;
use super::report::{Move, Pin, Tally};
use super::{CURRENCY, TOUCHPOINT};
use crate::client::Authorized;

/// How often a checkout fails on a release that is broken.
const BREAKS: f64 = 0.9;
/// How often a payment is declined on any other, while one is.
const DECLINES: f64 = 0.02;

/// The shop and everyone who will come to it.
pub(crate) struct Shop {
    pub(crate) sessions: SessionServiceClient<Authorized>,
    pub(crate) carts: CartServiceClient<Authorized>,
    /// Whose carts the touchpoint opens.
    pub(crate) touchpoint_group: String,
    pub(crate) data: Arc<Data>,
    pub(crate) visits: Vec<Visit>,
    /// `rel_...`: the release on which checkouts fail, if there is one.
    pub(crate) broken: Option<String>,
    /// The first of them that nobody has begun.
    pub(crate) next: AtomicUsize,
    pub(crate) pace: Pace,
    pub(crate) bar: ProgressBar,
    pub(crate) entropy: Entropy,
    pub(crate) stop: CancellationToken,
}

/// When each page is due: one schedule for all workers, so that the run takes as long as it should however the pages are
/// spread over visits. A late page is not waited for, and those after it catch up.
pub(crate) struct Pace {
    begin: Instant,
    /// From one page to the next; `None` is as fast as answers come.
    gap: Option<Duration>,
    pages: AtomicU32,
}

/// One visit while it lasts.
pub(crate) struct Walk {
    pub(crate) token: Secret<String>,
    pub(crate) session_id: String,
    pub(crate) shopper_id: String,
    /// `sub` of who is logged in.
    pub(crate) subject: Option<String>,
    pins: BTreeMap<String, Pin>,
    pub(crate) in_checkout: bool,
    pub(crate) cart: Option<KeptCart>,
    /// Of the cart as it was last seen.
    etag: String,
}

impl Pace {
    /// Begins now.
    pub(crate) fn new(gap: Option<Duration>) -> Self {
        Self { begin: Instant::now(), gap, pages: AtomicU32::new(0) }
    }

    /// How long it has been going on.
    pub(crate) fn elapsed(&self) -> Duration {
        self.begin.elapsed()
    }

    async fn next_page(&self) {
        let page = self.pages.fetch_add(1, Ordering::Relaxed);
        if let Some(gap) = self.gap {
            tokio::time::sleep_until(self.begin + gap.saturating_mul(page)).await;
        }
    }
}

impl Shop {
    /// Takes visit after visit until none is left; answers what they were.
    pub(crate) async fn work(&self, caller: &mut Caller) -> Vec<Walk> {
        let mut walks = Vec::new();
        while !self.stop.is_cancelled() {
            let next = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(visit) = self.visits.get(next) else { break };
            match self.enter(caller).await {
                Ok(mut walk) => {
                    if let Err(refused) = self.walk(visit, &mut walk, caller).await {
                        caller.tally.failed(refused);
                    }
                    walks.push(walk);
                }
                Err(refused) => caller.tally.failed(refused),
            }
            self.bar.inc(1);
        }
        walks
    }

    pub(crate) async fn enter(&self, caller: &mut Caller) -> Result<Walk, Refused> {
        let request = CreateSessionRequest {
            touchpoint: TOUCHPOINT.to_owned(),
            device: "tandem replay".to_owned(),
            request_id: request_id(&self.entropy),
            ..CreateSessionRequest::default()
        };
        let created = caller
            .call("CreateSession", request, async |request| {
                self.sessions.clone().create_session(request).await
            })
            .await?;
        let session = created.session.unwrap_or_default();
        let mut walk = Walk {
            token: Secret::new(created.session_token),
            session_id: session.session_id,
            shopper_id: session.shopper_id,
            subject: None,
            pins: BTreeMap::new(),
            in_checkout: false,
            cart: None,
            etag: String::new(),
        };
        caller.tally.shop.sessions += 1;
        walk.sees(created.pins, &mut caller.tally);
        Ok(walk)
    }

    /// Lines are spread over the pages. A purchase keeps its last page for the payment, between the begin and the end of
    /// checkout.
    async fn walk(&self, visit: &Visit, walk: &mut Walk, caller: &mut Caller) -> Result<(), Refused> {
        let invoice = visit.invoice.and_then(|number| self.data.invoices.get(number));
        let mut lines = invoice.map_or(&[][..], |invoice| &invoice.lines);
        let mut pages = if visit.buys { visit.pages.saturating_sub(1) } else { visit.pages };
        while pages > 0 {
            self.view(walk, caller).await?;
            let (now, later) = lines.split_at(lines.len().div_ceil(pages as usize));
            self.add_all(now, walk, caller).await?;
            (lines, pages) = (later, pages - 1);
        }
        self.add_all(lines, walk, caller).await?;
        match invoice.filter(|_| visit.buys) {
            Some(invoice) => self.buy(&invoice.number, visit.pages > 0, walk, caller).await,
            None => Ok(()),
        }
    }

    /// Looks at a page: the verdict has to be that the session lives, and is still that of who logged in.
    pub(crate) async fn view(&self, walk: &mut Walk, caller: &mut Caller) -> Result<(), Refused> {
        const METHOD: &str = "ValidateSession";
        tokio::select! {
            () = self.pace.next_page() => {}
            () = self.stop.cancelled() => {}
        }
        let request = ValidateSessionRequest {
            session_token: walk.token.expose().clone(),
            touchpoint: TOUCHPOINT.to_owned(),
            consistency: Consistency::Bounded.into(),
            ..ValidateSessionRequest::default()
        };
        let answer = caller
            .call(METHOD, request, async |request| self.sessions.clone().validate_session(request).await)
            .await?;
        caller.tally.shop.pages += 1;
        caller.tally.shop.degraded += u64::from(answer.degraded);
        let session = answer.session.as_ref();
        let subject = session.and_then(|session| session.subject.as_ref()).map(|subject| &subject.sub);
        if answer.verdict() != Verdict::Active || subject != walk.subject.as_ref() {
            caller.tally.promises.false_logouts += 1;
            let reason = answer.verdict().as_str_name().to_owned();
            let message = "the session should live, as whose it was".to_owned();
            return Err(Refused { method: METHOD, reason, message });
        }
        walk.sees(answer.pins, &mut caller.tally);
        Ok(())
    }

    pub(crate) async fn add_all(
        &self,
        lines: &[InvoiceLine],
        walk: &mut Walk,
        caller: &mut Caller,
    ) -> Result<(), Refused> {
        for line in lines {
            let unit_price = Money { currency_code: CURRENCY.to_owned(), minor_units: line.price };
            let request = AddCartLineRequest {
                owner: Some(walk.owner()),
                sku: line.sku.clone(),
                quantity: line.quantity,
                unit_price: Some(unit_price),
                request_id: request_id(&self.entropy),
                ..AddCartLineRequest::default()
            };
            let answer = caller
                .call("AddCartLine", request, async |request| self.carts.clone().add_cart_line(request).await)
                .await;
            let kept = walk.cart.get_or_insert_with(|| KeptCart::new(walk.shopper_id.clone()));
            let cart = answer.inspect_err(|_| kept.doubt(line))?.cart.unwrap_or_default();
            if kept.cart_id.is_empty() {
                caller.tally.shop.carts += 1;
            }
            (kept.cart_id, walk.etag) = (cart.cart_id, cart.etag);
            kept.keep(line);
            caller.tally.shop.lines += 1;
        }
        Ok(())
    }

    async fn buy(
        &self,
        number: &str,
        has_page: bool,
        walk: &mut Walk,
        caller: &mut Caller,
    ) -> Result<(), Refused> {
        self.begin_checkout(walk, caller).await?;
        if has_page {
            self.view(walk, caller).await?;
        }
        match self.failure(walk, caller) {
            Some(failure) => self.fail_checkout(failure, walk, caller).await,
            None => self.complete_checkout(number, walk, caller).await,
        }
    }

    pub(crate) async fn begin_checkout(&self, walk: &mut Walk, caller: &mut Caller) -> Result<(), Refused> {
        let request = BeginCheckoutRequest {
            owner: Some(walk.owner()),
            currency_code: CURRENCY.to_owned(),
            etag: walk.etag.clone(),
            request_id: request_id(&self.entropy),
        };
        if let Some(kept) = &mut walk.cart {
            kept.at_checkout = true;
        }
        let begin = async |request| self.carts.clone().begin_checkout(request).await;
        caller.call("BeginCheckout", request, begin).await?;
        walk.in_checkout = true;
        Ok(())
    }

    /// Orders under a number of the shop's.
    pub(crate) async fn complete_checkout(
        &self,
        number: &str,
        walk: &mut Walk,
        caller: &mut Caller,
    ) -> Result<(), Refused> {
        let order_ref = format!("{number}/{}", walk.session_id);
        let request = CompleteCheckoutRequest {
            owner: Some(walk.owner()),
            currency_code: CURRENCY.to_owned(),
            order_ref: order_ref.clone(),
            request_id: request_id(&self.entropy),
        };
        let complete = async |request| self.carts.clone().complete_checkout(request).await;
        caller.call("CompleteCheckout", request, complete).await?;
        walk.in_checkout = false;
        if let Some(kept) = &mut walk.cart {
            caller.tally.shop.purchases += 1;
            caller.tally.shop.purchased_minor_units += kept.value();
            kept.order_ref = Some(order_ref);
        }
        Ok(())
    }

    /// Why the payment fails, if it does: by the release that the last page was served from, or by chance.
    fn failure(&self, walk: &Walk, caller: &mut Caller) -> Option<CheckoutFailure> {
        let broken = self.broken.as_ref()?;
        if walk.is_on(broken) && caller.chance(BREAKS) {
            return Some(CheckoutFailure::Error);
        }
        caller.chance(DECLINES).then_some(CheckoutFailure::PaymentDeclined)
    }

    async fn fail_checkout(
        &self,
        failure: CheckoutFailure,
        walk: &mut Walk,
        caller: &mut Caller,
    ) -> Result<(), Refused> {
        let request = FailCheckoutRequest {
            owner: Some(walk.owner()),
            currency_code: CURRENCY.to_owned(),
            reason: failure.into(),
            request_id: request_id(&self.entropy),
        };
        let fail = async |request| self.carts.clone().fail_checkout(request).await;
        caller.call("FailCheckout", request, fail).await?;
        walk.in_checkout = false;
        caller.tally.shop.failures += 1;
        Ok(())
    }

    /// Looks at a page of every visit once more, however it ended.
    pub(crate) async fn look_again(&self, walks: &mut [Walk], caller: &mut Caller) {
        for walk in walks {
            if let Err(refused) = self.view(walk, caller).await {
                caller.tally.failed(refused);
            }
        }
    }

    /// Reads every cart that was filled, and compares.
    pub(crate) async fn read_back(&self, walks: &[Walk], bar: &ProgressBar, caller: &mut Caller) {
        for kept in walks.iter().filter_map(|walk| walk.cart.as_ref()) {
            let shopper = ShopperRef {
                shopper_id: kept.shopper_id.clone(),
                touchpoint_group: self.touchpoint_group.clone(),
            };
            let request = GetCartRequest {
                owner: Some(ShopperSelector { owner: Some(Owner::Shopper(shopper)) }),
                currency_code: CURRENCY.to_owned(),
                cart_id: if kept.at_checkout { kept.cart_id.clone() } else { String::new() },
            };
            let read = async |request| self.carts.clone().get_cart(request).await;
            match caller.call("GetCart", request, read).await {
                Ok(answer) => {
                    kept.compare(&answer.cart.unwrap_or_default(), &mut caller.tally.promises);
                }
                Err(refused) => {
                    kept.lost(&refused, &mut caller.tally.promises);
                    caller.tally.failed(refused);
                }
            }
            bar.inc(1);
        }
    }
}

impl Walk {
    /// Whether it is pinned to this release.
    pub(crate) fn is_on(&self, release_id: &str) -> bool {
        self.pins.values().any(|pin| pin.release_id == release_id)
    }

    fn owner(&self) -> ShopperSelector {
        ShopperSelector { owner: Some(Owner::SessionToken(self.token.expose().clone())) }
    }

    /// Compares what the visit is pinned to with what it was.
    pub(crate) fn sees(&mut self, pins: Vec<ReleasePin>, tally: &mut Tally) {
        let now: BTreeMap<String, Pin> =
            pins.into_iter().map(|pin| (pin.component.clone(), pin.into())).collect();
        for (component, pin) in &now {
            if !self.pins.contains_key(component) {
                tally.visited(component, pin);
            }
        }
        for (component, from) in std::mem::replace(&mut self.pins, now) {
            let to = self.pins.get(&component);
            if !to.is_some_and(|to| to.is_as(&from)) {
                let moved = Move { component, from, to: to.cloned(), in_checkout: self.in_checkout };
                *tally.moves.entry(moved).or_default() += 1;
            }
        }
    }
}
