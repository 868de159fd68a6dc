//! A log that stalls must not keep PostgreSQL from stopping.
//!
//! In a fast stop a walsender ends only when all it sent is confirmed as flushed. While the log's disk is
//! full, fails or hangs, that does not happen. So whoever streams into a log that does not get on asks
//! every moment whether the server still takes connections, and leaves when it does not.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::progress::Progress;
use super::supervisor::CLOSE_GRACE;
use crate::log::Log;
use crate::postgres::{self, ConnectError, Target};

/// A log that was given something and has not made it durable for so long stalls. A group commit is a
/// small part of it.
const STALLED: Duration = Duration::from_secs(2);

/// How often the server is asked meanwhile.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// Ends when the server is stopping and the log stalls. Cancel-safe.
pub(super) async fn server_stops(log: Arc<dyn Log>, progress: Arc<Progress>, target: Target) {
    let (mut durable, mut since) = (*log.durable().borrow(), Instant::now());
    loop {
        tokio::time::sleep(ASK_EVERY).await;
        let now = *log.durable().borrow();
        if now != durable || progress.received() <= now {
            (durable, since) = (now, Instant::now());
        } else if since.elapsed() >= STALLED && is_stopping(&target).await {
            return;
        }
    }
}

async fn is_stopping(target: &Target) -> bool {
    let asked = tokio::time::timeout(ASK_EVERY, postgres::connect(target)).await;
    matches!(asked, Ok(Err(ConnectError::NotAccepting(_))))
}

/// Ends when the relay's end has waited long enough for a log that stalls. Cancel-safe.
pub(super) async fn end_waited_for(shutdown: &CancellationToken) {
    shutdown.cancelled().await;
    tokio::time::sleep(CLOSE_GRACE * 2).await;
}
