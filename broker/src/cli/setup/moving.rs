//! Moving a fleet from LISTEN and NOTIFY, and back: by what `walcast.notify` is carried, and a schema whose `pg_notify`
//! stands before the one of Postgres.
//!
//! Neither changes unless it is asked for. It must never touch a schema of that name which setup did not make.

use tokio_postgres::Client;

use super::plan::{Action, Step, Who};
use super::statements::{self, Grant};
use super::{SetupError, SetupOptions};

/// By what `walcast.notify` is carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Carrier {
    /// By `pg_notify` alone.
    Notify,
    /// By `pg_notify` and by walcast.
    Both,
    /// By walcast alone.
    Walcast,
}

impl Carrier {
    /// Its name, as `walcast.settings` has it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Notify => "notify",
            Self::Both => "both",
            Self::Walcast => "walcast",
        }
    }

    /// Who hears of `walcast.notify` from now on.
    fn means(self) -> &'static str {
        match self {
            Self::Notify => "by pg_notify alone: only sessions that LISTEN hear it",
            Self::Both => "by pg_notify and by walcast: sessions that LISTEN hear it, and walcast's clients",
            Self::Walcast => "by walcast alone: sessions that LISTEN hear nothing of it any more",
        }
    }
}

/// The schema for search paths.
pub(in crate::cli) const SCHEMA: &str = "walcast_compat";

/// Its one function.
const FUNCTION: &str = "walcast_compat.pg_notify(text, text)";

/// Whether the schema is there, and is one that setup made.
pub(in crate::cli) const EXISTS: &str = "EXISTS (SELECT FROM pg_proc
    WHERE oid = to_regprocedure('walcast_compat.pg_notify(text, text)') AND strpos(prosrc, 'walcast.notify') > 0)";

/// What takes it away, if nothing else was put into it.
pub(in crate::cli) const DROP: [&str; 2] =
    ["DROP FUNCTION walcast_compat.pg_notify(text, text)", "DROP SCHEMA walcast_compat"];

/// Its body names all with a schema, as those of all functions that publishers call. It runs as its owner, so it is
/// the one thing that needs a grant. The last statement takes back what the database's default privileges gave.
const CREATE: [&str; 3] = [
    "CREATE SCHEMA walcast_compat",
    "CREATE FUNCTION walcast_compat.pg_notify(text, text) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER AS $$
BEGIN
    PERFORM walcast.notify($1, $2);
END $$",
    "DO $$
DECLARE
    revoke_all text;
BEGIN
    FOR revoke_all IN
        SELECT DISTINCT format('REVOKE ALL ON %s FROM %s', object,
            CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END)
        FROM (
            SELECT 'SCHEMA walcast_compat' AS object, n.nspowner AS owner, n.nspacl AS acl
            FROM pg_namespace AS n WHERE n.nspname = 'walcast_compat'
            UNION ALL
            SELECT 'FUNCTION walcast_compat.pg_notify(text, text)', p.proowner,
                coalesce(p.proacl, acldefault('f', p.proowner))
            FROM pg_proc AS p WHERE p.oid = 'walcast_compat.pg_notify(text, text)'::regprocedure
        ) AS objects, aclexplode(acl)
        WHERE grantee <> owner
    LOOP
        EXECUTE revoke_all;
    END LOOP;
END $$",
];

/// What there is of it.
#[derive(Clone, Debug)]
pub(super) struct Found {
    carrier: String,
    /// The schema for search paths.
    compat: bool,
    /// Roles that setup let call `walcast.notify`.
    publishers: Vec<String>,
}

impl Found {
    /// A database that knows nothing of walcast.
    pub(super) fn nothing() -> Self {
        Self { carrier: Carrier::Walcast.as_str().into(), compat: false, publishers: Vec::new() }
    }

    /// Looks; `complete`: the schema is this version's.
    pub(super) async fn read(client: &Client, complete: bool) -> Result<Self, tokio_postgres::Error> {
        let mut found = Self::nothing();
        let sql = format!("SELECT {EXISTS}");
        found.compat = client.query_typed_one(&sql, &[]).await?.try_get(0)?;
        let sql = "SELECT r.rolname::text FROM pg_proc p, aclexplode(p.proacl) a JOIN pg_roles r ON r.oid = a.grantee
            WHERE p.oid = to_regprocedure('walcast.notify(text, text)') AND a.grantee <> p.proowner
            ORDER BY r.rolname";
        for row in client.query_typed(sql, &[]).await? {
            found.publishers.push(row.try_get(0)?);
        }
        if complete
            && let Some(row) = client.query_typed_opt("SELECT carrier FROM walcast.settings", &[]).await?
        {
            found.carrier = row.try_get(0)?;
        }
        Ok(found)
    }

