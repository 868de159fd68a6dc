use std::collections::BTreeMap;

use bytes::Bytes;

use super::*;
use crate::position::Position;
use crate::route::RouterState;
use crate::wal::pgoutput::Message;
use crate::wal::pgoutput::{Column, ReplicaIdentity, decode};

const TEAM_MEMBERS: u32 = 16_400;
const GRANTS: u32 = 900;

/// A tuple as pgoutput sends it: `None` is NULL, `"\0"` an unchanged large value.
fn tuple(values: &[Option<&str>]) -> Tuple {
    let mut body = vec![b'I'];
    body.extend(TEAM_MEMBERS.to_be_bytes());
    body.push(b'N');
    body.extend(u16::try_from(values.len()).unwrap().to_be_bytes());
    for value in values {
        match value {
            None => body.push(b'n'),
            Some("\0") => body.push(b'u'),
            Some(text) => {
                body.push(b't');
                body.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
                body.extend(text.as_bytes());
            }
        }
    }
    let Message::Insert(insert) = decode(Bytes::from(body)).unwrap() else { panic!() };
    insert.new
}

fn relation(relid: u32, namespace: &str, name: &str, columns: &[(&str, u32, bool)]) -> Relation {
    let column = |(name, type_oid, key): &(&str, u32, bool)| Column {
        key: *key,
        name: (*name).to_owned(),
        type_oid: *type_oid,
        type_modifier: -1,
    };
    Relation {
        relid,
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        identity: ReplicaIdentity::Default,
        columns: columns.iter().map(column).collect(),
    }
}

fn team_members() -> Relation {
    relation(
        TEAM_MEMBERS,
        "public",
        "team_members",
        &[("id", 23, true), ("team_id", 25, false), ("user_id", 25, false)],
    )
}

/// A rule of this generation, over `public.team_members (id, team_id, user_id)`.
fn put_rule(router: &mut Router, generation: &'static str) {
    let column = |name: &str| match name {
        "generation" => Some(generation),
        "relid" => Some("16400"),
        "schema_name" => Some("public"),
        "table_name" => Some("team_members"),
        "user_column" => Some("user_id"),
        "pattern" => Some("team:{team_id}:*"),
        "key_columns" => Some("{id}"),
        "columns" => Some("{id,user_id,team_id}"),
        "column_types" => Some("{23,25,25}"),
        _ => None,
    };
    router.put_grant(column).unwrap();
}

fn router() -> Router {
    let mut router = Router::new(RouterState::default());
    put_rule(&mut router, "1");
    router.relation(team_members());
    router
}

fn insert(router: &mut Router, id: &str, team: Option<&str>, user: Option<&str>) {
    router.member_changed(TEAM_MEMBERS, MemberChange::Insert(&tuple(&[Some(id), team, user])));
}

fn update(router: &mut Router, old_id: Option<&str>, new: &[Option<&str>]) {
    let old = old_id.map(|id| OldTuple::Key(tuple(&[Some(id), None, None])));
    let change = MemberChange::Update { old: old.as_ref(), new: &tuple(new) };
    router.member_changed(TEAM_MEMBERS, change);
}

fn delete(router: &mut Router, id: &str) {
    let old = OldTuple::Key(tuple(&[Some(id), None, None]));
    router.member_changed(TEAM_MEMBERS, MemberChange::Delete(&old));
}

/// All that is granted, as `user pattern`.
fn granted(router: &Router) -> Vec<String> {
    let mut all: Vec<String> = router
        .all_rights()
        .map(|change| match change {
            RightsChange::Grant(user, pattern) => format!("{} {pattern}", user.subject),
            RightsChange::Revoke { user, before } => format!("revoked {} {before}", user.subject),
            other => panic!("{other:?}"),
        })
        .collect();
    all.sort();
    all
}

/// What is granted by the journal, which must come to the same as the state.
fn follow(router: &mut Router, counts: &mut BTreeMap<String, i32>) {
    for change in router.take_rights() {
        let (by, name) = match change {
            RightsChange::Grant(user, pattern) => (1, format!("{} {pattern}", user.subject)),
            RightsChange::Ungrant(user, pattern) => (-1, format!("{} {pattern}", user.subject)),
            other => panic!("{other:?}"),
        };
        let count = counts.entry(name.clone()).or_insert(0);
        *count += by;
        assert!(*count >= 0, "{name}");
        if *count == 0 {
            counts.remove(&name);
        }
    }
    let named: Vec<String> = counts
        .iter()
        .flat_map(|(name, count)| vec![name.clone(); usize::try_from(*count).unwrap()])
        .collect();
    assert_eq!(named, granted(router));
}

