//! Live sessions, by user, and what each is to be told.
//!
//! A session's mailbox holds the newest word of each kind, so that it is bounded however slow the
//! session is.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use smallvec::SmallVec;

use super::record::user_name;
use super::{Devices, Labels, now};
use crate::auth::UserId;
use crate::bell::Bell;

/// The devices of a user beyond this many are not remembered for telling a write's source.
const MAX_KNOWN_DEVICES: usize = 64;

/// Live sessions. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Sessions {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    users: HashMap<UserId, UserSessions>,
    /// When users were last told of a device that synced; those of long ago are dropped.
    told: HashMap<UserId, i64>,
}

#[derive(Debug, Default)]
struct UserSessions {
    live: SmallVec<[Live; 1]>,
    /// Ids of devices seen since the user's first live session.
    devices: SmallVec<[Arc<str>; 1]>,
}

#[derive(Debug)]
struct Live {
    device: Arc<str>,
    channel: Channel,
    /// Microseconds since 1970.
    since: i64,
    removed: bool,
    mailbox: Arc<Mailbox>,
}

/// How a session is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    WebSocket,
    /// An event stream or a waiting poll.
    Http,
}

/// What a session is told from elsewhere.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mail {
    /// Its device was removed: the session ends.
    pub removed: bool,
    /// Another device of the user synced in full: which one, and when (microseconds since 1970).
    pub synced: Option<(Arc<str>, i64)>,
}

#[derive(Debug, Default)]
struct Mailbox {
    mail: Mutex<Mail>,
    /// Rung when there is some.
    bell: OnceLock<Arc<Bell>>,
}

/// A session's place; given back when dropped.
#[derive(Debug)]
pub struct SessionPlace {
    sessions: Sessions,
    user: UserId,
    device: Arc<str>,
    mailbox: Arc<Mailbox>,
    devices: Option<Devices>,
}

/// Sessions, and the users and devices that they are of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Present {
    pub sessions: usize,
    pub users: usize,
    pub devices: usize,
}

/// A user with live sessions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActiveUser {
    pub user: UserId,
    /// The user's place in the order of all.
    pub place: String,
    pub sessions: usize,
    pub devices: usize,
    /// When the oldest of the sessions began, microseconds since 1970.
    pub since: i64,
}

impl Sessions {
    /// A place for one more session of a user, if there is one.
    pub fn enter(
        &self,
        user: &UserId,
        device: &Arc<str>,
        channel: Channel,
        most: usize,
    ) -> Option<SessionPlace> {
        let mut inner = self.lock();
        let entry = inner.users.entry(user.clone()).or_default();
        if entry.live.len() >= most {
            return None;
        }
        let mailbox = Arc::<Mailbox>::default();
        entry.live.push(Live {
            device: Arc::clone(device),
            channel,
            since: now(),
            removed: false,
            mailbox: Arc::clone(&mailbox),
        });
        if entry.devices.len() < MAX_KNOWN_DEVICES && !entry.devices.contains(device) {
            entry.devices.push(Arc::clone(device));
        }
        metrics::gauge!("rowcast_sessions").increment(1.0);
        Some(SessionPlace {
            sessions: self.clone(),
            user: user.clone(),
            device: Arc::clone(device),
            mailbox,
            devices: None,
        })
    }

    /// Whether this user is known to have a device of this name.
    pub fn knows_device(&self, user: &UserId, device: &str) -> bool {
        self.lock().users.get(user).is_some_and(|entry| entry.devices.iter().any(|own| **own == *device))
    }

    /// Live sessions, and users that have one.
    pub fn count(&self) -> (usize, usize) {
        let inner = self.lock();
        (inner.users.values().map(|entry| entry.live.len()).sum(), inner.users.len())
    }

    /// Distinct devices with a live user.
    pub fn devices(&self) -> usize {
        self.lock().users.values().map(|entry| entry.devices.len()).sum()
    }

    /// Whether a device has a live session.
    pub fn has(&self, user: &UserId, device: &str) -> bool {
        self.lock().users.get(user).is_some_and(|entry| entry.of(device).next().is_some())
    }

