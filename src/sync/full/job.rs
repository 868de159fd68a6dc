//! The answers that are being made or wait for their devices.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::spool::Spool;
use super::{FullError, FullSync};
use crate::auth::{Grants, Identity, UserId};
use crate::cursor::Epoch;
use crate::feed::Feed;
use crate::sync::answer::Head;
use crate::sync::error::SyncError;
use crate::sync::plan::check_grants;
use crate::sync::request::SyncRequest;

/// Answers that one device may have kept; the oldest goes first. A device asks for one at a time, but
/// its tabs may each.
const JOBS_OF_DEVICE: usize = 4;
/// Answers that all devices of one user may have kept: a user names its devices, and must not fill what
/// everybody's answers share.
const JOBS_OF_USER: usize = 16;

/// How long an answer is kept after it was last asked for whose token no device was told: it went out
/// whole, or failed, and nobody can ask for it again.
const UNTOLD_AGE: Duration = Duration::from_secs(5);

/// Times that an answer is begun again because the tables changed under it.
const TRIES: usize = 3;

/// One page of an answer: what `cursor` is while it is paged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageToken {
    id: u128,
    pub(super) page: u32,
}

impl PageToken {
    pub fn parse(text: &str) -> Option<Self> {
        let (id, page) = text.strip_prefix("full.")?.split_once('.')?;
        let plain = |part: &str, width| {
            part.len() == width && part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        };
        if !plain(id, 32) || !plain(page, 8) {
            return None;
        }
        Some(PageToken { id: u128::from_str_radix(id, 16).ok()?, page: u32::from_str_radix(page, 16).ok()? })
    }

    pub(super) fn at(self, page: u32) -> Self {
        PageToken { page, ..self }
    }
}

impl fmt::Display for PageToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "full.{:032x}.{:08x}", self.id, self.page)
    }
}

/// A complete answer.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) head: Head,
    /// By the numbers that the spool's entries have.
    pub(super) tables: Vec<Arc<str>>,
    /// Of each of them, which `track` it was read by.
    pub(super) generations: Vec<Option<i64>>,
    pub(super) spool: Spool,
    pub(super) cursor: String,
    pub(super) sync_timestamp: i64,
}

impl Done {
    /// Whether its tables are still tracked as they were when they were read: a column that was taken
    /// back since must not be had from here.
    pub(super) fn is_current(&self, feed: &Feed) -> bool {
        let directory = feed.directory();
        let now = self.tables.iter().map(|table| directory.generation(table));
        now.eq(self.generations.iter().copied())
    }
}

pub(super) type Outcome = Result<Arc<Done>, Arc<SyncError>>;

/// What the job and those who ask for it share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) token: PageToken,
    owner: (UserId, Arc<str>),
    asked: Asked,
    pub(super) numbers_as_strings: bool,
    /// The device asked for it, and was not told to.
    pub(super) explicit: bool,
    /// Rows read so far.
    pub(super) rows: AtomicU64,
    outcome: watch::Sender<Option<Outcome>>,
    used: Mutex<Instant>,
    /// Some device was told the token, and may come back with it.
    told: AtomicBool,
}

/// All that an answer depends on, but the database.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    epoch: Epoch,
    request: SyncRequest,
    /// What was not named is whatever the token grants.
    grants: Grants,
}

impl Shared {
    /// Waits until the answer is complete or failed. `None`: it takes longer than that.
    pub(super) async fn outcome(&self, patience: Duration) -> Option<Outcome> {
        let mut outcome = self.outcome.subscribe();
        let waited = tokio::time::timeout(patience, outcome.wait_for(Option::is_some)).await;
        // The sender lives as long as this does.
        waited.ok()?.ok()?.clone()
    }

    /// A device is given the token.
    pub(super) fn tell(&self) {
        self.told.store(true, Ordering::Relaxed);
    }

    fn is_under_way(&self) -> bool {
        self.outcome.borrow().is_none()
    }

    /// Until when it is kept, if nobody asks for it.
    fn kept_until(&self, age: Duration) -> Instant {
        self.used() + if self.told.load(Ordering::Relaxed) { age } else { age.min(UNTOLD_AGE) }
    }

