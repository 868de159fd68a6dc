//! What waits for one session. Bounded: when it is full it is emptied and marked lost, and the session
//! reads the log from where it stands. So a device that does not read costs no memory.

use std::sync::{Arc, Mutex, MutexGuard};
use std::task::Waker;

use smallvec::SmallVec;

use super::frame::Published;
use crate::bell::Bell;
use crate::lsn::Lsn;

/// A transaction, and which of its deliveries may concern the session.
#[derive(Debug, Clone)]
pub struct Item {
    pub published: Arc<Published>,
    pub places: Places,
}

/// What waits, in commit order. Mostly it is one.
pub type Items = SmallVec<[Item; 1]>;

/// Deliveries, by their place in the transaction.
#[derive(Debug, Clone)]
pub enum Places {
    /// All are for one audience, which is the session's.
    All,
    Some(SmallVec<[u32; 2]>),
}

/// An item keeps its whole transaction in memory, mostly together with other sessions. So it counts
/// for at least this part of it: a session holds no more than so many times its limit.
const SHARED: usize = 16;

impl Item {
    fn size(&self) -> usize {
        let deliveries = &self.published.transaction.deliveries;
        let bytes = match &self.places {
            Places::All => self.published.size,
            Places::Some(places) => {
                places.iter().filter_map(|place| deliveries.get(*place as usize)).map(|d| d.size()).sum()
            }
        };
        64 + bytes.max(self.published.size / SHARED)
    }

    /// Which deliveries these are.
    pub fn places(&self) -> impl Iterator<Item = usize> {
        let (all, some) = match &self.places {
            Places::All => (self.published.transaction.deliveries.len(), &[][..]),
            Places::Some(places) => (0, places.as_slice()),
        };
        (0..all).chain(some.iter().map(|place| *place as usize))
    }
}

/// What [`super::Seat::take`] found.
#[derive(Debug)]
pub enum Taken {
    /// In commit order; after them nothing is missing up to `upto`.
    Items { items: Items, upto: Lsn },
    /// The outbox is closed: never opened, or it was full. The log has what was lost.
    Lost,
}

#[derive(Debug)]
pub(super) struct Outbox {
    state: Mutex<State>,
    bell: Arc<Bell>,
    /// Of what waits; one item may be larger.
    limit: usize,
}

#[derive(Debug, Default)]
struct State {
    items: Items,
    bytes: usize,
    open: bool,
}

impl Outbox {
    pub(super) fn new(limit: usize) -> Self {
        Outbox { state: Mutex::default(), bell: Arc::default(), limit }
    }

    pub(super) fn open(&self) {
        *self.lock() = State { open: true, ..State::default() };
    }

    /// Gives whom to wake for it.
    #[must_use]
    pub(super) fn push(&self, item: Item) -> Option<Waker> {
        let mut state = self.lock();
        if !state.open {
            return None;
        }
        let size = item.size();
        if state.bytes + size > self.limit && !state.items.is_empty() {
            *state = State::default();
        } else {
            state.bytes += size;
            state.items.push(item);
        }
        drop(state);
        self.bell.ring_for_delivery()
    }

    /// There is something that only the log can give.
    pub(super) fn lose(&self) {
        *self.lock() = State::default();
        self.bell.ring();
    }

    pub(super) fn bell(&self) -> &Arc<Bell> {
        &self.bell
    }

    pub(super) fn take(&self, published: Lsn) -> Taken {
        let mut state = self.lock();
        if !state.open {
            return Taken::Lost;
        }
        state.bytes = 0;
        let items = std::mem::take(&mut state.items);
        let last = items.last().map_or(Lsn::ZERO, |item| item.published.end);
        Taken::Items { items, upto: published.max(last) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
