//! The end of a log in whose place another one begins: the directory is free once nobody reads it any more.
//!
//! Whoever holds a feed lets go of it within seconds of its hub's end: sessions say goodbye, full syncs are
//! given up, answers on their way to slow readers hold none. It must not know who they are.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::error::IngestError;
use crate::feed::Feed;
use crate::log::{FjallLog, LogOptions};

const POLL: Duration = Duration::from_millis(20);

/// How often it is reported that somebody does not let go.
const REPORT: Duration = Duration::from_secs(10);

/// Waits until a log that is over is closed. Cancel-safe.
pub(super) async fn released(old: Arc<Feed>, options: &LogOptions) -> Result<(), IngestError> {
    let log = Arc::downgrade(&old.log);
    // Closing it waits for the disk.
    let _ = tokio::task::spawn_blocking(move || drop(old)).await;
    let mut reported = Instant::now();
    while log.strong_count() > 0 {
        if reported.elapsed() >= REPORT {
            reported = Instant::now();
            let readers = log.strong_count();
            tracing::warn!(
                readers,
                "the log that is over is still being read; the new one begins after that"
            );
        }
        tokio::time::sleep(POLL).await;
    }
    // Whoever let go last is still closing it, for as long as the disk takes.
    loop {
        let options = options.clone();
        let closed = tokio::task::spawn_blocking(move || FjallLog::is_closed(&options)).await;
        if closed.map_err(|_| IngestError::Protocol("waiting for the old log was given up"))?? {
            return Ok(());
        }
        tracing::warn!("the log that is over is still being closed; the new one begins after that");
    }
}
