//! Rights that change while tokens live: grants that rows of the database make, and the revocation list.
//!
//! Ingest applies what a commit changed before anything of that commit is published, so whoever looks
//! after reading the log or an outbox decides by rights at least as new as what was read. A session
//! watches its own user; the others are not woken.
//!
//! Invariants: a grant that several rows make ends with the last of them; a revoked token is admitted
//! by no one, whatever it is granted. Must not know: tables, rows, positions.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use smallvec::SmallVec;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use super::{AuthError, Identity, UserId};
use crate::bell::Bell;
use crate::topic::Pattern;

/// A user as the database names one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamedUser {
    /// `None`: of whatever issuer.
    pub issuer: Option<Arc<str>>,
    pub subject: Arc<str>,
}

/// One change of rights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RightsChange {
    /// One more row grants this.
    Grant(NamedUser, Pattern),
    /// One row less.
    Ungrant(NamedUser, Pattern),
    /// Tokens issued before this (microseconds since 1970) count no more.
    Revoke {
        user: NamedUser,
        before: i64,
    },
    Unrevoke(NamedUser),
}

/// The rights in force now, shared by all who admit tokens.
#[derive(Debug, Default)]
pub struct LiveRights {
    state: RwLock<State>,
    /// Tokens come from several issuers: who is named without one is nobody.
    several_issuers: AtomicBool,
    /// Another number after each change of anyone's rights.
    changes: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    /// How many rows grant each pattern.
    granted: HashMap<NamedUser, BTreeMap<Pattern, u32>>,
    revoked: HashMap<NamedUser, i64>,
    /// By subject, so that a change that names no issuer finds them.
    watched: HashMap<Arc<str>, Arc<Watched>>,
}

#[derive(Debug, Default)]
struct Watched {
    version: AtomicU64,
    changed: Notify,
    /// Those of the user's sessions.
    bells: Mutex<SmallVec<[Arc<Bell>; 1]>>,
}

/// Tells when the rights of one user changed.
#[derive(Debug)]
pub struct RightsWatch {
    rights: Arc<LiveRights>,
    subject: Arc<str>,
    watched: Arc<Watched>,
    /// Rung at each change, until the watch ends.
    bell: Option<Arc<Bell>>,
}

impl LiveRights {
    /// From now on a grant counts only for users of the issuer that it names. A revocation without one
    /// still concerns the users of all.
    pub fn set_several_issuers(&self, several: bool) {
        self.several_issuers.store(several, Ordering::Release);
    }

    /// In force for whoever looks once this returns.
    pub fn apply(&self, changes: impl IntoIterator<Item = RightsChange>) {
        let mut state = self.write();
        let mut concerned: Vec<Arc<str>> =
            changes.into_iter().map(|change| state.change(change).subject).collect();
        concerned.sort_unstable();
        concerned.dedup();
        self.tell(concerned.iter().filter_map(|subject| state.watched.get(subject)));
    }

    /// Takes the place of all that was known.
    pub fn replace(&self, changes: impl IntoIterator<Item = RightsChange>) {
        let mut state = self.write();
        state.granted.clear();
        state.revoked.clear();
        changes.into_iter().for_each(|change| drop(state.change(change)));
        self.tell(state.watched.values());
    }

