//! One session of a device, whatever carries its frames: where it stands, what it reads, and what it
//! does next.
//!
//! `subscriptions` is what a session reads (pure), `subscribe` what a device asks for, `delivery` turns
//! transactions into frames. A transport drives it: calls [`Session::step`] and writes what that gives.
//!
//! A session is live (transactions come through its outbox) or behind (it reads the log). Replays of
//! single topics go before either, and what is live waits for them. It never goes from behind to live
//! but through [`Seat::go_live`], whose position joins the two without a seam.
//!
//! Invariants: a session's frames are in commit order, and each frame's cursor is honest: the device
//! has everything before it. Nothing outside the token's grants is ever subscribed. A device that takes
//! nothing costs one outbox, then only a place in the log.

mod delivery;
mod ending;
mod frame;
mod rights;
mod snapshot;
mod subscribe;
mod subscriptions;
#[cfg(test)]
mod tests;
mod vouched;

use std::collections::VecDeque;
use std::sync::Arc;

use super::protocol::{Answer, Closing, spread};
use crate::auth::{Identity, UserId};
use crate::change::Reason;
use crate::cursor::Cursor;
use crate::feed::Feed;
use crate::hub::{Items, Seat, Taken, timestamp};
use crate::log::{LogError, Page, ReadError, ReadRequest};
use crate::lsn::Lsn;
use crate::position::Position;
use crate::timestamp::PgTimestamp;
use crate::topic::Pattern;
use crate::transport::Relay;
use delivery::Reader;
pub(super) use ending::restart;
#[cfg(test)]
pub(super) use frame::At;
pub(super) use frame::Frame;
use rights::Rights;
use snapshot::{Shown, Snapshots};
pub(super) use subscribe::{From, Refusal};
use subscriptions::{Stale, Subscriptions};
pub(super) use vouched::Vouched;

/// What one reading of the log gives at most, so that a session behind holds little.
const PAGE_DELIVERIES: usize = 512;
const PAGE_BYTES: usize = 64 * 1024;
/// And how many entries it looks at, so that a session that reads a rare table stays one among many.
const PAGE_VISITS: usize = if cfg!(test) { 3 } else { 16 * 1024 };

/// When to come back after being told to sync, so that devices do not come at once.
const SYNC_SPREAD_MS: u64 = 5_000;

pub(super) struct Session {
    pub(super) relay: Arc<Relay>,
    pub(super) feed: Arc<Feed>,
    pub(super) identity: Identity,
    reader: Reader,
    pub(super) seat: Seat,
    subscriptions: Subscriptions,
    /// Everything up to here was put into frames, of the topics that are not being replayed.
    position: Position,
    mode: Mode,
    replays: VecDeque<Replay>,
    snapshots: Snapshots,
    marks_version: u64,
    rights: Rights,
    /// A cursor before this vouches for all that was ever subscribed here. One that lies further leaves out
    /// what was ended on the way: going on from it would pass that over in silence.
    pub(super) vouched: Position,
}

#[derive(Debug)]
enum Mode {
    /// Taken from the outbox and not yet put into frames; then nothing is missing up to `upto`.
    Live { items: Items, upto: Lsn },
    /// Reads the log, up to its watermark.
    Behind,
    /// The outbox is open from here on; what lies before it is still read from the log.
    Joining(Lsn),
}

/// Topics that catch up alone.
#[derive(Debug)]
struct Replay {
    r#ref: Option<serde_json::Value>,
    topics: Vec<Pattern>,
    wanted: Subscriptions,
    after: Position,
    upto: Position,
    begun: bool,
    /// The end of a snapshot, which has shown some of it.
    shown: Option<Shown>,
}

/// What a session can do without hearing from anyone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Something was put into frames, or may be at once.
    Worked,
    /// Nothing to do until the outbox is ready.
    Idle,
}

