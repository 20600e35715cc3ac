//! `walcast tail`: events as they come, one line each.
//!
//! It must never pass over a gap in silence: a reset is printed where it happened.

use std::fmt::Write as _;
use std::future::Future;
use std::io::{self, Write};

use serde::Serialize;
use walcast_client::wire::{Op, Reset, TopicPattern};
use walcast_client::{After, Event, EventsRequest, Message, Stream, Transport};

use super::access::Access;
use super::exit::{self, Failure};

/// Print events as they come.
///
/// Without --after, state topics start with their current value, other topics with the next event.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  walcast tail vm/host-17
  walcast tail 'vm/*' jobs/done --json | jq .data
  walcast tail '**' --after earliest --transport ws
  walcast tail vm/host-17 --url https://broker:8480 --token-file /run/secrets/walcast

When the broker stops or restarts, tail ends with 69 and names the cursor to go on from, by --after.

With --json each line is an event; where events may be missing, a line {\"reset\": {\"reason\", \"resume\"}}.

Exit codes: 0 ended by Ctrl-C or --limit, 64 wrong usage, 69 broker not available, 77 not allowed, 1 anything else.")]
pub struct Args {
    /// Topics, or patterns: `*` is one segment, a final `**` the rest.
    #[arg(required = true, value_name = "TOPIC")]
    topics: Vec<TopicPattern>,
    #[command(flatten)]
    access: Access,
    /// How to wait: poll, sse or ws.
    #[arg(long, default_value = "sse")]
    transport: Transport,
    /// Where to start: a cursor, `now` or `earliest`.
    #[arg(long, value_name = "CURSOR")]
    after: Option<After>,
    /// One JSON object a line, as the broker sent it.
    #[arg(long)]
    json: bool,
    /// End after this many events.
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
}

/// Prints events to `out`, coloured if it is a terminal, and remarks to `remarks`, until `shutdown`
/// completes.
///
/// # Errors
/// The broker refused, cannot be reached, or ended the stream.
pub async fn run(
    args: &Args,
    terminal: bool,
    out: &mut impl Write,
    remarks: &mut impl Write,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Failure> {
    let style = match (args.json, terminal) {
        (true, _) => Style::Json,
        (false, true) => Style::Colour,
        (false, false) => Style::Plain,
    };
    tokio::select! {
        ended = follow(args, style, out, remarks) => ended,
        () = shutdown => Ok(()),
    }
}

async fn follow(
    args: &Args,
    style: Style,
    out: &mut impl Write,
    remarks: &mut impl Write,
) -> Result<(), Failure> {
    let request = EventsRequest::new(args.topics.iter().cloned()).after(args.after.unwrap_or_default());
    let mut stream = args.access.client()?.open(args.transport, request).await?;
    let mut left = args.limit.unwrap_or(u64::MAX);
    while left > 0 {
        let message = stream.next().await.map_err(|error| resumable(error.into(), &stream))?;
        let line = match message {
            Some(Message::Event(event)) => {
                left -= 1;
                style.event(&event)
            }
            Some(Message::Reset(reset)) if matches!(style, Style::Json) => json(&ResetLine { reset }),
            Some(Message::Reset(reset)) => {
                // A remark that cannot be shown must not end the events.
                let _ = writeln!(remarks, "walcast: events may be missing here ({})", reset.reason.code());
                continue;
            }
            Some(Message::Subscribed { .. }) => continue,
            Some(Message::Refused { code, detail }) => {
                return Err(resumable(Failure::refused(code, &detail), &stream));
            }
            Some(Message::Bye { .. }) | None => {
                let failure = Failure::new(exit::UNAVAILABLE, "the broker ended the stream");
                return Err(resumable(failure, &stream));
            }
        };
        match writeln!(out, "{line}").and_then(|()| out.flush()) {
            Ok(()) => {}
            // Whoever read us has read enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            Err(error) => return Err(Failure::new(exit::OTHER, format!("cannot write: {error}"))),
        }
    }
    Ok(())
}

/// With it, where to go on once the broker is back, if it named a place.
fn resumable(mut failure: Failure, stream: &Stream) -> Failure {
    if let Some(cursor) = stream.subscription().cursor()
        && failure.code == exit::UNAVAILABLE
    {
        let _ = write!(failure.message, "; go on with --after {cursor}");
    }
    failure
}

#[derive(Serialize)]
struct ResetLine {
    reset: Reset,
}

/// A line of JSON. These types have no state that cannot be written.
fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

/// How an event becomes a line.
#[derive(Clone, Copy)]
enum Style {
    Json,
    Plain,
    Colour,
}

impl Style {
    fn event(self, event: &Event) -> String {
        if matches!(self, Self::Json) {
            return json(event);
        }
        let paint = |colour: &str, text: &str| match self {
            Self::Colour => format!("\x1b[{colour}m{text}\x1b[0m"),
            Self::Json | Self::Plain => text.to_owned(),
        };
        let colour = match event.op {
            Op::Insert | Op::Message => "32",
            Op::Update => "33",
            Op::Delete | Op::Truncate => "31",
            Op::Snapshot => "36",
        };
        // A value read at start has no time of its own.
        let time = format!("{:<27}", event.time.as_deref().unwrap_or("-"));
        let mut line = format!(
            "{} {} {} {}",
            paint("2", &time),
            paint("1", event.topic.as_str()),
            paint(colour, event.op.as_str()),
            printable(event.data.get()),
        );
        for (what, columns) in [("unchanged", &event.unchanged), ("omitted", &event.omitted)] {
            if !columns.is_empty() {
                let _ =
                    write!(line, " {}", paint("2", &printable(&format!("({what}: {})", columns.join(", ")))));
            }
        }
        line
    }
}

/// Control characters, which a terminal would obey, become JSON escapes.
fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            let _ = write!(out, "\\u{:04x}", u32::from(c));
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    fn event(rest: &str) -> String {
        format!(r#"{{"cursor":"{}","topic":"vm/a","op":"update",{rest}}}"#, cursor())
    }

    fn cursor() -> walcast_client::wire::Cursor {
        use walcast_client::wire::{Cursor, Epoch, Position};
        Cursor::new(Epoch(1), Position::new(5, 1))
    }

    #[test]
    fn lines() {
        let check = |style: Style, rest: &str, expected: &str| {
            let text = event(rest);
            assert_eq!(style.event(&serde_json::from_str(&text).unwrap()), expected);
        };
        let rest = r#""data":{"pin":1},"time":"2026-11-21T18:52:00.123456Z","unchanged":["logs"]"#;
        check(Style::Plain, rest, r#"2026-11-21T18:52:00.123456Z vm/a update {"pin":1} (unchanged: logs)"#);
        check(Style::Json, rest, &event(rest));
        check(Style::Plain, "\"data\":\"\u{9b}2J\"", r#"-                           vm/a update "\u009b2J""#);
        check(
            Style::Colour,
            r#""data":1,"time":"2026-11-21T18:52:00.123456Z""#,
            "\x1b[2m2026-11-21T18:52:00.123456Z\x1b[0m \x1b[1mvm/a\x1b[0m \x1b[33mupdate\x1b[0m 1",
        );
    }

    /// A broker that answers each long-poll with the next of `bodies`, and then holds.
    async fn broker(bodies: Vec<(&'static str, String)>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            for (head, body) in bodies {
                assert_ne!(stream.read(&mut [0; 4096]).await.unwrap(), 0);
                let answer = format!("HTTP/1.1 {head}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
            pending::<()>().await;
        });
        url
    }

    fn args(url: String, json: bool, limit: Option<u64>) -> Args {
        let topics = vec!["vm/a".parse().unwrap()];
        Args {
            topics,
            access: Access::to(url),
            transport: Transport::Poll,
            after: Some(After::Now),
            json,
            limit,
        }
    }

    fn page(events: &[String]) -> String {
        format!(r#"{{"cursor":"{}","events":[{}]}}"#, cursor(), events.join(","))
    }

    #[tokio::test]
    async fn events_and_resets_in_order_up_to_the_limit() {
        let one = event(r#""data":1"#);
        let lost =
            format!(r#"{{"title":"t","status":410,"code":"gap","detail":"d","resume":"{}"}}"#, cursor());
        let script = || {
            vec![
                ("200 OK", page(std::slice::from_ref(&one))),
                ("410 Gone", lost.clone()),
                ("200 OK", page(std::slice::from_ref(&one))),
            ]
        };
        let (mut out, mut remarks) = (Vec::new(), Vec::new());
        let wanted = args(broker(script()).await, true, Some(2));
        run(&wanted, false, &mut out, &mut remarks, pending()).await.unwrap();
        let reset = format!(r#"{{"reset":{{"reason":"gap","resume":"{}"}}}}"#, cursor());
        assert_eq!(String::from_utf8(out).unwrap(), format!("{one}\n{reset}\n{one}\n"));
        assert!(remarks.is_empty());

        let mut out = Vec::new();
        let wanted = args(broker(script()).await, false, Some(2));
        run(&wanted, false, &mut out, &mut remarks, pending()).await.unwrap();
        assert_eq!(String::from_utf8(out).unwrap().lines().count(), 2);
        assert!(String::from_utf8(remarks).unwrap().contains("may be missing here (gap)"));
    }

    #[tokio::test]
    async fn a_drain_names_the_cursor_and_ctrl_c_is_no_failure() {
        let url = broker(vec![("200 OK\r\nretry-after: 1", page(&[]))]).await;
        let failure = run(&args(url, false, None), false, &mut Vec::new(), &mut Vec::new(), pending())
            .await
            .unwrap_err();
        assert_eq!(failure.code, exit::UNAVAILABLE);
        assert!(failure.message.contains(&format!("--after {}", cursor())), "{failure}");

        let url = broker(vec![]).await;
        run(&args(url, false, None), false, &mut Vec::new(), &mut Vec::new(), async {}).await.unwrap();
    }

    #[tokio::test]
    async fn a_reader_that_leaves_is_no_failure() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let url = broker(vec![("200 OK", page(&[event(r#""data":1"#)]))]).await;
        run(&args(url, false, None), false, &mut Closed, &mut Vec::new(), pending()).await.unwrap();
    }
}
