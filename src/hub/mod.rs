//! Who gets what, now: sessions by audience, and each session's outbox.
//!
//! Ingest publishes each transaction once, in commit order; the hub hands it to the outboxes of the
//! sessions that want one of its audiences. It never waits: an outbox that is full is emptied and
//! marked lost, and its session reads the log instead.
//!
//! The seam is exact by one rule: registering an audience, going live and publishing happen under one
//! lock, and the first two tell the position P up to which everything was published before. What an
//! outbox then holds begins at P, and the log has everything before it.
//!
//! The hub knows audiences, not grants: who may subscribe was decided before.

mod frame;
#[cfg(test)]
pub(crate) mod golden;
mod outbox;
#[cfg(test)]
mod tests;
mod view;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::task::Waker;

use smallvec::SmallVec;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::bell::Bell;
use crate::change::{Body, Delivery, Transaction};
use crate::lsn::Lsn;
use crate::topic::Audience;

pub use frame::{FrameStyle, Published, Shown, frame_of, timestamp};
pub use outbox::{Item, Items, Taken};
pub use view::{View, view};

use outbox::{Outbox, Places};

/// At most so many audiences of a transaction in parts are remembered; beyond, every session reads
/// the log. Bounds memory, costs a look into the log for each session.
const MAX_TOUCHED: usize = 65_536;

/// A transaction of more bytes than this is not put into outboxes, where a few of its changes would
/// keep all of it in memory: its readers go to the log.
const MAX_HELD: usize = 1024 * 1024;

/// So many sessions share one making of a small transaction's frames. All of them would wait for each other:
/// several threads count at once who still holds it.
const SHARED_BY: usize = 64;

/// A transaction of more bytes than this is shared by all.
const MAX_MADE_AGAIN: usize = 16 * 1024;

/// Ingest itself wakes so many sessions for a transaction. More are woken by the runtime that they run on,
/// which has them in the queues of its own threads: to wake it from outside takes a lock for each.
const WOKEN_AT_ONCE: usize = 16;

/// Sessions that one task of the runtime wakes: half of what the queue of a thread holds.
const WOKEN_BY_A_TASK: usize = 128;

/// Fan-out of one log.
pub struct Hub {
    inner: Mutex<Inner>,
    /// Everything that begins to commit before this was published.
    published: AtomicU64,
    /// Set when this log's life is over: sessions leave with `sync_required`.
    closed: CancellationToken,
    /// Where sessions run.
    runtime: OnceLock<Handle>,
}

#[derive(Default)]
struct Inner {
    sessions: HashMap<u64, Arc<Outbox>>,
    next_session: u64,
    audiences: HashMap<Audience, SmallVec<[Reader; 1]>>,
    /// Reused by each publication.
    wanted: Vec<(u64, u32)>,
}

/// A session that wants an audience.
struct Reader {
    id: u64,
    outbox: Arc<Outbox>,
}

/// Whom a transaction in parts concerns.
#[derive(Debug, Default)]
pub struct Touched {
    audiences: HashSet<Audience>,
    all: bool,
}

impl Touched {
    pub fn add(&mut self, delivery: &Delivery) {
        if self.all {
            return;
        }
        match &delivery.body {
            Body::Row(row) => self.audiences.extend(row.memberships.iter().map(|m| m.audience.clone())),
            Body::Broadcast(broadcast) => drop(self.audiences.insert(broadcast.audience.clone())),
            Body::Truncate(_) => self.all = true,
        }
        if self.all || self.audiences.len() > MAX_TOUCHED {
            self.all = true;
            self.audiences = HashSet::new();
        }
    }
}

impl Hub {
    /// `start`: the position up to which the log is complete.
    pub fn new(start: Lsn) -> Arc<Self> {
        Arc::new(Hub {
            inner: Mutex::default(),
            published: AtomicU64::new(start.get()),
            closed: CancellationToken::new(),
            runtime: OnceLock::new(),
        })
    }

    /// Takes a place; nothing is delivered before [`Seat::go_live`].
    pub fn join(self: &Arc<Self>, outbox_bytes: usize) -> Seat {
        if let (None, Ok(runtime)) = (self.runtime.get(), Handle::try_current()) {
            // The first is as good as any other: they all run on one.
            let _ = self.runtime.set(runtime);
        }
        let outbox = Arc::new(Outbox::new(outbox_bytes));
        let mut inner = self.lock();
        let id = inner.next_session;
        inner.next_session += 1;
        inner.sessions.insert(id, Arc::clone(&outbox));
        Seat { hub: Arc::clone(self), id, outbox, audiences: SmallVec::new() }
    }

