//! The writer: one thread that turns appends into batches of the storage, in order.
//!
//! Whatever is queued when it wakes goes into one batch, so that a busy stream pays the journal's costs
//! seldom and a quiet one waits for nothing. Readers learn of the watermark after the batch is readable.
//! It also begins new spans and drops old ones, between batches and never inside a transaction.
//!
//! It ends with the first error: what is in the storage then is what was applied, and no more is.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use fjall::{Keyspace, OwnedWriteBatch, PersistMode};

use super::codec::{self, TransactionRecord};
use super::keys;
use super::marks::MarkChange;
use super::shared::{Queued, Shared, lock, wait_until};
use super::spans::{Limits, Span, SpanInfo, Spans};
use super::storage::{Applied, json, mark_key, shape_key, span_key, state_key};
use crate::change::{Body, Shape, Transaction};
use crate::log::{LogError, Watermark};
use crate::lsn::Lsn;

/// Queued appends of about so many bytes become one batch. More would delay the first of them.
const BATCH_BYTES: usize = 1 << 20;

/// How often retention is looked at while nothing is appended.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(60);

pub(super) struct Writer {
    shared: Arc<Shared>,
    applied: Applied,
    /// Commit and greatest commit time of the transaction whose end is still to come.
    open: Option<(Lsn, i64)>,
    /// The newest slot of the time index in the newest span.
    time_slot: Option<u64>,
    last_upkeep: Instant,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, applied: Applied) -> Result<Self, LogError> {
        let newest = newest(&shared.spans())?;
        let last = newest.keyspace.prefix([b'g']).next_back();
        let key = last.map(|guard| guard.key().map_err(shared.storage.failure())).transpose()?;
        let time_slot = key.map(|key| keys::slot_of_time_key(&key)).transpose()?;
        Ok(Writer { shared, applied, open: None, time_slot, last_upkeep: Instant::now() })
    }

    /// The thread's body: until the queue is closed and empty.
    pub(super) fn run(mut self) -> Result<(), LogError> {
        while let Some(taken) = self.take() {
            self.upkeep()?;
            if !taken.is_empty() {
                self.apply(taken)?;
            }
        }
        Ok(())
    }

    /// What is queued, as far as it fits a batch; nothing when it is time for upkeep.
    fn take(&self) -> Option<VecDeque<Queued>> {
        let deadline = Instant::now() + UPKEEP_INTERVAL;
        let mut queue = lock(&self.shared.queue);
        while queue.items.is_empty() {
            if queue.closed {
                return None;
            }
            if deadline <= Instant::now() {
                break;
            }
            queue = wait_until(&self.shared.queue_wake, queue, deadline);
        }
        let mut bytes = 0;
        let fits = |queued: &Queued| {
            bytes += queued.bytes;
            bytes <= BATCH_BYTES
        };
        let count = queue.items.iter().take_while(with_first(fits)).count();
        Some(queue.items.drain(..count).collect())
    }

    fn apply(&mut self, taken: VecDeque<Queued>) -> Result<(), LogError> {
        let shared = self.shared.clone();
        let newest = newest(&shared.spans())?;
        let mut staged =
            Staged { batch: shared.storage.db.batch(), span: newest.keyspace.clone(), bytes: 0, shape: None };
        let (count, bytes) = (taken.len() as u64, taken.iter().map(|queued| queued.bytes).sum::<usize>());
        for queued in &taken {
            self.stage(&mut staged, queued)?;
        }
        let written = staged.bytes as u64;
        newest.bytes.fetch_add(written, Ordering::Relaxed);
        self.applied.span_bytes = newest.written();
        shared.storage.put_applied(&mut staged.batch, self.applied);
        staged.batch.commit().map_err(shared.storage.failure())?;
        self.publish(count, bytes);
        Ok(())
    }

    /// After the batch is readable.
    fn publish(&self, appends: u64, bytes: usize) {
        let shared = &self.shared;
        let watermark = self.applied.watermark;
        shared.watermark.send_if_modified(|known| std::mem::replace(known, watermark) != watermark);
        lock(&shared.queue).bytes -= bytes;
        let mut unflushed = lock(&shared.unflushed);
        unflushed.applied += appends;
        unflushed.watermark = watermark.lsn;
        unflushed.bytes += bytes;
        let first = unflushed.since.is_none();
        unflushed.since.get_or_insert_with(Instant::now);
        let (applied, due) = (unflushed.applied, unflushed.bytes >= shared.options.group_commit_size);
        drop(unflushed);
        if first || due {
            shared.flush_wake.notify_all();
        }
        shared.progress.send_modify(|progress| progress.applied = applied);
    }

    fn stage(&mut self, staged: &mut Staged, queued: &Queued) -> Result<(), LogError> {
        let append = &queued.append;
        if let Some(transaction) = &append.transaction
            && transaction.commit >= self.applied.watermark.lsn
        {
            self.stage_transaction(staged, transaction)?;
        }
        for change in &queued.marks {
            self.stage_mark(&mut staged.batch, change)?;
        }
        let meta = &self.shared.storage.meta;
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
        let Watermark { lsn: known, greatest_committed_at } = &mut self.applied.watermark;
        if lsn <= *known {
            return;
        }
        *known = lsn;
        if let Some((_, greatest)) = self.open.take_if(|(commit, _)| *commit < lsn) {
            *greatest_committed_at = greatest.max(*greatest_committed_at);
        }
    }

    fn stage_transaction(&mut self, staged: &mut Staged, transaction: &Transaction) -> Result<(), LogError> {
        let commit = transaction.commit;
        let greatest = transaction.greatest_committed_at;
        self.open = Some((commit, greatest));
        let slot = keys::time_slot(greatest);
        if self.time_slot.is_none_or(|newest| slot > newest) {
            self.time_slot = Some(slot);
            staged.put(&keys::time_key(slot), &commit.get().to_be_bytes());
        }
        staged.put(&keys::transaction_key(commit), &TransactionRecord::of(transaction).encode());
        for delivery in &transaction.deliveries {
            let position = transaction.position(delivery);
            match &delivery.body {
                Body::Row(row) => {
                    self.stage_shape(staged, &row.shape)?;
                    for membership in &row.memberships {
                        let prefix = keys::audience_prefix(&membership.audience);
                        let value = codec::encode_row(transaction, row, membership);
                        staged.put(&keys::entry_key(prefix, position), &value);
                    }
                }
                Body::Truncate(shape) => {
                    self.stage_shape(staged, shape)?;
                    let value = codec::encode_truncate(transaction, shape.id);
                    staged.put(&keys::entry_key(keys::control_prefix(), position), &value);
                }
                Body::Broadcast(broadcast) => {
                    let prefix = keys::audience_prefix(&broadcast.audience);
                    let value = codec::encode_broadcast(transaction, broadcast);
                    staged.put(&keys::entry_key(prefix, position), &value);
                }
            }
        }
        Ok(())
    }

    fn stage_shape(&self, staged: &mut Staged, shape: &Arc<Shape>) -> Result<(), LogError> {
        if staged.shape.as_ref().is_some_and(|known| Arc::ptr_eq(known, shape)) {
            return Ok(());
        }
        if self.shared.shapes().get(&shape.id).is_none_or(|known| *known != *shape) {
            staged.batch.insert(&self.shared.storage.meta, shape_key(shape.id), json(&**shape)?);
            self.shared.add_shape(shape.clone());
        }
        staged.shape = Some(shape.clone());
        Ok(())
    }

    fn stage_mark(&self, batch: &mut OwnedWriteBatch, change: &MarkChange) -> Result<(), LogError> {
        let meta = &self.shared.storage.meta;
        match change {
            MarkChange::Put(mark) => batch.insert(meta, mark_key(mark), json(mark)?),
            MarkChange::Remove(mark) => batch.remove(meta, mark_key(mark)),
        }
        Ok(())
    }

    fn upkeep(&mut self) -> Result<(), LogError> {
        if self.open.is_some() {
            return Ok(());
        }
        let options = &self.shared.options;
        let limits = Limits { max_age: options.max_age, max_size: options.max_size };
        let now = (self.shared.clock)();
        let newest = newest(&self.shared.spans())?;
        let info = SpanInfo { bytes: newest.written(), ..newest.info.clone() };
        let begin = limits.wants_new(&info, newest.size(), now);
        if begin {
            self.begin_span(info, now)?;
        }
        if begin || self.last_upkeep.elapsed() >= UPKEEP_INTERVAL {
            self.last_upkeep = Instant::now();
            self.forget(limits, now)?;
        }
        Ok(())
    }

    /// The keyspace is there before the list of spans names it; one that no list names is removed when
    /// the log is opened.
    fn begin_span(&mut self, last: SpanInfo, now: i64) -> Result<(), LogError> {
        let shared = &self.shared;
        let watermark = self.applied.watermark;
        let info = SpanInfo {
            seq: last.seq + 1,
            first: watermark.position(),
            first_greatest_committed_at: watermark.greatest_committed_at,
            created_at: now,
            bytes: 0,
        };
        let keyspace = shared.storage.new_span_keyspace(&info)?;
        let mut batch = shared.storage.db.batch();
        batch.insert(&shared.storage.meta, span_key(last.seq), json(&last)?);
        batch.insert(&shared.storage.meta, span_key(info.seq), json(&info)?);
        let applied = Applied { span_bytes: 0, ..self.applied };
        shared.storage.put_applied(&mut batch, applied);
        batch.commit().map_err(shared.storage.failure())?;
        let mut spans = Spans::clone(&shared.spans());
        // What is over goes to its tables. A span that is small would stay in memory, and fjall looks at
        // its journal only when something is written to tables: it would grow without end.
        if let Some(over) = spans.0.last() {
            over.keyspace.rotate_memtable().map_err(shared.storage.failure())?;
        }
        spans.0.push(Span::new(info, keyspace));
        shared.set_spans(spans);
        (self.applied, self.time_slot) = (applied, None);
        Ok(())
    }

    /// The list of spans lets go of a keyspace, durably, before it is removed. A reading under way holds
    /// it until it is done.
    fn forget(&self, limits: Limits, now: i64) -> Result<(), LogError> {
        let shared = &self.shared;
        let spans = shared.spans();
        let sizes: Vec<_> = spans.0.iter().map(|span| (span.info.clone(), span.size())).collect();
        let count = limits.forgettable(&sizes, now);
        if count == 0 {
            return Ok(());
        }
        let (gone, rest) = spans.0.split_at(count);
        let rest = Spans(rest.to_vec());
        let mut batch = shared.storage.db.batch();
        for span in gone {
            batch.remove(&shared.storage.meta, span_key(span.info.seq));
        }
        for change in shared.change_marks(|marks| marks.since(rest.oldest())) {
            self.stage_mark(&mut batch, &change)?;
        }
        batch.commit().map_err(shared.storage.failure())?;
        shared.set_spans(rest);
        shared.storage.db.persist(PersistMode::SyncData).map_err(shared.storage.failure())?;
        for span in gone {
            let dropped = shared.storage.db.delete_keyspace(span.keyspace.clone());
            dropped.map_err(shared.storage.failure())?;
            let (first, bytes) = (span.info.first, span.info.bytes);
            tracing::info!(span = span.info.seq, %first, bytes, "forgot the oldest span of the log");
        }
        Ok(())
    }
}

/// A batch in the making.
struct Staged {
    batch: OwnedWriteBatch,
    span: Keyspace,
    bytes: usize,
    /// The last one seen to be known.
    shape: Option<Arc<Shape>>,
}

impl Staged {
    fn put(&mut self, key: &[u8], value: &[u8]) {
        self.bytes += key.len() + value.len();
        self.batch.insert(&self.span, key, value);
    }
}

fn newest(spans: &Spans) -> Result<Span, LogError> {
    spans.0.last().cloned().ok_or(LogError::Corrupt("the list of spans"))
}

/// Lets the first item pass, however large it is.
fn with_first<T>(mut fits: impl FnMut(&T) -> bool) -> impl FnMut(&&T) -> bool {
    let mut first = true;
    move |item| fits(item) | std::mem::take(&mut first)
}
