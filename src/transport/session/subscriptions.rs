//! What one session reads, and from where on. Pure.
//!
//! A session has one position, and every subscribed topic stands at it; a subscription says from
//! where on its topics are delivered when that is later. Overlapping patterns are independent: a
//! change is delivered if any of them wants it, once.

use std::sync::Arc;

use smallvec::SmallVec;

use crate::change::{Mark, Reason};
use crate::log::{Interest, Tables};
use crate::position::Position;
use crate::topic::{Audience, Pattern};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Subscription {
    pub(super) pattern: Pattern,
    /// Changes after this are delivered.
    pub(super) from: Position,
    /// Tables of a wildcard that begin elsewhere.
    pub(super) tables: Vec<(Arc<str>, Start)>,
}

/// Where a table of a wildcard begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    After(Position),
    /// Its copy is stale up to there; it is left out until it is subscribed by name.
    Ended(Position),
}

/// Topics whose copies became stale.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stale {
    /// `user:42:orders`
    pub(super) topic: String,
    pub(super) from: Position,
    pub(super) upto: Position,
    pub(super) reason: Reason,
}

impl Subscription {
    pub(super) fn new(pattern: Pattern, from: Position) -> Self {
        Subscription { pattern, from, tables: Vec::new() }
    }

    /// One table of a wildcard begins elsewhere. Each table stands here once.
    pub(super) fn begin_table(&mut self, table: Arc<str>, start: Start) {
        self.tables.retain(|(name, _)| *name != table);
        self.tables.push((table, start));
    }

    /// `None`: this table of it has ended.
    fn start(&self, table: &str) -> Option<Position> {
        match self.tables.iter().find(|(name, _)| **name == *table) {
            None => Some(self.from),
            Some((_, Start::After(position))) => Some(*position),
            Some((_, Start::Ended(_))) => None,
        }
    }

    pub(super) fn wants(&self, audience: &Audience, table: &str, at: Position) -> bool {
        self.pattern.matches(audience, table) && self.start(table).is_some_and(|start| at > start)
    }

    fn interests(&self, interests: &mut Vec<Interest>) {
        let audience = &self.pattern.audience;
        let one = |table: &Arc<str>, after| Interest {
            audience: audience.clone(),
            tables: Tables::Only(vec![Arc::clone(table)]),
            after,
        };
        match &self.pattern.table {
            Some(table) => interests.push(one(table, self.from)),
            None => {
                let except = self.tables.iter().map(|(name, _)| Arc::clone(name)).collect();
                let tables = Tables::All { except };
                interests.push(Interest { audience: audience.clone(), tables, after: self.from });
                for (table, start) in &self.tables {
                    if let Start::After(after) = start {
                        interests.push(one(table, *after));
                    }
                }
            }
        }
    }

    /// What a mark means for a copy that stands at `position`. `None`: the copy is newer, or of other
    /// topics, or was told before.
    pub(super) fn hit(&self, mark: &Mark, position: Position) -> Option<(Position, Arc<str>)> {
        let audience = &self.pattern.audience;
        let concerned = match &mark.audience {
            Some(only) => only == audience,
            None => mark.scopes.iter().any(|scope| scope == audience.scope()),
        };
        if !concerned || !self.pattern.matches(audience, &mark.table) {
            return None;
        }
        let table = self.tables.iter().find(|(name, _)| *name == mark.table);
        let stands = match table {
            // It waited for a DBA, and can be had again. There is one mark of the whole table: this one took
            // the place of the one without end.
            Some((_, Start::Ended(Position::MAX)))
                if mark.audience.is_none() && mark.upto < Position::MAX =>
            {
                return Some((position.max(self.from), Arc::clone(&mark.table)));
            }
            Some((_, Start::Ended(told))) if *told >= mark.upto => return None,
            Some((_, Start::After(start))) => position.max(*start),
            Some((_, Start::Ended(_))) | None => position.max(self.from),
        };
        (stands < mark.upto).then(|| (stands, Arc::clone(&mark.table)))
    }
}

/// All of a session's subscriptions.
#[derive(Debug, Clone, Default)]
pub(super) struct Subscriptions {
    list: SmallVec<[Subscription; 1]>,
}

