//! What of the log other sessions can already see: PostgreSQL's snapshots, and the visible horizon.
//!
//! A commit is decoded before other sessions see it, for as long as a synchronous standby takes. So the
//! log runs ahead of what a query would find. The horizon H says up to where it does not: every
//! transaction of the log at or before H is known to be visible to ordinary sessions.
//!
//! Ingest tells what it logs, in order ([`Horizon::logged`]); whoever asked the database tells what it
//! said ([`Horizon::see`]). Invariants: H never goes back; a snapshot that was taken after H was read
//! sees everything up to H. What does not fit in memory is read again from the log.
//!
//! Must not know: connections, tables, devices.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};

use crate::log::{Log, LogError};
use crate::lsn::Lsn;
use crate::position::Position;

/// Transactions not yet known to be visible that are held in memory: 16 bytes each. A standby that is
/// away for hours must not cost more than this.
const MAX_QUEUED: usize = 256 * 1024;

/// How many are read from the log at once when memory has room for them again.
const REFILL: usize = 64 * 1024;

/// What `pg_current_snapshot()` prints, as `xmin:xmax:xip,xip`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    xmax: u64,
    /// Ascending.
    in_progress: Vec<u64>,
}

/// The text is no snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the database answered with a snapshot that cannot be read")]
pub struct ParseSnapshotError;

impl Snapshot {
    pub fn parse(text: &str) -> Result<Self, ParseSnapshotError> {
        let mut parts = text.split(':');
        let mut part = || parts.next().ok_or(ParseSnapshotError);
        let (_, xmax, running) = (part()?, part()?, part()?);
        let number = |text: &str| text.parse().map_err(|_| ParseSnapshotError);
        let running = running.split(',').filter(|xid| !xid.is_empty());
        let mut in_progress = running.map(number).collect::<Result<Vec<u64>, _>>()?;
        in_progress.sort_unstable();
        Ok(Snapshot { xmax: number(xmax)?, in_progress })
    }

    /// Whether a committed transaction, by the 32 bits of its id that the stream tells, is visible.
    pub fn sees(&self, xid: u32) -> bool {
        let xid = self.widen(xid);
        xid < self.xmax && self.in_progress.binary_search(&xid).is_err()
    }

    /// The full id nearest to the snapshot's end: no transaction of interest is 2^31 others away.
    fn widen(&self, xid: u32) -> u64 {
        const ROUND: u64 = 1 << 32;
        let near = (self.xmax & !(ROUND - 1)) | u64::from(xid);
        if near > self.xmax + ROUND / 2 {
            near.saturating_sub(ROUND)
        } else if near + ROUND / 2 < self.xmax {
            near + ROUND
        } else {
            near
        }
    }
}

/// The end of what is visible for certain.
#[derive(Debug)]
pub struct Horizon {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    at: Position,
    /// Transactions after `at`, in commit order: id and commit.
    queue: VecDeque<(u32, Lsn)>,
    /// Everything that begins to commit before this was told, or stands in the log.
    reached: Lsn,
    /// Behind the queue's end there are transactions that only the log knows.
    incomplete: bool,
}

impl Horizon {
    /// Of a log that begins, or ends, at a boundary up to which everything is visible.
    pub fn new(start: Lsn) -> Self {
        Horizon::with(Position::boundary(start), start, false)
    }

    /// Of a log that is gone on with: `at` is where the horizon stood, `reached` the log's end.
    pub fn resumed(at: Position, reached: Lsn) -> Self {
        Horizon::with(at, reached, at < Position::boundary(reached))
    }

    fn with(at: Position, reached: Lsn, incomplete: bool) -> Self {
        Horizon { inner: Mutex::new(Inner { at, queue: VecDeque::new(), reached, incomplete }) }
    }

    /// H: all of the log up to here is visible.
    pub fn position(&self) -> Position {
        self.lock().at
    }

    /// Whether the database has to be asked for H to go on.
    pub fn is_behind(&self) -> bool {
        let inner = self.lock();
        inner.incomplete || !inner.queue.is_empty()
    }

