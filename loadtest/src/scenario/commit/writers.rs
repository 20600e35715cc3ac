//! Writers: sessions that commit as fast as they can, each transaction with one way to tell somebody.
//!
//! Where clients wait, messages are numbered: by their writer, and by how many that writer sent before. What
//! different writers commit at a time has no order; what one of them commits has.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio_postgres::Statement;
use walcast::postgres::Session;

use super::super::own_topic;
use super::slices::Method;
use crate::Error;
use crate::client::Received;
use crate::lab::Postgres;
use crate::report::Checks;
use crate::verify::{self, Receipt};

/// Clients that may wait for messages, each on a topic of its own.
pub(in crate::scenario) const WAITING: usize = 100;
/// Bits of a message's number that count what its writer sent before.
const COUNT_BITS: u32 = 20;
/// Writers of neighbouring numbers begin with topics so far apart.
const APART: usize = 31;

/// What was committed in some time.
#[derive(Clone, Copy, Debug)]
pub(in crate::scenario) struct Slice {
    pub(in crate::scenario) commits: u64,
    pub(in crate::scenario) seconds: f64,
}

impl Slice {
    pub(in crate::scenario) fn speed(self) -> f64 {
        self.commits as f64 / self.seconds
    }
}

/// All writers.
#[derive(Debug)]
pub(in crate::scenario) struct Writers {
    all: Vec<Arc<Writer>>,
    methods: &'static [Method],
}

impl Writers {
    /// So many, each of which can do all of `methods`.
    pub(in crate::scenario) async fn connect(
        postgres: &Postgres,
        count: usize,
        methods: &'static [Method],
    ) -> Result<Self, Error> {
        let mut all = Vec::with_capacity(count);
        for number in 0..count {
            all.push(Arc::new(Writer::connect(postgres, number, methods).await?));
        }
        Ok(Self { all, methods })
    }

    /// What they can do.
    pub(in crate::scenario) fn methods(&self) -> &'static [Method] {
        self.methods
    }

    /// Ends their sessions, and waits for it.
    pub(in crate::scenario) async fn close(self) {
        for writer in self.all.into_iter().filter_map(Arc::into_inner) {
            writer.session.close().await;
        }
    }

    pub(in crate::scenario) fn count(&self) -> usize {
        self.all.len()
    }

    /// Lets all commit for a while.
    pub(in crate::scenario) async fn write(&self, method: usize, length: Duration) -> Result<Slice, Error> {
        let began = Instant::now();
        let until = began + length;
        let mut tasks = JoinSet::new();
        for writer in &self.all {
            let writer = Arc::clone(writer);
            tasks.spawn(async move {
                let mut commits = 0_u64;
                while Instant::now() < until {
                    writer.commit(method).await?;
                    commits += 1;
                }
                Ok(commits)
            });
        }
        let mut commits = 0;
        while let Some(done) = tasks.join_next().await {
            let done: Result<u64, tokio_postgres::Error> = done.map_err(Error::of("a writer"))?;
            commits += done.map_err(Error::sql("write"))?;
        }
        Ok(Slice { commits, seconds: began.elapsed().as_secs_f64() })
    }

    /// Messages that clients wait for, so far.
    pub(in crate::scenario) fn told(&self) -> u64 {
        self.all.iter().map(|writer| u64::from(writer.told.load(Ordering::Relaxed))).sum()
    }

    /// What the clients received, against all that was committed.
    pub(in crate::scenario) fn judge(&self, received: &Received) -> Checks {
        let told: Vec<u32> = self.all.iter().map(|writer| writer.told.load(Ordering::Relaxed)).collect();
        judge(received, &told)
    }
}

