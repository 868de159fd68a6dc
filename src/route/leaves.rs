//! Which relations of the stream hold rows of which table, where that is partitioned.
//!
//! Made of what is known of the tables; a relation that is neither tracked nor known as a leaf may be one
//! that joined lately, and is asked about once. A leaf whose changes do not come, or do not say whose row
//! it was, holds up all rows of its table: a copy of the others alone would be no copy of the table.

use std::collections::{HashMap, HashSet};

use super::{Known, Router, Template, Tracked, mark};
use crate::change::{Mark, Reason};
use crate::position::Position;

#[derive(Debug, Default)]
pub(super) struct Leaves {
    /// The table by the leaf.
    tables: HashMap<u32, u32>,
    /// The database said that they belong to no tracked table.
    strangers: HashSet<u32>,
}

impl Leaves {
    pub(super) fn of(known: &HashMap<u32, Known>) -> Self {
        let mut leaves = Leaves::default();
        known.iter().for_each(|(table, known)| leaves.learn(*table, known));
        leaves
    }

    pub(super) fn table(&self, leaf: u32) -> Option<u32> {
        self.tables.get(&leaf).copied()
    }

    pub(super) fn learn(&mut self, table: u32, known: &Known) {
        self.forget(table);
        if let Some(partitions) = &known.info.partitions {
            self.tables.extend(partitions.leaves.keys().map(|leaf| (*leaf, table)));
        }
    }

    pub(super) fn forget(&mut self, table: u32) {
        self.tables.retain(|_, of| *of != table);
    }

    pub(super) fn is_stranger(&self, relid: u32) -> bool {
        self.strangers.contains(&relid)
    }

    pub(super) fn stranger(&mut self, relid: u32) {
        self.strangers.insert(relid);
    }

    /// The stream announced it anew: it may have become a leaf.
    pub(super) fn announced(&mut self, relid: u32) {
        self.strangers.remove(&relid);
    }
}

impl Router {
    /// The tracked table whose rows a relation holds: itself, or the one that it is a leaf of.
    pub fn table_of(&self, relid: u32) -> Option<u32> {
        match self.state.catalog.get(relid) {
            Some(_) => Some(relid),
            None => self.leaves.table(relid),
        }
    }

    /// The database was asked, and a relation holds rows of no tracked table.
    pub fn stranger(&mut self, relid: u32) {
        self.leaves.stranger(relid);
    }

    /// Whether these relations hold all rows of a table.
    pub fn is_whole(&self, table: u32, relids: &[u32]) -> bool {
        let partitions = self.state.tables.get(&table).and_then(|known| known.info.partitions.as_ref());
        partitions.is_none_or(|partitions| partitions.leaves.keys().all(|leaf| relids.contains(leaf)))
    }

    /// Of a table and all its leaves.
    pub(super) fn forget_plans(&mut self, table: u32) {
        let leaves = &self.leaves;
        self.plans.retain(|relid, _| *relid != table && leaves.table(*relid) != Some(table));
    }

    /// What the leaves of a table, as the database describes them now, mean for its readers beyond
    /// `reason`: blocked by one of them, or no longer.
    pub(super) fn judge_leaves(
        &mut self,
        tracked: &Tracked,
        upto: Position,
        reason: Option<Reason>,
    ) -> Option<Mark> {
        let catalog = &self.state.catalog;
        let known = self.state.tables.get_mut(&tracked.relid)?;
        let partitions = known.info.partitions.as_ref()?;
        let was_blocked = known.is_blocked();
        let needed = || {
            let topics = tracked.templates.iter().filter_map(Template::column);
            known.info.primary_key.iter().map(String::as_str).chain(topics)
        };
        known
            .weak
            .retain(|relid| partitions.leaves.get(relid).is_some_and(|leaf| leaf.lacks(needed()).is_some()));
        let table = &tracked.table;
        for (leaf, column) in
            partitions.leaves.values().filter_map(|leaf| Some((&leaf.name, leaf.lacks(needed())?)))
        {
            tracing::warn!(
                %table, leaf, column,
                "the replica identity of this partition does not carry this column: its first UPDATE or DELETE will stop \
                 the table's delivery; run SELECT rowcast.track again for the table"
            );
        }
        let faulty = partitions
            .leaves
            .iter()
            .find(|(relid, leaf)| leaf.fault.is_some() || catalog.get(**relid).is_some());
        if let Some((_, leaf)) = faulty.filter(|_| !known.blocked) {
            let why =
                leaf.fault.map_or_else(|| "it is tracked by itself".to_owned(), |fault| fault.to_string());
            tracing::error!(%table, leaf = leaf.name, why, "changes of this partition do not come: rows of its table are not delivered until it is mended");
        }
        known.blocked = faulty.is_some();
        match (was_blocked, known.is_blocked()) {
            (false, true) => Some(mark(tracked, Position::MAX, Reason::Identity)),
            // The stream may still be where it was not mended.
            (true, false) => {
                self.unreadable.insert(tracked.relid, upto);
                Some(mark(tracked, upto, Reason::Identity))
            }
            // Rows up to the mark are unreadable anyway, and leaves that have not been written since are
            // announced as they were.
            _ => {
                if reason.is_some() {
                    self.unreadable.insert(tracked.relid, upto);
                }
                None
            }
        }
    }
}

impl Known {
    pub(super) fn is_blocked(&self) -> bool {
        self.blocked || self.unpublished || !self.weak.is_empty()
    }

    /// Whether a leaf holds the table's rows up because it did not say whose they were.
    pub(crate) fn waits_for_leaf(&self) -> bool {
        !self.weak.is_empty()
    }

    /// Whether something else than `relid`, of itself, holds the table's rows up.
    pub(super) fn blocked_besides(&self, table: u32, relid: u32) -> bool {
        (self.blocked && relid != table) || self.weak.iter().any(|leaf| *leaf != relid)
    }
}
