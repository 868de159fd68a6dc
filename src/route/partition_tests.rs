//! Partitioned tables in the router: leaves that join, leave, are weak, and are mended.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, HashMap};

use super::tests::{CATALOG, at, boundary, catalog_relation, column, told, tuple};
use super::*;
use crate::lsn::Lsn;
use crate::postgres::partitions::{Leaf, LeafFault, Partitions};
use crate::wal::pgoutput::ReplicaIdentity;

const ROOT: u32 = 16_400;
const EU: u32 = 16_401;
const US: u32 = 16_402;

fn leaf(name: &str, identity: &[&str]) -> Leaf {
    let identity = identity.iter().map(|name| (*name).to_owned()).collect();
    Leaf { name: name.to_owned(), place: "1".to_owned(), fault: None, identity: Some(identity) }
}

/// `orders (id, user_id, note)` with these leaves.
fn fetch(fingerprint: &str, insert_lsn: u64, leaves: &[(u32, Leaf)]) -> TableFetch {
    let info = TableInfo {
        schema: "public".to_owned(),
        name: "orders".to_owned(),
        primary_key: vec!["id".to_owned()],
        types: HashMap::new(),
        fingerprint: fingerprint.to_owned(),
        partitions: Some(Partitions {
            columns: ["id", "user_id", "note"].map(str::to_owned).to_vec(),
            leaves: leaves.iter().cloned().collect::<BTreeMap<_, _>>(),
        }),
    };
    TableFetch {
        info: Some(info),
        joined_without_rows: false,
        unpublished: None,
        insert_lsn: Lsn::new(insert_lsn),
    }
}

fn strong(name: &str) -> Leaf {
    leaf(name, &["id", "user_id"])
}

/// A leaf whose columns stand in another order.
fn relation(relid: u32, name: &str, user_in_key: bool) -> Relation {
    Relation {
        relid,
        namespace: "parts".to_owned(),
        name: name.to_owned(),
        identity: ReplicaIdentity::Index,
        columns: vec![column("note", 25, false), column("user_id", 23, user_in_key), column("id", 23, true)],
    }
}

/// `orders` with the leaf `eu`, tracked at 10.
fn tracked() -> Router {
    let mut router = Router::new(RouterState::default());
    router.relation(catalog_relation());
    let values = ["16400", "public", "orders", "{user:{user_id}:orders}"].map(Some);
    let values = [&values[..], &[None, Some("1")]].concat();
    let row = router.catalog_row(CATALOG, &tuple(&values)).unwrap();
    router.put_row(&row, at(10)).unwrap();
    router.learn(ROOT, fetch("a/1", 20, &[(EU, strong("eu"))]), at(10)).unwrap();
    router.relation(relation(EU, "eu", true));
    router
}

fn plan(router: &mut Router, relid: u32, commit: u64, need: Need) -> Arc<Plan> {
    match router.reading(relid, at(commit), need) {
        Reading::Plan(plan) => plan,
        other => panic!("{other:?}"),
    }
}

fn skips(router: &mut Router, relid: u32, commit: u64) -> bool {
    matches!(router.reading(relid, at(commit), Need::New), Reading::Skip)
}

