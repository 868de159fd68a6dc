//! Sync over REST for a device that was away: what changed since its cursor, from the log alone.
//!
//! After the log in the flow, beside the hub: [`request`] reads what is asked, [`plan`] decides which
//! tables can be answered from the log, [`page`] compacts a range of it with the same resolution of
//! changes as live delivery, [`mod@answer`] writes it. A request in which some table needs a full answer
//! is refused as a whole, naming those tables.
//!
//! Invariants: a page ends at a commit unless one transaction alone exceeds it; applying pages one
//! after another gives the same copy as applying every change; nothing outside the grants is read.
//!
//! Must not know: sockets, HTTP beyond [`problem`], Postgres.

mod answer;
mod error;
pub mod page;
mod pending;
pub mod plan;
pub mod problem;
mod reading;
mod request;
mod stream;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

pub use answer::{Head, SyncAnswer, Tail};
pub use error::SyncError;
pub use pending::{MAX_PENDING, Pending, pending};
pub use problem::Problem;
pub use request::{MAX_LIMIT, SyncRequest};
pub use stream::SyncStream;

use crate::auth::Identity;
use crate::feed::Feed;
use crate::lsn::Lsn;
use crate::timestamp::PgTimestamp;
use reading::Reading;

/// How long a cursor that is ahead of the log is waited for.
const CATCH_UP: Duration = Duration::from_secs(5);
/// When a device that has everything should ask again, in microseconds: spread, against herds.
const NEXT_SYNC_MICROS: std::ops::Range<i64> = 20_000_000..40_000_000;

/// Answers a request with one page. Blocks on the disk.
pub fn sync(feed: &Feed, identity: &Identity, request: &SyncRequest) -> Result<SyncAnswer, SyncError> {
    let mut reading = Reading::begin(feed, identity, request)?;
    let part = reading.part(feed, reading.plan.after, request.page_limit())?;
    let mut head = head(&reading);
    for (table, entries) in &part.changes {
        // Known from its rows even where the directory is a moment behind or ahead.
        if let Some(entry) = entries.last() {
            head.tables.insert(Arc::clone(table), entry.shape.key.clone());
        }
    }
    let tail = Tail {
        cursor: feed.cursor(part.end),
        sync_timestamp: part.sync_timestamp,
        total_changes: part.len(),
        has_more: part.more,
        consistent: part.consistent,
        next_sync_recommended: next_sync(part.more),
    };
    Ok(SyncAnswer { head, changes: part.changes, tail })
}

/// Waits until the log has passed the request's cursor, then answers with one page.
///
/// `server_end` is the end of the server's WAL as far as the relay knows it.
pub async fn answer(
    feed: Arc<Feed>,
    identity: Arc<Identity>,
    request: SyncRequest,
    server_end: Lsn,
) -> Result<SyncAnswer, SyncError> {
    catch_up(&feed, &request, server_end).await?;
    tokio::task::spawn_blocking(move || sync(&feed, &identity, &request)).await?
}

/// As [`answer()`], for the NDJSON form: call [`SyncStream::next_lines`] where blocking is allowed.
pub async fn stream(
    feed: Arc<Feed>,
    identity: Arc<Identity>,
    request: SyncRequest,
    server_end: Lsn,
) -> Result<SyncStream, SyncError> {
    catch_up(&feed, &request, server_end).await?;
    tokio::task::spawn_blocking(move || SyncStream::open(feed, &identity, &request)).await?
}

/// A crash may have lost the last appends that devices had already seen; Postgres sends them again.
/// Beyond the server's WAL end there is nothing to wait for. Cancel-safe.
pub async fn catch_up(feed: &Feed, request: &SyncRequest, server_end: Lsn) -> Result<(), SyncError> {
    let cursor = match request.cursor {
        Some(cursor) if cursor.epoch == feed.epoch && !request.force_full_sync => cursor.position,
        _ => return Ok(()),
    };
    let mut watermark = feed.log.watermark();
    if cursor <= watermark.borrow().position() {
        return Ok(());
    }
    // Zero: the database was not reached yet, and nobody knows where it ends.
    if server_end != Lsn::ZERO && cursor.commit > server_end {
        return Err(SyncError::Cursor);
    }
    tokio::select! {
        reached = tokio::time::timeout(CATCH_UP, watermark.wait_for(|w| cursor <= w.position())) => match reached {
            Ok(Ok(_)) => Ok(()),
            // Too slow, or the log's writer is gone.
            Ok(Err(_)) | Err(_) => Err(SyncError::NotCaughtUp),
        },
        // The feed is over; the next one says what the cursor is worth.
        () = feed.hub.closed().cancelled() => Err(SyncError::NotCaughtUp),
    }
}

fn head(reading: &Reading) -> Head {
    Head {
        topics: reading.request.topics.clone(),
        tables: reading.plan.incremental.clone(),
        numbers_as_strings: reading.request.numbers_as_strings,
    }
}

/// Microseconds since 1970.
fn next_sync(more: bool) -> i64 {
    let now = PgTimestamp::now().unix_micros();
    if more { now } else { now + rand::random_range(NEXT_SYNC_MICROS) }
}
