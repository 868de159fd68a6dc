//! kill -9 in the middle of appending: what opens is a prefix.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use super::super::FjallLog;
use super::support::*;
use crate::log::*;

const CHILD: &str = "ROWCAST_TEST_LOG_DIRECTORY";
/// The child writes tables only.
const TABLES: &str = "ROWCAST_TEST_LOG_TABLES";
const ROWS: u32 = 3;

fn numbered(n: u64) -> Append {
    let json = format!("{{\"n\":{n},\"fill\":\"{}\"}}", "x".repeat((n % 700) as usize));
    let deliveries = (1..=ROWS).map(|index| {
        row(index, 1 + index % 2, &n.to_string(), &json, &[("user:1", true, true), ("global", true, true)])
    });
    let mut append = whole(transaction(100 + n * 10, deliveries.collect()));
    append.state = vec![("n".to_owned(), Some(n.to_string().into_bytes()))];
    append
}

fn small(directory: &std::path::Path) -> LogOptions {
    LogOptions { max_size: 4 << 20, ..options(directory) }
}

/// Runs only in the child process of the test below.
#[tokio::test]
async fn child_appends_until_it_is_killed() {
    let Some(directory) = std::env::var_os(CHILD) else { return };
    let mut options = small(directory.as_ref());
    if std::env::var_os(TABLES).is_some() {
        options.gather_rate = 0;
    }
    let log = FjallLog::open(&options).unwrap().unwrap();
    let mut durable = log.durable();
    let first = (log.watermark().borrow().lsn.get() - 100) / 10;
    for n in first.. {
        submit(&log, numbered(n)).await;
        if durable.has_changed().unwrap() {
            let lsn = durable.borrow_and_update().get();
            writeln!(std::io::stdout(), "durable {lsn}").unwrap();
        }
    }
}

#[test]
fn after_kill_9_a_prefix_opens() {
    killed(false);
}

#[test]
fn after_kill_9_among_tables_a_prefix_opens() {
    killed(true);
}

fn killed(tables: bool) {
    let directory = tempfile::tempdir().unwrap();
    let options = small(directory.path());
    drop(create(&options));
    let mut before = 0;
    for round in 0..6 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["child_appends_until_it_is_killed", "--nocapture", "--test-threads=1"])
            .env(CHILD, directory.path())
            .envs(tables.then_some((TABLES, "")))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let durable = lines.filter_map(|line| line.split_once("durable ")?.1.parse::<u64>().ok());
        let durable = durable.take(3 + round).last().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();

        let log = FjallLog::open(&options).unwrap().unwrap();
        let watermark = log.watermark().borrow().lsn.get();
        assert!(watermark >= durable && watermark > before, "{watermark} {durable} {before}");
        before = watermark;
        let last = (watermark - 110) / 10;
        assert_eq!(log.state("n").unwrap().unwrap(), last.to_string().into_bytes());
        for interests in [[all_of("user:1")], [all_of("global")]] {
            let page = read(&log, &interests);
            let first = page.transactions.first().unwrap().commit.get();
            let expected: Vec<_> = (first..watermark).step_by(10).collect();
            let found: Vec<_> = page.transactions.iter().map(|one| one.commit.get()).collect();
            assert_eq!(found, expected);
            assert!(page.transactions.iter().all(|one| one.deliveries.len() == ROWS as usize));
        }
    }
}

#[tokio::test]
async fn a_log_that_cannot_be_flushed_ends_and_confirms_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let log = create(&options(directory.path()));
    put(&log, whole(transaction(110, Vec::new()))).await;
    log.flush().await.unwrap();
    std::fs::remove_dir_all(directory.path().join("data")).unwrap();
    submit(&log, whole(transaction(130, Vec::new()))).await;
    assert!(matches!(log.failed().await, LogError::Stopped(_)));
    assert!(matches!(log.flush().await, Err(LogError::Stopped(_))));
    assert!(log.submit(Append::default()).is_err());
    assert_eq!(log.durable().borrow().get(), 120);
}

#[tokio::test]
async fn a_panic_of_the_writer_ends_the_log() {
    let directory = tempfile::tempdir().unwrap();
    let broken = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let flag = broken.clone();
    let clock = move || {
        assert!(!flag.load(std::sync::atomic::Ordering::Relaxed), "a clock that fails on purpose");
        0
    };
    let options = options(directory.path());
    let log = FjallLog::create_at(&options, &beginning(100), std::sync::Arc::new(clock)).unwrap();
    put(&log, whole(transaction(110, Vec::new()))).await;
    broken.store(true, std::sync::atomic::Ordering::Relaxed);
    submit(&log, whole(transaction(130, Vec::new()))).await;
    assert!(matches!(log.applied().await, Err(LogError::Stopped(_))));
    assert!(matches!(log.room().await, Ok(()) | Err(LogError::Stopped(_))));
    assert!(log.submit(Append::default()).is_err());
    drop(log);
    let log = FjallLog::open(&options).unwrap().unwrap();
    assert_eq!(log.watermark().borrow().lsn.get(), 120);
}
