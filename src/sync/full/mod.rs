//! Full sync: tables as they are now, joined to the log without a seam.
//!
//! A request that the log alone cannot answer becomes a job: [`taking`] reads its tables into a spool and
//! finds the place F in the log where they stand, `completing` adds what the other tables of the request
//! had since, up to the same F. The finished answer is served from the [`spool`] in pages, at the
//! device's pace, again and again until it expires. The job does not depend on the connection that asked.
//!
//! Invariants: an answer is shown when it is complete, never before; few snapshots are open at once, the
//! rest waits in order; memory does not grow with the size of an answer.

mod completing;
mod copy;
mod error;
mod fencing;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod job;
mod rows;
mod select;
mod serving;
mod snapshot;
mod spool;
mod taking;

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

pub use error::FullError;
pub use job::PageToken;
pub(crate) use rows::{Reading, Rows};
pub use serving::{FullStream, Served};

use crate::postgres::{Database, Target};
use fencing::Fencing;
use job::Jobs;
use spool::Budget;

/// How often the horizon is asked for again while a table's mark lies ahead of it.
const MARK_POLL: Duration = Duration::from_millis(25);

/// Jobs that wait for a place. More than this would wait longer than any device does.
const MAX_WAITING: usize = 1_000;

/// How long a session that was kept may take to answer before another is made. Its path may be gone, of which
/// TCP tells nothing for as long as nothing is sent.
const KEPT_PATIENCE: Duration = Duration::from_secs(2);

/// How long a server is waited for that was asked to end a reading which was given up. One that does not
/// answer ends it by the limits of its statements.
const CANCEL_PATIENCE: Duration = Duration::from_secs(5);

/// The bounds of full syncs.
#[derive(Debug, Clone)]
pub struct FullOptions {
    pub target: Target,
    /// Open at once.
    pub snapshots: usize,
    /// How long one may be open.
    pub longest: Duration,
    /// How long a job waits for one of them.
    pub queue_wait: Duration,
    pub lock_timeout: Duration,
    pub fence_wait: Duration,
    /// Bytes that all answers together may hold in memory, and in files.
    pub spool_memory: u64,
    pub spool_disk: u64,
    /// How long an answer is kept after it was last asked for.
    pub spool_age: Duration,
    pub spool_directory: PathBuf,
}

/// Everything that full syncs share.
#[derive(Debug)]
pub struct FullSync {
    options: FullOptions,
    places: Arc<Semaphore>,
    waiting: AtomicUsize,
    /// Sessions that the next snapshot can use.
    idle: Mutex<Vec<Database>>,
    fencing: Fencing,
    budget: Arc<Budget>,
    jobs: Mutex<Jobs>,
}

impl FullSync {
    pub fn new(options: FullOptions) -> Arc<Self> {
        let FullOptions { spool_memory, spool_disk, spool_directory, .. } = &options;
        Arc::new(FullSync {
            places: Arc::new(Semaphore::new(options.snapshots)),
            waiting: AtomicUsize::new(0),
            idle: Mutex::default(),
            fencing: Fencing::new(options.target.clone(), options.fence_wait),
            budget: Arc::new(Budget::new(*spool_memory, *spool_disk, spool_directory.clone())),
            jobs: Mutex::default(),
            options,
        })
    }

    /// A place for one snapshot. Places are given in the order in which they are asked for.
    async fn place(&self) -> Result<OwnedSemaphorePermit, FullError> {
        let _waits = Waiting::enter(&self.waiting)?;
        match tokio::time::timeout(self.options.queue_wait, Arc::clone(&self.places).acquire_owned()).await {
            Ok(Ok(place)) => Ok(place),
            // The semaphore is never closed.
            Ok(Err(_)) | Err(_) => Err(FullError::Crowded),
        }
    }

    /// A session that was kept and still answers, or one that is not connected yet.
    async fn database(&self) -> Database {
        loop {
            let Some(kept) = self.idle().pop() else { return Database::new(self.options.target.clone()) };
            if kept.answers(KEPT_PATIENCE).await {
                return kept;
            }
        }
    }

    fn keep(&self, database: Database) {
        let mut idle = self.idle();
        if idle.len() < self.options.snapshots {
            idle.push(database);
        }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Database>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn jobs(&self) -> MutexGuard<'_, Jobs> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A session that reads, and the place that it takes: given back when the server has ended what it did,
/// so that readings that were given up are never more than there are places.
struct Turn {
    database: Option<Database>,
    place: Option<OwnedSemaphorePermit>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        // Only a session that ended in order is kept, and taken out of here before.
        let (Some(database), Some(place)) = (self.database.take(), self.place.take()) else { return };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                database.cancel(CANCEL_PATIENCE).await;
                drop(place);
            });
        }
    }
}

/// One who waits for a place.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn enter(count: &'a AtomicUsize) -> Result<Self, FullError> {
        let entered = Waiting(count);
        if count.fetch_add(1, Ordering::Relaxed) >= MAX_WAITING {
            Err(FullError::Crowded)
        } else {
            Ok(entered)
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
