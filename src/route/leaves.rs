//! Which relations of the stream hold rows of which table, where that is partitioned.
//!
//! Made of what is known of the tables; a relation that is neither tracked nor known as a leaf may be one
//! that joined lately, and is asked about once.

use std::collections::{HashMap, HashSet};

use super::Known;

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
