//! What is read agrees with what was appended, restricted by a model that knows nothing of storage.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use bytes::Bytes;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::super::FjallLog;
use super::support::*;
use crate::change::*;
use crate::log::*;
use crate::lsn::Lsn;
use crate::position::Position;

const AUDIENCES: [&str; 5] = ["global", "user:1", "user:10", "user:2", "team:1"];

/// What a session makes of a row: its operation and the row it sends.
fn derive(row: &RowChange, of: &[Membership]) -> (Operation, Option<Bytes>, usize) {
    let before = of.iter().any(|membership| membership.before);
    let after = of.iter().any(|membership| membership.after);
    let operation = match (before, after) {
        (true, true) => Operation::Update,
        (false, _) => Operation::Insert,
        (true, false) => Operation::Delete,
    };
    let begins = of.iter().any(|membership| membership.after && !membership.before);
    let record = row.record.as_ref().filter(|_| after);
    let (json, unchanged) = match record {
        Some(Record { whole: Some(whole), .. }) if begins => (Some(whole.clone()), 0),
        Some(record) => (Some(record.json.clone()), record.unchanged.len()),
        None => (None, 0),
    };
    (operation, json, unchanged)
}

/// One delivery as its reader sees it, for comparison.
type Seen = (Position, String, Vec<String>);

fn seen(position: Position, transaction: &Transaction, body: &Body, of: &[Membership]) -> Seen {
    let what = match body {
        Body::Row(row) => format!("{:?} {:?} {}", derive(row, of), row.key, row.shape.name),
        Body::Truncate(shape) => format!("truncate {}", shape.name),
        Body::Broadcast(broadcast) => format!("{broadcast:?}"),
    };
    let frame =
        (transaction.xid, transaction.committed_at, transaction.greatest_committed_at, &transaction.tag);
    (position, format!("{what} {frame:?}"), of.iter().map(|one| format!("{one:?}")).collect())
}

/// The deliveries of one transaction that a reader wants.
fn restrict(transaction: &Transaction, request: &ReadRequest<'_>, marks: &[Mark], out: &mut Vec<Seen>) {
    for delivery in &transaction.deliveries {
        let position = transaction.position(delivery);
        if position <= request.after || position > request.upto {
            continue;
        }
        let hidden = |audience: &crate::topic::Audience, table: &str| {
            let concerns = |mark: &Mark| mark.audience.as_ref().is_none_or(|one| one == audience);
            marks.iter().any(|mark| *mark.table == *table && concerns(mark) && position <= mark.upto)
        };
        let wants = |audience: &crate::topic::Audience, table: &str| {
            let mut of = request.interests.iter().filter(|interest| interest.audience == *audience);
            of.any(|interest| position > interest.after && interest.tables.contains(table))
        };
        match &delivery.body {
            Body::Row(row) => {
                let name = &row.shape.name;
                let wanted = |one: &&Membership| wants(&one.audience, name) && !hidden(&one.audience, name);
                let of: Vec<_> = row.memberships.iter().filter(wanted).cloned().collect();
                if !of.is_empty() {
                    out.push(seen(position, transaction, &delivery.body, &of));
                }
            }
            Body::Truncate(shape) => {
                let wanted = |interest: &Interest| {
                    shape.scopes.iter().any(|scope| scope == interest.audience.scope())
                        && wants(&interest.audience, &shape.name)
                        && !hidden(&interest.audience, &shape.name)
                };
                if request.interests.iter().any(wanted) {
                    out.push(seen(position, transaction, &delivery.body, &[]));
                }
            }
            Body::Broadcast(broadcast) if wants(&broadcast.audience, &broadcast.name) => {
                out.push(seen(position, transaction, &delivery.body, &[]));
            }
            Body::Broadcast(_) => {}
        }
    }
}

