//! Long-poll: `/api/sync/poll`, a session that lives for one answer.
//!
//! It begins where `since` says, reads what lies between and waits for more only when there is nothing.
//! `answer` cuts what was read to a page and writes it.
//!
//! Invariants: an answer holds every change after `since` up to its cursor, of all topics asked for, or a
//! `sync_required` that says which are left out; the same `since` gives the same beginning again. Who
//! waits holds none of the places of those who read.

mod answer;
#[cfg(any(test, feature = "fuzzing"))]
pub(super) mod fuzzing;

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::fields::{Fields, mistake};
use super::guard::{self, Places};
use super::http_auth::Authenticated;
use super::joining::enter;
use super::problem_response::ProblemResponse;
use super::relay::Relay;
use super::session::{self, Frame, Session, Step, Vouched};
use crate::auth::Identity;
use crate::change::Reason;
use crate::cursor::Cursor;
use crate::devices::SessionPlace;
use crate::log::{TimeLookup, Watermark};
use crate::position::Position;
use crate::sync::SyncError;
use crate::topic::Pattern;
use answer::{Page, is_message};

/// Seconds. The longest stays below what proxies cut.
const WAIT: i64 = 25;
const MAX_WAIT: i64 = 30;
const MAX_LIMIT: usize = 1_000;
/// An answer is closed when it is about this large (but holds at least one message).
const MAX_BYTES: usize = 1024 * 1024;

/// How long the stream may take to pass what the log shows already: it is a moment, if anything.
const SETTLE: Duration = Duration::from_millis(500);

/// From where the device asks.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Since {
    Now,
    Cursor(String),
    /// Commit time, milliseconds since 1970.
    Time(i64),
}

#[derive(Debug)]
struct Asked {
    device: Arc<str>,
    topics: Vec<Pattern>,
    since: Since,
    wait: Duration,
    limit: usize,
    numbers_as_strings: bool,
}

/// GET or POST `/api/sync/poll`
pub(super) async fn poll(
    State(relay): State<Arc<Relay>>,
    Authenticated(identity): Authenticated,
    Extension(places): Places,
    fields: Fields,
) -> Result<Response, ProblemResponse> {
    let asked = Asked::of(&fields, &identity)?;
    let deadline = Instant::now() + asked.wait;
    let user = identity.user.subject.clone();
    let (place, session) =
        enter(&relay, identity, Arc::clone(&asked.device), fields.labels()?, asked.numbers_as_strings)?;
    let mut poll = Poll::new(session, place, &asked);
    poll.begin(&asked, &places).await?;
    poll.read_or_wait(&places, deadline).await?;
    let body = poll.page(&asked).to_json(&user);
    Ok(([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], body).into_response())
}

impl Asked {
    fn of(fields: &Fields, identity: &Identity) -> Result<Self, ProblemResponse> {
        let wait = match fields.number("wait")?.unwrap_or(WAIT) {
            wait @ 0.. => wait.min(MAX_WAIT),
            _ => return mistake("wait", "must be seconds, from 0 to 30").map_err(Into::into),
        };
        let limit = match fields.number("limit")? {
            None => MAX_LIMIT,
            Some(limit @ 1..) => usize::try_from(limit).unwrap_or(MAX_LIMIT).min(MAX_LIMIT),
            Some(_) => return mistake("limit", "must be a whole number from 1 to 1000").map_err(Into::into),
        };
        Ok(Asked {
            device: fields.device_id()?,
            topics: fields.topics(&identity.grants)?,
            since: Since::of(fields)?,
            wait: Duration::from_secs(wait.unsigned_abs()),
            limit,
            numbers_as_strings: fields.numbers_as_strings()?,
        })
    }
}

impl Since {
    fn of(fields: &Fields) -> Result<Self, SyncError> {
        if let Ok(time) = fields.number("since") {
            return Ok(time.map_or(Since::Now, Since::Time));
        }
        // What it is worth, the session knows.
        Ok(fields.text("since")?.map_or(Since::Now, |text| Since::Cursor(text.to_owned())))
    }
}

/// One poll under way.
struct Poll {
    session: Session,
    _place: SessionPlace,
    /// How far the log reached when the device asked.
    watermark: Watermark,
    out: Vec<Frame>,
    messages: Vec<Frame>,
    bytes: usize,
    limit: usize,
    /// From where the device may go on, were there no message.
    vouched: Vouched,
}

impl Poll {
    fn new(session: Session, place: SessionPlace, asked: &Asked) -> Self {
        Poll {
            watermark: session.feed.watermark(),
            session,
            _place: place,
            out: Vec::new(),
            messages: Vec::new(),
            bytes: 0,
            limit: asked.limit,
            vouched: Vouched::new(None),
        }
    }

