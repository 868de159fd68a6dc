//! Reading and changing what the log keeps of devices. Everything here blocks on the disk.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};

use super::record::{self, Note, Record};
use super::{Devices, Key, now};
use crate::auth::UserId;
use crate::log::{Log, LogError};

/// How many devices are looked at together when all are gone through.
const SWEEP_PAGE: usize = 1_000;

/// When there are too many devices in all, one in so many is forgotten: those unseen for longest.
const THINNING: usize = 10;

/// A device as its user is told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    pub id: Arc<str>,
    pub record: Record,
    /// It has a live session.
    pub is_active: bool,
}

impl Devices {
    /// A user's devices, those seen last first.
    pub fn of(&self, log: &dyn Log, user: &UserId) -> Result<Vec<Device>, LogError> {
        let Some(prefix) = record::of_user(user) else { return Ok(Vec::new()) };
        // Notes first: what is written meanwhile is then in the log as well.
        let noted = self.noted(user);
        let mut records: BTreeMap<Arc<str>, Record> = BTreeMap::new();
        for (name, value) in log.kept_under(&prefix)? {
            if let (Some(id), Some(record)) = (name.strip_prefix(&prefix), read(&value)) {
                records.insert(id.into(), record);
            }
        }
        for (id, note) in noted {
            let record = records.entry(id).or_default();
            *record = std::mem::take(record).with(&note);
        }
        let mut devices: Vec<Device> =
            records.into_iter().filter_map(|(id, record)| self.told(user, id, record)).collect();
        devices.sort_by(|a, b| b.record.last_seen.cmp(&a.record.last_seen).then_with(|| a.id.cmp(&b.id)));
        Ok(devices)
    }

    /// One device of a user.
    pub fn find(&self, log: &dyn Log, user: &UserId, id: &str) -> Result<Option<Device>, LogError> {
        let Some(prefix) = record::of_user(user) else { return Ok(None) };
        let key: Key = (user.clone(), id.into());
        let noted = self.note_of(&key);
        let kept = log.kept(&format!("{prefix}{id}"))?.and_then(|value| read(&value));
        let record = match (kept, noted) {
            (None, None) => return Ok(None),
            (kept, Some(note)) => kept.unwrap_or_default().with(&note),
            (Some(kept), None) => kept,
        };
        Ok(self.told(user, key.1, record))
    }

    /// Forgets a device and ends its sessions. Whether there was one.
    pub fn forget(&self, log: &dyn Log, user: &UserId, id: &str) -> Result<bool, LogError> {
        let Some(prefix) = record::of_user(user) else { return Ok(false) };
        let _turn = self.turn();
        let known = self.find(log, user, id)?.is_some();
        // First the sessions, so that none of them reports the device again.
        self.inner.sessions.remove(user, id);
        self.drop_notes(&(user.clone(), id.into()));
        let name = format!("{prefix}{id}");
        if log.kept(&name)?.is_some() {
            log.keep(&name, None)?;
            self.inner.total.fetch_sub(1, Ordering::Relaxed);
        }
        Ok(known)
    }

