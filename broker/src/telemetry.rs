//! What the process tells of itself: logs on stderr, and metrics under names that are written only here.
//!
//! Nobody else sets up logging or names a metric, so that a dashboard and the code cannot disagree. Never
//! in a log, a label or a metric: passwords, tokens, row data.

use std::io::IsTerminal;
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use serde::Deserialize;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// `[log]` in the configuration.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// A level, or levels by module as `tracing`'s filters write them.
    pub level: String,
    /// For people or for machines.
    pub format: Format,
}

/// The form of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Default for Config {
    fn default() -> Self {
        Self { level: "info".into(), format: Format::Text }
    }
}

impl Config {
    /// The level as a filter.
    ///
    /// # Errors
    /// It is none.
    pub fn filter(&self) -> Result<EnvFilter, String> {
        // A lone word would be taken for a module, so that a misspelt level silences everything else.
        let lone = |part: &&str| {
            part.is_empty() || !part.contains(['=', '[']) && part.parse::<LevelFilter>().is_err()
        };
        if let Some(part) = self.level.split(',').map(str::trim).find(lone) {
            return Err(format!("`{part}` is no level"));
        }
        EnvFilter::builder()
            .parse(&self.level)
            .map_err(|error| format!("`{}` is no level: {error}", self.level))
    }
}

/// Starts logging to stderr, for the whole process. Later calls, as from several nodes in one process, are
/// without effect.
///
/// # Errors
/// The level cannot be used.
pub fn init(config: &Config) -> Result<(), String> {
    let filter = config.filter()?;
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // The only error is that logging is set up already.
    let _ = match config.format {
        Format::Text => lines.with_ansi(colour).try_init(),
        Format::Json => lines.json().with_ansi(false).try_init(),
    };
    Ok(())
}

/// The process's metrics, recorded from the first call on; all nodes of one process share them. Somebody
/// has to call [`PrometheusHandle::run_upkeep`] every few seconds, or histograms that nobody scrapes grow.
#[must_use]
pub fn metrics() -> &'static PrometheusHandle {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    HANDLE.get_or_init(|| {
        let recorder = recorder().build_recorder();
        let handle = recorder.handle();
        if metrics::set_global_recorder(recorder).is_err() {
            tracing::warn!("another metrics recorder is installed in this process; ours stays empty");
        }
        describe();
        handle
    })
}

fn recorder() -> PrometheusBuilder {
    // An empty list is the only error; on it, summaries replace histograms.
    PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), SECONDS)
        .unwrap_or_else(|_| PrometheusBuilder::new())
}

/// Upper bounds of the buckets of histograms of time.
const SECONDS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// Now, as metrics that hold a time have it.
#[must_use]
pub fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// Declares each metric once: kind, constant, name, and what it counts, which `/metrics` repeats.
macro_rules! declare {
    ($($kind:ident $constant:ident = $name:literal, $meaning:literal;)*) => {
        $(
            #[doc = concat!(stringify!($kind), ": ", $meaning)]
            pub const $constant: &str = $name;
        )*

        fn describe() {
            $(declare!(@ $kind, $constant, $meaning);)*
        }
    };
    (@ counter, $constant:ident, $meaning:literal) => { metrics::describe_counter!($constant, $meaning) };
    (@ gauge, $constant:ident, $meaning:literal) => { metrics::describe_gauge!($constant, $meaning) };
    (@ histogram, $constant:ident, $meaning:literal) => { metrics::describe_histogram!($constant, $meaning) };
}

