//! Whether an answer may still be given. Asked behind every reading: what changes rights is in force before
//! the log has it, so what was read under rights that are gone is not sent.

use super::error::SyncError;
use crate::auth::{AuthError, Identity};
use crate::feed::Feed;
use crate::timestamp::PgTimestamp;
use crate::topic::Pattern;

pub(super) fn check(feed: &Feed, identity: &Identity, topics: &[Pattern]) -> Result<(), SyncError> {
    // Of a feed that is over nobody hears of rights any more.
    if feed.hub.closed().is_cancelled() {
        return Err(SyncError::NotCaughtUp);
    }
    let now = PgTimestamp::now().unix_micros().div_euclid(1_000_000);
    if identity.has_expired(now) {
        return Err(AuthError::Expired.into());
    }
    match feed.rights.recheck(identity, topics)? {
        Some(pattern) => Err(SyncError::NotGranted(pattern)),
        None => Ok(()),
    }
}
