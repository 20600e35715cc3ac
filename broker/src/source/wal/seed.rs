//! Current values beside the log: reading is [`seed::read`], and here is from which LSN on they are exact.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_postgres::Client;
use tokio_postgres::types::PgLsn;

use crate::event::{Changes, SeedEnd};
use crate::postgres::describe;
use crate::source::seed;
pub use crate::source::seed::{Config, SeedError, SeedTable};

/// Reads `tables` and sends [`Changes::SeedBegin`], pieces of rows, [`Changes::SeedEnd`]; see [`seed::read`].
/// Returns early, without error, when the receiver is gone. It writes an empty message.
///
/// # Errors
/// A table cannot be read, or the session failed. What was sent so far is void without `SeedEnd`.
pub async fn seed(
    client: &mut Client,
    tables: &[SeedTable],
    forget: &[Arc<str>],
    config: &Config,
    out: &mpsc::Sender<Changes>,
) -> Result<(), SeedError> {
    const SETTLE: &str = "SELECT pg_catalog.pg_current_wal_insert_lsn(), pg_catalog.pg_size_bytes(
        pg_catalog.current_setting('wal_segment_size'))";
    let Some(snapshot) = seed::read(client, tables, forget, config, out).await? else { return Ok(()) };
    move_on(client).await;
    let row = client.query_typed_one(SETTLE, &[]).await?;
    let (settle, segment_bytes): (PgLsn, i64) = (row.try_get(0)?, row.try_get(1)?);
    let settle = end_of_records(settle.into(), segment_bytes.unsigned_abs());
    // Nobody there to take it: nobody needs it.
    let _ = out.send(Changes::SeedEnd(SeedEnd { snapshot, settle })).await;
    Ok(())
}

/// Writes a record that means nothing, so that on a server where nothing else happens, too, the settle point lies
/// behind what clients were told before.
async fn move_on(client: &mut Client) {
    const RECORD: &str = "SET LOCAL synchronous_commit = local;
        SELECT pg_catalog.pg_logical_emit_message(true, 'walcast-seed', '')";
    let written = async {
        let transaction = client.build_transaction().read_only(false).start().await?;
        transaction.batch_execute(RECORD).await?;
        transaction.commit().await
    };
    if let Err(error) = written.await {
        // Whatever is written next does as well.
        tracing::debug!("no record behind a seed: {}", describe(&error));
    }
}

/// Where the last record before an insert position ends. At the start of a page the two differ by the
/// page's header, of 24 bytes, or 40 in a segment's first page (`SizeOfXLogShortPHD` and
/// `SizeOfXLogLongPHD` in `xlog_internal.h`); on an idle server the stream would never come that far.
fn end_of_records(insert: u64, segment_bytes: u64) -> u64 {
    const PAGE_BYTES: u64 = 8192;
    let first_page = insert.checked_rem(segment_bytes).is_some_and(|offset| offset < PAGE_BYTES);
    let header = if first_page { 40 } else { 24 };
    if insert % PAGE_BYTES == header { insert - header } else { insert }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_records_lies_before_a_page_header() {
        const SEGMENT: u64 = 16 << 20;
        let check = |insert: u64, expected: u64| assert_eq!(end_of_records(insert, SEGMENT), expected);
        check(0x300_0028, 0x300_0000);
        check(0x300_2018, 0x300_2000);
        check(0x300_2028, 0x300_2028);
        check(0x300_0018, 0x300_0018);
        check(0x300_2020, 0x300_2020);
    }
}