impl Session {
    pub(super) fn new(
        relay: Arc<Relay>,
        feed: Arc<Feed>,
        mut identity: Identity,
        device: Arc<str>,
        numbers_as_strings: bool,
    ) -> Self {
        let seat = feed.hub.join(relay.limits.outbox_size);
        let rights = Rights::of(&feed, &mut identity, seat.bell());
        let start = seat.go_live();
        let reader = Reader {
            relay: Arc::clone(&relay),
            epoch: feed.epoch,
            user: identity.user.clone(),
            device,
            numbers_as_strings,
        };
        Session {
            rights,
            marks_version: feed.log.marks_version(),
            vouched: Position::MAX,
            position: Position::boundary(start),
            mode: Mode::Live { items: Items::new(), upto: start },
            replays: VecDeque::new(),
            snapshots: Snapshots::default(),
            subscriptions: Subscriptions::default(),
            relay,
            feed,
            identity,
            reader,
            seat,
        }
    }

    /// The first frame of a session.
    pub(super) fn established(&self) -> Frame {
        let heartbeat = self.relay.limits.heartbeat.as_millis();
        let established = Answer::ConnectionEstablished {
            protocol: 1,
            user_id: &self.identity.user.subject,
            device_id: &self.reader.device,
            heartbeat_ms: u64::try_from(heartbeat).unwrap_or(u64::MAX),
            timestamp: timestamp(PgTimestamp::now().unix_micros()),
        };
        established.to_json().into()
    }

    pub(super) fn user(&self) -> &UserId {
        &self.identity.user
    }

    pub(super) fn device(&self) -> &str {
        &self.reader.device
    }

    /// Whether nothing is subscribed (any more).
    pub(super) fn is_empty(&self) -> bool {
        self.subscriptions.len() == 0
    }

    /// Up to where this device has everything; unknown while single topics catch up.
    pub(super) fn cursor(&self) -> Option<Cursor> {
        self.replays.is_empty().then(|| self.feed.cursor(self.position))
    }

    /// Puts more into frames; a token that is revoked ends that.
    pub(super) async fn step(&mut self, out: &mut Vec<Frame>) -> Result<Step, Closing> {
        let step = self.go_on(out).await?;
        self.rights.check()?;
        Ok(step)
    }

    /// As [`Self::step`], if it has nothing to wait for. What comes after that rings the bell, so a session that
    /// stays live is idle then.
    pub(super) fn step_at_once(&mut self, out: &mut Vec<Frame>) -> Option<Result<Step, Closing>> {
        if self.snapshots.is_some() || !self.replays.is_empty() || !matches!(self.mode, Mode::Live { .. }) {
            return None;
        }
        self.apply_marks(out);
        // Marks and rights end replays and subscriptions, and begin none.
        self.live(out);
        let step = if matches!(self.mode, Mode::Live { .. }) { Step::Idle } else { Step::Worked };
        Some(self.rights.check().map(|()| step))
    }

    /// Marks and rights first, then replays, then the stream.
    async fn go_on(&mut self, out: &mut Vec<Frame>) -> Result<Step, Closing> {
        self.apply_marks(out);
        // Rows go between other topics' frames: of these topics there are none yet.
        let sent = self.send_snapshot(out).await?;
        let step = self.go_on_streaming(out).await?;
        Ok(if sent { Step::Worked } else { step })
    }

    async fn go_on_streaming(&mut self, out: &mut Vec<Frame>) -> Result<Step, Closing> {
        if !self.replays.is_empty() {
            return self.replay(out).await;
        }
        match &self.mode {
            Mode::Live { .. } => Ok(self.live(out)),
            Mode::Behind => self.behind(out).await,
            Mode::Joining(upto) => {
                let upto = *upto;
                self.joining(upto, out).await
            }
        }
    }

