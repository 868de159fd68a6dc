//! Fences: messages that the relay commits itself and meets again in the stream.
//!
//! Whoever commits one waits here for ingest to meet it; its commit's end is a position of which it is
//! certain that everything visible before it lies before it (DESIGN: joining a snapshot to the stream).

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};

use tokio::sync::oneshot;

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
    waiting: Mutex<HashMap<String, oneshot::Sender<Fence>>>,
}

/// A fence that was not met yet; nobody waits for it any more when this is dropped.
#[derive(Debug)]
pub struct Expected<'a> {
    fences: &'a Fences,
    id: String,
    met: oneshot::Receiver<Fence>,
}

impl Fences {
    /// To be called before the message is committed.
    pub fn expect(&self) -> Expected<'_> {
        let id = format!("{:032x}", rand::random::<u128>());
        let (sender, met) = oneshot::channel();
        self.lock().insert(id.clone(), sender);
        Expected { fences: self, id, met }
    }

    /// Ingest met it, and has handed the log everything up to its end.
    pub fn met(&self, id: &str, fence: Fence) {
        if let Some(waiting) = self.lock().remove(id) {
            // Whoever waited may have gone.
            let _ = waiting.send(fence);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, oneshot::Sender<Fence>>> {
        self.waiting.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Expected<'_> {
    /// What the message has to carry.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Waits until ingest meets it; for ever if it was never committed. Cancel-safe.
    pub async fn met(&mut self) -> Fence {
        match (&mut self.met).await {
            Ok(fence) => fence,
            // The sender stays in the map as long as this lives.
            Err(_) => std::future::pending().await,
        }
    }
}

impl Drop for Expected<'_> {
    fn drop(&mut self) {
        self.fences.lock().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn whoever_expects_a_fence_hears_of_it_and_leaves_nothing_behind() {
        let fences = Fences::default();
        let fence = Fence { end: Lsn::new(7), greatest_committed_at: 3 };
        let mut first = fences.expect();
        let second = fences.expect();
        assert_ne!(first.id(), second.id());
        fences.met("another", fence);
        fences.met(first.id(), fence);
        assert_eq!(first.met().await, fence);
        drop((first, second));
        assert!(fences.lock().is_empty());
    }
}
