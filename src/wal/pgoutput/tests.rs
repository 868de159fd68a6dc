//! Round trips through an encoder that is written from the documentation, damaged input, and bodies
//! captured from a real server.
#![allow(clippy::unwrap_used)]

use bytes::{BufMut, Bytes, BytesMut};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::encode::put_value;
use super::*;
use crate::lsn::Lsn;
use crate::timestamp::PgTimestamp;

#[derive(Debug, Clone)]
enum Cell {
    Null,
    Toast,
    Text(Vec<u8>),
    Binary(Vec<u8>),
}

impl Cell {
    fn as_value(&self) -> Value<'_> {
        match self {
            Cell::Null => Value::Null,
            Cell::Toast => Value::UnchangedToast,
            Cell::Text(bytes) => Value::Text(bytes),
            Cell::Binary(bytes) => Value::Binary(bytes),
        }
    }
}

/// A tuple can only be made by decoding one.
fn tuple_of(cells: &[Cell]) -> Tuple {
    let mut body = BytesMut::from(&b"I\0\0\0\x01N"[..]);
    body.put_u16(u16::try_from(cells.len()).unwrap());
    cells.iter().for_each(|cell| put_value(&mut body, cell.as_value()));
    match decode(body.freeze()) {
        Ok(Message::Insert(insert)) => insert.new,
        other => panic!("{other:?}"),
    }
}

fn any_cells() -> impl Strategy<Value = Vec<Cell>> {
    let cell = prop_oneof![
        Just(Cell::Null),
        Just(Cell::Toast),
        vec(any::<u8>(), 0..40).prop_map(Cell::Text),
        vec(any::<u8>(), 0..40).prop_map(Cell::Binary),
    ];
    vec(cell, 0..12)
}

fn any_tuple() -> impl Strategy<Value = Tuple> {
    any_cells().prop_map(|cells| tuple_of(&cells))
}

fn any_old() -> impl Strategy<Value = OldTuple> {
    prop_oneof![any_tuple().prop_map(OldTuple::Key), any_tuple().prop_map(OldTuple::Full)]
}

fn any_name() -> impl Strategy<Value = String> {
    "[^\u{0}]{1,20}"
}

fn any_lsn() -> impl Strategy<Value = Lsn> {
    any::<u64>().prop_map(Lsn::new)
}

fn any_time() -> impl Strategy<Value = PgTimestamp> {
    any::<i64>().prop_map(PgTimestamp::from_micros)
}

fn any_relation() -> impl Strategy<Value = Message> {
    let identity = prop_oneof![
        Just(ReplicaIdentity::Default),
        Just(ReplicaIdentity::Nothing),
        Just(ReplicaIdentity::Full),
        Just(ReplicaIdentity::Index),
    ];
    let column = (any::<bool>(), any_name(), any::<u32>(), any::<i32>())
        .prop_map(|(key, name, type_oid, type_modifier)| Column { key, name, type_oid, type_modifier });
    (any::<u32>(), any_name(), any_name(), identity, vec(column, 0..10)).prop_map(
        |(relid, namespace, name, identity, columns)| {
            Message::Relation(Relation { relid, namespace, name, identity, columns })
        },
    )
}

fn any_message() -> impl Strategy<Value = Message> {
    prop_oneof![
        (any_lsn(), any_time(), any::<u32>())
            .prop_map(|(final_lsn, commit_time, xid)| Message::Begin(Begin { final_lsn, commit_time, xid })),
        (any::<u8>(), any_lsn(), any_lsn(), any_time()).prop_map(
            |(flags, commit_lsn, end_lsn, commit_time)| {
                Message::Commit(Commit { flags, commit_lsn, end_lsn, commit_time })
            }
        ),
        (any_lsn(), any_name()).prop_map(|(commit_lsn, name)| Message::Origin(Origin { commit_lsn, name })),
        any_relation(),
        (any::<u32>(), any_name(), any_name()).prop_map(|(type_oid, namespace, name)| Message::Type(Type {
            type_oid,
            namespace,
            name
        })),
        (any::<u32>(), any_tuple()).prop_map(|(relid, new)| Message::Insert(Insert { relid, new })),
        (any::<u32>(), option::of(any_old()), any_tuple())
            .prop_map(|(relid, old, new)| Message::Update(Update { relid, old, new })),
        (any::<u32>(), any_old()).prop_map(|(relid, old)| Message::Delete(Delete { relid, old })),
        (any::<bool>(), any::<bool>(), vec(any::<u32>(), 0..5)).prop_map(
            |(cascade, restart_identity, relids)| {
                Message::Truncate(Truncate { cascade, restart_identity, relids })
            }
        ),
        (any::<bool>(), any_lsn(), any_name(), vec(any::<u8>(), 0..60)).prop_map(
            |(transactional, lsn, prefix, content)| {
                let content = content.into();
                Message::Message(LogicalMessage { transactional, lsn, prefix, content })
            }
        ),
    ]
}

/// Whatever decodes must also iterate to exactly what it says, without a panic.
fn walk(message: &Message) {
    let tuples = match message {
        Message::Insert(insert) => vec![&insert.new],
        Message::Update(update) => {
            let old = update.old.iter().map(|(OldTuple::Key(old) | OldTuple::Full(old))| old);
            old.chain([&update.new]).collect()
        }
        Message::Delete(Delete { old: OldTuple::Key(old) | OldTuple::Full(old), .. }) => vec![old],
        _ => vec![],
    };
    for tuple in tuples {
        assert_eq!(tuple.iter().count(), tuple.len());
    }
}

