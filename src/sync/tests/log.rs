//! A log in memory, by the letter of the trait's contract, for tests of what is built on it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use futures_util::future::{self, BoxFuture, FutureExt as _};
use tokio::sync::watch;

use crate::change::{Body, Delivery, Mark, RowChange, Transaction};
use crate::cursor::Epoch;
use crate::log::{
    Append, ColumnQuery, Interest, Log, LogError, LogStats, Marks, Page, ReadError, ReadRequest, TimeLookup,
    Watermark,
};
use crate::lsn::Lsn;
use crate::position::Position;
use crate::topic::Audience;

#[derive(Debug)]
pub(super) struct MemoryLog {
    pub(super) transactions: Mutex<Vec<Arc<Transaction>>>,
    pub(super) oldest: Mutex<Position>,
    marks: Mutex<Marks>,
    marks_version: AtomicU64,
    /// Comes into force in the middle of the next read, as ingest's marks may.
    pub(super) mark_during_read: Mutex<Option<Mark>>,
    pub(super) watermark: watch::Sender<Watermark>,
    kept: Mutex<std::collections::BTreeMap<String, Vec<u8>>>,
}

impl MemoryLog {
    pub(super) fn new(transactions: Vec<Arc<Transaction>>, end: Lsn) -> Self {
        let greatest_committed_at = transactions.last().map_or(0, |last| last.greatest_committed_at);
        MemoryLog {
            transactions: Mutex::new(transactions),
            oldest: Mutex::new(Position::boundary(Lsn::new(1))),
            marks: Mutex::default(),
            marks_version: AtomicU64::new(0),
            mark_during_read: Mutex::new(None),
            kept: Mutex::default(),
            watermark: watch::channel(Watermark { lsn: end, greatest_committed_at }).0,
        }
    }

    pub(super) fn mark(&self, mark: Mark) {
        let mut marks = self.marks.lock().unwrap();
        let mut new = marks.as_ref().clone();
        new.push(mark);
        *marks = Arc::new(new);
        self.marks_version.fetch_add(1, Ordering::SeqCst);
    }
}

/// What a reader gets of a delivery.
fn restricted(delivery: &Delivery, at: Position, interests: &[Interest]) -> Option<Delivery> {
    let wants = |audience: &Audience, table: &str| {
        interests.iter().any(|i| i.audience == *audience && i.tables.contains(table) && at > i.after)
    };
    let body = match &delivery.body {
        Body::Row(row) => {
            let mut memberships = row.memberships.clone();
            memberships.retain(|member| wants(&member.audience, &row.shape.name));
            if memberships.is_empty() {
                return None;
            }
            Body::Row(RowChange { memberships, ..row.clone() })
        }
        Body::Truncate(shape) => {
            let reads = |i: &Interest| {
                i.tables.contains(&shape.name)
                    && shape.scopes.iter().any(|s| s == i.audience.scope())
                    && at > i.after
            };
            interests.iter().any(reads).then(|| delivery.body.clone())?
        }
        Body::Broadcast(broadcast) => {
            wants(&broadcast.audience, &broadcast.name).then(|| delivery.body.clone())?
        }
    };
    Some(Delivery { index: delivery.index, body })
}

impl Log for MemoryLog {
    fn epoch(&self) -> Epoch {
        Epoch::new(7)
    }

    fn oldest(&self) -> Position {
        *self.oldest.lock().unwrap()
    }

    fn watermark(&self) -> watch::Receiver<Watermark> {
        self.watermark.subscribe()
    }

    fn durable(&self) -> watch::Receiver<Lsn> {
        watch::channel(self.watermark.borrow().lsn).1
    }

    fn submit(&self, append: Append) -> Result<Result<(), Append>, LogError> {
        append.marks.into_iter().for_each(|mark| self.mark(mark));
        Ok(Ok(()))
    }

