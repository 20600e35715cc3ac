//! Listens over redis-rs.
//!
//! One connection that speaks RESP3: what is heard and what is answered come in one order.

use std::sync::Arc;

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, ErrorKind, ProtocolVersion, PushInfo, PushKind, RedisError, Value,
};

use super::inbox::{Inbox, inbox};
use super::link::{ANSWER_MAX, Answer, Ask, Dial, Fault, Line};
use super::names::Names;

impl Dial for Client {
    fn open(&self, names: &Names) -> Answer<Line> {
        let info = self.get_connection_info().clone();
        let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
        let client = Client::open(info.set_redis_settings(settings));
        let (channels, globs) = (names.channels.clone(), names.globs.clone());
        Box::pin(async move {
            let (inbox, outlet) = inbox();
            let config = AsyncConnectionConfig::new()
                .set_connection_timeout(Some(ANSWER_MAX))
                .set_response_timeout(Some(ANSWER_MAX))
                .set_push_sender(move |push| {
                    hear(&inbox, push);
                    Ok::<_, ()>(())
                });
            let client = client.map_err(fault)?;
            let connection = client.get_multiplexed_async_connection_with_config(&config).await;
            let mut connection = connection.map_err(fault)?;
            if !channels.is_empty() {
                connection.subscribe(channels).await.map_err(fault)?;
            }
            if !globs.is_empty() {
                connection.psubscribe(globs).await.map_err(fault)?;
            }
            Ok(Line::new(outlet, Arc::new(Connected(connection))))
        })
    }
}

/// The payload is what comes last.
fn hear(inbox: &Inbox, mut push: PushInfo) {
    match (&push.kind, push.data.pop()) {
        (PushKind::Message | PushKind::PMessage, Some(Value::BulkString(payload))) => inbox.put(payload),
        (PushKind::Disconnection, _) => inbox.close(),
        _ => {}
    }
}

struct Connected(MultiplexedConnection);

impl Ask for Connected {
    fn meta(&self, key: &str) -> Answer<[Option<String>; 3]> {
        let mut command = redis::cmd("HMGET");
        command.arg(key).arg(&["version", "epoch", "head"]);
        let mut connection = self.0.clone();
        Box::pin(async move {
            let (version, epoch, head) = command.query_async(&mut connection).await.map_err(fault)?;
            Ok([version, epoch, head])
        })
    }

    fn ping(&self) -> Answer<()> {
        let mut connection = self.0.clone();
        Box::pin(async move {
            let pong: Result<Value, _> = redis::cmd("PING").query_async(&mut connection).await;
            pong.map(|_| ()).map_err(fault)
        })
    }
}

fn fault(error: RedisError) -> Fault {
    let refused = matches!(error.kind(), ErrorKind::AuthenticationFailed | ErrorKind::InvalidClientConfig)
        || matches!(error.code(), Some("NOAUTH" | "WRONGPASS" | "NOPERM" | "NOPROTO"));
    if refused { Fault::Lasting(error.to_string()) } else { Fault::Mends(error.to_string()) }
}
