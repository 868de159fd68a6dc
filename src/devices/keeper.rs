//! The task that writes what was noted of devices to the log, and forgets those unseen for long.

use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval, interval_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::record::Note;
use super::{Devices, Key};
use crate::log::LogError;

/// How long a note that is not urgent waits: what a crash may cost, and how often a device that
/// acknowledges all the time is written.
const WRITE_INTERVAL: Duration = Duration::from_secs(10);

/// How often all devices are gone through.
const SWEEP_INTERVAL: Duration = Duration::from_secs(3600);

/// When a write is tried again, after the log could not be written or while there is none.
const PAUSE: Duration = Duration::from_millis(500);

/// Notes that are written together; between two lots others may change the registry.
const LOT: usize = 1_000;

/// Which notes are to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Which {
    Urgent,
    All,
}

impl Devices {
    /// Runs until `shutdown`, then until `sessions` have ended, and writes what they left.
    pub async fn keep(self, shutdown: CancellationToken, sessions: TaskTracker) {
        let mut all = interval_at(Instant::now() + WRITE_INTERVAL, WRITE_INTERVAL);
        let mut sweep = interval(SWEEP_INTERVAL);
        all.set_missed_tick_behavior(MissedTickBehavior::Delay);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut feed = self.inner.feed.clone();
        // The registry is counted once there is a log.
        let opened = async { feed.wait_for(Option::is_some).await.is_ok() };
        if shutdown.run_until_cancelled(opened).await.is_none() {
            return;
        }
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = self.inner.bell.notified() => self.write_all(Which::Urgent, &shutdown).await,
                _ = all.tick() => self.write_all(Which::All, &shutdown).await,
                _ = sweep.tick() => self.sweep_once().await,
            }
        }
        sessions.wait().await;
        while self.write_lot(Which::All).await == Some(true) {}
    }

    async fn write_all(&self, which: Which, shutdown: &CancellationToken) {
        loop {
            match self.write_lot(which).await {
                Some(true) => {}
                Some(false) => return,
                None => {
                    // The notes stay, and are bounded.
                    self.inner.bell.notify_one();
                    shutdown.run_until_cancelled(tokio::time::sleep(PAUSE)).await;
                    return;
                }
            }
        }
    }

    /// Whether there was something to write; `None` if it could not be written.
    async fn write_lot(&self, which: Which) -> Option<bool> {
        let feed = self.inner.feed.borrow().clone()?;
        let lot = self.take_lot(which);
        if lot.is_empty() {
            return Some(false);
        }
        let devices = self.clone();
        let written = tokio::task::spawn_blocking(move || {
            let written = devices.write(&*feed.log, &lot);
            devices.finish_lot(written.is_ok());
            written
        });
        match written.await {
            Ok(Ok(())) => Some(true),
            // Told by the log itself, once.
            Ok(Err(LogError::Stalled(_))) => None,
            Ok(Err(error)) => {
                tracing::warn!(%error, "what is known of devices could not be written; it is tried again");
                None
            }
            // The runtime is shutting down.
            Err(_) => None,
        }
    }

    fn take_lot(&self, which: Which) -> Vec<(Key, Note)> {
        let mut notes = self.notes();
        for _ in 0..LOT {
            let next = match which {
                Which::Urgent => notes.urgent.pop_first(),
                Which::All => notes.waiting.first_key_value().map(|(key, _)| key.clone()),
            };
            let Some(key) = next else { break };
            if let Some(note) = notes.waiting.remove(&key) {
                notes.urgent.remove(&key);
                notes.writing.insert(key, note);
            }
        }
        notes.writing.iter().map(|(key, note)| (key.clone(), note.clone())).collect()
    }

    /// What could not be written waits again, before what came meanwhile.
    fn finish_lot(&self, written: bool) {
        let mut notes = self.notes();
        let lot = std::mem::take(&mut notes.writing);
        if written {
            return;
        }
        for (key, mut note) in lot {
            if let Some(later) = notes.waiting.remove(&key) {
                note.add(later);
            }
            notes.urgent.insert(key.clone());
            notes.waiting.insert(key, note);
        }
    }

    async fn sweep_once(&self) {
        let Some(feed) = self.inner.feed.borrow().clone() else { return };
        let devices = self.clone();
        let swept: Result<Result<(), LogError>, _> =
            tokio::task::spawn_blocking(move || devices.sweep_all(&*feed.log)).await;
        if let Ok(Err(error)) = swept {
            tracing::warn!(%error, "the registry of devices could not be gone through; it is tried again in an hour");
        }
    }
}
