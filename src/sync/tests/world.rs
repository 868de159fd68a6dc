//! A small database whose every state is remembered, and the transactions that it would log.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;
use smallvec::SmallVec;

use crate::change::{Body, Broadcast, Delivery, Membership, Record, RowChange, Shape, Transaction};
use crate::json::numbers::Quoting;
use crate::lsn::Lsn;
use crate::position::Position;
use crate::topic::Audience;

pub(super) const TABLES: [&str; 2] = ["notes", "orders"];
pub(super) const AUDIENCES: [&str; 3] = ["team:7", "user:1", "user:2"];

#[derive(Debug, Clone)]
pub(super) enum Op {
    /// Which audiences (a bit each), a new `a`, and a new `big` or the one that it has.
    Put {
        table: usize,
        key: u8,
        audiences: u8,
        a: u8,
        big: Option<u8>,
    },
    Delete {
        table: usize,
        key: u8,
    },
    Truncate {
        table: usize,
    },
    Broadcast {
        audience: usize,
    },
}

pub(super) fn op() -> impl Strategy<Value = Op> {
    let table = 0..TABLES.len();
    prop_oneof![
        12 => (table.clone(), 0u8..5, 0u8..8, any::<u8>(), proptest::option::of(any::<u8>()))
            .prop_map(|(table, key, audiences, a, big)| Op::Put { table, key, audiences, a, big }),
        4 => (table.clone(), 0u8..5).prop_map(|(table, key)| Op::Delete { table, key }),
        1 => table.prop_map(|table| Op::Truncate { table }),
        1 => (0..AUDIENCES.len()).prop_map(|audience| Op::Broadcast { audience }),
    ]
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) audiences: u8,
    a: u8,
    big: u8,
}

pub(super) type State = BTreeMap<(usize, u8), Row>;

#[derive(Debug)]
pub(super) struct World {
    pub(super) transactions: Vec<Arc<Transaction>>,
    /// The state after each change, by its position; the first is before all.
    pub(super) states: Vec<(Position, State)>,
    pub(super) end: Lsn,
}

pub(super) fn audience(place: usize) -> Audience {
    Audience::parse(AUDIENCES[place]).unwrap()
}

pub(super) fn shape(table: usize) -> Arc<Shape> {
    Arc::new(Shape {
        id: u32::try_from(table).unwrap(),
        relid: 1,
        schema: "public".to_owned(),
        table: TABLES[table].to_owned(),
        name: TABLES[table].into(),
        key: vec!["id".to_owned()],
        scopes: vec!["team".to_owned(), "user".to_owned()],
        columns: ["id", "big", "a"].map(|name| (name.to_owned(), Quoting::Number)).to_vec(),
    })
}

impl World {
    pub(super) fn of(transactions: &[(Vec<Op>, i64)]) -> Self {
        let first = Lsn::new(100);
        let mut world = World {
            transactions: Vec::new(),
            states: vec![(Position::boundary(first), State::new())],
            end: first,
        };
        let mut state = State::new();
        let mut greatest = 0;
        for (ops, committed_at) in transactions {
            greatest = greatest.max(*committed_at);
            let commit = Lsn::new(world.end.get() + 10);
            world.end = Lsn::new(commit.get() + 5);
            let mut deliveries = Vec::new();
            for (index, op) in (1..).zip(ops) {
                if let Some(body) = apply(op, &mut state) {
                    deliveries.push(Delivery { index, body });
                    world.states.push((Position::new(commit, index), state.clone()));
                }
            }
            world.transactions.push(Arc::new(Transaction {
                commit,
                xid: 1,
                committed_at: *committed_at,
                greatest_committed_at: greatest,
                attempt: None,
                tag: None,
                deliveries,
            }));
        }
        world
    }

    pub(super) fn state_at(&self, position: Position) -> &State {
        let after = self.states.partition_point(|(at, _)| *at <= position);
        &self.states[after.max(1) - 1].1
    }
}

pub(super) fn record_json(key: u8, row: &Row, with_big: bool) -> String {
    let big = if with_big { format!("\"big\":{},", row.big) } else { String::new() };
    format!("{{\"id\":{key},{big}\"a\":{}}}", row.a)
}

fn apply(op: &Op, state: &mut State) -> Option<Body> {
    match *op {
        Op::Broadcast { audience: place } => Some(Body::Broadcast(Broadcast {
            audience: audience(place),
            name: TABLES[0].into(),
            id: "1".into(),
            event: "e".into(),
            payload: "{}".into(),
        })),
        Op::Truncate { table } => {
            state.retain(|(of, _), _| *of != table);
            Some(Body::Truncate(shape(table)))
        }
        Op::Delete { table, key } => {
            let old = state.remove(&(table, key))?;
            change(table, key, Some(&old), None, true)
        }
        Op::Put { table, key, audiences, a, big } => {
            let old = state.get(&(table, key)).cloned();
            let kept = old.as_ref().map(|old| old.big);
            let new = Row { audiences, a, big: big.or(kept).unwrap_or(0) };
            state.insert((table, key), new.clone());
            change(table, key, old.as_ref(), Some(&new), big.is_some() || kept.is_none())
        }
    }
}

fn change(table: usize, key: u8, old: Option<&Row>, new: Option<&Row>, sent: bool) -> Option<Body> {
    let has = |row: Option<&Row>, place: usize| row.is_some_and(|row| row.audiences & 1 << place != 0);
    let memberships: SmallVec<[Membership; 1]> = (0..AUDIENCES.len())
        .map(|place| Membership {
            audience: audience(place),
            before: has(old, place),
            after: has(new, place),
        })
        .filter(|member| member.before || member.after)
        .collect();
    if memberships.is_empty() {
        return None;
    }
    let newly = memberships.iter().any(|member| member.after && !member.before);
    let record = new.map(|row| Record {
        json: record_json(key, row, sent).into(),
        unchanged: if sent { Vec::new() } else { vec!["big".into()] },
        whole: (!sent && newly).then(|| record_json(key, row, true).into()),
    });
    Some(Body::Row(RowChange {
        shape: shape(table),
        key: format!("{{\"id\":{key}}}").into(),
        record,
        memberships,
    }))
}

/// What a reader of topics should hold: (table, key) → columns.
pub(super) type Copy = BTreeMap<(String, String), BTreeMap<String, String>>;

/// `wanted` are pairs of audience and table.
pub(super) fn copy_of(state: &State, wanted: &BTreeSet<(usize, usize)>) -> Copy {
    state
        .iter()
        .filter(|((table, _), row)| {
            (0..3).any(|a| row.audiences & 1 << a != 0 && wanted.contains(&(a, *table)))
        })
        .map(|((table, key), row)| {
            let columns = [("id", *key), ("big", row.big), ("a", row.a)];
            let columns = columns.map(|(name, value)| (name.to_owned(), value.to_string())).into();
            ((TABLES[*table].to_owned(), format!("{{\"id\":{key}}}")), columns)
        })
        .collect()
}
