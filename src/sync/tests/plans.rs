//! Which tables need a full answer, and why.

use std::sync::Arc;

use serde_json::json;

use super::log::MemoryLog;
use super::{feed, mark, request};
use crate::auth::UserId;
use crate::change::{Mark, Reason};
use crate::log::{Interest, Log as _, Tables};
use crate::lsn::Lsn;
use crate::position::Position;
use crate::sync::coverage::Coverage;
use crate::sync::plan::{Basis, Plan, plan};
use crate::topic::{Audience, Pattern};

const NOW: Position = Position::new(Lsn::new(900), 0);

fn at(commit: u64) -> Position {
    Position::new(Lsn::new(commit), 0)
}

fn decide(fields: serde_json::Value, basis: Basis, marks: &[Mark]) -> Plan {
    let feed = feed(Arc::new(MemoryLog::new(Vec::new(), Lsn::new(900))));
    plan(&request(fields), basis, None, &feed.directory(), marks, NOW)
}

fn full(plan: &Plan) -> Vec<(&str, &str)> {
    plan.full.iter().map(|(table, reason)| (&**table, reason.as_str())).collect()
}

fn incremental(plan: &Plan) -> Vec<&str> {
    plan.incremental.keys().map(|table| &**table).collect()
}

fn interest(audience: &str, tables: Tables, after: Position) -> Interest {
    Interest { audience: Audience::parse(audience).unwrap(), tables, after }
}

#[test]
fn patterns_and_tables_become_one_interest_for_each_audience() {
    let fields = json!({"topics": ["user:1:orders", "user:1:notes", "team:7:orders", "team:7:*"]});
    let all = decide(fields, Basis::From(at(5)), &[]);
    let both = Tables::Only(vec!["notes".into(), "orders".into()]);
    assert_eq!(
        all.interests,
        [interest("team:7", Tables::All { except: vec![] }, at(5)), interest("user:1", both, at(5))]
    );
    assert_eq!((incremental(&all), full(&all)), (vec!["notes", "orders"], vec![]));
    let fields = json!({"topics": ["user:1:orders", "team:7:*"], "tables": ["notes", "later"]});
    let some = decide(fields, Basis::From(at(5)), &[]);
    let filter = Tables::Only(vec!["later".into(), "notes".into()]);
    assert_eq!(some.interests, [interest("team:7", filter, at(5))]);
    assert_eq!(incremental(&some), ["notes"]);
}

#[test]
fn without_a_place_every_tracked_table_is_full() {
    for reason in [Reason::NoCursor, Reason::Epoch, Reason::TooOld, Reason::TimestampInFuture] {
        let plan = decide(json!({"topics": ["user:1:*"]}), Basis::Full(reason), &[]);
        assert_eq!(full(&plan), [("notes", reason.as_str()), ("orders", reason.as_str())]);
        assert!(plan.incremental.is_empty());
        let plan = decide(json!({"topics": ["user:1:*"], "tables": ["orders"]}), Basis::Full(reason), &[]);
        assert_eq!(full(&plan), [("orders", reason.as_str())]);
        // Nothing is tracked there, so there is nothing to fetch; from now on the log has it.
        let plan = decide(json!({"topics": ["global:*", "user:1:unknown"]}), Basis::Full(reason), &[]);
        assert_eq!((full(&plan), plan.after), (vec![], NOW));
    }
}

#[test]
fn a_mark_beyond_the_copies_makes_its_table_full() {
    let marks = [mark("orders", at(50), Reason::SchemaChanged)];
    let fields = || json!({"topics": ["user:1:*"]});
    let stale = decide(fields(), Basis::From(at(49)), &marks);
    assert_eq!((full(&stale), incremental(&stale)), (vec![("orders", "schema_changed")], vec!["notes"]));
    assert_eq!(stale.interests, [interest("user:1", Tables::All { except: vec!["orders".into()] }, at(49))]);
    assert_eq!(full(&decide(fields(), Basis::From(at(50)), &marks)), []);
    assert_eq!(full(&decide(json!({"topics": ["user:1:notes"]}), Basis::From(at(5)), &marks)), []);
    assert_eq!(
        full(&decide(json!({"topics": ["user:1:*"], "tables": ["notes"]}), Basis::From(at(5)), &marks)),
        []
    );
    // Its scopes are users only.
    assert_eq!(full(&decide(json!({"topics": ["team:7:*"]}), Basis::From(at(5)), &marks)), []);
}

#[test]
fn a_mark_of_one_audience_is_for_its_readers() {
    let audience = Some(Audience::parse("user:2").unwrap());
    let toast = Mark { audience, ..mark("orders", at(80), Reason::Toast) };
    let marks = [mark("orders", at(50), Reason::SchemaChanged), toast];
    let reasons = |topic: &str| {
        let plan = decide(json!({"topics": [topic]}), Basis::From(at(20)), &marks);
        plan.full.values().copied().collect::<Vec<_>>()
    };
    assert_eq!(reasons("user:1:*"), [Reason::SchemaChanged]);
    assert_eq!(reasons("user:2:*"), [Reason::Toast]);
    let later = decide(json!({"topics": ["user:1:*"]}), Basis::From(at(60)), &marks);
    assert_eq!(full(&later), []);
}

