//! `subscribe` with `"snapshot": true`: the rows as they are, then the stream.
//!
//! The rows are read into a spool at the database's speed (`sync::full`) and sent at the device's, between
//! other topics' frames. Then the topics are subscribed as from any cursor, and a replay from the visible
//! horizon on brings what the snapshot did not see; its end is the snapshot's end.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::subscribe::{Refusal, answer_refusal, refusal};
use super::{Frame, Replay, Session};
use crate::horizon::Snapshot as Seen;
use crate::lsn::Lsn;
use crate::position::Position;
use crate::sync::full::{FullError, Reading, Rows};
use crate::topic::{Pattern, decode_segment};
use crate::transport::protocol::{Answer, Closing, spread};

/// Rows that are put into frames at once; the device takes them before the next.
const STEP_BYTES: usize = 64 * 1024;

/// When a device should ask again while its session has a snapshot under way.
const BUSY_RETRY_MS: u64 = 1_000;

/// A session makes one at a time.
#[derive(Debug, Default)]
pub(super) struct Snapshots {
    current: Option<Box<Snapshot>>,
}

#[derive(Debug)]
struct Snapshot {
    r#ref: Option<Value>,
    topics: Vec<Pattern>,
    state: State,
}

impl Snapshots {
    pub(super) fn is_some(&self) -> bool {
        self.current.is_some()
    }
}

#[derive(Debug)]
enum State {
    Reading(Reading),
    Sending { rows: Arc<Rows>, page: usize, frames: VecDeque<Bytes> },
}

/// What a replay leaves out: what the snapshot has shown already.
#[derive(Debug, Clone)]
pub(super) struct Shown {
    pub(super) seen: Seen,
    /// Behind this everything is new.
    pub(super) upto: Lsn,
}

impl Shown {
    pub(super) fn covers(&self, commit: Lsn, xid: u32) -> bool {
        commit < self.upto && self.seen.sees(xid)
    }
}

