//! What waits while a statement runs goes with the next one: many questions, one round trip, and no timer, so that a lone
//! question never waits, and no task in between, so that it costs nobody a wake-up.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, join_all};
use shared::status::is_away;
use shared::worker;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tracing::{Instrument as _, Span};

/// Questions that may wait; more than calls can be in flight.
const WAITING_MAX: usize = 100_000;
/// Longer than a transaction of a few statements may take, the wait for a connection included.
const WORK_LIMIT: Duration = Duration::from_secs(10);
/// Questions of one statement.
const BATCH_MAX: usize = 256;

/// Answers every question of a batch, in order.
type Work<Q, A> = Box<dyn Fn(Arc<[Q]>) -> BoxFuture<'static, sqlx::Result<Vec<A>>> + Send + Sync>;

/// Takes questions in.
pub struct Batcher<Q, A>(Arc<Queue<Q, A>>);

struct Queue<Q, A> {
    name: &'static str,
    work: Work<Q, A>,
    line: Mutex<Line<Q, A>>,
}

struct Line<Q, A> {
    /// Whether somebody sees to it that all who wait are answered.
    is_served: bool,
    waiting: VecDeque<Waiting<Q, A>>,
}

struct Waiting<Q, A> {
    question: Q,
    span: Span,
    answer: oneshot::Sender<sqlx::Result<A>>,
}

impl<Q, A> Batcher<Q, A>
where
    Q: Clone + Send + Sync + 'static,
    A: Send + 'static,
{
    /// `work` answers every question of a batch, in order; where it fails, each is asked by itself, so that nobody gets
    /// another's error.
    pub fn new<F>(name: &'static str, work: impl Fn(Arc<[Q]>) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = sqlx::Result<Vec<A>>> + Send + 'static,
    {
        let line = Mutex::new(Line { is_served: false, waiting: VecDeque::new() });
        Self(Arc::new(Queue { name, work: Box::new(move |questions| work(questions).boxed()), line }))
    }

    /// The answer to one question. Until it is sent it can be given up, by dropping this.
    pub async fn ask(&self, question: Q) -> sqlx::Result<A> {
        let (answer, answered) = oneshot::channel();
        if self.0.join(Waiting { question, span: Span::current(), answer })? {
            let turn = Turn(&self.0);
            self.0.serve().await;
            drop(turn);
        }
        answered.await.unwrap_or(Err(sqlx::Error::WorkerCrashed))
    }
}

/// Of the one who serves its own batch; those who came meanwhile are left to a task.
struct Turn<'a, Q, A>(&'a Arc<Queue<Q, A>>)
where
    Q: Clone + Send + Sync + 'static,
    A: Send + 'static;

impl<Q, A> Drop for Turn<'_, Q, A>
where
    Q: Clone + Send + Sync + 'static,
    A: Send + 'static,
{
    fn drop(&mut self) {
        if self.0.is_over() {
            return;
        }
        let queue = Arc::clone(self.0);
        let rest = async move {
            while !queue.is_over() {
                queue.serve().await;
            }
        };
        // Without a runtime nobody waits any more.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(rest);
        }
    }
}

