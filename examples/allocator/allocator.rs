//! An allocator that assigns free VMs, each in a transaction of its own: whoever waits is woken by the commit.
//!
//! `cargo run -p walcast-examples --bin allocator -- --database-url URL ada@example.org [--roll-back]`, against the
//! Postgres of `walcast dev`. Any number of them may run beside each other.

use std::error::Error;

use clap::Parser;
use serde_json::json;
use tokio_postgres::NoTls;
use tokio_postgres::types::Type;
use walcast_client::publisher;

/// The first VM that is free and that no other allocator has in its hands at the moment.
const FREE: &str =
    "SELECT hostname FROM vms WHERE email IS NULL ORDER BY hostname LIMIT 1 FOR UPDATE SKIP LOCKED";
const ASSIGN: &str = "UPDATE vms SET email = $2, crdcommand = 'start', pin = $3 WHERE hostname = $1";

/// Assigns one free VM.
#[derive(Parser)]
struct Args {
    /// To whom
    email: String,
    /// The number by which the user and the VM know each other
    #[arg(long, default_value_t = 4711)]
    pin: i32,
    /// As when something that the assignment depends on goes wrong
    #[arg(long)]
    roll_back: bool,
    #[arg(long, env = "DATABASE_URL", default_value = "postgres://postgres@127.0.0.1:8482/postgres")]
    database_url: String,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    let (mut db, connection) = tokio_postgres::connect(&args.database_url, NoTls).await?;
    tokio::spawn(connection);
    let tx = db.transaction().await?;
    // `…_typed` gives no statement a name, so that a transaction pooler may be in between.
    let free = tx.query_typed(FREE, &[]).await?;
    let Some(row) = free.first() else { return Err("no VM is free".into()) };
    let hostname: &str = row.try_get(0)?;
    let parameters =
        [(&hostname as _, Type::TEXT), (&args.email as _, Type::TEXT), (&args.pin as _, Type::INT4)];
    // A rule makes an event of this, for `vm/{hostname}`: whoever waits there gets the row.
    tx.execute_typed(ASSIGN, &parameters).await?;
    // And this is one that no table holds.
    let word = json!({"hostname": hostname, "email": args.email});
    publisher::publish(&tx, format!("assigned/{hostname}"), &word).await?;
    // Here is what else an assignment takes: an invoice, a limit. It may still say no.
    if args.roll_back {
        println!("rolled back {hostname}");
        return Ok(tx.rollback().await?);
    }
    println!("assigned {hostname}");
    Ok(tx.commit().await?)
}
