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

/// A transaction that makes copies of more audiences of one table stale makes all of them stale.
const MAX_MARKED_AUDIENCES: usize = 256;

/// The transaction holds more messages than positions can tell apart.
#[derive(Debug, thiserror::Error)]
#[error("the transaction that commits at {commit} holds more than {} changes; it cannot be delivered", u32::MAX / PLACES)]
pub struct TooManyChanges {
    pub commit: Lsn,
}

/// Whoever holds the catalog's rights may put as many fences as it likes into a transaction; the relay puts one.
const MAX_FENCES: usize = 16;

/// A transaction that is complete.
#[derive(Debug)]
pub(super) struct Finished {
    /// All of it, or its last part.
    pub(super) transaction: Arc<Transaction>,
    /// Whom it concerned, if it came in parts.
    pub(super) touched: Option<Touched>,
    pub(super) marks: Vec<Mark>,
    pub(super) fences: Vec<String>,
}

#[derive(Debug)]
pub(super) struct Assembly {
    commit: Lsn,
    xid: u32,
    committed_at: i64,
    greatest_committed_at: i64,
    messages: u32,
    deliveries: Vec<Delivery>,
    size: usize,
    pub(super) tag: Option<Tag>,
    pub(super) marks: Vec<Mark>,
    /// Ids of fences that it carries.
    fences: Vec<String>,
    /// Set once a part was passed on.
    attempt: Option<u32>,
    touched: Touched,
    /// Before the log's end: rows of it are there already, or belong to no log.
    pub(super) skipped: bool,
}

