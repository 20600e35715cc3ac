//! `walcast shadow`: listens on a channel and follows a topic, and says where the two differ.
//!
//! It publishes nothing and changes nothing, so it may run beside a fleet for as long as it takes to trust walcast. It must
//! never call something missed that only came late.

mod ears;
mod pairs;
mod report;
mod shelf;

use std::future::{Future, pending};
use std::io::Write;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tokio_postgres::types::PgLsn;
use walcast_client::wire::topic::encode_segment;
use walcast_client::wire::{Op, Topic, TopicPattern};
use walcast_client::{After, Event, EventsRequest, Update, Updates};

use self::ears::{Ears, Heard};
use self::pairs::{Missed, Pairs};
pub use self::report::Report;
use self::report::{Cuts, progress};
use self::shelf::Side;
use super::access::Access;
use super::exit::{self, Failure};
use super::settings::Settings;
use crate::postgres::ConnectErrorKind;

/// How much may wait for its counterpart; what is missed is remembered as far.
const ITEMS_MAX: usize = 100_000;
/// Of what is missed so many are told at once. The report counts all.
const TOLD_MAX: u64 = 20;
/// Between two looks at what is overdue.
const LOOK: Duration = Duration::from_millis(100);
/// As Postgres has it: a longer name would be cut, and another channel listened on.
const CHANNEL_BYTES_MAX: usize = 63;

/// Compare LISTEN/NOTIFY with walcast, beside a running fleet.
///
/// Listens on a channel and follows a topic at the same time, and reports what came by one of them only, and which was
/// first.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  walcast shadow --channel jobs                         # beside topic jobs, where walcast.notify publishes
  walcast shadow --channel jobs --topic jobs --for 1h --json
  walcast shadow --channel jobs --limit 1000            # until 1000 came both ways

What walcast missed was sent around it: by a NOTIFY statement, by pg_catalog.pg_notify, or by a function with a
search_path of its own. The connection has to be one to the server itself: no pooler in transaction mode can listen.

What NOTIFY missed while its session was cut off is counted by itself, and is no difference: that is what NOTIFY does.

Exit codes: 0 nothing differed, 2 something did, 64 wrong usage, 69 Postgres or the broker not available,
77 not allowed, 1 anything else.")]
pub struct Args {
    #[command(flatten)]
    settings: Settings,
    /// Channel to listen on, as it is written, upper and lower case
    #[arg(long, value_name = "CHANNEL", value_parser = channel)]
    channel: String,
    /// Topic to follow; without it, the one on which walcast.notify publishes for the channel
    #[arg(long, value_name = "TOPIC")]
    topic: Option<Topic>,
    #[command(flatten)]
    access: Access,
    /// How long to compare; without it, until Ctrl-C
    #[arg(long = "for", value_name = "DURATION", value_parser = humantime::parse_duration)]
    duration: Option<Duration>,
    /// How much later one may come than the other before it counts as missed
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = humantime::parse_duration)]
    window: Duration,
    /// End once so many came both ways
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// Report as one line of JSON
    #[arg(long)]
    json: bool,
}

fn channel(text: &str) -> Result<String, String> {
    match text.len() {
        0 => Err("a channel has at least one character".into()),
        1..=CHANNEL_BYTES_MAX if !text.contains('\0') => Ok(text.to_owned()),
        _ => Err(format!("a channel has at most {CHANNEL_BYTES_MAX} bytes, none of them zero")),
    }
}

