//! Which tables of a request can be answered from the log, and which need a full answer and why.
//!
//! Pure: from the request's topics, the tracked tables, the marks in force and the place where the
//! device stands. What is done about tables that need a full answer is not decided here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::coverage::Coverage;
use super::error::SyncError;
use super::request::SyncRequest;
use crate::auth::Grants;
use crate::change::{Mark, Reason};
use crate::feed::Directory;
use crate::log::{Interest, Tables};
use crate::position::Position;
use crate::topic::{Audience, Pattern};

/// Where the device's copies stand, before any single table is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Basis {
    From(Position),
    /// No copy can be brought up to date.
    Full(Reason),
}

/// The decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// What to read from the log: all that the topics name but the tables in `full`.
    pub interests: Vec<Interest>,
    pub after: Position,
    /// Tracked tables that are answered from the log, with their keys' columns.
    pub incremental: BTreeMap<Arc<str>, Vec<String>>,
    pub full: BTreeMap<Arc<str>, Reason>,
    /// Blocked: neither the log nor a snapshot can be followed by the stream. The device keeps what it has.
    pub unavailable: BTreeMap<Arc<str>, Reason>,
}

/// Refuses the first topic that is not granted. Tables are not looked at: the answer is the same
/// whether there is such a topic or not.
pub fn check_grants(topics: &[Pattern], grants: &Grants) -> Result<(), SyncError> {
    match topics.iter().find(|topic| !grants.covers(topic)) {
        Some(topic) => Err(SyncError::NotGranted(topic.clone())),
        None => Ok(()),
    }
}

/// `covered` is what the device's cursor vouches for, where it says so. `now` is where reading begins
/// when nothing could be brought up to date but nothing is there either.
pub fn plan(
    request: &SyncRequest,
    basis: Basis,
    covered: Option<&Coverage>,
    directory: &Directory,
    marks: &[Mark],
    now: Position,
) -> Plan {
    let filter = request.tables.as_deref();
    let mut incremental = BTreeMap::new();
    for table in request.topics.iter().flat_map(|topic| directory.matching(topic)) {
        if passes(filter, &table.name) {
            incremental.insert(Arc::clone(&table.name), table.key.clone());
        }
    }
    let marked = furthest_marks(request, basis, marks);
    let blocked = |table: &Arc<str>| marked.get(table).is_some_and(|mark| mark.upto == Position::MAX);
    let mut full: BTreeMap<Arc<str>, Reason> = match basis {
        Basis::From(_) => marked.iter().map(|(table, mark)| (Arc::clone(table), mark.reason)).collect(),
        Basis::Full(reason) => all_in_full(&incremental, &marked, reason),
    };
    if let (Basis::From(_), Some(covered)) = (basis, covered) {
        for table in incremental.keys().filter(|table| !is_covered(request, covered, directory, table)) {
            full.entry(Arc::clone(table)).or_insert(Reason::NewlyGranted);
        }
    }
    let (blocked, full): (BTreeMap<_, _>, BTreeMap<_, _>) =
        full.into_iter().partition(|(table, _)| blocked(table));
    let unavailable = blocked.into_keys().map(|table| (table, Reason::Identity)).collect();
    let not_from_log: BTreeSet<&Arc<str>> = full.keys().chain(BTreeMap::keys(&unavailable)).collect();
    incremental.retain(|table, _| !not_from_log.contains(table));
    let after = match basis {
        Basis::From(position) => position,
        Basis::Full(_) => now,
    };
    let interests = interests(request, &not_from_log, after);
    Plan { interests, after, incremental, full, unavailable }
}

/// Whether all that the request asks of a table was covered before.
fn is_covered(request: &SyncRequest, covered: &Coverage, directory: &Directory, table: &str) -> bool {
    let reads = |topic: &&Pattern| directory.matching(topic).any(|entry| *entry.name == *table);
    request.topics.iter().filter(reads).all(|topic| covered.covers(topic, table))
}

/// For each table the mark that reaches furthest, of those that lie beyond the device's copies.
fn furthest_marks<'a>(
    request: &SyncRequest,
    basis: Basis,
    marks: &'a [Mark],
) -> BTreeMap<&'a Arc<str>, &'a Mark> {
    let mut furthest: BTreeMap<&Arc<str>, &Mark> = BTreeMap::new();
    for mark in marks {
        let beyond = match basis {
            Basis::From(after) => mark.upto > after,
            Basis::Full(_) => true,
        };
        let concerned = beyond
            && passes(request.tables.as_deref(), &mark.table)
            && request.topics.iter().any(|topic| concerns(mark, topic));
        if concerned && furthest.get(&mark.table).is_none_or(|other| other.upto < mark.upto) {
            furthest.insert(&mark.table, mark);
        }
    }
    furthest
}

/// A mark also names a table that was tracked a moment ago and is not in the directory yet. A table
/// that is no longer tracked is told to those who may still hold a copy.
fn all_in_full(
    tracked: &BTreeMap<Arc<str>, Vec<String>>,
    marked: &BTreeMap<&Arc<str>, &Mark>,
    reason: Reason,
) -> BTreeMap<Arc<str>, Reason> {
    let mut full: BTreeMap<_, _> = tracked.keys().map(|table| (Arc::clone(table), reason)).collect();
    for (table, mark) in marked {
        let reason = match mark.reason {
            Reason::Untracked if reason == Reason::NoCursor => continue,
            Reason::Untracked => Reason::Untracked,
            _ => reason,
        };
        full.entry(Arc::clone(table)).or_insert(reason);
    }
    full
}

fn passes(filter: Option<&[Arc<str>]>, table: &str) -> bool {
    filter.is_none_or(|tables| tables.iter().any(|name| **name == *table))
}

/// Whether readers of a pattern hold copies that the mark makes stale.
fn concerns(mark: &Mark, topic: &Pattern) -> bool {
    topic.table.as_ref().is_none_or(|table| *table == mark.table)
        && match &mark.audience {
            Some(audience) => *audience == topic.audience,
            None => mark.scopes.iter().any(|scope| scope == topic.audience.scope()),
        }
}

/// One interest for each audience.
fn interests(request: &SyncRequest, except: &BTreeSet<&Arc<str>>, after: Position) -> Vec<Interest> {
    // `None` is all tables.
    let mut wanted: BTreeMap<&Audience, Option<BTreeSet<&Arc<str>>>> = BTreeMap::new();
    for topic in &request.topics {
        let tables = wanted.entry(&topic.audience).or_insert_with(|| Some(BTreeSet::new()));
        match (&topic.table, tables) {
            (None, tables) => *tables = request.tables.as_ref().map(BTreeSet::from_iter),
            (Some(table), Some(tables)) if passes(request.tables.as_deref(), table) => {
                tables.insert(table);
            }
            (Some(_), _) => {}
        }
    }
    let interest = |(audience, tables): (&Audience, Option<BTreeSet<&Arc<str>>>)| {
        let tables = match tables {
            None => Tables::All { except: except.iter().map(|name| Arc::clone(name)).collect() },
            Some(names) => {
                let names: Vec<_> =
                    names.into_iter().filter(|name| !except.contains(name)).cloned().collect();
                if names.is_empty() {
                    return None;
                }
                Tables::Only(names)
            }
        };
        Some(Interest { audience: audience.clone(), tables, after })
    };
    wanted.into_iter().filter_map(interest).collect()
}
