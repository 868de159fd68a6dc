//! How often a busy stream is read.
//!
//! A walsender hands each message to the kernel alone. Whoever reads as soon as there is something sleeps and
//! wakes for each of them, which costs both ends more than the message does. So once messages come one upon
//! the other, some more are let come before the next read. A stream that is quiet is read at once, and one
//! that is behind has much to read and waits for nothing. Pure.

use std::time::{Duration, Instant};

/// How long more is let come. What is delayed by it is the last message of a burst.
pub(super) const PAUSE: Duration = Duration::from_micros(200);

/// So many small reads in quick succession, and the stream is busy: more than a small transaction's.
const STREAK: u32 = 16;
/// Quick: there was next to nothing to wait for.
const QUICK: Duration = Duration::from_micros(50);
/// A read of less brought a message or a few.
const LITTLE: usize = 2 * 1024;
/// A read of more had work waiting already.
const MUCH: usize = 32 * 1024;

#[derive(Debug, Default)]
pub(super) struct Pace {
    streak: u32,
    busy: bool,
    /// The last read brought so much that the next may as well.
    behind: bool,
    waiting: Option<Instant>,
}

impl Pace {
    /// Whether more should be let come before the next read.
    pub(super) fn wants_more(&self) -> bool {
        self.busy && !self.behind && self.waiting.is_none()
    }

    /// A read begins, or goes on that was interrupted. Since when it waits.
    pub(super) fn waits(&mut self) -> Instant {
        *self.waiting.get_or_insert_with(Instant::now)
    }

    /// A read brought so many bytes; none if it ended for something that was to be sent.
    pub(super) fn read(&mut self, bytes: usize, waited: Duration) {
        self.waiting = None;
        if bytes == 0 {
            return;
        }
        self.behind = bytes >= MUCH;
        if bytes >= LITTLE {
            // Larger pieces by themselves, or thanks to the pause.
            self.streak = 0;
            return;
        }
        self.streak = if !self.busy && waited < QUICK { self.streak + 1 } else { 0 };
        self.busy = self.streak >= STREAK;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOMENT: Duration = Duration::from_micros(5);

    fn busy() -> Pace {
        let mut pace = Pace::default();
        (0..STREAK).for_each(|_| pace.read(300, MOMENT));
        pace
    }

    #[test]
    fn a_quiet_stream_is_read_at_once() {
        let mut pace = Pace::default();
        for _ in 0..1000 {
            pace.read(300, Duration::from_millis(1));
            // A small transaction's messages come together.
            (0..3).for_each(|_| pace.read(300, MOMENT));
            assert!(!pace.wants_more());
        }
    }

    #[test]
    fn messages_one_upon_the_other_are_let_come_until_they_do_no_more() {
        let mut pace = busy();
        assert!(pace.wants_more());
        pace.read(LITTLE, Duration::ZERO);
        assert!(pace.wants_more());
        pace.read(300, Duration::ZERO);
        assert!(!pace.wants_more());
    }

    #[test]
    fn who_is_behind_waits_for_nothing() {
        let mut pace = busy();
        pace.read(MUCH, Duration::ZERO);
        assert!(!pace.wants_more());
        pace.read(LITTLE, Duration::ZERO);
        assert!(pace.wants_more());
    }

    #[test]
    fn a_read_that_is_taken_up_again_has_paused_already() {
        let mut pace = busy();
        let since = pace.waits();
        assert!(!pace.wants_more());
        assert_eq!(pace.waits(), since);
        pace.read(LITTLE, MOMENT);
        assert!(pace.wants_more());
    }
}
