//! What a cursor vouches for.
//!
//! A cursor from REST has a fourth part: the number under which the relay keeps the set of topics and
//! tables that the answer covered. So a topic that was granted since comes in full, and one that is no
//! longer granted is told to be dropped; and an answer that never arrived counts for nothing, since its
//! cursor never comes back.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::auth::UserId;
use crate::cursor::{Cursor, ParseCursorError};
use crate::log::{Log, LogError};
use crate::topic::Pattern;

/// Where they are kept beside the log.
const PREFIX: &str = "coverage/";
/// How many are looked at together when all are gone through: a device chooses how large they are.
const FORGET_PAGE: usize = 256;
/// Sets of topics and tables of one user: a few for each kind of its devices. A device names them, so that
/// they must not grow with what it thinks of.
const COVERAGES_OF_USER: usize = 64;

const DAY_MICROS: i64 = 24 * 3600 * 1_000_000;

/// The number of a [`Coverage`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CoverageId(u128);

/// A cursor as REST gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SyncCursor {
    pub cursor: Cursor,
    /// Absent from cursors of a session, which are for the topics that it names.
    pub coverage: Option<CoverageId>,
}

/// A set of topics, and the tables of them that count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Coverage {
    /// Sorted.
    topics: Vec<Pattern>,
    /// Sorted; `None` is all.
    tables: Option<Vec<Arc<str>>>,
}

/// As it is kept.
#[derive(Serialize, Deserialize)]
struct Kept {
    topics: Vec<String>,
    tables: Option<Vec<String>>,
    /// When it was last given out, exact to a day; microseconds since 1970.
    at: i64,
}

impl Coverage {
    pub fn new(topics: &[Pattern], tables: Option<&[Arc<str>]>) -> Self {
        let mut topics = topics.to_vec();
        topics.sort_unstable();
        topics.dedup_by(|later, earlier| earlier.covers(later));
        let tables = tables.map(|tables| {
            let mut tables = tables.to_vec();
            tables.sort_unstable();
            tables.dedup();
            tables
        });
        Coverage { topics, tables }
    }

    pub fn topics(&self) -> &[Pattern] {
        &self.topics
    }

    /// Whether all rows of a table that a reader of `topic` gets are vouched for.
    pub fn covers(&self, topic: &Pattern, table: &str) -> bool {
        self.tables.as_ref().is_none_or(|tables| tables.iter().any(|name| **name == *table))
            && self.topics.iter().any(|own| own.matches(&topic.audience, table))
    }

    pub fn id(&self) -> CoverageId {
        let mut hash = Sha256::new();
        for topic in &self.topics {
            hash.update(topic.to_string());
            hash.update("\n");
        }
        // No name of a table holds a control character.
        for table in self.tables.iter().flatten() {
            hash.update("\0");
            hash.update(&**table);
        }
        hash.update([u8::from(self.tables.is_some())]);
        let mut first = [0; 16];
        first.copy_from_slice(&hash.finalize()[..16]);
        CoverageId(u128::from_be_bytes(first))
    }

    /// Keeps it for those who come back with its number. `now` in microseconds since 1970.
    pub fn remember(&self, log: &dyn Log, user: &UserId, now: i64) -> Result<CoverageId, LogError> {
        let id = self.id();
        let name = name(user, id);
        let known = log.kept(&name)?.and_then(|kept| serde_json::from_slice::<Kept>(&kept).ok());
        if known.is_none_or(|kept| kept.at < now - DAY_MICROS) {
            make_room(log, user)?;
            let topics = self.topics.iter().map(ToString::to_string).collect();
            let tables = self.tables.as_ref().map(|tables| tables.iter().map(ToString::to_string).collect());
            // Texts and numbers always serialise.
            let kept = serde_json::to_vec(&Kept { topics, tables, at: now }).unwrap_or_default();
            log.keep(&name, Some(&kept))?;
        }
        Ok(id)
    }

    /// `None`: it was given out so long ago that it is forgotten, or never.
    pub fn recall(log: &dyn Log, user: &UserId, id: CoverageId) -> Result<Option<Self>, LogError> {
        let Some(kept) = log.kept(&name(user, id))? else { return Ok(None) };
        let unreadable = || LogError::Corrupt("what a cursor vouches for");
        let kept: Kept = serde_json::from_slice(&kept).map_err(|_| unreadable())?;
        let topics = kept.topics.iter().map(|topic| Pattern::parse(topic)).collect::<Result<_, _>>();
        let tables = kept.tables.map(|tables| tables.into_iter().map(Arc::from).collect());
        Ok(Some(Coverage { topics: topics.map_err(|_| unreadable())?, tables }))
    }

