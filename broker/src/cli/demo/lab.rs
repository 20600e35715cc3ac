//! The lab's database: a `vms` table in a schema of the demo's own, and the allocator's `UPDATE`.
//!
//! It knows nothing of walcast: this is what an application that exists already does.

use std::time::Instant;

use tokio_postgres::types::{ToSql, Type};

use super::ledger::Ledger;
use crate::cli::exit::{self, Failure};
use crate::cli::{local, settings};
use crate::postgres::{Session, describe};

/// The rule that a broker needs for the lab, as in its configuration file.
pub const RULE: &str = r#"
[[table]]
name = "walcast_demo.vms"
topic = "vm/{hostname}"
columns = ["hostname", "email", "crdcommand", "pin", "status"]
state = true
"#;

/// A pattern of all VMs' topics.
pub const TOPICS: &str = "vm/*";

/// Tells the demo's own connections from the broker's.
const APPLICATION_NAME: &str = "walcast-demo";

/// The name of a VM, counted from 0.
#[must_use]
pub fn hostname(vm: u32) -> String {
    format!("vm-{:05}", vm + 1)
}

/// Makes the table and its free VMs; what an earlier demo left is removed first.
///
/// # Errors
/// The database cannot be reached, or the role may not create a schema.
pub async fn prepare(database_url: &str, vms: u32) -> Result<(), Failure> {
    let session = connect(database_url).await?;
    let sql = format!(
        "drop schema if exists walcast_demo cascade;
         create schema walcast_demo;
         create table walcast_demo.vms (
             hostname   text primary key,
             email      text,
             crdcommand text,
             pin        bigint,
             status     text not null default 'free',
             logs       text
         );
         insert into walcast_demo.vms (hostname)
             select 'vm-' || lpad(i::text, 5, '0') from generate_series(1, {vms}) i;"
    );
    session.batch_execute(&sql).await.map_err(|error| refused("prepare its table", &error))
}

/// Removes the table.
///
/// # Errors
/// The database cannot be reached.
pub async fn remove(database_url: &str) -> Result<(), Failure> {
    let session = connect(database_url).await?;
    let dropped = session.batch_execute("drop schema if exists walcast_demo cascade").await;
    dropped.map_err(|error| refused("remove its table", &error))
}

/// The allocator's connection.
#[derive(Debug)]
pub struct Lab {
    session: Session,
}

impl Lab {
    /// Connects to a prepared database.
    ///
    /// # Errors
    /// The database cannot be reached.
    pub async fn connect(database_url: &str) -> Result<Self, Failure> {
        Ok(Self { session: connect(database_url).await? })
    }

    /// Assigns a VM in a transaction of its own, entering it into the ledger just before the commit.
    ///
    /// # Errors
    /// The database refused, or went away.
    pub async fn assign(&mut self, vm: u32, pin: i64, ledger: &Ledger) -> Result<(), Failure> {
        let email = format!("student-{pin}@example.org");
        let command = format!("start-session --pin {pin:06}");
        let sql = "update walcast_demo.vms
                   set email = $2, crdcommand = $3, pin = $4, status = 'assigned' where hostname = $1";
        let host = hostname(vm);
        let assigned: [(&(dyn ToSql + Sync), Type); 4] =
            [(&host, Type::TEXT), (&email, Type::TEXT), (&command, Type::TEXT), (&pin, Type::INT8)];
        let work = async {
            let transaction = self.session.transaction().await?;
            transaction.execute_typed(sql, &assigned).await?;
            ledger.assigned(vm, pin, Instant::now());
            transaction.commit().await
        };
        work.await.map_err(|error| refused("assign a VM", &error))
    }
}

/// Watches how many connections the broker holds.
#[derive(Debug)]
pub struct Observer(Session);

impl Observer {
    /// Connects.
    ///
    /// # Errors
    /// The database cannot be reached.
    pub async fn connect(database_url: &str) -> Result<Self, Failure> {
        connect(database_url).await.map(Self)
    }

    /// Connections of walcast to this database, without the demo's own.
    ///
    /// # Errors
    /// The database went away.
    pub async fn broker_connections(&mut self) -> Result<u32, Failure> {
        let sql = "select count(*) from pg_stat_activity
                   where datname = current_database() and application_name like 'walcast%'
                     and application_name <> $1";
        let row = self.0.query_typed_one(sql, &[(&APPLICATION_NAME, Type::TEXT)]).await;
        let row = row.map_err(|error| refused("count connections", &error))?;
        Ok(u32::try_from(row.get::<_, i64>(0)).unwrap_or(u32::MAX))
    }
}

async fn connect(database_url: &str) -> Result<Session, Failure> {
    settings::connect_as(&local::config(database_url, 0), APPLICATION_NAME).await
}

fn refused(what: &str, error: &tokio_postgres::Error) -> Failure {
    Failure::new(exit::UNAVAILABLE, format!("the demo cannot {what}: {}", describe(error)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::throwaway::{Options, Throwaway};

    #[tokio::test]
    async fn the_lab_comes_and_goes() {
        let start = || Throwaway::start(&Options::for_tests()).unwrap();
        let server = tokio::task::spawn_blocking(start).await.unwrap();
        let url = server.url("postgres");
        prepare(&url, 3).await.unwrap();
        prepare(&url, 2).await.unwrap();
        let ledger = Ledger::new(2, 1);
        let mut lab = Lab::connect(&url).await.unwrap();
        lab.assign(1, 4711, &ledger).await.unwrap();
        assert_eq!(ledger.outstanding(), 1);

        let session = connect(&url).await.unwrap();
        let sql = "select count(*) filter (where status = 'free'), max(pin) from walcast_demo.vms";
        let row = session.query_typed_one(sql, &[]).await.unwrap();
        assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (1, 4711));
        let mut observer = Observer::connect(&url).await.unwrap();
        assert_eq!(observer.broker_connections().await.unwrap(), 0, "its own do not count");

        remove(&url).await.unwrap();
        let failure = lab.assign(0, 1, &ledger).await.unwrap_err();
        assert!(failure.message.contains("does not exist"), "{failure}");
        tokio::task::spawn_blocking(|| drop(server)).await.unwrap();
    }
}
