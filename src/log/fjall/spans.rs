//! Retention: the log as a row of spans of time, of which the oldest is dropped whole.
//!
//! A span holds the positions from its first up to the next span's first, and nothing else counts of
//! what may stand in it. A new one begins only between transactions. Forgetting is dropping a keyspace:
//! no entry is read or rewritten for it.
//!
//! The rules are pure: ages and sizes come in, decisions go out.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fjall::Keyspace;
use serde::{Deserialize, Serialize};

use super::database::SPAN_MEMTABLE_BYTES;
use crate::log::LogError;
use crate::position::Position;

/// Into how many spans age and size are divided: what is kept beyond the limit is at most one of them.
const SPANS: u32 = 8;

/// A span takes no more than this, before compression: as many tables as are never merged.
const SPAN_BYTES: u64 = 16 * SPAN_MEMTABLE_BYTES;

/// Nor more tables than this, which are less full where they come straight from a backlog.
const SPAN_TABLES: usize = 20;

/// What is known of a span without reading it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SpanInfo {
    pub(super) seq: u64,
    /// The watermark with which it began.
    pub(super) first: Position,
    /// No commit before it has a greater commit time. Microseconds since 1970.
    pub(super) first_greatest_committed_at: i64,
    /// By this machine's clock, microseconds since 1970.
    pub(super) created_at: i64,
    /// What was written to it, before compression; final when the next one begins.
    pub(super) bytes: u64,
}

impl SpanInfo {
    pub(super) fn keyspace_name(&self) -> String {
        Self::keyspace_of(self.seq)
    }

    pub(super) fn keyspace_of(seq: u64) -> String {
        format!("span-{seq}")
    }
}

/// What the journal takes beside the spans: a file is closed when it has passed 64 MB at the writing of a
/// memtable, and goes when everything in it has reached tables, by which time the next may be as long.
const JOURNALS_BYTES: u64 = 2 * (64 << 20) + 2 * SPAN_MEMTABLE_BYTES;

#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) max_age: Duration,
    /// Of all spans together.
    pub(super) max_size: u64,
}

impl Limits {
    /// `max_size` is of the whole log. One that leaves the spans less than the journal takes bounds them
    /// alone: the journal does not become smaller.
    pub(super) fn of_log(max_age: Duration, max_size: u64) -> Self {
        let rest = max_size.saturating_sub(JOURNALS_BYTES);
        Limits { max_age, max_size: rest.max(max_size.min(JOURNALS_BYTES)) }
    }

    /// Whether what comes next belongs into a new span.
    pub(super) fn wants_new(&self, current: &SpanInfo, size: u64, tables: usize, now: i64) -> bool {
        let age = age_of(current.created_at, now);
        let full =
            size >= self.max_size / u64::from(SPANS) || current.bytes >= SPAN_BYTES || tables >= SPAN_TABLES;
        current.bytes > 0 && (full || age >= self.max_age / SPANS)
    }

    /// How many of the oldest spans to drop. `spans` from the oldest, each with its size in bytes. The
    /// newest is never dropped.
    pub(super) fn forgettable(&self, spans: &[(SpanInfo, u64)], now: i64) -> usize {
        let mut total: u64 = spans.iter().map(|(_, size)| size).sum();
        let mut count = 0;
        for pair in spans.windows(2) {
            let [(_, size), (next, _)] = pair else { break };
            // The newest content of a span is not newer than the beginning of the next one.
            if age_of(next.created_at, now) <= self.max_age && total <= self.max_size {
                break;
            }
            total -= size;
            count += 1;
        }
        count
    }
}

/// A clock that was set back makes nothing old.
fn age_of(then: i64, now: i64) -> Duration {
    Duration::from_micros(u64::try_from(now.saturating_sub(then)).unwrap_or(0))
}

/// A span with its entries.
#[derive(Clone)]
pub(super) struct Span {
    pub(super) info: SpanInfo,
    pub(super) keyspace: Keyspace,
    /// Shared by all copies; runs ahead of `info.bytes` while the span is the newest.
    pub(super) bytes: Arc<AtomicU64>,
}

impl Span {
    pub(super) fn new(info: SpanInfo, keyspace: Keyspace) -> Self {
        let bytes = Arc::new(AtomicU64::new(info.bytes));
        Span { info, keyspace, bytes }
    }