/// Compares until `shutdown` completes, or as long as the arguments say, and reports to `out`. Remarks go to `remarks`,
/// with a line of progress if that is a terminal.
///
/// # Errors
/// Something differed; or Postgres or the broker cannot be reached at first, or refuses.
pub async fn run(
    args: &Args,
    terminal: bool,
    out: &mut impl Write,
    remarks: &mut impl Write,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Failure> {
    let mut shadow = Shadow::start(args).await?;
    let mut remarks = Remarks { out: remarks, terminal, told: 0 };
    remarks.say(&format!(
        "listening on {:?} and following {}; Ctrl-C ends it with a report",
        args.channel, shadow.topic
    ));
    shadow.compare(args, &mut remarks, shutdown).await?;
    remarks.progress("");
    let report = shadow.report(args);
    let text = if args.json {
        serde_json::to_string(&report).unwrap_or_default() + "\n"
    } else {
        report.to_string()
    };
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(|error| Failure::new(exit::OTHER, format!("cannot write: {error}")))?;
    if report.differs { Err(Failure::new(exit::DIFFERS, report.difference())) } else { Ok(()) }
}

/// A comparison that goes on.
struct Shadow {
    topic: Topic,
    ears: Ears,
    updates: Updates,
    pairs: Pairs,
    cuts: Cuts,
    started: Instant,
}

impl Shadow {
    async fn start(args: &Args) -> Result<Self, Failure> {
        if args.window.is_zero() {
            return Err(Failure::new(
                exit::USAGE,
                "--window: nothing arrives in no time; name some, such as 5s",
            ));
        }
        let topic = match &args.topic {
            Some(topic) => topic.clone(),
            None => Topic::new(&encode_segment(&args.channel))
                .map_err(|error| Failure::new(exit::USAGE, format!("--channel: {error}; name a --topic")))?,
        };
        let config = args.settings.load()?;
        let target =
            config.target().map_err(|error| Failure::new(exit::USAGE, format!("postgres.url: {error}")))?;
        let client = args.access.client()?;
        // Behind this place the client misses nothing, and the session begins to listen later: so whatever comes to the
        // session comes to both.
        let mut request = EventsRequest::new([TopicPattern::from(topic.clone())]).after(After::Now);
        request.wait = Some(Duration::ZERO);
        let place = client.poll(&request).await?.cursor;
        let started = Instant::now();
        let (ears, from) = Ears::open(target, &args.channel).await.map_err(|error| {
            let wrong = error.kind == ConnectErrorKind::Configuration;
            Failure::new(if wrong { exit::USAGE } else { exit::UNAVAILABLE }, error.to_string())
        })?;
        let updates = client.subscribe([topic.as_str()]).after(place).named("walcast shadow").stream();
        let mut pairs = Pairs::new(args.window, ITEMS_MAX);
        pairs.back(started.elapsed(), from);
        Ok(Self { topic, ears, updates, pairs, cuts: Cuts::default(), started })
    }

    async fn compare(
        &mut self,
        args: &Args,
        remarks: &mut Remarks<'_, impl Write>,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), Failure> {
        let mut shutdown = std::pin::pin!(shutdown);
        let mut end = args.duration.and_then(|duration| self.started.checked_add(duration));
        let mut closing = false;
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while self.pairs.paired < args.limit.unwrap_or(u64::MAX) {
            tokio::select! {
                heard = self.ears.next() => self.hear(heard, remarks),
                update = self.updates.next() => match update {
                    Some(update) => self.take(update?, remarks),
                    None => return Err(Failure::new(exit::UNAVAILABLE, "the broker ended the stream")),
                },
                _ = look.tick() => {
                    self.look(remarks);
                    if closing && self.pairs.undecided() == 0 {
                        return Ok(());
                    }
                }
                () = until(end) => {
                    if closing {
                        self.look(remarks);
                        return Ok(());
                    }
                    // What came last has its window, too.
                    self.pairs.close();
                    (closing, end) = (true, Instant::now().checked_add(args.window));
                }
                () = &mut shutdown => return Ok(()),
            }
        }
        Ok(())
    }

    fn hear(&mut self, heard: Heard, remarks: &mut Remarks<'_, impl Write>) {
        match heard {
            Heard::Notice(notice) => {
                let at = notice.at.saturating_duration_since(self.started);
                let missed = self.pairs.came(Side::Listen, &notice.payload, at, None);
                remarks.missed(missed);
            }
            Heard::Cut(why) => {
                self.cuts.listen += 1;
                self.pairs.cut(self.started.elapsed());
                remarks.say(&format!("the session that listens is cut off, and hears nothing: {why}"));
            }
            Heard::Back(from) => {
                self.pairs.back(self.started.elapsed(), from);
                remarks.say("listening again");
            }
        }
    }

    fn take(&mut self, update: Update, remarks: &mut Remarks<'_, impl Write>) {
        match update {
            // A current value is no news.
            Update::Event(event) if event.op == Op::Snapshot => {}
            Update::Event(event) => {
                let lsn = event.lsn.as_deref().and_then(|lsn| lsn.parse::<PgLsn>().ok()).map(u64::from);
                let missed = self.pairs.came(Side::Walcast, &payload(&event), self.started.elapsed(), lsn);
                remarks.missed(missed);
            }
            Update::Reset(reset) => {
                self.cuts.resets += 1;
                remarks.say(&format!("the broker said that events may be missing ({})", reset.reason.code()));
            }
        }
    }

    /// What is overdue, and whether the client came back from a cut.
    fn look(&mut self, remarks: &mut Remarks<'_, impl Write>) {
        while let Some(missed) = self.pairs.overdue(self.started.elapsed()) {
            remarks.missed(Some(missed));
        }
        let cuts = self.updates.connections().saturating_sub(1);
        if cuts > self.cuts.walcast {
            self.cuts.walcast = cuts;
            remarks.say("the client of the broker was cut off, and goes on where it was");
        }
        remarks.progress(&progress(self.started.elapsed(), &self.pairs));
    }

    fn report(&self, args: &Args) -> Report {
        Report::new(&args.channel, self.topic.as_str(), self.started.elapsed(), &self.pairs, self.cuts)
    }
}

/// What `pg_notify` would have been told: the text of a string, and any other JSON as it is written.
fn payload(event: &Event) -> String {
    let json = event.data.get();
    serde_json::from_str(json).unwrap_or_else(|_| json.to_owned())
}

async fn until(end: Option<Instant>) {
    match end {
        Some(end) => sleep_until(end).await,
        None => pending().await,
    }
}

/// What is told while it goes on. One that cannot be shown must not end the comparison.
struct Remarks<'a, W> {
    out: &'a mut W,
    terminal: bool,
    /// Of what was missed.
    told: u64,
}

