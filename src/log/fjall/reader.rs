//! Reading a range: the audiences' entries merged in the order of positions.
//!
//! Each audience is a stream of its own over the spans; a small heap holds the next position of each.
//! A reading keeps the watermark, spans, marks and shapes that it began with. The watermark is taken
//! first, so that the others know at least what lies before it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::ops::Bound;
use std::sync::Arc;

use super::codec::{self, Entry, EntryBody, RowEntry, Sending, Stamp, TransactionRecord};
use super::keys;
use super::marks::MarkSet;
use super::merge::merge;
use super::shared::{Engine, Shapes, Shared};
use super::spans::Spans;
use super::storage::Storage;
use crate::change::{Body, Broadcast, Delivery, Shape, Tag, Transaction};
use crate::log::{Interest, LogError, Page, ReadError, ReadRequest};
use crate::lsn::Lsn;
use crate::position::Position;
use crate::topic::Audience;

pub(super) fn read(shared: &Shared, request: &ReadRequest<'_>) -> Result<Page, ReadError> {
    let upto = request.upto.min(shared.watermark.borrow().position());
    let view = View::of(shared)?;
    let oldest = view.spans.oldest();
    if request.after < oldest {
        return Err(ReadError::TooOld { oldest });
    }
    let mut merged = Merged::new(&view, request, upto)?;
    let mut page = PageBuilder::default();
    loop {
        let (position, details, body) = match merged.next(&page)? {
            Step::Delivery(position, details, body) => (position, details, body),
            Step::Paused(position, greatest) => return Ok(page.pause(position, greatest)),
            Step::End => return Ok(page.end(upto)),
        };
        let full = page.deliveries >= request.max_deliveries.max(1) || page.bytes >= request.max_bytes;
        if page.deliveries > 0 && full {
            return Ok(page.cut_before(position));
        }
        page.push(position, details, body);
    }
}

/// What comes next.
#[expect(clippy::large_enum_variant, reason = "taken apart where it is made")]
enum Step {
    Delivery(Position, Details, Body),
    /// Enough was looked at: up to this position, which is behind the page's last transaction, and with
    /// the greatest commit time there.
    Paused(Position, i64),
    End,
}

/// What a reading looks at.
pub(super) struct View {
    pub(super) spans: Arc<Spans>,
    pub(super) marks: Arc<MarkSet>,
    shapes: Arc<Shapes>,
    /// Let go of last: who has it alone may close it.
    engine: Arc<Engine>,
}

impl View {
    pub(super) fn of(shared: &Shared) -> Result<Self, LogError> {
        let engine = shared.engine()?;
        let (spans, marks) = (engine.spans(), shared.marks());
        Ok(View { spans, marks, shapes: shared.shapes(), engine })
    }

    pub(super) fn storage(&self) -> &Storage {
        &self.engine.storage
    }

    pub(super) fn shape(&self, id: u32) -> Result<&Arc<Shape>, LogError> {
        self.shapes.get(&id).ok_or(LogError::Corrupt("an entry of an unknown shape"))
    }

    pub(super) fn transaction(&self, commit: Lsn) -> Result<Option<TransactionRecord>, LogError> {
        let Some(span) = self.spans.holding(Position::new(commit, u32::MAX)) else { return Ok(None) };
        let value = span.keyspace.get(keys::transaction_key(commit)).map_err(self.storage().failure())?;
        value.map(|value| TransactionRecord::decode(&value)).transpose()
    }
}

/// What a page says of a transaction.
#[derive(Debug, Clone)]
struct Details {
    xid: u32,
    committed_at: i64,
    greatest_committed_at: i64,
    attempt: Option<u32>,
    tag: Option<Tag>,
}

/// Entries of one audience (or of the control order) in `(after, upto]`, span after span.
struct Stream<'a> {
    view: &'a View,
    prefix: Vec<u8>,
    after: Position,
    upto: Position,
    next_span: usize,
    entries: Option<fjall::Iter>,
}

impl Stream<'_> {
    fn next(&mut self) -> Result<Option<(Position, fjall::UserValue)>, LogError> {
        loop {
            if let Some(guard) = self.entries.as_mut().and_then(Iterator::next) {
                let (key, value) = guard.into_inner().map_err(self.view.storage().failure())?;
                return Ok(Some((keys::entry_position(&key)?, value)));
            }
            if self.after >= self.upto {
                return Ok(None);
            }
            let spans = &self.view.spans.0;
            let Some(span) = spans.get(self.next_span) else { return Ok(None) };
            let end = spans.get(self.next_span + 1).map(|next| next.info.first);
            self.next_span += 1;
            self.entries =
                range(&self.prefix, self.after, self.upto, end).map(|range| span.keyspace.range(range));
        }
    }
}

