//! `--print-sql`: the plan as text for psql, grouped by who runs it.

use std::fmt::Write;

use super::plan::{Action, Step, Who};
use super::{SetupOptions, statements, tries};
use crate::source::SourceKind;

/// Whose statements are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Audience {
    /// Everybody's, in the order in which they are run.
    All,
    /// The database administrator's: server parameters and roles.
    Dba,
    /// Those of the owner of the tables, who may also create a schema in the database.
    Owner,
    /// Those of the broker's role, which has REPLICATION.
    Broker,
}

const STOP_AT_ERRORS: &str = "\\set ON_ERROR_STOP on\nSET search_path = pg_catalog;\n";

/// What the database administrator has to do.
#[derive(Clone, Debug, Default)]
pub(super) struct Dba {
    /// What is wrong with the server, with the remedies. `None`: nobody looked.
    pub(super) problems: Option<Vec<String>>,
    /// Attributes that the broker's role lacks.
    pub(super) lacks: Vec<&'static str>,
}

impl Dba {
    /// What is to be done where nobody can look.
    pub(super) fn unseen(options: &SetupOptions) -> Self {
        let lacks: &[_] = match (options.kind, &options.broker_role) {
            (_, None) => &[],
            (SourceKind::Wal, Some(_)) => &["LOGIN", "REPLICATION"],
            (SourceKind::Outbox, Some(_)) => &["LOGIN"],
        };
        Self { problems: None, lacks: lacks.to_vec() }
    }
}

/// The text; only comments where an audience has nothing to do.
pub(super) fn render(options: &SetupOptions, steps: &[Step], dba: &Dba, audience: Audience) -> String {
    let wants = |who| audience == Audience::All || audience == who;
    let mut text = String::new();
    if wants(Audience::Dba) {
        text.push_str(&administrator(options, dba));
    }
    if options.kind == SourceKind::Outbox {
        return text + &outbox(options, steps, audience);
    }
    // What the owner does when the slot is there.
    let slot = steps.iter().rposition(|step| step.who == Who::Broker).map_or(0, |at| at + 1);
    let (steps, last) = steps.split_at(if slot == 0 { steps.len() } else { slot });
    if wants(Audience::Owner) {
        text.push_str("\n-- 2. Run by the owner of the published tables, with CREATE on the database.\n");
        section(options, steps, Who::Owner, &mut text);
    }
    if wants(Audience::Broker) {
        text.push_str(
            "\n-- 3. Run by the broker's role, or another one with REPLICATION. The last statement\n",
        );
        text.push_str("--    waits until the transactions that are open now have ended.\n");
        section(options, steps, Who::Broker, &mut text);
    }
    if wants(Audience::Owner) && !last.is_empty() {
        text.push_str("\n-- 4. Run by the owner again, once the broker's statements were run.\n");
        section(options, last, Who::Owner, &mut text);
    }
    text
}

/// All of it is the owner's, and one transaction, as setup does it.
fn outbox(options: &SetupOptions, steps: &[Step], audience: Audience) -> String {
    let wants = |who| audience == Audience::All || audience == who;
    let mut text = String::new();
    if wants(Audience::Owner) {
        text.push_str("\n-- 2. Run by the owner of the published tables, with CREATE on the database.\n");
        if steps.is_empty() {
            text.push_str("-- Nothing to do.\n");
        } else {
            text.push_str("\\set ON_ERROR_STOP on\nBEGIN;\n");
            for setting in statements::transaction(options.lock_timeout) {
                let _ = writeln!(text, "{setting};");
            }
            // As setup does it, but for the tries.
            text.push_str("-- If a lock is refused, nothing is done: run it again.\n");
            let _ =
                writeln!(text, "{};", statements::lock_timeout(options.lock_timeout.min(tries::WAIT_MAX)));
            for step in steps {
                let _ = write!(text, "\n-- {}\n", step.what);
                if let Action::Transaction(sql) = &step.action {
                    sql.iter().for_each(|statement| text.push_str(&format!("{statement};\n")));
                }
            }
            text.push_str("COMMIT;\n");
        }
    }
    if wants(Audience::Broker) {
        text.push_str("\n-- 3. Run by the broker's role.\n-- Nothing to do.\n");
    }
    text
}

const PARAMETERS: &str = "\
    --    Server parameters; on a managed service they are set in its console:
--      wal_level = logical                (needs a restart)
--      max_replication_slots              (two free ones; needs a restart)
--      max_wal_senders                    (one free; needs a restart)
--      max_slot_wal_keep_size = 10GB      (any limit that the disk holds, not -1)
";

fn administrator(options: &SetupOptions, dba: &Dba) -> String {
    let mut text = String::new();
    match &dba.problems {
        Some(problems) => problems.iter().for_each(|problem| text.push_str(&format!("--    {problem}\n"))),
        None if options.kind == SourceKind::Wal => text.push_str(PARAMETERS),
        None => {}
    }
    if let Some(role) = options.broker_role.as_ref().filter(|_| !dba.lacks.is_empty()) {
        let role = statements::ident(role);
        if dba.lacks.contains(&"REPLICATION") {
            let _ = write!(
                text,
                "--    The broker's role; on a managed service grant it the service's replication role\n\
                 --    instead, such as GRANT rds_replication TO {role}.\n"
            );
        }
        let _ = write!(text, "\\set ON_ERROR_STOP on\nALTER ROLE {role} {};\n", dba.lacks.join(" "));
    }
    if text.is_empty() {
        text.push_str("-- Nothing to do.\n");
    }
    format!("-- 1. Run by the database administrator.\n{text}")
}

fn section(options: &SetupOptions, steps: &[Step], who: Who, text: &mut String) {
    let mut steps = steps.iter().filter(|step| step.who == who).peekable();
    if steps.peek().is_none() {
        text.push_str("-- Nothing to do.\n");
        return;
    }
    text.push_str(STOP_AT_ERRORS);
    for step in steps {
        let _ = write!(text, "\n-- {}\n{}", step.what, action(options, &step.action));
    }
}

fn action(options: &SetupOptions, action: &Action) -> String {
    let transaction = |sql: &[String]| {
        let mut text = String::from("BEGIN;\n");
        sql.iter().for_each(|statement| text.push_str(&format!("{statement};\n")));
        text + "COMMIT;\n"
    };
    match action {
        Action::Transaction(sql) => transaction(sql),
        Action::DropLostSlot => format!("{};\n", statements::drop_slot(&options.source)),
        Action::CreateSlot { version: Some(version) } => {
            format!("{};\n", statements::create_slot(&options.source, *version >= 170_000))
        }
        Action::CreateSlot { version: None } => format!(
            "SELECT current_setting('server_version_num')::int >= 170000 AS has_failover_slots \\gset\n\
             \\if :has_failover_slots\n{};\n\\else\n{};\n\\endif\n",
            statements::create_slot(&options.source, true),
            statements::create_slot(&options.source, false)
        ),
    }
}
