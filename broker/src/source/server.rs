//! What a server and a database have to be for a source, whoever asks: a broker before it starts, and `walcast setup`
//! before it makes anything. Both say it in the same words.
//!
//! It must never refuse what would work: what setup can make is not asked for here.

use tokio_postgres::Client;

use super::SourceKind;

/// What the server says of itself.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    /// As `server_version_num`.
    pub(crate) version_num: i32,
    /// For people.
    pub(crate) version: String,
    /// It is in recovery.
    pub(crate) standby: bool,
    pub(crate) wal_level: String,
    /// Of the database.
    pub(crate) encoding: String,
    pub(crate) database: String,
}

impl Server {
    pub(crate) async fn look(client: &Client) -> Result<Self, tokio_postgres::Error> {
        const SQL: &str = "
            SELECT current_setting('server_version_num')::int4, current_setting('server_version'), pg_is_in_recovery(),
                   current_setting('wal_level'), getdatabaseencoding()::text, current_database()::text";
        let row = client.query_typed_one(SQL, &[]).await?;
        Ok(Self {
            version_num: row.try_get(0)?,
            version: row.try_get(1)?,
            standby: row.try_get(2)?,
            wal_level: row.try_get(3)?,
            encoding: row.try_get(4)?,
            database: row.try_get(5)?,
        })
    }

    /// All that an operator has to put right, and how. Of a server that is the wrong one altogether, only that.
    pub(crate) fn problems(&self, kind: SourceKind) -> Vec<String> {
        if let Some(problem) = self.wrong_one(kind) {
            return vec![problem];
        }
        let mut problems = Vec::new();
        // From 19 on a server at `replica` turns logical when the first logical slot is created.
        let logical =
            self.wal_level == "logical" || self.version_num >= 190_000 && self.wal_level == "replica";
        if kind == SourceKind::Wal && !logical {
            problems.push(format!(
                "the server's wal_level is `{}`, but the WAL must carry logical changes: ALTER SYSTEM SET wal_level = \
                 logical, then restart it; or, where that cannot be had, `walcast setup --source outbox` and \
                 source.kind = \"outbox\" (docs/outbox.md)",
                self.wal_level
            ));
        }
        if self.encoding != "UTF8" {
            problems.push(format!(
                "the encoding of the database {} is {}, but topics and events are UTF-8: move to a database created \
                 with ENCODING 'UTF8'",
                self.database, self.encoding
            ));
        }
        problems
    }

    /// Why nothing else of it matters, if that is so.
    pub(crate) fn wrong_one(&self, kind: SourceKind) -> Option<String> {
        // Before 14, pgoutput sends no messages; before 13, transaction ids of 64 bits have no type.
        let (what, version_min) = match kind {
            SourceKind::Wal => ("reading the WAL", 14),
            SourceKind::Outbox => ("the outbox", 13),
        };
        if self.version_num < version_min * 10_000 {
            return Some(format!(
                "the server is Postgres {}; {what} needs {version_min} or later: upgrade it",
                self.version
            ));
        }
        self.standby.then(|| {
            "the server is a standby (in recovery), and walcast needs the primary: name it in `postgres.url`, or list \
             all hosts with target_session_attrs=read-write"
                .to_owned()
        })
    }
}

/// What is wrong if a source of this kind is to be read while publishers send by `carry`.
pub(super) fn other_way(kind: SourceKind, carry: &str) -> Option<String> {
    let kind = kind.as_str();
    (carry != kind).then(|| {
        format!(
            "what is published goes another way (walcast.settings.carry is `{carry}`), and does not come here: set \
             source.kind = \"{carry}\", or run `walcast setup --source {kind}`"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_problem_is_named_with_its_remedy() {
        let good = Server {
            version_num: 140_000,
            version: "14.0".into(),
            standby: false,
            wal_level: "logical".into(),
            encoding: "UTF8".into(),
            database: "app".into(),
        };
        let check = |change: &dyn Fn(&mut Server), wal: &[&[&str]], outbox: &[&[&str]]| {
            let mut server = good.clone();
            change(&mut server);
            for (kind, expected) in [(SourceKind::Wal, wal), (SourceKind::Outbox, outbox)] {
                let problems = server.problems(kind);
                assert_eq!(problems.len(), expected.len(), "{problems:?}");
                for (problem, parts) in problems.iter().zip(expected) {
                    assert!(
                        parts.iter().all(|part| problem.contains(part)) && !problem.contains('\n'),
                        "{problem}"
                    );
                }
            }
        };
        check(&|_| (), &[], &[]);
        let upgrade: &[&str] = &["Postgres 13.23", "14 or later", "upgrade"];
        check(&|server| (server.version_num, server.version) = (130_023, "13.23".into()), &[upgrade], &[]);
        check(
            &|server| (server.version_num, server.encoding) = (120_012, "LATIN1".into()),
            &[&["14 or later"]],
            &[&["13 or later"]],
        );
        let standby: &[&str] = &["standby", "postgres.url"];
        check(&|server| (server.standby, server.encoding) = (true, "LATIN1".into()), &[standby], &[standby]);
        let level: &[&str] = &["`replica`", "ALTER SYSTEM", "--source outbox"];
        check(&|server| server.wal_level = "replica".into(), &[level], &[]);
        check(&|server| (server.wal_level, server.version_num) = ("replica".into(), 190_000), &[], &[]);
        check(
            &|server| (server.wal_level, server.version_num) = ("minimal".into(), 190_000),
            &[&["`minimal`"]],
            &[],
        );
        let encoding: &[&str] = &["database app", "LATIN1", "ENCODING 'UTF8'"];
        check(&|server| server.encoding = "LATIN1".into(), &[encoding], &[encoding]);
        check(
            &|server| (server.wal_level, server.encoding) = ("replica".into(), "LATIN1".into()),
            &[level, encoding],
            &[encoding],
        );
    }

    #[test]
    fn a_way_that_is_not_read_is_named() {
        assert_eq!(other_way(SourceKind::Wal, "wal"), None);
        let problem = other_way(SourceKind::Outbox, "wal").unwrap_or_default();
        for part in ["`wal`", "source.kind = \"wal\"", "walcast setup --source outbox"] {
            assert!(problem.contains(part), "{problem}");
        }
    }
}