fn marked(router: &mut Router, relid: u32, commit: u64) -> Position {
    match router.reading(relid, at(commit), Need::Old) {
        Reading::Mark(mark) => {
            assert_eq!((mark.reason, &*mark.table), (Reason::Identity, "orders"));
            mark.upto
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_leafs_rows_are_the_tables_in_its_order() {
    let mut router = tracked();
    let plan = plan(&mut router, EU, 30, Need::Old);
    assert_eq!((&*plan.shape.schema, &*plan.shape.table, plan.shape.relid), ("public", "orders", ROOT));
    let names: Vec<&str> = plan.shape.columns.iter().map(|(name, _)| &**name).collect();
    assert_eq!(names, ["id", "user_id", "note"]);
    assert_eq!(plan.record, [2, 1, 0]);
    let saved = serde_json::to_vec(router.state()).unwrap();
    let mut again = Router::new(serde_json::from_slice(&saved).unwrap());
    again.relation(relation(EU, "eu", true));
    assert!(matches!(again.reading(EU, at(40), Need::Old), Reading::Plan(_)), "still known after a restart");
}

#[test]
fn a_leaf_that_joins_is_asked_about_and_tells_nobody_if_it_brought_no_rows() {
    let mut router = tracked();
    router.relation(relation(US, "us", true));
    assert!(matches!(router.reading(US, at(30), Need::New), Reading::Ask));
    let both = [(EU, strong("eu")), (US, strong("us"))];
    let without_rows = TableFetch { joined_without_rows: true, ..fetch("a/2", 40, &both) };
    assert!(router.learn_through(ROOT, US, without_rows, at(30)).is_none());
    assert_eq!(plan(&mut router, US, 30, Need::Old).shape.id, plan(&mut router, EU, 31, Need::Old).shape.id);

    let mut router = tracked();
    let mark = router.learn(ROOT, fetch("a/2", 40, &both), at(30)).unwrap();
    assert_eq!(told(&[mark]), [("orders".to_owned(), boundary(40), Reason::SchemaChanged)]);
}

#[test]
fn a_leaf_that_leaves_makes_the_table_stale_and_is_a_stranger() {
    let mut router = tracked();
    plan(&mut router, EU, 30, Need::Old);
    let mark = router.learn(ROOT, fetch("a/3", 40, &[]), at(30)).unwrap();
    assert_eq!((mark.upto, mark.reason), (boundary(40), Reason::SchemaChanged));
    assert!(matches!(router.reading(EU, at(50), Need::New), Reading::Ask));
    router.stranger(EU);
    assert!(skips(&mut router, EU, 50));
    router.relation(relation(EU, "eu", true));
    assert!(matches!(router.reading(EU, at(51), Need::New), Reading::Ask), "announced anew, it may be back");
    // The table itself changed along: whatever joined, copies are stale.
    let mut router = tracked();
    let more = TableFetch {
        joined_without_rows: true,
        ..fetch("b/2", 40, &[(EU, strong("eu")), (US, strong("us"))])
    };
    assert_eq!(router.learn(ROOT, more, at(30)).unwrap().reason, Reason::SchemaChanged);
}

#[test]
fn a_weak_leaf_blocks_with_the_first_old_row_and_all_leaves() {
    let mut router = tracked();
    let both = |us: Leaf| [(EU, strong("eu")), (US, us)];
    let joined = TableFetch { joined_without_rows: true, ..fetch("a/2", 20, &both(leaf("us", &["id"]))) };
    assert!(router.learn(ROOT, joined, at(30)).is_none());
    router.relation(relation(US, "us", false));
    // A new row says whose it is.
    plan(&mut router, US, 30, Need::New);
    plan(&mut router, EU, 31, Need::Old);
    assert_eq!(marked(&mut router, US, 32), Position::MAX);
    assert!(skips(&mut router, US, 33) && skips(&mut router, EU, 33));

    let saved = serde_json::to_vec(router.state()).unwrap();
    let again = || {
        let mut router = Router::new(serde_json::from_slice(&saved).unwrap());
        router.relation(relation(US, "us", false));
        router.relation(relation(EU, "eu", true));
        router
    };
    // Mended, as the stream tells.
    let mut router = again();
    assert!(skips(&mut router, EU, 40), "still known after a restart");
    router.relation(relation(US, "us", true));
    assert_eq!(marked(&mut router, US, 50), Position::new(Lsn::new(50), 3));
    plan(&mut router, EU, 51, Need::Old);
    // Mended, as the database tells; the stream may not be there yet.
    let mut router = again();
    let mark = router.learn(ROOT, fetch("a/3", 60, &both(strong("us"))), at(50)).unwrap();
    assert_eq!((mark.upto, mark.reason), (boundary(60), Reason::Identity));
    assert!(skips(&mut router, US, 55));
    plan(&mut router, EU, 61, Need::Old);
    // Gone.
    let mut router = again();
    let mark = router.learn(ROOT, fetch("a/4", 60, &[(EU, strong("eu"))]), at(50)).unwrap();
    assert_eq!((mark.upto, mark.reason), (boundary(60), Reason::Identity));
}

#[test]
fn a_leaf_whose_changes_do_not_come_blocks_until_it_is_mended() {
    let mut router = tracked();
    let unlogged = Leaf { fault: Some(LeafFault::Unlogged), ..strong("us") };
    let mark = router.learn(ROOT, fetch("a/2", 40, &[(EU, strong("eu")), (US, unlogged)]), at(30)).unwrap();
    assert_eq!((mark.upto, mark.reason), (Position::MAX, Reason::Identity));
    assert!(skips(&mut router, EU, 50));
    let mark =
        router.learn(ROOT, fetch("a/3", 60, &[(EU, strong("eu")), (US, strong("us"))]), at(50)).unwrap();
    assert_eq!((mark.upto, mark.reason), (boundary(60), Reason::Identity));
    plan(&mut router, EU, 61, Need::Old);
}

#[test]
fn a_leaf_that_lags_behind_the_tables_columns_is_left_out_up_to_the_mark() {
    let mut router = tracked();
    let mut wider = fetch("b/1", 50, &[(EU, strong("eu"))]);
    wider.info.as_mut().unwrap().partitions.as_mut().unwrap().columns.push("more".to_owned());
    let mark = router.learn(ROOT, wider, at(30)).unwrap();
    assert_eq!((mark.upto, mark.reason), (boundary(50), Reason::SchemaChanged));
    assert!(skips(&mut router, EU, 49), "announced as it was, and nothing is asked");
    let mut now = relation(EU, "eu", true);
    now.columns.push(column("more", 25, false));
    router.relation(now);
    plan(&mut router, EU, 51, Need::Old);
}

#[test]
fn all_leaves_together_are_the_table() {
    let mut router = tracked();
    router.learn(ROOT, fetch("a/2", 40, &[(EU, strong("eu")), (US, strong("us"))]), at(30));
    assert!(router.is_whole(ROOT, &[US, 7, EU]) && !router.is_whole(ROOT, &[US]));
    assert!(router.is_whole(9, &[9]), "a table that is not partitioned");
}
