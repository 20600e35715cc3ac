//! Messages that came from Redis and were not looked at, not more than a bound.
//!
//! Neither client can be made to read slower, so when the bound is reached the rest is dropped and the inbox closed, as if
//! the connection had ended there: whoever reads knows that something is missing.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc;

/// How many messages wait.
const MESSAGES_MAX: usize = 4096;
/// How many bytes they have.
const BYTES_MAX: usize = 16 << 20;

/// Where a client puts what it hears.
#[derive(Clone, Debug)]
pub(crate) struct Inbox {
    sender: Arc<Mutex<Option<mpsc::Sender<Vec<u8>>>>>,
    bytes: Arc<AtomicUsize>,
}

/// Where it is taken from.
#[derive(Debug)]
pub(crate) struct Outlet {
    receiver: mpsc::Receiver<Vec<u8>>,
    bytes: Arc<AtomicUsize>,
}

pub(crate) fn inbox() -> (Inbox, Outlet) {
    let (sender, receiver) = mpsc::channel(MESSAGES_MAX);
    let bytes = Arc::new(AtomicUsize::new(0));
    let inbox = Inbox { sender: Arc::new(Mutex::new(Some(sender))), bytes: Arc::clone(&bytes) };
    (inbox, Outlet { receiver, bytes })
}

impl Inbox {
    /// Puts a message in, or closes.
    pub(crate) fn put(&self, message: Vec<u8>) {
        let length = message.len();
        let fits = self.bytes.fetch_add(length, Ordering::Relaxed) + length <= BYTES_MAX;
        let mut sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        if !fits || sender.as_ref().is_some_and(|sender| sender.try_send(message).is_err()) {
            *sender = None;
        }
    }

    /// Nothing comes any more.
    pub(crate) fn close(&self) {
        *self.sender.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Outlet {
    /// The next message; `None` once it is closed and empty. May be dropped without loss.
    pub(crate) async fn next(&mut self) -> Option<Vec<u8>> {
        let message = self.receiver.recv().await?;
        self.bytes.fetch_sub(message.len(), Ordering::Relaxed);
        Some(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn drained(mut outlet: Outlet) -> usize {
        let mut count = 0;
        while outlet.next().await.is_some() {
            count += 1;
        }
        count
    }

    #[tokio::test]
    async fn it_is_bounded_and_ends_where_something_was_dropped() {
        let (inbox, outlet) = inbox();
        for _ in 0..=MESSAGES_MAX + 1 {
            inbox.put(vec![0]);
        }
        assert_eq!(drained(outlet).await, MESSAGES_MAX);

        let (inbox, mut outlet) = super::inbox();
        inbox.put(vec![0; BYTES_MAX]);
        assert!(outlet.next().await.is_some());
        inbox.put(vec![0; BYTES_MAX]);
        inbox.put(vec![0]);
        assert_eq!(drained(outlet).await, 1);
    }

    #[tokio::test]
    async fn what_came_before_the_end_is_read() {
        let (inbox, outlet) = inbox();
        inbox.put(vec![1]);
        inbox.close();
        inbox.put(vec![2]);
        assert_eq!(drained(outlet).await, 1);
    }
}
