//! Looks again and again whether what the rules rely on is still there. A table that leaves the publication sends
//! nothing any more, and nothing says so. Once it is back, whoever follows it is told `gap`, and current values are read anew.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use walcast_wire::Position;

use super::{NodeError, Parts, check, end_of_line};
use crate::health::Part;
use crate::router::Router;
use crate::source::Retry;

/// Between two looks at the database.
const LOOK: Duration = Duration::from_secs(5);

/// Tables that sent nothing for a while.
#[derive(Debug, Default)]
struct Missed {
    tables: BTreeSet<Arc<str>>,
    /// They send again, from before this position on.
    back: Option<Position>,
}

impl Missed {
    /// Adds what sends nothing by this account of the rules.
    fn note(&mut self, router: &Router, error: &NodeError) {
        self.back = None;
        let silent = |table: &str| match error {
            NodeError::Publication(_) => true,
            NodeError::Rules(errors) => {
                errors.iter().any(|error| error.table == table && error.misses_events())
            }
            _ => false,
        };
        let tables = router.tables().map(|table| table.name);
        self.tables.extend(tables.filter(|table| silent(table)));
    }

    /// The tables of which events are missing, once the stream has told everything from before they sent again. What it told last
    /// of before would count as newer than what is read.
    fn due(&mut self, head: Position) -> Option<BTreeSet<Arc<str>>> {
        self.back.take_if(|back| head >= *back)?;
        Some(std::mem::take(&mut self.tables))
    }
}

pub(super) async fn run(parts: Arc<Parts>) -> Result<(), NodeError> {
    let mut tick = tokio::time::interval(LOOK);
    let mut missed = Missed::default();
    while parts.stop.run_until_cancelled(tick.tick()).await.is_some() {
        if !parts.hub.status().started {
            continue;
        }
        let Some(()) = parts.stop.run_until_cancelled(look(&parts, &mut missed)).await else { break };
        if let Some(tables) = missed.due(parts.hub.status().head) {
            read_anew(&parts, &tables);
        }
    }
    Ok(())
}

async fn look(parts: &Parts, missed: &mut Missed) {
    let router = Arc::clone(&parts.rules.borrow());
    match check(parts, &router).await {
        Ok(()) => {
            parts.health.well(Part::Catalog);
            if !missed.tables.is_empty() && missed.back.is_none() {
                // Where this cannot be asked, the next look asks again.
                missed.back = end_of_line(parts).await.ok();
            }
        }
        // Out of reach: the stream says so, and better.
        Err(NodeError::Source(error)) if error.retry != Retry::Never => {}
        Err(error) => {
            missed.note(&router, &error);
            let text = error.to_string();
            if parts.health.unwell(Part::Catalog, text.clone()) {
                tracing::error!("events may be missing: {text}");
            }
        }
    }
}

/// What was written while tables sent nothing no event has told. By the rules of now, which may have changed.
fn read_anew(parts: &Parts, tables: &BTreeSet<Arc<str>>) {
    parts.rules.send_if_modified(|rules| {
        let still: Vec<_> =
            rules.tables().map(|table| table.name).filter(|name| tables.contains(name)).collect();
        let Ok(anew) = rules.missing(&still) else { return false };
        if still.is_empty() {
            return false;
        }
        tracing::warn!("published as a whole again: {}; who follows it is told `gap`", still.join(", "));
        *rules = Arc::new(anew);
        true
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::router::{RuleConfig, RuleError};

    fn router() -> Router {
        let rule = |name: &str, state| RuleConfig {
            name: format!("public.{name}"),
            topic: format!("{name}/{{id}}"),
            columns: None,
            state,
            when: None,
            column_list: false,
        };
        let rules = [rule("a", true), rule("b", true), rule("plain", false)];
        Router::new(&rules, crate::router::Config::default()).unwrap()
    }

    fn wrong(table: &str, key: &'static str) -> RuleError {
        RuleError { table: table.into(), key, cause: String::new(), remedy: String::new() }
    }

    #[test]
    fn what_sent_nothing_is_read_anew_and_nothing_else() {
        let check = |error: NodeError, expected: &[&str]| {
            let mut missed = Missed::default();
            missed.note(&router(), &error);
            let tables: Vec<_> = missed.tables.iter().map(|table| &**table).collect();
            assert_eq!(tables, expected, "{error}");
        };
        check(NodeError::Publication("filtered".into()), &["public.a", "public.b", "public.plain"]);
        check(NodeError::Rules(vec![wrong("public.b", "name")]), &["public.b"]);
        check(
            NodeError::Rules(vec![wrong("public.b", "columns"), wrong("public.a", "topic")]),
            &["public.b"],
        );
        check(NodeError::Rules(vec![wrong("public.plain", "name")]), &["public.plain"]);
        let refused = crate::source::SourceError { message: "53300".into(), retry: Retry::Never };
        check(NodeError::Source(refused), &[]);
    }

    #[test]
    fn the_stream_first_tells_what_came_before() {
        let mut missed = Missed::default();
        let fault = NodeError::Publication(String::new());
        missed.note(&router(), &fault);
        missed.back = Some(Position::before(100));
        assert_eq!(missed.due(Position::before(99)), None);
        // Gone again before the stream came there.
        missed.note(&router(), &fault);
        assert_eq!(missed.due(Position::before(100)), None);
        missed.back = Some(Position::before(200));
        assert_eq!(missed.due(Position::before(200)).map(|tables| tables.len()), Some(3));
        assert_eq!(missed.due(Position::before(300)), None, "once");
    }
}
