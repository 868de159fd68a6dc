//! What has to be forgotten from time to time beside the log.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::MissedTickBehavior;

use crate::sync::coverage::Coverage;
use crate::timestamp::PgTimestamp;
use crate::transport::Relay;

const INTERVAL: Duration = Duration::from_secs(3600);

/// Days beyond the log's age for which it is known what a cursor vouches for: it is looked at by days.
const SLACK_DAYS: i64 = 2;

/// Runs until shutdown.
pub(super) async fn tend(relay: Arc<Relay>, log_max_age: Duration) -> anyhow::Result<()> {
    let days = i64::try_from(log_max_age.as_secs() / 86_400).unwrap_or(i64::MAX / 2) + SLACK_DAYS;
    let mut tick = tokio::time::interval(INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while relay.shutdown.run_until_cancelled(tick.tick()).await.is_some() {
        let Some(feed) = relay.current_feed() else { continue };
        let now = PgTimestamp::now().unix_micros();
        let forgetting = tokio::task::spawn_blocking(move || Coverage::forget_old(&*feed.log, now, days));
        match forgetting.await {
            Ok(Ok(count)) => tracing::debug!(count, "forgot what old cursors vouched for"),
            Ok(Err(error)) => tracing::warn!(%error, "what old cursors vouched for could not be forgotten"),
            // The runtime is shutting down.
            Err(_) => break,
        }
    }
    Ok(())
}
