//! Who holds the lock that a statement could not get within its time.
//!
//! It is found out afterwards, so it is what there is to say and no more: whoever held it may be gone by then. It must
//! never hide that, nor fail in place of the statement.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::Client;

use super::tries::Refused;
use super::{SetupError, statements};

/// Locks on tables, from the weakest on.
const MODES: [&str; 8] = [
    "AccessShareLock",
    "RowShareLock",
    "RowExclusiveLock",
    "ShareUpdateExclusiveLock",
    "ShareLock",
    "ShareRowExclusiveLock",
    "ExclusiveLock",
    "AccessExclusiveLock",
];

/// A lock that somebody else has on a table.
#[derive(Clone, Debug)]
struct Held {
    /// The table as statements name it, a partition by its root.
    table: [String; 2],
    /// The same, for people.
    name: String,
    mode: String,
    holder: String,
}

/// What it means that `statement` was refused with `error`, outside a transaction, or after it was rolled back. `failed`
/// says what was not done, `who` what role is needed where a privilege is.
pub(in crate::cli) async fn refusal(
    client: &Client,
    failed: &str,
    statement: &str,
    error: &tokio_postgres::Error,
    who: &str,
) -> Refused {
    let holders = if Refused::is_lock(error) { in_the_way(statement, &held(client).await) } else { None };
    let meaning = match holders {
        None => SetupError::from_refusal(failed, error, who),
        Some(holders) => SetupError::Blocked(format!(
            "{failed}: {holders}; end what is in the way, for example by pg_terminate_backend(pid), or wait longer with \
             --lock-timeout"
        )),
    };
    Refused::new(error, meaning)
}

async fn held(client: &Client) -> Vec<Held> {
    let sql = format!(
        "SELECT n.nspname::text, r.relname::text, format('%I.%I', n.nspname, r.relname), l.mode,
            coalesce({}, 'prepared transaction ' || p.gid, 'another session')
        FROM pg_locks AS l JOIN pg_class AS c ON c.oid = l.relation
        JOIN pg_class AS r ON r.oid = coalesce(pg_partition_root(c.oid), c.oid)
        JOIN pg_namespace AS n ON n.oid = r.relnamespace
        LEFT JOIN pg_stat_activity AS a ON a.pid = l.pid
        LEFT JOIN pg_locks AS t ON l.pid IS NULL AND t.pid IS NULL AND t.locktype = 'transactionid'
            AND t.virtualtransaction = l.virtualtransaction
        LEFT JOIN pg_prepared_xacts AS p ON p.transaction = t.transactionid
        WHERE l.locktype = 'relation' AND l.granted AND c.relkind IN ('r', 'p') AND l.pid IS DISTINCT FROM pg_backend_pid()
            AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())",
        statements::HOLDER
    );
    let rows = client.query_typed(&sql, &[]).await.unwrap_or_default();
    let held = rows.iter().map(|row| {
        let (schema, name): (String, String) = (row.get(0), row.get(1));
        Held {
            table: [statements::table(&schema, &name), row.get(2)],
            name: format!("{schema}.{name}"),
            mode: row.get(3),
            holder: row.get(4),
        }
    });
    held.collect()
}

/// Who holds which of the tables that `statement` names; `None`: nobody, any more.
fn in_the_way(statement: &str, held: &[Held]) -> Option<String> {
    let mut tables: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let first = weakest_in_the_way(statement);
    for held in held {
        let strong = MODES.iter().position(|mode| *mode == held.mode) >= Some(first);
        if strong && held.table.iter().any(|table| mentions(statement, table)) {
            tables.entry(&held.name).or_default().insert(&held.holder);
        }
    }
    let texts = tables.into_iter().map(|(table, holders)| {
        format!("{table} is locked by {}", holders.into_iter().collect::<Vec<_>>().join(", "))
    });
    Some(texts.collect::<Vec<_>>().join("; ")).filter(|text| !text.is_empty())
}

/// Which of [`MODES`], and those behind it, keep a statement of ours from its lock.
fn weakest_in_the_way(statement: &str) -> usize {
    let begins = |with: &[&str]| with.iter().any(|with| statement.starts_with(with));
    if begins(&["CREATE TRIGGER", "ALTER TABLE"]) && !statement.contains(" ADD ") {
        2
    } else if begins(&["CREATE PUBLICATION", "ALTER PUBLICATION"]) {
        3
    } else if begins(&["INSERT", "UPDATE"]) {
        4
    } else {
        0
    }
}

/// Whether the name is there, and not as a part of another.
fn mentions(statement: &str, table: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || matches!(c, '_' | '$' | '"' | '.');
    statement
        .match_indices(table)
        .any(|(at, _)| !statement[..at].ends_with(part) && !statement[at + table.len()..].starts_with(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(table: &str, mode: &str, holder: &str) -> Held {
        let (schema, name) = table.split_once('.').unwrap();
        Held {
            table: [statements::table(schema, name), table.to_owned()],
            name: table.to_owned(),
            mode: mode.to_owned(),
            holder: holder.to_owned(),
        }
    }

    #[test]
    fn only_what_is_in_the_way_is_named() {
        let locks = [
            held("public.a", "AccessShareLock", "pid 1"),
            held("public.a", "RowExclusiveLock", "pid 2"),
            held("public.ab", "ShareUpdateExclusiveLock", "pid 3"),
            held("walcast.tick", "AccessShareLock", "pid 4"),
            held("walcast.tick", "RowExclusiveLock", "pid 4"),
        ];
        let check = |statement: &str, expected: &str| {
            assert_eq!(in_the_way(statement, &locks).unwrap_or_default(), expected, "{statement}");
        };
        check("CREATE TRIGGER t AFTER TRUNCATE ON \"public\".\"a\" FOR", "public.a is locked by pid 2");
        check("DROP TRIGGER t ON public.a", "public.a is locked by pid 1, pid 2");
        check("ALTER PUBLICATION p ADD TABLE ONLY \"public\".\"a\"", "");
        check("ALTER PUBLICATION p ADD TABLE ONLY \"public\".\"ab\" (\"x\")", "public.ab is locked by pid 3");
        check("UPDATE walcast.tick SET x = 1", "");
        check("DROP TABLE public.abc, walcast.tick, xpublic.a", "walcast.tick is locked by pid 4");
    }
}
