//! The names of figures and labels, once. Scenarios write under them and targets and tables read, so a
//! misspelt name does not compile. The name says the unit; what is a ratio says so.

/// Memory (proportional set size) of the server's processes with all clients waiting, less without any, over
/// their number.
pub const MEMORY_PER_CLIENT_BYTES: &str = "memory_per_client_bytes";
/// The same once a burst of events has gone out to all of them.
pub const MEMORY_PER_CLIENT_AFTER_BURST_BYTES: &str = "memory_per_client_after_burst_bytes";
/// Memory of the server's processes at the end of the run.
pub const MEMORY_BYTES: &str = "memory_bytes";
/// The most memory that the server's processes were seen to take during the run.
pub const MEMORY_PEAK_BYTES: &str = "memory_peak_bytes";
/// What the broker may take beside stalled readers: what it took without them, what was published since, a few kB for
/// each of them, and a little to work with.
pub const MEMORY_ALLOWED_BYTES: &str = "memory_allowed_bytes";
/// CPU of the server's processes; 100 is one core.
pub const CPU_PERCENT: &str = "cpu_percent";
/// CPU of all of the server's processes for one event: the broker's and Postgres's together for walcast.
pub const CPU_US_PER_EVENT: &str = "cpu_us_per_event";
/// The broker's share of [`CPU_US_PER_EVENT`].
pub const BROKER_CPU_US_PER_EVENT: &str = "broker_cpu_us_per_event";
/// CPU of the broker for a long-poll that is answered with nothing and asks again, all that it takes meanwhile included.
pub const CPU_US_PER_QUESTION: &str = "cpu_us_per_question";
/// CPU for one delivery to one client, of the processes that hold the clients' connections: Postgres's for LISTEN,
/// the broker's alone for walcast.
pub const CPU_US_PER_DELIVERY: &str = "cpu_us_per_delivery";
/// From the first to the last one received.
pub const DELIVERIES_PER_SECOND: &str = "deliveries_per_second";
/// From the call of the commit, or for peers of the publish, to the last client's receipt.
pub const COMMIT_TO_LAST_MS: &str = "commit_to_last_ms";
/// From the first connect until all clients wait.
pub const CONNECTIONS_PER_SECOND: &str = "connections_per_second";
/// Transactions that writers committed.
pub const TRANSACTIONS_PER_SECOND: &str = "transactions_per_second";
/// Against the same transaction with a no-op statement, in the slices right before and after.
pub const RATIO_TO_NOOP: &str = "ratio_to_noop";
/// [`RATIO_TO_NOOP`] over that of `pg_notify` by as many writers.
pub const RATIO_TO_NOTIFY: &str = "ratio_to_pg_notify";
/// Events that publishers sent, from when the first was due to the answer to the last one.
pub const PUBLISHED_PER_SECOND: &str = "published_per_second";
/// How many sessions published.
pub const PUBLISHERS: &str = "publishers";
/// Tables of the outbox, with their indexes, before anything was published.
pub const OUTBOX_FRESH_BYTES: &str = "outbox_fresh_bytes";
/// The same: the most that was seen while events were published.
pub const OUTBOX_PEAK_BYTES: &str = "outbox_peak_bytes";
/// The same once nobody needs any of the events.
pub const OUTBOX_LEFT_BYTES: &str = "outbox_left_bytes";
/// From the last publish until no event is left in the outbox.
pub const LET_GO_MS: &str = "let_go_ms";
/// Dead rows in tables of the outbox that the server's statistics know of, once nobody needs any of the events.
pub const DEAD_ROWS: &str = "dead_rows";
/// The same as counted in the tables themselves, where the server has `pgstattuple`.
pub const DEAD_ROWS_COUNTED: &str = "dead_rows_counted";
/// Rows of the log taken in.
pub const CHANGES_PER_SECOND: &str = "changes_per_second";
/// CPU of what consumed the log: the broker, or `pg_recvlogical`.
pub const CONSUMER_CPU_SECONDS: &str = "consumer_cpu_seconds";
/// CPU of the walsender that fed it.
pub const WALSENDER_CPU_SECONDS: &str = "walsender_cpu_seconds";
/// The longest time that a waiter of a steady stream received nothing.
pub const LONGEST_GAP_MS: &str = "longest_gap_ms";
/// Long-polls answered.
pub const POLLS_PER_SECOND: &str = "polls_per_second";
/// Connections that were made and given up.
pub const RECONNECTS_PER_SECOND: &str = "reconnects_per_second";

/// What tells runs of one scenario apart.
pub mod label {
    /// `wake`: events held until their rows can be read (the default).
    pub const VISIBLE: &str = "visible";
    /// `wake`: events sent on as they come.
    pub const FAST: &str = "fast";
    /// `idle`: with the heartbeats that keep proxies from cutting silent streams.
    pub const HEARTBEATS: &str = "with heartbeats";
    /// `idle`: long-polls that are answered with nothing and ask again.
    pub const ASKING: &str = "asking again";
    /// `storm`: all clients wait for one event, instead of each for one of its own.
    pub const ONE_TOPIC: &str = "one topic";
    /// `commit` and `sources`: a statement that tells nobody.
    pub const NOOP: &str = "no-op";
    /// `commit`: a bare `pg_logical_emit_message`.
    pub const MESSAGE: &str = "pg_logical_emit_message";
    /// `commit`: the function that applications call.
    pub const PUBLISH: &str = "walcast.publish";
    /// `commit`: the function that stands in for `pg_notify`.
    pub const STAND_IN: &str = "walcast.notify";
    /// `commit` and `sources`: what walcast replaces.
    pub const NOTIFY: &str = "pg_notify";
    /// `commit`: the same while clients wait, through a broker.
    pub const PUBLISH_IN_USE: &str = "walcast.publish, clients wait";
    /// `commit` and `sources`: the same while clients listen.
    pub const NOTIFY_IN_USE: &str = "pg_notify, clients listen";
    /// `sources`: the insert is all.
    pub const NOTHING: &str = "no second statement";
    /// `sources`: the function that applications call, by the write-ahead log.
    pub const PUBLISH_WAL: &str = "walcast.publish, wal";
    /// `sources`: the same by the outbox.
    pub const PUBLISH_OUTBOX: &str = "walcast.publish, outbox";
    /// `sources`: the function by the write-ahead log while clients wait, through a broker.
    pub const PUBLISH_WAL_IN_USE: &str = "walcast.publish, wal, clients wait";
    /// `sources`: the same by the outbox.
    pub const PUBLISH_OUTBOX_IN_USE: &str = "walcast.publish, outbox, clients wait";
    /// `sources`: a steady stream, delivered out of the write-ahead log.
    pub const WAL: &str = "wal";
    /// `sources`: the same out of the outbox.
    pub const OUTBOX: &str = "outbox";
    /// `sources`: single events, each behind a silence.
    pub const BEHIND_SILENCE: &str = "outbox, behind a silence";
    /// `sources`: very many events, and what is left of them.
    pub const EMPTIED: &str = "outbox, emptied";
    /// `slow`: the good readers alone.
    pub const GOOD: &str = "alone";
    /// `slow`: the good readers beside stalled ones.
    pub const STALLED: &str = "beside stalled ones";
    /// `stall`: the huge transaction's table is published.
    pub const PUBLISHED: &str = "published";
    /// `stall`: it is not.
    pub const UNPUBLISHED: &str = "unpublished";
}
