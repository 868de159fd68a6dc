//! What is kept of one device, and under which name. Pure.

use serde::{Deserialize, Serialize};

use crate::auth::UserId;
use crate::cursor::Cursor;
use crate::log::LASTING;
use crate::topic::encode_segment;

/// When a device was last seen is written at most so often, in microseconds.
const SEEN_INTERVAL: i64 = 60_000_000;

/// The longest free text about a device, in bytes.
const MAX_LABEL_BYTES: usize = 128;

const MAX_DEVICE_ID_BYTES: usize = 64;

/// Whether a text may name a device: 1 to 64 of `A-Z a-z 0-9 _ -`.
pub fn is_device_id(text: &str) -> bool {
    (1..=MAX_DEVICE_ID_BYTES).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

/// What a device says about itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Labels {
    device_type: Option<String>,
    app_version: Option<String>,
}

impl Labels {
    /// A text that is empty, too long or holds control characters is left out.
    pub fn new(device_type: Option<String>, app_version: Option<String>) -> Self {
        Labels {
            device_type: device_type.filter(|text| is_label(text)),
            app_version: app_version.filter(|text| is_label(text)),
        }
    }
}

fn is_label(text: &str) -> bool {
    (1..=MAX_LABEL_BYTES).contains(&text.len()) && !text.chars().any(char::is_control)
}

/// What the log keeps of a device. Times in microseconds since 1970.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app_version: Option<String>,
    /// Exact to a minute.
    pub last_seen: i64,
    /// When it last acknowledged a cursor, or had everything by a sync. Exact to a minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_sync: Option<i64>,
    /// The last one that it acknowledged; maybe of an epoch that is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<Cursor>,
}

/// Something new about a device.
#[derive(Debug, Clone, Default)]
pub(super) struct Note {
    pub(super) labels: Labels,
    pub(super) seen: i64,
    pub(super) synced: Option<i64>,
    pub(super) cursor: Option<Cursor>,
}

impl Note {
    pub(super) fn at(seen: i64) -> Self {
        Note { seen, ..Note::default() }
    }

    /// What a later note says counts more.
    pub(super) fn add(&mut self, later: Note) {
        let Note { labels, seen, synced, cursor } = later;
        put(&mut self.labels.device_type, labels.device_type);
        put(&mut self.labels.app_version, labels.app_version);
        self.seen = self.seen.max(seen);
        put(&mut self.synced, synced);
        put(&mut self.cursor, cursor);
    }
}

fn put<T>(place: &mut Option<T>, new: Option<T>) {
    if new.is_some() {
        *place = new;
    }
}

impl Record {
    pub(super) fn with(mut self, note: &Note) -> Self {
        put(&mut self.device_type, note.labels.device_type.clone());
        put(&mut self.app_version, note.labels.app_version.clone());
        self.last_seen = self.last_seen.max(note.seen);
        put(&mut self.last_sync, note.synced);
        put(&mut self.cursor, note.cursor);
        self
    }

    /// Whether this says more than what is in the log, but for times that are nearly the same.
    pub(super) fn is_news(&self, kept: &Record) -> bool {
        let later = |new: i64, old: i64| new.saturating_sub(old) >= SEEN_INTERVAL;
        let sync_is_news = match (self.last_sync, kept.last_sync) {
            (Some(new), Some(old)) => later(new, old),
            (new, old) => new != old,
        };
        self.device_type != kept.device_type
            || self.app_version != kept.app_version
            || self.cursor != kept.cursor
            || later(self.last_seen, kept.last_seen)
            || sync_is_news
    }
}

/// Where all devices stand in the log.
pub(super) fn all() -> String {
    format!("{LASTING}device/")
}

/// Where a user's devices stand. Issuer and subject are encoded, so that no user's name is the beginning
/// of another's. `None` for a name that no token has.
pub(super) fn of_user(user: &UserId) -> Option<String> {
    let mut name = all();
    name.push_str(&user_name(user)?);
    name.push(':');
    Some(name)
}

/// Issuer and subject as one text, different for different users.
pub(super) fn user_name(user: &UserId) -> Option<String> {
    let mut name = String::new();
    if let Some(issuer) = &user.issuer {
        encode_segment(issuer, &mut name).ok()?;
    }
    name.push(':');
    encode_segment(&user.subject, &mut name).ok()?;
    Some(name)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn user(issuer: Option<&str>, subject: &str) -> UserId {
        UserId { issuer: issuer.map(str::to_owned), subject: subject.to_owned() }
    }

    #[test]
    fn no_users_devices_stand_under_anothers_name() {
        let long = "x".repeat(256);
        let users = [
            user(None, "42"),
            user(None, "4"),
            user(Some("a"), "42"),
            user(Some("a:"), "42"),
            user(None, "a:42"),
            user(Some("a"), ":42"),
            user(None, "42:phone"),
            user(None, "42/phone"),
            user(None, &long),
        ];
        let names: Vec<_> = users.iter().map(|user| of_user(user).unwrap()).collect();
        for (one, name) in names.iter().enumerate() {
            for (other, longer) in names.iter().enumerate() {
                assert_eq!(longer.starts_with(name.as_str()), one == other, "{name} {longer}");
            }
        }
        assert_eq!(of_user(&user(None, "")), None);
        assert_eq!(of_user(&user(None, &"x".repeat(257))), None);
    }

    #[test]
    fn labels_are_short_plain_texts() {
        let labels = |text: &str| Labels::new(Some(text.to_owned()), None).device_type;
        assert_eq!(labels("iPhone 15, é"), Some("iPhone 15, é".to_owned()));
        for bad in ["", "a\nb", "\u{0}", &"x".repeat(129)] {
            assert_eq!(labels(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn times_alone_are_news_once_a_minute() {
        let kept = Record::default().with(&Note { synced: Some(5), ..Note::at(10) });
        assert!(kept.is_news(&Record::default()), "the first sync");
        let soon = Note { synced: Some(SEEN_INTERVAL), ..Note::at(SEEN_INTERVAL) };
        assert!(!kept.clone().with(&soon).is_news(&kept));
        assert!(kept.clone().with(&Note::at(SEEN_INTERVAL + 10)).is_news(&kept));
        let typed = Labels::new(Some("ios".to_owned()), None);
        assert!(kept.clone().with(&Note { labels: typed, ..Note::at(0) }).is_news(&kept));
    }
}
