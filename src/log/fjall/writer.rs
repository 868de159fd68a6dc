//! The writer: one thread that turns appends into batches of the storage, in order.
//!
//! Whatever is queued when it wakes goes into one batch, so that a busy stream pays the journal's costs
//! seldom and a quiet one waits for nothing. Readers learn of the watermark after the batch is readable.
//! It also begins new spans and drops old ones, between batches and never inside a transaction.
//!
//! What the storage fails with it mends itself (`healing`); what was taken and not applied is taken again.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use fjall::{Keyspace, OwnedWriteBatch, PersistMode};

use super::codec::{self, TransactionRecord};
use super::healing::Retry;
use super::keys;
use super::marks::MarkChange;
use super::shared::{Engine, Queued, Shared, lock, wait, wait_until};
use super::spans::{Limits, Span, SpanInfo, Spans};
use super::storage::{Applied, Storage, json, mark_key, shape_key, span_key, state_key};
use crate::change::{Body, Shape, Transaction};
use crate::cursor::Epoch;
use crate::log::{LogError, Watermark};
use crate::lsn::Lsn;

/// Queued appends of about so many bytes become one batch. More would delay the first of them.
const BATCH_BYTES: usize = 1 << 20;

/// How often retention is looked at while nothing is appended.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(60);

pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) epoch: Epoch,
    pub(super) place: Place,
    pub(super) retry: Retry,
    last_upkeep: Instant,
}

/// Where the writer stands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    applied: Applied,
    /// Commit and greatest commit time of the transaction whose end is still to come.
    pub(super) open: Option<(Lsn, i64)>,
    /// The newest slot of the time index in the newest span.
    time_slot: Option<u64>,
}

impl Place {
    pub(super) fn of(engine: &Engine, applied: Applied) -> Result<Self, LogError> {
        let last = newest(&engine.spans())?.keyspace.prefix([b'g']).next_back();
        let key = last.map(|guard| guard.key().map_err(engine.storage.failure())).transpose()?;
        let time_slot = key.map(|key| keys::slot_of_time_key(&key)).transpose()?;
        Ok(Place { applied, open: None, time_slot })
    }

