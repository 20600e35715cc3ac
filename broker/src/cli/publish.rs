//! `walcast publish`: one message, committed when the command ends.

use std::io::Read;

use serde_json::value::RawValue;
use walcast_client::wire::Topic;

use super::access::Access;
use super::exit::{self, Failure};

/// More than any broker takes.
const INPUT_BYTES_MAX: u64 = 16 << 20;

/// Publish one message through a broker.
///
/// When the command ends with 0, the message is committed in Postgres.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  walcast publish vm/host-17 '{\"pin\": 4711}'
  walcast publish jobs/done '\"a text needs its own quotes\"'
  jq .result out.json | walcast publish jobs/done - --idempotency-key run-42

Exit codes: 0 published, 64 wrong usage, 65 wrong data, 69 broker not available, 77 not allowed, 1 anything else.")]
pub struct Args {
    /// Where to publish, such as vm/host-17.
    topic: Topic,
    /// The message; `-` reads it from standard input.
    #[arg(value_name = "JSON", allow_hyphen_values = true)]
    json: String,
    #[command(flatten)]
    access: Access,
    /// Publish once, however often the command is repeated with this key.
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
}

/// Publishes; `stdin` is read if the arguments say so.
///
/// # Errors
/// Wrong data, or the broker refused or cannot be reached.
pub async fn run(args: &Args, stdin: impl Read) -> Result<(), Failure> {
    let data = read_data(&args.json, stdin)?;
    // Whoever called decides whether to try again.
    let client = args.access.client()?;
    let mut publish = client.publish(&args.topic, &data);
    if let Some(key) = &args.idempotency_key {
        publish = publish.idempotency_key(key);
    }
    publish.await?;
    Ok(())
}

fn read_data(argument: &str, stdin: impl Read) -> Result<Box<RawValue>, Failure> {
    let mut text = argument.to_owned();
    let mut what = "the message";
    if argument == "-" {
        what = "standard input";
        text.clear();
        let read = stdin.take(INPUT_BYTES_MAX + 1).read_to_string(&mut text);
        read.map_err(|error| Failure::new(exit::DATA, format!("cannot read {what}: {error}")))?;
        if text.len() as u64 > INPUT_BYTES_MAX {
            return Err(Failure::new(exit::DATA, format!("{what} exceeds {INPUT_BYTES_MAX} bytes")));
        }
    }
    serde_json::from_str(text.trim()).map_err(|error| {
        let message = format!("{what} is not JSON: {error} (a text needs its own quotes: '\"like this\"')");
        Failure::new(exit::DATA, message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data() {
        let check = |argument: &str, stdin: &str, expected: Result<&str, &str>| match (
            read_data(argument, stdin.as_bytes()),
            expected,
        ) {
            (Ok(data), Ok(expected)) => assert_eq!(data.get(), expected),
            (Err(failure), Err(part)) => {
                assert_eq!(failure.code, exit::DATA);
                assert!(failure.message.contains(part), "{failure}");
            }
            (got, expected) => panic!("{argument:?}: {got:?}, expected {expected:?}"),
        };
        check(r#"{"a": 1}"#, "", Ok(r#"{"a": 1}"#));
        check("-1", "", Ok("-1"));
        check("-", "[1,\n2]\n", Ok("[1,\n2]"));
        check("hello", "", Err("the message is not JSON"));
        check("-", "", Err("standard input is not JSON"));
        check("{} {}", "", Err("trailing characters"));
    }

    #[tokio::test]
    async fn a_broker_that_is_not_there() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        let args = Args {
            topic: "a".parse().unwrap(),
            json: "1".to_owned(),
            access: Access::to(url),
            idempotency_key: None,
        };
        let failure = run(&args, std::io::empty()).await.unwrap_err();
        assert_eq!(failure.code, exit::UNAVAILABLE);
        assert!(failure.message.contains("walcast serve"), "{failure}");
    }
}
