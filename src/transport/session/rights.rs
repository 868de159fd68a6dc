//! A session's rights as they change under it: rows of the database that grant, and revocation.
//!
//! A change is in force before anything of the commit that brought it is published. So a session that
//! looks here after it took something, and before it shows it, never shows what is no longer granted.

use std::sync::Arc;

use super::{Frame, Session};
use crate::auth::{Identity, RightsWatch};
use crate::bell::Bell;
use crate::feed::Feed;
use crate::topic::Pattern;
use crate::transport::protocol::{Answer, Closing};

#[derive(Debug)]
pub(super) struct Rights {
    watch: RightsWatch,
    /// Of anyone's rights, when this session's were looked at.
    changes: u64,
    version: u64,
    revoked: bool,
}

impl Rights {
    /// From now on changes are seen, and ring; the identity is granted what it is at this moment.
    pub(super) fn of(feed: &Feed, identity: &mut Identity, bell: &Arc<Bell>) -> Self {
        let watch = feed.rights.watch(&identity.user, Some(bell));
        let (changes, version) = (watch.changes(), watch.version());
        let revoked = watch.rights().admit(identity).is_err();
        Rights { watch, changes, version, revoked }
    }

    pub(super) fn check(&self) -> Result<(), Closing> {
        if self.revoked { Err(Closing::Token("token_revoked")) } else { Ok(()) }
    }
}

impl Session {
    /// Completes once the session's token is revoked. Cancel-safe.
    pub(super) async fn revoked(&self) {
        self.rights.watch.revoked(&self.identity).await;
    }

    /// Ends what is no longer granted, and tells what is granted now. After a revocation nothing is left.
    pub(super) fn apply_rights(&mut self, out: &mut Vec<Frame>) {
        let changes = self.rights.watch.changes();
        if changes == self.rights.changes {
            return;
        }
        self.rights.changes = changes;
        let version = self.rights.watch.version();
        if version == self.rights.version {
            return;
        }
        self.rights.version = version;
        let before = self.identity.grants.clone();
        if self.rights.watch.rights().admit(&mut self.identity).is_err() {
            self.rights.revoked = true;
            let all: Vec<Pattern> = self.subscriptions.patterns().cloned().collect();
            for pattern in &all {
                self.remove(pattern);
            }
            return;
        }
        let now = &self.identity.grants;
        let lost = |pattern: &&Pattern| !now.covers(pattern);
        let gone: Vec<Pattern> = self.subscriptions.patterns().filter(lost).cloned().collect();
        // What is no longer granted is told also where it is not subscribed: rows may have come by sync.
        let mut forget: Vec<&Pattern> = before.patterns().iter().filter(lost).chain(&gone).collect();
        forget.sort_unstable();
        forget.dedup();
        if !forget.is_empty() {
            let topics = forget.iter().map(ToString::to_string).collect();
            out.push(Answer::Revoked { topics }.to_json().into());
        }
        let new = now.patterns().iter().filter(|pattern| !before.covers(pattern));
        let topics: Vec<String> = new.map(ToString::to_string).collect();
        if !topics.is_empty() {
            out.push(Answer::Granted { r#ref: None, topics }.to_json().into());
        }
        for pattern in &gone {
            self.remove(pattern);
        }
    }
}