    /// Who is called finds both numbers changed; who finds the one for all changed, finds the own one.
    fn tell<'a>(&self, concerned: impl Iterator<Item = &'a Arc<Watched>> + Clone) {
        for watched in concerned.clone() {
            watched.version.fetch_add(1, Ordering::AcqRel);
        }
        self.changes.fetch_add(1, Ordering::AcqRel);
        concerned.for_each(|watched| watched.call());
    }

    /// Refuses a token that was revoked, and adds to its grants what rows of the database grant now.
    pub fn admit(&self, identity: &mut Identity) -> Result<(), AuthError> {
        let state = self.read();
        if state.refuses(identity) {
            return Err(AuthError::Revoked);
        }
        let named = names(&identity.user);
        let first = usize::from(self.several_issuers.load(Ordering::Acquire));
        let live = named[first..].iter().filter_map(|name| state.granted.get(name));
        identity.grants.set_live(live.flat_map(BTreeMap::keys).cloned().collect());
        Ok(())
    }

    pub fn is_revoked(&self, identity: &Identity) -> bool {
        self.read().refuses(identity)
    }

    /// As [`Self::admit`], for one who was admitted before: whether all of these are still granted, and
    /// if not, which one is not.
    pub fn recheck(&self, identity: &Identity, patterns: &[Pattern]) -> Result<Option<Pattern>, AuthError> {
        let mut now = identity.clone();
        self.admit(&mut now)?;
        Ok(patterns.iter().find(|pattern| !now.grants.covers(pattern)).cloned())
    }

    /// From the return on, `bell` is rung at each change.
    pub fn watch(self: &Arc<Self>, user: &UserId, bell: Option<&Arc<Bell>>) -> RightsWatch {
        let subject: Arc<str> = user.subject.as_str().into();
        let watched = Arc::clone(self.write().watched.entry(Arc::clone(&subject)).or_default());
        watched.bells().extend(bell.cloned());
        RightsWatch { rights: Arc::clone(self), subject, watched, bell: bell.cloned() }
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl State {
    /// Gives the user concerned.
    fn change(&mut self, change: RightsChange) -> NamedUser {
        match change {
            RightsChange::Grant(user, pattern) => {
                *self.granted.entry(user.clone()).or_default().entry(pattern).or_insert(0) += 1;
                user
            }
            RightsChange::Ungrant(user, pattern) => {
                if let Entry::Occupied(mut granted) = self.granted.entry(user.clone()) {
                    if let Some(rows) = granted.get_mut().get_mut(&pattern) {
                        *rows -= 1;
                        if *rows == 0 {
                            granted.get_mut().remove(&pattern);
                        }
                    }
                    if granted.get().is_empty() {
                        granted.remove();
                    }
                }
                user
            }
            RightsChange::Revoke { user, before } => {
                self.revoked.insert(user.clone(), before);
                user
            }
            RightsChange::Unrevoke(user) => {
                self.revoked.remove(&user);
                user
            }
        }
    }

    fn refuses(&self, identity: &Identity) -> bool {
        if self.revoked.is_empty() {
            return false;
        }
        let before = names(&identity.user).iter().filter_map(|name| self.revoked.get(name)).max().copied();
        // `iat` has whole seconds: of a token from the same second nobody can say that it is newer.
        let issued = identity.issued_at.map(|at| at.saturating_mul(1_000_000));
        let newer = |before: i64| before != i64::MAX && issued.is_some_and(|issued| issued >= before);
        before.is_some_and(|before| !newer(before))
    }
}

/// Under which names a user may stand in the database: without its issuer, and with it.
fn names(user: &UserId) -> Vec<NamedUser> {
    let subject: Arc<str> = user.subject.as_str().into();
    let with = |issuer: Option<&str>| NamedUser { issuer: issuer.map(Into::into), subject: subject.clone() };
    match user.issuer.as_deref() {
        Some(issuer) => vec![with(None), with(Some(issuer))],
        None => vec![with(None)],
    }
}

impl Watched {
    fn call(&self) {
        self.changed.notify_waiters();
        self.bells().iter().for_each(|bell| bell.ring());
    }

    fn bells(&self) -> MutexGuard<'_, SmallVec<[Arc<Bell>; 1]>> {
        self.bells.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RightsWatch {
    /// Another number after each change of anyone's rights, where all sessions look: while it is the same, so is
    /// [`Self::version`].
    pub fn changes(&self) -> u64 {
        self.rights.changes.load(Ordering::Acquire)
    }

    /// Another number after each change.
    pub fn version(&self) -> u64 {
        self.watched.version.load(Ordering::Acquire)
    }

    /// Completes with the next change after this call. Cancel-safe.
    pub fn changed(&self) -> Notified<'_> {
        self.watched.changed.notified()
    }

    /// Completes once the token is revoked. Cancel-safe.
    pub async fn revoked(&self, identity: &Identity) {
        loop {
            let changed = self.changed();
            if self.rights.is_revoked(identity) {
                return;
            }
            changed.await;
        }
    }

    pub fn rights(&self) -> &LiveRights {
        &self.rights
    }
}

impl Drop for RightsWatch {
    fn drop(&mut self) {
        let mut state = self.rights.write();
        if let Some(own) = &self.bell {
            self.watched.bells().retain(|bell| !Arc::ptr_eq(bell, own));
        }
        // The map's and this one.
        if Arc::strong_count(&self.watched) == 2 {
            state.watched.remove(&self.subject);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::auth::Grants;

    fn user(issuer: Option<&str>, subject: &str) -> UserId {
        UserId { issuer: issuer.map(str::to_owned), subject: subject.to_owned() }
    }

    fn named(issuer: Option<&str>, subject: &str) -> NamedUser {
        NamedUser { issuer: issuer.map(Into::into), subject: subject.into() }
    }

    fn identity(user: UserId, issued_at: Option<i64>) -> Identity {
        let grants = Grants::new(vec![pattern("global:*")]);
        Identity { user, grants, expires_at: None, issued_at, admin: false }
    }

    fn pattern(text: &str) -> Pattern {
        Pattern::parse(text).unwrap()
    }

    fn granted(rights: &LiveRights, user: UserId) -> Vec<String> {
        let mut identity = identity(user, Some(0));
        rights.admit(&mut identity).unwrap();
        identity.grants.patterns().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_grant_of_two_rows_ends_with_the_last() {
        let rights = LiveRights::default();
        let grant = || RightsChange::Grant(named(None, "42"), pattern("team:7:*"));
        let ungrant = || RightsChange::Ungrant(named(None, "42"), pattern("team:7:*"));
        rights.apply([grant(), grant()]);
        assert_eq!(granted(&rights, user(None, "42")), ["global:*", "team:7:*"]);
        assert_eq!(granted(&rights, user(Some("a"), "42")), ["global:*", "team:7:*"]);
        assert_eq!(granted(&rights, user(None, "4")), ["global:*"]);
        rights.apply([ungrant()]);
        assert_eq!(granted(&rights, user(None, "42")).len(), 2);
        rights.apply([ungrant()]);
        assert_eq!(granted(&rights, user(None, "42")), ["global:*"]);
        assert!(rights.read().granted.is_empty());
    }

    #[test]
    fn with_several_issuers_only_who_is_named_with_one_is_somebody() {
        let rights = LiveRights::default();
        rights.set_several_issuers(true);
        rights.apply([
            RightsChange::Grant(named(None, "42"), pattern("team:7:*")),
            RightsChange::Grant(named(Some("a"), "42"), pattern("team:8:*")),
        ]);
        assert_eq!(granted(&rights, user(Some("a"), "42")), ["global:*", "team:8:*"]);
        assert_eq!(granted(&rights, user(Some("b"), "42")), ["global:*"]);
        assert_eq!(granted(&rights, user(None, "42")), ["global:*"]);
    }

    #[test]
    fn a_token_is_revoked_by_when_it_was_issued() {
        let rights = LiveRights::default();
        let refused = |issuer, issued| rights.is_revoked(&identity(user(issuer, "42"), issued));
        assert!(!refused(None, None));
        let before = 100_500_000;
        rights.apply([RightsChange::Revoke { user: named(Some("a"), "42"), before }]);
        assert!(!refused(None, Some(1)) && !refused(Some("b"), Some(1)));
        assert!(refused(Some("a"), Some(99)) && refused(Some("a"), Some(100)) && refused(Some("a"), None));
        assert!(!refused(Some("a"), Some(101)));
        rights.apply([RightsChange::Revoke { user: named(None, "42"), before: i64::MAX }]);
        assert!(refused(None, Some(i64::MAX / 2)) && refused(Some("a"), Some(101)));
        rights.apply([RightsChange::Unrevoke(named(None, "42"))]);
        assert!(!refused(None, None) && refused(Some("a"), Some(100)));
    }

    #[test]
    fn only_watchers_of_the_user_are_told_and_leave_nothing_behind() {
        let rights = Arc::new(LiveRights::default());
        let (one, same, other) = (
            rights.watch(&user(Some("a"), "1"), None),
            rights.watch(&user(None, "1"), None),
            rights.watch(&user(None, "2"), None),
        );
        let before = (one.version(), same.version(), other.version());
        rights.apply([RightsChange::Grant(named(None, "1"), pattern("team:7:*"))]);
        assert_ne!((before.0, before.1), (one.version(), same.version()));
        assert_eq!(before.2, other.version());
        rights.replace([]);
        assert_ne!(before.2, other.version());
        drop(one);
        assert_eq!(rights.read().watched.len(), 2);
        drop((same, other));
        assert!(rights.read().watched.is_empty());
    }

    #[tokio::test]
    async fn a_revocation_ends_the_wait_for_one() {
        let rights = Arc::new(LiveRights::default());
        let (identity, watch) = (identity(user(None, "1"), Some(5)), rights.watch(&user(None, "1"), None));
        let waiting = watch.revoked(&identity);
        let revoking = async {
            rights.apply([RightsChange::Grant(named(None, "1"), pattern("team:7:*"))]);
            tokio::task::yield_now().await;
            rights.apply([RightsChange::Revoke { user: named(None, "1"), before: i64::MAX }]);
        };
        tokio::join!(waiting, revoking);
    }
}