#[test]
fn tables_that_the_directory_lacks() {
    let gone = [mark("gone", at(50), Reason::Untracked)];
    for topic in ["user:1:gone", "user:1:*"] {
        let plan = |basis| decide(json!({"topics": [topic], "tables": ["gone"]}), basis, &gone);
        assert_eq!(full(&plan(Basis::From(at(20)))), [("gone", "untracked")]);
        assert_eq!(full(&plan(Basis::From(at(50)))), []);
        assert_eq!(full(&plan(Basis::Full(Reason::Epoch))), [("gone", "untracked")]);
        // A device without a copy has nothing to drop.
        assert_eq!(full(&plan(Basis::Full(Reason::NoCursor))), []);
    }
    let new = [mark("new", at(50), Reason::NewlyTracked)];
    let plan = |basis| decide(json!({"topics": ["user:1:*"], "tables": ["new"]}), basis, &new);
    assert_eq!(full(&plan(Basis::From(at(20)))), [("new", "newly_tracked")]);
    assert_eq!(full(&plan(Basis::Full(Reason::NoCursor))), [("new", "no_cursor")]);
}

#[test]
fn what_the_cursor_did_not_vouch_for_is_full() {
    let feed = feed(Arc::new(MemoryLog::new(Vec::new(), Lsn::new(900))));
    let covered = |topics: &[&str], tables: Option<&[&str]>| {
        let topics: Vec<Pattern> = topics.iter().map(|topic| Pattern::parse(topic).unwrap()).collect();
        let tables = tables.map(|tables| tables.iter().map(|t| Arc::from(*t)).collect::<Vec<_>>());
        Coverage::new(&topics, tables.as_deref())
    };
    let decide = |covered: Coverage| {
        let fields = json!({"topics": ["user:1:*", "team:7:*"]});
        let basis = Basis::From(at(5));
        let plan = plan(&request(fields), basis, Some(&covered), &feed.directory(), &[], NOW);
        full(&plan).iter().map(|(table, reason)| format!("{table} {reason}")).collect::<Vec<_>>()
    };
    assert_eq!(decide(covered(&["user:1:*", "team:7:*", "global:*"], None)), Vec::<String>::new());
    assert_eq!(decide(covered(&["user:1:*", "team:7:orders", "team:7:notes"], None)), Vec::<String>::new());
    let all = ["notes newly_granted", "orders newly_granted"];
    assert_eq!(decide(covered(&["user:1:*"], None)), all);
    assert_eq!(decide(covered(&[], None)), all);
    assert_eq!(decide(covered(&["user:1:*", "team:7:notes"], None)), ["orders newly_granted"]);
    assert_eq!(decide(covered(&["user:1:*", "team:7:*"], Some(&["orders"]))), ["notes newly_granted"]);
}

#[test]
fn a_blocked_table_is_left_alone() {
    let marks = [mark("orders", Position::MAX, Reason::Identity)];
    for basis in [Basis::From(at(5)), Basis::Full(Reason::Epoch)] {
        let plan = decide(json!({"topics": ["user:1:*"]}), basis, &marks);
        assert_eq!(plan.unavailable.keys().map(|table| &**table).collect::<Vec<_>>(), ["orders"]);
        assert!(!plan.full.contains_key("orders") && !plan.incremental.contains_key("orders"));
        assert_eq!(
            plan.interests[0].tables,
            Tables::All {
                except: match basis {
                    Basis::From(_) => vec!["orders".into()],
                    Basis::Full(_) => vec!["notes".into(), "orders".into()],
                }
            }
        );
    }
}

#[test]
fn a_user_cannot_make_the_relay_keep_any_number_of_sets() {
    let log = MemoryLog::new(Vec::new(), Lsn::new(900));
    let user = |subject: &str| UserId { issuer: None, subject: subject.to_owned() };
    let set = |n: i64| Coverage::new(&[Pattern::parse(&format!("user:1:t{n}")).unwrap()], None);
    set(0).remember(&log, &user("2"), 0).unwrap();
    for n in 0..200 {
        set(n).remember(&log, &user("1"), n).unwrap();
    }
    assert_eq!(log.kept_under("coverage/").unwrap().len(), 65);
    let known = |who: &str, n| Coverage::recall(&log, &user(who), set(n).id()).unwrap().is_some();
    assert!(known("1", 199) && known("1", 136) && !known("1", 135), "the oldest go first");
    assert!(known("2", 0) && !known("2", 199), "each user has its own");
    assert_eq!(Coverage::forget_old(&log, 3 * 86_400_000_000, 1).unwrap(), 65);
}
