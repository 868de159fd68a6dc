//! From a row change to deliveries: which audiences it concerns, and what each may see of it.
//!
//! Takes decoded messages of the stream in their order and the answers to its questions about tables;
//! gives row changes, marks, and state for the log to keep. Pure: no I/O, no clock. Where it lacks
//! knowledge (a table it has not met, a value that was not sent) it says what it needs, and the same
//! call is made again with the answer.
//!
//! Invariants: a row is routed by the templates in force at its place in the stream; what is not
//! published, or belongs to others, leaves no trace in what it returns; knowledge that changed under a
//! table is answered by a mark, never by a guess.

mod catalog;
mod grants;
mod leaves;
mod message;
#[cfg(test)]
mod partition_tests;
mod plan;
mod rights;
mod row;
mod template;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::change::{Mark, Reason, Shape};
use crate::position::Position;
use crate::postgres::tables::{TableFetch, TableInfo};
use crate::wal::pgoutput::{OldTuple, Relation, Tuple};

use leaves::Leaves;

pub use catalog::{Catalog, CatalogChange, CatalogRow, CatalogRowError, Tracked};
pub use grants::{GrantFault, GrantRule};
pub use message::{Dropped, LogicalMessage, PREFIX, Secret};
pub use plan::{Plan, PlanError};
pub use rights::{MemberChange, STATE_GRANT, STATE_REVOKED};
pub use row::{Debt, OldRow, Owed, Row, RowError, Supplied, Update};
pub use template::{Template, TemplateError};

/// What the log keeps of the router, at the position of the last transaction.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct RouterState {
    pub catalog: Catalog,
    pub secret: Secret,
    pub tables: HashMap<u32, Known>,
    /// By generation. What their rows grant is kept beside, one value for each row.
    #[serde(default)]
    pub grants: BTreeMap<i64, GrantRule>,
    next_shape: u32,
}

/// What is known of one tracked table.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Known {
    pub info: Arc<TableInfo>,
    /// The newest shape, once a row was seen.
    shape: Option<Arc<Shape>>,
    /// The stream does not carry what routing needs; its rows are left out until it does.
    blocked: bool,
    /// Leaves of a partitioned table of which the same is true: they hold all of its rows up.
    #[serde(default)]
    weak: BTreeSet<u32>,
    /// The publication lacks it, so that the stream leaves out what nobody can tell.
    #[serde(default)]
    unpublished: bool,
    /// It bore the catalog's name when it was first looked at, so the number is its own: another name
    /// later is a rename, and no other table.
    ours: bool,
}

/// The relay's knowledge of tables, and how their rows are read.
#[derive(Debug, Default)]
pub struct Router {
    state: RouterState,
    /// As this connection's stream announced them.
    relations: HashMap<u32, Arc<Relation>>,
    plans: HashMap<u32, Arc<Plan>>,
    /// Tables whose rows cannot be read until knowledge is newer than this position.
    unreadable: HashMap<u32, Position>,
    leaves: Leaves,
    rights: rights::Rights,
    changed: bool,
}

/// What of a row is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// The new row alone, or none.
    New,
    /// The row before too: the identity has to suffice.
    Old,
}

/// How the rows of a relation are to be treated at some position.
#[derive(Debug)]
pub enum Reading {
    Plan(Arc<Plan>),
    /// Not tracked, blocked, or stale beyond this position: its rows are for nobody.
    Skip,
    /// Ask the database about the table, and call [`Router::learn`].
    Ask,
    /// As `Skip`, and readers have to be told.
    Mark(Mark),
}

/// What a row of the catalog brings about.
#[derive(Debug, Default)]
pub struct CatalogEffect {
    pub marks: Vec<Mark>,
    /// Ask the database about this table now, so that its shape is known from its track on.
    pub ask: Option<u32>,
}

impl Router {
    pub fn new(state: RouterState) -> Self {
        Router { leaves: Leaves::of(&state.tables), state, ..Router::default() }
    }

    pub fn state(&self) -> &RouterState {
        &self.state
    }

    pub fn catalog(&self) -> &Catalog {
        &self.state.catalog
    }

    pub fn secret(&self) -> &Secret {
        &self.state.secret
    }

    /// Whether the state changed since this was last asked.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// The first number that no shape has. Only grows while the process lives.
    pub fn next_shape(&self) -> u32 {
        self.state.next_shape
    }

    /// Keeps numbers of shapes apart from those given before a lost connection.
    pub fn reserve_shapes(&mut self, next: u32) {
        self.state.next_shape = self.state.next_shape.max(next);
    }

