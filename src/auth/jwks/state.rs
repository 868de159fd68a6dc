//! What is known of a key set, who has asked for a fetch, and when the next may be. Pure.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::auth::keys::KeySet;

/// Tokens with unknown keys cause one fetch in so long: anyone can send them, and the issuer's
/// endpoint must not feel it.
pub(super) const ASK_PAUSE: Duration = Duration::from_secs(30);

/// The first pause after a failed fetch; it doubles with each further one.
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
/// Nobody waits longer than this for an endpoint that works again.
const LAST_BACKOFF: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct State {
    pub(super) keys: Arc<KeySet>,
    /// The last fetch succeeded, or none has ended yet.
    pub(super) healthy: bool,
    /// Fetches that were asked for, by number; the start asks for the first.
    asked: u64,
    /// The last one asked for whose fetch, begun afterwards, has ended. At most `asked`.
    answered: u64,
    asked_at: Option<Instant>,
}

impl State {
    pub(super) fn with(keys: Arc<KeySet>) -> Self {
        State { keys, healthy: true, asked: 1, answered: 0, asked_at: None }
    }

    pub(super) fn asked(&self) -> u64 {
        self.asked
    }

    pub(super) fn answered(&self) -> u64 {
        self.answered
    }

    /// Whether any fetch has ended.
    pub(super) fn fetched(&self) -> bool {
        self.answered > 0
    }

    /// The number to wait for; `None` if there was a fetch for this too short a time ago.
    pub(super) fn ask(&mut self, now: Instant) -> Option<u64> {
        if self.answered < self.asked {
            return Some(self.asked);
        }
        if self.asked_at.is_some_and(|at| now.duration_since(at) < ASK_PAUSE) {
            return None;
        }
        self.asked += 1;
        self.asked_at = Some(now);
        Some(self.asked)
    }

    /// A fetch that began when `asked` was the last number has ended. `keys` replaces the set.
    pub(super) fn answer(&mut self, asked: u64, keys: Option<KeySet>, healthy: bool) {
        if let Some(keys) = keys {
            self.keys = Arc::new(keys);
        }
        self.healthy = healthy;
        self.answered = asked;
    }
}

/// Pauses between fetches that fail.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Failures since the last success.
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    /// Between half of the pause and all of it, so that relays that failed together do not come
    /// back together; never longer than a refresh would be away.
    pub(super) fn next(&mut self, refresh: Duration) -> Duration {
        let doubled = FIRST_BACKOFF.saturating_mul(1 << self.failures.min(16));
        self.failures = self.failures.saturating_add(1);
        doubled.min(LAST_BACKOFF).min(refresh).mul_f64(rand::random_range(0.5..=1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_keys_cause_one_fetch_in_a_while() {
        let now = Instant::now();
        let mut state = State::with(Arc::default());
        // The first fetch is under way: everybody waits for it.
        assert_eq!((state.ask(now), state.ask(now)), (Some(1), Some(1)));
        state.answer(1, None, true);
        assert_eq!(state.ask(now), Some(2));
        assert_eq!(state.ask(now), Some(2));
        // A scheduled fetch that began before that answers nobody.
        state.answer(1, None, true);
        assert_eq!(state.ask(now), Some(2));
        state.answer(2, None, true);
        let before = now + ASK_PAUSE - Duration::from_millis(1);
        assert_eq!((state.ask(now), state.ask(before)), (None, None));
        assert_eq!(state.ask(now + ASK_PAUSE), Some(3));
        state.answer(3, None, false);
        assert_eq!(state.ask(now + ASK_PAUSE * 2 - Duration::from_millis(1)), None);
    }

    #[test]
    fn an_answer_without_keys_leaves_the_old_ones() {
        let mut state = State::with(Arc::default());
        let old = Arc::clone(&state.keys);
        state.answer(1, None, false);
        assert!(Arc::ptr_eq(&old, &state.keys) && !state.healthy);
        state.answer(1, Some(KeySet::default()), true);
        assert!(!Arc::ptr_eq(&old, &state.keys) && state.healthy);
    }

    #[test]
    fn pauses_grow_to_a_minute_and_begin_anew() {
        let mut backoff = Backoff::default();
        let quarter = Duration::from_secs(900);
        for expected in [1, 2, 4, 8, 16, 32, 60, 60] {
            let pause = backoff.next(quarter).as_secs_f64();
            assert!(
                (f64::from(expected) / 2.0..=f64::from(expected)).contains(&pause),
                "{expected}: {pause}"
            );
        }
        backoff.failures = u32::MAX;
        assert!(backoff.next(quarter) <= LAST_BACKOFF);
        assert!(backoff.next(Duration::from_secs(5)) <= Duration::from_secs(5));
        backoff.reset();
        assert!(backoff.next(quarter) <= FIRST_BACKOFF);
    }
}
