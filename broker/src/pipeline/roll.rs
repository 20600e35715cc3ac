//! Who waits, over all nodes: each tells the others from time to time, and asks them when somebody asks it.
//!
//! A reading is shared by all who ask meanwhile, so no crowd of questions reaches Redis.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use walcast_wire::TopicPattern;

use crate::backbone::redis::{self, Book, RedisError};
use crate::hub::Hub;
use crate::hub::roll::Elsewhere;

/// Between two words to the others. A few of them may be lost before what was said expires.
const INTERVAL: Duration = Duration::from_secs(2);
/// How long Redis may take: who asks is a person, and rather has this node's part alone.
const PATIENCE: Duration = Duration::from_secs(1);
/// The same where the last word is taken back, which nobody waits for but the drain.
const GOODBYE: Duration = Duration::from_secs(2);
/// Questions that wait for an answer.
const ASKING_MAX: usize = 256;

/// By which questions come.
#[derive(Clone, Debug)]
pub struct Asking {
    questions: mpsc::Sender<oneshot::Sender<Arc<Elsewhere>>>,
}

impl Asking {
    /// Who waits at other nodes, as far as Redis tells within a second or two.
    pub async fn elsewhere(&self) -> Arc<Elsewhere> {
        let (sender, answer) = oneshot::channel();
        // With more questions than fit, or while the node goes, it is as if Redis were away.
        if self.questions.try_send(sender).is_ok()
            && let Ok(answer) = answer.await
        {
            return answer;
        }
        unknown()
    }
}

fn unknown() -> Arc<Elsewhere> {
    Arc::new(Elsewhere { partial: true, ..Elsewhere::default() })
}

/// Tells the others, and asks them.
#[derive(Debug)]
pub struct Herald {
    book: Book,
    hub: Arc<Hub>,
    node: String,
    questions: mpsc::Receiver<oneshot::Sender<Arc<Elsewhere>>>,
    /// What is wrong, and was said.
    trouble: Option<String>,
}

impl Herald {
    /// One for the node that calls itself `node`, and by what it is asked.
    ///
    /// # Errors
    /// The settings cannot be used.
    pub fn new(
        redis: &redis::Config,
        source: &str,
        hub: Arc<Hub>,
        node: String,
    ) -> Result<(Self, Asking), RedisError> {
        let (sender, questions) = mpsc::channel(ASKING_MAX);
        let book = Book::new(redis, source)?;
        Ok((Self { book, hub, node, questions, trouble: None }, Asking { questions: sender }))
    }

    /// Until the node drains; then nobody is told of it any more.
    pub async fn run(mut self, drain: CancellationToken) {
        drain.run_until_cancelled(self.serve()).await;
        // Who still asks is not held up by it.
        drop(self.questions);
        // What cannot be taken back expires.
        let _ = timeout(GOODBYE, self.book.leave()).await;
    }

    async fn serve(&mut self) {
        let mut tick = interval(INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = tick.tick() => self.tell().await,
                Some(first) = self.questions.recv() => {
                    let mut asking = vec![first];
                    while let Ok(more) = self.questions.try_recv() {
                        asking.push(more);
                    }
                    let answer = self.ask().await;
                    for question in asking {
                        // Who asked may have gone.
                        let _ = question.send(Arc::clone(&answer));
                    }
                }
            }
        }
    }

    async fn tell(&mut self) {
        let roll = self.hub.roll(&[TopicPattern::everything()]);
        let told = timeout(PATIENCE, self.book.write(&self.node, &roll)).await;
        self.note(told.unwrap_or_else(|_| Err(late())));
    }

    async fn ask(&mut self) -> Arc<Elsewhere> {
        match timeout(PATIENCE, self.book.read()).await.unwrap_or_else(|_| Err(late())) {
            Ok(elsewhere) => Arc::new(elsewhere),
            Err(error) => {
                self.note(Err(error));
                unknown()
            }
        }
    }

    /// Says what an operator has to do. That Redis is away is said by those who need it.
    fn note(&mut self, result: Result<(), RedisError>) {
        let trouble = match result {
            Err(RedisError::Unsuitable(why)) => Some(why),
            Err(_) => return,
            Ok(()) => None,
        };
        if let Some(why) = &trouble
            && self.trouble != trouble
        {
            tracing::warn!("/v1/waiters does not know of other brokers: {why}");
        }
        self.trouble = trouble;
    }
}

fn late() -> RedisError {
    RedisError::Away("Redis did not answer in time; it is tried again".into())
}
