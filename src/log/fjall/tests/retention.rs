//! Forgetting by age and by size.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use super::super::FjallLog;
use super::support::*;
use crate::log::*;
use crate::lsn::Lsn;
use crate::position::Position;

const HOUR: i64 = 3_600_000_000;

async fn put_row(log: &FjallLog, commit: u64, bytes: usize) {
    let json = "x".repeat(bytes);
    put(log, whole(transaction(commit, vec![row(1, 1, "k", &json, &[("user:1", true, true)])]))).await;
}

fn commits(log: &FjallLog) -> Vec<u64> {
    read(log, &[all_of("user:1")]).transactions.iter().map(|transaction| transaction.commit.get()).collect()
}

#[tokio::test]
async fn what_is_too_old_is_forgotten_span_by_span() {
    let directory = tempfile::tempdir().unwrap();
    let options = LogOptions { max_age: Duration::from_secs(8 * 3600), ..options(directory.path()) };
    let now = Arc::new(AtomicI64::new(0));
    let clock = || {
        let now = now.clone();
        Arc::new(move || now.load(Ordering::Relaxed)) as super::super::Clock
    };
    let log = FjallLog::create_at(&options, &beginning(100), clock()).unwrap();
    for hour in 0..8 {
        now.store(hour * HOUR, Ordering::Relaxed);
        put_row(&log, 110 + hour as u64 * 20, 10).await;
    }
    assert_eq!(commits(&log).len(), 8);
    assert_eq!(log.stats().spans, 8);
    // A reading that began keeps what it began with; the marks of what is gone go with it.
    now.store(12 * HOUR, Ordering::Relaxed);
    put_row(&log, 500, 10).await;
    let oldest = log.oldest();
    assert!(oldest > Position::boundary(Lsn::new(100)));
    let left = commits(&log);
    assert_eq!(left.last(), Some(&500));
    assert!(left.len() < 9 && left.len() >= 4, "{left:?}");
    assert!(left.iter().all(|commit| Position::boundary(Lsn::new(*commit)) >= oldest));
    let gone = left[0] - 20;
    assert_eq!(log.lookup_time(1_000_000 + gone.cast_signed()).unwrap(), TimeLookup::TooOld);
    let kept = log.lookup_time(1_000_000 + left[0].cast_signed()).unwrap();
    assert!(matches!(kept, TimeLookup::From(from) if from >= oldest));
    drop(log);

    let log = FjallLog::open_at(&options, clock()).unwrap().unwrap();
    assert_eq!((log.oldest(), commits(&log)), (oldest, left));
    now.store(100 * HOUR, Ordering::Relaxed);
    put_row(&log, 600, 10).await;
    assert_eq!(commits(&log), [500, 600], "nobody knows how young the last of a span is");
    now.store(109 * HOUR, Ordering::Relaxed);
    put_row(&log, 700, 10).await;
    assert_eq!(commits(&log), [600, 700]);
}

#[tokio::test]
async fn what_does_not_fit_is_forgotten_span_by_span() {
    let directory = tempfile::tempdir().unwrap();
    let options = LogOptions { max_size: 80_000, ..options(directory.path()) };
    let log = create(&options);
    for n in 0..300 {
        put_row(&log, 110 + n * 20, 1_000).await;
    }
    let left = commits(&log);
    assert!((60..=85).contains(&left.len()), "{}", left.len());
    assert!(log.stats().spans <= 9);
    assert_eq!(left.last(), Some(&(110 + 299 * 20)));
    assert!(left.windows(2).all(|pair| pair[1] - pair[0] == 20), "no gap");
    drop(log);
    let log = FjallLog::open(&options).unwrap().unwrap();
    assert_eq!(commits(&log), left);
}

#[tokio::test]
async fn a_transaction_in_parts_stays_in_one_span() {
    let directory = tempfile::tempdir().unwrap();
    let log = create(&LogOptions { max_size: 8_000, ..options(directory.path()) });
    let part = |index| {
        let delivery = row(index, 1, "k", &"x".repeat(500), &[("user:1", true, true)]);
        crate::change::Transaction { attempt: Some(1), ..transaction(110, vec![delivery]) }
    };
    for index in 1..40 {
        put(&log, Append { transaction: Some(Arc::new(part(index))), ..Append::default() }).await;
    }
    put(&log, whole(part(40))).await;
    assert_eq!(log.stats().spans, 1);
    let deliveries = |log: &FjallLog| read(log, &[all_of("user:1")]).transactions[0].deliveries.len();
    assert_eq!(deliveries(&log), 40);
    put_row(&log, 200, 10).await;
    assert_eq!(log.oldest(), Position::boundary(Lsn::new(120)), "too large to keep, forgotten whole");
}

fn blocks(directory: &std::path::Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = std::fs::read_dir(directory) else { return 0 };
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(found) if found.is_dir() => blocks(&entry.path()),
        Ok(found) => found.blocks() * 512,
        // Gone in between.
        Err(_) => 0,
    };
    entries.flatten().map(size).sum()
}

#[tokio::test]
async fn what_is_forgotten_gives_its_space_back() {
    let directory = tempfile::tempdir().unwrap();
    let options = LogOptions { max_age: Duration::from_secs(8 * 3600), ..options(directory.path()) };
    let now = Arc::new(AtomicI64::new(0));
    let clock = Arc::clone(&now);
    let clock = Arc::new(move || clock.load(Ordering::Relaxed));
    let log = FjallLog::create_at(&options, &beginning(100), clock).unwrap();
    let tables = directory.path().join("data/keyspaces");
    let base = blocks(&tables);
    let mut noise = 0x9e37_79b9_7f4a_7c15_u64;
    for n in 0..200 {
        // What cannot be compressed.
        let json: String = (0..12_500)
            .map(|_| {
                noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(n);
                format!("{:08x}", noise >> 32)
            })
            .collect();
        put(&log, whole(transaction(110 + n * 20, vec![row(1, 1, "k", &json, &[("user:1", true, true)])])))
            .await;
    }
    let most = blocks(&tables);
    assert!(most > base + (8 << 20), "{most}");
    now.store(20 * HOUR, Ordering::Relaxed);
    put_row(&log, 10_000, 10).await;
    now.store(40 * HOUR, Ordering::Relaxed);
    put_row(&log, 10_100, 10).await;
    assert_eq!(commits(&log), [10_000, 10_100]);
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while blocks(&tables) > base + (1 << 20) {
        assert!(std::time::Instant::now() < deadline, "{base} {most} {}", blocks(&tables));
        std::thread::sleep(Duration::from_millis(20));
    }
}