    /// Whether `walcast.notify` is to be carried by something else than it is.
    pub(super) fn switches(&self, options: &SetupOptions) -> bool {
        options.carrier.is_some_and(|carrier| carrier.as_str() != self.carrier)
    }

    /// Whether this grant can be looked for.
    pub(super) fn has(&self, grant: &Grant) -> bool {
        self.compat || !grant.object.starts_with(SCHEMA)
    }

    /// Who may use the schema: all that may call `walcast.notify`. Both rights or none: a search path passes over a schema
    /// that a role may not use.
    pub(super) fn grants(&self, options: &SetupOptions, brokers: &[String]) -> Vec<Grant> {
        if !self.compat && !options.compat {
            return Vec::new();
        }
        let named = options.publishers.iter().chain(&options.broker_role);
        let mut roles: Vec<_> = named.chain(brokers).chain(&self.publishers).collect();
        roles.sort_unstable();
        roles.dedup();
        let grants = |role: &String| {
            [("EXECUTE", "FUNCTION", FUNCTION), ("USAGE", "SCHEMA", SCHEMA)].map(
                |(privilege, kind, object)| Grant {
                    privilege,
                    kind,
                    object: object.into(),
                    role: role.clone(),
                },
            )
        };
        roles.into_iter().flat_map(grants).collect()
    }

    /// What makes the schema, where it is wanted and missing.
    pub(super) fn schema_step(&self, options: &SetupOptions) -> Option<Step> {
        (options.compat && !self.compat).then(|| Step {
            who: Who::Owner,
            what: format!("schema {SCHEMA}: created, with a pg_notify that calls walcast.notify"),
            failed: format!("schema {SCHEMA}: not created"),
            action: Action::Transaction(CREATE.map(str::to_owned).to_vec()),
            switches: false,
        })
    }

    /// What changes the carrier, where another is wanted.
    pub(super) fn carrier_step(&self, options: &SetupOptions) -> Option<Step> {
        let carrier = options.carrier.filter(|_| self.switches(options))?;
        let name = statements::literal(carrier.as_str());
        Some(Step {
            who: Who::Owner,
            what: format!("settings: from now on walcast.notify is carried {}", carrier.means()),
            failed: "settings: the carrier is not changed".into(),
            action: Action::Transaction(vec![format!("UPDATE walcast.settings SET carrier = {name}")]),
            switches: true,
        })
    }
}

/// Whether a schema of this name is somebody else's.
///
/// # Errors
/// It is.
pub(super) async fn refuse(client: &Client, options: &SetupOptions) -> Result<(), SetupError> {
    if !options.compat {
        return Ok(());
    }
    let sql = format!("SELECT to_regnamespace('{SCHEMA}') IS NOT NULL AND NOT {EXISTS}");
    let row = client.query_typed_one(&sql, &[]).await;
    let row =
        row.map_err(|error| SetupError::from_postgres("looking for the schema walcast_compat", &error))?;
    if row.get(0) {
        return Err(SetupError::Server(vec![format!(
            "--compat: there is a schema {SCHEMA} that setup did not make; rename or drop it"
        )]));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_changes_that_was_not_asked_for() {
        let check = |found: &Found, carrier: Option<Carrier>, compat: bool, expected: [bool; 2]| {
            let options = SetupOptions { carrier, compat, ..SetupOptions::default() };
            let steps = [found.carrier_step(&options), found.schema_step(&options)];
            assert_eq!(steps.map(|step| step.is_some()), expected, "{found:?} {carrier:?} {compat}");
        };
        let new = Found::nothing();
        check(&new, None, false, [false, false]);
        check(&new, Some(Carrier::Walcast), true, [false, true]);
        let moving = Found { carrier: "both".into(), compat: true, ..Found::nothing() };
        check(&moving, None, false, [false, false]);
        check(&moving, Some(Carrier::Both), true, [false, false]);
        check(&moving, Some(Carrier::Notify), false, [true, false]);
    }

    #[test]
    fn whoever_may_notify_may_use_the_schema() {
        let found = Found { compat: true, publishers: vec!["a".into(), "b".into()], ..Found::nothing() };
        let options = SetupOptions { publishers: vec!["b".into(), "c".into()], ..SetupOptions::default() };
        let grants = found.grants(&options, &["a".into()]);
        let roles: Vec<_> = grants.iter().map(|grant| grant.role.as_str()).collect();
        assert_eq!(roles, ["a", "a", "b", "b", "c", "c"]);
        assert_eq!(Found::nothing().grants(&options, &[]), []);
    }
}