impl Subscriptions {
    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    pub(super) fn patterns(&self) -> impl Iterator<Item = &Pattern> {
        self.list.iter().map(|subscription| &subscription.pattern)
    }

    pub(super) fn get(&self, pattern: &Pattern) -> Option<&Subscription> {
        self.list.iter().find(|subscription| subscription.pattern == *pattern)
    }

    /// Takes the place of one with the same pattern.
    pub(super) fn put(&mut self, new: Subscription) {
        match self.list.iter_mut().find(|old| old.pattern == new.pattern) {
            Some(old) => *old = new,
            None => self.list.push(new),
        }
    }

    /// Tables that ended in a replay have ended altogether.
    pub(super) fn adopt_ends(&mut self, replay: &Subscriptions) {
        for other in &replay.list {
            let Some(own) = self.list.iter_mut().find(|own| own.pattern == other.pattern) else { continue };
            for (table, start) in other.tables.iter().filter(|(_, start)| matches!(start, Start::Ended(_))) {
                own.begin_table(Arc::clone(table), *start);
            }
        }
    }

    /// Whether there was one with exactly this pattern.
    pub(super) fn remove(&mut self, pattern: &Pattern) -> bool {
        let before = self.list.len();
        self.list.retain(|subscription| subscription.pattern != *pattern);
        self.list.len() < before
    }

    pub(super) fn wants(&self, audience: &Audience, table: &str, at: Position) -> bool {
        self.list.iter().any(|subscription| subscription.wants(audience, table, at))
    }

    /// Under which audience, if any, a whole table's change is read.
    pub(super) fn reader_of(&self, scopes: &[String], table: &str, at: Position) -> Option<&Audience> {
        let readers =
            self.list.iter().filter(|s| scopes.iter().any(|scope| scope == s.pattern.audience.scope()));
        readers
            .map(|s| (s, &s.pattern.audience))
            .find(|(s, audience)| s.wants(audience, table, at))
            .map(|(_, a)| a)
    }

    pub(super) fn interests(&self) -> Vec<Interest> {
        let mut interests = Vec::with_capacity(self.list.len());
        self.list.iter().for_each(|subscription| subscription.interests(&mut interests));
        interests
    }

