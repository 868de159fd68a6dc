//! Tables straight from a backlog.
//!
//! What comes slowly goes to the engine's journal and its table in memory, and is written out from there. A
//! stream that fills one such table after another need not take that way: its appends are let gather until
//! they are worth a table, and that is written at once, in order. For a backlog it halves the log's work.
//!
//! A crash leaves a prefix here, too. First a mark that names the span is flushed, and the journal with it; then
//! the table is written, flushed, and made the span's; then one batch moves the watermark, which makes the
//! entries readable, and takes the mark away. A mark that is found when the storage is opened says that the
//! span may hold entries which were never readable: they lie at or above the watermark, and go. (What the
//! journal's way leaves above the watermark is parts of a transaction, told apart by their attempt. These
//! here are whole: sent again for other audiences, the old ones would be seen.)

use std::time::{Duration, Instant};

use fjall::{Keyspace, PersistMode};

use super::entries::Entries;
use super::keys;
use super::spans::SpanInfo;
use super::storage::Storage;
use crate::log::{LogError, LogOptions};

/// Names the span whose tables may hold more than the watermark says.
const KEY_MARK: &str = "bulk";

/// How many entries that were never readable one batch removes.
const SWEPT_AT_ONCE: usize = 10_000;

/// How long appends are let gather. A reader that needs them waits no longer than this.
pub(super) const PATIENCE: Duration = Duration::from_millis(250);

/// With nothing more for so long, the backlog is over for now.
pub(super) const QUIET: Duration = Duration::from_millis(20);

/// Over how long the rate is taken.
const WINDOW: Duration = Duration::from_millis(250);

/// Whether appends come so quickly that they are worth tables of their own. Pure.
#[derive(Debug)]
pub(super) struct Rate {
    /// Bytes that make a table.
    enough: usize,
    /// Bytes a second from which on they gather; 0: always.
    quick: usize,
    since: Instant,
    bytes: usize,
    is_quick: bool,
}

impl Rate {
    /// What gathers must fit into the queue, with room for what comes while it is written.
    pub(super) fn new(options: &LogOptions, now: Instant) -> Self {
        let quick = options.gather_rate;
        let enough = quick.min(options.queue_size) / 8 * 5;
        Rate { enough, quick, since: now, bytes: 0, is_quick: quick == 0 }
    }

    /// How many bytes are waited for, [`PATIENCE`] at most.
    pub(super) fn worth_waiting_for(&self) -> Option<usize> {
        self.is_quick.then_some(self.enough)
    }

    /// So many bytes were taken at once. Whether they are written as a table.
    pub(super) fn took(&mut self, bytes: usize, now: Instant) -> bool {
        self.bytes += bytes;
        let elapsed = now.saturating_duration_since(self.since);
        if elapsed >= WINDOW {
            self.is_quick = self.bytes as f64 >= self.quick as f64 * elapsed.as_secs_f64();
            (self.since, self.bytes) = (now, 0);
        }
        self.is_quick && bytes >= self.enough / 2
    }
}

impl Storage {
    /// Adds the entries to a span as a table. Nobody may read them before the batch that takes the mark away.
    pub(super) fn write_table(
        &self,
        span: &SpanInfo,
        keyspace: &Keyspace,
        entries: &mut Entries,
    ) -> Result<(), LogError> {
        let mut table = keyspace.start_ingestion().map_err(self.failure())?;
        for (key, value) in entries.sorted() {
            table.write(key, value).map_err(self.failure())?;
        }
        self.meta.insert(KEY_MARK, span.seq.to_be_bytes().as_slice()).map_err(self.failure())?;
        self.db.persist(PersistMode::SyncData).map_err(self.failure())?;
        table.finish().map_err(self.failure())?;
        tracing::debug!(
            span = span.seq,
            bytes = entries.bytes(),
            "wrote a table straight from what had gathered"
        );
        Ok(())
    }

    pub(super) fn remove_mark(&self, batch: &mut fjall::OwnedWriteBatch) {
        batch.remove(&self.meta, KEY_MARK);
    }

    /// The keyspace whose table may not have become readable.
    pub(super) fn marked(&self) -> Result<Option<String>, LogError> {
        let Some(seq) = self.meta.get(KEY_MARK).map_err(self.failure())? else { return Ok(None) };
        let seq = seq.as_ref().try_into().map_err(|_| LogError::Corrupt("the mark of a table"))?;
        Ok(Some(SpanInfo::keyspace_of(u64::from_be_bytes(seq))))
    }

    /// Removes what never became readable.
    pub(super) fn sweep(&self) -> Result<(), LogError> {
        let Some(name) = self.marked()? else { return Ok(()) };
        let watermark = self.applied()?.watermark.lsn;
        if self.db.keyspace_exists(&name) {
            let keyspace = self.db.keyspace(&name, Default::default).map_err(self.failure())?;
            let mut batch = self.db.batch();
            for guard in keyspace.iter() {
                let (key, value) = guard.into_inner().map_err(self.failure())?;
                if keys::commit_of(&key, &value)? >= watermark {
                    batch.remove(&keyspace, key);
                }
                if batch.len() >= SWEPT_AT_ONCE {
                    batch.commit().map_err(self.failure())?;
                    self.wait_for_tables(&keyspace, 0)?;
                    batch = self.db.batch();
                }
            }
            batch.commit().map_err(self.failure())?;
        }
        let mut batch = self.db.batch();
        self.remove_mark(&mut batch);
        batch.commit().map_err(self.failure())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUEUE: usize = 800;
    const MOMENT: Duration = Duration::from_millis(10);

    fn rate() -> (Rate, Instant) {
        let options = crate::log::fjall::tests::support::options(std::path::Path::new("nowhere"));
        let now = Instant::now();
        (Rate::new(&LogOptions { queue_size: QUEUE, gather_rate: QUEUE, ..options }, now), now)
    }

    #[test]
    fn a_quick_stream_gathers_until_it_is_slow() {
        let (mut rate, now) = rate();
        assert!(!rate.took(QUEUE, now + MOMENT), "one burst says nothing of a rate");
        assert_eq!(rate.worth_waiting_for(), None);
        assert!(rate.took(QUEUE, now + WINDOW));
        assert_eq!(rate.worth_waiting_for(), Some(500));
        assert!(!rate.took(249, now + WINDOW + MOMENT), "too little for a table");
        assert!(rate.took(250, now + WINDOW + MOMENT));
        assert!(!rate.took(QUEUE, now + WINDOW + Duration::from_secs(10)));
        assert_eq!(rate.worth_waiting_for(), None);
    }

    #[test]
    fn bursts_apart_are_slow() {
        let (mut rate, mut now) = rate();
        for _ in 0..100 {
            now += Duration::from_secs(2);
            assert!(!rate.took(QUEUE, now));
        }
    }
}
