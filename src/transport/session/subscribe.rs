//! What a device asks for, one function for each request.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::subscriptions::{Stale, Start, Subscription, Subscriptions};
use super::{Frame, Replay, SYNC_SPREAD_MS, Session};
use crate::change::Reason;
use crate::cursor::Cursor;
use crate::hub::timestamp;
use crate::lsn::Lsn;
use crate::position::Position;
use crate::sync::coverage::SyncCursor;
use crate::timestamp::PgTimestamp;
use crate::topic::{Pattern, decode_segment};
use crate::transport::protocol::{Answer, Closing, Envelope, KINDS, Request, spread, spread_after};
use crate::transport::rate::Bucket;

/// A `ref` is for the device's own book-keeping; it is no place to store things.
const MAX_REF_BYTES: usize = 256;

/// A message that names more topics than so many times the subscriptions of a session is refused whole:
/// each refused topic is an answer many times as long as the topic.
const TOPICS_FOR_EACH_PLACE: usize = 4;

/// How long a subscription waits for the stream to pass a mark ahead of it.
const MARK_PATIENCE: Duration = Duration::from_millis(if cfg!(test) { 5 } else { 2_000 });

/// From where the topics of [`Session::open`] are delivered.
#[derive(Debug, Clone, Copy)]
pub(in crate::transport) enum From<'a> {
    /// From where the relay stands.
    Here,
    Cursor(&'a str),
    /// From a place that the log cannot tell: nothing is delivered, and why is told.
    Lost(Reason),
}

/// A refusal that leaves the session as it is.
#[derive(Debug)]
pub(in crate::transport) struct Refusal {
    pub(in crate::transport) code: &'static str,
    pub(in crate::transport) message: String,
    pub(super) retryable: bool,
    pub(in crate::transport) topic: Option<String>,
}

pub(super) fn refusal(code: &'static str, message: impl Into<String>) -> Refusal {
    Refusal { code, message: message.into(), retryable: false, topic: None }
}