    fn room(&self) -> BoxFuture<'_, Result<(), LogError>> {
        future::ready(Ok(())).boxed()
    }

    fn applied(&self) -> BoxFuture<'_, Result<(), LogError>> {
        future::ready(Ok(())).boxed()
    }

    fn flush(&self) -> BoxFuture<'_, Result<(), LogError>> {
        future::ready(Ok(())).boxed()
    }

    fn failed(&self) -> BoxFuture<'_, LogError> {
        future::pending().boxed()
    }

    fn closed(&self) -> BoxFuture<'static, ()> {
        future::pending().boxed()
    }

    fn read(&self, request: &ReadRequest<'_>) -> Result<Page, ReadError> {
        if let Some(mark) = self.mark_during_read.lock().unwrap().take() {
            self.mark(mark);
        }
        if request.after < self.oldest() {
            return Err(ReadError::TooOld { oldest: self.oldest() });
        }
        let upto = request.upto.min(self.watermark.borrow().position());
        let mut wanted = Vec::new();
        for transaction in self.transactions.lock().unwrap().iter() {
            for delivery in &transaction.deliveries {
                let at = transaction.position(delivery);
                if at > request.after && at <= upto {
                    wanted.extend(
                        restricted(delivery, at, request.interests).map(|d| (Arc::clone(transaction), d)),
                    );
                }
            }
        }
        let (mut taken, mut bytes) = (0, 0);
        while taken < wanted.len()
            && (taken == 0 || taken < request.max_deliveries && bytes < request.max_bytes)
        {
            bytes += wanted[taken].1.size();
            taken += 1;
        }
        let rest = wanted.split_off(taken);
        let last = wanted.last().map(|(t, d)| t.position(d));
        let cut = rest.first().is_some_and(|(t, _)| Some(t.commit) == last.map(|p| p.commit));
        let through = if rest.is_empty() { upto } else { last.unwrap() };
        // Large transactions come in pieces, as from parts.
        let transactions = wanted
            .chunk_by(|a, b| a.0.commit == b.0.commit)
            .flat_map(|of_one| of_one.chunks(3))
            .map(|piece| {
                let deliveries = piece.iter().map(|(_, delivery)| delivery.clone()).collect();
                Arc::new(Transaction { deliveries, ..(*piece[0].0).clone() })
            })
            .collect();
        Ok(Page { transactions, through, more: !rest.is_empty(), cut, paused_at: None })
    }

    fn lookup_time(&self, time: i64) -> Result<TimeLookup, LogError> {
        let transactions = self.transactions.lock().unwrap();
        let first = transactions.iter().find(|t| t.committed_at >= time);
        Ok(first.map_or(TimeLookup::InFuture, |t| TimeLookup::From(Position::boundary(t.commit))))
    }

    fn column_value(&self, _: &ColumnQuery<'_>) -> Result<Option<String>, LogError> {
        Ok(None)
    }

    fn marks(&self) -> Marks {
        Arc::clone(&self.marks.lock().unwrap())
    }

    fn marks_version(&self) -> u64 {
        self.marks_version.load(Ordering::SeqCst)
    }

    fn mark_beyond(&self, _: &Audience, table: &str, after: Position) -> Option<Mark> {
        self.marks().iter().find(|mark| *mark.table == *table && mark.upto > after).cloned()
    }

    fn state(&self, _: &str) -> Result<Option<Vec<u8>>, LogError> {
        Ok(None)
    }

    fn commits(&self, _after: Position, _max: usize) -> Result<Vec<(u32, Lsn)>, LogError> {
        Ok(Vec::new())
    }

    fn states(&self, _prefix: &str) -> Result<Vec<(String, Vec<u8>)>, LogError> {
        Ok(Vec::new())
    }

    fn keep(&self, name: &str, value: Option<&[u8]>) -> Result<(), LogError> {
        let mut kept = self.kept.lock().unwrap();
        match value {
            Some(value) => kept.insert(name.to_owned(), value.to_vec()),
            None => kept.remove(name),
        };
        Ok(())
    }

    fn kept(&self, name: &str) -> Result<Option<Vec<u8>>, LogError> {
        Ok(self.kept.lock().unwrap().get(name).cloned())
    }

    fn kept_under(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, LogError> {
        let kept = self.kept.lock().unwrap();
        let under = kept.iter().filter(|(name, _)| name.starts_with(prefix));
        Ok(under.map(|(name, value)| (name.clone(), value.clone())).collect())
    }

    fn kept_page(&self, prefix: &str, after: &str, most: usize) -> Result<Vec<(String, Vec<u8>)>, LogError> {
        let under = self.kept_under(prefix)?;
        Ok(under.into_iter().filter(|(name, _)| name.as_str() > after).take(most).collect())
    }

    fn stats(&self) -> LogStats {
        LogStats::default()
    }
}
