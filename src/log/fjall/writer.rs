//! The writer: one thread that turns appends into batches of the storage, in order.
//!
//! Whatever is queued when it wakes goes into one batch, so that a busy stream pays the journal's costs
//! seldom and a quiet one waits for nothing. Readers learn of the watermark after the batch is readable.
//! It also begins new spans and drops old ones, between batches and never inside a transaction.
//!
//! What the storage fails with it mends itself (`healing`); what was taken and not applied is taken again.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use fjall::PersistMode;

use super::bulk::{PATIENCE, QUIET, Rate};
use super::entries::Entries;
use super::healing::Retry;
use super::shared::{Engine, Queue, Queued, Shared, lock, wait, wait_until};
use super::spans::{Limits, Span, SpanInfo, Spans};
use super::staged::{Place, Staged, put_mark};
use super::storage::{Applied, json, span_key};
use crate::cursor::Epoch;
use crate::log::LogError;

/// Queued appends of about so many bytes become one batch. More would delay the first of them.
const BATCH_BYTES: usize = 1 << 20;

/// How often retention is looked at while nothing is appended.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(60);

pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) epoch: Epoch,
    pub(super) place: Place,
    pub(super) retry: Retry,
    rate: Rate,
    /// Those of the batch in the making; kept for their memory.
    entries: Entries,
    last_upkeep: Instant,
}