fn judge(received: &Received, told: &[u32]) -> Checks {
    let mut checks = received.clients();
    for (client, inbox) in received.inboxes.iter().enumerate() {
        let mut of_writers = vec![Vec::<Receipt>::new(); told.len()];
        for receipt in &inbox.receipts {
            match of_writers.get_mut((receipt.seq >> COUNT_BITS) as usize) {
                Some(receipts) => receipts.push(*receipt),
                // Nobody sent it.
                None => checks.duplicates += 1,
            }
        }
        for (writer, (receipts, told)) in of_writers.iter().zip(told).enumerate() {
            let first = (client + WAITING - writer * APART % WAITING) % WAITING;
            let due = (first..*told as usize).step_by(WAITING).map(|count| number(writer, count));
            checks = checks.and(verify::client(receipts, due));
        }
    }
    checks
}

/// A message's number.
fn number(writer: usize, count: usize) -> u32 {
    u32::try_from((writer << COUNT_BITS) | count).unwrap_or(u32::MAX)
}

/// A connection, and what is prepared on it for each method.
#[derive(Debug)]
struct Writer {
    session: Session,
    number: usize,
    told: AtomicU32,
    methods: Vec<(Statement, Option<Statement>)>,
}

impl Writer {
    async fn connect(postgres: &Postgres, number: usize, all: &[Method]) -> Result<Self, Error> {
        let session = postgres.session().await?;
        let mut methods = Vec::new();
        for method in all {
            let insert = format!("insert into public.loadtest_commit (method) values ('{}')", method.name);
            let insert = session.prepare(&insert).await.map_err(Error::sql("prepare a writer"))?;
            let tell = match method.statement {
                Some(tell) => Some(session.prepare(tell).await.map_err(Error::sql("prepare a writer"))?),
                None => None,
            };
            methods.push((insert, tell));
        }
        Ok(Self { session, number, told: AtomicU32::new(0), methods })
    }

    async fn commit(&self, method: usize) -> Result<(), tokio_postgres::Error> {
        let Some((insert, tell)) = self.methods.get(method) else { return Ok(()) };
        let numbered = tell.as_ref().is_some_and(|tell| !tell.params().is_empty());
        self.session.batch_execute("begin").await?;
        self.session.execute(insert, &[]).await?;
        match tell {
            Some(tell) if numbered => {
                let count = self.told.load(Ordering::Relaxed) as usize;
                let topic = own_topic((self.number * APART + count) % WAITING);
                let payload = format!(r#"{{"seq": {}}}"#, number(self.number, count));
                self.session.query(tell, &[&topic, &payload]).await?;
            }
            Some(tell) => {
                self.session.query(tell, &[]).await?;
            }
            None => {}
        }
        self.session.batch_execute("commit").await?;
        self.told.fetch_add(u32::from(numbered), Ordering::Relaxed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Inbox;

    #[test]
    fn each_writer_has_an_order_of_its_own() {
        // Two writers, so many messages each; the second begins with another topic.
        let told = [150, 120];
        let mut received = Received { inboxes: vec![Inbox::default(); WAITING], ..Received::default() };
        for count in 0..150 {
            for (writer, told) in told.into_iter().enumerate().rev() {
                if count < told as usize {
                    let inbox = &mut received.inboxes[(writer * APART + count) % WAITING];
                    inbox.receipts.push(Receipt { seq: number(writer, count), at_us: 0 });
                }
            }
        }
        let whole = judge(&received, &told);
        assert!(whole.held() && whole.delivered == 270 && whole.expected == 270, "{whole:?}");

        received.inboxes[3].receipts.pop();
        let again = received.inboxes[4].receipts[0];
        received.inboxes[4].receipts.push(again);
        // The first writer's two messages to this client, the later one first.
        let own = |receipt: &Receipt| receipt.seq >> COUNT_BITS == 0;
        let inbox = &mut received.inboxes[40].receipts;
        inbox.retain(own);
        inbox.reverse();
        let torn = judge(&received, &told);
        assert_eq!((torn.duplicates, torn.disordered), (1, 1), "{torn:?}");
        assert!(torn.lost >= 2 && torn.expected == 270, "{torn:?}");
    }
}