    pub(super) fn touch(&self) {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn used(&self) -> Instant {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All jobs, by id and by who asked.
#[derive(Debug, Default)]
pub(super) struct Jobs {
    by_id: HashMap<u128, (Arc<Shared>, AbortOnDropHandle<()>)>,
    /// From the oldest, each with its device.
    by_user: HashMap<UserId, VecDeque<(Arc<str>, u128)>>,
}

impl Jobs {
    /// The answer that is being made to the same request of the same device, which has not heard of it: its
    /// connection broke, or it asks again and again.
    fn same(&self, owner: &(UserId, Arc<str>), asked: &Asked) -> Option<&Arc<Shared>> {
        let own = self.by_user.get(&owner.0)?.iter().filter_map(|(_, id)| self.by_id.get(id));
        let mut own = own.map(|(shared, _)| shared);
        own.find(|shared| shared.owner == *owner && shared.is_under_way() && shared.asked == *asked)
    }

    fn add(&mut self, shared: Arc<Shared>, task: AbortOnDropHandle<()>) {
        let (user, device) = shared.owner.clone();
        let own = self.by_user.entry(user).or_default();
        let of_device = own.iter().filter(|(other, _)| *other == device).count();
        let oldest = match (of_device >= JOBS_OF_DEVICE, own.len() >= JOBS_OF_USER) {
            (true, _) => own.iter().find(|(other, _)| *other == device).map(|(_, id)| *id),
            (false, true) => own.front().map(|(_, id)| *id),
            (false, false) => None,
        };
        own.push_back((device, shared.token.id));
        self.by_id.insert(shared.token.id, (shared, task));
        if let Some(oldest) = oldest {
            self.remove(oldest);
        }
        metrics::gauge!("rowcast_full_syncs_kept").set(self.by_id.len() as f64);
    }

    fn remove(&mut self, id: u128) {
        let Some((shared, _)) = self.by_id.remove(&id) else { return };
        // Whoever waits for it need not wait any longer.
        shared.outcome.send_if_modified(|outcome| {
            let unfinished = outcome.is_none();
            if unfinished {
                *outcome = Some(Err(Arc::new(SyncError::Expired)));
            }
            unfinished
        });
        metrics::gauge!("rowcast_full_syncs_kept").set(self.by_id.len() as f64);
        if let Some(own) = self.by_user.get_mut(&shared.owner.0) {
            own.retain(|(_, other)| *other != id);
            if own.is_empty() {
                self.by_user.remove(&shared.owner.0);
            }
        }
    }
}

impl FullSync {
    /// Begins to make an answer, and gives the token of its first page; the token of the one that is being
    /// made already, if it is the same.
    pub fn begin(
        self: &Arc<Self>,
        feed: Arc<Feed>,
        identity: &Identity,
        request: SyncRequest,
    ) -> Result<PageToken, SyncError> {
        check_grants(&request.topics, &identity.grants)?;
        let owner = (identity.user.clone(), Arc::clone(&request.device_id));
        let asked = Asked { epoch: feed.epoch, request: request.clone(), grants: identity.grants.clone() };
        // Held for a moment longer than the task can need to find itself in there.
        let mut jobs = self.jobs();
        if let Some(same) = jobs.same(&owner, &asked) {
            return Ok(same.token);
        }
        let token = PageToken { id: rand::random(), page: 0 };
        let shared = Arc::new(Shared {
            token,
            owner,
            asked,
            numbers_as_strings: request.numbers_as_strings,
            explicit: request.force_full_sync,
            rows: AtomicU64::new(0),
            outcome: watch::Sender::new(None),
            used: Mutex::new(Instant::now()),
            told: AtomicBool::new(false),
        });
        metrics::counter!("rowcast_full_syncs_total").increment(1);
        let job = run(Arc::clone(self), feed, identity.clone(), request, Arc::clone(&shared));
        let task = AbortOnDropHandle::new(tokio::spawn(job));
        jobs.add(shared, task);
        Ok(token)
    }

    /// A job that this user's device began, if its topics are still granted.
    pub(super) fn find(&self, identity: &Identity, token: PageToken) -> Result<Arc<Shared>, SyncError> {
        let found = self.jobs().by_id.get(&token.id).map(|(shared, _)| Arc::clone(shared));
        // Whether another user has such a job is nobody's business.
        let shared = found.filter(|shared| shared.owner.0 == identity.user).ok_or(SyncError::Expired)?;
        check_grants(&shared.asked.request.topics, &identity.grants)?;
        shared.touch();
        Ok(shared)
    }
}

/// Makes the answer, then keeps it until nobody has asked for it for long enough.
async fn run(
    full: Arc<FullSync>,
    feed: Arc<Feed>,
    identity: Identity,
    request: SyncRequest,
    shared: Arc<Shared>,
) {
    let begun = Instant::now();
    let making = make(&full, &feed, &identity, &request, &shared);
    let made = feed.hub.closed().run_until_cancelled(making).await;
    let made = made.unwrap_or(Err(SyncError::Full(FullError::Over)));
    // An answer that waits for its device must not hold a log open in whose place another one begins.
    drop(feed);
    metrics::histogram!("rowcast_full_sync_seconds").record(begun.elapsed().as_secs_f64());
    if let Err(error) = &made {
        tell(error);
    }
    shared.touch();
    shared.outcome.send_replace(Some(made.map(Arc::new).map_err(Arc::new)));
    let age = full.options.spool_age;
    loop {
        let until = shared.kept_until(age);
        if until <= Instant::now() {
            break;
        }
        tokio::time::sleep_until(until).await;
    }
    // The task ends here at the latest: its handle goes with the job.
    full.jobs().remove(shared.token.id);
}

async fn make(
    full: &Arc<FullSync>,
    feed: &Arc<Feed>,
    identity: &Identity,
    request: &SyncRequest,
    shared: &Shared,
) -> Result<Done, SyncError> {
    for _ in 0..TRIES {
        if let Some(done) = full.attempt(feed, identity, request, shared).await? {
            return Ok(done);
        }
        metrics::counter!("rowcast_full_sync_retries_total").increment(1);
    }
    Err(SyncError::from(FullError::Restless))
}

fn tell(error: &SyncError) {
    match error {
        SyncError::Full(cause) => tell_full(cause),
        error if error.is_internal() => tracing::error!(%error, "a full sync failed"),
        _ => {}
    }
}

pub(super) fn tell_full(error: &FullError) {
    if error.needs_mending() {
        tracing::error!(%error, "a full sync failed; it goes on to fail until this is mended");
    } else {
        tracing::warn!(%error, "a full sync was put off");
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_no_cursor_and_has_one_spelling() {
        let token = PageToken { id: 7, page: 3 };
        let text = token.to_string();
        assert_eq!(
            (PageToken::parse(&text), PageToken::parse(&token.at(4).to_string())),
            (Some(token), Some(token.at(4)))
        );
        for bad in [
            "",
            "full.",
            "full.7.3",
            &text.to_uppercase(),
            &format!("{text}0"),
            &text[1..],
            &text.replace("full", "half"),
        ] {
            assert_eq!(PageToken::parse(bad), None, "{bad}");
        }
    }
}
