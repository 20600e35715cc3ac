//! A broker among others: the leader carries what its hub tells to Redis, the others take it from there.
//!
//! - `Carrier`: claims Redis for a new lease, then carries pages and values, whatever becomes of Redis meanwhile
//! - `follow`: pages into the hub, while another broker leads
//! - `ask`: current values, for a hub that holds none
//!
//! Who leads is decided by the source alone. Redis only refuses those who do not lead any more.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};
use walcast_wire::Cursor;

use crate::backbone::redis::{self, Asker, Place, Reader, RedisError, Writer};
use crate::event::Fence;
use crate::health::{Health, Part};
use crate::hub::relay::What;
use crate::hub::{Hub, Lane};

/// How long a new leader tries to read what the one before it has carried: without it, its own waiters may be told of
/// a gap. Longer is not worth the wait for everybody else.
const CATCH_UP_MAX: Duration = Duration::from_secs(2);
/// Between two looks at what nobody wakes us for.
const LOOK: Duration = Duration::from_millis(10);
/// Between two looks at whether Redis still holds what was carried.
const CHECK: Duration = Duration::from_secs(1);
/// First and longest pause before Redis is tried again.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// Pause before values are asked for again that do not hold yet.
const INEXACT: Duration = Duration::from_millis(50);

/// What all loops share.
#[derive(Clone, Debug)]
pub struct Fleet {
    /// Where Redis is.
    pub redis: redis::Config,
    /// The name of the source, and so of the keys.
    pub source: String,
    /// The hub.
    pub hub: Arc<Hub>,
    /// Where trouble is reported.
    pub health: Arc<Health>,
    /// Nobody leads if nothing was heard for longer.
    pub silence_max: Duration,
}

/// By which the publish loop says that it has the lease.
#[derive(Clone, Debug)]
pub struct Lead {
    taking: mpsc::Sender<Taking>,
}

#[derive(Debug)]
struct Taking {
    fence: Fence,
    done: oneshot::Sender<()>,
}

impl Lead {
    /// Makes the hub one that leads, once it has what others were told. Redis need not be there for it.
    pub async fn take(&self, fence: Fence) {
        let (done, taken) = oneshot::channel();
        if self.taking.send(Taking { fence, done }).await.is_ok() {
            // Whoever would answer is gone only when the node goes.
            let _ = taken.await;
        }
    }
}

/// Doubles up to a limit.
#[derive(Debug)]
struct Pause(Duration);

impl Pause {
    const fn new() -> Self {
        Self(PAUSE.0)
    }

    async fn wait(&mut self) {
        tokio::time::sleep(self.0).await;
        self.0 = (self.0 * 2).min(PAUSE.1);
    }
}

/// Carries what the hub tells while it leads.
#[derive(Debug)]
pub struct Carrier {
    taking: mpsc::Receiver<Taking>,
    standing_by: watch::Receiver<bool>,
    follows: watch::Sender<bool>,
    /// Of our lease, while we have one.
    fence: Option<Fence>,
    way: Way,
}

/// Our way to Redis.
#[derive(Debug)]
struct Way {
    fleet: Fleet,
    writer: Option<Writer>,
    /// Where Redis was when it was claimed; `None`: it is to be claimed.
    claimed: Option<Option<Place>>,
    /// The hub carries on from there.
    begun: bool,
    /// Where Redis was left.
    left: Option<Place>,
    /// The values that belong to it are gone.
    lost: bool,
    checked: Instant,
    pause: Pause,
}

impl Carrier {
    /// A carrier; what tells it of a lease; and whether the hub follows, as it does until then.
    #[must_use]
    pub fn new(fleet: Fleet) -> (Self, Lead, watch::Receiver<bool>) {
        fleet.hub.follow_others();
        let (sender, taking) = mpsc::channel(1);
        let (follows, followed) = watch::channel(true);
        let standing_by = fleet.health.standing_by();
        let (checked, pause) = (Instant::now(), Pause::new());
        let way =
            Way { fleet, writer: None, claimed: None, begun: false, left: None, lost: false, checked, pause };
        (Self { taking, standing_by, follows, fence: None, way }, Lead { taking: sender }, followed)
    }

