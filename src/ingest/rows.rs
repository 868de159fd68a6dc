//! What each message of a transaction comes to: a change for someone, a change of the catalog, a tag,
//! a broadcast, or nothing.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::driver::Driver;
use super::error::IngestError;
use crate::change::{Body, Mark, Reason, RowChange, Shape};
use crate::log::ColumnQuery;
use crate::position::Position;
use crate::route::{
    CatalogEffect, CatalogRow, Debt, Dropped, LogicalMessage, MemberChange, Need, OldRow, Owed, PREFIX, Plan,
    Row, RowError, Supplied, Update,
};
use crate::wal::pgoutput::{self, OldTuple, Tuple};

/// How far back in an audience an owed value is looked for.
const OWED_ENTRIES: usize = 20_000;

/// Anyone may write messages that have to be dropped, and must not fill the relay's own log with them.
const WARN_EVERY: Duration = Duration::from_secs(60);

impl Driver {
    /// The transaction under way, and the index of a change that arrives now.
    fn place(&mut self) -> Result<(u32, Position, bool), IngestError> {
        let assembly = self.assembly()?;
        let index = assembly.next_index()?;
        Ok((index, assembly.position(), assembly.skipped))
    }

    pub(super) async fn insert(&mut self, relid: u32, new: &Tuple) -> Result<(), IngestError> {
        let (index, at, skipped) = self.place()?;
        if skipped {
            return Ok(());
        }
        if let Some(row) = self.router.catalog_row(relid, new) {
            return self.catalog_put(&row, at).await;
        }
        self.member_changed(relid, MemberChange::Insert(new));
        let row = new.iter().collect();
        self.one_row(relid, index, at, Need::New, |plan| plan.insert(&row)).await
    }

    pub(super) async fn delete(&mut self, relid: u32, old: &OldTuple) -> Result<(), IngestError> {
        let (index, at, skipped) = self.place()?;
        if skipped {
            return Ok(());
        }
        let (OldTuple::Key(tuple) | OldTuple::Full(tuple)) = old;
        if let Some(row) = self.router.catalog_row(relid, tuple) {
            return self.catalog_delete(&row, at).await;
        }
        self.member_changed(relid, MemberChange::Delete(old));
        let row = old_row(old);
        self.one_row(relid, index, at, Need::Old, |plan| plan.delete(&row)).await
    }

    /// A row may grant something, whether its table is tracked or not. In force with its transaction.
    fn member_changed(&mut self, relid: u32, change: MemberChange<'_>) {
        if self.router.grants(relid) {
            self.router.member_changed(relid, change);
        }
    }

    /// A row that comes to one change at most.
    async fn one_row(
        &mut self,
        relid: u32,
        index: u32,
        at: Position,
        need: Need,
        route: impl Fn(&Plan) -> Result<Option<RowChange>, RowError>,
    ) -> Result<(), IngestError> {
        while let Some(plan) = self.plan(relid, at, need).await? {
            match route(&plan) {
                Ok(change) => {
                    if let Some(change) = change {
                        self.assembly()?.add(index, Body::Row(change));
                    }
                    return self.pass_on_part().await;
                }
                Err(error) => self.unreadable(relid, at, error).await?,
            }
        }
        Ok(())
    }

    pub(super) async fn update(&mut self, update: &pgoutput::Update) -> Result<(), IngestError> {
        let (index, at, skipped) = self.place()?;
        if skipped {
            return Ok(());
        }
        if let Some(columns) = self.router.catalog_row(update.relid, &update.new) {
            return self.catalog_put(&columns, at).await;
        }
        let change = MemberChange::Update { old: update.old.as_ref(), new: &update.new };
        self.member_changed(update.relid, change);
        self.update_row(update, index, at).await?;
        self.pass_on_part().await
    }

    pub(super) async fn truncate(&mut self, relids: &[u32]) -> Result<(), IngestError> {
        // Of a partitioned table all leaves are named, each for itself.
        let mut emptied: Vec<(u32, Position, Arc<Shape>)> = Vec::new();
        for relid in relids {
            let (index, at, skipped) = self.place()?;
            if skipped {
                continue;
            }
            self.router.table_truncated(*relid);
            if let Some(effect) = self.router.truncate_catalog(*relid, at) {
                self.catalog_effect(effect, at).await?;
                continue;
            }
            if let Some(plan) = self.plan(*relid, at, Need::New).await? {
                emptied.retain(|(_, _, shape)| shape.relid != plan.shape.relid);
                emptied.push((index, at, Arc::clone(&plan.shape)));
            }
        }
        for (index, at, shape) in emptied {
            if self.router.is_whole(shape.relid, relids) {
                self.assembly()?.add(index, Body::Truncate(shape));
            } else {
                // Which rows are gone, nobody says.
                self.assembly()?.add_mark(Mark {
                    table: Arc::clone(&shape.name),
                    audience: None,
                    scopes: shape.scopes.clone(),
                    upto: at,
                    reason: Reason::SchemaChanged,
                });
            }
        }
        Ok(())
    }

