//! A snapshot for a session: its rows as frames, and where the stream goes on.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio_util::task::AbortOnDropHandle;

use super::FullSync;
use super::error::FullError;
use super::snapshot::{SnapshotError, Wanted};
use super::spool::{self, Spool};
use super::taking::{Reader, Taken};
use crate::bell::Bell;
use crate::change::Mark;
use crate::feed::Feed;
use crate::json::write_string;
use crate::position::Position;
use crate::sync::error::table_name;
use crate::sync::request::audiences_of;
use crate::topic::Pattern;

/// A frame of rows holds no more than this, or one row.
const FRAME_BYTES: usize = 16 * 1024;

/// Times that a snapshot is begun again because the tables changed under it.
const TRIES: usize = 3;

/// The rows of some topics, read and waiting.
#[derive(Debug)]
pub(crate) struct Rows {
    pub(crate) taken: Taken,
    spool: Spool,
    wanted: Vec<Wanted>,
    /// Names and keys' columns, by the numbers that the spool's entries have.
    tables: Vec<(Arc<str>, Vec<String>)>,
}

/// Rows that are being read; given up when dropped.
#[derive(Debug)]
pub(crate) struct Reading {
    done: oneshot::Receiver<Result<Rows, FullError>>,
    _task: AbortOnDropHandle<()>,
}

impl Reading {
    /// The rows, once they are there.
    pub(crate) fn take(&mut self) -> Option<Result<Rows, FullError>> {
        match self.done.try_recv() {
            Ok(result) => Some(result),
            Err(oneshot::error::TryRecvError::Empty) => None,
            // The task panicked.
            Err(oneshot::error::TryRecvError::Closed) => Some(Err(FullError::Over)),
        }
    }
}

impl FullSync {
    /// Begins to read the rows of topics; `ready` is rung when they are there.
    pub(crate) fn read_rows(
        self: &Arc<Self>,
        feed: Arc<Feed>,
        topics: Vec<Pattern>,
        numbers_as_strings: bool,
        ready: Arc<Bell>,
    ) -> Reading {
        let (full, (sender, done)) = (Arc::clone(self), oneshot::channel());
        metrics::counter!("rowcast_full_syncs_total").increment(1);
        let task = tokio::spawn(async move {
            let reading = full.rows(&feed, &topics, numbers_as_strings);
            let rows = feed.hub.closed().run_until_cancelled(reading).await.unwrap_or(Err(FullError::Over));
            if let Err(error) = &rows {
                super::job::tell_full(error);
            }
            let _ = sender.send(rows);
            ready.ring();
        });
        Reading { done, _task: AbortOnDropHandle::new(task) }
    }

    async fn rows(
        self: &Arc<Self>,
        feed: &Arc<Feed>,
        topics: &[Pattern],
        numbers_as_strings: bool,
    ) -> Result<Rows, FullError> {
        for _ in 0..TRIES {
            let wanted = wanted(feed, topics);
            let rows = AtomicU64::new(0);
            let reader = Reader { wanted: &wanted, numbers_as_strings, rows: &rows };
            let place = self.place().await?;
            let taken = self.take(feed, &reader, Spool::new(Arc::clone(&self.budget)), place).await;
            let (taken, mut spool, page) = match taken {
                Err(FullError::Snapshot(SnapshotError::Moved)) => continue,
                taken => taken?,
            };
            let spool = tokio::task::spawn_blocking(move || spool.add(page).map(|()| spool)).await??;
            let names = wanted.iter().map(|table| Arc::clone(&table.tracked.name));
            let tables = names.zip(taken.keys.iter().cloned()).collect();
            let rows = Rows { taken, spool, wanted, tables };
            // What was tracked since, or otherwise, while this waited for its turn, is not in there so.
            if rows.is_current(feed) && same_tables(&rows.wanted, &self::wanted(feed, topics)) {
                return Ok(rows);
            }
        }
        Err(FullError::Restless)
    }
}

/// The tables that readers of the topics read, but those that are blocked: of these the session is told.
fn wanted(feed: &Feed, topics: &[Pattern]) -> Vec<Wanted> {
    let (directory, marks) = (feed.directory(), feed.log.marks());
    let blocked = |mark: &Mark, table: &str| *mark.table == *table && mark.upto == Position::MAX;
    let tables =
        directory.tables().iter().filter(|table| !marks.iter().any(|mark| blocked(mark, &table.name)));
    let wanted = tables.map(|table| Wanted {
        tracked: Arc::clone(&table.tracked),
        audiences: audiences_of(topics, &table.tracked),
    });
    wanted.filter(|wanted| !wanted.audiences.is_empty()).collect()
}

fn same_tables(one: &[Wanted], other: &[Wanted]) -> bool {
    let names = |wanted: &Wanted| Arc::clone(&wanted.tracked.name);
    one.iter().map(names).eq(other.iter().map(names))
}

impl Rows {
    /// Whether the tables are still tracked as they were when they were read: a column that was taken back
    /// since must not be had from here.
    pub(crate) fn is_current(&self, feed: &Feed) -> bool {
        let directory = feed.directory();
        self.wanted.iter().all(|table| table.is_tracked_so(&directory))
    }

    pub(crate) fn tables(&self) -> &[(Arc<str>, Vec<String>)] {
        &self.tables
    }

    pub(crate) fn total(&self) -> u64 {
        self.spool.entries()
    }

    /// The frames of one page; `None` behind the last. Blocks on the disk.
    pub(crate) fn frames(&self, page: usize) -> Result<Option<Vec<Bytes>>, FullError> {
        let Some(page) = self.spool.page(page)? else { return Ok(None) };
        let mut frames = Vec::new();
        let mut frame = Vec::with_capacity(FRAME_BYTES);
        let mut open: Option<u16> = None;
        for entry in spool::entries(&page) {
            let full = frame.len() + entry.record.len() + 3 > FRAME_BYTES;
            if open.is_some_and(|table| table != entry.table || full) {
                frame.extend_from_slice(b"]}");
                frames.push(Bytes::from(std::mem::take(&mut frame)));
                open = None;
            }
            match open {
                Some(_) => frame.push(b','),
                None => {
                    let name = self.tables.get(usize::from(entry.table)).map_or("", |(name, _)| name);
                    frame.extend_from_slice(b"{\"type\":\"snapshot\",\"table\":");
                    write_string(&table_name(name), &mut frame);
                    // Writing to memory cannot fail.
                    let _ = frame.write_all(b",\"rows\":[");
                    open = Some(entry.table);
                }
            }
            frame.extend_from_slice(entry.record.as_bytes());
        }
        if open.is_some() {
            frame.extend_from_slice(b"]}");
            frames.push(frame.into());
        }
        Ok(Some(frames))
    }
}
