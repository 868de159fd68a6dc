//! How far each table's mark reaches, and for readers of which scopes, so that a later one never gives
//! back what an earlier one took: readers of a scope that the table has left may still come with an old
//! cursor.
//!
//! A table that is blocked has a mark without end. It holds until the block ends or a new generation
//! begins; then the mark falls back to where the others reach, not to where the block began. Pure.

use std::collections::HashMap;
use std::sync::Arc;

use crate::change::{Mark, Reason};
use crate::position::Position;

#[derive(Debug, Default)]
pub(super) struct Reach {
    tables: HashMap<Arc<str>, TableReach>,
}

#[derive(Debug, Default)]
struct TableReach {
    /// The furthest mark that has an end.
    upto: Position,
    blocked: bool,
    scopes: Vec<String>,
}

impl Reach {
    /// From the marks that are in force.
    pub(super) fn of(marks: &[Mark]) -> Self {
        let mut reach = Reach::default();
        reach.extend(marks.to_vec());
        reach
    }

    /// The marks as they have to be put in force, in their order.
    pub(super) fn extend(&mut self, mut marks: Vec<Mark>) -> Vec<Mark> {
        for mark in marks.iter_mut().filter(|mark| mark.audience.is_none()) {
            let table = self.tables.entry(Arc::clone(&mark.table)).or_default();
            table.scopes.append(&mut mark.scopes);
            table.scopes.sort_unstable();
            table.scopes.dedup();
            mark.scopes.clone_from(&table.scopes);
            if mark.upto == Position::MAX {
                table.blocked = true;
                continue;
            }
            // Told for another reason, a block still holds.
            let ends_block = matches!(
                mark.reason,
                Reason::Identity | Reason::Retracked | Reason::NewlyTracked | Reason::Untracked
            );
            table.blocked &= !ends_block;
            table.upto = table.upto.max(mark.upto);
            mark.upto = table.upto;
            if table.blocked {
                // What readers wait for is that it ends; the other reason passes with it.
                (mark.upto, mark.reason) = (Position::MAX, Reason::Identity);
            }
        }
        marks
    }

    /// Up to where all copies of a table are stale.
    pub(super) fn upto(&self, table: &str) -> Option<Position> {
        let table = self.tables.get(table)?;
        Some(if table.blocked { Position::MAX } else { table.upto })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lsn::Lsn;

    fn at(lsn: u64) -> Position {
        Position::boundary(Lsn::new(lsn))
    }

    fn put(reach: &mut Reach, upto: Position, reason: Reason) -> Position {
        let mark = Mark { table: "orders".into(), audience: None, scopes: Vec::new(), upto, reason };
        reach.extend(vec![mark])[0].upto
    }

    #[test]
    fn a_mark_never_reaches_less_far_than_the_one_before() {
        let mut reach = Reach::default();
        assert_eq!(put(&mut reach, at(20), Reason::SchemaChanged), at(20));
        assert_eq!(put(&mut reach, at(10), Reason::Retracked), at(20));
        assert_eq!(put(&mut reach, at(30), Reason::SchemaChanged), at(30));
        assert_eq!((reach.upto("orders"), reach.upto("meals")), (Some(at(30)), None));
    }

    #[test]
    fn a_block_ends_and_gives_nothing_else_back() {
        let mut reach = Reach::default();
        put(&mut reach, at(30), Reason::SchemaChanged);
        assert_eq!(put(&mut reach, Position::MAX, Reason::Identity), Position::MAX);
        assert_eq!(put(&mut reach, at(40), Reason::SchemaChanged), Position::MAX);
        // The database was looked at when it stood at 40; the stream met the mended identity at 20.
        assert_eq!(put(&mut reach, at(20), Reason::Identity), at(40));
        put(&mut reach, Position::MAX, Reason::Identity);
        assert_eq!(put(&mut reach, at(50), Reason::Retracked), at(50));
    }

    #[test]
    fn readers_of_a_blocked_table_are_told_that_it_is() {
        let mut reach = Reach::default();
        put(&mut reach, Position::MAX, Reason::Identity);
        let mark =
            |upto, reason| Mark { table: "orders".into(), audience: None, scopes: Vec::new(), upto, reason };
        let told = reach.extend(vec![mark(at(40), Reason::SchemaChanged)]);
        assert_eq!(told, [mark(Position::MAX, Reason::Identity)]);
        let told = reach.extend(vec![mark(at(50), Reason::Retracked)]);
        assert_eq!(told, [mark(at(50), Reason::Retracked)]);
    }

    #[test]
    fn readers_of_a_scope_that_was_left_are_told_as_well() {
        let mut reach = Reach::default();
        let mark = |scope: &str, upto| Mark {
            table: "orders".into(),
            audience: None,
            scopes: vec![scope.into()],
            upto: at(upto),
            reason: Reason::Retracked,
        };
        reach.extend(vec![mark("user", 10)]);
        assert_eq!(reach.extend(vec![mark("team", 20)])[0].scopes, ["team", "user"]);
    }

    #[test]
    fn what_is_in_force_counts_after_a_restart() {
        let mark =
            |upto, reason| Mark { table: "orders".into(), audience: None, scopes: Vec::new(), upto, reason };
        let mut reach = Reach::of(&[mark(Position::MAX, Reason::SchemaChanged)]);
        assert_eq!(put(&mut reach, at(40), Reason::SchemaChanged), Position::MAX);
        assert_eq!(put(&mut reach, at(50), Reason::Identity), at(50));
    }
}
