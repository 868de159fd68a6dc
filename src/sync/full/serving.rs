//! Pages of an answer, at the device's pace.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;

use super::FullSync;
use super::error::FullError;
use super::job::{Done, PageToken, Shared};
use super::spool;
use crate::auth::Identity;
use crate::feed::Feed;
use crate::sync::answer::{Head, Tail, to_json, write_change_line, write_error_line};
use crate::sync::error::SyncError;
use crate::sync::{next_sync, rights};

/// How long a request waits for an answer that is being made; then the device is told to ask again. Below
/// the time in which proxies give up, and in which a connection without a sign of life is closed.
const ANSWER_WAIT: Duration = Duration::from_secs(20);

/// How often a stream shows that it lives while its answer is being made.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(10);

/// A page as it is sent.
#[derive(Debug)]
pub struct Served {
    pub body: Bytes,
    /// The device has a whole full answer now, and had asked for one.
    pub completes_explicit: bool,
    /// It has not got all that there is for it.
    pub has_more: bool,
}

impl FullSync {
    /// One page as JSON. While the answer is being made, an empty one that says to ask again.
    pub async fn page(
        &self,
        feed: &Feed,
        identity: &Identity,
        token: PageToken,
    ) -> Result<Served, SyncError> {
        let shared = self.find(identity, token)?;
        let Some(outcome) = shared.outcome(ANSWER_WAIT).await else {
            shared.tell();
            return Ok(Served { body: building(&shared, token), completes_explicit: false, has_more: true });
        };
        let done = outcome.map_err(SyncError::Failed)?;
        let number = token.page;
        let page = read_page(&done, number).await?;
        rights::check(feed, identity, &done.head.topics)?;
        if !done.is_current(feed) {
            return Err(SyncError::Expired);
        }
        shared.touch();
        // An answer without rows has one page all the same.
        let page = match page {
            None if number > 0 => return Err(SyncError::Expired),
            page => page.unwrap_or_default(),
        };
        let tail = done.tail(token);
        if tail.has_more {
            shared.tell();
        }
        let completes_explicit = shared.explicit && !tail.has_more;
        Ok(Served { body: done.json(&page, &tail), completes_explicit, has_more: tail.has_more })
    }

    /// The answer from a page on as NDJSON.
    pub async fn lines(
        &self,
        feed: &Arc<Feed>,
        identity: &Identity,
        token: PageToken,
    ) -> Result<FullStream, SyncError> {
        let shared = self.find(identity, token)?;
        // What fails at once is told with a status of its own.
        let done = match shared.outcome(ANSWER_WAIT).await {
            Some(outcome) => Some(outcome.map_err(SyncError::Failed)?),
            None => None,
        };
        let (feed, identity) = (Arc::downgrade(feed), identity.clone());
        Ok(FullStream {
            feed,
            identity,
            shared,
            done,
            token,
            total_changes: 0,
            began: false,
            ended: false,
            complete: false,
        })
    }
}

async fn read_page(done: &Arc<Done>, number: u32) -> Result<Option<Bytes>, SyncError> {
    let done = Arc::clone(done);
    let number = usize::try_from(number).unwrap_or(usize::MAX);
    let page = tokio::task::spawn_blocking(move || done.spool.page(number)).await?;
    Ok(page.map_err(FullError::from)?)
}

/// Nothing yet; the same token is asked for again.
fn building(shared: &Shared, token: PageToken) -> Bytes {
    let head = Head {
        topics: Vec::new(),
        tables: Default::default(),
        revoked: Vec::new(),
        numbers_as_strings: shared.numbers_as_strings,
    };
    let tail = Tail {
        cursor: token.to_string(),
        sync_timestamp: None,
        total_changes: 0,
        has_more: true,
        consistent: false,
        next_sync_recommended: next_sync(true),
        total_rows: Some(None),
    };
    let nothing = std::iter::empty::<(&str, std::iter::Empty<()>, fn((), &mut Vec<u8>))>();
    to_json(&head, &tail, 0, nothing)
}