    /// A Relation message: what follows under its number looks like this.
    pub fn relation(&mut self, relation: Relation) {
        self.plans.remove(&relation.relid);
        self.leaves.announced(relation.relid);
        self.forget_grant_plans(relation.relid);
        self.relations.insert(relation.relid, Arc::new(relation));
    }

    pub fn announced(&self, relid: u32) -> Option<&Arc<Relation>> {
        self.relations.get(&relid)
    }

    /// How to read a row of `relid` that stands at `position`.
    pub fn reading(&mut self, relid: u32, position: Position, need: Need) -> Reading {
        let serves = |plan: &Plan| need == Need::New || plan.lacks.is_none();
        if let Some(plan) = self.plans.get(&relid).filter(|plan| serves(plan)) {
            return Reading::Plan(Arc::clone(plan));
        }
        let Some(table) = self.table_of(relid) else {
            let asked = self.leaves.is_stranger(relid) || !self.relations.contains_key(&relid);
            return if asked { Reading::Skip } else { Reading::Ask };
        };
        let Some(tracked) = self.state.catalog.get(table).cloned() else { return Reading::Skip };
        if self.unreadable.get(&table).is_some_and(|upto| position <= *upto) {
            return Reading::Skip;
        }
        let Some(relation) = self.relations.get(&relid).cloned() else { return Reading::Skip };
        let Some(known) = self.state.tables.get(&table).cloned() else { return Reading::Ask };
        if known.unpublished || known.blocked_besides(table, relid) {
            return Reading::Skip;
        }
        let blocked = known.is_blocked();
        let compiled = Plan::compile(&relation, &tracked, &known, |shape| self.number(table, shape));
        match compiled {
            Ok(plan) if plan.lacks.is_some() && (blocked || need == Need::Old) => {
                if blocked {
                    return Reading::Skip;
                }
                let (leaf, column) = (&*relation.name, plan.lacks.as_deref());
                tracing::error!(
                    table = %tracked.table, leaf, column,
                    "the replica identity of this partition does not carry a column that the key or the topics need: rows \
                     of its table are not delivered until SELECT rowcast.track was run again for the table"
                );
                self.set_blocked(table, relid, true);
                Reading::Mark(mark(&tracked, Position::MAX, Reason::Identity))
            }
            Ok(plan) => {
                let plan = Arc::new(plan);
                self.plans.insert(relid, Arc::clone(&plan));
                if blocked {
                    self.set_blocked(table, relid, false);
                    return Reading::Mark(mark(&tracked, before(position), Reason::Identity));
                }
                Reading::Plan(plan)
            }
            Err(_) if blocked => Reading::Skip,
            Err(PlanError::Moved(_)) => Reading::Ask,
            Err(error @ (PlanError::Identity { .. } | PlanError::Name { .. })) => {
                tracing::error!(table = %tracked.table, %error, "rows of this table are not delivered until it is mended");
                self.set_blocked(table, relid, true);
                Reading::Mark(mark(&tracked, Position::MAX, Reason::Identity))
            }
        }
    }

    /// What is known of a table.
    pub fn known(&self, table: u32) -> Option<Arc<TableInfo>> {
        self.state.tables.get(&table).map(|known| Arc::clone(&known.info))
    }

    /// Takes in what the database says of a table now. `at` is where the stream stands.
    ///
    /// Gives the mark that readers are owed: copies older than the answer may hold what the stream
    /// never told.
    pub fn learn(&mut self, relid: u32, fetch: TableFetch, at: Position) -> Option<Mark> {
        self.learn_through(relid, relid, fetch, at)
    }