fn body() -> impl Strategy<Value = Body> {
    let memberships =
        (subsequence(&AUDIENCES[..], 1..=4), prop::collection::vec(0..3u8, 4)).prop_map(|(of, kinds)| {
            let kind = |(text, kind): (&str, u8)| Membership {
                audience: audience(text),
                before: kind != 0,
                after: kind != 2,
            };
            let mut all: Vec<_> = of.into_iter().zip(kinds).map(kind).collect();
            all.sort_by(|a, b| a.audience.cmp(&b.audience));
            all
        });
    let row = (1..4u32, "[a-c]", "[a-z]{0,20}", memberships, any::<bool>()).prop_map(
        |(table, key, json, memberships, owes)| {
            let begins = memberships.iter().any(|one| one.after && !one.before);
            let record = memberships.iter().any(|one| one.after).then(|| Record {
                json: Bytes::from(json.clone()),
                unchanged: if owes { vec!["big".into()] } else { Vec::new() },
                whole: (owes && begins).then(|| Bytes::from(format!("{json} whole"))),
            });
            let key = Bytes::from(key);
            Body::Row(RowChange { shape: shape(table), key, record, memberships: memberships.into() })
        },
    );
    let truncate = (1..4u32).prop_map(|table| Body::Truncate(shape(table)));
    let broadcast = (select(&AUDIENCES[..]), "t[1-4]", "[a-z]{1,8}").prop_map(|(to, name, id)| {
        Body::Broadcast(Broadcast {
            audience: audience(to),
            name: name.into(),
            id: id.clone().into(),
            event: "e".into(),
            payload: Bytes::from(id),
        })
    });
    prop_oneof![8 => row, 1 => truncate, 1 => broadcast]
}

fn position() -> impl Strategy<Value = Position> {
    (100..160u64, 0..6u32).prop_map(|(commit, index)| Position::new(Lsn::new(commit), index))
}

fn interest() -> impl Strategy<Value = Interest> {
    let names = || prop::collection::vec("t[1-4]".prop_map(Arc::from), 0..3);
    let tables = prop_oneof![
        names().prop_map(|except| Tables::All { except }),
        names().prop_map(Tables::Only),
        Just(Tables::All { except: Vec::new() })
    ];
    let after = prop_oneof![2 => Just(Position::ZERO), 1 => position()];
    (select(&AUDIENCES[..]), tables, after).prop_map(|(text, tables, after)| Interest {
        audience: audience(text),
        tables,
        after,
    })
}

fn mark() -> impl Strategy<Value = Mark> {
    (1..4u32, prop::option::of(select(&AUDIENCES[..])), position()).prop_map(|(table, text, upto)| Mark {
        table: format!("t{table}").into(),
        audience: text.map(audience),
        scopes: Vec::new(),
        upto,
        reason: Reason::Toast,
    })
}

