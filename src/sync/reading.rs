//! One request being answered: where its reading stands, and the checks around each read.
//!
//! Marks come into force when they are submitted, before the watermark reaches them, and from then on
//! the log leaves out the rows that they cover. So they are looked at before and after each read: a
//! page read in between is given only if nothing it covers became stale.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::coverage::{Coverage, SyncCursor};
use super::error::SyncError;
use super::page::{Entry, Stretch, compact};
use super::plan::{Basis, Plan, check_grants, plan};
use super::request::SyncRequest;
use super::rights;
use crate::auth::Identity;
use crate::change::Reason;
use crate::feed::Feed;
use crate::log::{LogError, Page, ReadError, ReadRequest, TimeLookup, Watermark};
use crate::lsn::Lsn;
use crate::position::Position;
use crate::timestamp::PgTimestamp;
use crate::topic::Pattern;

/// A page stops after about so many bytes, at a commit.
const PAGE_BYTES: usize = 1024 * 1024;
/// A transaction that has no more changes than a page may hold, but more bytes, is given whole up to
/// this size. Bounds the memory of one request.
const TRANSACTION_BYTES: usize = 16 * 1024 * 1024;
/// A page ends after so many entries, also such that the request does not want: a rare table in a busy
/// audience must not hold a place among the readers for long.
const PAGE_VISITS: usize = if cfg!(test) { 3 } else { 64 * 1024 };

#[derive(Debug)]
pub(super) struct Reading {
    identity: Identity,
    /// With the topics that it stands for.
    pub(super) request: SyncRequest,
    pub(super) plan: Plan,
    /// What the answer's cursor vouches for.
    pub(super) coverage: Coverage,
    /// What the device's cursor vouched for and the token no longer grants.
    pub(super) revoked: Vec<Pattern>,
    covered: Option<Coverage>,
    /// Where everything that this request may see ends: as it was at the start.
    watermark: Watermark,
    basis: Basis,
    marks_version: u64,
}

/// A page, ready to be written.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) changes: BTreeMap<Arc<str>, Vec<Entry>>,
    pub(super) end: Position,
    pub(super) sync_timestamp: i64,
    pub(super) more: bool,
    pub(super) consistent: bool,
}

impl Part {
    pub(super) fn len(&self) -> usize {
        self.changes.values().map(Vec::len).sum()
    }
}

impl Reading {
    /// For an answer from the log alone: refused if some table needs more.
    pub(super) fn begin(feed: &Feed, identity: &Identity, request: &SyncRequest) -> Result<Self, SyncError> {
        let reading = Reading::look(feed, identity, request)?;
        reading.refuse_full()?;
        Ok(reading)
    }

    /// What the request comes to now.
    pub(super) fn look(feed: &Feed, identity: &Identity, request: &SyncRequest) -> Result<Self, SyncError> {
        check_grants(&request.topics, &identity.grants)?;
        let marks_version = feed.log.marks_version();
        let watermark = feed.watermark();
        let covered = match request.cursor.and_then(|cursor| cursor.coverage) {
            Some(id) => Coverage::recall(&*feed.log, &identity.user, id)?,
            None => None,
        };
        let basis = basis(feed, request, covered.as_ref(), watermark)?;
        let mut request = request.clone();
        if request.topics.is_empty() {
            request.topics = identity.grants.patterns().to_vec();
        }
        let lost = |topic: &&Pattern| !identity.grants.covers(topic);
        let revoked = covered.iter().flat_map(Coverage::topics).filter(lost).cloned().collect();
        let coverage = Coverage::new(&request.topics, request.tables.as_deref());
        let (directory, marks) = (feed.directory(), feed.log.marks());
        let plan = plan(&request, basis, covered.as_ref(), &directory, &marks, watermark.position());
        let identity = identity.clone();
        Ok(Reading { identity, request, plan, coverage, revoked, covered, watermark, basis, marks_version })
    }

    /// Of the marks that the plan was made with.
    pub(super) fn marks_version(&self) -> u64 {
        self.marks_version
    }

    /// The cursor of an answer that reaches up to a position.
    pub(super) fn cursor(&self, feed: &Feed, position: Position) -> Result<SyncCursor, LogError> {
        let coverage =
            self.coverage.remember(&*feed.log, &self.identity.user, PgTimestamp::now().unix_micros())?;
        Ok(SyncCursor { cursor: feed.cursor(position), coverage: Some(coverage) })
    }