    /// Hands a whole transaction to those who want it. `end` is its end LSN.
    pub fn publish(&self, transaction: &Arc<Transaction>, end: Lsn) {
        let mut inner = self.lock();
        let mut rung = Vec::new();
        if !inner.sessions.is_empty() && !transaction.deliveries.is_empty() {
            inner.deliver(transaction, end, &mut rung);
        }
        self.published.store(end.get(), Ordering::Release);
        drop(inner);
        self.wake(rung);
    }

    /// After the position is told: who wakes up finds it.
    fn wake(&self, mut rung: Vec<Waker>) {
        let Some(runtime) = self.runtime.get().filter(|_| rung.len() > WOKEN_AT_ONCE) else {
            return rung.into_iter().for_each(Waker::wake);
        };
        while !rung.is_empty() {
            let some = rung.split_off(rung.len().saturating_sub(WOKEN_BY_A_TASK));
            runtime.spawn(async move { some.into_iter().for_each(Waker::wake) });
        }
    }

    /// A transaction that was appended in parts is over: those whom it concerns read it from the log.
    pub fn publish_parts(&self, touched: &Touched, end: Lsn) {
        let inner = self.lock();
        if touched.all {
            inner.sessions.values().for_each(|outbox| outbox.lose());
        } else {
            let ids: HashSet<u64> = touched
                .audiences
                .iter()
                .filter_map(|a| inner.audiences.get(a))
                .flatten()
                .map(|r| r.id)
                .collect();
            ids.iter().filter_map(|id| inner.sessions.get(id)).for_each(|outbox| outbox.lose());
        }
        self.published.store(end.get(), Ordering::Release);
    }

    /// Nothing for anyone up to here.
    pub fn advance(&self, to: Lsn) {
        let _order = self.lock();
        self.published.fetch_max(to.get(), Ordering::AcqRel);
    }

    /// Something other than deliveries changed (marks): every session looks.
    pub fn wake_all(&self) {
        self.lock().sessions.values().for_each(|outbox| outbox.bell().ring());
    }

    /// Everything that begins to commit before this was published.
    pub fn published(&self) -> Lsn {
        Lsn::new(self.published.load(Ordering::Acquire))
    }

    pub fn sessions(&self) -> usize {
        self.lock().sessions.len()
    }

    /// This log is over; a later one will have a hub of its own.
    pub fn close(&self) {
        self.closed.cancel();
        self.wake_all();
    }

