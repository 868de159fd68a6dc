//! The NDJSON form: page after page, up to where the log stood at the start.
//!
//! Each step reads one page and blocks on the disk; a reader that is slow or gone costs nothing
//! between steps.

use std::sync::{Arc, Weak};

use bytes::Bytes;

use super::answer::{Tail, write_change_lines, write_error_line};
use super::error::SyncError;
use super::full::FullError;
use super::reading::Reading;
use super::request::{MAX_LIMIT, SyncRequest};
use super::{head, next_sync};
use crate::auth::Identity;
use crate::feed::Feed;
use crate::position::Position;

/// An NDJSON answer under way: a `begin` line, a `change` line for each change, and an `end` or
/// `error` line. A key may come once in each page.
///
/// With a `limit` it ends after one page, without at the log's end.
#[derive(Debug)]
pub struct SyncStream {
    /// A reader that takes its time holds no log open that is over.
    feed: Weak<Feed>,
    reading: Reading,
    after: Position,
    total_changes: usize,
    began: bool,
    ended: bool,
    complete: bool,
}

impl SyncStream {
    /// Everything that can be refused is refused here, with a status of its own. Blocks.
    pub fn open(feed: Arc<Feed>, identity: &Identity, request: &SyncRequest) -> Result<Self, SyncError> {
        let reading = Reading::begin(&feed, identity, request)?;
        let after = reading.plan.after;
        let feed = Arc::downgrade(&feed);
        Ok(SyncStream { feed, reading, after, total_changes: 0, began: false, ended: false, complete: false })
    }

    /// Whether the device was sent all that there is for it.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// The next lines, about one page of them; `None` after the last ones. Blocks.
    pub fn next_lines(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        let mut out = Vec::new();
        if !self.began {
            self.began = true;
            head(&self.reading).write_line(None, &mut out);
        }
        if let Err(error) = self.write_page(&mut out) {
            self.ended = true;
            if error.is_internal() {
                tracing::error!(%error, "a sync failed on the way");
            }
            write_error_line(&error, &mut out);
        }
        Some(out.into())
    }

    fn write_page(&mut self, out: &mut Vec<u8>) -> Result<(), SyncError> {
        let limit = self.reading.request.limit;
        let feed = self.feed.upgrade().ok_or(FullError::Over)?;
        let part = self.reading.part(&feed, self.after, limit.unwrap_or(MAX_LIMIT))?;
        write_change_lines(&part.changes, self.reading.request.numbers_as_strings, out);
        self.total_changes += part.len();
        self.after = part.end;
        if part.more && limit.is_none() {
            return Ok(());
        }
        self.ended = true;
        let tail = Tail {
            cursor: self.reading.cursor(&feed, part.end)?.to_string(),
            sync_timestamp: Some(part.sync_timestamp),
            total_changes: self.total_changes,
            has_more: part.more,
            consistent: part.consistent,
            next_sync_recommended: next_sync(part.more),
            total_rows: None,
        };
        tail.write_line(out);
        self.complete = !part.more;
        Ok(())
    }
}
