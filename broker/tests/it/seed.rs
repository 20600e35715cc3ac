//! Seeding: exact by its snapshot, complete or an error, and gone without a trace when dropped.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;
use walcast::event::{Cell, ChangeKind, Changes, Row, TransactionPart};
use walcast::source::wal::seed::{self, SeedTable};

use crate::database::{Db, Seeded, seed_tables};
use crate::server;

#[tokio::test]
async fn seeding_reads_what_its_table_alone_holds() {
    let db = Db::new(
        "seed_names",
        r#"CREATE TABLE parent (id int PRIMARY KEY); CREATE TABLE child () INHERITS (parent);
         CREATE SCHEMA "Sch ema"; CREATE TABLE "Sch ema"."od.d""ta'ble" ("Co""l" int PRIMARY KEY, b text, c text);
         CREATE TABLE empty (id int); CREATE TABLE bare (); CREATE VIEW view AS SELECT 1;
         CREATE PUBLICATION p"#,
    )
    .await;
    db.run(
        r#"INSERT INTO parent VALUES (1); INSERT INTO child VALUES (2);
              INSERT INTO "Sch ema"."od.d""ta'ble" VALUES (1, 'b', 'c'); INSERT INTO bare DEFAULT VALUES"#,
    )
    .await;
    let odd = r#"Sch ema.od.d"ta'ble"#;
    let seeded = db.seed(&[odd, "public.parent", "public.empty", "public.bare"]).await.unwrap();
    let expected = [
        format!(r#"{odd} {{Co"l: 1, b: "b", c: "c"}}"#),
        "public.parent {id: 1}".to_owned(),
        "public.bare {}".to_owned(),
    ];
    assert_eq!(seeded.lines(), expected);

    let mut client = server::connect(&db.name, "postgres").await;
    let some = SeedTable { name: odd.into(), columns: Some(vec!["c".into()]) };
    let seeded = seed_tables(&mut client, &[some]).await.unwrap();
    assert_eq!(seeded.lines(), [format!(r#"{odd} {{Co"l: 1, c: "c"}}"#)]);
}

#[tokio::test]
async fn what_cannot_be_seeded_is_named_with_its_remedy() {
    let db = Db::new(
        "seed_errors",
        "CREATE TABLE secret (id int); CREATE TABLE guarded (id int); CREATE TABLE locked (id int);
         ALTER TABLE guarded ENABLE ROW LEVEL SECURITY;
         CREATE VIEW view AS SELECT 1; CREATE ROLE \"reader-1\" LOGIN;
         GRANT SELECT ON guarded TO \"reader-1\"; CREATE PUBLICATION p",
    )
    .await;
    let mut client = server::connect(&db.name, "reader-1").await;
    for (table, expected) in [
        ("public.absent", "state table public.absent: the database has no such table"),
        ("public.view", "state table public.view: it is no table"),
        ("public.secret", "GRANT SELECT ON public.secret TO \"reader-1\";"),
        ("public.guarded", "ALTER ROLE \"reader-1\" BYPASSRLS;"),
    ] {
        let table = SeedTable { name: table.into(), columns: None };
        let error = seed_tables(&mut client, &[table]).await.unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert!(error.is_permanent());
    }
}

#[tokio::test]
async fn a_large_table_comes_in_pieces_and_an_abandoned_read_leaves_no_transaction() {
    let db = Db::new(
        "seed_pieces",
        "CREATE TABLE many (id int PRIMARY KEY); INSERT INTO many SELECT generate_series(1, 2500);
         CREATE TABLE wide (id int PRIMARY KEY, doc text);
         INSERT INTO wide SELECT i, repeat('x', 300000) FROM generate_series(1, 8) i;
         CREATE PUBLICATION p",
    )
    .await;
    let seeded = db.seed(&["public.many", "public.wide"]).await.unwrap();
    let sizes: Vec<_> = seeded.pieces.iter().map(|piece| piece.rows.len()).collect();
    assert_eq!(sizes, [1000, 1000, 500, 4, 4]);

    let mut client = server::connect(&db.name, "postgres").await;
    let (sender, mut receiver) = mpsc::channel(1);
    let tables = ["public.wide", "public.many"].map(|name| SeedTable { name: name.into(), columns: None });
    let config = seed::Config::default();
    {
        let mut reading = Box::pin(seed::seed(&mut client, &tables, &[], &config, &sender));
        for _ in 0..2 {
            tokio::select! {
                changes = receiver.recv() => assert!(changes.is_some()),
                result = &mut reading => panic!("{result:?}"),
            }
        }
    }
    let row = client.query_one(
        "SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND relation = 'wide'::regclass",
        &[],
    );
    assert_eq!(row.await.unwrap().get::<_, i64>(0), 0);
    drop(receiver);
    seed::seed(&mut client, &tables, &[], &config, &sender).await.unwrap();
}

#[tokio::test]
async fn the_snapshot_is_taken_only_after_the_start_was_received() {
    let db = Db::new("seed_start", "CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION p").await;
    let mut client = server::connect(&db.name, "postgres").await;
    let (sender, mut receiver) = mpsc::channel(4);
    let tables = [SeedTable { name: "public.t".into(), columns: None }];
    let config = seed::Config::default();
    let mut reading = Box::pin(seed::seed(&mut client, &tables, &[], &config, &sender));
    // Once the start is sent, it waits for it to be received; what commits meanwhile is contained.
    let committed = async {
        while receiver.is_empty() {
            tokio::task::yield_now().await;
        }
        for i in 0..200 {
            db.run(&format!("INSERT INTO t VALUES ({i})")).await;
        }
    };
    tokio::select! {
        biased;
        result = &mut reading => panic!("{result:?}"),
        () = committed => {}
    }
    let rows = async {
        assert!(matches!(receiver.recv().await, Some(Changes::SeedBegin(_))));
        let Some(Changes::Seed(piece)) = receiver.recv().await else { panic!("no rows") };
        assert!(matches!(receiver.recv().await, Some(Changes::SeedEnd(end)) if end.settle > 0));
        piece.rows.len()
    };
    let (rows, result) = tokio::join!(rows, reading);
    assert_eq!((rows, result.is_ok()), (200, true));
}

#[tokio::test]
async fn a_table_that_is_being_rewritten_is_not_taken_for_empty() {
    let db = Db::new(
        "seed_rewrite",
        "CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t VALUES (1, 2); CREATE PUBLICATION p",
    )
    .await;
    db.run("BEGIN; ALTER TABLE t ALTER n TYPE text").await;
    let seeding = db.seed(&["public.t"]);
    let rewritten = async {
        let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 't'::regclass";
        while db.sql.query_one(waiting, &[]).await.unwrap().get::<_, i64>(0) == 0 {}
        db.run("COMMIT").await;
    };
    let (seeded, ()) = tokio::join!(seeding, rewritten);
    assert_eq!(seeded.unwrap().lines(), [r#"public.t {id: 1, n: "2"}"#]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seed_and_the_transactions_that_it_does_not_contain_make_the_state() {
    let db = Db::new(
        "seed_exact",
        "CREATE TABLE counters (id int PRIMARY KEY, n int NOT NULL);
         INSERT INTO counters SELECT i, 0 FROM generate_series(1, 3000) i;
         CREATE PUBLICATION p FOR TABLE counters",
    )
    .await;
    let (stop, _) = tokio::sync::watch::channel(false);
    let committed = Arc::new(tokio::sync::Semaphore::new(0));
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..4 {
        let client = server::connect(&db.name, "postgres").await;
        let (stop, committed) = (stop.subscribe(), Arc::clone(&committed));
        writers.spawn(async move {
            let mut round = 0;
            while !*stop.borrow() {
                round += 1;
                let id = (round * 7 + writer * 751) % 3000 + 1;
                let sql = format!(
                    "BEGIN; UPDATE counters SET n = n + 1 WHERE id = {id};
                     DELETE FROM counters WHERE id = {id} AND n % 5 = 0;
                     INSERT INTO counters VALUES ({id}, 1) ON CONFLICT DO NOTHING; COMMIT"
                );
                client.batch_execute(&sql).await.unwrap();
                committed.add_permits(1);
            }
        });
    }
    // So each seed contains some transactions, and lacks some.
    committed.acquire_many(100).await.unwrap().forget();
    let mut seeds = Vec::new();
    for _ in 0..5 {
        seeds.push(db.seed(&["public.counters"]).await.unwrap());
    }
    committed.forget_permits(usize::MAX);
    committed.acquire_many(100).await.unwrap().forget();
    stop.send_replace(true);
    while let Some(done) = writers.join_next().await {
        done.unwrap();
    }
    let parts = db.parts().await;
    let truth = db.seed(&["public.counters"]).await.unwrap();
    let key = |row: &Row| match &row[0] {
        Cell::Text(text) => text.clone(),
        other => panic!("{other:?}"),
    };
    let state = |seeded: &Seeded| -> BTreeMap<Bytes, Row> {
        seeded.pieces.iter().flat_map(|piece| &piece.rows).map(|row| (key(row), row.clone())).collect()
    };
    for seeded in &seeds {
        let mut merged = state(seeded);
        let contained = |part: &&TransactionPart| seeded.snapshot().contains(part.commit.xid);
        assert!(parts.iter().filter(contained).count() >= 100);
        let missing: Vec<_> = parts.iter().filter(|part| !contained(part)).collect();
        assert!(missing.len() >= 100);
        for change in missing.iter().flat_map(|part| &part.changes) {
            match &change.kind {
                ChangeKind::Insert { new, .. } | ChangeKind::Update { new, .. } => {
                    merged.insert(key(new), new.clone());
                }
                ChangeKind::Delete { old, .. } => {
                    merged.remove(&key(old.row()));
                }
                other => panic!("{other:?}"),
            }
        }
        assert!(merged == state(&truth));
        assert!(seeded.settle > 0);
    }
}

#[tokio::test]
async fn what_is_to_be_forgotten_is_announced_and_not_read() {
    let db =
        Db::new("seed_forget", "CREATE TABLE t (id int); INSERT INTO t VALUES (1); CREATE PUBLICATION p")
            .await;
    let mut client = server::connect(&db.name, "postgres").await;
    let (sender, mut receiver) = mpsc::channel(4);
    let config = seed::Config::default();
    let forget = ["public.t".into()];
    let seeding = async {
        seed::seed(&mut client, &[], &forget, &config, &sender).await.unwrap();
    };
    let received = async {
        let begin = receiver.recv().await;
        assert!(matches!(begin, Some(Changes::SeedBegin(names)) if *names == forget));
        assert!(matches!(receiver.recv().await, Some(Changes::SeedEnd(_))));
    };
    tokio::join!(seeding, received);
}
