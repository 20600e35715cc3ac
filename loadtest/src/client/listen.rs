//! A client that waits by LISTEN: a session of its own, as such clients need.

use std::future::{pending, poll_fn};

use tokio::sync::Semaphore;
use tokio_postgres::{AsyncMessage, Config, NoTls};
use walcast::postgres::describe;

use super::crowd::Shared;
use super::{Ear, Fault};
use crate::verify::Finds;

/// One client's life.
pub(super) async fn follow(
    shared: &Shared,
    number: usize,
    config: &Config,
    channel: &str,
    connecting: &Semaphore,
) -> Result<(), Fault> {
    let failed =
        |what: &str, error: &tokio_postgres::Error| Fault::new(format!("cannot {what}: {}", describe(error)));
    // The semaphore is never closed; without a permit it would only be less gentle.
    let permit = connecting.acquire().await.ok();
    let connected = config.connect(NoTls).await;
    let (session, mut connection) = connected.map_err(|error| {
        let fault = failed("connect to LISTEN", &error).to_string();
        // As the library and the server say that they will not without.
        let tls = ["TLS", "SSL", "no encryption"].iter().any(|word| fault.contains(word));
        let remedy = "; its clients speak no TLS here: name other peers by --peer, or none";
        Fault::new(fault + if tls { remedy } else { "" })
    })?;
    drop(permit);
    let finds = Finds::default();
    let hear = poll_fn(|context| {
        loop {
            match std::task::ready!(connection.poll_message(context)) {
                Some(Ok(AsyncMessage::Notification(message))) => {
                    let mut inbox = shared.inboxes[number].lock();
                    let before = inbox.receipts.len();
                    let mut ear = Ear::new(&mut inbox, shared.clock.us());
                    ear.messages(&finds, message.payload().as_bytes());
                    shared.received((inbox.receipts.len() - before) as u64);
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => return std::task::Poll::Ready(failed("go on listening", &error)),
                None => return std::task::Poll::Ready(Fault::new("the server ended the session")),
            }
        }
    });
    let ask = async {
        let asked = session.batch_execute(&format!("listen \"{channel}\"")).await;
        if let Err(error) = asked {
            return failed("LISTEN", &error);
        }
        shared.became_ready();
        pending().await
    };
    tokio::select! {
        fault = hear => Err(fault),
        fault = ask => Err(fault),
    }
}