impl<W: Write> Remarks<'_, W> {
    fn say(&mut self, text: &str) {
        self.progress("");
        let _ = writeln!(self.out, "walcast: {text}").and_then(|()| self.out.flush());
    }

    fn missed(&mut self, missed: Option<Missed>) {
        let Some(Missed { by, away, sample }) = missed else { return };
        self.told += 1;
        if self.told > TOLD_MAX {
            return;
        }
        let by = match by {
            Side::Listen if away => "NOTIFY while it was cut off",
            Side::Listen => "NOTIFY",
            Side::Walcast => "walcast",
        };
        self.say(&format!("missed by {by}: {sample:?}"));
        if self.told == TOLD_MAX {
            self.say("more of what is missed is counted, and not told one by one");
        }
    }

    /// Renews the line on a terminal.
    fn progress(&mut self, text: &str) {
        if self.terminal {
            let _ = write!(self.out, "\r\x1b[K{text}").and_then(|()| self.out.flush());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_is_the_text_that_was_sent() {
        let check = |data: &str, expected: &str| {
            let text = format!(
                r#"{{"cursor":"{}","topic":"a","op":"message","data":{data}}}"#,
                walcast_client::wire::Cursor::new(
                    walcast_client::wire::Epoch(1),
                    walcast_client::wire::Position::new(5, 1)
                )
            );
            assert_eq!(payload(&serde_json::from_str(&text).unwrap()), expected);
        };
        check(r#""line\n2 \"ü\"""#, "line\n2 \"ü\"");
        check(r#""""#, "");
        check(r#"{"a":1}"#, r#"{"a":1}"#);
        check("7", "7");
    }

    #[test]
    fn a_channel_is_what_postgres_takes() {
        assert_eq!(channel("My Channel").as_deref(), Ok("My Channel"));
        assert!(channel("").is_err() && channel(&"x".repeat(64)).is_err() && channel("a\0").is_err());
    }
}