    pub fn closed(&self) -> &CancellationToken {
        &self.closed
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic while the lock was held is a bug that the process dies of elsewhere; the maps
        // themselves are never left half-changed.
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Inner {
    /// What is in the outboxes is there before anyone is woken: `rung` is whom.
    fn deliver(&mut self, transaction: &Arc<Transaction>, end: Lsn, rung: &mut Vec<Waker>) {
        match only_audience(transaction) {
            Some(audience) if transaction.deliveries.len() == 1 || transaction.size() <= MAX_HELD => {
                let Some(readers) = self.audiences.get(audience) else { return };
                let shared_by =
                    if transaction.size() > MAX_MADE_AGAIN { readers.len().max(1) } else { SHARED_BY };
                rung.reserve(readers.len());
                for readers in readers.chunks(shared_by) {
                    let published = Arc::new(Published::new(Arc::clone(transaction), end));
                    for reader in readers {
                        let item = Item { published: Arc::clone(&published), places: Places::All };
                        rung.extend(reader.outbox.push(item));
                    }
                }
            }
            _ => self.deliver_to_several(transaction, end, rung),
        }
    }

    fn deliver_to_several(&mut self, transaction: &Arc<Transaction>, end: Lsn, rung: &mut Vec<Waker>) {
        let mut wanted = std::mem::take(&mut self.wanted);
        wanted.clear();
        for (place, delivery) in (0u32..).zip(&transaction.deliveries) {
            match &delivery.body {
                Body::Row(row) => {
                    for member in &row.memberships {
                        self.want(&member.audience, place, &mut wanted);
                    }
                }
                Body::Broadcast(broadcast) => self.want(&broadcast.audience, place, &mut wanted),
                Body::Truncate(shape) => {
                    let readers =
                        self.audiences.iter().filter(|(a, _)| shape.scopes.iter().any(|s| s == a.scope()));
                    wanted.extend(readers.flat_map(|(_, readers)| readers).map(|reader| (reader.id, place)));
                }
            }
        }
        if transaction.deliveries.len() > 1 || wanted.len() > 1 {
            wanted.sort_unstable();
            wanted.dedup();
        }
        if transaction.deliveries.len() > 1 && transaction.size() > MAX_HELD {
            wanted.iter().filter_map(|(id, _)| self.sessions.get(id)).for_each(|outbox| outbox.lose());
        } else if !wanted.is_empty() {
            let published = Arc::new(Published::new(Arc::clone(transaction), end));
            for of_session in wanted.chunk_by(|a, b| a.0 == b.0) {
                if let Some(outbox) = self.sessions.get(&of_session[0].0) {
                    let places = of_session.iter().map(|(_, place)| *place).collect();
                    let places = Places::Some(places);
                    rung.extend(outbox.push(Item { published: Arc::clone(&published), places }));
                }
            }
        }
        self.wanted = wanted;
    }

    fn want(&self, audience: &Audience, place: u32, wanted: &mut Vec<(u64, u32)>) {
        if let Some(readers) = self.audiences.get(audience) {
            wanted.extend(readers.iter().map(|reader| (reader.id, place)));
        }
    }
}

/// The audience of all deliveries, where they have but one.
fn only_audience(transaction: &Transaction) -> Option<&Audience> {
    let mut audiences = transaction.deliveries.iter().map(|delivery| match &delivery.body {
        Body::Row(row) => match row.memberships.as_slice() {
            [only] => Some(&only.audience),
            _ => None,
        },
        Body::Broadcast(broadcast) => Some(&broadcast.audience),
        Body::Truncate(_) => None,
    });
    let first = audiences.next()??;
    audiences.all(|other| other == Some(first)).then_some(first)
}

/// A session's place in the hub. Leaves when dropped.
pub struct Seat {
    hub: Arc<Hub>,
    id: u64,
    outbox: Arc<Outbox>,
    /// How many subscriptions hold each audience. They are few.
    audiences: SmallVec<[(Audience, usize); 1]>,
}

impl Seat {
    /// From now on transactions for this audience reach the outbox (once live): all that begin to
    /// commit at or after the position returned.
    pub fn subscribe(&mut self, audience: &Audience) -> Lsn {
        let mut inner = self.hub.lock();
        if let Some((_, held)) = self.audiences.iter_mut().find(|(own, _)| own == audience) {
            *held += 1;
            return self.hub.published();
        }
        let reader = Reader { id: self.id, outbox: Arc::clone(&self.outbox) };
        inner.audiences.entry(audience.clone()).or_default().push(reader);
        // All sessions of an audience have one name for it.
        let name = inner.audiences.get_key_value(audience).map_or(audience, |(name, _)| name);
        self.audiences.push((name.clone(), 1));
        self.hub.published()
    }

    pub fn unsubscribe(&mut self, audience: &Audience) {
        let Some(at) = self.audiences.iter().position(|(own, _)| own == audience) else { return };
        self.audiences[at].1 -= 1;
        if self.audiences[at].1 == 0 {
            self.audiences.swap_remove(at);
            self.hub.lock().leave(self.id, audience);
        }
    }

    /// The same audience, by the name that all its sessions share.
    pub fn name_of(&self, audience: &Audience) -> Audience {
        let own = self.audiences.iter().find(|(own, _)| own == audience);
        own.map_or(audience, |(own, _)| own).clone()
    }

    /// Empties the outbox and opens it: all that begins to commit at or after the position returned
    /// will be in it, until it is lost.
    pub fn go_live(&self) -> Lsn {
        let _order = self.hub.lock();
        self.outbox.open();
        self.hub.published()
    }

    /// What came since. Never blocks.
    pub fn take(&self) -> Taken {
        // Read before the outbox is looked at: what was published up to here is in it.
        let published = self.hub.published();
        self.outbox.take(published)
    }

    /// Rung when there may be something to take; others may ring it as well.
    pub fn bell(&self) -> &Arc<Bell> {
        self.outbox.bell()
    }

    pub fn hub(&self) -> &Arc<Hub> {
        &self.hub
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut inner = self.hub.lock();
        for (audience, _) in &self.audiences {
            inner.leave(self.id, audience);
        }
        inner.sessions.remove(&self.id);
    }
}

impl Inner {
    fn leave(&mut self, id: u64, audience: &Audience) {
        if let Some(readers) = self.audiences.get_mut(audience) {
            // An audience may have very many, and they stand there in no order.
            if let Some(at) = readers.iter().position(|reader| reader.id == id) {
                readers.swap_remove(at);
            }
            if readers.is_empty() {
                self.audiences.remove(audience);
            }
        }
    }
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub").field("published", &self.published()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seat").field("id", &self.id).finish_non_exhaustive()
    }
}
