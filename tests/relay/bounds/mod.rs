//! Resources stay bounded, and come back to where they were: memory, descriptors, tasks, threads, disk, and
//! PostgreSQL's backends.
//!
//! Each test does something large, and compares [`Figures`] of before with those of after, when everyone has
//! left. In the suite they are small; `make test-bounds` (`ROWCAST_TEST_BOUNDS=100`) runs them at full size, one after another, and
//! prints the figures that docs/OPERATIONS.md tells.

mod connects;
mod full;
mod limits;
mod sessions;
mod subscriptions;
mod transaction;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::json;

use crate::support::postgres::TestPostgres;
use crate::support::relay::Relay;
use crate::support::wait::eventually;

/// Asks for so many percent of the full sizes.
const PERCENT: &str = "ROWCAST_TEST_BOUNDS";

/// How long one large thing may take, on a machine that does other things as well, in a debug build.
const LONG: Duration = Duration::from_secs(600);

/// How long it may take until everything that was let go of is gone: sockets linger for a second, threads
/// that read the disk for ten.
const SETTLE: Duration = Duration::from_secs(60);

/// Memory that need not come back: the log's caches (16 MiB of blocks, some tables of 8 MiB that are not written out
/// yet), and pages that the allocator keeps (see docs/OPERATIONS.md for what was measured).
const KEPT_KIB: u64 = 96 * 1024;

/// What a second time may add to what the first one left: a leak would add it again.
const AGAIN_KIB: u64 = 32 * 1024;

const LOOK: Duration = Duration::from_secs(2);

/// Threads that looking keeps alive.
const KEPT_THREADS: u64 = 10;

/// Files of the log that may be open in the end and were not in the beginning: its tables come and go.
const LOG_FILES: usize = 64;

/// Sessions in PostgreSQL that are kept for the next time, each with a socket and a task: `max_snapshots` for full
/// syncs, one for fences, one that asks what is visible.
const KEPT_BACKENDS: usize = 6;

fn percent() -> Option<usize> {
    std::env::var(PERCENT).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{PERCENT} is a number")))
}

fn is_full() -> bool {
    percent().is_some()
}

/// A size for the suite, or as much of the full one as was asked for.
fn size(small: usize, full: usize) -> usize {
    percent().map_or(small, |percent| full * percent / 100)
}

/// One of several loopback addresses: each has ports for 28,000 connections to the relay.
fn loopback(number: usize) -> IpAddr {
    Ipv4Addr::new(127, 0, 1, (number % 8) as u8 + 1).into()
}

/// Lets this process open so many sockets, and those that it starts.
fn allow_files(count: usize) {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let needed = count as u64 + 512;
    assert!(hard >= needed, "this test needs {needed} open files, and the limit (ulimit -Hn) is {hard}");
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    }
}

/// What the relay holds.
#[derive(Debug, Clone, Copy)]
struct Figures {
    rss_kib: u64,
    /// The most since the last [`forget_peak`].
    peak_kib: u64,
    sockets: usize,
    files: usize,
    threads: u64,
    tasks: usize,
    log_kib: u64,
    /// Answers that wait for their devices, in files that have no name any more.
    spool_kib: u64,
    backends: usize,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "rss {} MiB (peak {}), {} sockets, {} files, {} threads, {} tasks, log {} MiB, spool {} MiB, {} backends",
            self.rss_kib / 1024,
            self.peak_kib / 1024,
            self.sockets,
            self.files,
            self.threads,
            self.tasks,
            self.log_kib / 1024,
            self.spool_kib / 1024,
            self.backends
        )
    }
}

