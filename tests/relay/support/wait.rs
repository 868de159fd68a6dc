//! Waiting for a condition, with a deadline and a name.

use std::time::{Duration, Instant};

/// Long enough for a machine that does much else meanwhile; a test that waits this long has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Asks until there is an answer, and panics with `what` when there is none within `deadline`.
pub(crate) async fn eventually<T>(
    deadline: Duration,
    what: &str,
    mut attempt: impl AsyncFnMut() -> Option<T>,
) -> T {
    let begun = Instant::now();
    let mut pause = Duration::from_millis(2);
    loop {
        let left = deadline.saturating_sub(begun.elapsed());
        match tokio::time::timeout(left, attempt()).await {
            Ok(Some(answer)) => return answer,
            Ok(None) => tokio::time::sleep(pause.min(left)).await,
            Err(_) => {}
        }
        assert!(begun.elapsed() < deadline, "not within {deadline:?}: {what}");
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

/// Waits for a future, and panics with `what` when it does not end within [`PATIENCE`].
pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(output) => output,
        Err(_) => panic!("not within {PATIENCE:?}: {what}"),
    }
}