    /// The same, where the rows of `through` gave rise to the question: the table or a leaf of it.
    pub fn learn_through(
        &mut self,
        relid: u32,
        through: u32,
        fetch: TableFetch,
        at: Position,
    ) -> Option<Mark> {
        let tracked = self.state.catalog.get(relid)?.clone();
        let upto = Position::boundary(fetch.insert_lsn).max(at);
        self.changed = true;
        self.forget_plans(relid);
        let Some(info) = fetch.info else {
            self.state.tables.remove(&relid);
            self.leaves.forget(relid);
            self.unreadable.insert(relid, upto);
            return Some(mark(&tracked, upto, Reason::SchemaChanged));
        };
        let old = self.state.tables.get(&relid);
        let reason = match old {
            Some(known) if known.info.fingerprint == info.fingerprint => None,
            // All rows of the leaves that joined are in the stream.
            Some(known)
                if info
                    .joined(&known.info)
                    .is_some_and(|joined| joined.is_empty() || fetch.joined_without_rows) =>
            {
                None
            }
            Some(_) => Some(Reason::SchemaChanged),
            None => Some(Reason::NewlyTracked),
        };
        let named = (&info.schema, &info.name) == (&tracked.schema, &tracked.table);
        let (shape, ours, blocked) = old
            .map_or((None, named, false), |known| (known.shape.clone(), known.ours || named, known.blocked));
        let weak = old.map(|known| known.weak.clone()).unwrap_or_default();
        let was_unpublished = old.is_some_and(|known| known.unpublished);
        // Of another `track` than the one in force here, it says nothing.
        let unpublished = fetch.unpublished == Some(tracked.generation);
        let known = Known { info: Arc::new(info), shape, ours, blocked, weak, unpublished };
        self.leaves.learn(relid, &known);
        self.state.tables.insert(relid, known);
        // If the stream still speaks of another shape, its rows up to here are those of the past; but if
        // it has passed the last answer, and this one is the same, it will not get any better.
        let passed = self.unreadable.remove(&relid).is_some_and(|upto| at > upto);
        let judged = self.judge_leaves(&tracked, upto, reason);
        if unpublished != was_unpublished {
            return Some(self.publication_changed(&tracked, unpublished, upto));
        }
        if let Some(mark) = judged {
            return Some(mark);
        }
        if let Some(relation) = self.relations.get(&through).cloned()
            && let Some(known) = self.state.tables.get(&relid).cloned()
            && let Err(PlanError::Moved(why)) = Plan::compile(&relation, &tracked, &known, Arc::new)
        {
            if passed && reason.is_none() {
                tracing::error!(table = %tracked.table, %why, "rows of this table are not delivered until it is mended");
                self.set_blocked(relid, through, true);
                return Some(mark(&tracked, Position::MAX, Reason::Identity));
            }
            tracing::warn!(table = %tracked.table, %why, upto = %upto, "rows are left out until the stream reaches the new shape");
            self.unreadable.insert(relid, upto);
            return Some(mark(&tracked, upto, reason.unwrap_or(Reason::SchemaChanged)));
        }
        reason.map(|reason| mark(&tracked, upto, reason))
    }

    /// A table left the publication, or is back in it: between the two, changes are not in the stream.
    fn publication_changed(&mut self, tracked: &Tracked, left: bool, upto: Position) -> Mark {
        if left {
            tracing::error!(
                table = %tracked.table,
                "the publication rowcast lacks this table, or has it with other columns or a filter: its rows are not delivered                  until SELECT rowcast.track(...) was run again for it"
            );
            return mark(tracked, Position::MAX, Reason::Identity);
        }
        tracing::info!(table = %tracked.table, "the publication has this table again");
        let blocked = self.state.tables.get(&tracked.relid).is_some_and(Known::is_blocked);
        // The stream may still be where it was not.
        self.unreadable.insert(tracked.relid, upto);
        mark(tracked, if blocked { Position::MAX } else { upto }, Reason::Identity)
    }

    /// If `relid` is a table of the catalog: the row that came of it.
    pub fn catalog_row(&self, relid: u32, tuple: &Tuple) -> Option<CatalogRow> {
        CatalogRow::of(self.relations.get(&relid)?, tuple)
    }

    /// A row of the catalog that was written at `at`.
    pub fn put_row(&mut self, row: &CatalogRow, at: Position) -> Result<CatalogEffect, CatalogRowError> {
        match row.table.as_str() {
            "tables" => {
                let change = self.state.catalog.put(Tracked::from_columns(|name| row.get(name))?);
                Ok(self.catalog_changed(change, at))
            }
            "settings" => {
                if let (Some(name), Some(value)) = (row.get("name"), row.get("value")) {
                    self.state.secret.setting(name, value);
                    self.changed = true;
                }
                Ok(CatalogEffect::default())
            }
            "grants" => self.put_grant(|name| row.get(name)).map(|()| CatalogEffect::default()),
            "grant_seeds" => self.put_seeds(row).map(|()| CatalogEffect::default()),
            "revocations" => self.put_revocation(|name| row.get(name)).map(|()| CatalogEffect::default()),
            _ => Ok(CatalogEffect::default()),
        }
    }

    /// A row of the catalog that was deleted at `at`.
    pub fn delete_row(&mut self, row: &CatalogRow, at: Position) -> CatalogEffect {
        let relid = row.get("relid").and_then(|relid| relid.parse().ok());
        match (row.table.as_str(), relid) {
            ("tables", Some(relid)) => {
                let change = self.state.catalog.remove(relid);
                self.catalog_changed(change, at)
            }
            ("grants", _) => {
                if let Some(generation) = row.get("generation").and_then(|text| text.parse().ok()) {
                    self.drop_grant(generation);
                }
                CatalogEffect::default()
            }
            ("revocations", _) => {
                self.drop_revocation(row);
                CatalogEffect::default()
            }
            _ => CatalogEffect::default(),
        }
    }

