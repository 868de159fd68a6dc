//! What an operator has to be told before it hurts: WAL that the slot makes PostgreSQL keep.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::MissedTickBehavior;

use crate::transport::Relay;

/// How often the numbers are looked at, and the recorder of metrics tidies up.
const INTERVAL: Duration = Duration::from_secs(2);

/// An alarm that rang falls silent below this share of its threshold, so that it rings once for each crossing.
const SILENT_BELOW: f64 = 0.8;

/// Runs until shutdown.
pub(super) async fn watch(relay: Arc<Relay>, wal_alert: u64, wal_limit: Option<u64>) -> anyhow::Result<()> {
    #[expect(clippy::cast_precision_loss, reason = "exact up to 8 PiB")]
    metrics::gauge!("rowcast_wal_limit_bytes").set(wal_limit.unwrap_or(0) as f64);
    let mut alarm = Alarm::default();
    let mut tick = tokio::time::interval(INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while relay.shutdown.run_until_cancelled(tick.tick()).await.is_some() {
        let (held, limit) = (relay.progress.wal_held(), relay.progress.wal_limit());
        let threshold = threshold(wal_alert, limit);
        match alarm.look(held, threshold) {
            Some(true) => tracing::error!(
                held_bytes = held,
                threshold_bytes = threshold,
                max_slot_wal_keep_size = limit,
                wal_limit,
                "PostgreSQL keeps much WAL for this relay's slot: ingest is behind, or a long transaction is open; \
                 beyond max_slot_wal_keep_size the slot is lost and every device has to sync in full"
            ),
            Some(false) => {
                tracing::info!(held_bytes = held, "PostgreSQL no longer keeps much WAL for the slot")
            }
            None => {}
        }
        metrics::gauge!("rowcast_wal_alert").set(if alarm.rings { 1 } else { 0 });
        relay.metrics.run_upkeep();
    }
    Ok(())
}

fn threshold(wal_alert: u64, limit: Option<u64>) -> u64 {
    limit.map_or(wal_alert, |limit| wal_alert.min(limit / 2))
}

#[derive(Debug, Default)]
struct Alarm {
    rings: bool,
}

impl Alarm {
    /// Whether it begins or ceases to ring.
    #[expect(clippy::cast_precision_loss, reason = "a threshold needs none")]
    fn look(&mut self, value: u64, threshold: u64) -> Option<bool> {
        let rings = match self.rings {
            true => value as f64 > threshold as f64 * SILENT_BELOW,
            false => value > threshold,
        };
        (std::mem::replace(&mut self.rings, rings) != rings).then_some(rings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alarm_rings_once_for_each_crossing() {
        let mut alarm = Alarm::default();
        let rings: Vec<_> = [50, 101, 99, 120, 79, 90, 101].map(|value| alarm.look(value, 100)).into();
        assert_eq!(rings, [None, Some(true), None, None, Some(false), None, Some(true)]);
    }

    #[test]
    fn the_servers_own_limit_counts_by_half() {
        assert_eq!(threshold(100, None), 100);
        assert_eq!(threshold(100, Some(1000)), 100);
        assert_eq!(threshold(100, Some(80)), 40);
    }
}
