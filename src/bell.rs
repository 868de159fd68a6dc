//! What wakes one session, whatever the reason: a transaction in its outbox, or a word for it.
//!
//! A session that rests waits for its bell alone. Were each reason waited for by itself, every wake-up would
//! enter and leave as many lists, some of which all sessions share.
//!
//! Invariants: a ring is never lost: what was rung before the look at it is seen by the look, and what is
//! rung after it wakes. One task waits for a bell.

use std::future::poll_fn;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, Waker};

use futures_util::task::AtomicWaker;

/// Something is in the outbox.
const DELIVERY: u8 = 1;
/// Anything else: mail, other rights, rows of a snapshot, the end of the log or of the relay.
const WORD: u8 = 2;

#[derive(Debug, Default)]
pub struct Bell {
    rung: AtomicU8,
    waker: AtomicWaker,
}

/// For what a bell was rung since it was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rung {
    /// There is more to look at than the outbox.
    pub word: bool,
}

impl Bell {
    /// There is a word for the session.
    pub fn ring(&self) {
        if self.rung.fetch_or(WORD, Ordering::AcqRel) & WORD == 0 {
            self.waker.wake();
        }
    }

    /// There is something in the outbox. Gives whom to wake, so that many are woken together.
    #[must_use]
    pub fn ring_for_delivery(&self) -> Option<Waker> {
        if self.rung.fetch_or(DELIVERY, Ordering::AcqRel) == 0 { self.waker.take() } else { None }
    }

    /// Ready once it was rung, and silent again from then on. Cancel-safe.
    pub fn poll_rung(&self, context: &mut Context<'_>) -> Poll<Rung> {
        if let Some(rung) = self.look() {
            return Poll::Ready(rung);
        }
        self.waker.register(context.waker());
        self.look().map_or(Poll::Pending, Poll::Ready)
    }

    /// Waits until it is rung. Cancel-safe.
    pub async fn rung(&self) -> Rung {
        poll_fn(|context| self.poll_rung(context)).await
    }

    fn look(&self) -> Option<Rung> {
        let quiet = self.rung.load(Ordering::Acquire) == 0;
        let rung = if quiet { 0 } else { self.rung.swap(0, Ordering::AcqRel) };
        (rung != 0).then_some(Rung { word: rung & WORD != 0 })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn what_was_rung_before_is_seen_and_what_is_rung_later_wakes() {
        let bell = Arc::new(Bell::default());
        assert!(bell.ring_for_delivery().is_none(), "nobody waits");
        assert_eq!(bell.rung().await, Rung { word: false });
        bell.ring();
        assert!(bell.ring_for_delivery().is_none());
        assert_eq!(bell.rung().await, Rung { word: true }, "both are one");
        let waiting = tokio::spawn({
            let bell = Arc::clone(&bell);
            async move { [bell.rung().await, bell.rung().await] }
        });
        while bell.rung.load(Ordering::Acquire) != 0 || !waits(&bell) {
            tokio::task::yield_now().await;
        }
        bell.ring();
        while !waits(&bell) {
            tokio::task::yield_now().await;
        }
        if let Some(waker) = bell.ring_for_delivery() {
            waker.wake();
        }
        assert_eq!(waiting.await.unwrap(), [Rung { word: true }, Rung { word: false }]);
    }

    /// Whether somebody is registered; puts them back.
    fn waits(bell: &Bell) -> bool {
        match bell.waker.take() {
            Some(waker) => {
                bell.waker.register(&waker);
                true
            }
            None => false,
        }
    }
}