impl Done {
    fn tail(&self, token: PageToken) -> Tail {
        let next = token.page.saturating_add(1);
        let has_more = usize::try_from(next).is_ok_and(|next| next < self.spool.pages());
        Tail {
            cursor: if has_more { token.at(next).to_string() } else { self.cursor.clone() },
            sync_timestamp: Some(self.sync_timestamp),
            total_changes: 0,
            has_more,
            consistent: !has_more,
            next_sync_recommended: next_sync(has_more),
            total_rows: Some(Some(self.spool.entries())),
        }
    }

    fn json(&self, page: &[u8], tail: &Tail) -> Bytes {
        let mut tables: Vec<Vec<&str>> = vec![Vec::new(); self.tables.len()];
        let mut total_changes = 0;
        for entry in spool::entries(page) {
            if let Some(entries) = tables.get_mut(usize::from(entry.table)) {
                entries.push(entry.members);
                total_changes += 1;
            }
        }
        let tail = Tail { total_changes, ..tail.clone() };
        let named = self.tables.iter().zip(tables).filter(|(_, entries)| !entries.is_empty());
        let write = |members: &str, out: &mut Vec<u8>| out.extend_from_slice(members.as_bytes());
        let changes = named.map(|(table, entries)| (&**table, entries.into_iter(), write));
        to_json(&self.head, &tail, page.len(), changes)
    }
}

/// An NDJSON answer under way. Each step reads one page; a reader that is slow or gone costs nothing
/// between steps.
#[derive(Debug)]
pub struct FullStream {
    /// A reader that takes its time holds no log open that is over.
    feed: Weak<Feed>,
    identity: Identity,
    shared: Arc<Shared>,
    /// Once it is complete.
    done: Option<Arc<Done>>,
    /// The next page.
    token: PageToken,
    total_changes: usize,
    began: bool,
    ended: bool,
    complete: bool,
}

impl FullStream {
    /// Whether the device had asked for a full answer.
    pub fn is_explicit(&self) -> bool {
        self.shared.explicit
    }

    /// Whether the device was sent all of it.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// The next lines, about one page of them; `None` after the last ones.
    pub async fn next_lines(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        let mut out = Vec::new();
        if let Err(error) = self.step(&mut out).await {
            self.ended = true;
            write_error_line(&error, &mut out);
        }
        Some(out.into())
    }

    async fn step(&mut self, out: &mut Vec<u8>) -> Result<(), SyncError> {
        self.shared.touch();
        let done = match &self.done {
            Some(done) => Arc::clone(done),
            None => match self.shared.outcome(PROGRESS_INTERVAL).await {
                Some(outcome) => Arc::clone(self.done.insert(outcome.map_err(SyncError::Failed)?)),
                None => {
                    self.write_progress(out);
                    return Ok(());
                }
            },
        };
        if !std::mem::replace(&mut self.began, true) {
            done.head.write_line(Some(Some(done.spool.entries())), out);
        }
        let page = match read_page(&done, self.token.page).await? {
            None if self.token.page > 0 => return Err(SyncError::Expired),
            page => page.unwrap_or_default(),
        };
        let feed = self.feed.upgrade().ok_or(FullError::Over)?;
        rights::check(&feed, &self.identity, &done.head.topics)?;
        if !done.is_current(&feed) {
            return Err(SyncError::Expired);
        }
        out.reserve(page.len() + page.len() / 8);
        for entry in spool::entries(&page) {
            if let Some(table) = done.tables.get(usize::from(entry.table)) {
                write_change_line(table, entry.members, out);
                self.total_changes += 1;
            }
        }
        let tail = Tail { total_changes: self.total_changes, ..done.tail(self.token) };
        if tail.has_more {
            self.token = self.token.at(self.token.page.saturating_add(1));
            self.write_progress(out);
        } else {
            tail.write_line(out);
            (self.ended, self.complete) = (true, true);
        }
        Ok(())
    }

    /// Where to go on if the connection breaks, and how far the relay has read.
    fn write_progress(&self, out: &mut Vec<u8>) {
        self.shared.tell();
        let rows = self.shared.rows.load(Ordering::Relaxed);
        out.extend_from_slice(
            format!("{{\"type\":\"progress\",\"cursor\":\"{}\",\"rows_read\":{rows}}}\n", self.token)
                .as_bytes(),
        );
    }
}
