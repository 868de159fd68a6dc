//! Sync over REST for a device that was away: what changed since its cursor, from the log alone where
//! that is possible, and whole tables from the database where it is not.
//!
//! After the log in the flow, beside the hub: [`request`] reads what is asked, [`plan`] decides which
//! tables can be answered from the log, [`page`] compacts a range of it with the same resolution of
//! changes as live delivery, [`mod@answer`] writes it. [`full`] joins a snapshot of the database to the
//! log where some table needs it; [`coverage`] remembers what a cursor vouches for.
//!
//! Invariants: a page ends at a commit unless one transaction alone exceeds it; applying pages one
//! after another gives the same copy as applying every change; nothing outside the grants is read.
//!
//! Must not know: sockets, HTTP beyond [`problem`]; only [`full`] knows Postgres.

mod answer;
pub mod coverage;
mod error;
pub mod full;
pub mod page;
mod pending;
pub mod plan;
pub mod problem;
mod reading;
mod request;
mod rights;
mod stream;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

pub use answer::{Head, SyncAnswer, TableHead, Tail};
pub use error::SyncError;
pub use full::{FullOptions, FullStream, FullSync, PageToken, Served};
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

/// How long the log may be behind what devices were pushed, before an answer does without it.
const MOMENT: Duration = Duration::from_secs(1);
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
            head.tables.insert(Arc::clone(table), TableHead::incremental(entry.shape.key.clone()));
        }
    }
    let tail = Tail {
        cursor: reading.cursor(feed, part.end)?.to_string(),
        sync_timestamp: Some(part.sync_timestamp),
        total_changes: part.len(),
        has_more: part.more,
        consistent: part.consistent,
        next_sync_recommended: next_sync(part.more),
        total_rows: None,
    };
    Ok(SyncAnswer { head, changes: part.changes, tail })
}

/// What a request comes to.
#[derive(Debug)]
pub enum Answered<T> {
    Log(T),
    /// Some table needs a full answer: it is made, or was made before, under this token.
    Full(PageToken),
}

/// Answers with one page of the log, or begins a full answer.
///
/// `server_end` is the end of the server's WAL as far as the relay knows it.
pub async fn answer(
    full: &Arc<FullSync>,
    feed: Arc<Feed>,
    identity: Arc<Identity>,
    request: SyncRequest,
    server_end: Lsn,
) -> Result<Answered<SyncAnswer>, SyncError> {
    if let Some(token) = request.page {
        return Ok(Answered::Full(token));
    }
    catch_up(&feed, &request, server_end).await?;
    let reading = (Arc::clone(&feed), Arc::clone(&identity), request.clone());
    let incremental = tokio::task::spawn_blocking(move || sync(&reading.0, &reading.1, &reading.2)).await?;
    or_full(incremental, full, feed, &identity, request)
}

/// As [`answer()`], for the NDJSON form: call [`SyncStream::next_lines`] where blocking is allowed.
pub async fn stream(
    full: &Arc<FullSync>,
    feed: Arc<Feed>,
    identity: Arc<Identity>,
    request: SyncRequest,
    server_end: Lsn,
) -> Result<Answered<SyncStream>, SyncError> {
    if let Some(token) = request.page {
        return Ok(Answered::Full(token));
    }
    catch_up(&feed, &request, server_end).await?;
    let reading = (Arc::clone(&feed), Arc::clone(&identity), request.clone());
    let opened = tokio::task::spawn_blocking(move || SyncStream::open(reading.0, &reading.1, &reading.2));
    or_full(opened.await?, full, feed, &identity, request)
}

fn or_full<T>(
    incremental: Result<T, SyncError>,
    full: &Arc<FullSync>,
    feed: Arc<Feed>,
    identity: &Identity,
    request: SyncRequest,
) -> Result<Answered<T>, SyncError> {
    match incremental {
        Ok(answer) => Ok(Answered::Log(answer)),
        Err(SyncError::FullRequired(_)) => Ok(Answered::Full(full.begin(feed, identity, request)?)),
        Err(error) => Err(error),
    }
}

/// Waits until the log shows what devices were told. Cancel-safe.
pub async fn catch_up(feed: &Feed, request: &SyncRequest, server_end: Lsn) -> Result<(), SyncError> {
    reach_cursor(feed, request, server_end).await?;
    reach_published(feed).await;
    Ok(())
}

/// What a device was pushed before it asked is in its answer: the hub runs ahead of the log by a moment.
/// A log that stands still answers with what it has: its cursor says how far that goes.
async fn reach_published(feed: &Feed) {
    let published = feed.hub.published();
    let mut watermark = feed.log.watermark();
    if watermark.borrow().lsn >= published || feed.log.trouble().is_some() {
        return;
    }
    tokio::select! {
        _ = tokio::time::timeout(MOMENT, watermark.wait_for(|watermark| watermark.lsn >= published)) => {}
        () = feed.hub.closed().cancelled() => {}
    }
}

/// A crash may have lost the last appends that devices had already seen; Postgres sends them again.
/// Beyond the server's WAL end there is nothing to wait for.
async fn reach_cursor(feed: &Feed, request: &SyncRequest, server_end: Lsn) -> Result<(), SyncError> {
    let cursor = match request.cursor.map(|cursor| cursor.cursor) {
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
    let incremental = reading.plan.incremental.iter();
    let mut tables: BTreeMap<_, _> =
        incremental.map(|(table, key)| (Arc::clone(table), TableHead::incremental(key.clone()))).collect();
    tables.extend(reading.plan.unavailable.iter().map(|(table, reason)| {
        let head =
            TableHead { unavailable: true, reason: Some(*reason), ..TableHead::incremental(Vec::new()) };
        (Arc::clone(table), head)
    }));
    Head {
        topics: reading.request.topics.clone(),
        tables,
        revoked: reading.revoked.clone(),
        numbers_as_strings: reading.request.numbers_as_strings,
    }
}

/// Microseconds since 1970.
fn next_sync(more: bool) -> i64 {
    let now = PgTimestamp::now().unix_micros();
    if more { now } else { now + rand::random_range(NEXT_SYNC_MICROS) }
}
