//! A service on sqlx that finishes a job and says so in the same transaction.
//!
//! `cargo run -p walcast-examples --bin sqlx-publisher -- JOB [DATABASE_URL]`, against the Postgres of `walcast dev`.

use std::error::Error;

use serde_json::json;
use sqlx::postgres::PgPool;
use walcast_client::publisher;

const DONE: &str = "UPDATE jobs SET done = true WHERE id = $1 AND NOT done";

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let job: i64 = args.next().ok_or("usage: sqlx-publisher JOB [DATABASE_URL]")?.parse()?;
    let url = args.next().unwrap_or_else(|| "postgres://postgres@127.0.0.1:8482/postgres".to_owned());
    let pool = PgPool::connect(&url).await?;
    sqlx::query("CREATE TABLE IF NOT EXISTS jobs (id bigint PRIMARY KEY, done bool NOT NULL DEFAULT false)")
        .execute(&pool)
        .await?;
    sqlx::query("INSERT INTO jobs (id) VALUES ($1) ON CONFLICT DO NOTHING").bind(job).execute(&pool).await?;

    let mut tx = pool.begin().await?;
    // First the word, then the deed: it is the commit that counts, and what is rolled back was never said.
    publisher::sqlx::publish(&mut *tx, format!("jobs/{job}"), &json!({"id": job, "done": true})).await?;
    let done = sqlx::query(DONE).bind(job).execute(&mut *tx).await?.rows_affected();
    if done == 0 {
        tx.rollback().await?;
        println!("job {job} was done already");
    } else {
        tx.commit().await?;
        println!("job {job} is done");
    }
    Ok(())
}