    /// Until nobody can get a lease here any more.
    pub async fn run(mut self) {
        loop {
            tokio::select! {
                biased;
                taking = self.taking.recv() => match taking {
                    Some(taking) => self.take(taking).await,
                    None => return,
                },
                Ok(()) = self.standing_by.changed() => {
                    if *self.standing_by.borrow_and_update() {
                        self.follow_others();
                    }
                }
                // Dropped in the middle, it leaves Redis before or behind a write; the next claim finds out which.
                another = self.way.go(self.fence), if self.fence.is_some() => {
                    if another {
                        self.follow_others();
                    }
                }
            }
        }
    }

    fn follow_others(&mut self) {
        self.fence = None;
        self.way.fleet.hub.follow_others();
        self.way.fleet.health.well(Part::Carrying);
        self.follows.send_replace(true);
    }

    /// Others are kept out from here on; the hub leads once it knows what they told.
    async fn take(&mut self, Taking { fence, done }: Taking) {
        self.fence = Some(fence);
        self.way.begin();
        if *self.follows.borrow() {
            // What fails here is tried again, and told, behind it.
            let _ = tokio::time::timeout(CATCH_UP_MAX, self.way.catch_up(fence)).await;
        }
        self.way.fleet.hub.lead();
        self.follows.send_replace(false);
        let _ = done.send(());
    }
}

impl Way {
    fn begin(&mut self) {
        (self.claimed, self.begun) = (None, false);
    }

    /// Connects where that is needed, and claims.
    async fn claim(&mut self, fence: Fence) -> Result<(), RedisError> {
        let writer = match &mut self.writer {
            Some(writer) => writer,
            None => {
                let writer = Writer::connect(&self.fleet.redis, &self.fleet.source).await?;
                self.writer.insert(writer)
            }
        };
        self.claimed = Some(writer.claim(fence).await?);
        Ok(())
    }

    /// Claims, and waits until the hub has read what was carried before.
    async fn catch_up(&mut self, fence: Fence) -> Option<()> {
        self.claim(fence).await.ok()?;
        let place = self.claimed??;
        let behind = |head: Cursor| head.epoch == place.epoch && head.position < place.head;
        while self.fleet.hub.head().is_none_or(behind) {
            tokio::time::sleep(LOOK).await;
        }
        Some(())
    }

    /// One thing on, or a pause where that fails; whether it failed because another broker leads.
    async fn go(&mut self, fence: Option<Fence>) -> bool {
        let Some(fence) = fence else { return false };
        let Err(error) = self.step(fence).await else {
            self.pause = Pause::new();
            self.fleet.health.well(Part::Carrying);
            return false;
        };
        self.begin();
        if matches!(error, RedisError::Fenced { .. }) && self.fleet.health.is_unwell(Part::Stream) {
            // Nothing comes from Postgres here, and somebody else leads.
            return true;
        }
        if matches!(error, RedisError::Moved(_)) {
            tracing::warn!("{error}");
        } else {
            if self.fleet.health.unwell(Part::Carrying, error.to_string()) {
                tracing::warn!("other brokers hear nothing from this one: {error}");
            }
            self.writer = None;
        }
        self.pause.wait().await;
        false
    }

