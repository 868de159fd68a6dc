//! What waits for one session. Bounded: when it is full it is emptied and marked lost, and the session
//! reads the log from where it stands. So a device that does not read costs no memory.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use smallvec::SmallVec;
use tokio::sync::Notify;

use super::frame::Published;
use crate::lsn::Lsn;

/// A transaction, and which of its deliveries (by place in it) may concern the session.
#[derive(Debug, Clone)]
pub struct Item {
    pub published: Arc<Published>,
    pub places: SmallVec<[u32; 2]>,
}

/// An item keeps its whole transaction in memory, mostly together with other sessions. So it counts
/// for at least this part of it: a session holds no more than so many times its limit.
const SHARED: usize = 16;

impl Item {
    fn size(&self) -> usize {
        let deliveries = &self.published.transaction.deliveries;
        let bytes = self.places.iter().filter_map(|place| deliveries.get(*place as usize)).map(|d| d.size());
        64 + bytes.sum::<usize>().max(self.published.size / SHARED)
    }
}

/// What [`super::Seat::take`] found.
#[derive(Debug)]
pub enum Taken {
    /// In commit order; after them nothing is missing up to `upto`.
    Items { items: VecDeque<Item>, upto: Lsn },
    /// The outbox is closed: never opened, or it was full. The log has what was lost.
    Lost,
}

#[derive(Debug)]
pub(super) struct Outbox {
    state: Mutex<State>,
    ready: Notify,
    /// Of what waits; one item may be larger.
    limit: usize,
}

#[derive(Debug, Default)]
struct State {
    items: VecDeque<Item>,
    bytes: usize,
    open: bool,
}

impl Outbox {
    pub(super) fn new(limit: usize) -> Self {
        Outbox { state: Mutex::default(), ready: Notify::new(), limit }
    }

    pub(super) fn open(&self) {
        *self.lock() = State { open: true, ..State::default() };
    }

    pub(super) fn push(&self, item: Item) {
        let mut state = self.lock();
        if !state.open {
            return;
        }
        let size = item.size();
        if state.bytes + size > self.limit && !state.items.is_empty() {
            *state = State::default();
        } else {
            state.bytes += size;
            state.items.push_back(item);
        }
        drop(state);
        self.ready.notify_one();
    }

    /// There is something that only the log can give.
    pub(super) fn lose(&self) {
        *self.lock() = State::default();
        self.ready.notify_one();
    }

    pub(super) fn wake(&self) {
        self.ready.notify_one();
    }

    pub(super) fn take(&self, published: Lsn) -> Taken {
        let mut state = self.lock();
        if !state.open {
            return Taken::Lost;
        }
        state.bytes = 0;
        let items = std::mem::take(&mut state.items);
        let last = items.back().map_or(Lsn::ZERO, |item| item.published.end);
        Taken::Items { items, upto: published.max(last) }
    }

    pub(super) async fn ready(&self) {
        self.ready.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