impl Session {
    /// One text frame of the device.
    pub(in crate::transport) async fn request(
        &mut self,
        text: &str,
        out: &mut Vec<Frame>,
    ) -> Result<(), Closing> {
        let envelope: Envelope = match serde_json::from_str(text) {
            Ok(envelope) => envelope,
            Err(error) => {
                let place = format!("line {}, column {}", error.line(), error.column());
                let message = format!("the message is not a JSON object with a `type` ({place})");
                answer_refusal(None, refusal("bad_message", message), out);
                return Ok(());
            }
        };
        let r#ref = envelope.r#ref.filter(|value| value.to_string().len() <= MAX_REF_BYTES);
        let kind = envelope.kind.unwrap_or_default();
        if !KINDS.contains(&kind.as_str()) {
            let message = format!("there is no message of this type; known are {}", KINDS.join(", "));
            answer_refusal(r#ref.as_ref(), refusal("unknown_type", message), out);
            return Ok(());
        }
        let request = match serde_json::from_str(text) {
            Ok(request) => request,
            Err(_) => {
                let message =
                    format!("the fields of this {kind} message are not as docs/PROTOCOL.md has them");
                answer_refusal(r#ref.as_ref(), refusal("bad_message", message), out);
                return Ok(());
            }
        };
        // Asked for by rights as they are now.
        self.apply_rights(out);
        match request {
            Request::Subscribe { cursor: Some(_), snapshot: true, .. } => {
                let why = refusal("bad_message", "a snapshot brings all rows, so there is no cursor to give");
                answer_refusal(r#ref.as_ref(), why, out);
            }
            Request::Subscribe { topics, cursor, snapshot } => {
                self.subscribe(r#ref, &topics, cursor.as_deref(), snapshot, out).await
            }
            Request::Unsubscribe { topics } => self.unsubscribe(r#ref.as_ref(), topics, out),
            Request::Ping {} => {
                let timestamp = timestamp(PgTimestamp::now().unix_micros());
                out.push(
                    Answer::Pong { r#ref: r#ref.as_ref(), timestamp, cursor: self.cursor() }.to_json().into(),
                );
            }
            Request::Auth { token } => return self.renew(r#ref.as_ref(), &token, out).await,
            Request::Ack { cursor } => self.ack(r#ref.as_ref(), &cursor, out),
        }
        Ok(())
    }

    async fn subscribe(
        &mut self,
        r#ref: Option<Value>,
        topics: &[String],
        cursor: Option<&str>,
        snapshot: bool,
        out: &mut Vec<Frame>,
    ) {
        let most = self.relay.limits.max_subscriptions_per_session.saturating_mul(TOPICS_FOR_EACH_PLACE);
        if topics.len() > most {
            let why = refusal("too_many_subscriptions", format!("a message names at most {most} topics"));
            return answer_refusal(r#ref.as_ref(), why, out);
        }
        let cursor = match cursor.map(|text| self.check_cursor(text)).transpose() {
            Ok(cursor) => cursor,
            Err(why) => return answer_refusal(r#ref.as_ref(), why, out),
        };
        let mut patterns: Vec<Pattern> = Vec::new();
        for topic in topics {
            let new = patterns.iter().filter(|pattern| self.subscriptions.get(pattern).is_none()).count();
            match self.check_topic(topic, new) {
                Ok(pattern) if patterns.contains(&pattern) => {}
                Ok(pattern) => patterns.push(pattern),
                Err(why) => {
                    answer_refusal(r#ref.as_ref(), Refusal { topic: Some(topic.clone()), ..why }, out)
                }
            }
        }
        if patterns.is_empty() {
            return;
        }
        if let Some(bucket) = self.bucket_of(cursor, snapshot)
            && let Some(standing) = self.relay.gate.rates.spend(bucket, &self.identity.user)
            && let Some(wait) = standing.retry_after()
        {
            let (detail, wait) = (standing.detail().to_owned(), u64::try_from(wait.as_millis()));
            let wait = wait.unwrap_or(u64::MAX);
            out.push(Answer::not_now(r#ref.as_ref(), "rate_limited", detail, wait).to_json().into());
            return;
        }
        if snapshot {
            self.begin_snapshot(r#ref, patterns, out);
        } else {
            self.begin(r#ref, patterns, cursor, out).await;
        }
    }

    /// What a subscription takes from: rows are read as by a full sync, and the log as by who resumes. From
    /// here on is free.
    fn bucket_of(&self, cursor: Option<Cursor>, snapshot: bool) -> Option<Bucket> {
        let resumes = |cursor| self.feed.readable(cursor).is_ok_and(|from| from < self.position);
        match (snapshot, cursor) {
            (true, _) => Some(Bucket::Requests),
            (false, Some(cursor)) if resumes(cursor) => Some(Bucket::Polls),
            (false, _) => None,
        }
    }

    /// Subscribes all of these topics or none: a session whose topics are named once. Each is given
    /// once. Returns the cursor that was given.
    pub(in crate::transport) async fn open(
        &mut self,
        topics: &[Pattern],
        from: From<'_>,
        out: &mut Vec<Frame>,
    ) -> Result<Option<Cursor>, Refusal> {
        for (before, topic) in topics.iter().enumerate() {
            self.check_pattern(topic, before)
                .map_err(|why| Refusal { topic: Some(topic.to_string()), ..why })?;
        }
        match from {
            From::Here => self.begin(None, topics.to_vec(), None, out).await,
            From::Cursor(text) => {
                let cursor = self.check_cursor(text)?;
                self.begin(None, topics.to_vec(), Some(cursor), out).await;
                return Ok(Some(cursor));
            }
            From::Lost(reason) => {
                self.vouched = Position::ZERO;
                let oldest = Some(self.feed.log.oldest()).filter(|_| reason == Reason::TooOld);
                self.tell(topics.iter().map(ToString::to_string).collect(), None, oldest, reason, out);
            }
        }
        Ok(None)
    }

    /// Begins topics that were checked, each named once.
    async fn begin(
        &mut self,
        r#ref: Option<Value>,
        mut patterns: Vec<Pattern>,
        cursor: Option<Cursor>,
        out: &mut Vec<Frame>,
    ) {
        if patterns.is_empty() {
            return;
        }
        if cursor.is_none() {
            self.await_marks(&patterns).await;
        }
        self.register(&mut patterns, out);
        let patterns = self.still_granted(r#ref.as_ref(), patterns, out);
        if patterns.is_empty() {
            return;
        }
        match cursor {
            None => self.subscribe_here(r#ref.as_ref(), patterns, out),
            Some(cursor) => {
                // A topic subscribed again begins again where its cursor says. Until here it was in force:
                // the frames before this told their cursors of it as well.
                for pattern in &patterns {
                    self.remove(pattern);
                }
                self.subscribe_from(r#ref, patterns, cursor, out);
            }
        }
    }

    /// Rights may have changed since the topics were checked.
    pub(super) fn still_granted(
        &mut self,
        r#ref: Option<&Value>,
        patterns: Vec<Pattern>,
        out: &mut Vec<Frame>,
    ) -> Vec<Pattern> {
        let (granted, gone): (Vec<_>, Vec<_>) =
            patterns.into_iter().partition(|pattern| self.identity.grants.covers(pattern));
        for pattern in gone {
            self.seat.unsubscribe(&pattern.audience);
            let why = refusal("not_granted", "the token does not grant this topic");
            answer_refusal(r#ref, Refusal { topic: Some(pattern.to_string()), ..why }, out);
        }
        granted
    }

    /// From where the session stands.
    fn subscribe_here(&mut self, r#ref: Option<&Value>, patterns: Vec<Pattern>, out: &mut Vec<Frame>) {
        let mut subscribed = Vec::new();
        for pattern in patterns {
            if self.subscriptions.get(&pattern).is_some() {
                // There already, and it stays as it is; registered twice, it is left once.
                self.seat.unsubscribe(&pattern.audience);
                subscribed.push(pattern);
                continue;
            }
            let mut new = Subscription::new(pattern.clone(), self.position);
            let (stale, whole) = self.begin_after_marks(&mut new, false);
            self.tell_stale(stale, out);
            if whole {
                self.seat.unsubscribe(&pattern.audience);
            } else {
                self.subscriptions.put(new);
                subscribed.push(pattern);
            }
        }
        // A topic that is still catching up stands further back.
        let stands = subscribed
            .iter()
            .filter_map(|pattern| self.replaying(pattern))
            .fold(self.position, Position::min);
        self.answer_subscribed(r#ref, &subscribed, self.feed.cursor(stands), out);
    }

    /// Registers topics with the hub, and puts into frames what lies before: it belongs to the old
    /// subscriptions alone. From the position that this gives, the outbox has everything.
    pub(super) fn register(&mut self, patterns: &mut [Pattern], out: &mut Vec<Frame>) {
        let mut registered = self.seat.hub().published();
        for pattern in patterns {
            registered = self.seat.subscribe(&pattern.audience);
            pattern.audience = self.seat.name_of(&pattern.audience);
        }
        self.settle(registered, out);
    }

    /// Topics whose copies stand at `copy`: live from the session's position on. Gives those that marks
    /// leave, and what a replay that begins at `after` has to read for them.
    pub(super) fn subscribe_behind(
        &mut self,
        patterns: Vec<Pattern>,
        after: Position,
        copy: Position,
        out: &mut Vec<Frame>,
    ) -> (Vec<Pattern>, Subscriptions) {
        let (mut subscribed, mut wanted) = (Vec::new(), Subscriptions::default());
        for pattern in patterns {
            let mut replayed = Subscription::new(pattern.clone(), after);
            let (stale, whole) = self.begin_after_marks(&mut replayed, true);
            self.tell_stale(stale, out);
            if whole {
                self.seat.unsubscribe(&pattern.audience);
                continue;
            }
            self.subscriptions.put(Subscription { from: copy.max(self.position), ..replayed.clone() });
            wanted.put(replayed);
            subscribed.push(pattern);
        }
        (subscribed, wanted)
    }

    /// From a cursor: what lies between it and the session's position is replayed.
    fn subscribe_from(
        &mut self,
        r#ref: Option<Value>,
        patterns: Vec<Pattern>,
        cursor: Cursor,
        out: &mut Vec<Frame>,
    ) {
        let from = match self.feed.readable(cursor) {
            Ok(from) => from,
            Err(reason) => {
                patterns.iter().for_each(|pattern| self.seat.unsubscribe(&pattern.audience));
                let topics = patterns.iter().map(ToString::to_string).collect();
                return self.tell_unreadable(topics, cursor, reason, out);
            }
        };
        let (subscribed, wanted) = self.subscribe_behind(patterns, from, from, out);
        if subscribed.is_empty() {
            return;
        }
        self.answer_subscribed(r#ref.as_ref(), &subscribed, cursor, out);
        if from < self.position {
            let upto = self.position;
            self.replays.push_back(Replay {
                r#ref,
                topics: subscribed,
                wanted,
                after: from,
                upto,
                begun: false,
                shown: None,
            });
        }
    }

    /// Ends what marks make stale for a new subscription. With a cursor the copy is stale and told so;
    /// without one there is no copy yet, and it begins after the mark. Whether nothing is left.
    fn begin_after_marks(&self, new: &mut Subscription, has_copy: bool) -> (Vec<Stale>, bool) {
        let (mut stale, mut whole) = (Vec::new(), false);
        for mark in self.feed.log.marks().iter() {
            let Some((from, table)) = new.hit(mark, new.from) else { continue };
            if !has_copy && mark.upto != Position::MAX {
                match &new.pattern.table {
                    Some(_) => new.from = new.from.max(mark.upto),
                    None => new.begin_table(table, Start::After(mark.upto)),
                }
                continue;
            }
            let topic = format!("{}:{table}", new.pattern.audience);
            stale.push(Stale { topic, from, upto: mark.upto, reason: mark.reason });
            match &new.pattern.table {
                Some(_) => whole = true,
                None => new.begin_table(table, Start::Ended(mark.upto)),
            }
        }
        stale.dedup_by(|a, b| a.topic == b.topic);
        (stale, whole)
    }

    /// A table that was tracked or changed a moment ago has a mark that the stream is about to pass.
    /// Beginning behind it spares the device a cursor that would be stale at once.
    async fn await_marks(&self, patterns: &[Pattern]) {
        let hub = self.seat.hub();
        let ahead = || {
            let marks = self.feed.log.marks();
            marks.iter().any(|mark| {
                let near = mark.upto != Position::MAX && mark.upto > Position::boundary(hub.published());
                near && patterns
                    .iter()
                    .any(|p| Subscription::new(p.clone(), Position::ZERO).hit(mark, Position::ZERO).is_some())
            })
        };
        let mut watermark = self.feed.log.watermark();
        let passed = async { while ahead() && watermark.changed().await.is_ok() {} };
        // If it takes longer, the topics stay silent until the stream has passed the mark.
        let _ = tokio::time::timeout(MARK_PATIENCE, passed).await;
    }

    fn answer_subscribed(
        &self,
        r#ref: Option<&Value>,
        patterns: &[Pattern],
        cursor: Cursor,
        out: &mut Vec<Frame>,
    ) {
        if patterns.is_empty() {
            return;
        }
        let directory = self.feed.directory();
        let mut tables = Map::new();
        for table in patterns.iter().flat_map(|pattern| directory.matching(pattern)) {
            let name = decode_segment(&table.name).unwrap_or_else(|_| table.name.to_string());
            tables.insert(name, json!({ "key": table.key }));
        }
        let topics = patterns.iter().map(ToString::to_string).collect();
        let subscribed = Answer::Subscribed { r#ref, topics, cursor, tables };
        out.push(Frame::standing(subscribed.to_json(), cursor.position));
    }

    fn unsubscribe(&mut self, r#ref: Option<&Value>, topics: Vec<String>, out: &mut Vec<Frame>) {
        for topic in &topics {
            if let Ok(pattern) = Pattern::parse(topic) {
                self.remove(&pattern);
                self.leave_snapshot(&pattern);
            }
        }
        out.push(Answer::Unsubscribed { r#ref, topics }.to_json().into());
    }

    /// What the device says to have, kept for its sync status. Of another epoch it says nothing.
    fn ack(&self, r#ref: Option<&Value>, cursor: &str, out: &mut Vec<Frame>) {
        match self.check_cursor(cursor) {
            Ok(cursor) if cursor.epoch == self.feed.epoch => {
                self.relay.devices.acked(&self.identity.user, &self.reader.device, cursor);
            }
            Ok(_) => answer_refusal(r#ref, refusal("invalid_cursor", "this cursor is of another epoch"), out),
            Err(why) => answer_refusal(r#ref, why, out),
        }
    }

    /// A new token for the same user; what it no longer grants ends.
    async fn renew(
        &mut self,
        r#ref: Option<&Value>,
        token: &str,
        out: &mut Vec<Frame>,
    ) -> Result<(), Closing> {
        let identity = match self.relay.identify(Some(token)).await {
            Ok(identity) => identity,
            Err(error) => {
                let Some(retry_after) = error.retry_after() else { return Err(Closing::Token(error.code())) };
                // The session's own token is as good as before.
                let message = error.to_string();
                let answer = Answer::not_now(r#ref, error.code(), message, spread_after(retry_after));
                out.push(answer.to_json().into());
                return Ok(());
            }
        };
        if identity.user != self.identity.user {
            return Err(Closing::NotGranted("the new token is of another user"));
        }
        self.identity = identity;
        let gone: Vec<Pattern> = self
            .subscriptions
            .patterns()
            .filter(|pattern| !self.identity.grants.covers(pattern))
            .cloned()
            .collect();
        if !gone.is_empty() {
            for pattern in &gone {
                self.remove(pattern);
            }
            out.push(
                Answer::Revoked { topics: gone.iter().map(ToString::to_string).collect() }.to_json().into(),
            );
        }
        let topics = self.identity.grants.patterns().iter().map(ToString::to_string).collect();
        out.push(Answer::Granted { r#ref, topics }.to_json().into());
        Ok(())
    }

    fn check_cursor(&self, text: &str) -> Result<Cursor, Refusal> {
        // One from REST says more; what it is for, the message says.
        let SyncCursor { cursor, .. } = SyncCursor::parse(text)
            .map_err(|_| refusal("invalid_cursor", "this is no cursor that the server gave"))?;
        let end = self.relay.progress.server_end();
        // Before the database is reached nobody knows its end; and after a crash a device may be ahead of
        // the log until the server has sent again what was lost.
        let known = end != Lsn::ZERO && cursor.epoch == self.feed.epoch;
        let end = end.max(self.feed.watermark().lsn);
        if known && cursor.position.commit > end {
            return Err(refusal(
                "invalid_cursor",
                "this cursor lies beyond everything that the database has written",
            ));
        }
        Ok(cursor)
    }

    fn check_topic(&self, topic: &str, more: usize) -> Result<Pattern, Refusal> {
        let pattern = Pattern::parse(topic).map_err(|error| refusal("invalid_topic", error.to_string()))?;
        self.check_pattern(&pattern, more)?;
        Ok(pattern)
    }

    /// `more` others are about to be subscribed before it.
    fn check_pattern(&self, pattern: &Pattern, more: usize) -> Result<(), Refusal> {
        if !self.identity.grants.covers(pattern) {
            return Err(refusal("not_granted", "the token does not grant this topic"));
        }
        let most = self.relay.limits.max_subscriptions_per_session;
        if self.subscriptions.get(pattern).is_none() && self.subscriptions.len() + more >= most {
            return Err(refusal(
                "too_many_subscriptions",
                format!("a session has at most {most} subscriptions"),
            ));
        }
        Ok(())
    }

    fn tell_unreadable(&mut self, topics: Vec<String>, cursor: Cursor, reason: Reason, out: &mut Vec<Frame>) {
        // No cursor of this log vouches for these topics.
        self.vouched = Position::ZERO;
        metrics::counter!("rowcast_sync_required_total", "reason" => reason.as_str()).increment(1);
        let answer = Answer::SyncRequired {
            topics,
            from: Some(cursor.to_string()),
            to: Some(self.feed.cursor(self.feed.log.oldest())).filter(|_| reason == Reason::TooOld),
            reason,
            retry_after_ms: spread(0, SYNC_SPREAD_MS),
        };
        out.push(answer.to_json().into());
    }
}

pub(super) fn answer_refusal(r#ref: Option<&Value>, why: Refusal, out: &mut Vec<Frame>) {
    let Refusal { code, message, retryable, topic } = why;
    let answer = Answer::Error { r#ref, code, message, retryable, retry_after_ms: None, topic };
    out.push(answer.to_json().into());
}
