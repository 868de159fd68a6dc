//! How often travellers did or met what may be rare.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::AddAssign;

/// What a few seeds together must have tried: else the oracle tests less than it says. (That a table has to
/// be synced comes of what a DBA does or what breaks, and is counted besides.)
pub(super) const ALL: [&str; 38] = [
    "ack",
    "batched socket",
    "change",
    "cursors of their own on a socket",
    "device removed",
    "divided anew",
    "events compressed",
    "events from a cursor",
    "events from Last-Event-ID",
    "events gone on with",
    "events through GET",
    "events through POST",
    "full sync",
    "full sync by force",
    "lagged",
    "lagged events",
    "newly granted",
    "not granted any more",
    "poll by cursor",
    "poll by time",
    "poll that was cut",
    "poll through GET",
    "poll through POST",
    "renewed on a socket",
    "replay",
    "rested",
    "revoked over REST",
    "revoked on a socket",
    "sent to the log",
    "snapshot",
    "socket",
    "subscribed again",
    "sync as lines",
    "sync by cursor",
    "sync by time",
    "sync in milliseconds",
    "sync through GET",
    "unsubscribed",
];

#[derive(Debug, Default, Clone)]
pub(super) struct Done(BTreeMap<&'static str, u64>);

impl Done {
    pub(super) const fn new() -> Self {
        Done(BTreeMap::new())
    }

    pub(super) fn count(&mut self, what: &'static str) {
        *self.0.entry(what).or_default() += 1;
    }

    /// What was not tried yet.
    pub(super) fn missing(&self) -> Vec<&'static str> {
        ALL.into_iter().filter(|what| !self.0.contains_key(what)).collect()
    }
}

impl AddAssign for Done {
    fn add_assign(&mut self, other: Done) {
        for (what, count) in other.0 {
            *self.0.entry(what).or_default() += count;
        }
    }
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, (what, count)) in self.0.iter().enumerate() {
            let comma = if place > 0 { ", " } else { "" };
            write!(f, "{comma}{what} {count}")?;
        }
        Ok(())
    }
}
