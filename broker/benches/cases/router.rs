//! The router: one change of a transaction becomes an event.

use std::hint::black_box;
use std::sync::Arc;

use walcast::router::{Config, Router, Routing, RuleConfig};

use super::Operation;
use super::pgoutput::{Encode, Stream};

/// Three of six columns, kept as the topic's current value.
fn rule() -> RuleConfig {
    RuleConfig {
        name: "public.vms".into(),
        topic: "vm/{hostname}".into(),
        columns: Some(["hostname", "crdcommand", "pin"].map(String::from).into()),
        state: true,
        when: None,
        column_list: false,
    }
}

/// Routes a transaction of this change again and again.
pub(super) fn route(change: Encode) -> Operation {
    let router = Arc::new(Router::new(&[rule()], Config::default()).expect("a rule"));
    let mut routing = Routing::new(Arc::clone(&router));
    let part = Stream::of(change).read();
    let mut entries = Vec::new();
    Box::new(move || {
        routing.begin(&router);
        entries.clear();
        for change in &part.changes {
            routing.route(&part.commit, black_box(change), &mut entries);
        }
        assert_eq!(black_box(&entries).len(), 1, "one change, one event");
    })
}
