//! The devices of each user: what is known of them, and which are here now.
//!
//! Beside the feed in the flow. [`record`] is what is kept of a device (pure), [`Sessions`] who is
//! connected and a small mailbox for each, [`registry`] reads and changes what the log keeps, [`keeper`]
//! writes there what transports reported. A transport says [`Devices::seen`] when it hears of a device
//! and [`Devices::acked`] when one acknowledges; both only take a note in memory and never wait.
//!
//! Invariants: a device belongs to one user (issuer and subject), and nothing here is found by its id
//! alone. The number of devices is bounded for each user and in all. What is noted and not yet written is
//! seen by readers, and may be lost in a crash: at most the last seconds of acknowledgements.
//!
//! Must not know: sockets, tokens, topics. A device's id is no credential.

mod keeper;
mod record;
mod registry;
mod sessions;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use crate::auth::UserId;
use crate::cursor::Cursor;
use crate::feed::CurrentFeed;
use crate::timestamp::PgTimestamp;

pub use record::{Labels, Record, is_device_id};
pub use registry::Device;
pub use sessions::{ActiveUser, Channel, Mail, Present, SessionPlace, Sessions};

use record::Note;

/// Devices of one user that are remembered; one more, and the one unseen for longest is forgotten.
const MAX_DEVICES_PER_USER: usize = 100;

/// Devices of all users: some hundred megabytes of the log's directory, and minutes to go through.
const MAX_DEVICES: usize = 1_000_000;

/// Devices with notes that wait to be written. Beyond, what is reported of others is passed over: they
/// will be seen again.
const MAX_NOTED: usize = 65_536;

/// Users are told of a device that synced at most once in so long.
const SYNCED_INTERVAL: Duration = Duration::from_secs(60);

/// A device, named wholly.
type Key = (UserId, Arc<str>);

/// The registry. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Devices {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    feed: CurrentFeed,
    sessions: Sessions,
    limits: Limits,
    notes: Mutex<Notes>,
    /// Rung when something is noted that is worth writing at once.
    bell: Notify,
    /// Held by whoever changes what the log keeps: each change reads first.
    turn: Mutex<()>,
    /// Devices in the log, as of the last count.
    total: AtomicUsize,
}

#[derive(Debug, Clone, Copy)]
struct Limits {
    per_user: usize,
    in_all: usize,
    /// Microseconds.
    max_age: i64,
}

/// What was reported and is not in the log yet.
#[derive(Debug, Default)]
struct Notes {
    waiting: BTreeMap<Key, Note>,
    /// Those of them that should not wait long.
    urgent: BTreeSet<Key>,
    /// Being written now.
    writing: BTreeMap<Key, Note>,
}

impl Devices {
    /// Devices that were not seen for `max_age` are forgotten.
    pub fn new(feed: CurrentFeed, sessions: Sessions, max_age: Duration) -> Self {
        let max_age = i64::try_from(max_age.as_micros()).unwrap_or(i64::MAX);
        Self::with_limits(
            feed,
            sessions,
            Limits { per_user: MAX_DEVICES_PER_USER, in_all: MAX_DEVICES, max_age },
        )
    }

    fn with_limits(feed: CurrentFeed, sessions: Sessions, limits: Limits) -> Self {
        Devices {
            inner: Arc::new(Inner {
                feed,
                sessions,
                limits,
                notes: Mutex::default(),
                bell: Notify::new(),
                turn: Mutex::default(),
                total: AtomicUsize::new(0),
            }),
        }
    }

    /// A place for one more live session of a device, if the user has one; the device is seen on entering
    /// and on leaving.
    pub fn enter(
        &self,
        user: &UserId,
        device: &Arc<str>,
        labels: Labels,
        channel: Channel,
        most: usize,
    ) -> Option<SessionPlace> {
        let place = self.inner.sessions.enter(user, device, channel, most)?;
        self.seen(user, device, labels);
        Some(place.reporting_to(self.clone()))
    }

    /// A device made itself known: it connected, or sent a request. Never blocks.
    pub fn seen(&self, user: &UserId, device: &Arc<str>, labels: Labels) {
        self.note(user, device, true, Note { labels, ..Note::at(now()) });
    }

    /// A device got all there is for it, by a sync.
    pub fn answered(&self, user: &UserId, device: &Arc<str>) {
        let now = now();
        self.note(user, device, true, Note { synced: Some(now), ..Note::at(now) });
    }

    /// A device acknowledged that it has everything up to a cursor of this epoch. Of a device that is not
    /// here now (it was removed a moment ago) nothing is noted.
    pub fn acked(&self, user: &UserId, device: &Arc<str>, cursor: Cursor) {
        if self.inner.sessions.has(user, device) {
            let now = now();
            self.note(user, device, false, Note { cursor: Some(cursor), synced: Some(now), ..Note::at(now) });
        }
    }

    /// After an explicit full sync of a device: the user's other devices that are here are told, at most
    /// once a minute.
    pub fn synced(&self, user: &UserId, device: &str) {
        self.inner.sessions.tell_synced(user, device, now(), SYNCED_INTERVAL);
    }

    fn note(&self, user: &UserId, device: &Arc<str>, urgent: bool, note: Note) {
        let key = (user.clone(), Arc::clone(device));
        let mut notes = self.notes();
        let full = notes.waiting.len() >= MAX_NOTED;
        match notes.waiting.get_mut(&key) {
            Some(known) => known.add(note),
            None if full => {
                metrics::counter!("rowcast_devices_passed_over_total").increment(1);
                return;
            }
            None => drop(notes.waiting.insert(key.clone(), note)),
        }
        if urgent {
            notes.urgent.insert(key);
            drop(notes);
            self.inner.bell.notify_one();
        }
    }

    /// Reports of devices that are not in the log yet.
    pub fn unwritten(&self) -> usize {
        let notes = self.notes();
        notes.waiting.len() + notes.writing.len()
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.inner.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Microseconds since 1970.
fn now() -> i64 {
    PgTimestamp::now().unix_micros()
}
