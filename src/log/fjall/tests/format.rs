//! Values on disk: what is written is read back, and anything else is an error.

use bytes::Bytes;
use proptest::prelude::*;

use super::super::codec::*;
use super::super::keys;
use super::support::*;
use crate::change::*;
use crate::log::LogError;
use crate::lsn::Lsn;
use crate::position::Position;
use crate::topic::Audience;

fn text() -> impl Strategy<Value = std::sync::Arc<str>> {
    "\\PC{0,200}".prop_map(|text| text.into())
}

fn bytes() -> impl Strategy<Value = Bytes> {
    prop::collection::vec(any::<u8>(), 0..300).prop_map(Bytes::from)
}

fn tag() -> impl Strategy<Value = Option<Tag>> {
    let fields = (text(), prop::option::of(text()), prop::option::of(text()));
    prop::option::of(fields.prop_map(|(device, correlation, user)| Tag { device, correlation, user }))
}

fn frame() -> impl Strategy<Value = Transaction> {
    (any::<(u32, i64, i64)>(), prop::option::of(any::<u32>()), tag()).prop_map(|(numbers, attempt, tag)| {
        let (xid, committed_at, greatest_committed_at) = numbers;
        Transaction { xid, committed_at, greatest_committed_at, attempt, tag, ..transaction(1, Vec::new()) }
    })
}

fn stamp(transaction: &Transaction) -> Stamp {
    let Transaction { xid, committed_at, greatest_committed_at, attempt, ref tag, .. } = *transaction;
    let sending = match attempt {
        Some(attempt) => Sending::Part { attempt },
        None => Sending::Whole { greatest_committed_at, tag: tag.clone() },
    };
    Stamp { xid, committed_at, sending }
}

fn written(put: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    put(&mut out);
    out
}

proptest! {
    #[test]
    fn rows_survive(
        transaction in frame(),
        numbers in any::<(u32, bool, bool)>(),
        key in bytes(),
        record in prop::option::of((bytes(), prop::collection::vec(text(), 0..4), prop::option::of(bytes()))),
    ) {
        let (id, before, after) = numbers;
        let record = record.map(|(json, unchanged, whole)| Record { json, unchanged, whole });
        let membership = Membership { audience: audience("user:1"), before, after };
        let row = RowChange { shape: shape(id), key: key.clone(), record: record.clone(), memberships: [membership.clone()].into_iter().collect() };
        let entry = decode_entry(&written(|out| put_row(out, &transaction, &row, &membership))).unwrap();
        let expected = record.filter(|_| after).map(|record| match record.whole {
            Some(json) if !before => RowRecord { json, unchanged: Vec::new() },
            _ => RowRecord { json: record.json, unchanged: record.unchanged },
        });
        let body = EntryBody::Row(RowEntry { shape: id, before, after, key, record: expected });
        prop_assert_eq!(entry, Entry { stamp: stamp(&transaction), body });
    }

    #[test]
    fn other_entries_survive(transaction in frame(), texts in (text(), text(), text()), payload in bytes(), id: u32) {
        let (name, id_text, event) = texts;
        let broadcast = Broadcast { audience: audience("user:1"), name, id: id_text, event, payload };
        let entry = decode_entry(&written(|out| put_broadcast(out, &transaction, &broadcast))).unwrap();
        let Broadcast { name, id: id_text, event, payload, .. } = broadcast;
        let body = EntryBody::Broadcast { name, id: id_text, event, payload };
        prop_assert_eq!(entry, Entry { stamp: stamp(&transaction), body });
        let entry = decode_entry(&written(|out| put_truncate(out, &transaction, id))).unwrap();
        prop_assert_eq!(entry, Entry { stamp: stamp(&transaction), body: EntryBody::Truncate { shape: id } });
        let record = TransactionRecord::of(&transaction);
        prop_assert_eq!(TransactionRecord::decode(&written(|out| record.put(out))).unwrap(), record);
    }

    #[test]
    fn a_value_cut_short_or_continued_is_an_error(transaction in frame(), json in bytes(), extra in prop::collection::vec(any::<u8>(), 1..4)) {
        let membership = Membership { audience: audience("user:1"), before: true, after: true };
        let record = Some(Record { json, unchanged: vec!["big".into()], whole: None });
        let row = RowChange { shape: shape(3), key: Bytes::from_static(b"k"), record, memberships: [membership.clone()].into_iter().collect() };
        let mut value = written(|out| put_row(out, &transaction, &row, &membership));
        for length in 0..value.len() {
            prop_assert!(matches!(decode_entry(&value[..length]), Err(LogError::Corrupt(_))));
        }
        value.extend(extra);
        prop_assert!(matches!(decode_entry(&value), Err(LogError::Corrupt(_))));
    }

    #[test]
    fn any_bytes_are_a_value_or_an_error(value in prop::collection::vec(any::<u8>(), 0..100)) {
        drop(decode_entry(&value));
        drop(TransactionRecord::decode(&value));
        drop(keys::entry_position(&value));
        drop(keys::slot_of_time_key(&value));
    }

    #[test]
    fn keys_order_as_audiences_and_positions_do(
        a in ("[a-z]{1,3}", "\\PC{1,6}", any::<(u64, u32)>()),
        b in ("[a-z]{1,3}", "\\PC{1,6}", any::<(u64, u32)>()),
        times: (i64, i64),
    ) {
        let key = |(scope, id, (commit, index)): (String, String, (u64, u32))| {
            let audience = Audience::from_values(&scope, Some(&id)).unwrap();
            let position = Position::new(Lsn::new(commit), index);
            let key = keys::entry_key(keys::audience_prefix(&audience), position);
            assert_eq!(keys::entry_position(&key).unwrap(), position);
            ((audience, position), key)
        };
        let ((a, a_key), (b, b_key)) = (key(a), key(b));
        prop_assert_eq!(a.cmp(&b), a_key.cmp(&b_key));
        let slots = (keys::time_slot(times.0), keys::time_slot(times.1));
        prop_assert!(times.0 > times.1 || slots.0 <= slots.1);
        prop_assert_eq!(keys::slot_of_time_key(&keys::time_key(slots.0)).unwrap(), slots.0);
    }
}