    pub(super) async fn logical(&mut self, message: &pgoutput::LogicalMessage) -> Result<(), IngestError> {
        if !message.transactional {
            metrics::counter!("rowcast_messages_dropped_total", "why" => "not_transactional").increment(1);
            return Ok(());
        }
        // Messages of others take no place, however many there are.
        if message.prefix != PREFIX {
            return Ok(());
        }
        let (index, _, skipped) = self.place()?;
        let xid = self.assembly()?.xid();
        match self.router.secret().open(xid, &message.content) {
            Ok(LogicalMessage::Fence(id)) => self.assembly()?.add_fence(id),
            Ok(LogicalMessage::Tag(tag)) => self.assembly()?.tag = Some(tag),
            Ok(LogicalMessage::Broadcast(broadcast)) if !skipped => {
                self.assembly()?.add(index, Body::Broadcast(broadcast));
            }
            Ok(LogicalMessage::Broadcast(_)) => {}
            Err(why) => {
                let label = match why {
                    Dropped::Forged => "forged",
                    Dropped::Malformed => "malformed",
                };
                metrics::counter!("rowcast_messages_dropped_total", "why" => label).increment(1);
                let now = Instant::now();
                if self.warned_at.is_none_or(|at| now.duration_since(at) >= WARN_EVERY) {
                    self.warned_at = Some(now);
                    tracing::warn!(
                        xid, lsn = %message.lsn, %why,
                        "a logical message was dropped; more of them are only counted for a while"
                    );
                }
            }
        }
        self.pass_on_part().await
    }

    /// One UPDATE, with the values that it may owe.
    pub(super) async fn update_row(
        &mut self,
        update: &pgoutput::Update,
        index: u32,
        at: Position,
    ) -> Result<(), IngestError> {
        let new: Row<'_> = update.new.iter().collect();
        let old = update.old.as_ref().map(old_row);
        let mut debt = Debt::Open;
        while let Some(plan) = self.plan(update.relid, at, Need::Old).await? {
            match plan.update(old.as_ref(), &new, &debt) {
                Ok(Update::Nothing) => {}
                Ok(Update::Changed(change)) => self.assembly()?.add(index, Body::Row(change)),
                Ok(Update::Rekeyed { delete, insert }) => {
                    let assembly = self.assembly()?;
                    if let Some(delete) = delete {
                        assembly.add(index, Body::Row(delete));
                    }
                    if let Some(insert) = insert {
                        assembly.add(index + 1, Body::Row(insert));
                    }
                }
                Ok(Update::Owed(owed)) => {
                    debt = match self.find_owed(&plan, &owed, at).await? {
                        Some(supplied) => Debt::Supplied(supplied),
                        None => {
                            let newly = plan.newly(old.as_ref(), &new).unwrap_or_default();
                            let upto = Position::new(at.commit, index + 1);
                            let marks = newly.into_iter().map(|audience| Mark {
                                table: Arc::clone(&plan.shape.name),
                                audience: Some(audience),
                                scopes: plan.shape.scopes.clone(),
                                upto,
                                reason: Reason::Toast,
                            });
                            let assembly = self.assembly()?;
                            marks.for_each(|mark| assembly.add_mark(mark));
                            Debt::Unpayable
                        }
                    };
                    continue;
                }
                Err(error) => {
                    self.unreadable(update.relid, at, error).await?;
                    continue;
                }
            }
            return Ok(());
        }
        Ok(())
    }

    /// Looks in the log for the values of columns that were not sent.
    async fn find_owed(
        &mut self,
        plan: &Plan,
        owed: &Owed,
        at: Position,
    ) -> Result<Option<Supplied>, IngestError> {
        // Older entries of the row may still be on their way to the log, or in this very transaction.
        if self.assembly()?.size() > 0 {
            self.submit_part().await?;
        }
        let attempt = self.assembly()?.attempt();
        let log = Arc::clone(&self.feed.log);
        let work = async {
            log.applied().await?;
            let log = Arc::clone(&log);
            let (owed, table) = (owed.clone(), Arc::clone(&plan.shape.name));
            let search = move || {
                let mut supplied = Supplied::new();
                for (index, column) in &owed.columns {
                    let mut found = None;
                    for audience in &owed.audiences {
                        found = log.column_value(&ColumnQuery {
                            audience,
                            table: &table,
                            key: &owed.old_key,
                            column,
                            before: at,
                            attempt,
                            max_entries: OWED_ENTRIES,
                        })?;
                        if found.is_some() {
                            break;
                        }
                    }
                    match found {
                        Some(value) => supplied.push((*index, value)),
                        None => return Ok(None),
                    }
                }
                Ok(Some(supplied))
            };
            match tokio::task::spawn_blocking(search).await {
                Ok(result) => result,
                Err(_) => Err(IngestError::Protocol("the search in the log was given up")),
            }
        };
        self.serve_while(work).await
    }

    async fn catalog_put(&mut self, row: &CatalogRow, at: Position) -> Result<(), IngestError> {
        let effect = self.router.put_row(row, at)?;
        self.catalog_effect(effect, at).await
    }

    async fn catalog_delete(&mut self, row: &CatalogRow, at: Position) -> Result<(), IngestError> {
        let effect = self.router.delete_row(row, at);
        self.catalog_effect(effect, at).await
    }

    async fn catalog_effect(&mut self, effect: CatalogEffect, at: Position) -> Result<(), IngestError> {
        // An untrack asks about another table than its own.
        let why = effect.marks.first().map(|mark| mark.reason).filter(|why| *why != Reason::Untracked);
        for mark in effect.marks {
            self.assembly()?.add_mark(mark);
        }
        match effect.ask {
            Some(relid) => {
                self.await_visible().await?;
                self.ask(relid, at, why).await
            }
            None => Ok(()),
        }
    }
}

fn old_row(old: &OldTuple) -> OldRow<'_> {
    match old {
        OldTuple::Key(tuple) => OldRow::Key(tuple.iter().collect()),
        OldTuple::Full(tuple) => OldRow::Full(tuple.iter().collect()),
    }
}
