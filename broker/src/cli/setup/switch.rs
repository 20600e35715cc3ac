//! After a switch of publishers from one way to the other: whether anybody may still go the old one.
//!
//! A transaction that was open then may, also one that has written nothing yet and so has no id: a session is sure to
//! hear of what others changed in the catalog only when a transaction of its begins. Nothing tells whether it will
//! publish at all. What it sends is lost if the old broker is gone by then, so setup waits for it, as long as it would for
//! a lock. It must never fail setup, for the switch is made by now, nor look by more than single statements: there may be a
//! pooler in between.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_postgres::Client;

use super::{Report, statements};
use crate::postgres::describe;

/// Between two looks at what is still open.
const POLL: Duration = Duration::from_millis(100);
/// How many are named.
const NAMED_MAX: usize = 5;

/// Those that belong to no session any more.
const PREPARED: &str = "
    SELECT transaction::text, 'prepared transaction ' || gid FROM pg_prepared_xacts WHERE database = current_database()";

/// Transactions that clients have open in this database, whether they have an id or not. Who may see no more of another
/// role's session still sees these columns; without a role are the server's own processes.
fn open_now() -> String {
    format!(
        "SELECT l.virtualtransaction, {} FROM pg_locks AS l JOIN pg_stat_activity AS a ON a.pid = l.pid
        WHERE l.locktype = 'virtualxid' AND l.granted AND l.mode = 'ExclusiveLock' AND l.pid <> pg_backend_pid()
            AND a.datname = current_database() AND a.usesysid IS NOT NULL",
        statements::HOLDER
    )
}

/// By what tells a transaction from all others: what to call it.
type Named = BTreeMap<String, String>;

/// The transactions that may go the old way.
#[derive(Debug, Default, PartialEq, Eq)]
struct Old {
    open: Named,
    prepared: Named,
}

impl Old {
    /// What is left of them, now that these are open, and these are prepared. One that ended may have been prepared under
    /// a name that nothing tells, so then it may be any.
    fn narrow(self, open: &Named, prepared: Named) -> Self {
        let before = self.open.len();
        let left: Named = self.open.into_iter().filter(|(id, _)| open.contains_key(id)).collect();
        let ended = left.len() < before;
        let prepared =
            prepared.into_iter().filter(|(id, _)| ended || self.prepared.contains_key(id)).collect();
        Self { open: left, prepared }
    }

    fn names(&self) -> Vec<&str> {
        self.open.values().chain(self.prepared.values()).map(String::as_str).collect()
    }
}

/// Waits until nothing is on the old way any more, or for `limit`, and reports what came of it. To be called once the
/// switch is committed; `meanwhile` is what has to go on until they are over.
pub(super) async fn settle(client: &Client, limit: Duration, meanwhile: &str, report: &mut Report) {
    let until = format!("{meanwhile} until they are over");
    match wait(client, limit).await {
        Ok(old) if old.names().is_empty() => {
            report.steps.push("settings: nothing is on the old way any more".into());
        }
        Ok(old) => report.warnings.push(format!(
            "transactions that were open when publishers were switched over may still publish the old way: {}; {until}, \
             or end them, for example by pg_terminate_backend(pid)",
            shortened(&old.names())
        )),
        Err(error) => report.warnings.push(format!(
            "transactions that were open when publishers were switched over may still publish the old way, and which \
             those are was not found out: {}; {until}",
            describe(&error)
        )),
    }
}

async fn wait(client: &Client, limit: Duration) -> Result<Old, tokio_postgres::Error> {
    let started = Instant::now();
    // Sessions first, here and below: what one of them prepares is there by the time its own is gone.
    let open = look(client, &open_now()).await?;
    let mut old = Old { open, prepared: look(client, PREPARED).await? };
    while !old.names().is_empty() && started.elapsed() < limit {
        sleep(POLL).await;
        let open = look(client, &open_now()).await?;
        old = old.narrow(&open, look(client, PREPARED).await?);
    }
    Ok(old)
}

async fn look(client: &Client, sql: &str) -> Result<Named, tokio_postgres::Error> {
    client.query_typed(sql, &[]).await?.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

fn shortened(names: &[&str]) -> String {
    let (named, more) = names.split_at(names.len().min(NAMED_MAX));
    let more = if more.is_empty() { String::new() } else { format!(" and {} more", more.len()) };
    named.join(", ") + &more
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(ids: &[&str]) -> Named {
        ids.iter().map(|id| ((*id).to_owned(), format!("transaction {id}"))).collect()
    }

    #[test]
    fn what_began_later_is_not_waited_for() {
        let check = |old: [&[&str]; 2], now: [&[&str]; 2], expected: [&[&str]; 2]| {
            let [old, expected] =
                [old, expected].map(|[open, prepared]| Old { open: named(open), prepared: named(prepared) });
            assert_eq!(old.narrow(&named(now[0]), named(now[1])), expected);
        };
        check([&["a", "b"], &[]], [&["a", "b", "c"], &["p"]], [&["a", "b"], &[]]);
        check([&["a"], &["p", "q"]], [&["a"], &["q", "r"]], [&["a"], &["q"]]);
        // It ended, or it is the one that was prepared meanwhile.
        check([&["a", "b"], &["p"]], [&["b"], &["q"]], [&["b"], &["q"]]);
        check([&["a"], &["p"]], [&["c"], &[]], [&[], &[]]);
    }

    #[test]
    fn not_all_of_many_are_named() {
        assert_eq!(shortened(&["a"]), "a");
        assert_eq!(shortened(&["a", "b", "c", "d", "e"]), "a, b, c, d, e");
        assert_eq!(shortened(&["a", "b", "c", "d", "e", "f", "g"]), "a, b, c, d, e and 2 more");
    }
}
