//! Tables that are written without the journal: they are read as others are, and one that a crash kept from
//! becoming readable is as if it had never been.

use std::fs::OpenOptions;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use super::super::FjallLog;
use super::super::codec;
use super::super::entries::Entries;
use super::super::keys;
use super::super::storage::Storage;
use super::damage::journal;
use super::support::*;
use crate::change::{Body, Transaction};
use crate::log::*;
use crate::lsn::Lsn;

/// A row of two users in one transaction.
fn of_both(commit: u64) -> Transaction {
    let audiences = [("user:1", true, true), ("user:2", true, true)];
    transaction(commit, vec![row(1, 1, &commit.to_string(), "{}", &audiences)])
}

fn commits(log: &FjallLog, user: &str) -> Vec<u64> {
    read(log, &[all_of(user)]).transactions.iter().map(|transaction| transaction.commit.get()).collect()
}

/// Writes transactions as a table, as the writer does, up to the moment before they become readable.
fn write_table_only(directory: &Path, transactions: &[Transaction]) {
    let storage = Storage::open(directory).unwrap().unwrap();
    let span = storage.spans().unwrap().pop().unwrap();
    let keyspace = storage.span_keyspace(&span).unwrap();
    let mut entries = Entries::default();
    for transaction in transactions {
        let slot = keys::time_key(keys::time_slot(transaction.greatest_committed_at));
        let commit = transaction.commit.get().to_be_bytes();
        entries.put(|out| out.extend_from_slice(&slot), |out| out.extend_from_slice(&commit));
        let key = keys::transaction_key(transaction.commit);
        let record = codec::TransactionRecord::of(transaction);
        entries.put(|out| out.extend_from_slice(&key), |out| record.put(out));
        for delivery in &transaction.deliveries {
            let Body::Row(row) = &delivery.body else { continue };
            for membership in &row.memberships {
                let key = keys::entry_key(
                    keys::audience_prefix(&membership.audience),
                    transaction.position(delivery),
                );
                let value = |out: &mut _| codec::put_row(out, transaction, row, membership);
                entries.put(|out| out.extend_from_slice(&key), value);
            }
        }
    }
    storage.write_table(&span, &keyspace, &mut entries).unwrap();
    assert!(storage.marked().unwrap().is_some());
}

fn tables(log: &FjallLog) -> usize {
    log.shared.engine().unwrap().spans().0.iter().map(|span| span.tables()).sum()
}

#[tokio::test]
async fn tables_and_the_journal_take_turns() {
    let directory = tempfile::tempdir().unwrap();
    let options = options(directory.path());
    let mut log = create(&options);
    let mut expected = Vec::new();
    for n in 0..12 {
        drop(log);
        let gather_rate = if n % 3 == 0 { options.gather_rate } else { 0 };
        log = FjallLog::open(&LogOptions { gather_rate, ..options.clone() }).unwrap().unwrap();
        let before = tables(&log);
        for commit in [110 + n * 100, 130 + n * 100] {
            put(&log, whole(of_both(commit))).await;
            expected.push(commit);
        }
        // What the journal's way had in memory becomes a table before the first.
        let more = tables(&log) - before;
        assert!(if gather_rate == 0 { more >= 2 } else { more == 0 }, "{n}: {more} more");
        assert_eq!(commits(&log, "user:1"), expected);
    }
    log.flush().await.unwrap();
    let durable = *log.durable().borrow();
    drop(log);
    let log = FjallLog::open(&options).unwrap().unwrap();
    assert!(log.watermark().borrow().lsn == durable && durable == Lsn::new(expected.pop().unwrap() + 10));
    let storage = &log.shared.engine().unwrap().storage;
    assert_eq!(storage.marked().unwrap(), None);
}

#[tokio::test]
async fn a_table_that_never_became_readable_is_swept() {
    let directory = tempfile::tempdir().unwrap();
    let options = options(directory.path());
    let log = create(&options);
    put(&log, whole(of_both(110))).await;
    drop(log);
    write_table_only(directory.path(), &[of_both(130), of_both(150)]);

    let log = FjallLog::open(&options).unwrap().unwrap();
    assert_eq!(log.watermark().borrow().lsn, Lsn::new(120));
    // Sent again it is of one user only, for its table is routed otherwise now.
    let again = transaction(130, vec![row(1, 1, "130", "{}", &[("user:1", true, true)])]);
    put(&log, whole(again)).await;
    put(&log, Append { watermark: Some(Lsn::new(500)), ..Append::default() }).await;
    drop(log);
    let log = FjallLog::open(&options).unwrap().unwrap();
    assert_eq!(commits(&log, "user:1"), [110, 130]);
    assert_eq!(commits(&log, "user:2"), [110]);
    assert_eq!(log.commits(log.oldest(), 10).unwrap().len(), 2);
}

#[tokio::test]
async fn a_torn_journal_behind_a_table_that_never_became_readable_is_no_damage() {
    let directory = tempfile::tempdir().unwrap();
    let options = options(directory.path());
    let log = create(&options);
    put(&log, whole(of_both(110))).await;
    drop(log);
    write_table_only(directory.path(), &[of_both(130)]);
    // The beginning of the batch that would have made it readable.
    let path = journal(directory.path());
    let bytes = std::fs::read(&path).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap() as u64 + 1;
    let mut file = OpenOptions::new().write(true).open(&path).unwrap();
    file.seek(SeekFrom::Start(end)).unwrap();
    file.write_all(&[1, 2, 0, 0, 0]).unwrap();
    drop(file);

    let log = FjallLog::open(&options).unwrap().unwrap();
    put(&log, Append { watermark: Some(Lsn::new(500)), ..Append::default() }).await;
    assert_eq!(commits(&log, "user:1"), [110]);
}
