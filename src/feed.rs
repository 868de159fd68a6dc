//! One unbroken log and its fan-out: what a session, a sync or a metric needs of the relay.
//!
//! A feed lives as long as its epoch. When history is lost, ingest closes it and begins another one.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, RwLock};

use crate::auth::LiveRights;
use crate::change::Reason;
use crate::cursor::{Cursor, Epoch};
use crate::fence::Fences;
use crate::horizon::Horizon;
use crate::hub::Hub;
use crate::log::{Log, LogError, TimeLookup, Watermark};
use crate::lsn::Lsn;
use crate::position::Position;
use crate::route::{Catalog, RouterState, Tracked};
use crate::topic::Pattern;

#[derive(Debug)]
pub struct Feed {
    pub epoch: Epoch,
    pub log: Arc<dyn Log>,
    pub hub: Arc<Hub>,
    /// Grants that rows make, and revocations, as of what the hub has published.
    pub rights: Arc<LiveRights>,
    pub horizon: Horizon,
    pub fences: Fences,
    directory: RwLock<Arc<Directory>>,
    /// The greatest commit time that the hub has told anyone, which the log may show a moment later.
    greatest_published: AtomicI64,
}

/// The feed in use, and none before the first log is open.
pub type CurrentFeed = tokio::sync::watch::Receiver<Option<Arc<Feed>>>;

/// The tracked tables, for those who ask about topics.
#[derive(Debug, Default)]
pub struct Directory {
    tables: Vec<DirectoryTable>,
}

#[derive(Debug)]
pub struct DirectoryTable {
    /// The last segment of its topics.
    pub name: Arc<str>,
    pub key: Vec<String>,
    pub tracked: Arc<Tracked>,
}

impl Feed {
    /// `start`: the log's end. `horizon`: up to where it is known to be visible to other sessions.
    pub fn new(log: Arc<dyn Log>, start: Lsn, horizon: Horizon) -> Arc<Self> {
        Arc::new(Feed {
            epoch: log.epoch(),
            hub: Hub::new(start),
            log,
            rights: Arc::default(),
            horizon,
            fences: Fences::default(),
            directory: RwLock::default(),
            greatest_published: AtomicI64::new(i64::MIN),
        })
    }

    pub fn directory(&self) -> Arc<Directory> {
        Arc::clone(&self.directory.read().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    pub fn set_directory(&self, state: &RouterState) {
        let directory = Arc::new(Directory::of(&state.catalog, state));
        *self.directory.write().unwrap_or_else(std::sync::PoisonError::into_inner) = directory;
    }

    pub fn cursor(&self, position: Position) -> Cursor {
        Cursor::new(self.epoch, position)
    }

    pub fn watermark(&self) -> Watermark {
        *self.log.watermark().borrow()
    }

    /// The hub is about to publish a transaction with the greatest commit time so far.
    pub fn publishes(&self, greatest_committed_at: i64) {
        self.greatest_published.fetch_max(greatest_committed_at, Ordering::Release);
    }

    /// The latest commit that anyone was told of.
    pub fn greatest_told(&self) -> i64 {
        self.watermark().greatest_committed_at.max(self.greatest_published.load(Ordering::Acquire))
    }

    /// Where a time begins. What was published and is not in the log yet is no future: whoever was told its
    /// time asks from where the log ends, since no commit before that has the time. Blocks.
    pub fn lookup_time(&self, time: i64) -> Result<TimeLookup, LogError> {
        let end = self.watermark().position();
        Ok(match self.log.lookup_time(time)? {
            TimeLookup::InFuture if time <= self.greatest_published.load(Ordering::Acquire) => {
                TimeLookup::From(end)
            }
            found => found,
        })
    }

    /// Whether reading can go on from a cursor, as far as the whole log is concerned.
    pub fn readable(&self, cursor: Cursor) -> Result<Position, Reason> {
        if cursor.epoch != self.epoch {
            Err(Reason::Epoch)
        } else if cursor.position < self.log.oldest() {
            Err(Reason::TooOld)
        } else {
            Ok(cursor.position)
        }
    }
}

impl Directory {
    fn of(catalog: &Catalog, state: &RouterState) -> Self {
        let mut tables: Vec<_> = catalog
            .tables()
            .map(|tracked| DirectoryTable {
                name: Arc::clone(&tracked.name),
                key: state.tables.get(&tracked.relid).map(|k| k.info.primary_key.clone()).unwrap_or_default(),
                tracked: Arc::clone(tracked),
            })
            .collect();
        tables.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Directory { tables }
    }

    pub fn tables(&self) -> &[DirectoryTable] {
        &self.tables
    }

    /// Which `track` a table's rows are read by; none if it is not tracked.
    pub fn generation(&self, table: &str) -> Option<i64> {
        let entry = self.tables.iter().find(|entry| *entry.name == *table)?;
        Some(entry.tracked.generation)
    }

    /// The tables that readers of a pattern read.
    pub fn matching<'a>(&'a self, pattern: &'a Pattern) -> impl Iterator<Item = &'a DirectoryTable> {
        let reads = |table: &&DirectoryTable| table.tracked.templates.iter().any(|t| t.may_match(pattern));
        self.tables.iter().filter(reads)
    }
}
