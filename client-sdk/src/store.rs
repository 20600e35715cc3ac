//! Where a program that restarts keeps its place.
//!
//! A place is saved once the program asked for what comes next, which says that it is done with what came before. So
//! after a crash it gets again what it may not have finished, and misses nothing. Saving goes on beside the stream:
//! while one save runs, newer places wait, and only the newest of them is saved next.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::watch;
use walcast_wire::Cursor;

/// Keeps one place. Called on threads that may block, one call at a time.
///
/// ```
/// use std::io;
/// use std::sync::Mutex;
/// use walcast_client::{CursorStore, wire::Cursor};
///
/// /// For a test.
/// #[derive(Default)]
/// struct Memory(Mutex<Option<Cursor>>);
///
/// impl CursorStore for Memory {
///     fn load(&self) -> io::Result<Option<Cursor>> {
///         Ok(*self.0.lock().unwrap())
///     }
///     fn save(&self, cursor: Cursor) -> io::Result<()> {
///         *self.0.lock().unwrap() = Some(cursor);
///         Ok(())
///     }
/// }
/// ```
pub trait CursorStore: Send + Sync + 'static {
    /// The place that was saved last; `None` if none was.
    ///
    /// # Errors
    /// It cannot be told; the stream then ends with [`Error::Store`](crate::Error::Store) rather than begin anywhere.
    fn load(&self) -> io::Result<Option<Cursor>>;

    /// Keeps `cursor` instead of what was kept. When this returns, it must outlive a crash.
    ///
    /// # Errors
    /// It is not kept. The stream goes on, the log is told, and the next place is tried again.
    fn save(&self, cursor: Cursor) -> io::Result<()>;
}

/// A file that holds the place as text. It is replaced as a whole and synced, so that a crash leaves the old place or
/// the new one. Each stream needs a file of its own; the directory must exist.
///
/// ```no_run
/// # fn main() -> Result<(), walcast_client::Error> {
/// # let client = walcast_client::Client::new("http://127.0.0.1:8480")?;
/// use walcast_client::FileStore;
///
/// let updates = client.subscribe(["vm/host-17"]).store(FileStore::new("/var/lib/agent/cursor")).stream();
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct FileStore {
    path: PathBuf,
}

impl FileStore {
    /// Keeps the place in this file.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// # let client = walcast_client::Client::new("http://127.0.0.1:8480")?;
    /// use walcast_client::FileStore;
    ///
    /// let mut updates = client.subscribe(["vm/*"]).store(FileStore::new("/var/lib/agent/cursor")).stream();
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    fn named(&self, error: &io::Error) -> io::Error {
        io::Error::new(error.kind(), format!("{}: {error}", self.path.display()))
    }

    fn replace(&self, cursor: Cursor) -> io::Result<()> {
        let mut name = self.path.file_name().unwrap_or_default().to_owned();
        name.push(".new");
        let new = self.path.with_file_name(name);
        let mut file = File::create(&new)?;
        writeln!(file, "{cursor}")?;
        file.sync_all()?;
        drop(file);
        fs::rename(&new, &self.path)?;
        // The name, too, is kept only once its directory is.
        let directory = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
    }
}

impl CursorStore for FileStore {
    fn load(&self) -> io::Result<Option<Cursor>> {
        match fs::read_to_string(&self.path) {
            Ok(text) => match text.trim().parse() {
                Ok(cursor) => Ok(Some(cursor)),
                Err(_) => {
                    let error = io::Error::new(
                        io::ErrorKind::InvalidData,
                        "holds no cursor; remove it to begin anew",
                    );
                    Err(self.named(&error))
                }
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.named(&error)),
        }
    }

    fn save(&self, cursor: Cursor) -> io::Result<()> {
        self.replace(cursor).map_err(|error| self.named(&error))
    }
}

/// Saves places one after the other, in a task that ends once its owner is gone and the last place is saved.
#[derive(Debug)]
pub(crate) struct Saver {
    wanted: watch::Sender<Option<Cursor>>,
    done: watch::Receiver<Done>,
}

/// What became of saving.
#[derive(Clone, Debug, Default)]
struct Done {
    /// How often it was tried.
    tries: u64,
    tried: Option<Cursor>,
    failure: Option<(io::ErrorKind, String)>,
}

impl Saver {
    /// What is saved already is `saved`.
    pub(crate) fn start(store: Arc<dyn CursorStore>, saved: Option<Cursor>) -> Self {
        let (wanted, wants) = watch::channel(saved);
        let (says, done) = watch::channel(Done { tried: saved, ..Done::default() });
        tokio::spawn(run(store, wants, says));
        Self { wanted, done }
    }

    /// Saves this place soon, unless a newer one comes first.
    pub(crate) fn want(&self, cursor: Option<Cursor>) {
        self.wanted.send_if_modified(|wanted| {
            let new = cursor.is_some() && *wanted != cursor;
            if new {
                *wanted = cursor;
            }
            new
        });
    }