    /// A transaction was handed to the log, in commit order; `end` is its end LSN.
    pub fn logged(&self, xid: u32, commit: Lsn, end: Lsn) {
        let mut inner = self.lock();
        inner.reached = end;
        if inner.incomplete || inner.queue.len() >= MAX_QUEUED {
            inner.incomplete = true;
        } else {
            inner.queue.push_back((xid, commit));
        }
    }

    /// There is nothing for anyone up to here.
    pub fn passed(&self, to: Lsn) {
        let mut inner = self.lock();
        inner.reached = inner.reached.max(to);
        inner.settle();
    }

    /// Takes in what the database said of itself.
    pub fn see(&self, snapshot: &Snapshot) {
        let mut inner = self.lock();
        while let Some((xid, commit)) = inner.queue.front().copied()
            && snapshot.sees(xid)
        {
            inner.queue.pop_front();
            inner.at = inner.at.max(Position::new(commit, u32::MAX));
        }
        inner.settle();
    }

    /// Reads from the log what did not fit in memory. Blocks on the disk.
    pub fn refill(&self, log: &dyn Log) -> Result<(), LogError> {
        loop {
            let after = {
                let inner = self.lock();
                if !inner.incomplete || inner.queue.len() + REFILL > MAX_QUEUED {
                    return Ok(());
                }
                inner.queue.back().map_or(inner.at, |(_, commit)| Position::new(*commit, u32::MAX))
            };
            // What is told from here on may not be in the log yet, but lies beyond this.
            let shown = log.watermark().borrow().lsn;
            let commits = log.commits(after, REFILL)?;
            let mut inner = self.lock();
            let all = commits.len() < REFILL;
            inner.queue.extend(commits);
            if all {
                inner.incomplete = shown < inner.reached;
                inner.settle();
                return Ok(());
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Inner {
    /// With nothing left to wait for, everything told so far is visible.
    fn settle(&mut self) {
        if self.queue.is_empty() && !self.incomplete {
            self.at = self.at.max(Position::boundary(self.reached));
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn snapshot(text: &str) -> Snapshot {
        Snapshot::parse(text).unwrap()
    }

    #[test]
    fn a_snapshot_sees_what_was_over_when_it_was_taken() {
        let snapshot = snapshot("10:20:10,14");
        let seen: Vec<u32> = (8..23).filter(|xid| snapshot.sees(*xid)).collect();
        assert_eq!(seen, [8, 9, 11, 12, 13, 15, 16, 17, 18, 19]);
        for bad in ["", "1:2", "1:b:", "1:2:x", "1"] {
            assert_eq!(Snapshot::parse(bad), Err(ParseSnapshotError), "{bad}");
        }
    }

    #[test]
    fn ids_wrap_around() {
        let round = 1u64 << 32;
        let young = snapshot(&format!("{0}:{1}:{0}", round - 2, round + 3));
        // One before the wrap, running; one before it, over; behind it; and not begun.
        assert!(!young.sees(u32::MAX - 1) && young.sees(u32::MAX) && young.sees(2) && !young.sees(3));
        let old = snapshot(&format!("{0}:{0}:", round - 1));
        assert!(
            old.sees(u32::MAX - 1) && !old.sees(u32::MAX) && !old.sees(5),
            "those behind the wrap are new"
        );
    }

    #[test]
    fn the_horizon_is_a_prefix() {
        let horizon = Horizon::new(Lsn::new(100));
        let after = |commit| Position::new(Lsn::new(commit), u32::MAX);
        assert_eq!((horizon.position(), horizon.is_behind()), (Position::boundary(Lsn::new(100)), false));
        for (xid, commit) in [(7, 110), (5, 120), (9, 130)] {
            horizon.logged(xid, Lsn::new(commit), Lsn::new(commit + 5));
        }
        // The second is not visible: nothing behind it counts, though the third is.
        horizon.see(&snapshot("5:20:5"));
        assert_eq!((horizon.position(), horizon.is_behind()), (after(110), true));
        horizon.passed(Lsn::new(200));
        assert_eq!(horizon.position(), after(110));
        horizon.see(&snapshot("20:20:"));
        assert_eq!((horizon.position(), horizon.is_behind()), (Position::boundary(Lsn::new(200)), false));
        horizon.passed(Lsn::new(150));
        assert_eq!(horizon.position(), Position::boundary(Lsn::new(200)), "it never goes back");
    }
}
