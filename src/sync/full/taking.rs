//! Joining a snapshot to the stream (DESIGN section 6).
//!
//! Remember the visible horizon H; take a snapshot S and read the rows into a spool; commit a fence after
//! S exists, and wait until ingest meets it at F. Then the copy at F is: the rows, then what the log holds
//! in (H, F] of transactions that S does not see, in order.
//!
//! Exact because: what S sees committed before F, so nothing is there twice; what S does not see and
//! committed at or before F lies after H, so nothing is missed. The snapshot's transaction outlives the
//! fence's commit: no crash in between can have lost what S saw.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::error::FullError;
use super::snapshot::{self, SnapshotError, Wanted};
use super::spool::{PageBuilder, Spool};
use super::{FullSync, MARK_POLL, Turn};
use crate::change::{Mark, Membership, RowChange};
use crate::feed::Feed;
use crate::fence::Fence;
use crate::horizon::Snapshot;
use crate::hub::view;
use crate::ingest;
use crate::log::LogError;
use crate::position::Position;
use crate::postgres::Database;
use crate::sync::page::Entry;

/// A snapshot that was joined to the stream.
#[derive(Debug)]
pub(crate) struct Taken {
    /// H: the log counts from here on, as far as `seen` does not see it.
    pub(crate) after: Position,
    pub(crate) seen: Snapshot,
    /// F.
    pub(crate) fence: Fence,
    /// Of each table that was read, its primary key's columns.
    pub(crate) keys: Vec<Vec<String>>,
}

/// Whose rows, and in which form.
pub(super) struct Reader<'a> {
    pub(super) wanted: &'a [Wanted],
    pub(super) numbers_as_strings: bool,
    /// Counts what was read, for those who wait.
    pub(super) rows: &'a AtomicU64,
}

impl FullSync {
    /// Reads the tables' rows into `spool`; the last page of them is still open. `place` is one of
    /// the places.
    pub(super) async fn take(
        &self,
        feed: &Arc<Feed>,
        reader: &Reader<'_>,
        spool: Spool,
        place: OwnedSemaphorePermit,
    ) -> Result<(Taken, Spool, PageBuilder), FullError> {
        let mut turn = Turn { database: Some(self.database().await), place: Some(place) };
        let database = turn.database.as_mut().ok_or(FullError::Over)?;
        let taken = tokio::time::timeout(self.options.longest, self.read(feed, reader, spool, database));
        let taken = taken.await.unwrap_or(Err(FullError::TooLong(self.options.longest)))?;
        if let Some(database) = turn.database.take() {
            self.keep(database);
        }
        Ok(taken)
    }

    async fn read(
        &self,
        feed: &Arc<Feed>,
        reader: &Reader<'_>,
        spool: Spool,
        database: &mut Database,
    ) -> Result<(Taken, Spool, PageBuilder), FullError> {
        let patience = self.options.fence_wait;
        let after = self.horizon(feed, reader.wanted, database).await?;
        let client = &*database.client().await.map_err(SnapshotError::from)?;
        let locking = self.options.lock_timeout.saturating_mul(reader.wanted.len() as u32);
        let opening = snapshot::open(client, reader.wanted, &self.options);
        let opened = snapshot::answered(patience.saturating_add(locking), opening).await?;
        let mut writer = Writer { spool: Some(spool), page: PageBuilder::default() };
        let reading = async {
            for (place, table) in opened.tables.iter().enumerate() {
                let wanted = &reader.wanted[place];
                let number = u16::try_from(place).map_err(|_| FullError::TooManyTables)?;
                let mut rows = snapshot::rows(client, table).await?;
                while let Some(row) = rows.next().await? {
                    reader.rows.fetch_add(1, Ordering::Relaxed);
                    writer.row(number, wanted, &row, reader.numbers_as_strings).await?;
                }
            }
            writer.end()
        };
        let fencing = async { Ok(self.fencing.send(feed).await?) };
        let ((spool, page), sent) = tokio::try_join!(reading, fencing)?;
        if sent.place != opened.place {
            return Err(SnapshotError::Moved.into());
        }
        // Before the fence is met: ingest may be behind, and an application's DDL must not wait for that.
        snapshot::answered(patience, snapshot::close(client)).await?;
        let fence = sent.met().await?;
        reached(feed, fence, self.options.fence_wait).await?;
        let keys = opened.tables.iter().map(|table| table.key().to_vec()).collect();
        Ok((Taken { after, seen: opened.snapshot, fence, keys }, spool, page))
    }