    /// Writes what was noted of devices, as far as it is news.
    pub(super) fn write(&self, log: &dyn Log, notes: &[(Key, Note)]) -> Result<(), LogError> {
        let _turn = self.turn();
        for (key, note) in notes {
            // Forgotten a moment ago.
            if !self.notes().writing.contains_key(key) {
                continue;
            }
            let Some(prefix) = record::of_user(&key.0) else { continue };
            let name = format!("{prefix}{}", key.1);
            let kept = log.kept(&name)?.and_then(|value| read(&value));
            let new = kept.clone().unwrap_or_default().with(note);
            let wanted = match &kept {
                Some(kept) => new.is_news(kept),
                None => self.make_room(log, &key.0, &prefix)?,
            };
            if wanted {
                log.keep(&name, Some(&encode(&new)?))?;
                if kept.is_none() {
                    self.inner.total.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        Ok(())
    }

    /// Whether there is room for one more device of a user, if need be by forgetting the user's device
    /// that was unseen for longest.
    fn make_room(&self, log: &dyn Log, user: &UserId, prefix: &str) -> Result<bool, LogError> {
        if self.inner.total.load(Ordering::Relaxed) >= self.inner.limits.in_all {
            self.sweep(log)?;
        }
        let mut devices = Vec::new();
        for (name, value) in log.kept_under(prefix)? {
            // What cannot be read goes first.
            devices.push((read(&value).map_or(0, |record| record.last_seen), name));
        }
        devices.sort_unstable();
        let mut too_many = (devices.len() + 1).saturating_sub(self.inner.limits.per_user);
        for (_, name) in devices {
            if too_many == 0 {
                break;
            }
            if !self.inner.sessions.has(user, name.strip_prefix(prefix).unwrap_or_default()) {
                log.keep(&name, None)?;
                self.inner.total.fetch_sub(1, Ordering::Relaxed);
                too_many -= 1;
            }
        }
        Ok(too_many == 0)
    }

    /// Goes through all devices: counts them, and forgets those unseen for too long.
    pub(super) fn sweep_all(&self, log: &dyn Log) -> Result<(), LogError> {
        let _turn = self.turn();
        self.sweep(log)
    }

    /// With the turn held. A device that is here for longer than it would be remembered is seen again
    /// when it goes.
    fn sweep(&self, log: &dyn Log) -> Result<(), LogError> {
        let oldest = now().saturating_sub(self.inner.limits.max_age);
        let mut seen = self.forget_before(log, oldest)?;
        if seen.len() >= self.inner.limits.in_all {
            let (before, most) = (seen.len(), seen.len() / THINNING);
            let (_, threshold, _) = seen.select_nth_unstable(most);
            let threshold = threshold.saturating_add(1);
            seen = self.forget_before(log, threshold)?;
            tracing::warn!(
                devices = before,
                forgotten = before - seen.len(),
                "more devices than are remembered; those unseen for longest were forgotten"
            );
        }
        self.inner.total.store(seen.len(), Ordering::Relaxed);
        Ok(())
    }

    /// When those that are left were last seen.
    fn forget_before(&self, log: &dyn Log, oldest: i64) -> Result<Vec<i64>, LogError> {
        let (prefix, mut after, mut left) = (record::all(), String::new(), Vec::new());
        loop {
            let page = log.kept_page(&prefix, &after, SWEEP_PAGE)?;
            let Some((last, _)) = page.last() else { return Ok(left) };
            after = last.clone();
            for (name, value) in page {
                match read(&value) {
                    Some(record) if record.last_seen >= oldest => left.push(record.last_seen),
                    _ => log.keep(&name, None)?,
                }
            }
        }
    }

    /// As it is told: a device that is here is seen now, one unseen for too long is none.
    fn told(&self, user: &UserId, id: Arc<str>, mut record: Record) -> Option<Device> {
        let is_active = self.inner.sessions.has(user, &id);
        if is_active {
            record.last_seen = now();
        } else if self.is_expired(&record) {
            return None;
        }
        Some(Device { id, record, is_active })
    }

    fn is_expired(&self, record: &Record) -> bool {
        record.last_seen < now().saturating_sub(self.inner.limits.max_age)
    }

    fn noted(&self, user: &UserId) -> BTreeMap<Arc<str>, Note> {
        let notes = self.notes();
        let first: Key = (user.clone(), "".into());
        let mut noted: BTreeMap<Arc<str>, Note> = BTreeMap::new();
        for of_all in [&notes.writing, &notes.waiting] {
            for ((_, id), note) in of_all.range(first.clone()..).take_while(|((of, _), _)| of == user) {
                noted.entry(Arc::clone(id)).or_default().add(note.clone());
            }
        }
        noted
    }

    fn drop_notes(&self, key: &Key) {
        let mut notes = self.notes();
        notes.waiting.remove(key);
        notes.writing.remove(key);
    }

    fn note_of(&self, key: &Key) -> Option<Note> {
        let notes = self.notes();
        match (notes.writing.get(key), notes.waiting.get(key)) {
            (Some(writing), Some(waiting)) => {
                let mut note = writing.clone();
                note.add(waiting.clone());
                Some(note)
            }
            (one, other) => one.or(other).cloned(),
        }
    }

    fn turn(&self) -> MutexGuard<'_, ()> {
        self.inner.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A record that another version wrote and this one cannot read is as good as none: the device will be
/// seen again.
fn read(value: &[u8]) -> Option<Record> {
    serde_json::from_slice(value).ok()
}

fn encode(record: &Record) -> Result<Vec<u8>, LogError> {
    serde_json::to_vec(record).map_err(|_| LogError::Corrupt("a device that cannot be written"))
}
