//! The end of a log in whose place another one begins: the directory is free once nobody reads it any more.
//!
//! Whoever holds a feed lets go of it within seconds of its hub's end: sessions say goodbye, full syncs are
//! given up, answers on their way to slow readers hold none. It must not know who they are.

use std::sync::Arc;
use std::time::Duration;

use crate::feed::Feed;

/// How often it is reported that somebody does not let go, or that the disk is slow.
const REPORT: Duration = Duration::from_secs(10);

/// Waits until a log that is over is closed. Cancel-safe.
pub(super) async fn released(old: Arc<Feed>) {
    let log = Arc::downgrade(&old.log);
    let mut closed = old.log.closed();
    // Closing it waits for the disk.
    let _ = tokio::task::spawn_blocking(move || drop(old)).await;
    while tokio::time::timeout(REPORT, &mut closed).await.is_err() {
        let readers = log.strong_count();
        tracing::warn!(
            readers,
            "the log that is over is still read, or being closed; the new one begins after that"
        );
    }
}