    pub(super) fn with_open(self, open: Option<(Lsn, i64)>) -> Self {
        Place { open, ..self }
    }
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, applied: Applied, epoch: Epoch) -> Result<Self, LogError> {
        let place = Place::of(&*shared.engine()?, applied)?;
        Ok(Writer { shared, epoch, place, retry: Retry::default(), last_upkeep: Instant::now() })
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

    /// What is queued, as far as it fits a batch; nothing when it is time for upkeep. Fails with what the
    /// storage failed with elsewhere.
    fn take(&self) -> Result<Option<VecDeque<Queued>>, LogError> {
        self.wait_for_flusher();
        let deadline = Instant::now() + UPKEEP_INTERVAL;
        let mut queue = lock(&self.shared.queue);
        loop {
            if let Some(error) = queue.broken.take() {
                return Err(error);
            }
            if !queue.items.is_empty() {
                break;
            }
            if queue.closed {
                return Ok(None);
            }
            if deadline <= Instant::now() {
                break;
            }
            queue.awaited = true;
            queue = wait_until(&self.shared.queue_wake, queue, deadline);
            queue.awaited = false;
        }
        let mut bytes = 0;
        let fits = |queued: &Queued| {
            bytes += queued.bytes;
            bytes <= BATCH_BYTES
        };
        let count = queue.items.iter().take_while(with_first(fits)).count();
        Ok(Some(queue.items.drain(..count).collect()))
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
        self.apply_to(&engine, taken)
    }

    /// All of it as one batch.
    pub(super) fn apply_to(&mut self, engine: &Engine, taken: &VecDeque<Queued>) -> Result<(), LogError> {
        let storage = &engine.storage;
        let newest = newest(&engine.spans())?;
        let mut staged = Staged {
            storage,
            batch: storage.db.batch(),
            span: newest.keyspace.clone(),
            entries: Vec::new(),
            bytes: 0,
            shape: None,
        };
        for queued in taken {
            self.stage(&mut staged, queued)?;
        }
        staged.put_entries();
        let written = staged.bytes as u64;
        newest.bytes.fetch_add(written, Ordering::Relaxed);
        self.place.applied.span_bytes = newest.written();
        storage.put_applied(&mut staged.batch, self.place.applied);
        storage.wait_for_tables(&newest.keyspace, written)?;
        storage.wait_for_tables(&storage.meta, written)?;
        staged.batch.commit().map_err(storage.failure())
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

    fn stage(&mut self, staged: &mut Staged<'_>, queued: &Queued) -> Result<(), LogError> {
        let append = &queued.append;
        if let Some(transaction) = &append.transaction
            && transaction.commit >= self.place.applied.watermark.lsn
        {
            self.stage_transaction(staged, transaction)?;
        }
        for change in &queued.marks {
            stage_mark(staged.storage, &mut staged.batch, change)?;
        }
        let meta = &staged.storage.meta;
        for (name, value) in &append.state {
            match value {
                Some(value) => staged.batch.insert(meta, state_key(name), value.as_slice()),
                None => staged.batch.remove(meta, state_key(name)),
            }
        }
        if let Some(lsn) = append.watermark {
            self.advance(lsn);
        }
        Ok(())
    }

    fn advance(&mut self, lsn: Lsn) {
        let Watermark { lsn: known, greatest_committed_at } = &mut self.place.applied.watermark;
        if lsn <= *known {
            return;
        }
        *known = lsn;
        if let Some((_, greatest)) = self.place.open.take_if(|(commit, _)| *commit < lsn) {
            *greatest_committed_at = greatest.max(*greatest_committed_at);
        }
    }

    fn stage_transaction(
        &mut self,
        staged: &mut Staged<'_>,
        transaction: &Transaction,
    ) -> Result<(), LogError> {
        let commit = transaction.commit;
        let greatest = transaction.greatest_committed_at;
        self.place.open = Some((commit, greatest));
        let slot = keys::time_slot(greatest);
        if self.place.time_slot.is_none_or(|newest| slot > newest) {
            self.place.time_slot = Some(slot);
            staged.put(keys::time_key(slot), commit.get().to_be_bytes().into());
        }
        staged.put(keys::transaction_key(commit), TransactionRecord::of(transaction).encode());
        for delivery in &transaction.deliveries {
            let position = transaction.position(delivery);
            match &delivery.body {
                Body::Row(row) => {
                    self.stage_shape(staged, &row.shape)?;
                    for membership in &row.memberships {
                        let prefix = keys::audience_prefix(&membership.audience);
                        let value = codec::encode_row(transaction, row, membership);
                        staged.put(keys::entry_key(prefix, position), value);
                    }
                }
                Body::Truncate(shape) => {
                    self.stage_shape(staged, shape)?;
                    let value = codec::encode_truncate(transaction, shape.id);
                    staged.put(keys::entry_key(keys::control_prefix(), position), value);
                }
                Body::Broadcast(broadcast) => {
                    let prefix = keys::audience_prefix(&broadcast.audience);
                    let value = codec::encode_broadcast(transaction, broadcast);
                    staged.put(keys::entry_key(prefix, position), value);
                }
            }
        }
        Ok(())
    }

    fn stage_shape(&self, staged: &mut Staged<'_>, shape: &Arc<Shape>) -> Result<(), LogError> {
        if staged.shape.as_ref().is_some_and(|known| Arc::ptr_eq(known, shape)) {
            return Ok(());
        }
        if self.shared.shapes().get(&shape.id).is_none_or(|known| *known != *shape) {
            staged.batch.insert(&staged.storage.meta, shape_key(shape.id), json(&**shape)?);
            self.shared.add_shape(shape.clone());
        }
        staged.shape = Some(shape.clone());
        Ok(())
    }

    fn upkeep(&mut self) -> Result<(), LogError> {
        if self.place.open.is_some() {
            return Ok(());
        }
        let options = &self.shared.options;
        let limits = Limits::of_log(options.max_age, options.max_size);
        let now = (self.shared.clock)();
        let engine = self.shared.engine()?;
        let newest = newest(&engine.spans())?;
        let info = SpanInfo { bytes: newest.written(), ..newest.info.clone() };
        let begin = limits.wants_new(&info, newest.size(), now);
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
            stage_mark(storage, &mut batch, &change)?;
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

/// A batch in the making.
struct Staged<'a> {
    storage: &'a Storage,
    batch: OwnedWriteBatch,
    span: Keyspace,
    /// What goes to the span.
    entries: Vec<(Vec<u8>, Vec<u8>)>,
    bytes: usize,
    /// The last one seen to be known.
    shape: Option<Arc<Shape>>,
}

impl Staged<'_> {
    fn put(&mut self, key: impl Into<Vec<u8>>, value: Vec<u8>) {
        let key = key.into();
        self.bytes += key.len() + value.len();
        self.entries.push((key, value));
    }

    /// Puts the entries into the batch, in the order of their keys: neighbours in the engine's table in memory
    /// are found by the same steps.
    fn put_entries(&mut self) {
        // Of one key the last counts, so their order stays.
        self.entries.sort_by(|(one, _), (other, _)| one.cmp(other));
        for (key, value) in self.entries.drain(..) {
            self.batch.insert(&self.span, key, value);
        }
    }
}

fn stage_mark(storage: &Storage, batch: &mut OwnedWriteBatch, change: &MarkChange) -> Result<(), LogError> {
    match change {
        MarkChange::Put(mark) => batch.insert(&storage.meta, mark_key(mark), json(mark)?),
        MarkChange::Remove(mark) => batch.remove(&storage.meta, mark_key(mark)),
    }
    Ok(())
}

fn newest(spans: &Spans) -> Result<Span, LogError> {
    spans.0.last().cloned().ok_or(LogError::Corrupt("the list of spans"))
}

/// Lets the first item pass, however large it is.
fn with_first<T>(mut fits: impl FnMut(&T) -> bool) -> impl FnMut(&&T) -> bool {
    let mut first = true;
    move |item| fits(item) | std::mem::take(&mut first)
}
