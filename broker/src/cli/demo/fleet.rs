//! The simulated VMs: each a client of its own, waiting for its own topic.
//!
//! A VM that loses its connection comes back with its cursor, as a real one would; to the next broker, where there are
//! several.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Deserialize;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::sleep;
use walcast_client::wire::TopicPattern;
use walcast_client::{After, Client, Error, Event, EventsRequest, Message, Subscription, Transport};

use super::lab::hostname;
use super::ledger::Ledger;
use crate::cli::exit::{self, Failure};

/// VMs that connect at a time, so that a fleet does not overrun the listener's queue.
const BOOTING_MAX: usize = 64;
/// The longest pause before a VM comes back.
const RETRY_MAX: Duration = Duration::from_secs(2);

/// All VMs; they end when it is dropped.
#[derive(Debug)]
pub struct Fleet {
    _tasks: JoinSet<()>,
}

impl Fleet {
    /// Starts `vms` VMs, in equal shares over the transports and the brokers, all from `start` on.
    ///
    /// # Errors
    /// A broker's URL cannot be used.
    pub fn boot(
        vms: u32,
        broker_urls: &[String],
        start: After,
        ledger: &Arc<Ledger>,
    ) -> Result<Self, Failure> {
        let booting = Arc::new(Semaphore::new(BOOTING_MAX));
        let mut tasks = JoinSet::new();
        for (number, transport) in (0..vms).zip(Transport::ALL.into_iter().cycle()) {
            let name = hostname(number);
            let topic = TopicPattern::new(&format!("vm/{name}"))
                .map_err(|error| Failure::new(exit::OTHER, format!("vm/{name}: {error}")))?;
            let mut request = EventsRequest::new([topic]).after(start);
            request.client = Some(name);
            // Its own, as on a machine of its own: nothing is shared with other VMs.
            let clients: Result<Vec<Client>, Error> =
                broker_urls.iter().map(|url| Client::new(url)).collect();
            let vm = Vm {
                number,
                transport,
                clients: clients?,
                // By threes, so that each broker has all transports.
                broker: number as usize / Transport::ALL.len() % broker_urls.len().max(1),
                subscription: Subscription::new(request),
                ledger: Arc::clone(ledger),
            };
            tasks.spawn(vm.run(Arc::clone(&booting)));
        }
        Ok(Self { _tasks: tasks })
    }
}

/// What a VM looks at in its row.
#[derive(Deserialize)]
struct Row {
    pin: Option<i64>,
}

struct Vm {
    number: u32,
    transport: Transport,
    clients: Vec<Client>,
    /// Which of them it waits on.
    broker: usize,
    subscription: Subscription,
    ledger: Arc<Ledger>,
}

impl Vm {
    async fn run(mut self, booting: Arc<Semaphore>) {
        loop {
            let pause = match self.wait(&booting).await {
                Ok(retry) => retry,
                Err(error) => {
                    self.ledger.failed(&error);
                    None
                }
            };
            self.broker = (self.broker + 1) % self.clients.len();
            let longest = pause.unwrap_or(RETRY_MAX).min(RETRY_MAX);
            sleep(longest.mul_f64(rand::random_range(0.2..1.0))).await;
        }
    }

    /// Waits over one connection until it ends.
    async fn wait(&mut self, booting: &Semaphore) -> Result<Option<Duration>, Error> {
        // The semaphore is never closed; without a permit it would only be less gentle.
        let permit = booting.acquire().await.ok();
        if self.transport == Transport::Poll {
            self.first_poll().await?;
        }
        let mut stream = self.client().resume(self.transport, self.subscription.clone()).await?;
        drop(permit);
        let ledger = Arc::clone(&self.ledger);
        let _waiting = ledger.wait();
        loop {
            let message = stream.next().await;
            self.subscription = stream.subscription().clone();
            match message? {
                Some(Message::Event(event)) => self.receive(&event),
                Some(Message::Reset(_)) => ledger.reset(),
                Some(Message::Bye { retry }) => return Ok(retry),
                Some(_) => {}
                None => return Ok(None),
            }
        }
    }

    fn client(&self) -> &Client {
        &self.clients[self.broker]
    }

    /// Opens the connection, so that the first wait does not pay for it.
    async fn first_poll(&mut self) -> Result<(), Error> {
        let mut request = self.subscription.request();
        request.wait = Some(Duration::ZERO);
        let reply = self.client().poll(&request).await?;
        reply.events.iter().for_each(|event| self.receive(event));
        request.wait = None;
        self.subscription = Subscription::new(request.after(After::Cursor(reply.cursor)));
        Ok(())
    }

    fn receive(&self, event: &Event) {
        let now = Instant::now();
        if let Ok(Row { pin: Some(pin) }) = serde_json::from_str(event.data.get()) {
            self.ledger.received(self.number, pin, now, self.broker);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_vm_goes_from_a_broker_that_is_gone_to_the_next() {
        let leaving = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let there = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let gone = leaving.local_addr().unwrap();
        drop(leaving);
        let urls = [gone, there.local_addr().unwrap()].map(|address| format!("http://{address}"));
        let ledger = Arc::new(Ledger::new(1, 2));
        let _fleet = Fleet::boot(1, &urls, After::Now, &ledger).unwrap();
        let came = tokio::time::timeout(Duration::from_secs(60), there.accept()).await;
        came.unwrap().unwrap();
        let error = ledger.last_error().unwrap();
        assert!(error.contains(&gone.to_string()), "{error}");
    }
}
