//! A batch in the making: what appends become in the storage, whichever way it gets there.

use std::sync::Arc;

use fjall::OwnedWriteBatch;

use super::codec::{self, TransactionRecord};
use super::entries::Entries;
use super::keys;
use super::marks::MarkChange;
use super::shared::{Engine, Queued, Shared};
use super::storage::{Applied, Storage, json, mark_key, shape_key, state_key};
use crate::change::{Body, Shape, Transaction};
use crate::log::{LogError, Watermark};
use crate::lsn::Lsn;
use crate::position::Position;
use crate::topic::Audience;

/// Where the writer stands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) applied: Applied,
    /// Commit and greatest commit time of the transaction whose end is still to come.
    pub(super) open: Option<(Lsn, i64)>,
    /// The newest slot of the time index in the newest span.
    pub(super) time_slot: Option<u64>,
}

impl Place {
    pub(super) fn of(engine: &Engine, applied: Applied) -> Result<Self, LogError> {
        let last = engine.spans().newest()?.keyspace.prefix([b'g']).next_back();
        let key = last.map(|guard| guard.key().map_err(engine.storage.failure())).transpose()?;
        let time_slot = key.map(|key| keys::slot_of_time_key(&key)).transpose()?;
        Ok(Place { applied, open: None, time_slot })
    }

    pub(super) fn with_open(self, open: Option<(Lsn, i64)>) -> Self {
        Place { open, ..self }
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
}

/// A batch in the making.
pub(super) struct Staged<'a> {
    shared: &'a Shared,
    storage: &'a Storage,
    /// What is no entry: marks, shapes, states.
    pub(super) batch: OwnedWriteBatch,
    pub(super) entries: &'a mut Entries,
    /// The last one seen to be known.
    shape: Option<Arc<Shape>>,
}

impl<'a> Staged<'a> {
    pub(super) fn new(shared: &'a Shared, storage: &'a Storage, entries: &'a mut Entries) -> Self {
        Staged { shared, storage, batch: storage.db.batch(), entries, shape: None }
    }

    /// Puts in what the watermark does not say is there already.
    pub(super) fn append(&mut self, place: &mut Place, queued: &Queued) -> Result<(), LogError> {
        let append = &queued.append;
        if let Some(transaction) = &append.transaction
            && transaction.commit >= place.applied.watermark.lsn
        {
            self.transaction(place, transaction)?;
        }
        for change in &queued.marks {
            put_mark(self.storage, &mut self.batch, change)?;
        }
        let meta = &self.storage.meta;
        for (name, value) in &append.state {
            match value {
                Some(value) => self.batch.insert(meta, state_key(name), value.as_slice()),
                None => self.batch.remove(meta, state_key(name)),
            }
        }
        if let Some(lsn) = append.watermark {
            place.advance(lsn);
        }
        Ok(())
    }

    fn transaction(&mut self, place: &mut Place, transaction: &Transaction) -> Result<(), LogError> {
        let commit = transaction.commit;
        let greatest = transaction.greatest_committed_at;
        place.open = Some((commit, greatest));
        let slot = keys::time_slot(greatest);
        if place.time_slot.is_none_or(|newest| slot > newest) {
            place.time_slot = Some(slot);
            let commit = commit.get().to_be_bytes();
            self.put(keys::time_key(slot), |out| out.extend_from_slice(&commit));
        }
        self.put(keys::transaction_key(commit), |out| TransactionRecord::of(transaction).put(out));
        for delivery in &transaction.deliveries {
            let position = transaction.position(delivery);
            match &delivery.body {
                Body::Row(row) => {
                    self.shape(&row.shape)?;
                    for membership in &row.memberships {
                        let value = |out: &mut _| codec::put_row(out, transaction, row, membership);
                        self.put_for(&membership.audience, position, value);
                    }
                }
                Body::Truncate(shape) => {
                    self.shape(shape)?;
                    let key = keys::entry_key(keys::control_prefix(), position);
                    self.put(key, |out| codec::put_truncate(out, transaction, shape.id));
                }
                Body::Broadcast(broadcast) => {
                    let value = |out: &mut _| codec::put_broadcast(out, transaction, broadcast);
                    self.put_for(&broadcast.audience, position, value);
                }
            }
        }
        Ok(())
    }

    fn shape(&mut self, shape: &Arc<Shape>) -> Result<(), LogError> {
        if self.shape.as_ref().is_some_and(|known| Arc::ptr_eq(known, shape)) {
            return Ok(());
        }
        if self.shared.shapes().get(&shape.id).is_none_or(|known| *known != *shape) {
            self.batch.insert(&self.storage.meta, shape_key(shape.id), json(&**shape)?);
            self.shared.add_shape(shape.clone());
        }
        self.shape = Some(shape.clone());
        Ok(())
    }

    fn put(&mut self, key: impl AsRef<[u8]>, value: impl FnOnce(&mut Vec<u8>)) {
        self.entries.put(|out| out.extend_from_slice(key.as_ref()), value);
    }

    fn put_for(&mut self, audience: &Audience, position: Position, value: impl FnOnce(&mut Vec<u8>)) {
        let key = |out: &mut Vec<u8>| {
            keys::put_audience_prefix(out, audience);
            keys::put_position(out, position);
        };
        self.entries.put(key, value);
    }
}

pub(super) fn put_mark(
    storage: &Storage,
    batch: &mut OwnedWriteBatch,
    change: &MarkChange,
) -> Result<(), LogError> {
    match change {
        MarkChange::Put(mark) => batch.insert(&storage.meta, mark_key(mark), json(mark)?),
        MarkChange::Remove(mark) => batch.remove(&storage.meta, mark_key(mark)),
    }
    Ok(())
}
