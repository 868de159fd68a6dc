//! When each write was due and when its commit returned: what the arrivals are measured from.
//!
//! Written by the writers' thread, read by the fleet's, without a lock: a place for each write.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

/// The writes of one measurement, numbered on from `first`.
#[derive(Debug)]
pub struct Board {
    begun: Instant,
    first: u64,
    /// Nanoseconds since `begun`, plus one; zero while it has not happened.
    due: Box<[AtomicU64]>,
    returned: Box<[AtomicU64]>,
    stopped: AtomicBool,
}

impl Board {
    /// For `count` writes, of which the first has the number (the row's `id`) `first`.
    pub fn new(first: u64, count: u64) -> Self {
        let places = || (0..count).map(|_| AtomicU64::new(0)).collect();
        Board {
            begun: Instant::now(),
            first,
            due: places(),
            returned: places(),
            stopped: AtomicBool::new(false),
        }
    }

    /// Notes that a write's time has come, whether or not it could be begun then.
    pub fn due(&self, id: u64, at: Instant) {
        self.note(&self.due, id, at);
    }

    /// Notes that a write's commit returned.
    pub fn returned(&self, id: u64, at: Instant) {
        self.note(&self.returned, id, at);
    }

    /// Nothing more is written from now on.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
    }

    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// Nanoseconds from the commit's return to an arrival, zero for one that came even before; `None` while the
    /// return is not noted.
    pub fn since_return(&self, id: u64, arrived: Instant) -> Option<u64> {
        self.since(&self.returned, id, arrived)
    }

    /// Nanoseconds from the time at which the write was due.
    pub fn since_due(&self, id: u64, arrived: Instant) -> Option<u64> {
        self.since(&self.due, id, arrived)
    }

    fn note(&self, places: &[AtomicU64], id: u64, at: Instant) {
        if let Some(place) = self.place(places, id) {
            place.store(self.nanoseconds(at) + 1, Ordering::Release);
        }
    }

    fn since(&self, places: &[AtomicU64], id: u64, arrived: Instant) -> Option<u64> {
        let noted = self.place(places, id)?.load(Ordering::Acquire).checked_sub(1)?;
        Some(self.nanoseconds(arrived).saturating_sub(noted))
    }

    fn place<'a>(&self, places: &'a [AtomicU64], id: u64) -> Option<&'a AtomicU64> {
        places.get(usize::try_from(id.checked_sub(self.first)?).ok()?)
    }

    fn nanoseconds(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.begun).as_nanos()).unwrap_or(u64::MAX - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn arrivals_are_measured_from_the_commits_return() {
        let board = Board::new(10, 2);
        let now = Instant::now();
        assert_eq!(board.since_return(10, now), None);
        board.returned(10, now);
        assert_eq!(board.since_return(10, now + Duration::from_micros(5)), Some(5_000));
        board.returned(11, now + Duration::from_secs(1));
        assert_eq!(board.since_return(11, now), Some(0), "it came even before");
        assert_eq!(board.since_return(9, now).or(board.since_return(12, now)), None);
    }
}
