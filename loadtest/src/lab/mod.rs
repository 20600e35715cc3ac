//! What a load test starts: each server when it is first needed, and all of them ended with the lab.

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub mod broker;
mod clearing;
pub mod http;
pub mod listening;
pub mod machine;
pub mod nginx;
pub mod postgres;
pub mod process;
pub mod redis;
pub mod stand;
pub mod usage;

pub use broker::{Broker, Settings};
pub use listening::Listening;
pub use postgres::Postgres;
pub use process::Process;
pub use stand::Stand;

use indicatif::ProgressBar;

use crate::Error;
use crate::report::{System, Transport};

/// How a lab is made.
#[derive(Clone, Debug)]
pub struct Options {
    /// The server to use; `None` starts one.
    pub database_url: Option<String>,
    /// The broker's program; `None` is the one beside ours.
    pub broker: Option<PathBuf>,
    /// Whether a server that we start makes commits durable.
    pub fsync: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { database_url: None, broker: None, fsync: true }
    }
}

/// The servers.
#[derive(Debug)]
pub struct Lab {
    options: Options,
    /// Of our database, with which the names of all else that we make begin.
    name: String,
    binary: PathBuf,
    /// Files that a process may open: bounds the number of clients.
    files_max: u64,
    /// The broker comes before its database, for it ends in this order.
    broker: Option<Arc<Broker>>,
    postgres: Option<Arc<Postgres>>,
    progress: ProgressBar,
    /// What is played against.
    stand: String,
    notes: Vec<String>,
}

impl Lab {
    /// Starts nothing yet; raises the limit of open files as far as it goes.
    ///
    /// # Errors
    /// There is no broker to run.
    pub fn new(options: Options) -> Result<Self, Error> {
        let binary = match &options.broker {
            Some(binary) => binary.clone(),
            None => beside_us()?,
        };
        if !binary.exists() {
            let message = format!(
                "no broker at {}; build it (cargo build --release -p walcast) or name it by --broker",
                binary.display()
            );
            return Err(Error::missing(message));
        }
        let files_max = rlimit::increase_nofile_limit(u64::MAX).unwrap_or(1024);
        let progress = ProgressBar::hidden();
        Ok(Self {
            options,
            name: format!("loadtest_{:08x}", rand::random::<u32>()),
            binary,
            files_max,
            broker: None,
            postgres: None,
            progress,
            stand: String::new(),
            notes: Vec::new(),
        })
    }

    /// Where to show what is being done.
    pub fn show(&mut self, progress: ProgressBar) {
        self.progress = progress;
    }

    /// Says what is being done, for as long as it is.
    pub fn doing(&self, what: impl Into<String>) {
        self.progress.set_message(format!("{}{}", self.stand, what.into()));
    }

    /// What a reader of the report must know; once.
    pub fn note(&mut self, note: impl Into<String>) {
        let note = note.into();
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    /// All notes.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Of our database, with which the names of slots begin, too.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The broker's program.
    #[must_use]
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// How many clients our limit of open files allows.
    #[must_use]
    pub fn clients_max(&self) -> u64 {
        self.files_max.saturating_sub(200)
    }

    /// How many of `clients` the system can have at a time; notes where that is fewer.
    ///
    /// # Errors
    /// The database cannot be reached.
    pub async fn clients_for(&mut self, system: System, clients: u64) -> Result<usize, Error> {
        let files = self.clients_max();
        if clients > files {
            self.note(format!(
                "{clients} clients became {files}: a process may open {} files here (ulimit -Hn)",
                self.files_max
            ));
        }
        let mut possible = usize::try_from(clients.min(files)).unwrap_or(usize::MAX);
        if matches!(system, System::Listen | System::Postgres) {
            let sessions = self.postgres().await?.listeners_max().await?;
            if possible > sessions {
                self.note(format!(
                    "{system} needs a session for each client: {sessions} of {possible} (max_connections)"
                ));
                possible = sessions;
            }
        }
        Ok(possible)
    }

    /// The database.
    ///
    /// # Errors
    /// No server can be started, or the given one cannot be used.
    pub async fn postgres(&mut self) -> Result<Arc<Postgres>, Error> {
        if let Some(postgres) = &self.postgres {
            return Ok(Arc::clone(postgres));
        }
        let Some(given) = self.options.database_url.as_deref() else {
            let postgres = Arc::new(Postgres::start(&self.name, self.options.fsync).await?);
            self.postgres = Some(Arc::clone(&postgres));
            return Ok(postgres);
        };
        let postgres = Arc::new(Postgres::on(given, &self.name));
        // From here on there may be something to remove, also if we are interrupted.
        self.postgres = Some(Arc::clone(&postgres));
        if let Err(error) = postgres.make().await {
            self.postgres = None;
            return Err(error);
        }
        Ok(postgres)
    }

    /// A broker without a past; the one before has ended, if nobody else holds it.
    ///
    /// # Errors
    /// See [`Broker::start`].
    pub async fn broker(&mut self, settings: &Settings) -> Result<Arc<Broker>, Error> {
        let postgres = self.postgres().await?;
        self.stop_broker().await;
        let broker = Arc::new(Broker::start(&self.binary, &postgres, settings).await?);
        self.broker = Some(Arc::clone(&broker));
        Ok(broker)
    }

    /// Ends the broker, if nobody else holds it.
    pub async fn stop_broker(&mut self) {
        let broker = self.broker.take();
        // Ending a process blocks. That the task fails would only mean that it panicked.
        let _ = tokio::task::spawn_blocking(move || drop(broker)).await;
    }

    /// The system, started afresh and ready for clients; ended when the stand is dropped, and the broker at the
    /// latest when the next one starts.
    ///
    /// # Errors
    /// It is not installed, or does not start.
    pub async fn stand(
        &mut self,
        system: System,
        transport: Option<Transport>,
        settings: &Settings,
    ) -> Result<Stand, Error> {
        let way = transport.map(|transport| format!(" {transport}")).unwrap_or_default();
        self.stand = format!("{system}{way}, {} clients: ", settings.clients);
        self.doing("starts");
        Stand::start(self, system, transport, settings).await
    }

    /// Ends everything and, on a server that was given, removes what was made there.
    ///
    /// # Errors
    /// Something could not be removed: what, and how to do it by hand.
    pub async fn end(mut self) -> Result<(), Error> {
        self.stop_broker().await;
        let Some(postgres) = self.postgres.take() else { return Ok(()) };
        match &self.options.database_url {
            Some(given) => clearing::clear(&self.binary, &postgres, given).await,
            None => postgres.stop().await,
        }
    }
}

fn beside_us() -> Result<PathBuf, Error> {
    let own = std::env::current_exe().map_err(Error::of("cannot tell where this program is"))?;
    let mut dir = own.parent().unwrap_or_else(|| Path::new("."));
    // Tests lie a directory below.
    if dir.ends_with("deps") {
        dir = dir.parent().unwrap_or(dir);
    }
    Ok(dir.join("walcast"))
}

/// Whether a program is on PATH.
#[must_use]
pub fn installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}
