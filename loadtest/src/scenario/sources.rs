//! Both ways by which events travel, beside each other and beside LISTEN/NOTIFY: what publishing costs a transaction,
//! how long an event takes to a client, and what very many events leave behind in the outbox.
//!
//! Who publishes does the same for both sources; setup alone says which it is. Writers number their messages, and
//! every message is checked: each once, and those of one writer in order.

use std::ops::Range;
use std::time::Duration;

use walcast::source::SourceKind;

use super::Plan;
use crate::Error;
use crate::client::Received;
use crate::lab::{Lab, Settings};
use crate::report::{Checks, Run};
use crate::verify::{self, Receipt};

mod delivery;
mod emptied;
mod publishing;

/// How long nothing may come that is on its way.
const QUIET: Duration = Duration::from_secs(10);

/// Plays all of it; LISTEN is the only peer that counts.
///
/// # Errors
/// There are too few connections, or a server went away.
pub async fn play(lab: &mut Lab, plan: &Plan) -> Result<Vec<Run>, Error> {
    let mut runs = publishing::play(lab, plan).await?;
    runs.extend(delivery::play(lab, plan).await?);
    runs.push(emptied::play(lab, plan).await?);
    lab.stop_broker().await;
    Ok(runs)
}

/// A broker that reads this source.
fn of_source(source: SourceKind, clients: usize) -> Settings {
    Settings { source, ..Settings::clients(clients) }
}

/// What one client received, against the messages of each writer: they came in its order. What different writers
/// commit at a time has none.
fn judge(received: &Received, writers: &[Range<u32>]) -> Checks {
    let mut checks = received.clients();
    let mut of_writers = vec![Vec::<Receipt>::new(); writers.len()];
    for receipt in received.inboxes.iter().flat_map(|inbox| &inbox.receipts) {
        match writers.iter().position(|seqs| seqs.contains(&receipt.seq)) {
            Some(writer) => of_writers[writer].push(*receipt),
            // Nobody sent it.
            None => checks.duplicates += 1,
        }
    }
    for (receipts, seqs) in of_writers.iter().zip(writers) {
        checks = checks.and(verify::client(receipts, seqs.clone()));
    }
    checks
}

/// The numbers of messages from `first` on: as many for each writer.
fn shares(first: u32, writers: u32, each: u32) -> Vec<Range<u32>> {
    (0..writers).map(|writer| first + writer * each..first + (writer + 1) * each).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Inbox;

    fn received(seqs: &[u32]) -> Received {
        let receipts = seqs.iter().map(|seq| Receipt { seq: *seq, at_us: 0 }).collect();
        Received { inboxes: vec![Inbox { receipts, ..Inbox::default() }], ..Received::default() }
    }

    #[test]
    fn each_writer_is_judged_alone() {
        let writers = shares(2, 2, 3);
        assert_eq!(writers, [2..5, 5..8]);
        let check = |seqs: &[u32], expected: (u64, u64, u64)| {
            let checks = judge(&received(seqs), &writers);
            assert_eq!((checks.lost, checks.duplicates, checks.disordered), expected, "{seqs:?}");
            assert_eq!(checks.expected, 6, "{seqs:?}");
        };
        check(&[5, 2, 6, 3, 4, 7], (0, 0, 0));
        check(&[5, 2, 6, 4, 3, 7], (0, 0, 1));
        check(&[5, 2, 6, 3, 4, 4, 1], (1, 2, 0));
    }
}