    /// Who is here over one kind of connection.
    pub fn present(&self, channel: Channel) -> Present {
        let mut present = Present::default();
        for entry in self.lock().users.values() {
            let live = || entry.live.iter().filter(|live| live.channel == channel);
            present.sessions += live().count();
            present.users += usize::from(live().next().is_some());
            present.devices += live().map(|live| &live.device).collect::<HashSet<_>>().len();
        }
        present
    }

    /// Users with live sessions behind a place in the order of all: at most so many, and whether there
    /// are more.
    pub fn active_users(&self, after: &str, most: usize) -> (Vec<ActiveUser>, bool) {
        let inner = self.lock();
        let mut first = BTreeMap::new();
        let mut more = false;
        for (user, entry) in &inner.users {
            let Some(place) = user_name(user).filter(|place| place.as_str() > after) else { continue };
            first.insert(place, (user, entry));
            if first.len() > most {
                first.pop_last();
                more = true;
            }
        }
        let active = |(place, (user, entry)): (String, (&UserId, &UserSessions))| ActiveUser {
            user: user.clone(),
            place,
            sessions: entry.live.len(),
            devices: entry.live.iter().map(|live| &live.device).collect::<HashSet<_>>().len(),
            since: entry.live.iter().map(|live| live.since).min().unwrap_or_default(),
        };
        (first.into_iter().map(active).collect(), more)
    }

    /// Tells a user's sessions of other devices that one synced, if they were not told so lately.
    pub(super) fn tell_synced(&self, user: &UserId, device: &str, now: i64, interval: Duration) {
        let interval = i64::try_from(interval.as_micros()).unwrap_or(i64::MAX);
        let mut inner = self.lock();
        let Inner { users, told } = &mut *inner;
        let Some(entry) = users.get(user) else { return };
        if told.get(user).is_some_and(|at| now.saturating_sub(*at) < interval) {
            return;
        }
        let mut others = entry.live.iter().filter(|live| *live.device != *device).peekable();
        if others.peek().is_none() {
            return;
        }
        let name: Arc<str> = device.into();
        others.for_each(|live| live.mailbox.put(|mail| mail.synced = Some((Arc::clone(&name), now))));
        told.retain(|_, at| now.saturating_sub(*at) < interval);
        told.insert(user.clone(), now);
    }

    /// Ends a device's sessions.
    pub(super) fn remove(&self, user: &UserId, device: &str) {
        let mut inner = self.lock();
        let Some(entry) = inner.users.get_mut(user) else { return };
        for live in entry.live.iter_mut().filter(|live| *live.device == *device && !live.removed) {
            live.removed = true;
            live.mailbox.put(|mail| mail.removed = true);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl UserSessions {
    fn of(&self, device: &str) -> impl Iterator<Item = &Live> {
        self.live.iter().filter(move |live| *live.device == *device && !live.removed)
    }
}

impl Mailbox {
    fn put(&self, put: impl FnOnce(&mut Mail)) {
        put(&mut self.mail.lock().unwrap_or_else(PoisonError::into_inner));
        if let Some(bell) = self.bell.get() {
            bell.ring();
        }
    }
}

impl SessionPlace {
    pub(super) fn reporting_to(mut self, devices: Devices) -> Self {
        self.devices = Some(devices);
        self
    }

    /// Mail rings this bell from now on; what came before is to be looked for.
    pub fn announce_to(&self, bell: &Arc<Bell>) {
        // A place is of one session.
        let _ = self.mailbox.bell.set(Arc::clone(bell));
    }

    /// What came since. Never blocks.
    pub fn take_mail(&self) -> Mail {
        std::mem::take(&mut *self.mailbox.mail.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for SessionPlace {
    fn drop(&mut self) {
        let mut inner = self.sessions.lock();
        let mut removed = false;
        if let Some(entry) = inner.users.get_mut(&self.user) {
            let own = |live: &Live| Arc::ptr_eq(&live.mailbox, &self.mailbox);
            if let Some(at) = entry.live.iter().position(own) {
                removed = entry.live.swap_remove(at).removed;
            }
            if entry.live.is_empty() {
                inner.users.remove(&self.user);
            }
        }
        drop(inner);
        metrics::gauge!("rowcast_sessions").decrement(1.0);
        // A device that was removed is not seen any more by its going.
        if let Some(devices) = self.devices.take().filter(|_| !removed) {
            devices.seen(&self.user, &self.device, Labels::default());
        }
    }
}