declare! {
    counter ENDPOINT_REQUESTS_TOTAL = "walcast_endpoint_requests_total", "requests for endpoints, by how they ended";
    gauge SUBSCRIPTIONS = "walcast_subscriptions", "subscriptions now, over all transports";
    gauge HISTORY_EVENTS = "walcast_history_events", "events in memory";
    gauge HISTORY_BYTES = "walcast_history_bytes", "memory of the events";
    gauge UNCARRIED_EVENTS = "walcast_uncarried_events",
        "events of the leader that Redis, and so other brokers, do not have yet";
    gauge STATE_VALUES = "walcast_state_values", "current values of state topics";
    gauge STATE_BYTES = "walcast_state_bytes", "memory of the current values";
    gauge HEAD = "walcast_head_lsn", "LSN up to which everything has been delivered, as a number";
    counter REBUILDS_TOTAL = "walcast_rebuilds_total",
        "number lines that ended, each with a reset for every client; label reason";
    counter MESSAGES_FORGED_TOTAL = "walcast_messages_forged_total",
        "messages that claim our prefix without our key; none is delivered";
    counter ROUTER_DROPPED_TOTAL = "walcast_router_dropped_total",
        "changes that made no event although a rule covers their table; labels table, reason";
    counter ROUTER_INCOMPLETE_TOTAL = "walcast_router_incomplete_total",
        "events that lack some of what their rule publishes; labels table, reason";
    counter ROUTER_MALFORMED_TOTAL = "walcast_router_malformed_messages_total",
        "messages with our key whose content is not what walcast.publish writes; label reason";
    counter OUTBOX_TICKS_TOTAL = "walcast_outbox_ticks_total", "ticks that this broker made";
    counter OUTBOX_ROWS_TOTAL = "walcast_outbox_rows_total", "rows of the outbox that were read";
    counter OUTBOX_UNREADABLE_TOTAL = "walcast_outbox_unreadable_rows_total",
        "rows of the outbox that are not what our triggers write, and were left out; label table";
    gauge OUTBOX_LOOKED = "walcast_outbox_looked_timestamp_seconds",
        "when all that is visible in the outbox was read and handed on, since 1970; label source";
    gauge OUTBOX_LANES = "walcast_outbox_lanes", "lanes of the outbox that hold rows, of eight; label source";
    gauge OUTBOX_BYTES = "walcast_outbox_bytes",
        "what the outbox takes on the server's disk, with indexes; label source";
    gauge LEADS = "walcast_leads", "1 on a broker that reads the source, 0 on one that stands by or has no stream";
    gauge SLOT_STATUS = "walcast_slot_status",
        "whether a slot's WAL is there: 0 reserved, 1 extended, 2 unreserved, 3 lost; labels source, slot";
    gauge SLOT_SAFE_BYTES = "walcast_slot_safe_bytes",
        "bytes that may be written before a slot loses WAL; labels source, slot";
    gauge SLOT_RETAINED_BYTES = "walcast_slot_retained_bytes",
        "WAL that a slot keeps on the server's disk; labels source, slot";
    gauge SLOT_RETAINED_SECONDS = "walcast_slot_retained_seconds",
        "age of the oldest WAL that a slot keeps, as far as it was watched; labels source, slot";
    gauge SLOT_LAG_BYTES = "walcast_slot_lag_bytes",
        "WAL behind what a slot has confirmed; labels source, slot";
    gauge SLOT_LAG_SECONDS = "walcast_slot_lag_seconds",
        "how long ago the end of the WAL was what a slot has confirmed; labels source, slot";
    gauge SLOT_CATALOG_XMIN_AGE = "walcast_slot_catalog_xmin_age",
        "transactions since the oldest whose catalog rows a slot keeps from vacuum; labels source, slot";
    gauge SLOT_FAILOVER = "walcast_slot_failover",
        "1 if standbys may copy the slot, from Postgres 17 on; labels source, slot";
    gauge STANDBYS_UNSYNCED = "walcast_standbys_unsynced",
        "standbys of the connection string that have no lasting copy of the floor slot; label source";
    gauge SLOT_PRESSURE = "walcast_slot_pressure",
        "0 none, 1 the window shrinks to let WAL go, 2 the slots were given up; label source";
    gauge SLOT_KEEP_BYTES_MAX = "walcast_slot_keep_bytes_max",
        "the server's max_slot_wal_keep_size, -1 without a limit; label source";
    gauge OLDEST_TRANSACTION_SECONDS = "walcast_oldest_transaction_seconds",
        "age of the oldest transaction that writes, which WAL is kept for; 0 without one; label source";
}

/// Label: schema and name of a table.
pub const LABEL_TABLE: &str = "table";
/// Label: `source.slot` of the configuration.
pub const LABEL_SOURCE: &str = "source";
/// Label: which of the two slots, `floor` or `live`.
pub const LABEL_SLOT: &str = "slot";
/// Label: why something was counted.
pub const LABEL_REASON: &str = "reason";
/// Which endpoint: its method and path.
pub const LABEL_ENDPOINT: &str = "endpoint";
/// How something ended.
pub const LABEL_OUTCOME: &str = "outcome";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_parse_or_say_why_not() {
        let check = |level: &str, expected: bool| {
            let config = Config { level: level.into(), ..Config::default() };
            assert_eq!(config.filter().is_ok(), expected, "{level}");
        };
        check("info", true);
        check("warn,walcast::source=debug", true);
        check("off", true);
        check("debg", false);
        check("", false);
        check("walcast=loud", false);
    }

    #[test]
    fn logging_starts_once_and_again() {
        assert_eq!(init(&Config::default()), Ok(()));
        assert_eq!(init(&Config { format: Format::Json, ..Config::default() }), Ok(()));
    }

    #[test]
    fn metrics_are_one_for_the_process_and_described() {
        assert!(std::ptr::eq(metrics(), metrics()));
        metrics::counter!(MESSAGES_FORGED_TOTAL).increment(2);
        let text = metrics().render();
        assert!(text.contains("# HELP walcast_messages_forged_total messages that claim"), "{text}");
        assert!(text.contains("walcast_messages_forged_total 2"), "{text}");
    }

    #[test]
    fn times_become_buckets() {
        let recorder = recorder().build_recorder();
        metrics::with_local_recorder(&recorder, || metrics::histogram!("test_seconds").record(0.2));
        let text = recorder.handle().render();
        assert!(text.contains("test_seconds_bucket{le=\"0.25\"} 1"), "{text}");
        assert!(text.contains("test_seconds_bucket{le=\"0.1\"} 0"), "{text}");
    }
}