pub(super) type KeyRange = (Bound<Vec<u8>>, Bound<Vec<u8>>);

/// The keys of one span in `(after, upto]` before the next span's first position; `None` if there can
/// be none.
pub(super) fn range(
    prefix: &[u8],
    after: Position,
    upto: Position,
    end: Option<Position>,
) -> Option<KeyRange> {
    let key = |position| keys::entry_key(prefix.to_vec(), position);
    let last = match end {
        Some(end) if end <= after => return None,
        Some(end) if end <= upto => Bound::Excluded(key(end)),
        _ => Bound::Included(key(upto)),
    };
    (after < upto).then(|| (Bound::Excluded(key(after)), last))
}

/// All of a reader's streams as one, with only what it wants.
struct Merged<'a> {
    view: &'a View,
    /// By audience; the stream of the same index holds its entries. The last stream is the control order.
    readers: Vec<(&'a Audience, Vec<&'a Interest>)>,
    streams: Vec<Stream<'a>>,
    heads: Vec<Option<fjall::UserValue>>,
    heap: BinaryHeap<Reverse<(Position, usize)>>,
    /// The last record looked up, for a transaction in parts has one for all its entries.
    looked_up: Option<(Lsn, Option<TransactionRecord>)>,
    /// Entries that may still be looked at.
    visits_left: usize,
}

impl<'a> Merged<'a> {
    fn new(view: &'a View, request: &ReadRequest<'a>, upto: Position) -> Result<Self, LogError> {
        let mut readers: BTreeMap<&Audience, Vec<&Interest>> = BTreeMap::new();
        for interest in request.interests {
            readers.entry(&interest.audience).or_default().push(interest);
        }
        let readers: Vec<_> = readers.into_iter().collect();
        let begin = |interests: &[&Interest]| interests.iter().map(|one| one.after).min();
        let stream = |prefix, begin: Option<Position>| {
            let after = begin.unwrap_or(upto).max(request.after);
            Stream { view, prefix, after, upto, next_span: 0, entries: None }
        };
        let mut streams: Vec<_> =
            readers.iter().map(|(audience, of)| stream(keys::audience_prefix(audience), begin(of))).collect();
        let first = readers.iter().filter_map(|(_, of)| begin(of)).min();
        streams.push(stream(keys::control_prefix(), first));
        let heads = streams.iter().map(|_| None).collect();
        let mut merged = Merged {
            view,
            readers,
            streams,
            heads,
            heap: BinaryHeap::new(),
            looked_up: None,
            visits_left: request.max_visited,
        };
        for index in 0..merged.streams.len() {
            merged.advance(index)?;
        }
        Ok(merged)
    }

    fn advance(&mut self, index: usize) -> Result<(), LogError> {
        let (Some(stream), Some(head)) = (self.streams.get_mut(index), self.heads.get_mut(index)) else {
            return Ok(());
        };
        if let Some((position, value)) = stream.next()? {
            *head = Some(value);
            self.heap.push(Reverse((position, index)));
        }
        Ok(())
    }

    /// The next delivery that some interest wants.
    fn next(&mut self, page: &PageBuilder) -> Result<Step, LogError> {
        while let Some(&Reverse((position, _))) = self.heap.peek() {
            let (mut details, mut rows, mut other) = (None, Vec::new(), None);
            let mut passed = None;
            while let Some((index, value)) = self.take_at(position)? {
                let Entry { stamp, body } = codec::decode_entry(&value)?;
                if !self.wants(index, position, &body)? {
                    passed = Some(stamp);
                    continue;
                }
                let Some(found) = self.details(position.commit, stamp)? else { continue };
                details = Some(found);
                match (body, self.readers.get(index)) {
                    (EntryBody::Row(row), Some((audience, _))) => rows.push(((*audience).clone(), row)),
                    (body, reader) => other = self.body(body, reader.map(|(audience, _)| *audience))?,
                }
            }
            let body = match other {
                Some(body) => Some(body),
                None => self.row(rows)?,
            };
            if let (Some(details), Some(body)) = (details, body) {
                return Ok(Step::Delivery(position, details, body));
            }
            // Looked at only here, behind what nobody wants: then there is always progress.
            if self.visits_left == 0
                && !page.holds_some_of(position.commit)
                && let Some(stamp) = passed
                && let Some(details) = self.details(position.commit, stamp)?
            {
                return Ok(Step::Paused(position, details.greatest_committed_at));
            }
        }
        Ok(Step::End)
    }

    /// The next entry at a position; those of one position come in the order of their audiences.
    fn take_at(&mut self, position: Position) -> Result<Option<(usize, fjall::UserValue)>, LogError> {
        while let Some(&Reverse((next, index))) = self.heap.peek()
            && next == position
        {
            self.heap.pop();
            let value = self.heads.get_mut(index).and_then(Option::take);
            self.visits_left = self.visits_left.saturating_sub(1);
            self.advance(index)?;
            if let Some(value) = value {
                return Ok(Some((index, value)));
            }
        }
        Ok(None)
    }

