//! What readers see of a change, its bytes, and the seam between publishing and joining.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use bytes::Bytes;
use proptest::prelude::*;

use super::golden::check;
use super::*;
use crate::change::*;
use crate::cursor::Epoch;
use crate::json::numbers::Quoting;
use crate::postgres::types::Type;

fn audience(text: &str) -> Audience {
    Audience::parse(text).unwrap()
}

fn shape() -> Arc<Shape> {
    let quoting = |oid| Quoting::of(&Type::builtin(oid).unwrap());
    Arc::new(Shape {
        id: 1,
        relid: 16_400,
        schema: "public".into(),
        table: "orders".into(),
        name: "orders".into(),
        key: vec!["id".into()],
        scopes: vec!["team".into(), "user".into()],
        columns: vec![
            ("id".into(), quoting(20)),
            ("note".into(), quoting(25)),
            ("photo".into(), quoting(25)),
        ],
    })
}

fn row(record: Option<Record>, members: &[(&str, bool, bool)]) -> RowChange {
    let member =
        |&(text, before, after): &(&str, _, _)| Membership { audience: audience(text), before, after };
    RowChange {
        shape: shape(),
        key: "{\"id\":7}".into(),
        record,
        memberships: members.iter().map(member).collect(),
    }
}

fn whole(json: &'static str) -> Option<Record> {
    Some(Record { json: json.into(), unchanged: Vec::new(), whole: None })
}

/// The photo was not sent; it was found for those to whom the row is new.
fn partial() -> Option<Record> {
    let record = Record {
        json: "{\"id\":7,\"note\":\"n\"}".into(),
        unchanged: vec!["photo".into()],
        whole: Some("{\"id\":7,\"note\":\"n\",\"photo\":\"p\"}".into()),
    };
    Some(record)
}

fn transaction(bodies: Vec<Body>, tag: Option<Tag>) -> Transaction {
    let deliveries = (1..).zip(bodies).map(|(n, body)| Delivery { index: 2 * n, body }).collect();
    Transaction {
        commit: Lsn::new(0x16_B374_D848),
        xid: 9,
        committed_at: 1_767_268_800_123_456,
        greatest_committed_at: 1_767_268_800_123_456,
        attempt: None,
        tag,
        deliveries,
    }
}

fn style() -> FrameStyle {
    FrameStyle { epoch: Epoch::new(0xab), last: true, numbers_as_strings: false, own: false }
}

fn seen<'a>(row: &'a RowChange, readers: &[&str]) -> Option<(Operation, &'a str, Option<&'a Bytes>, usize)> {
    let view = view(row, |member| readers.contains(&member.audience.as_str()))?;
    Some((view.operation, view.audience.as_str(), view.record, view.unchanged.len()))
}

#[test]
fn every_membership_comes_to_one_operation() {
    let row = row(partial(), &[("team:1", true, true), ("team:2", false, true), ("user:3", true, false)]);
    let record = row.record.as_ref().unwrap();
    let (json, all) = (Some(&record.json), record.whole.as_ref());
    assert_eq!(seen(&row, &[]), None);
    assert_eq!(seen(&row, &["team:1"]), Some((Operation::Update, "team:1", json, 1)));
    assert_eq!(seen(&row, &["team:2"]), Some((Operation::Insert, "team:2", all, 0)));
    assert_eq!(seen(&row, &["user:3"]), Some((Operation::Delete, "user:3", None, 0)));
    // Under a topic where the row still is, and with what the newest of them lacks.
    assert_eq!(seen(&row, &["team:1", "user:3"]), Some((Operation::Update, "team:1", json, 1)));
    assert_eq!(seen(&row, &["team:2", "user:3"]), Some((Operation::Update, "team:2", all, 0)));
    assert_eq!(seen(&row, &["team:1", "team:2"]), Some((Operation::Update, "team:1", all, 0)));
}

