//! How far ingest is, for health, metrics and people.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, RwLock};

use tokio::sync::watch;

use crate::log::Trouble;
use crate::lsn::Lsn;
use crate::timestamp::PgTimestamp;

/// What ingest may lack for long without being behind: the server's end lies in the middle of a record
/// that an open transaction has begun, or in a page that nothing makes it write out.
const LAG_SLACK_BYTES: u64 = 16 * 1024;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    Connecting,
    /// A new slot and a new log are being made.
    Opening,
    Streaming,
    /// Another relay streams from the slot; this one takes over when that one goes.
    Waiting,
    /// Why it does not stream; it tries again by itself.
    Failed(Arc<str>),
}

impl State {
    pub fn name(&self) -> &'static str {
        match self {
            State::Connecting => "connecting",
            State::Opening => "opening",
            State::Streaming => "streaming",
            State::Waiting => "waiting",
            State::Failed(_) => "failed",
        }
    }
}

#[derive(Debug)]
pub struct Progress {
    state: RwLock<State>,
    /// Why the log that is there cannot be opened yet.
    log_trouble: RwLock<Option<Trouble>>,
    received: AtomicU64,
    confirmed: AtomicU64,
    server_end: AtomicU64,
    committed_at: AtomicI64,
    /// When ingest began to be behind, microseconds since 1970; zero while it is not.
    behind_since: AtomicI64,
    /// Commits may wait for this relay.
    synchronous: AtomicBool,
    wal_held: AtomicU64,
    /// Zero: PostgreSQL sets no limit.
    wal_limit: AtomicU64,
    /// While the guard drops the slot, nobody may go on with it.
    dropping_slot: watch::Sender<bool>,
}

impl Default for Progress {
    fn default() -> Self {
        Progress {
            state: RwLock::new(State::Connecting),
            log_trouble: RwLock::default(),
            received: AtomicU64::new(0),
            confirmed: AtomicU64::new(0),
            server_end: AtomicU64::new(0),
            committed_at: AtomicI64::new(0),
            behind_since: AtomicI64::new(0),
            synchronous: AtomicBool::new(false),
            wal_held: AtomicU64::new(0),
            wal_limit: AtomicU64::new(0),
            dropping_slot: watch::Sender::new(false),
        }
    }
}

impl Progress {
    pub fn state(&self) -> State {
        self.state.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    pub(super) fn set_state(&self, state: State) {
        *self.state.write().unwrap_or_else(std::sync::PoisonError::into_inner) = state;
    }

    /// Why the log that is there cannot be opened yet. An open log tells its troubles itself.
    pub fn log_trouble(&self) -> Option<Trouble> {
        self.log_trouble.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    pub(super) fn set_log_trouble(&self, trouble: Option<Trouble>) {
        *self.log_trouble.write().unwrap_or_else(std::sync::PoisonError::into_inner) = trouble;
    }

    /// The end of what was received and handed to the log.
    pub fn received(&self) -> Lsn {
        Lsn::new(self.received.load(Ordering::Relaxed))
    }

    pub(super) fn set_received(&self, lsn: Lsn, committed_at: Option<i64>) {
        self.received.store(lsn.get(), Ordering::Relaxed);
        if let Some(committed_at) = committed_at {
            self.committed_at.store(committed_at, Ordering::Relaxed);
        }
        self.saw_server_end(lsn);
    }

    /// What the server was told it may forget.
    pub fn confirmed(&self) -> Lsn {
        Lsn::new(self.confirmed.load(Ordering::Relaxed))
    }

    pub(super) fn set_confirmed(&self, lsn: Lsn) {
        self.confirmed.store(lsn.get(), Ordering::Relaxed);
    }

    /// The newest position that the server is known to have written.
    pub fn server_end(&self) -> Lsn {
        Lsn::new(self.server_end.load(Ordering::Relaxed))
    }

    pub fn saw_server_end(&self, lsn: Lsn) {
        self.server_end.fetch_max(lsn.get(), Ordering::Relaxed);
        if self.lag_bytes() <= LAG_SLACK_BYTES {
            self.behind_since.store(0, Ordering::Relaxed);
        } else if self.behind_since.load(Ordering::Relaxed) == 0 {
            self.behind_since.store(PgTimestamp::now().unix_micros(), Ordering::Relaxed);
        }
    }

    pub(super) fn restart_server_end(&self, lsn: Lsn) {
        self.server_end.store(lsn.get(), Ordering::Relaxed);
    }

    /// Bytes of WAL that the slot keeps the server from removing.
    pub fn wal_held(&self) -> u64 {
        self.wal_held.load(Ordering::Relaxed)
    }

    /// `max_slot_wal_keep_size` in bytes, where the server has such a limit.
    pub fn wal_limit(&self) -> Option<u64> {
        Some(self.wal_limit.load(Ordering::Relaxed)).filter(|limit| *limit > 0)
    }

    pub(super) fn set_wal(&self, held: u64, limit: Option<u64>) {
        self.wal_held.store(held, Ordering::Relaxed);
        self.wal_limit.store(limit.unwrap_or(0), Ordering::Relaxed);
    }

    pub(super) fn set_dropping_slot(&self, dropping: bool) {
        self.dropping_slot.send_replace(dropping);
    }

    /// Waits while the guard drops the slot. Cancel-safe.
    pub(super) async fn slot_not_being_dropped(&self) {
        // The sender lives as long as this.
        let _ = self.dropping_slot.subscribe().wait_for(|dropping| !dropping).await;
    }

    /// How far behind the server, in bytes of WAL.
    pub fn lag_bytes(&self) -> u64 {
        self.server_end().bytes_since(self.received())
    }

    /// How far behind, in microseconds: since the last commit received or since ingest fell behind,
    /// whichever is later. A database that was idle for long makes no lag of its own.
    pub fn lag_micros(&self, now: i64) -> i64 {
        match self.behind_since.load(Ordering::Relaxed) {
            0 => 0,
            since => (now - since.max(self.committed_at.load(Ordering::Relaxed))).max(0),
        }
    }

    /// Whether PostgreSQL counts this relay as a synchronous standby.
    pub fn is_synchronous(&self) -> bool {
        self.synchronous.load(Ordering::Relaxed)
    }

    /// Returns what it was before.
    pub(super) fn set_synchronous(&self, synchronous: bool) -> bool {
        self.synchronous.swap(synchronous, Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_missing_for_long_is_a_lag() {
        let progress = Progress::default();
        progress.set_received(Lsn::new(1 << 20), Some(1_000));
        let hour = 3_600_000_000;
        let now = PgTimestamp::now().unix_micros();
        assert_eq!(progress.lag_micros(now), 0, "the last commit is long ago, and nothing is missing");
        progress.saw_server_end(Lsn::new((1 << 20) + LAG_SLACK_BYTES));
        assert_eq!(progress.lag_micros(now + hour), 0, "less than a record");
        progress.saw_server_end(Lsn::new(2 << 20));
        assert!((hour - hour / 60..=hour).contains(&progress.lag_micros(now + hour)), "since it fell behind");
        progress.set_received(Lsn::new(3 << 19), Some(now + hour));
        assert_eq!(progress.lag_micros(now + hour), 0, "it follows closely");
        progress.set_received(Lsn::new(2 << 20), None);
        assert_eq!((progress.lag_bytes(), progress.lag_micros(now + 2 * hour)), (0, 0));
    }
}