    async fn begin(&mut self, asked: &Asked, places: &Semaphore) -> Result<(), ProblemResponse> {
        let looked_up;
        let from = match &asked.since {
            Since::Now => session::From::Here,
            Since::Cursor(text) => session::From::Cursor(text),
            Since::Time(time) => match self.look_up(*time, places).await? {
                Ok(position) => {
                    looked_up = self.session.feed.cursor(position).to_string();
                    session::From::Cursor(&looked_up)
                }
                Err(reason) => session::From::Lost(reason),
            },
        };
        self.vouched = Vouched::new(self.session.open(&asked.topics, from, &mut self.out).await?);
        Ok(())
    }

    async fn look_up(
        &self,
        time: i64,
        places: &Semaphore,
    ) -> Result<Result<Position, Reason>, ProblemResponse> {
        let _reading = guard::place(places).await?;
        let feed = Arc::clone(&self.session.feed);
        let found = tokio::task::spawn_blocking(move || feed.lookup_time(time.saturating_mul(1_000)));
        Ok(match found.await.map_err(SyncError::from)?.map_err(SyncError::from)? {
            // A boundary beyond what this request may see begins with what lies there.
            TimeLookup::From(position) => Ok(position.min(self.watermark.position())),
            TimeLookup::TooOld => Err(Reason::TooOld),
            TimeLookup::InFuture => Err(Reason::TimestampInFuture),
        })
    }

    async fn read_or_wait(&mut self, places: &Semaphore, deadline: Instant) -> Result<(), ProblemResponse> {
        loop {
            {
                let _reading = guard::place(places).await?;
                self.read().await?;
            }
            if self.is_worth_telling() || Instant::now() >= deadline {
                return Ok(());
            }
            // All branches are cancel-safe: a bell that was not looked at stays rung.
            tokio::select! {
                _ = self.session.seat.bell().rung() => {}
                // Once more, for the cursor: a quiet device does not grow old.
                () = tokio::time::sleep_until(deadline) => {}
                why = self.session.over() => return Err(why.into()),
            }
        }
    }

    /// Reads until there is nothing more, or more than an answer holds.
    async fn read(&mut self) -> Result<(), ProblemResponse> {
        let begun = Instant::now();
        loop {
            let step = self.session.step(&mut self.out).await?;
            self.session.check_over(&mut Vec::new())?;
            self.sort();
            if self.is_full() {
                return Ok(());
            }
            if step == Step::Idle {
                if self.is_at_watermark() || begun.elapsed() >= SETTLE {
                    return Ok(());
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    }

    fn sort(&mut self) {
        for frame in self.out.drain(..) {
            if is_message(&frame) {
                self.bytes += frame.json.len();
                self.messages.push(frame);
            } else if let Some(at) = frame.at.filter(|_| self.messages.is_empty()) {
                self.vouched.advance(&self.session, at.position);
            }
        }
    }

    fn is_full(&self) -> bool {
        self.messages.len() > self.limit || self.bytes > MAX_BYTES
    }

    /// A log may be a moment ahead of its stream, and a time is told for what the log shows.
    fn is_at_watermark(&self) -> bool {
        self.session.cursor().is_some_and(|cursor| cursor.position >= self.watermark.position())
    }

    /// A table that waits for a DBA is told, and not waited with: the others may go on for days.
    fn is_worth_telling(&self) -> bool {
        let news = self.messages.iter().any(|frame| frame.kind() != "sync_required");
        news || self.session.vouched < Position::MAX || self.session.is_empty()
    }

    fn page(mut self, asked: &Asked) -> Page {
        let whole = !self.is_full();
        if !whole {
            let kept = answer::cut(&self.messages, self.limit, MAX_BYTES);
            self.messages.truncate(kept);
        }
        for at in self.messages.iter().filter_map(|frame| frame.at) {
            self.vouched.advance(&self.session, at.position);
        }
        if let Some(cursor) = self.session.cursor().filter(|_| whole) {
            self.vouched.advance(&self.session, cursor.position);
        }
        let cursor = self.vouched.cursor();
        Page { timestamp: self.timestamp(asked, cursor, whole), cursor, messages: self.messages }
    }

    /// A commit time, in milliseconds, from which the device may go on as well as from the cursor: the
    /// greatest that lies at or before it, as far as that is known. Never a clock.
    fn timestamp(&self, asked: &Asked, cursor: Option<Cursor>, whole: bool) -> Option<i64> {
        let at = |cursor: Cursor| cursor.epoch == self.session.feed.epoch;
        let position = cursor.filter(|cursor| at(*cursor)).map(|cursor| cursor.position);
        let told = self.messages.iter().filter_map(|frame| frame.at);
        let told = told.filter(|at| position.is_some_and(|position| at.position <= position));
        let told = told.filter_map(|at| at.committed_at).max();
        let shown = Some(self.watermark.greatest_committed_at)
            .filter(|_| whole && position.is_some_and(|position| position >= self.watermark.position()));
        let asked = match asked.since {
            Since::Time(time) => Some(time),
            Since::Now | Since::Cursor(_) => None,
        };
        shown.max(told).map(|micros| micros.div_euclid(1_000)).max(asked)
    }
}