/// Reads all of a range, page after page, and checks each page against what is expected of it.
fn check(log: &FjallLog, request: &ReadRequest<'_>, expected: &[Seen]) -> Result<(), TestCaseError> {
    let end = request.upto.min(log.watermark().borrow().position());
    let (mut after, mut rest) = (request.after, expected);
    loop {
        let page = log.read(&ReadRequest { after, ..request.clone() }).unwrap();
        let mut found = Vec::new();
        for transaction in &page.transactions {
            for delivery in &transaction.deliveries {
                let of = match &delivery.body {
                    Body::Row(row) => row.memberships.to_vec(),
                    _ => Vec::new(),
                };
                found.push(seen(transaction.position(delivery), transaction, &delivery.body, &of));
            }
        }
        let count = found.len();
        prop_assert!(count <= request.max_deliveries.max(1) && count <= rest.len());
        prop_assert_eq!(&found[..], &rest[..count]);
        rest = &rest[count..];
        if page.paused_at.is_some() {
            // Nothing of a transaction that the page holds lies behind it.
            let seen_last = found.last().map_or(after, |last| last.0);
            prop_assert!(page.more && !page.cut && page.through > seen_last && page.through <= end);
            prop_assert!(found.last().is_none_or(|last| last.0.commit != page.through.commit));
            prop_assert!(rest.first().is_none_or(|next| next.0 > page.through));
            after = page.through;
            continue;
        }
        if request.max_visited < usize::MAX && !page.more {
            prop_assert!(rest.is_empty() && !page.cut && page.through == end);
            return Ok(());
        }
        let Some(next) = rest.first().filter(|_| page.more) else {
            prop_assert!(!page.more && !page.cut && rest.is_empty());
            prop_assert_eq!(page.through, end);
            return Ok(());
        };
        let last = found.last().unwrap().0;
        prop_assert_eq!(page.through, last);
        prop_assert_eq!(page.cut, next.0.commit == last.commit);
        after = page.through;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn reading_is_restricting_what_was_appended(
        given in prop::collection::vec((prop::collection::vec(body(), 0..6), any::<bool>(), any::<bool>()), 1..5),
        marks in prop::collection::vec(mark(), 0..3),
        requests in prop::collection::vec(
            (prop::collection::vec(interest(), 0..5), position(), position(), 0..4usize, 0..2000usize, prop_oneof![Just(usize::MAX), 0..4usize]), 1..8),
        reopen: bool,
        small_spans: bool,
        as_tables: bool,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let mut options = options(directory.path());
        // A span for nearly each transaction, and none forgotten: one tick an upkeep.
        options.max_age = std::time::Duration::from_micros(if small_spans { 30 } else { u64::MAX });
        if as_tables {
            options.gather_rate = 0;
        }
        let ticks = Arc::new(AtomicI64::new(0));
        let clock = || {
            let ticks = ticks.clone();
            Arc::new(move || ticks.fetch_add(1, Ordering::Relaxed)) as super::super::Clock
        };
        let mut log = FjallLog::create_at(&options, &beginning(100), clock()).unwrap();
        let mut transactions = Vec::new();
        for (n, (bodies, in_parts, leftover)) in given.into_iter().enumerate() {
            let commit = 105 + n as u64 * 10;
            let deliver = |(index, body)| Delivery { index: index as u32 + 1, body };
            let deliveries: Vec<_> = bodies.into_iter().enumerate().map(deliver).collect();
            let tag = Some(Tag { device: "d".into(), correlation: None, user: None });
            let whole_one = Transaction { tag, ..transaction(commit, deliveries) };
            if leftover {
                let stray = row(4, 1, "stray", "{}", &[("user:1", true, true), ("global", true, true)]);
                let stray = Transaction { attempt: Some(1), ..transaction(commit, vec![stray]) };
                runtime.block_on(put(&log, Append { transaction: Some(Arc::new(stray)), ..Append::default() }));
            }
            if in_parts {
                let middle = whole_one.deliveries.len() / 2;
                let first = Transaction {
                    attempt: Some(2), tag: None, deliveries: whole_one.deliveries[..middle].to_vec(), ..whole_one.clone()
                };
                let last = Transaction {
                    attempt: Some(2), deliveries: whole_one.deliveries[middle..].to_vec(), ..whole_one.clone()
                };
                runtime.block_on(put(&log, Append { transaction: Some(Arc::new(first)), ..Append::default() }));
                runtime.block_on(put(&log, whole(last)));
            } else {
                runtime.block_on(put(&log, whole(whole_one.clone())));
            }
            transactions.push(whole_one);
        }
        runtime.block_on(put(&log, Append { marks: marks.clone(), ..Append::default() }));
        if reopen {
            drop(log);
            log = FjallLog::open_at(&options, clock()).unwrap().unwrap();
        }
        let oldest = log.oldest();
        for (interests, after, upto, max_deliveries, max_bytes, max_visited) in &requests {
            let (after, upto) = ((*after).max(oldest), (*upto).max(*after).max(oldest));
            let request = ReadRequest {
                interests, after, upto, max_deliveries: *max_deliveries, max_bytes: *max_bytes,
                max_visited: *max_visited,
            };
            let mut expected = Vec::new();
            for transaction in &transactions {
                restrict(transaction, &request, &marks, &mut expected);
            }
            check(&log, &request, &expected)?;
        }
    }
}