#[test]
fn rows_grant_as_they_come_change_and_go() {
    let (mut router, mut counts) = (router(), BTreeMap::new());
    insert(&mut router, "1", Some("7"), Some("ann"));
    insert(&mut router, "2", Some("7"), Some("ann"));
    insert(&mut router, "3", Some("8"), Some("bob"));
    follow(&mut router, &mut counts);
    assert_eq!(granted(&router), ["ann team:7:*", "ann team:7:*", "bob team:8:*"]);
    // Applied again nothing changes.
    insert(&mut router, "2", Some("7"), Some("ann"));
    assert!(router.take_rights().is_empty());
    delete(&mut router, "1");
    update(&mut router, None, &[Some("2"), Some("9"), Some("ann")]);
    update(&mut router, Some("3"), &[Some("4"), Some("8"), Some("cy")]);
    follow(&mut router, &mut counts);
    assert_eq!(granted(&router), ["ann team:9:*", "cy team:8:*"]);
    delete(&mut router, "3");
    router.table_truncated(TEAM_MEMBERS);
    follow(&mut router, &mut counts);
    assert_eq!(granted(&router), Vec::<String>::new());
    insert(&mut router, "2", Some("9"), Some("ann"));
    follow(&mut router, &mut counts);
    assert_eq!(granted(&router), ["ann team:9:*"]);
}

#[test]
fn a_value_never_becomes_a_separator_or_a_wildcard() {
    let mut router = router();
    let long = "x".repeat(257);
    for (id, team) in [("1", "*"), ("2", "a:b"), ("3", ""), ("4", &long), ("5", "%2A")] {
        insert(&mut router, id, Some(team), Some("ann"));
    }
    insert(&mut router, "6", None, Some("ann"));
    for (id, user) in [("7", None), ("8", Some("")), ("9", Some(long.as_str()))] {
        insert(&mut router, id, Some("7"), user);
    }
    assert_eq!(granted(&router), ["ann team:%252A:*", "ann team:%2A:*", "ann team:a%3Ab:*"]);
}

#[test]
fn large_values_that_were_not_sent_are_those_of_before() {
    let mut router = router();
    insert(&mut router, "1", Some("7"), Some("ann"));
    update(&mut router, None, &[Some("1"), Some("\0"), Some("\0")]);
    assert_eq!(granted(&router), ["ann team:7:*"]);
    update(&mut router, None, &[Some("1"), Some("\0"), Some("bob")]);
    assert_eq!(granted(&router), ["bob team:7:*"]);
    update(&mut router, None, &[Some("1"), Some("8"), Some("\0")]);
    assert_eq!(granted(&router), ["bob team:8:*"]);
    update(&mut router, None, &[Some("1"), Some("\0"), None]);
    assert_eq!(granted(&router), Vec::<String>::new());
    // Nobody knows them: nothing rather than a guess; and the other rows grant as before.
    insert(&mut router, "2", Some("7"), Some("cy"));
    update(&mut router, None, &[Some("1"), Some("9"), Some("\0")]);
    assert_eq!(granted(&router), ["cy team:7:*"]);
    let full = OldTuple::Full(tuple(&[Some("1"), Some("7"), Some("ann")]));
    let new = tuple(&[Some("1"), Some("\0"), Some("\0")]);
    router.member_changed(TEAM_MEMBERS, MemberChange::Update { old: Some(&full), new: &new });
    assert_eq!(granted(&router), ["ann team:7:*", "cy team:7:*"]);
}

#[test]
fn a_table_that_is_not_what_it_was_grants_nothing_until_it_is_granted_again() {
    let columns = [("id", 23, true), ("team_id", 25, false), ("user_id", 25, false)];
    let mut retyped = columns;
    retyped[1].1 = 23;
    let mut keyless = columns;
    keyless[0].2 = false;
    for (name, columns) in [
        ("members", &columns[..]),
        ("team_members", &retyped),
        ("team_members", &keyless),
        ("team_members", &columns[1..]),
    ] {
        let (mut router, mut counts) = (router(), BTreeMap::new());
        insert(&mut router, "1", Some("7"), Some("ann"));
        router.relation(relation(TEAM_MEMBERS, "public", name, columns));
        insert(&mut router, "2", Some("7"), Some("bob"));
        follow(&mut router, &mut counts);
        assert_eq!(
            (granted(&router), router.ended_grants()),
            (Vec::<String>::new(), 1),
            "{name} {columns:?}"
        );
        router.relation(team_members());
        insert(&mut router, "3", Some("7"), Some("bob"));
        assert_eq!(granted(&router), Vec::<String>::new());
        put_rule(&mut router, "2");
        router.put_member(2, &["1".into()], Some("ann"), Some("7"));
        router.drop_grant(1);
        insert(&mut router, "3", Some("7"), Some("bob"));
        assert_eq!((granted(&router).len(), router.ended_grants()), (2, 0));
    }
}

