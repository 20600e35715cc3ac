//! Which role is granted what.
//!
//! It must never grant a role of the application more than publishing.

use tokio_postgres::Client;

use super::statements::{self, Grant};
use super::{SetupOptions, outbox};
use crate::source::SourceKind;

/// Who was granted what setup grants to brokers alone. They stay brokers when tables are added.
pub(super) async fn read_brokers(client: &Client) -> Result<Vec<String>, tokio_postgres::Error> {
    let sql = "SELECT r.rolname::text FROM pg_class c, aclexplode(c.relacl) a JOIN pg_roles r ON r.oid = a.grantee
        WHERE c.oid = to_regclass('walcast.source') AND a.privilege_type = 'INSERT' AND a.grantee <> c.relowner
        ORDER BY r.rolname";
    Ok(client.query_typed(sql, &[]).await?.iter().map(|row| row.get(0)).collect())
}

/// All that setup grants, to the roles of the options and to those that are brokers already.
pub(super) fn wanted(options: &SetupOptions, brokers: &[String]) -> Vec<Grant> {
    let mut grants = Vec::new();
    let mut grant = |role: &str, privilege, kind, object: &str| {
        let grant = Grant { privilege, kind, object: object.into(), role: role.into() };
        if !grants.contains(&grant) {
            grants.push(grant);
        }
    };
    let brokers = || options.broker_role.iter().chain(brokers);
    for role in options.publishers.iter().chain(brokers()) {
        grant(role, "USAGE", "SCHEMA", "walcast");
        grant(role, "EXECUTE", "FUNCTION", "walcast.publish(text, jsonb)");
        grant(role, "EXECUTE", "FUNCTION", "walcast.notify(text, text)");
        // To make one segment of a topic of any text; errors of `publish` recommend it.
        grant(role, "EXECUTE", "FUNCTION", "walcast.encode_segment(text)");
    }
    for role in brokers() {
        grant(role, "EXECUTE", "FUNCTION", "walcast.publish_once(text, text, jsonb)");
        for table in ["walcast.settings", "walcast.source", statements::HISTORY] {
            grant(role, "SELECT", "TABLE", table);
        }
        match options.kind {
            SourceKind::Wal => grant(role, "SELECT", "TABLE", "walcast.key"),
            SourceKind::Outbox => {
                outbox::FUNCTIONS.iter().for_each(|function| grant(role, "EXECUTE", "FUNCTION", function));
            }
        }
        // The broker writes a new generation before it replaces a slot that was lost.
        grant(role, "INSERT", "TABLE", "walcast.source");
        grant(role, "UPDATE", "TABLE", "walcast.source");
        for table in options.tables.iter().filter(|table| table.state) {
            grant(role, "USAGE", "SCHEMA", &statements::ident(&table.schema));
            grant(role, "SELECT", "TABLE", &statements::table(&table.schema, &table.name));
        }
    }
    grants
}
