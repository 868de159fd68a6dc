//! From rows in a spool to a complete answer: what the log adds to them, and the checks that nothing
//! changed under it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::error::FullError;
use super::job::{Done, Shared};
use super::snapshot::Wanted;
use super::spool::{PageBuilder, Spool};
use super::taking::{Reader, Taken};
use super::{FullSync, snapshot};
use crate::auth::Identity;
use crate::change::{Body, Mark, Transaction};
use crate::feed::{Directory, Feed};
use crate::horizon::Snapshot;
use crate::log::{Interest, ReadError, ReadRequest, Tables};
use crate::position::Position;
use crate::sync::answer::TableHead;
use crate::sync::error::SyncError;
use crate::sync::page::{Entry, compact};
use crate::sync::reading::Reading;
use crate::sync::request::SyncRequest;
use crate::sync::{head, request};
use crate::topic::Audience;

/// What one reading of the log gives at most.
const PAGE_BYTES: usize = 1024 * 1024;

/// The classic mistake: the position behind a snapshot, taken for the place where its rows stand. For the
/// tests that must find it.
const FORGETS_THE_UNSEEN: bool = cfg!(feature = "failpoints");

/// The log's part cannot be had in this way: begin again, or give up.
enum Refused {
    Again,
    Error(FullError),
}

impl<E: Into<FullError>> From<E> for Refused {
    fn from(error: E) -> Self {
        Refused::Error(error.into())
    }
}

impl FullSync {
    /// Makes the answer once. `None`: the tables changed meanwhile, try again.
    pub(super) async fn attempt(
        self: &Arc<Self>,
        feed: &Arc<Feed>,
        identity: &Identity,
        request: &SyncRequest,
        shared: &Shared,
    ) -> Result<Option<Done>, SyncError> {
        let reading = {
            let (feed, identity, request) = (Arc::clone(feed), identity.clone(), request.clone());
            tokio::task::spawn_blocking(move || Reading::look(&feed, &identity, &request)).await??
        };
        let wanted = wanted(&reading, &feed.directory());
        let reader =
            Reader { wanted: &wanted, numbers_as_strings: request.numbers_as_strings, rows: &shared.rows };
        let place = self.place().await?;
        let taken = self.take(feed, &reader, Spool::new(Arc::clone(&self.budget)), place).await;
        let (taken, spool, page) = match taken {
            Err(FullError::Snapshot(snapshot::SnapshotError::Moved)) => return Ok(None),
            taken => taken?,
        };
        let feed = Arc::clone(feed);
        let identity = identity.clone();
        let completed = tokio::task::spawn_blocking(move || {
            complete(&feed, &identity, &reading, &wanted, &taken, (spool, page))
        });
        match completed.await.map_err(FullError::from)? {
            Ok(done) => Ok(Some(done)),
            Err(Refused::Again) => Ok(None),
            Err(Refused::Error(error)) => Err(error.into()),
        }
    }
}

/// The tables that have to be read, each with those of the request's audiences that its rows can be of.
fn wanted(reading: &Reading, directory: &Directory) -> Vec<Wanted> {
    let full = directory.tables().iter().filter(|table| reading.plan.full.contains_key(&table.name));
    full.map(|table| Wanted {
        tracked: Arc::clone(&table.tracked),
        audiences: request::audiences_of(&reading.request.topics, &table.tracked),
    })
    .collect()
}

fn complete(
    feed: &Feed,
    identity: &Identity,
    reading: &Reading,
    wanted: &[Wanted],
    taken: &Taken,
    (spool, page): (Spool, PageBuilder),
) -> Result<Done, Refused> {
    let upto = Position::boundary(taken.fence.end);
    let mut completion = Completion {
        feed,
        numbers_as_strings: reading.request.numbers_as_strings,
        numbers: HashMap::new(),
        tables: Vec::new(),
        spool,
        page,
    };
    for table in wanted {
        completion.number(&table.tracked.name)?;
    }
    if !FORGETS_THE_UNSEEN {
        completion.add(&interests(wanted, taken.after), taken.after, upto, Some(&taken.seen))?;
    }
    let Reading { plan, .. } = reading;
    completion.add(&plan.interests, plan.after, upto, None)?;
    completion.write_page()?;
    let directory = feed.directory();
    check(feed, identity, reading, wanted, taken, &directory)?;
    let mut head = head(reading);
    for (table, reason) in &plan.full {
        let place = wanted.iter().position(|wanted| wanted.tracked.name == *table);
        let key = place.map(|place| taken.keys[place].clone()).unwrap_or_default();
        let reason = Some(*reason);
        head.tables.insert(Arc::clone(table), TableHead { full: true, unavailable: false, reason, key });
    }
    for (table, key) in &completion.keys_seen() {
        head.tables.entry(Arc::clone(table)).or_insert_with(|| TableHead::incremental(key.clone()));
    }
    let generations = completion.tables.iter().map(|table| directory.generation(table)).collect();
    Ok(Done {
        head,
        generations,
        tables: completion.tables,
        spool: completion.spool,
        cursor: reading.cursor(feed, upto)?.to_string(),
        sync_timestamp: taken.fence.greatest_committed_at,
    })
}

