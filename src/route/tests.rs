//! The router as a state machine: what the stream and the database say, in every awkward order.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;

use super::*;
use crate::lsn::Lsn;
use crate::wal::pgoutput::{Column, Message, ReplicaIdentity, decode};

pub(super) const CATALOG: u32 = 1;
const ORDERS: u32 = 16_400;

pub(super) fn column(name: &str, type_oid: u32, key: bool) -> Column {
    Column { key, name: name.to_owned(), type_oid, type_modifier: -1 }
}

/// `public.orders (id int4, user_id int4, note text)`, identified by its first two columns.
pub(super) fn orders() -> Relation {
    Relation {
        relid: ORDERS,
        namespace: "public".to_owned(),
        name: "orders".to_owned(),
        identity: ReplicaIdentity::Index,
        columns: vec![column("id", 23, true), column("user_id", 23, true), column("note", 25, false)],
    }
}

pub(super) fn catalog_relation() -> Relation {
    let columns = ["relid", "schema_name", "table_name", "topics", "columns", "generation"];
    Relation {
        relid: CATALOG,
        namespace: "rowcast".to_owned(),
        name: "tables".to_owned(),
        identity: ReplicaIdentity::Default,
        columns: columns.iter().map(|name| column(name, 25, *name == "relid")).collect(),
    }
}

pub(super) fn tuple(values: &[Option<&str>]) -> Tuple {
    let mut body = vec![b'I', 0, 0, 0, 1, b'N'];
    body.extend(u16::try_from(values.len()).unwrap().to_be_bytes());
    for value in values {
        match value {
            None => body.push(b'n'),
            Some(text) => {
                body.push(b't');
                body.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
                body.extend(text.as_bytes());
            }
        }
    }
    match decode(body.into()).unwrap() {
        Message::Insert(insert) => insert.new,
        _ => panic!("an Insert"),
    }
}

fn fetch(fingerprint: &str, insert_lsn: u64) -> TableFetch {
    let info = TableInfo {
        schema: "public".to_owned(),
        name: "orders".to_owned(),
        primary_key: vec!["id".to_owned()],
        types: HashMap::new(),
        fingerprint: fingerprint.to_owned(),
        partitions: None,
    };
    TableFetch {
        info: Some(info),
        joined_without_rows: false,
        unpublished: None,
        insert_lsn: Lsn::new(insert_lsn),
    }
}

pub(super) fn at(commit: u64) -> Position {
    Position::new(Lsn::new(commit), 4)
}

pub(super) fn boundary(lsn: u64) -> Position {
    Position::boundary(Lsn::new(lsn))
}

fn track(router: &mut Router, topics: &str, generation: &str, commit: u64) -> CatalogEffect {
    let values = ["16400", "public", "orders", topics].map(Some);
    let values = [&values[..], &[None, Some(generation)]].concat();
    let row = router.catalog_row(CATALOG, &tuple(&values)).unwrap();
    router.put_row(&row, at(commit)).unwrap()
}

fn untrack(router: &mut Router, commit: u64) -> CatalogEffect {
    let row = router.catalog_row(CATALOG, &tuple(&[Some("16400"), None, None, None, None, None])).unwrap();
    router.delete_row(&row, at(commit))
}

/// A router that met the track of `orders` at 10 and asked about it.
fn tracked() -> Router {
    let mut router = Router::new(RouterState::default());
    router.relation(catalog_relation());
    let effect = track(&mut router, "{user:{user_id}:orders}", "1", 10);
    assert_eq!(told(&effect.marks), [("orders".to_owned(), at(10), Reason::NewlyTracked)]);
    assert_eq!(effect.ask, Some(ORDERS));
    let mark = router.learn(ORDERS, fetch("a", 20), at(10)).unwrap();
    assert_eq!(
        (mark.upto, mark.reason, mark.scopes),
        (boundary(20), Reason::NewlyTracked, vec!["user".to_owned()])
    );
    router.relation(orders());
    router
}

pub(super) fn told(marks: &[Mark]) -> Vec<(String, Position, Reason)> {
    marks.iter().map(|mark| (mark.table.to_string(), mark.upto, mark.reason)).collect()
}