/// How a batch gets to the storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// All of it by the engine's journal.
    Journal,
    /// Entries as a table of their own.
    Table,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, applied: Applied, epoch: Epoch) -> Result<Self, LogError> {
        let place = Place::of(&*shared.engine()?, applied)?;
        let now = Instant::now();
        let rate = Rate::new(&shared.options, now);
        let entries = Entries::default();
        Ok(Writer { shared, epoch, place, retry: Retry::default(), rate, entries, last_upkeep: now })
    }

    /// The thread's body: until the queue is closed and empty.
    pub(super) fn run(mut self) -> Result<(), LogError> {
        loop {
            match self.work() {
                Err(error) if error.is_transient() => {
                    if !self.heal(error)? {
                        return Ok(());
                    }
                }
                ended => return ended,
            }
        }
    }

    fn work(&mut self) -> Result<(), LogError> {
        while let Some(taken) = self.take()? {
            let place = self.place;
            let applied = match self.upkeep() {
                Ok(()) if taken.is_empty() => continue,
                Ok(()) => self.apply(&taken),
                Err(error) => Err(error),
            };
            if let Err(error) = applied {
                self.place = place;
                let mut queue = lock(&self.shared.queue);
                taken.into_iter().rev().for_each(|queued| queue.items.push_front(queued));
                return Err(error);
            }
            self.publish(taken);
        }
        Ok(())
    }

    /// What is queued, as far as it fits a batch, when there is enough of it; nothing when it is time for
    /// upkeep. Fails with what the storage failed with elsewhere.
    fn take(&self) -> Result<Option<VecDeque<Queued>>, LogError> {
        self.wait_for_flusher();
        let deadline = Instant::now() + UPKEEP_INTERVAL;
        let mut queue = lock(&self.shared.queue);
        while queue.items.is_empty() && queue.broken.is_none() && !queue.closed && Instant::now() < deadline {
            queue = wait_for_bytes(&self.shared, queue, 1, deadline);
        }
        let mut most = BATCH_BYTES;
        if let Some(enough) = self.rate.worth_waiting_for() {
            most = most.max(enough);
            queue = gather(&self.shared, queue, enough);
        }
        if let Some(error) = queue.broken.take() {
            return Err(error);
        }
        if queue.closed && queue.items.is_empty() {
            return Ok(None);
        }
        let mut bytes = 0;
        let fits = |queued: &Queued| {
            bytes += queued.bytes;
            bytes <= most
        };
        let count = queue.items.iter().take_while(with_first(fits)).count();
        let taken = queue.items.drain(..count).collect();
        // Whoever waits does so for all of it.
        queue.urgent &= !queue.items.is_empty();
        Ok(Some(taken))
    }

    /// What is applied and not flushed is held in memory, and that is bounded.
    fn wait_for_flusher(&self) {
        let mut unflushed = lock(&self.shared.unflushed);
        while unflushed.is_full() && !unflushed.broken && !unflushed.stop {
            unflushed = wait(&self.shared.flushed_wake, unflushed);
        }
    }

    fn apply(&mut self, taken: &VecDeque<Queued>) -> Result<(), LogError> {
        let engine = self.shared.engine()?;
        let bytes = taken.iter().map(|queued| queued.bytes).sum();
        let is_table = self.rate.took(bytes, Instant::now())
            && self.place.open.is_none()
            && taken.iter().all(|queued| queued.append.is_whole());
        self.apply_to(&engine, taken, if is_table { Way::Table } else { Way::Journal })
    }

    /// All of it at once.
    pub(super) fn apply_to(
        &mut self,
        engine: &Engine,
        taken: &VecDeque<Queued>,
        way: Way,
    ) -> Result<(), LogError> {
        let mut entries = std::mem::take(&mut self.entries);
        let applied = self.apply_entries(engine, taken, way, &mut entries);
        entries.clear();
        self.entries = entries;
        applied
    }

    fn apply_entries(
        &mut self,
        engine: &Engine,
        taken: &VecDeque<Queued>,
        way: Way,
        entries: &mut Entries,
    ) -> Result<(), LogError> {
        let storage = &engine.storage;
        let newest = engine.spans().newest()?;
        let mut staged = Staged::new(&self.shared, storage, entries);
        for queued in taken {
            staged.append(&mut self.place, queued)?;
        }
        let Staged { mut batch, entries, .. } = staged;
        let written = entries.bytes() as u64;
        storage.wait_for_tables(&newest.keyspace, written)?;
        storage.wait_for_tables(&storage.meta, written)?;
        match way {
            Way::Journal => {
                // In the order of their keys: neighbours in the engine's table in memory are found by the same steps.
                entries.sorted().for_each(|(key, value)| batch.insert(&newest.keyspace, key, value));
            }
            Way::Table => {
                storage.write_table(&newest.info, &newest.keyspace, entries)?;
                storage.remove_mark(&mut batch);
            }
        }
        newest.bytes.fetch_add(written, Ordering::Relaxed);
        self.place.applied.span_bytes = newest.written();
        storage.put_applied(&mut batch, self.place.applied);
        batch.commit().map_err(storage.failure())
    }

    /// After the batch is readable.
    fn publish(&self, taken: VecDeque<Queued>) {
        let shared = &self.shared;
        let (appends, bytes) = (taken.len() as u64, taken.iter().map(|queued| queued.bytes).sum::<usize>());
        let watermark = self.place.applied.watermark;
        shared.watermark.send_if_modified(|known| std::mem::replace(known, watermark) != watermark);
        lock(&shared.queue).bytes -= bytes;
        let mut unflushed = lock(&shared.unflushed);
        unflushed.applied += appends;
        unflushed.watermark = watermark.lsn;
        unflushed.bytes += bytes;
        unflushed.retained_bytes += bytes;
        unflushed.retained.extend(taken);
        let first = unflushed.since.is_none();
        unflushed.since.get_or_insert_with(Instant::now);
        let due = unflushed.bytes >= shared.options.group_commit_size || unflushed.is_full();
        let applied = unflushed.applied;
        drop(unflushed);
        if first || due {
            shared.flush_wake.notify_all();
        }
        shared.progress.send_modify(|progress| progress.applied = applied);
    }

    fn upkeep(&mut self) -> Result<(), LogError> {
        if self.place.open.is_some() {
            return Ok(());
        }
        let options = &self.shared.options;
        let limits = Limits::of_log(options.max_age, options.max_size);
        let now = (self.shared.clock)();
        let engine = self.shared.engine()?;
        let newest = engine.spans().newest()?;
        let info = SpanInfo { bytes: newest.written(), ..newest.info.clone() };
        let begin = limits.wants_new(&info, newest.size(), newest.tables(), now);
        if begin {
            self.begin_span(&engine, info, now)?;
        }
        if begin || self.last_upkeep.elapsed() >= UPKEEP_INTERVAL {
            self.last_upkeep = Instant::now();
            engine.storage.check()?;
            self.forget(&engine, limits, now)?;
        }
        Ok(())
    }

    /// The keyspace is there before the list of spans names it; one that no list names is removed when
    /// the log is opened.
    fn begin_span(&mut self, engine: &Engine, last: SpanInfo, now: i64) -> Result<(), LogError> {
        let storage = &engine.storage;
        let watermark = self.place.applied.watermark;
        let info = SpanInfo {
            seq: last.seq + 1,
            first: watermark.position(),
            first_greatest_committed_at: watermark.greatest_committed_at,
            created_at: now,
            bytes: 0,
        };
        let keyspace = storage.new_span_keyspace(&info)?;
        let mut batch = storage.db.batch();
        batch.insert(&storage.meta, span_key(last.seq), json(&last)?);
        batch.insert(&storage.meta, span_key(info.seq), json(&info)?);
        let applied = Applied { span_bytes: 0, ..self.place.applied };
        storage.put_applied(&mut batch, applied);
        batch.commit().map_err(storage.failure())?;
        let mut spans = Spans::clone(&engine.spans());
        // What is over goes to its tables. A span that is small would stay in memory, and fjall looks at
        // its journal only when something is written to tables: it would grow without end.
        if let Some(over) = spans.0.last() {
            over.keyspace.rotate_memtable().map_err(storage.failure())?;
        }
        spans.0.push(Span::new(info, keyspace));
        self.shared.set_spans(engine, spans);
        (self.place.applied, self.place.time_slot) = (applied, None);
        Ok(())
    }

    /// The list of spans lets go of a keyspace, durably, before it is removed. A reading under way holds
    /// it until it is done.
    fn forget(&self, engine: &Engine, limits: Limits, now: i64) -> Result<(), LogError> {
        let (shared, storage) = (&self.shared, &engine.storage);
        let spans = engine.spans();
        let sizes: Vec<_> = spans.0.iter().map(|span| (span.info.clone(), span.size())).collect();
        let count = limits.forgettable(&sizes, now);
        if count == 0 {
            return Ok(());
        }
        let (gone, rest) = spans.0.split_at(count);
        let rest = Spans(rest.to_vec());
        let mut batch = storage.db.batch();
        for span in gone {
            batch.remove(&storage.meta, span_key(span.info.seq));
        }
        for change in shared.change_marks(|marks| marks.since(rest.oldest())) {
            put_mark(storage, &mut batch, &change)?;
        }
        batch.commit().map_err(storage.failure())?;
        shared.set_spans(engine, rest);
        storage.db.persist(PersistMode::SyncData).map_err(storage.failure())?;
        for span in gone {
            let dropped = storage.db.delete_keyspace(span.keyspace.clone());
            dropped.map_err(storage.failure())?;
            let (first, bytes) = (span.info.first, span.info.bytes);
            tracing::info!(span = span.info.seq, %first, bytes, "forgot the oldest span of the log");
        }
        Ok(())
    }
}

/// Lets appends come until there are `enough` bytes, somebody waits for them, or they come no more.
fn gather<'a>(shared: &'a Shared, mut queue: MutexGuard<'a, Queue>, enough: usize) -> MutexGuard<'a, Queue> {
    let end = Instant::now() + PATIENCE;
    let mut before = 0;
    while queue.bytes > before
        && queue.bytes < enough
        && queue.broken.is_none()
        && !queue.urgent
        && !queue.closed
        && Instant::now() < end
    {
        before = queue.bytes;
        queue = wait_for_bytes(shared, queue, enough, end.min(Instant::now() + QUIET));
    }
    queue
}

fn wait_for_bytes<'a>(
    shared: &'a Shared,
    mut queue: MutexGuard<'a, Queue>,
    bytes: usize,
    deadline: Instant,
) -> MutexGuard<'a, Queue> {
    queue.awaited = Some(bytes);
    let mut queue = wait_until(&shared.queue_wake, queue, deadline);
    queue.awaited = None;
    queue
}

/// Lets the first item pass, however large it is.
fn with_first<T>(mut fits: impl FnMut(&T) -> bool) -> impl FnMut(&&T) -> bool {
    let mut first = true;
    move |item| fits(item) | std::mem::take(&mut first)
}
