//! Journals that a crash of the machine or a bad disk has mangled: what opens is a prefix that readers can
//! rely on, or nothing opens and the error says what to do.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::super::FjallLog;
use super::support::*;
use crate::log::*;
use crate::lsn::Lsn;
use crate::position::Position;

const TRANSACTIONS: u64 = 40;

fn numbered(n: u64) -> Append {
    let json = format!("{{\"n\":{n},\"fill\":\"{}\"}}", "x".repeat((n * 37 % 300) as usize));
    let deliveries =
        (1..=2).map(|index| row(index, 1, &n.to_string(), &json, &[("user:1", true, true)])).collect();
    let mut append = whole(transaction(100 + n * 10, deliveries));
    append.state = vec![("n".to_owned(), Some(n.to_string().into_bytes()))];
    append
}

pub(super) fn journal(directory: &Path) -> PathBuf {
    let files = fs::read_dir(directory.join("data")).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|extension| extension == "jnl")).max().unwrap()
}

/// A log with so many transactions in its journal, each a batch of its own; returns where each ends.
async fn written(directory: &Path) -> Vec<u64> {
    let log = create(&options(directory));
    let path = journal(directory);
    let mut ends = Vec::new();
    for n in 1..=TRANSACTIONS {
        put(&log, numbered(n)).await;
        let bytes = fs::read(&path).unwrap();
        ends.push(bytes.iter().rposition(|byte| *byte != 0).unwrap() as u64 + 1);
    }
    ends
}

/// What opens holds the first `n` transactions, whole, and the state that belongs to them.
fn assert_prefix(log: &FjallLog) -> u64 {
    let watermark = log.watermark().borrow().lsn.get();
    let last = (watermark - 100) / 10 - u64::from(watermark > 100);
    let found: Vec<_> = read(log, &[all_of("user:1")]).transactions.clone();
    let commits: Vec<_> = found.iter().map(|one| one.commit.get()).collect();
    assert_eq!(commits, (1..=last).map(|n| 100 + n * 10).collect::<Vec<_>>());
    for (n, transaction) in (1..).zip(&found) {
        let as_written = numbered(n).transaction.unwrap();
        assert_eq!(format!("{:?}", transaction.deliveries), format!("{:?}", as_written.deliveries));
    }
    let state = log.state("n").unwrap().map(|bytes| String::from_utf8(bytes).unwrap());
    assert_eq!(state, (last > 0).then(|| last.to_string()));
    assert!(log.oldest() <= Position::boundary(Lsn::new(watermark)));
    last
}

/// And the log goes on behind it.
async fn assert_goes_on(log: &FjallLog, last: u64) {
    put(log, numbered(last + 1)).await;
    log.flush().await.unwrap();
    assert_eq!(assert_prefix(log), last + 1);
}

#[derive(Debug, Clone)]
enum Damage {
    /// The file ends here.
    Cut,
    Zeros(u64),
    Garbage(u64, u8),
    Flip(u8),
}

fn damages() -> impl Strategy<Value = Damage> {
    prop_oneof![
        Just(Damage::Cut),
        (1..5000u64).prop_map(Damage::Zeros),
        (1..5000u64, 1..=255u8).prop_map(|(length, byte)| Damage::Garbage(length, byte)),
        (0..8u8).prop_map(Damage::Flip),
    ]
}