impl Assembly {
    pub(super) fn new(begin: &Begin, greatest_so_far: i64, skipped: bool) -> Self {
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
            marks: Vec::new(),
            fences: Vec::new(),
            attempt: None,
            touched: Touched::default(),
            skipped,
        }
    }

    pub(super) fn xid(&self) -> u32 {
        self.xid
    }

    pub(super) fn attempt(&self) -> Option<u32> {
        self.attempt
    }

    pub(super) fn greatest_committed_at(&self) -> i64 {
        self.greatest_committed_at
    }

    /// A place for the next message: its first index.
    pub(super) fn next_index(&mut self) -> Result<u32, TooManyChanges> {
        self.messages = self.messages.checked_add(PLACES).ok_or(TooManyChanges { commit: self.commit })?;
        Ok(self.messages)
    }

    /// Where the message that came last stands.
    pub(super) fn position(&self) -> Position {
        Position::new(self.commit, self.messages)
    }

    pub(super) fn add(&mut self, index: u32, body: Body) {
        let delivery = Delivery { index, body };
        self.size += delivery.size();
        self.deliveries.push(delivery);
    }

    /// Bytes held.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// Told with the transaction's end. Many audiences of one table become the whole table, so that a
    /// large transaction does not grow memory by its marks.
    pub(super) fn add_mark(&mut self, mark: Mark) {
        let same_table = |other: &Mark| other.table == mark.table;
        if mark.audience.is_none() {
            self.marks.push(mark);
            return;
        }
        // Positions only grow while a transaction is received.
        if let Some(old) =
            self.marks.iter_mut().rev().find(|old| old.audience == mark.audience && same_table(old))
        {
            old.upto = mark.upto;
            return;
        }
        let of_audiences = |other: &Mark| other.audience.is_some() && same_table(other);
        if self.marks.iter().filter(|other| of_audiences(other)).count() < MAX_MARKED_AUDIENCES {
            self.marks.push(mark);
        } else {
            self.marks.retain(|other| !(same_table(other) && other.reason == mark.reason));
            self.marks.push(Mark { audience: None, ..mark });
        }
    }

    /// What was received since the last part, to be passed on before the end is known.
    pub(super) fn take_part(&mut self) -> Transaction {
        if self.attempt.is_none() {
            self.attempt = Some(rand::random());
        }
        let deliveries = std::mem::take(&mut self.deliveries);
        deliveries.iter().for_each(|delivery| self.touched.add(delivery));
        self.size = 0;
        self.transaction(deliveries, None)
    }

    pub(super) fn add_fence(&mut self, id: String) {
        if self.fences.len() < MAX_FENCES {
            self.fences.push(id);
        }
    }

    pub(super) fn finish(mut self) -> Finished {
        let deliveries = std::mem::take(&mut self.deliveries);
        if self.attempt.is_some() {
            deliveries.iter().for_each(|delivery| self.touched.add(delivery));
        }
        let tag = self.tag.take();
        let marks = std::mem::take(&mut self.marks);
        let transaction = Arc::new(self.transaction(deliveries, tag));
        let touched = self.attempt.is_some().then_some(self.touched);
        Finished { transaction, touched, marks, fences: self.fences }
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::change::{Broadcast, Reason};
    use crate::timestamp::PgTimestamp;
    use crate::topic::Audience;

    fn assembly() -> Assembly {
        let begin = Begin { final_lsn: Lsn::new(100), commit_time: PgTimestamp::now(), xid: 7 };
        Assembly::new(&begin, i64::MAX, false)
    }

    fn broadcast(payload: &'static str) -> Body {
        Body::Broadcast(Broadcast {
            audience: Audience::parse("user:1").unwrap(),
            name: "news".into(),
            id: "i".into(),
            event: "e".into(),
            payload: payload.into(),
        })
    }

    fn mark(audience: Option<u32>, upto: u32) -> Mark {
        Mark {
            table: "orders".into(),
            audience: audience.map(|id| Audience::parse(&format!("user:{id}")).unwrap()),
            scopes: vec!["user".into()],
            upto: Position::new(Lsn::new(100), upto),
            reason: if audience.is_some() { Reason::Toast } else { Reason::Retracked },
        }
    }

    #[test]
    fn every_message_leaves_room_for_two_changes() {
        let mut assembly = assembly();
        assert_eq!(assembly.position(), Position::boundary(Lsn::new(100)));
        assert_eq!((assembly.next_index().unwrap(), assembly.next_index().unwrap()), (2, 4));
        assert_eq!(assembly.position(), Position::new(Lsn::new(100), 4));
        assembly.messages = u32::MAX - 1;
        assert!(assembly.next_index().is_err());
    }

    #[test]
    fn a_small_transaction_stays_whole() {
        let mut assembly = assembly();
        assembly.add(2, broadcast("1"));
        assert!(assembly.size() > 0);
        let Finished { transaction, touched, marks, .. } = assembly.finish();
        assert_eq!((transaction.attempt, transaction.deliveries.len(), marks.len()), (None, 1, 0));
        assert_eq!(transaction.greatest_committed_at, i64::MAX);
        assert!(touched.is_none());
    }

    #[test]
    fn all_parts_are_of_one_attempt_and_the_tag_comes_with_the_last() {
        let mut assembly = assembly();
        assembly.tag = Some(Tag { device: "d".into(), correlation: None, user: None });
        assembly.add(2, broadcast("1"));
        let first = assembly.take_part();
        assert_eq!((assembly.size(), first.deliveries.len(), &first.tag), (0, 1, &None));
        assembly.add(4, broadcast("2"));
        assembly.add_mark(mark(None, 4));
        let Finished { transaction: last, touched, marks, .. } = assembly.finish();
        assert!(first.attempt.is_some() && first.attempt == last.attempt);
        assert_eq!((last.deliveries[0].index, marks.len()), (4, 1));
        assert!(last.tag.is_some() && touched.is_some());
    }

    #[test]
    fn marks_do_not_grow_with_the_transaction() {
        let mut assembly = assembly();
        assembly.add_mark(mark(None, 1));
        for index in 2..10_000 {
            assembly.add_mark(mark(Some(7), index));
        }
        assert_eq!(assembly.marks, [mark(None, 1), mark(Some(7), 9_999)]);
        for index in 10_000..20_000 {
            assembly.add_mark(mark(Some(index), index));
            assert!(assembly.marks.len() <= MAX_MARKED_AUDIENCES + 2);
        }
        // Whoever was marked is covered by what is left.
        assert_eq!(assembly.marks.first(), Some(&mark(None, 1)));
        for index in 10_000..20_000 {
            let mark = mark(Some(index), index);
            let covers = |left: &Mark| {
                left.upto >= mark.upto && (left.audience.is_none() || left.audience == mark.audience)
            };
            assert!(assembly.marks.iter().any(covers), "{index}");
        }
    }
}
