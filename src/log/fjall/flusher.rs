//! Group commit: one thread that flushes what the writer applied, and moves the durable boundary.
//!
//! fjall's own `persist` holds the journal's lock for the length of the fsync, so that appends, and with
//! them what devices see, would wait for the disk. Here the newest journal file is flushed through a
//! descriptor of our own while the writer goes on. That covers everything before: when fjall begins
//! another journal file it first flushes the last one, and it makes no further file if that fails. An
//! engine that has met an error says so when asked afterwards, and then nothing is called durable.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use fjall::PersistMode;

use super::shared::{Engine, Queued, Shared, lock, wait, wait_until};
use crate::log::LogError;
use crate::lsn::Lsn;

/// What the writer has applied and the flusher not yet flushed.
#[derive(Debug, Default)]
pub(super) struct Unflushed {
    /// Appends applied so far, and the watermark after them.
    pub(super) applied: u64,
    pub(super) watermark: Lsn,
    pub(super) flushed: u64,
    /// Those in between, from the oldest: they are put in again when the storage is opened anew, for what
    /// it still holds of them is not to be relied on after a failed flush.
    pub(super) retained: VecDeque<Queued>,
    pub(super) retained_bytes: usize,
    /// The storage has failed: there is nothing to flush until it is opened anew.
    pub(super) broken: bool,
    pub(super) bytes: usize,
    /// When the first of them was applied.
    pub(super) since: Option<Instant>,
    /// Somebody waits.
    pub(super) urgent: bool,
    pub(super) stop: bool,
}

/// What may wait for a flush in memory. Far more than is written during a flush, so that only a disk that
/// hangs makes the writer wait.
const RETAINED_BYTES: usize = 32 << 20;

impl Unflushed {
    /// Whether the writer has to wait for the flusher.
    pub(super) fn is_full(&self) -> bool {
        self.retained_bytes >= RETAINED_BYTES
    }

    fn flushed(&mut self, applied: u64) -> Vec<Queued> {
        let count = usize::try_from(applied - self.flushed).unwrap_or(usize::MAX).min(self.retained.len());
        self.flushed = applied;
        let gone: Vec<_> = self.retained.drain(..count).collect();
        self.retained_bytes -= gone.iter().map(|queued| queued.bytes).sum::<usize>();
        gone
    }
}

/// The thread's body: until told to stop, and then once more if there is something left.
pub(super) fn run(shared: &Arc<Shared>) -> Result<(), LogError> {
    let mut journal = None;
    while let Some((applied, watermark)) = next(shared) {
        if let Err(error) = sync(shared, &mut journal) {
            // A later flush that works proves nothing: the kernel may have let go of what it could not write.
            journal = None;
            lock(&shared.unflushed).broken = true;
            shared.report(error);
            continue;
        }
        let gone = lock(&shared.unflushed).flushed(applied);
        shared.flushed_wake.notify_all();
        drop(gone);
        debug_assert!(watermark <= shared.watermark.borrow().lsn, "durable ≤ watermark");
        shared.durable.send_replace(watermark);
        shared.progress.send_modify(|progress| progress.flushed = applied);
    }
    Ok(())
}

fn sync(shared: &Shared, journal: &mut Option<Journal>) -> Result<(), LogError> {
    let engine = shared.engine()?;
    let directory = engine.storage.data_directory();
    let journal = journal.get_or_insert_with(|| Journal { directory, newest: None });
    journal.sync(&engine).map_err(engine.storage.failure())
}

fn next(shared: &Shared) -> Option<(u64, Lsn)> {
    let options = &shared.options;
    let mut state = lock(&shared.unflushed);
    loop {
        let pending = state.applied > state.flushed && !state.broken;
        let deadline = state.since.map(|since| since + options.group_commit_interval);
        let due = state.stop
            || state.urgent
            || state.bytes >= options.group_commit_size
            || state.is_full()
            || deadline.is_some_and(|deadline| deadline <= Instant::now());
        if pending && due {
            (state.bytes, state.since, state.urgent) = (0, None, false);
            return Some((state.applied, state.watermark));
        }
        if state.stop {
            return None;
        }
        state = match deadline {
            Some(deadline) if pending => wait_until(&shared.flush_wake, state, deadline),
            _ => wait(&shared.flush_wake, state),
        };
    }
}

/// The newest journal file, kept open: an error of the kernel's own writing is told once to each
/// descriptor that was open then.
struct Journal {
    directory: PathBuf,
    newest: Option<(PathBuf, File)>,
}

impl Journal {
    fn sync(&mut self, engine: &Engine) -> Result<(), fjall::Error> {
        let db = &engine.storage.db;
        let file = loop {
            let Some(path) = newest_journal(&self.directory)? else {
                return db.persist(PersistMode::SyncData);
            };
            if let Some((_, file)) = self.newest.take_if(|(open, _)| *open == path) {
                break (path, file);
            }
            match File::open(&path) {
                Ok(file) => break (path, file),
                // Written out to tables and removed in between.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error.into()),
            }
        };
        file.1.sync_data()?;
        self.newest = Some(file);
        // Cheap, for every batch has already reached the file; fails if the engine has met an error.
        db.persist(PersistMode::Buffer)
    }
}

fn newest_journal(directory: &Path) -> io::Result<Option<PathBuf>> {
    let mut newest: Option<(u64, PathBuf)> = None;
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "jnl") {
            continue;
        }
        let number = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse().ok());
        let Some(number) = number else { return Ok(None) };
        if newest.as_ref().is_none_or(|(known, _)| *known < number) {
            newest = Some((number, path));
        }
    }
    Ok(newest.map(|(_, path)| path))
}