#[test]
fn a_row_that_cannot_be_read_ends_the_grants_of_its_table() {
    let mut router = router();
    insert(&mut router, "1", Some("7"), Some("ann"));
    router.member_changed(TEAM_MEMBERS, MemberChange::Insert(&tuple(&[Some("2"), Some("7")])));
    assert_eq!((granted(&router), router.ended_grants()), (Vec::new(), 1));
}

/// What the log would give back.
fn kept(kept: &mut BTreeMap<String, Vec<u8>>, router: &mut Router) {
    for (name, value) in router.take_rights_state() {
        match value {
            Some(value) => drop(kept.insert(name, value)),
            None => drop(kept.remove(&name)),
        }
    }
}

fn restored(router: &Router, kept: &BTreeMap<String, Vec<u8>>) -> Router {
    let state: RouterState = serde_json::from_slice(&serde_json::to_vec(router.state()).unwrap()).unwrap();
    let mut restored = Router::new(state);
    restored.restore_rights(kept.clone()).unwrap();
    restored.relation(team_members());
    restored
}

#[test]
fn what_the_log_keeps_comes_to_the_same() {
    let (mut router, mut log) = (router(), BTreeMap::new());
    let revoked = |name: &str| match name {
        "user_id" => Some("mal"),
        "issuer" => Some(""),
        "before_unix_us" => Some("5"),
        _ => None,
    };
    router.put_revocation(revoked).unwrap();
    for id in 0..3_000 {
        insert(&mut router, &id.to_string(), Some("7"), Some("ann"));
    }
    kept(&mut log, &mut router);
    assert_eq!(granted(&restored(&router, &log)), granted(&router));
    // The same, whole, as a new log begins with it.
    let mut again = restored(&router, &log);
    assert_eq!(again.all_rights_state().into_iter().collect::<BTreeMap<_, _>>(), log);
    // Void at once, and taken out bit by bit, also after a restart.
    router.table_truncated(TEAM_MEMBERS);
    insert(&mut router, "1", Some("8"), Some("bob"));
    kept(&mut log, &mut router);
    assert!(log.len() > 1_000);
    let mut restored = restored(&router, &log);
    assert_eq!(granted(&restored), ["bob team:8:*", "revoked mal 5"]);
    while log.len() > 2 {
        let before = log.len();
        kept(&mut log, &mut restored);
        assert!(log.len() < before);
    }
    assert_eq!(granted(&restored), ["bob team:8:*", "revoked mal 5"]);
    assert!(restored.take_rights_state().is_empty());
}

#[test]
fn what_the_log_has_damaged_is_an_error_and_no_grant() {
    let (mut router, mut log) = (router(), BTreeMap::new());
    insert(&mut router, "1", Some("7"), Some("ann"));
    kept(&mut log, &mut router);
    for audience in ["team:*", "team:%41", "team:7:x", ""] {
        let damaged = log.keys().map(|name| {
            let value = format!("{{\"u\":\"ann\",\"a\":\"{audience}\"}}");
            (name.clone(), value.into_bytes())
        });
        let mut restored = Router::new(router.state().clone());
        assert!(restored.restore_rights(damaged).is_err(), "{audience}");
    }
}

#[test]
fn a_truncated_catalog_grants_nothing() {
    let mut router = router();
    insert(&mut router, "1", Some("7"), Some("ann"));
    router.relation(relation(GRANTS, "rowcast", "grants", &[("generation", 20, true)]));
    router.table_truncated(GRANTS);
    assert_eq!((granted(&router), router.grants(TEAM_MEMBERS)), (Vec::new(), false));
    let row = |router: &Router| router.catalog_row(GRANTS, &tuple(&[Some("1")])).unwrap();
    put_rule(&mut router, "1");
    assert!(router.grants(TEAM_MEMBERS));
    let row = row(&router);
    router.delete_row(&row, Position::ZERO);
    assert!(!router.grants(TEAM_MEMBERS));
}
