//! Whether this session's role may take every step of teardown. Asked before the first of them: a slot that is gone
//! while the rest stays is neither set up nor taken down.

use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::{SLOTS, TeardownOptions};
use crate::cli::setup::statements::drop_slot;
use crate::cli::setup::{SetupError, replication_denied};

/// # Errors
/// All that the role may not do, and who may.
pub(super) async fn refuse(client: &Client, options: &TeardownOptions) -> Result<(), SetupError> {
    let failed = |error| SetupError::from_postgres("looking at what the role may do", &error);
    let sql = format!("SELECT count(*), current_user::text FROM ({SLOTS}) s");
    let row = client.query_typed_one(&sql, &[(&options.source, Type::TEXT)]).await.map_err(failed)?;
    let (slots, role): (i64, String) = (row.get(0), row.get(1));
    let slots = slots > 0;
    let mut lacks = Vec::new();
    if slots && replication_denied(client).await {
        lacks.push(format!("dropping slot {} needs REPLICATION", options.source));
    }
    for row in client.query_typed(&sessions(), &[(&options.source, Type::TEXT)]).await.map_err(failed)? {
        let (pid, owner): (i32, String) = (row.get(0), row.get(1));
        lacks.push(format!(
            "ending the broker's session, pid {pid}, needs its role, {owner}: stop the broker"
        ));
    }
    let mut owners: Vec<String> = Vec::new();
    let mut objects =
        client.query_typed(OWNED, &[(&options.publication, Type::TEXT)]).await.map_err(failed)?;
    if objects.is_empty() {
        let sql = "SELECT to_regclass('walcast.granted') IS NOT NULL";
        if client.query_typed_one(sql, &[]).await.map_err(failed)?.get(0) {
            objects = client.query_typed(GRANTS, &[]).await.map_err(failed)?;
        }
    }
    for row in objects {
        let (what, owner): (String, String) = (row.get(0), row.get(1));
        lacks.push(format!("{what} needs its owner, {owner}"));
        if !owners.contains(&owner) {
            owners.push(owner);
        }
    }
    if lacks.is_empty() {
        return Ok(());
    }
    let (statement, owners) = (drop_slot(&options.source), owners.join(" and "));
    let other_way = match (slots, owners.is_empty()) {
        (true, true) => format!("first run {statement} as the broker's role"),
        (true, false) => format!("first run {statement} as the broker's role, then teardown as {owners}"),
        (false, _) => format!("as {owners}"),
    };
    Err(SetupError::Denied(format!(
        "nothing was removed, for role {role} may not do all of it: {}; run teardown as a superuser, or {other_way}",
        lacks.join("; ")
    )))
}

/// Sessions that hold a slot and that this role cannot end.
fn sessions() -> String {
    format!(
        "SELECT s.active_pid, r.rolname::text FROM ({SLOTS}) s JOIN pg_stat_activity a ON a.pid = s.active_pid
             JOIN pg_roles r ON r.oid = a.usesysid
         WHERE NOT ((SELECT rolsuper FROM pg_roles WHERE rolname = current_user) OR NOT r.rolsuper
             AND (pg_has_role(r.oid, 'USAGE') OR pg_has_role('pg_signal_backend', 'USAGE')))"
    )
}

/// What only its owner may drop. The owner of the schema may drop what is in it.
const OWNED: &str =
    "SELECT 'dropping publication ' || pubname, pg_get_userbyid(pubowner)::text FROM pg_publication
        WHERE pubname = $1 AND NOT pg_has_role(pubowner, 'USAGE')
    UNION ALL SELECT 'dropping the schema ' || nspname, pg_get_userbyid(nspowner)::text FROM pg_namespace AS n
        WHERE (nspname = 'walcast' OR nspname = 'walcast_compat' AND EXISTS (SELECT FROM pg_proc WHERE pronamespace = n.oid
                AND proname = 'pg_notify' AND strpos(prosrc, 'walcast.notify') > 0))
            AND NOT pg_has_role(nspowner, 'USAGE')
    UNION ALL SELECT DISTINCT 'dropping triggers of ' || c.oid::regclass, pg_get_userbyid(c.relowner)::text
        FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_proc p ON p.oid = t.tgfoid
        WHERE p.pronamespace = to_regnamespace('walcast') AND starts_with(p.proname::text, 'rows_')
            AND t.tgparentid = 0 AND NOT pg_has_role(c.relowner, 'USAGE')";

/// What this role cannot revoke.
const GRANTS: &str = "SELECT format('revoking %s ON %s %s', privilege, kind, object), pg_get_userbyid(
            CASE kind WHEN 'SCHEMA' THEN (SELECT nspowner FROM pg_namespace WHERE oid = to_regnamespace(object))
            ELSE (SELECT relowner FROM pg_class WHERE oid = to_regclass(object)) END)::text
    FROM walcast.granted g WHERE EXISTS (SELECT FROM pg_roles r WHERE r.rolname = g.role)
        AND NOT CASE kind
            WHEN 'SCHEMA' THEN has_schema_privilege(to_regnamespace(object), privilege || ' WITH GRANT OPTION')
            ELSE has_table_privilege(to_regclass(object), privilege || ' WITH GRANT OPTION') END";