    fn live(&mut self, out: &mut Vec<Frame>) -> Step {
        self.take();
        // A mark is in force before anything after it is published. So those that lie before what was
        // just taken are seen here, while the session still stands before them.
        self.apply_marks(out);
        let Mode::Live { items, upto } = &mut self.mode else { return Step::Worked };
        let worked = !items.is_empty();
        for item in items.drain(..).filter(|item| item.published.transaction.commit >= self.position.commit) {
            self.reader.live(&item, &self.subscriptions, out);
        }
        self.position = self.position.max(Position::boundary(*upto));
        if worked { Step::Worked } else { Step::Idle }
    }

    /// Moves what is in the outbox here; or finds that it was lost, and falls behind.
    fn take(&mut self) {
        let Mode::Live { items, upto } = &mut self.mode else { return };
        match self.seat.take() {
            Taken::Items { items: mut more, upto: new } => {
                items.append(&mut more);
                *upto = new.max(*upto);
            }
            Taken::Lost => {
                metrics::counter!("rowcast_sessions_behind_total").increment(1);
                // What was taken and not shown lies after the position, so the log gives it again.
                self.mode = Mode::Behind;
            }
        }
    }

    /// Puts into frames what lies before `upto`, so that subscriptions may change there. The session
    /// then stands at `upto`, or at an earlier position if it is behind.
    fn settle(&mut self, upto: Lsn, out: &mut Vec<Frame>) {
        // A replay must not be interrupted by other topics' changes, and a session that joins has opened
        // its outbox before the new audiences were in it: only the log has all of what lies between.
        if !self.replays.is_empty() || matches!(self.mode, Mode::Joining(_)) {
            self.mode = Mode::Behind;
            return;
        }
        self.take();
        self.apply_marks(out);
        let Mode::Live { items, .. } = &mut self.mode else { return };
        let before = items.partition_point(|item| item.published.transaction.commit < upto);
        for item in
            items.drain(..before).filter(|item| item.published.transaction.commit >= self.position.commit)
        {
            self.reader.live(&item, &self.subscriptions, out);
        }
        self.position = self.position.max(Position::boundary(upto));
    }

    async fn behind(&mut self, out: &mut Vec<Frame>) -> Result<Step, Closing> {
        if self.read_on(Position::MAX, out).await? {
            // All that the log shows was read: open the outbox, and read what came meanwhile.
            self.mode = Mode::Joining(self.seat.go_live());
        }
        Ok(Step::Worked)
    }

    async fn joining(&mut self, upto: Lsn, out: &mut Vec<Frame>) -> Result<Step, Closing> {
        // The hub may be a moment ahead of the log.
        self.log_reaches(upto).await?;
        if self.read_on(Position::boundary(upto), out).await? {
            self.mode = Mode::Live { items: Items::new(), upto };
        }
        Ok(Step::Worked)
    }

    async fn log_reaches(&self, lsn: Lsn) -> Result<(), Closing> {
        let mut watermark = self.feed.log.watermark();
        let reached = watermark.wait_for(|watermark| watermark.lsn >= lsn).await;
        reached.map(drop).map_err(|_| Closing::Restart { retry_after_ms: spread(500, 3_000) })
    }

    /// Reads a page of everything subscribed from where the session stands. Whether that was all.
    async fn read_on(&mut self, upto: Position, out: &mut Vec<Frame>) -> Result<bool, Closing> {
        let wanted = self.subscriptions.clone();
        match self.read(&wanted, self.position, upto).await? {
            Some(page) => {
                self.apply_marks(out);
                let wanted = self.subscriptions.clone();
                self.show(&page, &wanted, out);
                self.position = self.position.max(page.through);
                Ok(!page.more)
            }
            None => {
                let all: Vec<Pattern> = self.subscriptions.patterns().cloned().collect();
                let oldest = self.feed.log.oldest();
                self.end(&all, Some(self.position), Some(oldest), Reason::Backlog, out);
                self.position = self.position.max(oldest);
                Ok(false)
            }
        }
    }