proptest! {
    #[test]
    fn what_is_encoded_decodes_to_itself(message in any_message()) {
        prop_assert_eq!(decode(encode(&message)), Ok(message));
    }

    #[test]
    fn values_come_back_as_they_were(cells in any_cells()) {
        let tuple = tuple_of(&cells);
        let expected: Vec<_> = cells.iter().map(Cell::as_value).collect();
        prop_assert_eq!(tuple.iter().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn every_cut_and_every_addition_is_refused(message in any_message()) {
        let body = encode(&message);
        for end in 0..body.len() {
            prop_assert!(decode(body.slice(..end)).is_err());
        }
        let mut longer = body.to_vec();
        longer.push(0);
        prop_assert!(decode(longer.into()).is_err());
    }

    #[test]
    fn a_flipped_byte_never_panics(message in any_message(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut body = encode(&message).to_vec();
        let at = at.index(body.len());
        body[at] = byte;
        if let Ok(message) = decode(body.into()) {
            walk(&message);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(tag in prop::sample::select(b"BCORYIUDTMx".to_vec()), body in vec(any::<u8>(), 0..200)) {
        if let Ok(message) = decode([&[tag], &body[..]].concat().into()) {
            walk(&message);
        }
    }
}

fn refused(body: &[u8]) -> DecodeError {
    decode(Bytes::copy_from_slice(body)).unwrap_err()
}

#[test]
fn errors_name_message_field_and_place() {
    let error = refused(b"B\0\0");
    assert_eq!(
        error,
        DecodeError {
            message: "Begin",
            field: "final LSN",
            offset: 1,
            why: Why::Short { wanted: 8, left: 2 }
        }
    );
    assert_eq!(
        error.to_string(),
        "pgoutput Begin message, field `final LSN` at byte 1: needs 8 bytes, 2 are left"
    );
    assert_eq!(refused(b"").field, "message type");
    assert_eq!(refused(b"S").why, Why::UnknownTag(b'S'));
    assert_eq!(refused(b"I\0\0\0\x01N\xff\xff").why, Why::Count { claimed: 65535, possible: 0 });
    assert_eq!(refused(b"I\0\0\0\x01N\0\x01t\xff\xff\xff\xff").why, Why::Negative(-1));
    assert_eq!(refused(b"I\0\0\0\x01N\0\x01x").why, Why::UnknownTag(b'x'));
    assert_eq!(
        refused(b"T\x7f\xff\xff\xff\0\0\0\0\x01").why,
        Why::Count { claimed: 0x7fff_ffff, possible: 1 }
    );
    assert_eq!(refused(b"T\xff\xff\xff\xff\0").why, Why::Negative(-1));
    assert_eq!(refused(b"Y\0\0\0\x01\xff\0t\0").why, Why::NotUtf8);
    assert_eq!(refused(b"Y\0\0\0\x01abc").why, Why::Unterminated);
}

#[test]
fn rows_stay_out_of_debug_output() {
    let tuple = tuple_of(&[Cell::Text(b"secret".to_vec())]);
    assert_eq!(format!("{tuple:?}"), "Tuple(1 columns, 11 bytes)");
}

/// Each body of the capture, with the kind that it was captured as.
fn captured() -> Vec<(&'static str, Bytes)> {
    let text = include_str!("../../../tests/fixtures/pgoutput/pg15.hex");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (kind, hex) = line.split_once(' ').unwrap();
            let digits = hex.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
            let body: Vec<u8> = digits.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect();
            (kind, body.into())
        })
        .collect()
}

#[test]
fn what_a_server_sent_decodes_and_encodes_to_the_same_bytes() {
    for (kind, body) in captured() {
        let message = decode(body.clone()).unwrap();
        assert!(format!("{message:?}").starts_with(kind), "{kind}: {message:?}");
        assert_eq!(encode(&message), body);
    }
}

#[test]
fn what_a_server_sent_means_what_was_done() {
    let messages: Vec<_> = captured().into_iter().map(|(_, body)| decode(body).unwrap()).collect();
    let updates: Vec<_> = messages
        .iter()
        .filter_map(|message| match message {
            Message::Update(update) => Some((update.old.as_ref(), update.new.iter().collect::<Vec<_>>())),
            _ => None,
        })
        .collect();
    let [toast, key, full, index] = &updates[..] else { panic!("{updates:?}") };
    assert_eq!(toast.0, None);
    assert_eq!(toast.1, [Value::Text(b"1"), Value::Text(b"y"), Value::Text(b"a"), Value::UnchangedToast]);
    let Some(OldTuple::Key(old)) = key.0 else { panic!("{key:?}") };
    assert_eq!(old.iter().collect::<Vec<_>>(), [Value::Text(b"2"), Value::Null, Value::Null, Value::Null]);
    assert!(matches!(full.0, Some(OldTuple::Full(_))));
    assert!(matches!(index.0, Some(OldTuple::Key(_))));

    let truncate = messages.iter().find_map(|message| match message {
        Message::Truncate(truncate) => {
            Some((truncate.cascade, truncate.restart_identity, truncate.relids.len()))
        }
        _ => None,
    });
    assert_eq!(truncate, Some((true, true, 2)));
    let texts: Vec<_> = messages
        .iter()
        .filter_map(|message| match message {
            Message::Message(message) => Some((message.transactional, &message.content[..])),
            _ => None,
        })
        .collect();
    assert_eq!(texts, [(true, &b"hello"[..]), (false, b"now")]);
}
