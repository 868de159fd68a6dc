//! Cursors and other positions: read as they were written, and in order as text.

use std::sync::Arc;

use super::Source;
use crate::cursor::{Cursor, Epoch};
use crate::horizon::Snapshot;
use crate::lsn::Lsn;
use crate::position::Position;
use crate::sync::PageToken;
use crate::sync::coverage::{Coverage, SyncCursor};
use crate::timestamp::PgTimestamp;
use crate::topic::Pattern;

/// How much of a cursor its order lies in: epoch, commit and index with the points between them.
const ORDERED: usize = 16 + 1 + 16 + 1 + 8;

/// Any text is a cursor in one spelling, or none.
pub(super) fn text(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let cursor = text.parse::<Cursor>();
    if let Ok(cursor) = cursor {
        assert_eq!(cursor.to_string(), text);
        assert_eq!(text.len(), ORDERED);
    }
    let of_rest = SyncCursor::parse(&text);
    if let Ok(of_rest) = &of_rest {
        assert_eq!(of_rest.to_string(), text);
        assert_eq!(text.get(..ORDERED).map(str::parse), Some(Ok(of_rest.cursor)));
        assert_eq!(of_rest.coverage.is_none(), cursor.is_ok());
    }
    if let Some(page) = PageToken::parse(&text) {
        assert_eq!(page.to_string(), text);
        assert!(of_rest.is_err(), "a page is no cursor");
    }
    if let Ok(lsn) = text.parse::<Lsn>() {
        assert_eq!(lsn.to_string().parse(), Ok(lsn));
    }
    if let Ok(snapshot) = Snapshot::parse(&text) {
        for xid in [0, 1, u32::MAX / 2, u32::MAX] {
            let _ = snapshot.sees(xid);
        }
    }
    let kept = serde_json::to_string(&text).expect("a text");
    assert_eq!(serde_json::from_str::<Cursor>(&kept).ok(), cursor.ok());
}

/// Cursors of one epoch stand as text in the order of their positions; commit times as their moments do.
pub(super) fn ordered(data: &[u8]) {
    let mut source = Source::new(data);
    let epoch = Epoch::new(source.u64());
    let mut next = || Cursor::new(epoch, Position::new(Lsn::new(source.u64()), source.u32()));
    let (one, other) = (next(), next());
    let (one_text, other_text) = (one.to_string(), other.to_string());
    assert_eq!(one.position.cmp(&other.position), one_text.cmp(&other_text));
    assert_eq!(one_text.parse(), Ok(one));
    let coverage = Coverage::new(&[], None).id();
    for coverage in [None, Some(coverage)] {
        let of_rest = SyncCursor { cursor: one, coverage };
        let text = of_rest.to_string();
        assert!(text.starts_with(&one_text) && SyncCursor::parse(&text) == Ok(of_rest));
    }
    let (one, other) = (one.position.commit, other.position.commit);
    assert_eq!(one.to_string().parse(), Ok(one));
    assert_eq!(one.bytes_since(other) == 0, one <= other);
    let moment = PgTimestamp::from_micros(one.get().cast_signed());
    let text = moment.to_string();
    // Outside of the years that it tells, the nearest ones are shown.
    if jiff::Timestamp::from_microsecond(moment.unix_micros()).is_ok() {
        let read: jiff::Timestamp = text.parse().expect("RFC 3339");
        assert_eq!(PgTimestamp::from_unix_micros(read.as_microsecond()), moment);
    }
}

/// What a cursor vouches for is what was named, and its number is of that and of nothing else.
pub(super) fn coverage(data: &[u8]) {
    let mut source = Source::new(data);
    let mut named = || {
        let mut topics = Vec::new();
        for _ in 0..source.below(4) {
            topics.extend(Pattern::parse(&source.text()));
        }
        let narrowed = source.flag();
        let tables: Vec<Arc<str>> = (0..source.below(4)).map(|_| source.text().into()).collect();
        let plain = |table: &&Arc<str>| !table.chars().any(char::is_control);
        let tables: Vec<Arc<str>> = tables.iter().filter(plain).cloned().collect();
        (topics, narrowed.then_some(tables))
    };
    let sets: Vec<_> = (0..2).map(|_| named()).collect();
    let of =
        |(topics, tables): &(Vec<Pattern>, Option<Vec<Arc<str>>>)| Coverage::new(topics, tables.as_deref());
    let (one, other) = (of(&sets[0]), of(&sets[1]));
    assert_eq!(one.id() == other.id(), one == other);
    let (topics, tables) = &sets[0];
    for topic in sets.iter().flat_map(|(topics, _)| topics) {
        let Some(table) = &topic.table else { continue };
        let expected = topics.iter().any(|own| own.covers(topic))
            && tables.as_ref().is_none_or(|tables| tables.contains(table));
        assert_eq!(one.covers(topic, table), expected);
    }
}