    /// Ends what the marks make stale; tells what that is. Patterns that are over are in the second.
    pub(super) fn apply(&mut self, marks: &[Mark], position: Position) -> (Vec<Stale>, Vec<Pattern>) {
        let (mut stale, mut over) = (Vec::new(), Vec::new());
        for mark in marks {
            for subscription in &mut self.list {
                let Some((from, table)) = subscription.hit(mark, position) else { continue };
                let topic = format!("{}:{table}", subscription.pattern.audience);
                stale.push(Stale { topic, from, upto: mark.upto, reason: mark.reason });
                if subscription.pattern.table.is_some() {
                    over.push(subscription.pattern.clone());
                } else {
                    subscription.begin_table(table, Start::Ended(mark.upto));
                }
            }
            self.list.retain(|subscription| !over.contains(&subscription.pattern));
        }
        // A topic subscribed by name and by wildcard is told once.
        stale.sort_by(|a, b| a.topic.cmp(&b.topic));
        stale.dedup_by(|a, b| a.topic == b.topic);
        (stale, over)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::lsn::Lsn;

    fn at(lsn: u64) -> Position {
        Position::new(Lsn::new(lsn), 2)
    }

    fn subscriptions(patterns: &[&str]) -> Subscriptions {
        let mut subscriptions = Subscriptions::default();
        for pattern in patterns {
            subscriptions.put(Subscription::new(Pattern::parse(pattern).unwrap(), at(10)));
        }
        subscriptions
    }

    fn mark(table: &str, audience: Option<&str>, upto: u64) -> Mark {
        Mark {
            table: table.into(),
            audience: audience.map(|a| Audience::parse(a).unwrap()),
            scopes: vec!["user".into()],
            upto: at(upto),
            reason: Reason::SchemaChanged,
        }
    }

    fn wants(subscriptions: &Subscriptions, table: &str, lsn: u64) -> bool {
        subscriptions.wants(&Audience::parse("user:1").unwrap(), table, at(lsn))
    }

    #[test]
    fn a_subscription_wants_what_comes_after_its_beginning() {
        let subscriptions = subscriptions(&["user:1:orders"]);
        assert!(wants(&subscriptions, "orders", 11));
        assert!(!wants(&subscriptions, "orders", 10) && !wants(&subscriptions, "meals", 11));
    }

    #[test]
    fn a_stale_table_ends_by_name_and_leaves_a_wildcard() {
        let mut subscriptions = subscriptions(&["user:1:*", "user:1:orders", "global:*"]);
        let (stale, over) = subscriptions.apply(&[mark("orders", None, 20)], at(15));
        assert_eq!(
            stale,
            [Stale {
                topic: "user:1:orders".into(),
                from: at(15),
                upto: at(20),
                reason: Reason::SchemaChanged
            }]
        );
        assert_eq!(over, [Pattern::parse("user:1:orders").unwrap()]);
        assert!(!wants(&subscriptions, "orders", 30) && wants(&subscriptions, "meals", 30));
        // Told once; by name with a newer cursor it comes back, and the wildcard stays without it.
        assert!(subscriptions.apply(&[mark("orders", None, 20)], at(16)).0.is_empty());
        subscriptions.put(Subscription::new(Pattern::parse("user:1:orders").unwrap(), at(20)));
        assert!(subscriptions.apply(&[mark("orders", None, 20)], at(16)).0.is_empty());
        assert!(wants(&subscriptions, "orders", 21) && !wants(&subscriptions, "orders", 20));
        assert_eq!(subscriptions.apply(&[mark("orders", None, 40)], at(25)).0.len(), 1);
    }

    /// Else a device that is told by a wildcard never hears that its table can be synced again, while its
    /// cursor goes on.
    #[test]
    fn a_table_that_waited_is_told_again_once_it_is_mended() {
        let mut subscriptions = subscriptions(&["user:1:*"]);
        let waits = Mark { upto: Position::MAX, reason: Reason::Identity, ..mark("orders", None, 0) };
        let mended = mark("orders", None, 30);
        let of_audience = mark("orders", Some("user:1"), 40);
        assert_eq!(subscriptions.apply(std::slice::from_ref(&waits), at(15)).0.len(), 1);
        assert!(subscriptions.apply(&[waits, of_audience], at(16)).0.is_empty(), "it still waits");
        let (stale, _) = subscriptions.apply(std::slice::from_ref(&mended), at(20));
        assert_eq!(stale.iter().map(|stale| stale.upto).collect::<Vec<_>>(), [at(30)]);
        assert!(subscriptions.apply(&[mended], at(21)).0.is_empty(), "told once");
        assert!(!wants(&subscriptions, "orders", 50), "until it is subscribed by its name");
    }

    #[test]
    fn marks_of_one_audience_concern_no_other() {
        let mut subscriptions = subscriptions(&["user:1:*", "user:2:orders"]);
        let (stale, over) = subscriptions.apply(&[mark("orders", Some("user:1"), 20)], at(15));
        assert_eq!((stale.len(), over.len()), (1, 0));
        assert!(subscriptions.wants(&Audience::parse("user:2").unwrap(), "orders", at(30)));
    }

    #[test]
    fn interests_say_what_wants_says() {
        let mut subscriptions = subscriptions(&["user:1:*", "user:1:notes"]);
        subscriptions.apply(&[mark("orders", None, 20)], at(15));
        let mut wildcard = subscriptions.get(&Pattern::parse("user:1:*").unwrap()).unwrap().clone();
        wildcard.tables.push(("meals".into(), Start::After(at(30))));
        subscriptions.put(wildcard);
        let audience = Audience::parse("user:1").unwrap();
        let interests = subscriptions.interests();
        for table in ["orders", "meals", "notes", "other"] {
            for lsn in [5, 10, 11, 25, 30, 31] {
                let read = interests
                    .iter()
                    .any(|i| i.audience == audience && i.tables.contains(table) && at(lsn) > i.after);
                assert_eq!(read, subscriptions.wants(&audience, table, at(lsn)), "{table} {lsn}");
            }
        }
    }
}