    /// Forgets those that were not given out for `days`.
    pub fn forget_old(log: &dyn Log, now: i64, days: i64) -> Result<usize, LogError> {
        let oldest = now - days.saturating_mul(DAY_MICROS);
        let (mut forgotten, mut after) = (0, String::new());
        loop {
            let page = log.kept_page(PREFIX, &after, FORGET_PAGE)?;
            let Some((last, _)) = page.last() else { return Ok(forgotten) };
            after = last.clone();
            for (name, kept) in page {
                if serde_json::from_slice::<Kept>(&kept).map_or(i64::MIN, |kept| kept.at) < oldest {
                    log.keep(&name, None)?;
                    forgotten += 1;
                }
            }
        }
    }
}

/// Forgets the one that was given out longest ago, where a user has too many.
fn make_room(log: &dyn Log, user: &UserId) -> Result<(), LogError> {
    let kept = log.kept_under(&prefix(user))?;
    let age = |value: &[u8]| serde_json::from_slice::<Kept>(value).map_or(i64::MIN, |kept| kept.at);
    let oldest = kept.iter().min_by_key(|(_, value)| age(value));
    match oldest {
        Some((name, _)) if kept.len() >= COVERAGES_OF_USER => log.keep(name, None),
        _ => Ok(()),
    }
}

fn prefix(user: &UserId) -> String {
    let mut hash = Sha256::new();
    // No issuer and an empty one are not the same.
    hash.update([u8::from(user.issuer.is_some())]);
    for part in [user.issuer.as_deref().unwrap_or_default(), &user.subject] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    let mut first = [0; 16];
    first.copy_from_slice(&hash.finalize()[..16]);
    format!("{PREFIX}{:032x}/", u128::from_be_bytes(first))
}

fn name(user: &UserId, id: CoverageId) -> String {
    format!("{}{id}", prefix(user))
}

impl fmt::Display for CoverageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl SyncCursor {
    /// Three parts, as sessions give them, or four.
    pub fn parse(text: &str) -> Result<Self, ParseCursorError> {
        let Some((cursor, coverage)) = text.rsplit_once('.').filter(|(_, last)| last.len() == 32) else {
            return Ok(SyncCursor { cursor: text.parse()?, coverage: None });
        };
        let plain = coverage.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let id = u128::from_str_radix(coverage, 16).ok().filter(|_| plain).ok_or(ParseCursorError)?;
        Ok(SyncCursor { cursor: cursor.parse()?, coverage: Some(CoverageId(id)) })
    }
}

impl fmt::Display for SyncCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.coverage {
            Some(coverage) => write!(f, "{}.{coverage}", self.cursor),
            None => write!(f, "{}", self.cursor),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn coverage(topics: &[&str], tables: Option<&[&str]>) -> Coverage {
        let topics: Vec<Pattern> = topics.iter().map(|topic| Pattern::parse(topic).unwrap()).collect();
        let tables: Option<Vec<Arc<str>>> =
            tables.map(|tables| tables.iter().map(|t| Arc::from(*t)).collect());
        Coverage::new(&topics, tables.as_deref())
    }

    #[test]
    fn the_number_is_of_the_set_and_of_nothing_else() {
        let one = coverage(&["user:42:*", "global:*"], None);
        assert_eq!(one.id(), coverage(&["global:*", "user:42:orders", "user:42:*", "global:*"], None).id());
        let others = [
            coverage(&["user:42:*"], None),
            coverage(&["user:42:*", "global:*"], Some(&[])),
            coverage(&["user:42:*", "global:*"], Some(&["orders"])),
            coverage(&["user:42:*", "global:*"], Some(&["orders", "meals"])),
        ];
        for (place, other) in others.iter().enumerate() {
            assert_ne!(other.id(), one.id());
            assert!(others[..place].iter().all(|earlier| earlier.id() != other.id()));
        }
    }

    #[test]
    fn it_covers_what_it_names() {
        let topic = |text| Pattern::parse(text).unwrap();
        let some = coverage(&["user:42:*", "team:7:notes"], Some(&["notes", "orders"]));
        assert!(some.covers(&topic("user:42:*"), "orders") && some.covers(&topic("team:7:*"), "notes"));
        assert!(!some.covers(&topic("user:42:*"), "meals"), "its tables were narrowed");
        assert!(!some.covers(&topic("team:7:*"), "orders") && !some.covers(&topic("user:4:*"), "orders"));
    }

    #[test]
    fn cursors_have_three_or_four_parts() {
        let three = "00000000000000ab.0000000100000000.00000003";
        let four = format!("{three}.{}", coverage(&["user:1:*"], None).id());
        for text in [three, &four] {
            assert_eq!(SyncCursor::parse(text).unwrap().to_string(), text);
        }
        let short = &four[..four.len() - 1];
        for bad in
            [&four.to_uppercase(), &format!("{four}.1"), short, "", &four[1..], &four.replacen('.', "+", 1)]
        {
            assert!(SyncCursor::parse(bad).is_err(), "{bad}");
        }
    }
}