    async fn replay(&mut self, out: &mut Vec<Frame>) -> Result<Step, Closing> {
        let Some(replay) = self.replays.front_mut() else { return Ok(Step::Worked) };
        if replay.topics.is_empty() {
            self.finish_replay(out);
            return Ok(Step::Worked);
        }
        let topics = replay.topics.iter().map(ToString::to_string).collect();
        if !std::mem::replace(&mut replay.begun, true) {
            let r#ref = replay.r#ref.as_ref();
            out.push(Answer::ReplayBegin { r#ref, topics }.to_json().into());
            return Ok(Step::Worked);
        }
        let (wanted, after, upto) = (replay.wanted.clone(), replay.after, replay.upto);
        self.log_reaches(upto.commit).await?;
        let page = self.read(&wanted, after, upto).await?;
        self.apply_marks(out);
        // Marks may have ended all of its topics meanwhile; but it is still the first.
        let Some(replay) = self.replays.front_mut() else { return Ok(Step::Worked) };
        let Some(page) = page else {
            let topics = std::mem::take(&mut replay.topics);
            let oldest = self.feed.log.oldest();
            self.end(&topics, Some(after), Some(oldest), Reason::TooOld, out);
            return Ok(Step::Worked);
        };
        replay.after = page.through;
        let wanted = replay.wanted.clone();
        let mut page = page;
        if let Some(shown) = &replay.shown {
            page.transactions.retain(|transaction| !shown.covers(transaction.commit, transaction.xid));
        }
        self.show(&page, &wanted, out);
        if !page.more {
            self.finish_replay(out);
        }
        Ok(Step::Worked)
    }

    /// Every `replay_begin` has its `caught_up`, and every snapshot its end, of those topics that are left.
    fn finish_replay(&mut self, out: &mut Vec<Frame>) {
        let Some(done) = self.replays.pop_front() else { return };
        if done.shown.is_some() {
            return self.end_snapshot(done.r#ref.as_ref(), &done.topics, done.upto.commit, out);
        }
        let topics = done.topics.iter().map(ToString::to_string).collect();
        let cursor = self.feed.cursor(done.upto);
        let caught_up = Answer::CaughtUp { r#ref: done.r#ref.as_ref(), topics, cursor };
        out.push(Frame::standing(caught_up.to_json(), done.upto));
    }

    /// Where the copy of a topic that catches up stands; `None` if it does not.
    fn replaying(&self, pattern: &Pattern) -> Option<Position> {
        self.replays.iter().find(|replay| replay.topics.contains(pattern)).map(|replay| replay.after)
    }

    fn show(&self, page: &Page, wanted: &Subscriptions, out: &mut Vec<Frame>) {
        let replay = i64::try_from(self.relay.limits.broadcast_replay.as_micros()).unwrap_or(i64::MAX);
        let broadcasts_from = PgTimestamp::now().unix_micros().saturating_sub(replay);
        for (place, transaction) in page.transactions.iter().enumerate() {
            let goes_on = page.cut && place + 1 == page.transactions.len();
            self.reader.replayed(transaction, wanted, goes_on, broadcasts_from, out);
        }
    }

    /// `None`: the log no longer reaches back that far.
    async fn read(
        &self,
        wanted: &Subscriptions,
        after: Position,
        upto: Position,
    ) -> Result<Option<Page>, Closing> {
        let (feed, interests) = (Arc::clone(&self.feed), wanted.interests());
        let reading = tokio::task::spawn_blocking(move || {
            feed.log.read(&ReadRequest {
                interests: &interests,
                after,
                upto,
                max_deliveries: PAGE_DELIVERIES,
                max_bytes: PAGE_BYTES,
                max_visited: PAGE_VISITS,
            })
        });
        match reading.await {
            Ok(Ok(page)) => Ok(Some(page)),
            Ok(Err(ReadError::TooOld { .. })) => Ok(None),
            Ok(Err(ReadError::Log(error))) => {
                // Of a stalled log all sessions learn at once, and it tells it itself.
                if !matches!(error, LogError::Stalled(_)) {
                    tracing::error!(%error, device = %self.reader.device, "a session could not read the log");
                }
                Err(Closing::Restart { retry_after_ms: spread(1_000, 10_000) })
            }
            // The runtime is shutting down.
            Err(_) => Err(Closing::Restart { retry_after_ms: spread(500, 3_000) }),
        }
    }

    /// Ends what new marks made stale, and what is no longer granted.
    fn apply_marks(&mut self, out: &mut Vec<Frame>) {
        self.apply_rights(out);
        let version = self.feed.log.marks_version();
        if version == self.marks_version {
            return;
        }
        self.marks_version = version;
        let marks = self.feed.log.marks();
        let (mut stale, over) = self.subscriptions.apply(&marks, self.position);
        over.iter().for_each(|pattern| self.seat.unsubscribe(&pattern.audience));
        for replay in &mut self.replays {
            // A replay's topics stand further back than the session.
            let (more, gone) = replay.wanted.apply(&marks, replay.after);
            stale.extend(more);
            replay.topics.retain(|topic| !gone.contains(topic));
            self.subscriptions.adopt_ends(&replay.wanted);
            for pattern in gone.iter().filter(|pattern| self.subscriptions.remove(pattern)) {
                self.seat.unsubscribe(&pattern.audience);
            }
        }
        self.drop_empty_replays();
        stale.sort_by(|a, b| a.topic.cmp(&b.topic));
        stale.dedup_by(|a, b| a.topic == b.topic);
        self.tell_stale(stale, out);
    }

    fn tell_stale(&mut self, stale: Vec<Stale>, out: &mut Vec<Frame>) {
        for Stale { topic, from, upto, reason } in stale {
            self.tell(vec![topic], Some(from), Some(upto).filter(|upto| *upto != Position::MAX), reason, out);
        }
    }

    /// Tells that topics have to be synced in full.
    fn tell(
        &mut self,
        topics: Vec<String>,
        from: Option<Position>,
        to: Option<Position>,
        reason: Reason,
        out: &mut Vec<Frame>,
    ) {
        self.vouched = self.vouched.min(to.unwrap_or(Position::MAX));
        metrics::counter!("rowcast_sync_required_total", "reason" => reason.as_str()).increment(1);
        let answer = Answer::SyncRequired {
            topics,
            from: from.map(|from| self.feed.cursor(from).to_string()),
            to: to.map(|to| self.feed.cursor(to)),
            reason,
            retry_after_ms: spread(0, SYNC_SPREAD_MS),
        };
        out.push(answer.to_json().into());
    }

    /// Ends subscriptions, and tells why.
    fn end(
        &mut self,
        topics: &[Pattern],
        from: Option<Position>,
        to: Option<Position>,
        reason: Reason,
        out: &mut Vec<Frame>,
    ) {
        if topics.is_empty() {
            return;
        }
        for pattern in topics {
            self.remove(pattern);
        }
        self.tell(topics.iter().map(ToString::to_string).collect(), from, to, reason, out);
    }

    /// The whole log is over; tells all topics.
    pub(super) fn epoch_over(&mut self, out: &mut Vec<Frame>) {
        let all: Vec<Pattern> = self.subscriptions.patterns().cloned().collect();
        self.end(&all, Some(self.position), None, Reason::Epoch, out);
    }

    /// Nothing of a removed pattern follows. Whether there was one.
    fn remove(&mut self, pattern: &Pattern) -> bool {
        let removed = self.subscriptions.remove(pattern);
        if removed {
            self.seat.unsubscribe(&pattern.audience);
        }
        for replay in &mut self.replays {
            replay.wanted.remove(pattern);
            replay.topics.retain(|topic| topic != pattern);
        }
        self.drop_empty_replays();
        removed
    }

    /// One that has begun is ended in its turn, in front of the device.
    fn drop_empty_replays(&mut self) {
        self.replays.retain(|replay| replay.begun || !replay.topics.is_empty());
    }
}
