//! Listens over fred.
//!
//! One connection that speaks RESP3, without fred's own reconnecting: it would go on without a word of what was missed.

use std::sync::Arc;

use fred::clients::Client;
use fred::error::{Error, ErrorKind};
use fred::interfaces::{ClientLike, EventInterface, HashesInterface, PubsubInterface};
use fred::types::config::Config;
use fred::types::{Builder, RespVersion};
use tokio::task::{AbortHandle, JoinHandle};

use super::inbox::inbox;
use super::link::{ANSWER_MAX, Answer, Ask, Dial, Fault, Line};
use super::names::Names;

/// How many messages fred keeps for whoever passes them on at once; it drops the oldest of more.
const PASSING_MAX: usize = 4096;

impl Dial for Config {
    fn open(&self, names: &Names) -> Answer<Line> {
        let mut builder = Builder::from_config(self.clone());
        builder
            .with_config(|config| {
                config.version = RespVersion::RESP3;
                config.fail_fast = true;
            })
            .with_performance_config(|settings| {
                settings.broadcast_channel_capacity = PASSING_MAX;
                settings.default_command_timeout = ANSWER_MAX;
            })
            .with_connection_config(|settings| settings.connection_timeout = ANSWER_MAX);
        let (channels, globs) = (names.channels.clone(), names.globs.clone());
        Box::pin(async move {
            let client = builder.build().map_err(fault)?;
            let mut connection = client.init().await.map_err(fault)?;
            let mut messages = client.message_rx();
            let router = connection.abort_handle();
            let (inbox, outlet) = inbox();
            let passing = tokio::spawn(async move {
                loop {
                    tokio::select! {
                        biased;
                        message = messages.recv() => match message {
                            Ok(message) => match message.value.as_bytes() {
                                Some(payload) => inbox.put(payload.to_vec()),
                                None => continue,
                            },
                            // Some were dropped, or the client is gone.
                            Err(_) => break,
                        },
                        _ = &mut connection => break,
                    }
                }
                inbox.close();
            });
            let connected = Connected { client, router, passing };
            if !channels.is_empty() {
                connected.client.subscribe(channels).await.map_err(fault)?;
            }
            if !globs.is_empty() {
                connected.client.psubscribe(globs).await.map_err(fault)?;
            }
            Ok(Line::new(outlet, Arc::new(connected)))
        })
    }
}

struct Connected {
    client: Client,
    /// Fred's own, which holds the connection and would go on without us.
    router: AbortHandle,
    /// Passes on what is heard.
    passing: JoinHandle<()>,
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.passing.abort();
        self.router.abort();
    }
}

impl Ask for Connected {
    fn meta(&self, key: &str) -> Answer<[Option<String>; 3]> {
        let (client, key) = (self.client.clone(), key.to_owned());
        Box::pin(async move {
            let fields = vec!["version", "epoch", "head"];
            let (version, epoch, head) = client.hmget(key, fields).await.map_err(fault)?;
            Ok([version, epoch, head])
        })
    }

    fn ping(&self) -> Answer<()> {
        let client = self.client.clone();
        Box::pin(async move { client.ping::<String>(None).await.map(|_| ()).map_err(fault) })
    }
}

fn fault(error: Error) -> Fault {
    let refused = matches!(error.kind(), ErrorKind::Auth | ErrorKind::Config | ErrorKind::Url);
    let refused = refused || error.details().starts_with("NOPERM");
    if refused { Fault::Lasting(error.to_string()) } else { Fault::Mends(error.to_string()) }
}