    /// H, as the database says now, once it has passed the marks of the tables: what the log lacks before
    /// a mark must be in the snapshot.
    async fn horizon(
        &self,
        feed: &Arc<Feed>,
        wanted: &[Wanted],
        database: &mut Database,
    ) -> Result<Position, FullError> {
        let deadline = Instant::now() + self.options.fence_wait;
        loop {
            let looking = async { Ok(ingest::look(feed, database).await) };
            snapshot::answered(self.options.fence_wait, looking).await??;
            let at = feed.horizon.position();
            if at < feed.log.oldest() {
                return Err(FullError::NotVisible);
            }
            let ahead =
                |mark: &Mark| mark.upto > at && wanted.iter().any(|wanted| wanted.tracked.name == mark.table);
            if !feed.log.marks().iter().any(ahead) {
                return Ok(at);
            }
            if Instant::now() >= deadline {
                return Err(FullError::NotVisible);
            }
            tokio::time::sleep(MARK_POLL).await;
        }
    }
}

/// Waits until readers of the log see everything up to a fence: a moment, and long only in a log whose disk
/// is full or fails.
async fn reached(feed: &Feed, fence: Fence, patience: Duration) -> Result<(), FullError> {
    let mut watermark = feed.log.watermark();
    loop {
        tokio::select! {
            reached = watermark.wait_for(|watermark| watermark.lsn >= fence.end) => {
                return reached.map(drop).map_err(|_| FullError::Over);
            }
            () = feed.hub.closed().cancelled() => return Err(FullError::Over),
            () = tokio::time::sleep(patience) => {
                if let Some(trouble) = feed.log.trouble() {
                    return Err(LogError::Stalled(trouble.what).into());
                }
            }
        }
    }
}

/// Puts rows into pages, and pages into the spool.
pub(super) struct Writer {
    /// Absent only while a page is being written.
    pub(super) spool: Option<Spool>,
    pub(super) page: PageBuilder,
}

impl Writer {
    async fn row(
        &mut self,
        table: u16,
        wanted: &Wanted,
        row: &RowChange,
        numbers_as_strings: bool,
    ) -> Result<(), FullError> {
        let ours = |member: &Membership| wanted.audiences.contains(&member.audience);
        // The statement may find more than it should, never less.
        let Some(view) = view(row, ours) else { return Ok(()) };
        let entry = Entry {
            operation: view.operation,
            shape: Arc::clone(&row.shape),
            audience: view.audience.clone(),
            key: Some(row.key.clone()),
            record: view.record.cloned(),
            unchanged: Vec::new(),
            committed_at: None,
            position: Position::ZERO,
        };
        self.entry(table, &entry, numbers_as_strings).await
    }

    pub(super) async fn entry(
        &mut self,
        table: u16,
        entry: &Entry,
        numbers_as_strings: bool,
    ) -> Result<(), FullError> {
        self.page.push(table, |out| entry.write_members(numbers_as_strings, out));
        if self.page.is_full() { self.write_page().await } else { Ok(()) }
    }

    fn end(&mut self) -> Result<(Spool, PageBuilder), FullError> {
        Ok((self.spool.take().ok_or(FullError::Over)?, std::mem::take(&mut self.page)))
    }

    async fn write_page(&mut self) -> Result<(), FullError> {
        let page = std::mem::take(&mut self.page);
        let mut spool = self.spool.take().ok_or(FullError::Over)?;
        let written = tokio::task::spawn_blocking(move || spool.add(page).map(|()| spool)).await??;
        self.spool = Some(written);
        Ok(())
    }
}