proptest! {
    /// Sessions share a frame only where they would have made the same one, under a topic of their own.
    #[test]
    fn equal_variants_are_equal_frames(
        members in prop::collection::vec((any::<bool>(), any::<bool>()), 1..5),
        one in any::<u8>(), other in any::<u8>(), has_whole: bool,
    ) {
        let names = ["team:1", "team:2", "user:1", "user:2"];
        let members: Vec<_> = names.iter().zip(members).map(|(name, (before, after))| (*name, before || !after, after)).collect();
        let record = if has_whole { partial() } else { whole("{\"id\":7}") };
        let record = record.filter(|_| members.iter().any(|(_, _, after)| *after));
        let row = row(record, &members);
        let of = |mask: u8| -> BTreeSet<&str> {
            (0..4).filter(|bit| mask >> bit & 1 == 1).map(|bit| names[bit]).collect()
        };
        let published = Published::new(Arc::new(transaction(vec![Body::Row(row.clone())], None)), Lsn::MAX);
        for readers in [of(one), of(other), of(one)] {
            let Some(view) = view(&row, |member| readers.contains(member.audience.as_str())) else { continue };
            let shown = Shown::Row(view.clone());
            let frame = published.frame(0, &shown, style());
            let alone = frame_of(&published.transaction, &published.transaction.deliveries[0], &shown, style());
            prop_assert_eq!(&frame, &alone);
            let json: serde_json::Value = serde_json::from_slice(&frame).unwrap();
            let (topic, _) = json["topic"].as_str().unwrap().rsplit_once(':').unwrap();
            prop_assert!(readers.contains(topic));
            prop_assert_eq!(json["operation"] == "DELETE", json["new_record"].is_null());
        }
    }
}

#[test]
fn frames_are_as_documented() {
    let tag = Tag { device: "phone".into(), correlation: Some("c9".into()), user: Some("42".into()) };
    let json = "{\"id\":9007199254740993,\"note\":\"\u{e9} \\\"x\\\"\",\"photo\":null}";
    let changes = [
        ("insert", row(whole(json), &[("user:42", false, true)])),
        ("update", row(partial(), &[("user:42", true, true)])),
        ("delete", row(None, &[("user:42", true, false)])),
        // The row went to somebody else, with values that are no longer this reader's.
        ("moved_away", row(whole(json), &[("user:42", true, false), ("user:7", false, true)])),
    ];
    for (name, row) in changes {
        let transaction = transaction(vec![Body::Row(row.clone())], Some(tag.clone()));
        let view = view(&row, |member| member.audience.as_str() == "user:42").unwrap();
        let frame =
            |style| frame_of(&transaction, &transaction.deliveries[0], &Shown::Row(view.clone()), style);
        check(&format!("database_change_{name}"), &frame(style()));
        if name == "insert" {
            check("database_change_own", &frame(FrameStyle { own: true, last: false, ..style() }));
            check("database_change_numbers", &frame(FrameStyle { numbers_as_strings: true, ..style() }));
        }
    }
    let broadcast = Broadcast {
        audience: audience("user:42"),
        name: "notifications".into(),
        id: "0b7c".into(),
        event: "notification.new".into(),
        payload: "{\"title\": \"hello\"}".into(),
    };
    let transaction = transaction(vec![Body::Truncate(shape()), Body::Broadcast(broadcast)], None);
    let frame = |place: usize, shown| frame_of(&transaction, &transaction.deliveries[place], &shown, style());
    check("database_change_truncate", &frame(0, Shown::Truncate(audience("user:42"))));
    check("broadcast", &frame(1, Shown::Broadcast));
}

#[test]
fn times_are_told_to_the_microsecond() {
    assert_eq!(timestamp(0), "1970-01-01T00:00:00.000000Z");
    assert_eq!(timestamp(-1), "1969-12-31T23:59:59.999999Z");
    assert_eq!(timestamp(i64::MAX), "9999-12-31T23:59:59.999999Z");
}

/// A transaction that begins to commit at `commit`, for these audiences, and ends ten later.
fn publish(hub: &Hub, commit: u64, audiences: &[&str], size: usize) {
    let body = |name: &&str| {
        let json = Bytes::from(vec![b' '; size]);
        let record = Some(Record { json, unchanged: Vec::new(), whole: None });
        Body::Row(row(record, &[(name, false, true)]))
    };
    let mut transaction = transaction(audiences.iter().map(body).collect(), None);
    transaction.commit = Lsn::new(commit);
    hub.publish(&Arc::new(transaction), Lsn::new(commit + 10));
}