    /// The name of a table, if it is one of the catalog's own.
    fn catalog_table(&self, relid: u32) -> Option<&str> {
        CatalogRow::table_of(self.relations.get(&relid)?)
    }

    /// A TRUNCATE at `at`, if it is of a table of the catalog: all of its rows are gone.
    pub fn truncate_catalog(&mut self, relid: u32, at: Position) -> Option<CatalogEffect> {
        let mut effect = CatalogEffect::default();
        if self.catalog_table(relid)? == "tables" {
            let relids: Vec<u32> = self.state.catalog.tables().map(|tracked| tracked.relid).collect();
            for relid in relids {
                let change = self.state.catalog.remove(relid);
                effect.marks.extend(self.catalog_changed(change, at).marks);
            }
        }
        Some(effect)
    }

    /// A change of the stream before the log's beginning, where only the catalog and rights count and nobody has
    /// copies that a mark could be for.
    pub fn before_beginning(&mut self, relid: u32, change: MemberChange<'_>) -> Result<(), CatalogRowError> {
        let (deleted, tuple) = match change {
            MemberChange::Insert(new) | MemberChange::Update { new, .. } => (false, new),
            MemberChange::Delete(OldTuple::Key(old) | OldTuple::Full(old)) => (true, old),
        };
        match self.catalog_row(relid, tuple) {
            Some(row) if deleted => drop(self.delete_row(&row, Position::ZERO)),
            Some(row) => drop(self.put_row(&row, Position::ZERO)?),
            None => self.member_changed(relid, change),
        }
        Ok(())
    }

    /// The rows of a table up to here are of a shape that nobody knows any more.
    pub fn leave_out(&mut self, table: u32, upto: Position) {
        self.unreadable.insert(table, upto);
        self.forget_plans(table);
    }

    fn catalog_changed(&mut self, change: CatalogChange, at: Position) -> CatalogEffect {
        let (tracked, reason, old) = match change {
            CatalogChange::Nothing => return CatalogEffect::default(),
            CatalogChange::Tracked(new) => (new, Reason::NewlyTracked, None),
            CatalogChange::Retracked { old, new } => (new, Reason::Retracked, Some(old)),
            CatalogChange::Untracked(old) => (old, Reason::Untracked, None),
        };
        let relid = tracked.relid;
        self.changed = true;
        self.forget_plans(relid);
        self.leaves.forget(relid);
        self.unreadable.remove(&relid);
        self.state.tables.remove(&relid);
        let mut marks = vec![mark(&tracked, at, reason)];
        match old {
            // Readers under a scope that is gone learn it as well.
            Some(old) if old.name == tracked.name => marks[0].scopes.extend(old.scopes()),
            Some(old) => marks.push(mark(&old, at, Reason::Untracked)),
            None => {}
        }
        // A leaf that was tracked by itself blocked the table that it belongs to.
        let ask = if reason == Reason::Untracked { self.leaves.table(relid) } else { Some(relid) };
        CatalogEffect { marks, ask }
    }

    /// `relid`: the table itself, or the leaf that it is for.
    fn set_blocked(&mut self, table: u32, relid: u32, blocked: bool) {
        if let Some(known) = self.state.tables.get_mut(&table) {
            match (relid == table, blocked) {
                (true, _) => known.blocked = blocked,
                (false, true) => drop(known.weak.insert(relid)),
                (false, false) => drop(known.weak.remove(&relid)),
            }
            self.changed = true;
        }
        if blocked {
            self.forget_plans(table);
        }
    }

    /// The shape of these contents, with the number that it has or a new one.
    fn number(&mut self, relid: u32, mut shape: Shape) -> Arc<Shape> {
        let known = self.state.tables.get_mut(&relid);
        if let Some(old) = known.as_ref().and_then(|known| known.shape.as_ref()) {
            shape.id = old.id;
            if **old == shape {
                return Arc::clone(old);
            }
        }
        shape.id = self.state.next_shape;
        self.state.next_shape += 1;
        self.changed = true;
        let shape = Arc::new(shape);
        if let Some(known) = known {
            known.shape = Some(Arc::clone(&shape));
        }
        shape
    }
}

/// Everything before `position`.
fn before(position: Position) -> Position {
    Position::new(position.commit, position.index.saturating_sub(1))
}

fn mark(tracked: &Tracked, upto: Position, reason: Reason) -> Mark {
    Mark { table: Arc::clone(&tracked.name), audience: None, scopes: tracked.scopes(), upto, reason }
}
