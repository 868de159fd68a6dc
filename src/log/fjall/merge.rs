//! One row change from the entries that several audiences hold of it.
//!
//! The log stores a change once for each audience; a reader of several gets it once. What a reader
//! derives from the merged change is what it would derive from the live one, restricted to the same
//! audiences: UPDATE if any of them had the row before and any has it after; the whole row if it is new
//! to any of them, else the partial one.

use std::sync::Arc;

use smallvec::SmallVec;

use super::codec::{RowEntry, RowRecord};
use crate::change::{Membership, Record, RowChange, Shape};
use crate::topic::Audience;

/// `entries` stand in order of their audiences, each audience once, all of one position.
pub(super) fn merge(shape: Arc<Shape>, entries: Vec<(Audience, RowEntry)>) -> Option<RowChange> {
    let key = entries.first()?.1.key.clone();
    let mut memberships = SmallVec::with_capacity(entries.len());
    let (mut partial, mut whole) = (None, None);
    for (audience, entry) in entries {
        memberships.push(Membership { audience, before: entry.before, after: entry.after });
        let record = if entry.before { &mut partial } else { &mut whole };
        if record.is_none() {
            *record = entry.record;
        }
    }
    let record = match (partial, whole) {
        (Some(RowRecord { json, unchanged }), whole) => {
            let whole = whole.filter(|_| !unchanged.is_empty()).map(|record| record.json);
            Some(Record { json, unchanged, whole })
        }
        (None, whole) => whole.map(|RowRecord { json, unchanged }| Record { json, unchanged, whole: None }),
    };
    Some(RowChange { shape, key, record, memberships })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use bytes::Bytes;

    use super::super::tests::support::shape;
    use super::*;

    fn entry(
        audience: &str,
        before: bool,
        after: bool,
        json: Option<(&str, &[&str])>,
    ) -> (Audience, RowEntry) {
        let record = json.map(|(json, unchanged)| RowRecord {
            json: Bytes::copy_from_slice(json.as_bytes()),
            unchanged: unchanged.iter().map(|&name| name.into()).collect(),
        });
        let key = Bytes::from_static(b"{\"id\":1}");
        (Audience::parse(audience).unwrap(), RowEntry { shape: 1, before, after, key, record })
    }

    fn record(entries: Vec<(Audience, RowEntry)>) -> Option<(Bytes, usize, Option<Bytes>)> {
        merge(shape(1), entries).unwrap().record.map(|r| (r.json, r.unchanged.len(), r.whole))
    }

    #[test]
    fn the_partial_row_stands_beside_the_whole_one() {
        let stays = entry("user:1", true, true, Some(("partial", &["big"])));
        let begins = entry("user:2", false, true, Some(("whole", &[])));
        let ends = entry("user:3", true, false, None);
        let (partial, whole) = (Bytes::from("partial"), Bytes::from("whole"));
        assert_eq!(record(vec![stays.clone()]), Some((partial.clone(), 1, None)));
        assert_eq!(record(vec![begins.clone()]), Some((whole.clone(), 0, None)));
        assert_eq!(record(vec![begins.clone(), ends.clone()]), Some((whole.clone(), 0, None)));
        assert_eq!(record(vec![ends.clone()]), None);
        assert_eq!(record(vec![stays, begins, ends]), Some((partial, 1, Some(whole))));
    }

    #[test]
    fn a_row_without_owed_columns_needs_no_second_copy() {
        let stays = entry("user:1", true, true, Some(("row", &[])));
        let begins = entry("user:2", false, true, Some(("row", &[])));
        assert_eq!(record(vec![stays, begins]), Some((Bytes::from("row"), 0, None)));
    }
}
