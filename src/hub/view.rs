//! One row change as one reader sees it. The same function serves live delivery, replay and sync, so
//! that they cannot differ.

use std::sync::Arc;

use bytes::Bytes;

use crate::change::{Membership, Operation, RowChange};
use crate::topic::Audience;

/// A row change restricted to what a reader subscribed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View<'a> {
    pub operation: Operation,
    /// Under which audience the reader gets it.
    pub audience: &'a Audience,
    pub record: Option<&'a Bytes>,
    pub unchanged: &'a [Arc<str>],
    /// Place of the audience and choice of record among the ways in which this change is shown: equal
    /// numbers mean equal frames.
    pub variant: u32,
}

/// Resolves a change for a reader: in one of its topics before and after is an UPDATE, only after an
/// INSERT with the whole row, only before a DELETE. `None`: it concerns none of its topics.
pub fn view(row: &RowChange, wanted: impl Fn(&Membership) -> bool) -> Option<View<'_>> {
    let (mut before, mut after, mut newly) = (false, false, false);
    let mut chosen: Option<(usize, &Membership)> = None;
    for (place, member) in row.memberships.iter().enumerate().filter(|(_, member)| wanted(member)) {
        before |= member.before;
        after |= member.after;
        newly |= member.after && !member.before;
        if chosen.is_none_or(|(_, other)| member.after && !other.after) {
            chosen = Some((place, member));
        }
    }
    let (place, member) = chosen?;
    let operation = match (before, after) {
        (true, true) => Operation::Update,
        (false, true) => Operation::Insert,
        (_, false) => Operation::Delete,
    };
    let record = row.record.as_ref().filter(|_| after);
    let whole = record.and_then(|record| record.whole.as_ref()).filter(|_| newly);
    let unchanged = match (record, whole) {
        (Some(record), None) => record.unchanged.as_slice(),
        _ => &[],
    };
    Some(View {
        operation,
        audience: &member.audience,
        record: whole.or(record.map(|record| &record.json)),
        unchanged,
        variant: u32::try_from(place).unwrap_or(u32::MAX >> 8) << 3
            | u32::from(whole.is_some()) << 2
            | match operation {
                Operation::Insert => 0,
                Operation::Update => 1,
                Operation::Delete | Operation::Truncate => 2,
            },
    })
}
