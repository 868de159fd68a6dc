//! Fences: messages that the relay commits itself and meets again in the stream.
//!
//! Whoever commits one waits here for ingest to meet it; its commit's end is a position of which it is
//! certain that everything visible before it lies before it (DESIGN: joining a snapshot to the stream).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::lsn::Lsn;

/// Where a fence stands in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fence {
    /// The end of its commit: a boundary.
    pub end: Lsn,
    /// The greatest commit time at or before it, microseconds since 1970.
    pub greatest_committed_at: i64,
}

/// Those who wait for fences.
#[derive(Debug, Default)]
pub struct Fences {
    waiting: Arc<Mutex<Waiting>>,
}

type Waiting = HashMap<String, watch::Sender<Option<Fence>>>;

/// A fence that was not met yet; nobody waits for it any more when this is dropped. It holds nothing of
/// the log that it is for.
#[derive(Debug)]
pub struct Expected {
    waiting: Arc<Mutex<Waiting>>,
    id: String,
    met: watch::Receiver<Option<Fence>>,
}

impl Fences {
    /// To be called before the message is committed.
    pub fn expect(&self) -> Expected {
        let id = format!("{:032x}", rand::random::<u128>());
        let (sender, met) = watch::channel(None);
        lock(&self.waiting).insert(id.clone(), sender);
        Expected { waiting: Arc::clone(&self.waiting), id, met }
    }

    /// Ingest met it, and has handed the log everything up to its end.
    pub fn met(&self, id: &str, fence: Fence) {
        if let Some(waiting) = lock(&self.waiting).remove(id) {
            waiting.send_replace(Some(fence));
        }
    }
}

fn lock(waiting: &Mutex<Waiting>) -> MutexGuard<'_, Waiting> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Expected {
    /// What the message has to carry.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Waits until ingest meets it; for ever if it was never committed. Cancel-safe.
    pub async fn met(&self) -> Fence {
        match self.met.clone().wait_for(Option::is_some).await.map(|fence| *fence) {
            Ok(Some(fence)) => fence,
            // The sender stays in the map until then, as long as this lives.
            Ok(None) | Err(_) => std::future::pending().await,
        }
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        lock(&self.waiting).remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn whoever_expects_a_fence_hears_of_it_and_leaves_nothing_behind() {
        let fences = Fences::default();
        let fence = Fence { end: Lsn::new(7), greatest_committed_at: 3 };
        let first = fences.expect();
        let second = fences.expect();
        assert_ne!(first.id(), second.id());
        fences.met("another", fence);
        fences.met(first.id(), fence);
        assert_eq!((first.met().await, first.met().await), (fence, fence));
        drop((first, second));
        assert!(lock(&fences.waiting).is_empty());
    }
}
