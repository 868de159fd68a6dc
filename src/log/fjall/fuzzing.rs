//! Any bytes as keys and values on disk: an error, or what was written there.

use std::sync::Arc;

use bytes::Bytes;
use smallvec::SmallVec;

use super::codec::{
    Entry, EntryBody, RowEntry, RowRecord, Sending, Stamp, TransactionRecord, decode_entry, put_broadcast,
    put_row, put_truncate,
};
use super::keys;
use super::merge::merge;
use super::spans::SpanInfo;
use crate::change::{Broadcast, Mark, Membership, Record, RowChange, Shape, Tag, Transaction};
use crate::fuzzing::Source;
use crate::lsn::Lsn;
use crate::position::Position;
use crate::topic::Audience;

/// Values that anything may have become.
pub(crate) fn stored(value: &[u8]) {
    if let Ok(entry) = decode_entry(value) {
        assert!(held(&entry) <= value.len(), "more was read than is there");
        assert_eq!(decode_entry(&encode(&entry)).expect("what is written is read back"), normal(entry));
    }
    if let Ok(record) = TransactionRecord::decode(value) {
        assert_eq!(
            TransactionRecord::decode(&encode_record(&record)).expect("what is written is read back"),
            record
        );
    }
    if let Ok(position) = keys::entry_position(value) {
        assert!(value.ends_with(&keys::entry_key(Vec::new(), position)));
    }
    if let Ok(commit) = keys::commit_of_transaction_key(value) {
        assert_eq!(keys::transaction_key(commit), value);
    }
    if let Ok(slot) = keys::slot_of_time_key(value) {
        assert_eq!(keys::time_key(slot), value);
    }
    kept_as_json(value);
}

fn kept_as_json(value: &[u8]) {
    let _ = serde_json::from_slice::<Shape>(value);
    let _ = serde_json::from_slice::<Mark>(value);
    let _ = serde_json::from_slice::<SpanInfo>(value);
    if let Ok(record) = serde_json::from_slice::<crate::devices::Record>(value) {
        let kept = serde_json::to_vec(&record).expect("a record can always be kept");
        assert_eq!(serde_json::from_slice::<crate::devices::Record>(&kept).expect("as it was kept"), record);
    }
}

fn held(entry: &Entry) -> usize {
    match &entry.body {
        EntryBody::Row(row) => {
            let record = row.record.as_ref();
            let names = record.map_or(0, |record| record.unchanged.iter().map(|name| name.len() + 1).sum());
            row.key.len() + record.map_or(0, |record| record.json.len()) + names
        }
        EntryBody::Truncate { .. } => 0,
        EntryBody::Broadcast { name, id, event, payload } => {
            name.len() + id.len() + event.len() + payload.len()
        }
    }
}

/// A record is written only for those who have the row afterwards.
fn normal(mut entry: Entry) -> Entry {
    if let EntryBody::Row(row) = &mut entry.body
        && !row.after
    {
        row.record = None;
    }
    entry
}

/// By the writer's own functions.
fn encode(entry: &Entry) -> Vec<u8> {
    let transaction = transaction(&entry.stamp);
    let mut out = Vec::new();
    match &entry.body {
        EntryBody::Row(row) => {
            let record = row.record.clone().map(|record| Record {
                json: record.json,
                unchanged: record.unchanged,
                whole: None,
            });
            let membership = Membership {
                audience: Audience::parse("user:1").expect("an audience"),
                before: row.before,
                after: row.after,
            };
            let change = RowChange {
                shape: shape(row.shape),
                key: row.key.clone(),
                record,
                memberships: SmallVec::from_iter([membership.clone()]),
            };
            put_row(&mut out, &transaction, &change, &membership);
        }
        EntryBody::Truncate { shape } => put_truncate(&mut out, &transaction, *shape),
        EntryBody::Broadcast { name, id, event, payload } => {
            let broadcast = Broadcast {
                audience: Audience::parse("user:1").expect("an audience"),
                name: Arc::clone(name),
                id: Arc::clone(id),
                event: Arc::clone(event),
                payload: payload.clone(),
            };
            put_broadcast(&mut out, &transaction, &broadcast);
        }
    }
    out
}

fn encode_record(record: &TransactionRecord) -> Vec<u8> {
    let mut out = Vec::new();
    record.put(&mut out);
    out
}

