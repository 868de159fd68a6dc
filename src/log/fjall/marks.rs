//! The marks in force, found by table and audience.
//!
//! A mark never gives way to one that does not reach as far: what was declared unreadable stays so,
//! also when Postgres sends again what had set an older mark. Only a mark without end, which says that
//! nothing can be read until further notice, ends with the next one.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::change::Mark;
use crate::log::Marks;
use crate::position::Position;
use crate::topic::Audience;

/// An immutable set; a change makes a new one, so that a reading keeps the marks it began with.
#[derive(Debug, Default)]
pub(super) struct MarkSet {
    list: Marks,
    /// Asked for each row that is read: tables are few.
    by_table: BTreeMap<Arc<str>, TableMarks>,
}

#[derive(Debug, Default)]
struct TableMarks {
    /// Index in the list.
    whole: Option<usize>,
    by_audience: HashMap<Audience, usize>,
}

/// What a new mark changes in what is kept.
#[derive(Debug, Clone)]
pub(super) enum MarkChange {
    Put(Mark),
    Remove(Mark),
}

impl MarkSet {
    pub(super) fn new(list: Vec<Mark>) -> Self {
        let mut by_table: BTreeMap<Arc<str>, TableMarks> = BTreeMap::new();
        for (index, mark) in list.iter().enumerate() {
            let table = by_table.entry(mark.table.clone()).or_default();
            match &mark.audience {
                None => table.whole = Some(index),
                Some(audience) => drop(table.by_audience.insert(audience.clone(), index)),
            }
        }
        MarkSet { list: Arc::new(list), by_table }
    }

    pub(super) fn list(&self) -> Marks {
        self.list.clone()
    }

    /// The mark that reaches furthest for one table of one audience.
    pub(super) fn furthest(&self, audience: &Audience, table: &str) -> Option<&Mark> {
        let marks = self.by_table.get(table)?;
        let indexes = [marks.whole, marks.by_audience.get(audience).copied()];
        indexes.into_iter().flatten().filter_map(|index| self.list.get(index)).max_by_key(|mark| mark.upto)
    }

    /// Whether a mark makes a position of a table unreadable for an audience.
    pub(super) fn hide(&self, audience: &Audience, table: &str, position: Position) -> bool {
        self.furthest(audience, table).is_some_and(|mark| position <= mark.upto)
    }

    /// The set with `marks` in force, and what has to be written; `None` if nothing changes.
    pub(super) fn with(&self, marks: &[Mark]) -> Option<(MarkSet, Vec<MarkChange>)> {
        let mut list = Vec::clone(&self.list);
        let mut changes = Vec::new();
        for mark in marks {
            let same = |old: &Mark| old.table == mark.table && old.audience == mark.audience;
            let reaches_further = |old: &Mark| old.upto > mark.upto && old.upto != Position::MAX;
            if list.iter().any(|old| same(old) && (reaches_further(old) || old == mark)) {
                continue;
            }
            list.retain(|old| {
                let replaced = old.table == mark.table && mark.audience.is_none() && old.upto <= mark.upto;
                if replaced && old.audience.is_some() {
                    changes.push(MarkChange::Remove(old.clone()));
                }
                !replaced && !same(old)
            });
            list.push(mark.clone());
            changes.push(MarkChange::Put(mark.clone()));
        }
        (!changes.is_empty()).then(|| (MarkSet::new(list), changes))
    }

    /// The set without the marks that lie before everything the log still holds.
    pub(super) fn since(&self, oldest: Position) -> Option<(MarkSet, Vec<MarkChange>)> {
        let (gone, list): (Vec<_>, Vec<_>) = self.list.iter().cloned().partition(|mark| mark.upto < oldest);
        let changes: Vec<_> = gone.into_iter().map(MarkChange::Remove).collect();
        (!changes.is_empty()).then(|| (MarkSet::new(list), changes))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::change::Reason;
    use crate::lsn::Lsn;

    fn mark(table: &str, audience: Option<&str>, upto: u64) -> Mark {
        Mark {
            table: table.into(),
            audience: audience.map(|text| Audience::parse(text).unwrap()),
            scopes: vec!["user".to_owned()],
            upto: Position::boundary(Lsn::new(upto)),
            reason: Reason::Toast,
        }
    }

    #[test]
    fn a_mark_replaces_what_does_not_reach_further() {
        let set = MarkSet::default();
        let (set, _) = set
            .with(&[mark("t", Some("user:1"), 10), mark("t", Some("user:2"), 30), mark("u", None, 5)])
            .unwrap();
        let (set, changes) = set.with(&[mark("t", None, 20)]).unwrap();
        assert_eq!(changes.len(), 2);
        let upto = |audience: &str, table: &str| {
            set.furthest(&Audience::parse(audience).unwrap(), table).map(|mark| mark.upto.commit.get())
        };
        assert_eq!(upto("user:1", "t"), Some(20));
        assert_eq!(upto("user:2", "t"), Some(30));
        assert_eq!(upto("user:9", "t"), Some(20));
        assert_eq!(upto("user:9", "u"), Some(5));
        assert_eq!(upto("user:9", "v"), None);
        assert_eq!(set.list().len(), 3);
        assert!(set.with(&[mark("t", None, 19), mark("t", None, 20)]).is_none(), "older or the same");
    }

    #[test]
    fn a_mark_without_end_ends_with_the_next_one() {
        let blocked = Mark { upto: Position::MAX, ..mark("t", None, 0) };
        let (set, _) = MarkSet::default().with(&[mark("t", None, 10), blocked]).unwrap();
        let (set, changes) = set.with(&[mark("t", None, 20)]).unwrap();
        assert_eq!((set.list().len(), changes.len()), (1, 1));
        let audience = Audience::parse("user:1").unwrap();
        assert!(set.hide(&audience, "t", Position::boundary(Lsn::new(20))));
        assert!(!set.hide(&audience, "t", Position::boundary(Lsn::new(21))));
    }

    #[test]
    fn marks_before_the_log_are_forgotten() {
        let (set, _) = MarkSet::default().with(&[mark("t", None, 10), mark("u", None, 20)]).unwrap();
        let (set, changes) = set.since(Position::boundary(Lsn::new(20))).unwrap();
        assert_eq!((set.list().len(), changes.len()), (1, 1));
        assert!(set.since(Position::boundary(Lsn::new(20))).is_none());
    }
}
