//! A system under test: where its clients wait, what wakes them, what it uses. Scenarios see nothing else, so
//! that walcast and its peers are played by the same lines.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Broker, Lab, Listening, Postgres, Settings, nginx, redis, usage};
use crate::Error;
use crate::client::{Crowd, Manner, Target};
use crate::latency::Clock;
use crate::publish::{Method, Publisher};
use crate::report::{System, Transport};

/// How often a server is asked how many wait.
const LOOK: Duration = Duration::from_millis(5);
/// How long no further client may come.
const PATIENCE: Duration = Duration::from_secs(30);

/// A system that is ready for clients.
#[derive(Debug)]
pub struct Stand {
    system: System,
    transport: Option<Transport>,
    target: Target,
    server: Server,
}

#[derive(Debug)]
enum Server {
    Walcast(Arc<Broker>, Arc<Postgres>),
    Postgres(Arc<Postgres>),
    Redis(Listening),
    Nginx(Listening),
}

impl Stand {
    pub(super) async fn start(
        lab: &mut Lab,
        system: System,
        transport: Option<Transport>,
        settings: &Settings,
    ) -> Result<Self, Error> {
        let way = transport.unwrap_or(Transport::Ws);
        if system != System::Walcast {
            // An idle one still reads the log, and would take of what the peer is measured with.
            lab.stop_broker().await;
        }
        let (transport, target, server) = match system {
            System::Walcast => {
                let broker = lab.broker(settings).await?;
                let target = Target::Walcast(broker.http(), way);
                (Some(way), target, Server::Walcast(broker, lab.postgres().await?))
            }
            System::Listen => {
                let postgres = lab.postgres().await?;
                let config = postgres.url().parse::<tokio_postgres::Config>();
                let mut config = config.map_err(Error::of("read the connection string"))?;
                config.application_name(postgres.application_name());
                (None, Target::Listen(Arc::new(config)), Server::Postgres(postgres))
            }
            System::Redis => {
                let redis = redis::start(settings.clients).await?;
                (None, Target::Redis(redis.address()), Server::Redis(redis))
            }
            System::Nchan => {
                // It holds long-polls too, but wants headers of the last answer in the next question.
                let way = if way == Transport::Poll { Transport::Sse } else { way };
                let nginx = nginx::start(settings.clients).await?;
                (Some(way), Target::Nchan(nginx.address(), way), Server::Nginx(nginx))
            }
            System::Recvlogical | System::Postgres => {
                return Err(Error::usage(format!("{system} has no clients that wait")));
            }
        };
        Ok(Self { system, transport, target, server })
    }

    /// Which.
    #[must_use]
    pub fn system(&self) -> System {
        self.system
    }

    /// How its clients wait, where there is a choice.
    #[must_use]
    pub fn transport(&self) -> Option<Transport> {
        self.transport
    }

    /// Where its clients wait.
    #[must_use]
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// The broker, if it is walcast.
    #[must_use]
    pub fn broker(&self) -> Option<&Arc<Broker>> {
        match &self.server {
            Server::Walcast(broker, _) => Some(broker),
            _ => None,
        }
    }

    /// Connects a publisher.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn publisher(&self) -> Result<Publisher, Error> {
        match &self.server {
            Server::Walcast(_, postgres) => Publisher::sql(postgres.session().await?, Method::Walcast).await,
            Server::Postgres(postgres) => Publisher::sql(postgres.session().await?, Method::Notify).await,
            Server::Redis(redis) => Publisher::redis(redis.address()).await,
            Server::Nginx(nginx) => Publisher::nchan(nginx.address()).await,
        }
    }

    /// Starts clients; see [`waiting`](Self::waiting).
    #[must_use]
    pub fn crowd(&self, clock: Clock, clients: usize, topic: impl Fn(usize) -> String) -> Crowd {
        self.crowd_that(&Manner::default(), clock, clients, topic)
    }

    /// The same, asking in this manner.
    #[must_use]
    pub fn crowd_that(
        &self,
        manner: &Manner,
        clock: Clock,
        clients: usize,
        topic: impl Fn(usize) -> String,
    ) -> Crowd {
        Crowd::start(&self.target, manner, clock, clients, topic)
    }

    /// Waits until the server itself knows that all clients of the crowd wait.
    ///
    /// # Errors
    /// A client failed, or none came for long.
    pub async fn waiting(&self, crowd: &Crowd) -> Result<(), Error> {
        crowd.all_ready(PATIENCE).await?;
        let clients = crowd.clients() as u64;
        let known = async {
            let mut tick = tokio::time::interval(LOOK);
            loop {
                let waiting = match &self.server {
                    Server::Walcast(broker, _) => broker.subscriptions().await?,
                    Server::Nginx(nginx) => nginx::subscribers(nginx.address()).await?,
                    // Their clients were told.
                    Server::Postgres(_) | Server::Redis(_) => clients,
                };
                if let (1.., Some(why)) = crowd.faults() {
                    return Err(Error::failed(format!("clients failed: {why}")));
                }
                if waiting >= clients {
                    return Ok(());
                }
                tick.tick().await;
            }
        };
        tokio::time::timeout(PATIENCE, known).await.unwrap_or_else(|_| {
            let system = self.system;
            Err(Error::failed(format!("{system} does not know of {clients} clients after {PATIENCE:?}")))
        })
    }

    /// Memory of the processes that hold the clients' connections; `None` if the server is not ours.
    #[must_use]
    pub fn memory_bytes(&self) -> Option<u64> {
        self.pid().map(usage::memory_bytes)
    }

    /// CPU of the processes that hold the clients' connections; `None` if the server is not ours.
    #[must_use]
    pub fn cpu(&self) -> Option<Duration> {
        self.pid().map(usage::cpu)
    }

    /// The same, and Postgres's where it works for them.
    #[must_use]
    pub fn cpu_with_database(&self) -> Option<Duration> {
        match &self.server {
            Server::Walcast(broker, postgres) => Some(broker.cpu() + postgres.cpu()?),
            _ => self.cpu(),
        }
    }

    /// Cores that [`cpu`](Self::cpu) takes over the next `window`.
    pub async fn load(&self, window: Duration) -> Option<f64> {
        let (before, began) = (self.cpu()?, Instant::now());
        tokio::time::sleep(window).await;
        Some(self.cpu()?.saturating_sub(before).as_secs_f64() / began.elapsed().as_secs_f64())
    }

    /// Cores that [`cpu_with_database`](Self::cpu_with_database) takes over the next `window`.
    pub async fn load_with_database(&self, window: Duration) -> Option<f64> {
        let (before, began) = (self.cpu_with_database()?, Instant::now());
        tokio::time::sleep(window).await;
        let used = self.cpu_with_database()?.saturating_sub(before);
        Some(used.as_secs_f64() / began.elapsed().as_secs_f64())
    }

    fn pid(&self) -> Option<u32> {
        match &self.server {
            Server::Walcast(broker, _) => Some(broker.pid()),
            Server::Postgres(postgres) => postgres.pid(),
            Server::Redis(peer) | Server::Nginx(peer) => Some(peer.pid()),
        }
    }
}