fn taken(seat: &Seat) -> Option<(Vec<(u64, usize)>, u64)> {
    match seat.take() {
        Taken::Lost => None,
        Taken::Items { items, upto } => {
            let items =
                items.iter().map(|item| (item.published.transaction.commit.get(), item.places().count()));
            Some((items.collect(), upto.get()))
        }
    }
}

#[test]
fn a_seat_gets_what_it_subscribed_from_the_place_it_was_told() {
    let hub = Hub::new(Lsn::new(100));
    let mut seat = hub.join(10_000);
    assert_eq!(taken(&seat), None, "closed until it goes live");
    assert_eq!(seat.go_live(), Lsn::new(100));
    publish(&hub, 100, &["user:1"], 1);
    assert_eq!(taken(&seat), Some((vec![], 110)), "not subscribed, and nothing missing");
    assert_eq!(seat.subscribe(&audience("user:1")), Lsn::new(110));
    seat.subscribe(&audience("user:1"));
    publish(&hub, 110, &["user:1", "user:2", "user:1"], 1);
    publish(&hub, 120, &["user:2"], 1);
    hub.advance(Lsn::new(150));
    assert_eq!(taken(&seat), Some((vec![(110, 2)], 150)));
    seat.unsubscribe(&audience("user:1"));
    publish(&hub, 150, &["user:1"], 1);
    assert_eq!(taken(&seat), Some((vec![(150, 1)], 160)), "another subscription holds it");
    seat.unsubscribe(&audience("user:1"));
    publish(&hub, 160, &["user:1"], 1);
    assert_eq!(taken(&seat), Some((vec![], 170)));
    drop(seat);
    assert_eq!((hub.sessions(), hub.lock().audiences.len()), (0, 0));
}

#[test]
fn a_session_that_does_not_take_costs_itself_alone() {
    let hub = Hub::new(Lsn::new(100));
    let seats = [3_000, 100_000].map(|limit| {
        let mut seat = hub.join(limit);
        seat.subscribe(&audience("user:1"));
        seat.go_live();
        seat
    });
    for n in 0..10 {
        publish(&hub, 100 + 10 * n, &["user:1"], 500);
    }
    assert_eq!(taken(&seats[0]), None, "emptied and lost");
    assert_eq!(taken(&seats[1]).unwrap().0.len(), 10);
    assert_eq!(seats[0].go_live(), Lsn::new(200));
    publish(&hub, 200, &["user:1"], 5_000);
    assert_eq!(taken(&seats[0]).unwrap(), (vec![(200, 1)], 210), "one item may be larger than the limit");
    // A few changes of a large transaction would keep all of it.
    publish(&hub, 210, &["user:1", "user:2"], MAX_HELD);
    assert_eq!((taken(&seats[0]), taken(&seats[1])), (None, None));
}

#[test]
fn parts_and_truncates_reach_their_readers() {
    let hub = Hub::new(Lsn::new(100));
    let [one, two, global] = ["user:1", "user:2", "global"].map(|name| {
        let mut seat = hub.join(10_000);
        seat.subscribe(&audience(name));
        seat.go_live();
        seat
    });
    hub.publish(&Arc::new(transaction(vec![Body::Truncate(shape())], None)), Lsn::new(110));
    assert_eq!([&one, &two, &global].map(|seat| taken(seat).unwrap().0.len()), [1, 1, 0]);
    let mut touched = Touched::default();
    touched.add(&Delivery { index: 2, body: Body::Row(row(None, &[("user:2", true, false)])) });
    hub.publish_parts(&touched, Lsn::new(120));
    assert_eq!([&one, &two, &global].map(|seat| taken(seat).is_none()), [false, true, false]);
    touched.add(&Delivery { index: 4, body: Body::Truncate(shape()) });
    hub.publish_parts(&touched, Lsn::new(130));
    assert!([&one, &two, &global].iter().all(|seat| taken(seat).is_none()));
}