fn plan(router: &mut Router, commit: u64) -> Arc<Plan> {
    match router.reading(ORDERS, at(commit), Need::Old) {
        Reading::Plan(plan) => plan,
        other => panic!("{other:?}"),
    }
}

fn skips(router: &mut Router, commit: u64) -> bool {
    matches!(router.reading(ORDERS, at(commit), Need::Old), Reading::Skip)
}

fn asks(router: &mut Router, commit: u64) -> bool {
    matches!(router.reading(ORDERS, at(commit), Need::Old), Reading::Ask)
}

fn marked(router: &mut Router, commit: u64) -> Position {
    match router.reading(ORDERS, at(commit), Need::Old) {
        Reading::Mark(mark) => {
            assert_eq!(mark.reason, Reason::Identity);
            mark.upto
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_not_tracked_is_for_nobody() {
    let mut router = Router::new(RouterState::default());
    router.relation(orders());
    // It may be a leaf of a tracked table that joined lately, once.
    assert!(asks(&mut router, 5));
    router.stranger(ORDERS);
    assert!(skips(&mut router, 5));
    let mut router = tracked();
    plan(&mut router, 30);
    let effect = untrack(&mut router, 40);
    assert_eq!(
        (told(&effect.marks), effect.ask),
        (vec![("orders".to_owned(), at(40), Reason::Untracked)], None)
    );
    assert!(router.learn(ORDERS, fetch("a", 50), at(41)).is_none(), "an answer that comes late");
    router.stranger(ORDERS);
    assert!(skips(&mut router, 41));
}

#[test]
fn a_row_applied_again_changes_nothing() {
    let mut router = tracked();
    router.take_changed();
    let effect = track(&mut router, "{user:{user_id}:orders}", "1", 30);
    assert!(effect.marks.is_empty() && effect.ask.is_none());
    plan(&mut router, 31);
}

#[test]
fn a_second_track_tells_readers_of_both() {
    let mut router = tracked();
    let effect = track(&mut router, "{team:{user_id}:orders}", "2", 30);
    assert_eq!(told(&effect.marks), [("orders".to_owned(), at(30), Reason::Retracked)]);
    assert_eq!(effect.marks[0].scopes, ["team", "user"]);
    assert!(asks(&mut router, 31), "what was known belongs to the old track");
    let effect = track(&mut router, "{team:{user_id}:purchases}", "3", 40);
    let expected = [("purchases", Reason::Retracked), ("orders", Reason::Untracked)];
    assert_eq!(told(&effect.marks), expected.map(|(name, reason)| (name.to_owned(), at(40), reason)));
}

#[test]
fn only_another_fingerprint_makes_copies_stale() {
    let mut router = tracked();
    assert!(router.learn(ORDERS, fetch("a", 50), at(30)).is_none());
    let mark = router.learn(ORDERS, fetch("b", 60), at(30)).unwrap();
    assert_eq!((mark.upto, mark.reason), (boundary(60), Reason::SchemaChanged));
    // The stream may be ahead of what the server said.
    let mark = router.learn(ORDERS, fetch("c", 60), at(70)).unwrap();
    assert_eq!(mark.upto, at(70));
}

#[test]
fn shapes_are_numbered_once() {
    let mut router = tracked();
    let first = plan(&mut router, 30).shape.id;
    router.relation(orders());
    assert_eq!(plan(&mut router, 31).shape.id, first, "announced again, it is the same");
    let mut wider = orders();
    wider.columns.push(column("more", 25, false));
    router.relation(wider);
    assert_ne!(plan(&mut router, 32).shape.id, first);

    let saved = serde_json::to_vec(router.state()).unwrap();
    let mut again = Router::new(serde_json::from_slice(&saved).unwrap());
    again.reserve_shapes(9);
    again.relation(orders());
    assert_eq!(plan(&mut again, 40).shape.id, 9);
}

#[test]
fn rows_of_a_past_shape_are_left_out_up_to_the_answer() {
    let mut router = tracked();
    let mut past = orders();
    past.columns.remove(0);
    router.relation(past);
    assert!(asks(&mut router, 30));
    let mark = router.learn(ORDERS, fetch("b", 50), at(30)).unwrap();
    assert_eq!((mark.upto, mark.reason), (boundary(50), Reason::SchemaChanged));
    assert!(skips(&mut router, 31) && skips(&mut router, 49));
    router.relation(orders());
    // Everything up to the mark is unreadable anyway.
    plan(&mut router, 51);
}

#[test]
fn what_does_not_get_better_is_blocked_and_not_asked_for_each_row() {
    let mut router = tracked();
    let mut narrow = orders();
    narrow.columns.remove(0);
    router.relation(narrow);
    router.learn(ORDERS, fetch("b", 50), at(30));
    assert!(asks(&mut router, 60));
    let mark = router.learn(ORDERS, fetch("b", 70), at(60)).unwrap();
    assert_eq!(mark.upto, Position::MAX);
    assert!(skips(&mut router, 61) && skips(&mut router, 100));
    router.relation(orders());
    assert_eq!(marked(&mut router, 110), Position::new(Lsn::new(110), 3));
    plan(&mut router, 110);
}

#[test]
fn a_table_that_is_gone_is_asked_for_only_beyond_the_answer() {
    let mut router = tracked();
    let gone =
        TableFetch { info: None, joined_without_rows: false, unpublished: None, insert_lsn: Lsn::new(50) };
    let mark = router.learn(ORDERS, gone.clone(), at(30)).unwrap();
    assert_eq!((mark.upto, mark.reason), (boundary(50), Reason::SchemaChanged));
    assert!(skips(&mut router, 40) && asks(&mut router, 60));
    router.learn(ORDERS, gone, at(60)).unwrap();
    assert!(skips(&mut router, 60), "an answer that is behind the row does not loop");
}

#[test]
fn an_identity_that_does_not_suffice_blocks_until_it_is_mended() {
    let mut router = tracked();
    let mut weak = orders();
    weak.columns[1].key = false;
    router.relation(weak.clone());
    assert_eq!(marked(&mut router, 30), Position::MAX);
    assert!(skips(&mut router, 30) && skips(&mut router, 31));

    let saved = serde_json::to_vec(router.state()).unwrap();
    let mut router = Router::new(serde_json::from_slice(&saved).unwrap());
    router.relation(weak.clone());
    assert!(skips(&mut router, 32), "still known after a restart");
    weak.identity = ReplicaIdentity::Full;
    router.relation(weak);
    // All that came before this row is unreadable, the row itself is not.
    assert_eq!(marked(&mut router, 40), Position::new(Lsn::new(40), 3));
    plan(&mut router, 40);
}

#[test]
fn another_table_under_the_same_number_is_never_routed() {
    // As after a restore: the catalog's number is that of a table with another name.
    let mut router = Router::new(RouterState::default());
    router.relation(catalog_relation());
    track(&mut router, "{user:{user_id}:orders}", "1", 10);
    let mut fetched = fetch("a", 20);
    let salaries = || "salaries".to_owned();
    fetched.info.as_mut().unwrap().name = salaries();
    router.learn(ORDERS, fetched, at(10));
    router.relation(Relation { name: salaries(), ..orders() });
    assert_eq!(marked(&mut router, 30), Position::MAX);
    assert!(skips(&mut router, 31));
}

#[test]
fn a_table_that_is_renamed_goes_on_under_its_topics() {
    let mut router = tracked();
    router.relation(orders());
    plan(&mut router, 30);
    router.relation(Relation { name: "purchases".to_owned(), ..orders() });
    let plan = plan(&mut router, 40);
    assert_eq!((&*plan.shape.table, &*plan.shape.name), ("purchases", "orders"));
}

#[test]
fn columns_that_are_not_published_are_in_no_shape() {
    let mut router = Router::new(RouterState::default());
    router.relation(catalog_relation());
    let values = ["16400", "public", "orders", "{user:{user_id}:orders}", "{id,user_id}", "1"].map(Some);
    let row = router.catalog_row(CATALOG, &tuple(&values)).unwrap();
    router.put_row(&row, at(10)).unwrap();
    router.learn(ORDERS, fetch("a", 20), at(10));
    let mut full = orders();
    full.identity = ReplicaIdentity::Full;
    router.relation(full);
    let plan = plan(&mut router, 30);
    let names: Vec<&str> = plan.shape.columns.iter().map(|(name, _)| &**name).collect();
    assert_eq!(names, ["id", "user_id"]);
}
