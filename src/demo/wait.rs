//! Every wait of the demo has a deadline and a name.

use std::time::Duration;

/// Long enough for a busy machine; whatever takes longer does not work.
pub(super) const PATIENCE: Duration = Duration::from_secs(15);

/// `what` completes "waited 15 s for …".
pub(super) async fn within<T>(what: &str, future: impl Future<Output = T>) -> anyhow::Result<T> {
    let waited = tokio::time::timeout(PATIENCE, future).await;
    waited.map_err(|_| anyhow::anyhow!("waited {} s in vain for {what}", PATIENCE.as_secs()))
}