    /// A claim, a page, values, or a look at whether all is as it was left.
    async fn step(&mut self, fence: Fence) -> Result<(), RedisError> {
        let Some(place) = self.claimed else { return self.claim(fence).await };
        if !self.begun {
            self.left = place;
            // Without the values that belong to it, what is there is of no use.
            let place = place.filter(|_| !std::mem::take(&mut self.lost));
            let place = place.map(|place| Cursor::new(place.epoch, place.head));
            self.begun = self.fleet.hub.claim(place);
            self.checked = Instant::now();
            if !self.begun {
                // The stream's begin is on its way to the hub.
                tokio::time::sleep(LOOK).await;
            }
            return Ok(());
        }
        let Some(writer) = &mut self.writer else { return Ok(()) };
        let relayed = tokio::select! {
            biased;
            () = tokio::time::sleep_until((self.checked + CHECK).into()) => {
                self.checked = Instant::now();
                let found = writer.check().await?;
                if found.is_none() || found != self.left {
                    tracing::warn!("Redis is not as it was left: filling it again");
                    self.begin();
                    self.lost = found.is_none();
                }
                return Ok(());
            }
            relayed = poll_fn(|cx| self.fleet.hub.poll_relay(cx)) => relayed,
        };
        let Some(relayed) = relayed else {
            // Another line has begun.
            self.begin();
            return Ok(());
        };
        match &relayed.what {
            What::Page(outgoing) => {
                writer.append(outgoing).await?;
                self.left = Some(Place { epoch: outgoing.page.epoch, head: outgoing.page.upto });
            }
            What::Values(values) => writer.put_all(values.clone()).await?,
        }
        self.fleet.hub.carried(&relayed, Instant::now());
        Ok(())
    }
}

/// Takes pages into the hub for as long as it follows.
///
/// # Errors
/// The settings cannot be used.
pub async fn follow(fleet: Fleet, mut follows: watch::Receiver<bool>) -> Result<(), RedisError> {
    let mut reader = Reader::new(&fleet.redis, &fleet.source)?;
    let mut pause = Pause::new();
    loop {
        fleet.health.well(Part::Following);
        if follows.wait_for(|follows| *follows).await.is_err() {
            return Ok(());
        }
        while *follows.borrow() {
            let read = tokio::select! {
                read = reader.next(fleet.hub.head()) => read,
                Ok(()) = follows.changed() => continue,
            };
            match read {
                Ok(page) => {
                    pause = Pause::new();
                    match page {
                        Some(page) => fleet.hub.follow(&page, Instant::now()),
                        None => fleet.hub.forget_values(),
                    }
                    let silence = reader.silence();
                    if silence <= fleet.silence_max {
                        fleet.health.well(Part::Following);
                    } else {
                        let seconds = silence.as_secs();
                        let nobody =
                            format!("no leader was heard of for {seconds} s: is one ready? see its /readyz");
                        fleet.health.unwell(Part::Following, nobody);
                    }
                    if fleet.hub.follows() && fleet.hub.head().is_some() {
                        fleet.health.well(Part::State);
                        // What a leader did not get to read is its successor's to read.
                        fleet.health.well(Part::Seed);
                    }
                }
                Err(error) => {
                    if fleet.health.unwell(Part::Following, error.to_string()) {
                        tracing::warn!("nothing comes from other brokers: {error}");
                    }
                    pause.wait().await;
                }
            }
        }
    }
}

/// Asks for the values that the hub's subscribers want.
///
/// # Errors
/// The settings cannot be used.
pub async fn ask(fleet: Fleet, lane: Lane) -> Result<(), RedisError> {
    let asker = Asker::new(&fleet.redis, &fleet.source)?;
    let mut pause = Pause::new();
    let mut failed = false;
    loop {
        let wanted = poll_fn(|cx| fleet.hub.poll_wanted(lane, cx));
        let question = tokio::select! {
            biased;
            question = wanted => question,
            // Nobody may ask for long, and then nobody would say that all is well again.
            () = tokio::time::sleep(CHECK), if failed => Vec::new(),
        };
        if question.is_empty() && !fleet.hub.follows() {
            // Who leads knows all values.
            failed = false;
            fleet.health.well(Part::Asking);
            continue;
        }
        let asked = asker.values(&question).await;
        failed = asked.is_err();
        match asked {
            Ok(answer) => {
                let holds = answer.inexact.is_empty()
                    && fleet.hub.head().is_some_and(|head| head.position <= answer.at);
                fleet.hub.answer(answer);
                fleet.health.well(Part::Asking);
                if holds {
                    pause = Pause::new();
                } else {
                    tokio::time::sleep(INEXACT).await;
                }
            }
            Err(error) => {
                if fleet.health.unwell(Part::Asking, error.to_string()) {
                    tracing::warn!("current values cannot be asked for: {error}");
                }
                pause.wait().await;
                fleet.hub.unanswered();
            }
        }
    }
}
