//! The parts of what a device wants: topics that go on together, each part from a cursor of its own.
//!
//! A row is never in two parts: topics of one table stay together, and so do all wildcards, for only the
//! database knows what they cover (rule 4 for clients in docs/PROTOCOL.md).

use std::collections::BTreeMap;

use super::wish::Wish;
use crate::support::copy::{Copy, table_of};
use crate::support::dice::Dice;
use crate::support::frame::{Change, place};

/// Topics, and how far the copy of their rows has come.
#[derive(Debug, Clone, Default)]
pub(super) struct Part {
    pub(super) topics: Vec<String>,
    /// None: there is no copy that counts.
    pub(super) cursor: Option<String>,
    /// What the last answer over REST called its time.
    pub(super) time: Option<String>,
    /// What the last poll did, in milliseconds.
    pub(super) millis: Option<i64>,
    /// Changes up to here may come again.
    pub(super) repeats_to: Option<String>,
    /// A table of it cannot be had at the moment.
    pub(super) blocked: bool,
    /// A table of a wildcard that goes on by its name until the connection ends.
    pub(super) aside: bool,
}

/// What holds for changes that come one behind the other.
#[derive(Debug, Default)]
pub(super) struct Chain {
    before: Option<Change>,
}

impl Part {
    pub(super) fn new(topics: Vec<String>) -> Self {
        Part { topics, ..Part::default() }
    }

    /// How a wish is divided, and perhaps otherwise the next time.
    pub(super) fn divide(wish: &Wish, dice: &mut Dice) -> Vec<Part> {
        if wish.topics.iter().any(|topic| topic.ends_with('*')) {
            return vec![Part::new(wish.topics.clone())];
        }
        let count = 1 + dice.roll(3);
        let mut parts: BTreeMap<u64, Vec<String>> = BTreeMap::new();
        let mut of_table: BTreeMap<String, u64> = BTreeMap::new();
        for topic in &wish.topics {
            let part = *of_table.entry(table_of(topic)).or_insert_with(|| dice.roll(count));
            parts.entry(part).or_default().push(topic.clone());
        }
        parts.into_values().map(Part::new).collect()
    }

    pub(super) fn covers(&self, topic: &str) -> bool {
        self.topics.iter().any(|pattern| covers(pattern, topic))
    }

    pub(super) fn is_within(&self, topics: &[String]) -> bool {
        self.topics.iter().all(|topic| topics.contains(topic))
    }

    /// Whether it has the rows of a table.
    pub(super) fn has_table(&self, table: &str) -> bool {
        self.topics.iter().any(|topic| topic.ends_with('*') || table_of(topic) == table)
    }

    pub(super) fn is_wild(&self) -> bool {
        self.topics.iter().any(|topic| topic.ends_with('*'))
    }

    /// A cursor never goes back.
    pub(super) fn advance(&mut self, cursor: &str) {
        if self.cursor.as_deref().is_none_or(|before| is_ahead(cursor, before)) {
            self.cursor = Some(cursor.to_owned());
        }
    }

    pub(super) fn stands_at(&self, cursor: &str) -> bool {
        self.cursor.as_deref().map(place) == Some(place(cursor))
    }

    /// Whether it has all that was committed before an LSN.
    pub(super) fn has_reached(&self, goal: &str) -> bool {
        self.cursor.as_deref().is_some_and(|cursor| cursor.get(17..33) >= Some(goal))
    }

    /// A topic of its own on which a broadcast is heard.
    pub(super) fn mark(&self) -> String {
        let topic = self.topics.first().expect("a part has topics");
        topic.strip_suffix('*').map_or_else(|| topic.clone(), |audience| format!("{audience}mark"))
    }

    /// Whether the copy had what comes with this cursor before.
    pub(super) fn repeats(&self, cursor: &str) -> bool {
        self.repeats_to.as_deref().is_some_and(|to| place(to) == place(cursor) || is_ahead(to, cursor))
    }

    /// Whether what comes next may have come before.
    pub(super) fn is_repeating(&self) -> bool {
        let to = self.repeats_to.as_deref().zip(self.cursor.as_deref());
        to.is_some_and(|(to, cursor)| is_ahead(to, cursor))
    }

    pub(super) fn apply(&self, copy: &mut Copy, change: &Change) {
        match self.repeats(change.cursor.as_deref().unwrap_or_default()) {
            true => copy.apply_again(change),
            false => copy.apply(change),
        }
    }

    /// Nothing of the copy counts any more.
    pub(super) fn forget_place(&mut self) {
        *self = Part { topics: std::mem::take(&mut self.topics), aside: self.aside, ..Part::default() };
    }
}

impl Chain {
    /// Transactions in order, each change once, each transaction whole: it ends with `last`, and with
    /// nothing else.
    pub(super) fn add(&mut self, change: Change, who: impl FnOnce() -> String) {
        let commit =
            |change: &Change| change.cursor.as_deref().and_then(|cursor| cursor.get(..33)).map(str::to_owned);
        if let Some(before) = &self.before {
            let same = commit(before) == commit(&change);
            let rising = before.cursor.as_deref().map(place) < change.cursor.as_deref().map(place);
            if !rising || before.last != Some(!same) {
                panic!("{} was told {before:?}\nand then {change:?}", who());
            }
        }
        self.before = Some(change);
    }

    /// What comes next follows something else.
    pub(super) fn forget(&mut self) {
        self.before = None;
    }
}

/// Whether a cursor reaches further. Those of two epochs do not compare: the copy was synced in full.
pub(super) fn is_ahead(cursor: &str, before: &str) -> bool {
    place(cursor) > place(before) && cursor.get(..16) == before.get(..16)
}

pub(super) fn covers(pattern: &str, topic: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => topic.strip_prefix(prefix).is_some_and(|rest| !rest.contains(':')),
        None => pattern == topic,
    }
}