impl Figures {
    async fn of(relay: &Relay, pg: &TestPostgres) -> Self {
        let tasks = relay.metric("rowcast_tasks").await.expect("a metric");
        let backends = pg
            .value(
                "SELECT count(*) FROM pg_stat_activity
                 WHERE backend_type IN ('client backend', 'walsender') AND pid <> pg_backend_pid()",
            )
            .await;
        let mut figures = Figures {
            rss_kib: relay.memory_kib("VmRSS"),
            peak_kib: relay.memory_kib("VmHWM"),
            sockets: 0,
            files: 0,
            threads: relay.memory_kib("Threads"),
            tasks: tasks as usize,
            log_kib: size_on_disk(relay.log_directory()) / 1024,
            spool_kib: 0,
            backends: backends.parse().unwrap(),
        };
        for entry in std::fs::read_dir(format!("/proc/{}/fd", relay.pid())).unwrap().flatten() {
            let target = std::fs::read_link(entry.path()).unwrap_or_default();
            let target = target.to_string_lossy();
            if target.starts_with("socket:") {
                figures.sockets += 1;
            } else {
                figures.files += 1;
            }
            if target.contains("/spool/") {
                figures.spool_kib += std::fs::metadata(entry.path()).map_or(0, |meta| blocks(&meta) / 1024);
            }
        }
        figures
    }

    /// Waits until nothing but what may be kept is left; prints both, and says what did not go.
    async fn come_back(self, relay: &Relay, pg: &TestPostgres, what: &str) -> Figures {
        self.come_back_to(KEPT_KIB, relay, pg, what).await
    }

    /// The same, where `kept_kib` of memory need not come back.
    async fn come_back_to(self, kept_kib: u64, relay: &Relay, pg: &TestPostgres, what: &str) -> Figures {
        let mut last = Figures::of(relay, pg).await;
        println!("{what}: left  {last}");
        let begun = std::time::Instant::now();
        while let Some(held) = self.held_by(&last, kept_kib) {
            if begun.elapsed() >= SETTLE {
                let sessions =
                    pg.query_text("SELECT application_name, state, query FROM pg_stat_activity").await;
                panic!("{what}: {held} did not come back\nbase {self}\nnow  {last}\n{sessions:?}");
            }
            // Each look wakes a thread, which then lives for ten seconds more.
            tokio::time::sleep(LOOK).await;
            last = Figures::of(relay, pg).await;
        }
        println!("{what}: base  {self}\n{what}: after {last}");
        last
    }

    fn held_by(&self, now: &Figures, kept_kib: u64) -> Option<&'static str> {
        // Threads that read the disk end when they had nothing to do for ten seconds; the suite does not
        // wait for that.
        let threads = is_full() && now.threads > self.threads + KEPT_THREADS;
        let over = [
            ("memory", now.rss_kib > self.rss_kib + kept_kib),
            ("a socket", now.sockets > self.sockets + KEPT_BACKENDS),
            ("a file", now.files > self.files + LOG_FILES),
            ("a thread", threads),
            ("a task", now.tasks > self.tasks + KEPT_BACKENDS),
            ("the spool", now.spool_kib > self.spool_kib),
            ("a backend of PostgreSQL", now.backends > self.backends + KEPT_BACKENDS),
        ];
        over.iter().find(|(_, over)| *over).map(|(name, _)| *name)
    }
}

/// Figures to come back to: of a relay that has done each kind of thing once.
async fn base(relay: &Relay, pg: &TestPostgres) -> Figures {
    let body = json!({"device_id": "first", "topics": ["global:*"]});
    relay.http_as("first").post("/api/realtime/sync", &body).await.expect_status(200);
    // One answer of the metrics makes the next one's task look like the last one's.
    let mut last = Figures::of(relay, pg).await;
    eventually(SETTLE, "a quiet relay", async || {
        let now = Figures::of(relay, pg).await;
        let quiet = now.tasks == last.tasks && now.sockets == last.sockets;
        last = now;
        quiet.then_some(())
    })
    .await;
    forget_peak(relay);
    Figures::of(relay, pg).await
}

/// Peaks are counted from here on.
fn forget_peak(relay: &Relay) {
    std::fs::write(format!("/proc/{}/clear_refs", relay.pid()), "5").unwrap();
}

/// What a directory takes on disk.
fn size_on_disk(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let of = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => size_on_disk(&entry.path()),
        // What is allocated: journals are made large and empty.
        Ok(meta) => blocks(&meta),
        Err(_) => 0,
    };
    entries.map(of).sum()
}

fn blocks(meta: &std::fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::blocks(meta) * 512
}