    /// Saves this place now.
    pub(crate) async fn save(&self, cursor: Cursor) -> io::Result<()> {
        let mut done = self.done.clone();
        let before = {
            let done = done.borrow();
            if done.tried == Some(cursor) && done.failure.is_none() {
                return Ok(());
            }
            done.tries
        };
        self.wanted.send_replace(Some(cursor));
        let tried = done.wait_for(|done| done.tries > before && done.tried == Some(cursor)).await;
        let gone = || io::Error::other("nobody saves any more");
        match tried.map_err(|_| gone())?.failure.clone() {
            Some((kind, text)) => Err(io::Error::new(kind, text)),
            None => Ok(()),
        }
    }
}

async fn run(
    store: Arc<dyn CursorStore>,
    mut wants: watch::Receiver<Option<Cursor>>,
    says: watch::Sender<Done>,
) {
    let mut down = false;
    while wants.changed().await.is_ok() {
        let Some(cursor) = *wants.borrow_and_update() else { continue };
        let keeping = Arc::clone(&store);
        let saved = tokio::task::spawn_blocking(move || keeping.save(cursor)).await;
        let failure = match saved {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some((error.kind(), error.to_string())),
            Err(error) => Some((io::ErrorKind::Other, error.to_string())),
        };
        if let Some((_, error)) = &failure
            && !down
        {
            tracing::warn!(error, "walcast: the cursor cannot be kept; trying on with each new one");
        }
        down = failure.is_some();
        says.send_modify(|done| {
            *done = Done { tries: done.tries + 1, tried: Some(cursor), failure };
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use walcast_wire::{Epoch, Position};

    use super::*;

    fn cursor(n: u64) -> Cursor {
        Cursor::new(Epoch(7), Position::new(n, 1))
    }

    fn directory(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("walcast-store-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).unwrap();
        path
    }

    #[test]
    fn a_file_keeps_the_last_place() {
        let directory = directory("keeps");
        let store = FileStore::new(directory.join("cursor"));
        assert_eq!(store.load().unwrap(), None);
        for n in [1, 2] {
            store.save(cursor(n)).unwrap();
            assert_eq!(FileStore::new(directory.join("cursor")).load().unwrap(), Some(cursor(n)));
        }
        // A crash in between leaves a part of the new file beside the old one.
        fs::write(directory.join("cursor.new"), "1").unwrap();
        assert_eq!(store.load().unwrap(), Some(cursor(2)));
        store.save(cursor(3)).unwrap();
        assert_eq!(store.load().unwrap(), Some(cursor(3)));
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_file_that_cannot_be_used_is_named() {
        let directory = directory("named");
        let path = directory.join("cursor");
        let store = FileStore::new(&path);
        fs::write(&path, "something else").unwrap();
        let error = store.load().unwrap_err().to_string();
        assert!(error.contains(path.to_str().unwrap()) && error.contains("remove it"), "{error}");
        fs::remove_dir_all(&directory).unwrap();
        let error = store.save(cursor(1)).unwrap_err().to_string();
        assert!(error.contains(path.to_str().unwrap()), "{error}");
    }

    #[derive(Default)]
    struct Full(Mutex<(bool, Vec<Cursor>)>);

    impl CursorStore for Full {
        fn load(&self) -> io::Result<Option<Cursor>> {
            Ok(None)
        }

        fn save(&self, cursor: Cursor) -> io::Result<()> {
            let mut this = self.0.lock().unwrap();
            if this.0 {
                return Err(io::Error::other("full"));
            }
            this.1.push(cursor);
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_save_that_failed_is_told_and_tried_again() {
        let store = Arc::new(Full::default());
        let saver = Saver::start(Arc::clone(&store) as Arc<dyn CursorStore>, None);
        store.0.lock().unwrap().0 = true;
        assert_eq!(saver.save(cursor(1)).await.unwrap_err().to_string(), "full");
        store.0.lock().unwrap().0 = false;
        saver.save(cursor(1)).await.unwrap();
        saver.save(cursor(1)).await.unwrap();
        assert_eq!(store.0.lock().unwrap().1, [cursor(1)]);
    }

    #[tokio::test]
    async fn the_last_place_is_saved_when_its_owner_is_gone() {
        let store = Arc::new(Full::default());
        let saver = Saver::start(Arc::clone(&store) as Arc<dyn CursorStore>, Some(cursor(1)));
        saver.want(None);
        for n in 1..=50 {
            saver.want(Some(cursor(n)));
        }
        let mut done = saver.done.clone();
        drop(saver);
        while done.changed().await.is_ok() {}
        assert_eq!(store.0.lock().unwrap().1.last(), Some(&cursor(50)));
    }
}
