//! kill -9 in the middle of appending: what opens is a prefix.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use super::super::FjallLog;
use super::support::*;
use crate::log::*;

const CHILD: &str = "ROWCAST_TEST_LOG_DIRECTORY";
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
    let options = small(directory.as_ref());
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
    let directory = tempfile::tempdir().unwrap();
    let options = small(directory.path());
    drop(create(&options));
    let mut before = 0;
    for round in 0..6 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["child_appends_until_it_is_killed", "--nocapture", "--test-threads=1"])
            .env(CHILD, directory.path())
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