    /// The page after a position, of at most `limit` changes before compaction.
    pub(super) fn part(&mut self, feed: &Feed, after: Position, limit: usize) -> Result<Part, SyncError> {
        let page = match self.read(feed, after, limit) {
            Ok(page) => page,
            Err(ReadError::Log(error)) => return Err(error.into()),
            Err(ReadError::TooOld { .. }) => {
                self.replan(feed, Basis::Full(Reason::TooOld))?;
                // No tracked table was concerned.
                nothing_up_to(self.watermark.position())
            }
        };
        rights::check(feed, &self.identity, &self.request.topics)?;
        self.check_marks(feed, after)?;
        let stretch = Stretch::of(&page);
        let sync_timestamp = match (stretch.more, page.paused_at.or(stretch.greatest_committed_at())) {
            (false, _) => self.watermark.greatest_committed_at,
            (true, Some(greatest)) => greatest,
            (true, None) => return Err(LogError::Corrupt("a page without changes that goes on").into()),
        };
        let changes = compact(stretch.transactions, &self.plan.interests)?;
        Ok(Part {
            changes,
            end: stretch.end,
            sync_timestamp,
            more: stretch.more,
            consistent: stretch.consistent,
        })
    }

    fn read(&self, feed: &Feed, after: Position, limit: usize) -> Result<Page, ReadError> {
        let upto = self.watermark.position();
        if self.plan.interests.is_empty() || after >= upto {
            return Ok(nothing_up_to(upto));
        }
        let request = ReadRequest {
            interests: &self.plan.interests,
            after,
            upto,
            max_deliveries: limit,
            max_bytes: PAGE_BYTES,
            max_visited: PAGE_VISITS,
        };
        let page = feed.log.read(&request)?;
        match first_if_cut_by_bytes(&page, limit) {
            Some(commit) => {
                let upto = Position::new(commit, u32::MAX);
                let (max_bytes, max_visited) = (TRANSACTION_BYTES, usize::MAX);
                let whole = feed.log.read(&ReadRequest { upto, max_bytes, max_visited, ..request })?;
                Ok(ended_at_last_delivery(whole))
            }
            None => Ok(page),
        }
    }

    fn check_marks(&mut self, feed: &Feed, after: Position) -> Result<(), SyncError> {
        let version = feed.log.marks_version();
        if version == self.marks_version {
            return Ok(());
        }
        self.marks_version = version;
        let basis = match self.basis {
            Basis::From(_) => Basis::From(after),
            full @ Basis::Full(_) => full,
        };
        self.replan(feed, basis)
    }

    fn replan(&mut self, feed: &Feed, basis: Basis) -> Result<(), SyncError> {
        self.basis = basis;
        let now = self.watermark.position();
        let (directory, marks) = (feed.directory(), feed.log.marks());
        self.plan = plan(&self.request, basis, self.covered.as_ref(), &directory, &marks, now);
        self.refuse_full()
    }

    fn refuse_full(&self) -> Result<(), SyncError> {
        if self.plan.full.is_empty() { Ok(()) } else { Err(SyncError::FullRequired(self.plan.full.clone())) }
    }
}

/// Where the device's copies stand: by its cursor, else by its timestamp.
fn basis(
    feed: &Feed,
    request: &SyncRequest,
    covered: Option<&Coverage>,
    watermark: Watermark,
) -> Result<Basis, SyncError> {
    if request.force_full_sync {
        return Ok(Basis::Full(Reason::NoCursor));
    }
    if let Some(SyncCursor { cursor, coverage }) = request.cursor {
        return match feed.readable(cursor) {
            // It was given out longer ago than the log reaches back.
            Ok(_) if coverage.is_some() && covered.is_none() => Ok(Basis::Full(Reason::TooOld)),
            // Of which topics the session's cursor is, only the request can say.
            Ok(_) if coverage.is_none() && request.topics.is_empty() => Ok(Basis::Full(Reason::NoCursor)),
            Ok(position) if position > watermark.position() => Err(SyncError::NotCaughtUp),
            Ok(position) => Ok(Basis::From(position)),
            Err(reason) => Ok(Basis::Full(reason)),
        };
    }
    let Some(time) = request.last_sync_timestamp else { return Ok(Basis::Full(Reason::NoCursor)) };
    Ok(match feed.lookup_time(time)? {
        // A boundary beyond what this request may see begins with what lies there.
        TimeLookup::From(position) => Basis::From(position.min(watermark.position())),
        TimeLookup::TooOld => Basis::Full(Reason::TooOld),
        TimeLookup::InFuture => Basis::Full(Reason::TimestampInFuture),
    })
}

fn nothing_up_to(through: Position) -> Page {
    Page { transactions: Vec::new(), through, more: false, cut: false, paused_at: None }
}

/// The commit of a page's only transaction, if it was its bytes that cut it.
fn first_if_cut_by_bytes(page: &Page, limit: usize) -> Option<Lsn> {
    let first = page.transactions.first()?;
    let deliveries: usize = page.transactions.iter().map(|t| t.deliveries.len()).sum();
    let alone = page.transactions.iter().all(|t| t.commit == first.commit);
    (page.cut && alone && deliveries < limit).then_some(first.commit)
}

/// A page that was read to the end of a transaction, seen as the beginning of a longer range.
fn ended_at_last_delivery(mut page: Page) -> Page {
    if let Some(last) = page.transactions.last()
        && let Some(delivery) = last.deliveries.last()
    {
        page.through = last.position(delivery);
        page.more = true;
    }
    page
}