impl Session {
    /// Begins to read the rows of topics that were checked.
    pub(super) fn begin_snapshot(
        &mut self,
        r#ref: Option<Value>,
        topics: Vec<Pattern>,
        out: &mut Vec<Frame>,
    ) {
        if topics.is_empty() {
            return;
        }
        if self.snapshots.current.is_some() {
            let message = "this session has a snapshot under way; ask again when it has ended".to_owned();
            out.push(Answer::not_now(r#ref.as_ref(), "busy", message, BUSY_RETRY_MS).to_json().into());
            return;
        }
        let ready = Arc::clone(self.seat.bell());
        let numbers = self.reader.numbers_as_strings;
        let reading = self.relay.full.read_rows(Arc::clone(&self.feed), topics.clone(), numbers, ready);
        self.snapshots.current = Some(Box::new(Snapshot { r#ref, topics, state: State::Reading(reading) }));
    }

    /// Puts more rows into frames. Whether there may be more at once.
    pub(super) async fn send_snapshot(&mut self, out: &mut Vec<Frame>) -> Result<bool, Closing> {
        let Some(mut snapshot) = self.snapshots.current.take() else { return Ok(false) };
        if let Some(lost) = snapshot.topics.iter().find(|topic| !self.identity.grants.covers(topic)) {
            let why = refusal("not_granted", "the token does not grant this topic any more");
            answer_refusal(snapshot.r#ref.as_ref(), Refusal { topic: Some(lost.to_string()), ..why }, out);
            if let State::Sending { rows, .. } = &snapshot.state {
                self.end_snapshot(snapshot.r#ref.as_ref(), &[], rows.taken.fence.end, out);
            }
            return Ok(true);
        }
        match &mut snapshot.state {
            State::Reading(reading) => match reading.take() {
                None => {
                    self.snapshots.current = Some(snapshot);
                    Ok(false)
                }
                Some(Err(error)) => {
                    tell_failure(snapshot.r#ref.as_ref(), &error, out);
                    Ok(true)
                }
                Some(Ok(rows)) => {
                    tell_begin(&snapshot, &rows, out);
                    let (page, frames) = (0, VecDeque::new());
                    snapshot.state = State::Sending { rows: Arc::new(rows), page, frames };
                    self.snapshots.current = Some(snapshot);
                    Ok(true)
                }
            },
            State::Sending { rows, .. } if !rows.is_current(&self.feed) => {
                tell_failure(snapshot.r#ref.as_ref(), &FullError::Restless, out);
                self.end_snapshot(snapshot.r#ref.as_ref(), &[], rows.taken.fence.end, out);
                Ok(true)
            }
            State::Sending { rows, page, frames } => {
                if frames.is_empty() {
                    let (reading, number) = (Arc::clone(rows), *page);
                    let read = tokio::task::spawn_blocking(move || reading.frames(number)).await;
                    match read.map_err(FullError::from).and_then(|read| read) {
                        Ok(Some(more)) => {
                            frames.extend(more);
                            *page += 1;
                            // Shown in the next step, which looks at rights and tables first.
                            self.snapshots.current = Some(snapshot);
                            return Ok(true);
                        }
                        Ok(None) => {
                            let rows = Arc::clone(rows);
                            self.follow(snapshot.r#ref, snapshot.topics, &rows, out);
                            return Ok(true);
                        }
                        Err(error) => {
                            tracing::error!(%error, device = %self.reader.device, "rows of a snapshot could not be read back");
                            tell_failure(snapshot.r#ref.as_ref(), &error, out);
                            self.end_snapshot(snapshot.r#ref.as_ref(), &[], rows.taken.fence.end, out);
                            return Ok(true);
                        }
                    }
                }
                let mut bytes = 0;
                while bytes < STEP_BYTES
                    && let Some(frame) = frames.pop_front()
                {
                    bytes += frame.len();
                    out.push(frame.into());
                }
                self.snapshots.current = Some(snapshot);
                Ok(true)
            }
        }
    }

    /// All rows are sent: the topics are subscribed where the snapshot stands, and what it did not see
    /// is replayed.
    fn follow(&mut self, r#ref: Option<Value>, mut topics: Vec<Pattern>, rows: &Rows, out: &mut Vec<Frame>) {
        let (horizon, fence) = (rows.taken.after, rows.taken.fence.end);
        self.register(&mut topics, out);
        let topics = self.still_granted(r#ref.as_ref(), topics, out);
        for pattern in &topics {
            self.remove(pattern);
        }
        let from = Position::boundary(fence);
        let (subscribed, wanted) = self.subscribe_behind(topics, horizon, from, out);
        let upto = from.max(self.position);
        let shown = Some(Shown { seen: rows.taken.seen.clone(), upto: fence });
        self.replays.push_back(Replay {
            r#ref,
            topics: subscribed,
            wanted,
            after: horizon,
            upto,
            begun: true,
            shown,
        });
    }

    /// A topic that is no longer wanted. With the last one the snapshot is given up, without a word more.
    pub(super) fn leave_snapshot(&mut self, pattern: &Pattern) {
        if let Some(snapshot) = &mut self.snapshots.current {
            snapshot.topics.retain(|topic| topic != pattern);
            if snapshot.topics.is_empty() {
                self.snapshots.current = None;
            }
        }
    }

    pub(super) fn end_snapshot(
        &self,
        r#ref: Option<&Value>,
        topics: &[Pattern],
        upto: Lsn,
        out: &mut Vec<Frame>,
    ) {
        let cursor = self.feed.cursor(Position::boundary(upto));
        let topics = topics.iter().map(ToString::to_string).collect();
        let end = Answer::SnapshotEnd { r#ref, topics, cursor };
        out.push(Frame::standing(end.to_json(), cursor.position));
    }
}

fn tell_begin(snapshot: &Snapshot, rows: &Rows, out: &mut Vec<Frame>) {
    let mut tables = Map::new();
    for (table, key) in rows.tables() {
        let name = decode_segment(table).unwrap_or_else(|_| table.to_string());
        tables.insert(name, json!({ "key": key }));
    }
    let topics = snapshot.topics.iter().map(ToString::to_string).collect();
    let r#ref = snapshot.r#ref.as_ref();
    out.push(Answer::SnapshotBegin { r#ref, topics, tables, total_rows: rows.total() }.to_json().into());
}

fn tell_failure(r#ref: Option<&Value>, error: &FullError, out: &mut Vec<Frame>) {
    let (code, seconds) = error.told();
    let after = u64::from(seconds) * 1_000;
    out.push(
        Answer::not_now(r#ref, code, error.detail().to_owned(), spread(after, after * 2)).to_json().into(),
    );
}
