//! The transaction that is being received: what it has come to so far, and when it has to be passed
//! on in parts.

use std::sync::Arc;

use crate::change::{Body, Delivery, Mark, Tag, Transaction};
use crate::hub::Touched;
use crate::lsn::Lsn;
use crate::position::Position;
use crate::wal::pgoutput::Begin;

/// Each message of the stream takes two places, since a key change is two changes. So an index
/// depends on nothing but the stream.
const PLACES: u32 = 2;

/// The transaction holds more messages than positions can tell apart.
#[derive(Debug, thiserror::Error)]
#[error("the transaction that commits at {commit} holds more than {} changes; it cannot be delivered", u32::MAX / PLACES)]
pub struct TooManyChanges {
    pub commit: Lsn,
}

#[derive(Debug)]
pub struct Assembly {
    commit: Lsn,
    xid: u32,
    committed_at: i64,
    greatest_committed_at: i64,
    messages: u32,
    deliveries: Vec<Delivery>,
    size: usize,
    pub tag: Option<Tag>,
    pub fence: Option<String>,
    pub marks: Vec<Mark>,
    /// Set once a part was passed on.
    attempt: Option<u32>,
    touched: Touched,
    /// Before the log's end: rows of it are there already, or belong to no log.
    pub skipped: bool,
}

impl Assembly {
    pub fn new(begin: &Begin, greatest_so_far: i64, skipped: bool) -> Self {
        let committed_at = begin.commit_time.unix_micros();
        Assembly {
            commit: begin.final_lsn,
            xid: begin.xid,
            committed_at,
            greatest_committed_at: greatest_so_far.max(committed_at),
            messages: 0,
            deliveries: Vec::new(),
            size: 0,
            tag: None,
            fence: None,
            marks: Vec::new(),
            attempt: None,
            touched: Touched::default(),
            skipped,
        }
    }

    pub fn xid(&self) -> u32 {
        self.xid
    }

    pub fn attempt(&self) -> Option<u32> {
        self.attempt
    }

    pub fn greatest_committed_at(&self) -> i64 {
        self.greatest_committed_at
    }

    /// A place for the next message: its first index.
    pub fn next_index(&mut self) -> Result<u32, TooManyChanges> {
        self.messages = self.messages.checked_add(PLACES).ok_or(TooManyChanges { commit: self.commit })?;
        Ok(self.messages)
    }

    /// Where the message that came last stands.
    pub fn position(&self) -> Position {
        Position::new(self.commit, self.messages)
    }

    pub fn add(&mut self, index: u32, body: Body) {
        let delivery = Delivery { index, body };
        self.size += delivery.size();
        self.deliveries.push(delivery);
    }

    /// Bytes held.
    pub fn size(&self) -> usize {
        self.size
    }

    pub fn is_in_parts(&self) -> bool {
        self.attempt.is_some()
    }

    /// What was received since the last part, to be passed on before the end is known.
    pub fn take_part(&mut self) -> Transaction {
        if self.attempt.is_none() {
            self.attempt = Some(rand::random());
        }
        let deliveries = std::mem::take(&mut self.deliveries);
        deliveries.iter().for_each(|delivery| self.touched.add(delivery));
        self.size = 0;
        self.transaction(deliveries, None)
    }

    /// The end: the transaction, or its last part with those whom it concerned.
    pub fn finish(mut self) -> (Arc<Transaction>, Option<Touched>, Vec<Mark>) {
        let deliveries = std::mem::take(&mut self.deliveries);
        if self.attempt.is_some() {
            deliveries.iter().for_each(|delivery| self.touched.add(delivery));
        }
        let tag = self.tag.take();
        let marks = std::mem::take(&mut self.marks);
        let transaction = Arc::new(self.transaction(deliveries, tag));
        let touched = self.attempt.is_some().then_some(self.touched);
        (transaction, touched, marks)
    }

    fn transaction(&self, deliveries: Vec<Delivery>, tag: Option<Tag>) -> Transaction {
        Transaction {
            commit: self.commit,
            xid: self.xid,
            committed_at: self.committed_at,
            greatest_committed_at: self.greatest_committed_at,
            attempt: self.attempt,
            tag,
            deliveries,
        }
    }
}
