//! What waits while a statement runs goes with the next one: many questions, one round trip, and no timer, so that a lone
//! question never waits.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use shared::status::is_away;
use shared::worker;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, Span};

/// Questions that may wait; more than calls can be in flight.
const WAITING_MAX: usize = 100_000;
/// Longer than a statement may take.
const WORK_LIMIT: Duration = Duration::from_secs(3);
/// Questions of one statement.
const BATCH_MAX: usize = 256;

/// Takes questions in.
pub struct Batcher<Q, A>(mpsc::Sender<Waiting<Q, A>>);

/// Those that wait for [`Batches::run`].
pub struct Batches<Q, A>(mpsc::Receiver<Waiting<Q, A>>);

struct Waiting<Q, A> {
    question: Q,
    span: Span,
    answer: oneshot::Sender<sqlx::Result<A>>,
}

/// Both ends of one queue.
pub fn batches<Q, A>() -> (Batcher<Q, A>, Batches<Q, A>) {
    let (sender, receiver) = mpsc::channel(WAITING_MAX);
    (Batcher(sender), Batches(receiver))
}

impl<Q, A> Batcher<Q, A> {
    /// The answer to one question. Until it is sent it can be given up, by dropping this.
    pub async fn ask(&self, question: Q) -> sqlx::Result<A> {
        let (answer, answered) = oneshot::channel();
        self.0
            .try_send(Waiting { question, span: Span::current(), answer })
            .map_err(|_| sqlx::Error::PoolTimedOut)?;
        answered.await.unwrap_or(Err(sqlx::Error::WorkerCrashed))
    }
}

impl<Q: Clone, A> Batches<Q, A> {
    /// Answers until told to stop. `work` answers every question of a batch, in order; where it fails, each is asked by
    /// itself, so that nobody gets another's error.
    pub async fn run<F>(mut self, name: &'static str, stop: &CancellationToken, work: impl Fn(Arc<[Q]>) -> F)
    where
        F: Future<Output = sqlx::Result<Vec<A>>>,
    {
        let mut batch = Vec::with_capacity(BATCH_MAX);
        loop {
            tokio::select! {
                count = self.0.recv_many(&mut batch, BATCH_MAX) => if count == 0 { return },
                () = stop.cancelled() => return,
            }
            batch.retain(|waiting| !waiting.answer.is_closed());
            // The statement is in the trace of the first who asked; it can only be in one.
            let span = batch.first().map_or_else(Span::none, |first| first.span.clone());
            let waiting = batch.drain(..);
            let (questions, answers): (Vec<_>, Vec<_>) =
                waiting.map(|waiting| (waiting.question, waiting.answer)).unzip();
            if questions.is_empty() {
                continue;
            }
            // Whoever waits hears of a panic by the end of its channel.
            let answered = worker::catch(answer(questions.into(), answers, &work).instrument(span));
            if let Err(panicked) = pin!(answered).await {
                tracing::error!(batch = name, %panicked, "a batch panicked");
            }
        }
    }
}

async fn answer<Q: Clone, A, F>(
    questions: Arc<[Q]>,
    answers: Vec<oneshot::Sender<sqlx::Result<A>>>,
    work: &impl Fn(Arc<[Q]>) -> F,
) where
    F: Future<Output = sqlx::Result<Vec<A>>>,
{
    // Nobody may be waiting any more. The server's own limits do not help where it does not answer at all.
    let found = tokio::time::timeout(WORK_LIMIT, work(Arc::clone(&questions))).await;
    match found.unwrap_or(Err(sqlx::Error::PoolTimedOut)) {
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
                let found = work(Arc::new([question.clone()])).await;
                let one = found.and_then(|mut found| found.pop().ok_or(sqlx::Error::RowNotFound));
                drop(answer.send(one));
            });
            join_all(alone).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[tokio::test]
    async fn what_waits_goes_together_and_each_gets_its_own_answer() {
        let (queue, waiting) = batches::<u32, u32>();
        let (stop, sizes) = (CancellationToken::new(), RefCell::new(vec![]));
        let work = async |questions: Arc<[u32]>| {
            sizes.borrow_mut().push(questions.len());
            Ok(questions.iter().map(|n| n * 2).collect())
        };
        let asked = async {
            let answers = join_all((0..300).map(|n| queue.ask(n))).await;
            stop.cancel();
            answers
        };
        let (answers, ()) = tokio::join!(asked, waiting.run("test", &stop, work));
        let answers: Vec<_> = answers.into_iter().map(Result::unwrap).collect();
        assert_eq!(answers, (0..300).map(|n| n * 2).collect::<Vec<_>>());
        assert_eq!(*sizes.borrow(), [256, 44]);
    }

    #[tokio::test]
    async fn one_that_fails_fails_alone() {
        let (queue, waiting) = batches::<u32, u32>();
        let stop = CancellationToken::new();
        let work = async |questions: Arc<[u32]>| {
            if questions.contains(&2) { Err(sqlx::Error::RowNotFound) } else { Ok(questions.to_vec()) }
        };
        let asked = async {
            let answers = join_all((0..4).map(|n| queue.ask(n))).await;
            stop.cancel();
            answers
        };
        let (answers, ()) = tokio::join!(asked, waiting.run("test", &stop, work));
        assert_eq!(answers.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, true, false, true]);
    }
}