    fn wants(&self, index: usize, position: Position, body: &EntryBody) -> Result<bool, LogError> {
        let reader = self.readers.get(index);
        let wanted = |(audience, interests): &(&Audience, Vec<&Interest>), table: &str, marked: bool| {
            interests.iter().any(|interest| position > interest.after && interest.tables.contains(table))
                && !(marked && self.view.marks.hide(audience, table, position))
        };
        Ok(match body {
            EntryBody::Row(row) => {
                let table = &self.view.shape(row.shape)?.name;
                reader.is_some_and(|reader| wanted(reader, table, true))
            }
            EntryBody::Broadcast { name, .. } => reader.is_some_and(|reader| wanted(reader, name, false)),
            EntryBody::Truncate { shape } => {
                let shape = self.view.shape(*shape)?;
                let concerns =
                    |audience: &Audience| shape.scopes.iter().any(|scope| scope == audience.scope());
                self.readers.iter().any(|reader| concerns(reader.0) && wanted(reader, &shape.name, true))
            }
        })
    }

    /// `None`: a part that was left over when its transaction was sent again.
    fn details(&mut self, commit: Lsn, stamp: Stamp) -> Result<Option<Details>, LogError> {
        let Stamp { xid, committed_at, sending } = stamp;
        let attempt = match sending {
            Sending::Whole { greatest_committed_at, tag } => {
                return Ok(Some(Details { xid, committed_at, greatest_committed_at, attempt: None, tag }));
            }
            Sending::Part { attempt } => attempt,
        };
        if self.looked_up.as_ref().is_none_or(|(known, _)| *known != commit) {
            self.looked_up = Some((commit, self.view.transaction(commit)?));
        }
        let record = self.looked_up.as_ref().and_then(|(_, record)| record.as_ref());
        let record = record.ok_or(LogError::Corrupt("a part of an unknown transaction"))?;
        Ok((record.attempt == Some(attempt)).then(|| Details {
            xid: record.xid,
            committed_at: record.committed_at,
            greatest_committed_at: record.greatest_committed_at,
            attempt: record.attempt,
            tag: record.tag.clone(),
        }))
    }

    fn body(&self, body: EntryBody, audience: Option<&Audience>) -> Result<Option<Body>, LogError> {
        Ok(match (body, audience) {
            (EntryBody::Truncate { shape }, _) => Some(Body::Truncate(self.view.shape(shape)?.clone())),
            (EntryBody::Broadcast { name, id, event, payload }, Some(audience)) => {
                Some(Body::Broadcast(Broadcast { audience: audience.clone(), name, id, event, payload }))
            }
            _ => None,
        })
    }

    fn row(&self, rows: Vec<(Audience, RowEntry)>) -> Result<Option<Body>, LogError> {
        let Some((_, first)) = rows.first() else { return Ok(None) };
        let shape = self.view.shape(first.shape)?.clone();
        Ok(merge(shape, rows).map(Body::Row))
    }
}

#[derive(Debug, Default)]
struct PageBuilder {
    transactions: Vec<Transaction>,
    deliveries: usize,
    bytes: usize,
    last: Position,
}

impl PageBuilder {
    fn push(&mut self, position: Position, details: Details, body: Body) {
        let delivery = Delivery { index: position.index, body };
        self.deliveries += 1;
        self.bytes += delivery.size();
        self.last = position;
        match self.transactions.last_mut() {
            Some(transaction) if transaction.commit == position.commit => {
                transaction.deliveries.push(delivery)
            }
            _ => self.transactions.push(Transaction {
                commit: position.commit,
                xid: details.xid,
                committed_at: details.committed_at,
                greatest_committed_at: details.greatest_committed_at,
                attempt: details.attempt,
                tag: details.tag,
                deliveries: vec![delivery],
            }),
        }
    }

    fn holds_some_of(&self, commit: Lsn) -> bool {
        self.deliveries > 0 && self.last.commit == commit
    }

    fn pause(self, through: Position, greatest: i64) -> Page {
        Page { transactions: self.shared(), through, more: true, cut: false, paused_at: Some(greatest) }
    }

    fn cut_before(self, next: Position) -> Page {
        let (through, cut) = (self.last, next.commit == self.last.commit);
        Page { transactions: self.shared(), through, more: true, cut, paused_at: None }
    }

    fn end(self, through: Position) -> Page {
        Page { transactions: self.shared(), through, more: false, cut: false, paused_at: None }
    }

    fn shared(self) -> Vec<Arc<Transaction>> {
        self.transactions.into_iter().map(Arc::new).collect()
    }
}