fn transaction(stamp: &Stamp) -> Transaction {
    let (attempt, greatest_committed_at, tag) = match &stamp.sending {
        Sending::Whole { greatest_committed_at, tag } => (None, *greatest_committed_at, tag.clone()),
        Sending::Part { attempt } => (Some(*attempt), 0, None),
    };
    Transaction {
        commit: Lsn::new(1),
        xid: stamp.xid,
        committed_at: stamp.committed_at,
        greatest_committed_at,
        attempt,
        tag,
        deliveries: Vec::new(),
    }
}

fn shape(id: u32) -> Arc<Shape> {
    Arc::new(Shape {
        id,
        relid: 1,
        schema: "public".to_owned(),
        table: "t".to_owned(),
        name: "t".into(),
        key: Vec::new(),
        scopes: Vec::new(),
        columns: Vec::new(),
    })
}

/// What a writer writes is read back, and nothing that is cut short is; several audiences' entries of a
/// change make it whole again.
pub(crate) fn written(data: &[u8]) {
    let mut source = Source::new(data);
    let stamp = Stamp {
        xid: source.u32(),
        committed_at: source.u64().cast_signed(),
        sending: match source.flag() {
            true => Sending::Part { attempt: source.u32() },
            false => {
                Sending::Whole { greatest_committed_at: source.u64().cast_signed(), tag: tag(&mut source) }
            }
        },
    };
    let body = match source.below(3) {
        0 => EntryBody::Truncate { shape: source.u32() },
        1 => EntryBody::Broadcast {
            name: source.text().into(),
            id: source.text().into(),
            event: source.text().into(),
            payload: bytes(source.short()),
        },
        _ => EntryBody::Row(RowEntry {
            shape: source.u32(),
            before: source.flag(),
            after: true,
            key: bytes(source.short()),
            record: (!source.flag()).then(|| RowRecord {
                unchanged: (0..source.below(4)).map(|_| source.text().into()).collect(),
                json: bytes(source.long()),
            }),
        }),
    };
    let entry = Entry { stamp, body };
    let value = encode(&entry);
    assert_eq!(decode_entry(&value).expect("what is written is read back"), entry);
    let cut = usize::try_from(source.u32()).unwrap_or(0).checked_rem(value.len()).unwrap_or(0);
    assert!(decode_entry(&value[..cut]).is_err(), "cut short at {cut}");
    let record = TransactionRecord::of(&transaction(&entry.stamp));
    let kept = encode_record(&record);
    assert_eq!(TransactionRecord::decode(&kept).expect("what is written is read back"), record);
    if let EntryBody::Row(row) = entry.body {
        let names = ["team:7", "user:1"].map(|text| Audience::parse(text).expect("an audience"));
        let entries = names.into_iter().map(|audience| (audience, row.clone())).collect();
        let merged = merge(shape(row.shape), entries).expect("a change of two audiences");
        assert_eq!((&merged.key, merged.memberships.len()), (&row.key, 2));
        assert_eq!(merged.record.is_some(), row.record.is_some());
    }
}

fn tag(source: &mut Source<'_>) -> Option<Tag> {
    let mut optional = |there: bool| there.then(|| source.text().into());
    let device = optional(true)?;
    let (correlation, user) = (optional(true), optional(true));
    let there = |text: &Arc<str>| !text.is_empty();
    there(&device).then(|| Tag { device, correlation: correlation.filter(there), user: user.filter(there) })
}

fn bytes(slice: &[u8]) -> Bytes {
    Bytes::copy_from_slice(slice)
}

/// Keys stand in the order of what they stand for, and no audience's among another's.
pub(crate) fn keys(data: &[u8]) {
    let mut source = Source::new(data);
    let mut next = || {
        let (scope, id) = (source.text(), source.text());
        let position = Position::new(Lsn::new(source.u64()), source.u32());
        let audience = Audience::from_values(&scope, (!id.is_empty()).then_some(id.as_str()));
        audience.map(|audience| (audience, position))
    };
    let (one, other) = (next(), next());
    let times = [source.u64().cast_signed(), source.u64().cast_signed()];
    assert!(times[0] > times[1] || keys::time_slot(times[0]) <= keys::time_slot(times[1]));
    let (Ok(one), Ok(other)) = (one, other) else { return };
    let key = |(audience, position): &(Audience, Position)| {
        keys::entry_key(keys::audience_prefix(audience), *position)
    };
    let (one_key, other_key) = (key(&one), key(&other));
    assert_eq!(keys::entry_position(&one_key).expect("a key"), one.1);
    assert_eq!(one_key.starts_with(&keys::audience_prefix(&other.0)), one.0 == other.0);
    if one.0 == other.0 {
        assert_eq!(one_key.cmp(&other_key), one.1.cmp(&other.1));
    }
}
