//! The simulated VMs: each a client of its own, waiting for its own topic.
//!
//! A VM that loses its connection comes back with its cursor, as a real one would.

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
    /// Starts `vms` VMs, in equal shares over the transports, all from `start` on.
    ///
    /// # Errors
    /// The broker's URL cannot be used.
    pub fn boot(vms: u32, broker_url: &str, start: After, ledger: &Arc<Ledger>) -> Result<Self, Failure> {
        let booting = Arc::new(Semaphore::new(BOOTING_MAX));
        let mut tasks = JoinSet::new();
        for (number, transport) in (0..vms).zip(Transport::ALL.into_iter().cycle()) {
            let name = hostname(number);
            let topic = TopicPattern::new(&format!("vm/{name}"))
                .map_err(|error| Failure::new(exit::OTHER, format!("vm/{name}: {error}")))?;
            let mut request = EventsRequest::new([topic]).after(start);
            request.client = Some(name);
            let vm = Vm {
                number,
                transport,
                // Its own, as on a machine of its own: nothing is shared with other VMs.
                client: Client::new(broker_url)?,
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
    client: Client,
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
        let mut stream = self.client.resume(self.transport, self.subscription.clone()).await?;
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

    /// Opens the connection, so that the first wait does not pay for it.
    async fn first_poll(&mut self) -> Result<(), Error> {
        let mut request = self.subscription.request();
        request.wait = Some(Duration::ZERO);
        let reply = self.client.poll(&request).await?;
        reply.events.iter().for_each(|event| self.receive(event));
        request.wait = None;
        self.subscription = Subscription::new(request.after(After::Cursor(reply.cursor)));
        Ok(())
    }

    fn receive(&self, event: &Event) {
        let now = Instant::now();
        if let Ok(Row { pin: Some(pin) }) = serde_json::from_str(event.data.get()) {
            self.ledger.received(self.number, pin, now);
        }
    }
}