fn mangle(path: &Path, at: u64, damage: &Damage) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let end = file.metadata().unwrap().len();
    match damage {
        Damage::Cut => file.set_len(at).unwrap(),
        Damage::Zeros(length) => file.write_all_at(&vec![0; (*length).min(end - at) as usize], at).unwrap(),
        Damage::Garbage(length, byte) => {
            file.write_all_at(&vec![*byte; (*length).min(end - at) as usize], at).unwrap();
        }
        Damage::Flip(bit) => {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ (1 << bit)], at).unwrap();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    /// Nothing of this log is in tables, so every prefix is one that a crash may leave.
    #[test]
    fn a_mangled_journal_opens_with_what_stands_before(place in 0.0..1.0f64, damage in damages()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let directory = tempfile::tempdir().unwrap();
            let ends = written(directory.path()).await;
            let first = ends[0];
            let at = first + ((ends[ends.len() - 1] - first) as f64 * place) as u64;
            mangle(&journal(directory.path()), at, &damage);
            let whole = ends.iter().filter(|end| **end <= at).count() as u64;
            let log = FjallLog::open(&options(directory.path())).unwrap().unwrap();
            let last = assert_prefix(&log);
            // The damage may be nothing (zeros over zeros), or a batch's number, which makes the next ones wrong.
            assert!((whole..=whole + 1).contains(&last) || last == TRANSACTIONS, "{last} of {whole}");
            assert_goes_on(&log, last).await;
            drop(log);
            let log = FjallLog::open(&options(directory.path())).unwrap().unwrap();
            assert_eq!(assert_prefix(&log), last + 1);
        });
    }
}

/// Also those that no checksum of the engine covers.
#[tokio::test]
async fn any_bit_of_a_batch_may_flip() {
    let directory = tempfile::tempdir().unwrap();
    let ends = written(directory.path()).await;
    let original = fs::read(journal(directory.path())).unwrap();
    let name = journal(directory.path()).file_name().unwrap().to_owned();
    let mut bit = 0;
    // Its head and its first item's, and its end.
    for at in (ends[3]..ends[3] + 48).chain(ends[4] - 13..ends[4]) {
        bit = (bit + 3) % 8;
        fs::write(directory.path().join("data").join(&name), &original).unwrap();
        mangle(&journal(directory.path()), at, &Damage::Flip(bit));
        let log = FjallLog::open(&options(directory.path())).unwrap().unwrap();
        let last = assert_prefix(&log);
        // A batch whose number became larger is whole, and those behind it are out of order.
        assert!(matches!(last, 4 | 5) || last == TRANSACTIONS, "bit {bit} at {at}: {last}");
        drop(log);
        fs::remove_file(journal(directory.path())).unwrap();
    }
}

/// What tables hold and the journal lost would be a hole that nobody sees.
#[tokio::test]
async fn a_journal_that_lost_what_tables_hold_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let ends = written(directory.path()).await;
    {
        let log = FjallLog::open(&options(directory.path())).unwrap().unwrap();
        // The log's own keyspace goes to tables, the span stays in the journal.
        let engine = log.shared.engine().unwrap();
        engine.storage.meta.rotate_memtable_and_wait().unwrap();
    }
    mangle(&journal(directory.path()), ends[20] + 5, &Damage::Garbage(100, 9));
    let refused = FjallLog::open(&options(directory.path())).unwrap_err().to_string();
    assert!(refused.contains("lost what had been flushed") && refused.contains("move"), "{refused}");
}

/// A table is checked as it is read.
#[tokio::test]
async fn a_flipped_bit_in_a_table_is_found() {
    let directory = tempfile::tempdir().unwrap();
    written(directory.path()).await;
    let span = {
        let log = FjallLog::open(&options(directory.path())).unwrap().unwrap();
        let engine = log.shared.engine().unwrap();
        let span = engine.spans().0[0].keyspace.clone();
        span.rotate_memtable_and_wait().unwrap();
        span.path().to_owned()
    };
    let tables: Vec<_> = fs::read_dir(span.join("tables")).unwrap().map(|e| e.unwrap().path()).collect();
    mangle(&tables[0], 200, &Damage::Flip(3));
    let found = match FjallLog::open(&options(directory.path())) {
        Err(error) => error.to_string(),
        Ok(log) => {
            let log = log.unwrap();
            log.read(&request(&[all_of("user:1")], log.oldest())).unwrap_err().to_string()
        }
    };
    assert!(found.contains("damaged") && found.contains("move the directory away"), "{found}");
}