    pub(super) fn written(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(super) fn tables(&self) -> usize {
        self.keyspace.l0_table_count()
    }

    /// About what it takes on disk: its tables, and as much as may not have reached them yet.
    pub(super) fn size(&self) -> u64 {
        self.keyspace.disk_space() + self.written().min(2 * SPAN_MEMTABLE_BYTES)
    }
}

/// The spans in order, and which of them holds a position.
#[derive(Clone)]
pub(super) struct Spans(pub(super) Vec<Span>);

impl Spans {
    /// The one that is written to.
    pub(super) fn newest(&self) -> Result<Span, LogError> {
        self.0.last().cloned().ok_or(LogError::Corrupt("the list of spans"))
    }

    pub(super) fn oldest(&self) -> Position {
        self.0.first().map_or(Position::ZERO, |span| span.info.first)
    }

    /// A span and the first position of the next one.
    pub(super) fn with_ends(&self) -> impl DoubleEndedIterator<Item = (&Span, Option<Position>)> {
        let next = |index: usize| self.0.get(index + 1).map(|span| span.info.first);
        self.0.iter().enumerate().map(move |(index, span)| (span, next(index)))
    }

    pub(super) fn holding(&self, position: Position) -> Option<&Span> {
        self.0.iter().rev().find(|span| span.info.first <= position)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::lsn::Lsn;

    fn info(seq: u64, created_at: i64) -> SpanInfo {
        let first = Position::boundary(Lsn::new(seq));
        SpanInfo { seq, first, first_greatest_committed_at: 0, created_at, bytes: 1 }
    }

    const SECOND: i64 = 1_000_000;
    const LIMITS: Limits = Limits { max_age: Duration::from_secs(80), max_size: 800 };

    #[test]
    fn the_journal_counts() {
        let spans = |max_size| Limits::of_log(Duration::ZERO, max_size).max_size;
        assert_eq!(spans(10 << 30), (10 << 30) - JOURNALS_BYTES);
        assert_eq!(spans(2 * JOURNALS_BYTES), JOURNALS_BYTES);
        assert_eq!(spans(4 << 20), 4 << 20, "no smaller than this and the journal");
    }

    #[test]
    fn a_new_span_begins_by_age_or_size() {
        let current = info(1, 0);
        assert!(!LIMITS.wants_new(&current, 99, 0, 9 * SECOND));
        assert!(LIMITS.wants_new(&current, 100, 0, 0));
        assert!(LIMITS.wants_new(&current, 1, 0, 10 * SECOND));
        assert!(!LIMITS.wants_new(&current, 1, SPAN_TABLES - 1, -10 * SECOND), "the clock went back");
        assert!(LIMITS.wants_new(&SpanInfo { bytes: SPAN_BYTES, ..current.clone() }, 1, 0, 0));
        assert!(LIMITS.wants_new(&current, 1, SPAN_TABLES, 0));
        assert!(!LIMITS.wants_new(&SpanInfo { bytes: 0, ..current }, 1, 0, 1000 * SECOND), "still empty");
    }

    #[test]
    fn what_is_younger_than_the_age_stays_while_it_fits() {
        let spans = [(info(1, 0), 100), (info(2, 10 * SECOND), 100), (info(3, 20 * SECOND), 100)];
        assert_eq!(LIMITS.forgettable(&spans, 90 * SECOND), 0);
        assert_eq!(LIMITS.forgettable(&spans, 90 * SECOND + 1), 1);
        assert_eq!(LIMITS.forgettable(&spans, 1000 * SECOND), 2, "the newest stays");
        let large = [(info(1, 0), 500), (info(2, 0), 400), (info(3, 0), 401)];
        assert_eq!(LIMITS.forgettable(&large, 0), 2);
    }

    proptest! {
        #[test]
        fn nothing_is_forgotten_without_need(
            steps in prop::collection::vec((0..30i64, 0..300u64), 1..12),
            wait in 0..200i64,
        ) {
            let mut now = 0;
            let mut spans = Vec::new();
            for (seq, (step, size)) in steps.into_iter().enumerate() {
                now += step * SECOND;
                spans.push((info(seq as u64, now), size));
            }
            now += wait * SECOND;
            let count = LIMITS.forgettable(&spans, now);
            prop_assert!(count < spans.len());
            for dropped in 0..count {
                let too_old = now - spans[dropped + 1].0.created_at > 80 * SECOND;
                let too_large = spans[dropped..].iter().map(|(_, size)| size).sum::<u64>() > 800;
                prop_assert!(too_old || too_large);
            }
            let rest = &spans[count..];
            if rest.len() > 1 {
                prop_assert!(rest.iter().map(|(_, size)| size).sum::<u64>() <= 800);
                prop_assert!(now - rest[1].0.created_at <= 80 * SECOND);
            }
        }
    }
}