impl<Q, A> Queue<Q, A>
where
    Q: Clone + Send + Sync + 'static,
    A: Send + 'static,
{
    /// True for whoever has to serve.
    fn join(&self, waiting: Waiting<Q, A>) -> sqlx::Result<bool> {
        let mut line = self.line();
        if line.waiting.len() >= WAITING_MAX {
            return Err(sqlx::Error::PoolTimedOut);
        }
        line.waiting.push_back(waiting);
        Ok(!std::mem::replace(&mut line.is_served, true))
    }

    /// Whether nobody waits; then whoever comes next has to serve.
    fn is_over(&self) -> bool {
        let mut line = self.line();
        line.is_served = !line.waiting.is_empty();
        !line.is_served
    }

    /// Answers one batch.
    async fn serve(&self) {
        let mut batch: Vec<_> = {
            let mut line = self.line();
            let count = line.waiting.len().min(BATCH_MAX);
            line.waiting.drain(..count).collect()
        };
        batch.retain(|waiting| !waiting.answer.is_closed());
        // The statement is in the trace of the first who asked; it can only be in one.
        let Some(span) = batch.first().map(|first| first.span.clone()) else { return };
        let waiting = batch.into_iter();
        let (questions, answers): (Vec<_>, Vec<_>) =
            waiting.map(|waiting| (waiting.question, waiting.answer)).unzip();
        // Whoever waits hears of a panic by the end of its channel.
        let answered = worker::catch(self.answer(questions.into(), answers).instrument(span));
        if let Err(panicked) = answered.await {
            tracing::error!(batch = self.name, %panicked, "a batch panicked");
        }
    }

    async fn answer(&self, questions: Arc<[Q]>, answers: Vec<oneshot::Sender<sqlx::Result<A>>>) {
        match self.work(Arc::clone(&questions)).await {
            Ok(found) => {
                for (answer, found) in answers.into_iter().zip(found) {
                    drop(answer.send(Ok(found)));
                }
            }
            Err(error) if is_away(&error) => {
                tracing::debug!(%error, "a batch found the database away");
                for answer in answers {
                    drop(answer.send(Err(sqlx::Error::PoolTimedOut)));
                }
            }
            Err(error) if questions.len() == 1 => {
                answers
                    .into_iter()
                    .take(1)
                    .zip([error])
                    .for_each(|(answer, error)| drop(answer.send(Err(error))));
            }
            Err(_) => {
                let alone = questions.iter().zip(answers).map(async |(question, answer)| {
                    let found = self.work(Arc::new([question.clone()])).await;
                    let one = found.and_then(|mut found| found.pop().ok_or(sqlx::Error::RowNotFound));
                    drop(answer.send(one));
                });
                join_all(alone).await;
            }
        }
    }

    /// The server's own limits do not help where it does not answer at all.
    async fn work(&self, questions: Arc<[Q]>) -> sqlx::Result<Vec<A>> {
        let found = tokio::time::timeout(WORK_LIMIT, (self.work)(questions)).await;
        found.unwrap_or(Err(sqlx::Error::PoolTimedOut))
    }

    fn line(&self) -> MutexGuard<'_, Line<Q, A>> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_waits_goes_together_and_each_gets_its_own_answer() {
        let sizes = Arc::new(Mutex::new(vec![]));
        let seen = Arc::clone(&sizes);
        let batcher = Batcher::new("test", move |questions: Arc<[u32]>| {
            seen.lock().unwrap().push(questions.len());
            async move {
                tokio::task::yield_now().await;
                Ok(questions.iter().map(|n| n * 2).collect())
            }
        });
        let answers = join_all((0..300).map(|n| batcher.ask(n))).await;
        let answers: Vec<_> = answers.into_iter().map(Result::unwrap).collect();
        assert_eq!(answers, (0..300).map(|n| n * 2).collect::<Vec<_>>());
        assert_eq!(*sizes.lock().unwrap(), [1, 256, 43]);
    }

    #[tokio::test]
    async fn one_that_fails_fails_alone() {
        let batcher = Batcher::new("test", async |questions: Arc<[u32]>| {
            tokio::task::yield_now().await;
            if questions.contains(&2) { Err(sqlx::Error::RowNotFound) } else { Ok(questions.to_vec()) }
        });
        let answers = join_all((0..4).map(|n| batcher.ask(n))).await;
        assert_eq!(answers.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, true, false, true]);
    }

    #[tokio::test]
    async fn whoever_serves_and_gives_up_leaves_the_others_to_somebody_else() {
        let batcher = Batcher::new("test", async |questions: Arc<[u32]>| {
            tokio::task::yield_now().await;
            Ok(questions.to_vec())
        });
        let mut first = Box::pin(batcher.ask(1));
        let mut second = Box::pin(batcher.ask(2));
        assert!(futures_util::poll!(&mut first).is_pending());
        assert!(futures_util::poll!(&mut second).is_pending());
        drop(first);
        assert_eq!(second.await.unwrap(), 2);
    }
}
