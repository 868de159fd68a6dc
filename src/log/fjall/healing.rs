//! Opening the storage anew after it failed, while the log stays open.
//!
//! Readers go on with the failed storage, whose memory still holds what was readable, until the disk works
//! again. Then it is closed, opened from what is whole on disk, and gets again what had been applied since
//! the last flush that worked: a flush that failed may have lost it, whatever later flushes say. So what
//! readers see never goes back, and what is durable only grows.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::marks::MarkSet;
use super::open_spans;
use super::shared::{Engine, Queued, Shared, lock, wait_until};
use super::staged::Place;
use super::storage::Storage;
use super::trouble::cause;
use super::writer::{Way, Writer};
use crate::log::LogError;

const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// A log that failed again so soon did not heal: the pauses go on growing.
const LASTING: Duration = Duration::from_secs(60);

/// How long the last readers of the failed storage may take.
const READERS: Duration = Duration::from_secs(30);

/// Pauses between tries.
#[derive(Debug)]
pub(super) struct Retry {
    pause: Duration,
    healed: Option<Instant>,
}

impl Default for Retry {
    fn default() -> Self {
        Retry { pause: PAUSE_MIN, healed: None }
    }
}

impl Retry {
    fn begin(&mut self) {
        if self.healed.is_none_or(|healed| healed.elapsed() > LASTING) {
            self.pause = PAUSE_MIN;
        }
    }

    fn next(&mut self) -> Duration {
        let pause = self.pause;
        self.pause = (pause * 2).min(PAUSE_MAX);
        pause
    }
}

impl Writer {
    /// Until the storage works again; `false` if the log was closed meanwhile.
    pub(super) fn heal(&mut self, first: LogError) -> Result<bool, LogError> {
        let shared = Arc::clone(&self.shared);
        lock(&shared.unflushed).broken = true;
        shared.troubles.rise(&cause(first, shared.troubles.probe()));
        self.retry.begin();
        loop {
            if closed_within(&shared, self.retry.next()) {
                return Ok(false);
            }
            match shared.troubles.probe().and_then(|()| self.reopen()) {
                Ok(()) => break,
                Err(error) if error.is_transient() => shared.troubles.rise(&error),
                Err(error) => return Err(error),
            }
        }
        self.retry.healed = Some(Instant::now());
        shared.troubles.pass();
        Ok(true)
    }

    fn reopen(&mut self) -> Result<(), LogError> {
        let shared = Arc::clone(&self.shared);
        close(&shared)?;
        let storage =
            Storage::open(&shared.options.directory)?.ok_or(LogError::Corrupt("its directory is gone"))?;
        let applied = storage.applied()?;
        if storage.epoch()? != self.epoch || applied.watermark.lsn < *shared.durable.borrow() {
            return Err(LogError::Corrupt("what had been flushed is gone; check the disk"));
        }
        let spans = open_spans(&storage, applied)?;
        let marks = MarkSet::new(storage.marks()?);
        shared.replace_shapes(storage.shapes()?);
        let engine = Engine::new(storage, spans);
        // The transaction under way is the same, whatever of it is on disk.
        let before = self.place;
        self.place = Place::of(&engine, applied)?.with_open(before.open);
        let mut retained = std::mem::take(&mut lock(&shared.unflushed).retained);
        restore_marks(&shared, marks, &mut retained);
        let applied = self.apply_to(&engine, &retained, Way::Journal);
        let mut unflushed = lock(&shared.unflushed);
        unflushed.retained = retained;
        if let Err(error) = applied {
            self.place = before;
            return Err(error);
        }
        (unflushed.broken, unflushed.urgent) = (false, true);
        drop(unflushed);
        lock(&shared.queue).broken = None;
        shared.put_engine(engine);
        shared.flush_wake.notify_all();
        Ok(())
    }
}

/// Lets go of the failed storage once nobody reads from it.
fn close(shared: &Shared) -> Result<(), LogError> {
    let Some(mut engine) = shared.take_engine() else { return Ok(()) };
    let deadline = Instant::now() + READERS;
    loop {
        match Arc::try_unwrap(engine) {
            Ok(alone) => {
                drop(alone);
                return Ok(());
            }
            // What they hold they let go of; the next try finds it closed, or is refused by its lock.
            Err(shared) if Instant::now() >= deadline => {
                drop(shared);
                return Err(LogError::Stalled("a reader still holds its storage".into()));
            }
            Err(shared) => engine = shared,
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// The marks as the storage has them, and behind them those of what is put in again or waits; what has to
/// be written for these is found anew.
fn restore_marks(shared: &Shared, mut marks: MarkSet, retained: &mut VecDeque<Queued>) {
    let mut queue = lock(&shared.queue);
    for queued in retained.iter_mut().chain(&mut queue.items) {
        queued.marks = match marks.with(&queued.append.marks) {
            Some((changed, changes)) => {
                marks = changed;
                changes
            }
            None => Vec::new(),
        };
    }
    shared.replace_marks(marks);
}

fn closed_within(shared: &Shared, pause: Duration) -> bool {
    let deadline = Instant::now() + pause;
    let mut queue = lock(&shared.queue);
    while !queue.closed && Instant::now() < deadline {
        queue = wait_until(&shared.queue_wake, queue, deadline);
    }
    queue.closed
}