/// Whether what was read still is what it was read for: a mark or a track of a table inside (H, F] means
/// that the log lacks something there, and one before H that the rows were read by what no longer holds.
fn check(
    feed: &Feed,
    identity: &Identity,
    reading: &Reading,
    wanted: &[Wanted],
    taken: &Taken,
    directory: &Directory,
) -> Result<(), Refused> {
    // The request may have waited for its turn since it was looked at. A table that was untracked then, and is
    // given without rows, may be tracked again by now: the answer's cursor lies behind that.
    let tracked_so = |table: &Arc<str>| {
        let read = wanted.iter().find(|wanted| wanted.tracked.name == *table);
        directory.generation(table) == read.map(|wanted| wanted.tracked.generation)
    };
    if !reading.plan.full.keys().all(tracked_so) {
        return Err(Refused::Again);
    }
    let stale = |mark: &Mark| {
        mark.upto > taken.after && wanted.iter().any(|wanted| wanted.tracked.name == mark.table)
    };
    if feed.log.marks().iter().any(stale) {
        return Err(Refused::Again);
    }
    if feed.log.marks_version() == reading.marks_version() {
        return Ok(());
    }
    let now = Reading::look(feed, identity, &reading.request).map_err(|_| Refused::Again)?;
    let same = now.plan.full.keys().eq(reading.plan.full.keys())
        && now.plan.unavailable.keys().eq(reading.plan.unavailable.keys());
    if same { Ok(()) } else { Err(Refused::Again) }
}

/// What to read of the log for tables that a snapshot showed.
pub(super) fn interests(wanted: &[Wanted], after: Position) -> Vec<Interest> {
    let mut by_audience: BTreeMap<&Audience, Vec<Arc<str>>> = BTreeMap::new();
    for table in wanted {
        for audience in &table.audiences {
            by_audience.entry(audience).or_default().push(Arc::clone(&table.tracked.name));
        }
    }
    let interest = |(audience, names): (&Audience, _)| Interest {
        audience: audience.clone(),
        tables: Tables::Only(names),
        after,
    };
    by_audience.into_iter().map(interest).collect()
}

/// An answer that is being completed.
struct Completion<'a> {
    feed: &'a Feed,
    numbers_as_strings: bool,
    numbers: HashMap<Arc<str>, (u16, Option<Vec<String>>)>,
    tables: Vec<Arc<str>>,
    spool: Spool,
    page: PageBuilder,
}

impl Completion<'_> {
    fn number(&mut self, table: &Arc<str>) -> Result<u16, FullError> {
        if let Some((number, _)) = self.numbers.get(table) {
            return Ok(*number);
        }
        let number = u16::try_from(self.tables.len()).map_err(|_| FullError::TooManyTables)?;
        self.tables.push(Arc::clone(table));
        self.numbers.insert(Arc::clone(table), (number, None));
        Ok(number)
    }

    /// Adds what the log holds of a range; with a snapshot only of transactions that it does not see.
    fn add(
        &mut self,
        interests: &[Interest],
        mut after: Position,
        upto: Position,
        unseen: Option<&Snapshot>,
    ) -> Result<(), Refused> {
        while !interests.is_empty() && after < upto {
            let (max_deliveries, max_bytes) = (request::MAX_LIMIT, PAGE_BYTES);
            // All of the range is read, in whatever pages.
            let max_visited = usize::MAX;
            let request = ReadRequest { interests, after, upto, max_deliveries, max_bytes, max_visited };
            let page = match self.feed.log.read(&request) {
                Ok(page) => page,
                Err(ReadError::Log(error)) => return Err(error.into()),
                // The log passed the horizon; or the cursor, which the next try finds too old.
                Err(ReadError::TooOld { .. }) if unseen.is_some() => return Err(FullError::NotVisible.into()),
                Err(ReadError::TooOld { .. }) => return Err(Refused::Again),
            };
            let mut transactions = page.transactions;
            if let Some(seen) = unseen {
                transactions.retain(|transaction| !seen.sees(transaction.xid));
                if transactions.iter().any(|transaction| truncates(transaction)) {
                    return Err(Refused::Again);
                }
            }
            for (table, entries) in compact(&transactions, interests)? {
                self.entries(&table, &entries)?;
            }
            after = page.through;
            if !page.more {
                break;
            }
        }
        Ok(())
    }

    fn entries(&mut self, table: &Arc<str>, entries: &[Entry]) -> Result<(), Refused> {
        let number = self.number(table)?;
        for entry in entries {
            self.page.push(number, |out| entry.write_members(self.numbers_as_strings, out));
            if self.page.is_full() {
                self.write_page()?;
            }
        }
        // Known from its rows even where the directory is a moment behind or ahead.
        if let (Some((_, key)), Some(entry)) = (self.numbers.get_mut(table), entries.last()) {
            *key = Some(entry.shape.key.clone());
        }
        Ok(())
    }

    fn write_page(&mut self) -> Result<(), FullError> {
        Ok(self.spool.add(std::mem::take(&mut self.page))?)
    }

    fn keys_seen(&self) -> Vec<(Arc<str>, Vec<String>)> {
        let seen = self.numbers.iter();
        seen.filter_map(|(table, (_, key))| Some((Arc::clone(table), key.clone()?))).collect()
    }
}

fn truncates(transaction: &Transaction) -> bool {
    transaction.deliveries.iter().any(|delivery| matches!(delivery.body, Body::Truncate(_)))
}
