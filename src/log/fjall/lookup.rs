//! Single questions to the log: where a point in time begins, and what a column last was.

use super::codec::{self, EntryBody, RowEntry, Sending, TransactionRecord};
use super::keys;
use super::reader::{View, range};
use super::shared::Shared;
use crate::json::object_fields;
use crate::log::{ColumnQuery, LogError, TimeLookup};
use crate::lsn::Lsn;
use crate::position::Position;

/// The index knows for each slot of time the first commit of a span with which the greatest commit time
/// reached it. No commit before the one found reached the slot of `time`, hence none had that time.
pub(super) fn time(shared: &Shared, time: i64) -> Result<TimeLookup, LogError> {
    if time > shared.watermark.borrow().greatest_committed_at {
        return Ok(TimeLookup::InFuture);
    }
    let view = View::of(shared)?;
    let beginning = view.spans.0.first().map_or(i64::MAX, |span| span.info.first_greatest_committed_at);
    if time <= beginning {
        return Ok(TimeLookup::TooOld);
    }
    let from = keys::time_key(keys::time_slot(time));
    let to = keys::time_key(u64::MAX);
    for span in &view.spans.0 {
        if let Some(guard) = span.keyspace.range(from..=to).next() {
            let value = guard.value().map_err(view.storage().failure())?;
            return Ok(TimeLookup::From(Position::boundary(keys::commit_of_time_value(&value)?)));
        }
    }
    Err(LogError::Corrupt("the time index"))
}

pub(super) fn commits(shared: &Shared, after: Position, max: usize) -> Result<Vec<(u32, Lsn)>, LogError> {
    let end = shared.watermark.borrow().lsn;
    let view = View::of(shared)?;
    let after = after.max(view.spans.oldest());
    // A boundary stands before the transaction that commits there, every other position in or behind it.
    let first = if after.index == 0 { after.commit } else { Lsn::new(after.commit.get().saturating_add(1)) };
    let mut found = Vec::new();
    for (span, next) in view.spans.with_ends() {
        let from = first.max(span.info.first.commit);
        let to = next.map_or(end, |next| next.commit.min(end));
        if from >= to {
            continue;
        }
        for guard in span.keyspace.range(keys::transaction_key(from)..keys::transaction_key(to)) {
            if found.len() == max {
                return Ok(found);
            }
            let (key, value) = guard.into_inner().map_err(view.storage().failure())?;
            found.push((TransactionRecord::decode(&value)?.xid, keys::commit_of_transaction_key(&key)?));
        }
    }
    Ok(found)
}

/// Goes back through the audience's entries to the last one of the row that says what the column is.
pub(super) fn column_value(shared: &Shared, query: &ColumnQuery<'_>) -> Result<Option<String>, LogError> {
    let view = View::of(shared)?;
    let prefix = keys::audience_prefix(query.audience);
    let mark = view.marks.furthest(query.audience, query.table).map_or(Position::ZERO, |mark| mark.upto);
    let after = mark.max(view.spans.oldest());
    // `before` itself is no entry to look at.
    let Some(upto) = previous(query.before) else { return Ok(None) };
    let mut left = query.max_entries;
    for (span, end) in view.spans.with_ends().rev() {
        let Some(range) = range(&prefix, after, upto, end) else { continue };
        for guard in span.keyspace.range(range).rev() {
            if left == 0 {
                return Ok(None);
            }
            left -= 1;
            let (key, value) = guard.into_inner().map_err(view.storage().failure())?;
            let entry = codec::decode_entry(&value)?;
            let EntryBody::Row(row) = entry.body else { continue };
            let ours = *row.key == *query.key && *view.shape(row.shape)?.name == *query.table;
            if !ours || !counts(&view, query, keys::entry_position(&key)?, &entry.stamp.sending)? {
                continue;
            }
            match look(&row, query.column)? {
                Found::Value(value) => return Ok(Some(value)),
                Found::Nothing => return Ok(None),
                Found::Earlier => {}
            }
        }
    }
    Ok(None)
}

enum Found {
    Value(String),
    /// The entry did not change the column.
    Earlier,
    /// What came before this entry is not this row.
    Nothing,
}

fn look(row: &RowEntry, column: &str) -> Result<Found, LogError> {
    let Some(record) = &row.record else { return Ok(Found::Nothing) };
    let corrupt = || LogError::Corrupt("a row");
    let json = std::str::from_utf8(&record.json).map_err(|_| corrupt())?;
    for field in object_fields(json) {
        let (name, value) = field.map_err(|_| corrupt())?;
        if name == column {
            return Ok(Found::Value(value.to_owned()));
        }
    }
    let unchanged = row.before && record.unchanged.iter().any(|name| **name == *column);
    Ok(if unchanged { Found::Earlier } else { Found::Nothing })
}

/// Of the transaction under way the parts of this attempt count, of those before it the ones that were
/// completed.
fn counts(
    view: &View,
    query: &ColumnQuery<'_>,
    position: Position,
    sending: &Sending,
) -> Result<bool, LogError> {
    let Sending::Part { attempt } = *sending else { return Ok(true) };
    let wanted = if position.commit == query.before.commit {
        query.attempt
    } else {
        view.transaction(position.commit)?.and_then(|record| record.attempt)
    };
    Ok(wanted == Some(attempt))
}

fn previous(position: Position) -> Option<Position> {
    let Position { commit, index } = position;
    match index.checked_sub(1) {
        Some(index) => Some(Position::new(commit, index)),
        None => commit.get().checked_sub(1).map(|lsn| Position::new(Lsn::new(lsn), u32::MAX)),
    }
}
