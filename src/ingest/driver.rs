//! The stream loop: one connection, from its start to its failure or the relay's shutdown.

use std::sync::Arc;

use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::assembly::{Assembly, Finished};
use super::error::IngestError;
use super::poller::{FoundFault, Poll};
use super::progress::Progress;
use super::publication::Publishes;
use super::reach::Reach;
use super::supervisor::CLOSE_GRACE;
use crate::change::Mark;
use crate::feed::Feed;
use crate::fence::Fence;
use crate::log::{Append, StateChange};
use crate::lsn::Lsn;
use crate::position::Position;
use crate::postgres::Database;
use crate::route::{GrantFault, Router};
use crate::wal::pgoutput::{self, Message};
use crate::wal::{Frame, Keepalive, ReplicationStream, StandbyStatus, XLogData};

/// Names under which the router's state stands in the log.
pub(super) const STATE_ROUTER: &str = "router";
pub(super) const STATE_SHAPES: &str = "next_shape";

pub(super) const STATE_HORIZON: &str = "horizon";

/// An older horizon costs only questions after a restart.
const HORIZON_INTERVAL: std::time::Duration = std::time::Duration::from_secs(1);

const TICK: std::time::Duration = std::time::Duration::from_millis(250);
/// Nothing heard for so many times the interval of our own reports: the connection is given up. At half
/// of it the server is asked for a sign of life.
const SILENCE: u32 = 6;

/// Frames taken from the buffer before timers and polls get a turn.
const BURST: usize = 512;

pub(super) struct Driver {
    pub(super) stream: ReplicationStream,
    pub(super) feed: Arc<Feed>,
    pub(super) router: Router,
    pub(super) database: Database,
    pub(super) progress: Arc<Progress>,
    pub(super) polls: mpsc::Receiver<Poll>,
    pub(super) tables: watch::Sender<Vec<u32>>,
    nudge: Arc<Notify>,
    pub(super) part_size: usize,
    /// The publication's oid: one made again is another one.
    pub(super) publication: u32,
    pub(super) publishes: Publishes,
    pub(super) status_interval: std::time::Duration,
    /// The transaction under way.
    assembly: Option<Assembly>,
    /// Handed to the log: everything that begins to commit before this.
    submitted: Lsn,
    /// Everything before this was received; the server may be told so.
    received: Lsn,
    greatest_committed_at: i64,
    pub(super) reach: Reach,
    /// The horizon as the log has it, and when it may be written again.
    horizon: Position,
    horizon_due: Instant,
    /// When a dropped message was last told of.
    pub(super) warned_at: Option<Instant>,
    /// A position without changes is passed to the log at most once a second.
    advance_at: Instant,
    idle_end: Lsn,
    status_due: Instant,
    confirmed: Lsn,
    counters: Counters,
    /// Ticks since the last frame. Not a time: while the log or the database is waited for nobody
    /// listens, and that is not the server's silence.
    silent_ticks: u32,
}

/// Looked up once, for they count every transaction.
struct Counters {
    transactions: metrics::Counter,
    changes: metrics::Counter,
}

impl Driver {
    #[expect(clippy::too_many_arguments, reason = "the parts of one connection, put together in one place")]
    pub(super) fn new(
        stream: ReplicationStream,
        feed: Arc<Feed>,
        router: Router,
        database: Database,
        progress: Arc<Progress>,
        polls: mpsc::Receiver<Poll>,
        tables: watch::Sender<Vec<u32>>,
        nudge: Arc<Notify>,
        part_size: usize,
        (publication, publishes): (u32, Publishes),
        status_interval: std::time::Duration,
    ) -> Self {
        let watermark = feed.watermark();
        // Until the first message comes, this is how far we are.
        progress.set_received(watermark.lsn, None);
        let now = Instant::now();
        Driver {
            stream,
            router,
            database,
            progress,
            polls,
            tables,
            nudge,
            part_size,
            publication,
            publishes,
            status_interval,
            assembly: None,
            submitted: watermark.lsn,
            received: watermark.lsn,
            greatest_committed_at: watermark.greatest_committed_at,
            reach: Reach::of(&feed.log.marks()),
            horizon: feed.horizon.position(),
            horizon_due: now,
            warned_at: None,
            advance_at: now,
            idle_end: watermark.lsn,
            status_due: now,
            confirmed: Lsn::ZERO,
            counters: Counters {
                transactions: metrics::counter!("rowcast_transactions_total"),
                changes: metrics::counter!("rowcast_changes_total"),
            },
            silent_ticks: 0,
            feed,
        }
    }

    /// Runs until the connection fails or `shutdown`; then what is durable was confirmed.
    pub(super) async fn run(mut self, shutdown: &CancellationToken) -> Result<(), IngestError> {
        self.publish_tables();
        let mut durable = self.feed.log.durable();
        let log = Arc::clone(&self.feed.log);
        let mut failed = log.failed();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // Every branch is cancel-safe: frames stay in the stream's buffer, polls in their channel.
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return self.leave().await,
                error = &mut failed => return Err(error.into()),
                changed = durable.changed() => {
                    if changed.is_ok() {
                        self.report(false).await?;
                    }
                }
                _ = tick.tick() => self.tick().await?,
                Some(poll) = self.polls.recv() => self.compare(poll).await?,
                frame = self.stream.next() => {
                    self.frame(frame?).await?;
                    for _ in 0..BURST {
                        let Some(frame) = self.stream.try_next()? else { break };
                        self.frame(frame).await?;
                    }
                }
            }
        }
    }

    async fn leave(mut self) -> Result<(), IngestError> {
        let log = Arc::clone(&self.feed.log);
        let flushing = async {
            log.applied().await?;
            log.flush().await
        };
        // A log that stalls is not waited for: PostgreSQL sends again what was not confirmed.
        if let Ok(flushed) = tokio::time::timeout(CLOSE_GRACE, flushing).await {
            flushed?;
        }
        self.report(true).await?;
        Ok(self.stream.close(CLOSE_GRACE).await?)
    }

    async fn frame(&mut self, frame: Frame) -> Result<(), IngestError> {
        self.silent_ticks = 0;
        match frame {
            Frame::XLogData(XLogData { body, .. }) => {
                let message = pgoutput::decode(body)?;
                self.message(message).await
            }
            Frame::Keepalive(Keepalive { wal_end, reply_requested, .. }) => {
                // In the middle of a transaction the server's end says nothing of what was sent.
                if self.assembly.is_none() && wal_end > self.submitted {
                    self.received = self.received.max(wal_end);
                    self.idle_end = wal_end;
                    self.progress.saw_server_end(wal_end);
                    if reply_requested {
                        self.advance().await?;
                    }
                }
                if reply_requested { self.report(true).await } else { Ok(()) }
            }
        }
    }

    async fn tick(&mut self) -> Result<(), IngestError> {
        if self.assembly.is_none() && self.idle_end > self.submitted && Instant::now() >= self.advance_at {
            self.advance().await?;
        }
        self.listen_for_silence().await?;
        self.report(false).await
    }

    /// A path that is gone brings no error: only a question without an answer shows it.
    async fn listen_for_silence(&mut self) -> Result<(), IngestError> {
        self.silent_ticks += 1;
        let silence = TICK * self.silent_ticks;
        let longest = self.status_interval * SILENCE;
        if silence > longest {
            return Err(IngestError::Silent(silence));
        }
        if silence > longest / 2 && silence - TICK <= longest / 2 {
            self.send_status(true).await;
        }
        Ok(())
    }

    /// Hands the log a position up to which there is nothing for anyone.
    async fn advance(&mut self) -> Result<(), IngestError> {
        self.advance_at = Instant::now() + std::time::Duration::from_secs(1);
        let to = self.idle_end;
        let state = self.horizon_state()?;
        self.submit(Append { watermark: Some(to), state, ..Append::default() }).await?;
        self.submitted = to;
        self.feed.horizon.passed(to);
        self.feed.hub.advance(to);
        self.progress.set_received(to, None);
        Ok(())
    }

    async fn message(&mut self, message: Message) -> Result<(), IngestError> {
        match message {
            Message::Begin(begin) => {
                let skipped = begin.final_lsn < self.submitted;
                self.assembly = Some(Assembly::new(&begin, self.greatest_committed_at, skipped));
                Ok(())
            }
            Message::Commit(commit) => self.commit(commit.end_lsn).await,
            Message::Relation(relation) => {
                // It may tell of DDL; the database says what.
                self.nudge.notify_one();
                self.router.relation(relation);
                Ok(())
            }
            Message::Insert(insert) => self.insert(insert.relid, &insert.new).await,
            Message::Update(update) => self.update(&update).await,
            Message::Delete(delete) => self.delete(delete.relid, &delete.old).await,
            Message::Truncate(truncate) => self.truncate(&truncate.relids).await,
            Message::Message(message) => self.logical(&message).await,
            Message::Origin(_) | Message::Type(_) => Ok(()),
        }
    }

    pub(super) fn assembly(&mut self) -> Result<&mut Assembly, IngestError> {
        self.assembly.as_mut().ok_or(IngestError::Protocol("a change outside a transaction"))
    }

    async fn commit(&mut self, end: Lsn) -> Result<(), IngestError> {
        let assembly = self.assembly.take().ok_or(IngestError::Protocol("a Commit without its Begin"))?;
        if assembly.skipped {
            self.received = self.received.max(end);
            return Ok(());
        }
        self.greatest_committed_at = assembly.greatest_committed_at();
        let Finished { transaction, touched, marks, fences } = assembly.finish();
        let marks = self.reach.extend(marks);
        let changed = self.router.take_changed();
        let mut state = if changed { self.state()? } else { Vec::new() };
        state.append(&mut self.router.take_rights_state());
        state.append(&mut self.horizon_state()?);
        // Before anyone can read this transaction, or anything after it.
        self.put_rights_in_force();
        let append =
            Append { transaction: Some(Arc::clone(&transaction)), watermark: Some(end), state, marks };
        let marked = !append.marks.is_empty();
        let committed_at = transaction.committed_at;
        // Before the log can show this transaction: whoever reads past a `track` without knowing its table would
        // vouch for rows that nobody was given.
        if changed {
            self.publish_tables();
        }
        // Before anyone is given a cursor there, and comes back with it at once.
        self.progress.saw_server_end(end);
        self.submit(append).await?;
        self.feed.horizon.logged(transaction.xid, transaction.commit, end);
        self.feed.publishes(self.greatest_committed_at);
        match touched {
            None => self.feed.hub.publish(&transaction, end),
            Some(touched) => self.feed.hub.publish_parts(&touched, end),
        }
        if marked {
            self.feed.hub.wake_all();
        }
        self.submitted = end;
        self.received = end;
        let greatest_committed_at = self.greatest_committed_at;
        fences.iter().for_each(|id| self.feed.fences.met(id, Fence { end, greatest_committed_at }));
        self.progress.set_received(end, Some(committed_at));
        self.counters.transactions.increment(1);
        self.counters.changes.increment(transaction.deliveries.len() as u64);
        Ok(())
    }

    /// Passes on what a large transaction came to so far, so that it never has to be held whole.
    pub(super) async fn pass_on_part(&mut self) -> Result<(), IngestError> {
        if self.assembly()?.size() < self.part_size {
            return Ok(());
        }
        self.submit_part().await
    }

    pub(super) async fn submit_part(&mut self) -> Result<(), IngestError> {
        let part = Arc::new(self.assembly()?.take_part());
        let state = vec![(STATE_SHAPES.to_owned(), Some(self.router.next_shape().to_string().into_bytes()))];
        self.submit(Append { transaction: Some(part), state, ..Append::default() }).await
    }

    /// A mark beyond the stream's order: found by looking at the database, in force at once.
    pub(super) async fn mark_now(&mut self, mark: Mark) -> Result<(), IngestError> {
        tracing::info!(table = %mark.table, reason = mark.reason.as_str(), upto = %mark.upto, "copies of this table have to be synced in full");
        // Of a transaction that the log has already, nothing is handed over any more.
        if let Some(assembly) = self.assembly.as_mut().filter(|assembly| !assembly.skipped) {
            assembly.add_mark(mark);
            return Ok(());
        }
        let marks = self.reach.extend(vec![mark]);
        let changed = self.router.take_changed();
        let mut state = if changed { self.state()? } else { Vec::new() };
        state.append(&mut self.router.take_rights_state());
        self.submit(Append { marks, state, ..Append::default() }).await?;
        self.publish_tables();
        self.feed.hub.wake_all();
        Ok(())
    }

    /// What the router learned of rights holds from now on for all who ask.
    fn put_rights_in_force(&mut self) {
        let changes = self.router.take_rights();
        if !changes.is_empty() {
            self.feed.rights.apply(changes);
        }
    }

    /// Ends grants whose tables are no longer what they were: found by looking at the database, in force
    /// at once.
    pub(super) async fn end_grants_now(&mut self, found: Vec<FoundFault>) -> Result<(), IngestError> {
        let mut ended = false;
        for FoundFault { generation, why } in found {
            ended |= self.router.end_grants(generation, &GrantFault::Found(why));
        }
        metrics::gauge!("rowcast_grants_ended").set(self.router.ended_grants() as f64);
        if !ended {
            return Ok(());
        }
        self.put_rights_in_force();
        // Within a transaction the log is told with its end: of one that has to be sent again, nothing of
        // the catalog may be kept.
        if self.assembly.as_ref().is_none_or(|assembly| assembly.skipped) && self.router.take_changed() {
            let mut state = self.state()?;
            state.append(&mut self.router.take_rights_state());
            self.submit(Append { state, ..Append::default() }).await?;
        }
        Ok(())
    }

    /// Where the stream stands.
    pub(super) fn here(&self) -> Position {
        self.assembly.as_ref().map_or(Position::boundary(self.submitted), Assembly::position)
    }

    fn state(&self) -> Result<Vec<StateChange>, IngestError> {
        Ok(vec![
            (STATE_ROUTER.to_owned(), Some(serde_json::to_vec(self.router.state())?)),
            (STATE_SHAPES.to_owned(), Some(self.router.next_shape().to_string().into_bytes())),
        ])
    }

    /// The horizon, if it moved since it was written and that is not a moment ago.
    fn horizon_state(&mut self) -> Result<Vec<StateChange>, IngestError> {
        let (now, at) = (Instant::now(), self.feed.horizon.position());
        if at == self.horizon || now < self.horizon_due {
            return Ok(Vec::new());
        }
        (self.horizon, self.horizon_due) = (at, now + HORIZON_INTERVAL);
        Ok(vec![(STATE_HORIZON.to_owned(), Some(serde_json::to_vec(&at)?))])
    }

    /// Tells the poller and those who ask about topics which tables there are.
    fn publish_tables(&self) {
        let relids = self.router.catalog().tables().map(|tracked| tracked.relid).collect();
        self.tables.send_replace(relids);
        self.feed.set_directory(self.router.state());
    }

    /// Waits for room in the log's queue if need be, reporting to the server meanwhile.
    async fn submit(&mut self, mut append: Append) -> Result<(), IngestError> {
        loop {
            match self.feed.log.submit(append)? {
                Ok(()) => return Ok(()),
                Err(refused) => append = refused,
            }
            let log = Arc::clone(&self.feed.log);
            let mut room = log.room();
            loop {
                tokio::select! {
                    room = &mut room => break room?,
                    () = tokio::time::sleep_until(self.status_due) => self.report(true).await?,
                }
            }
        }
    }

    /// Tells the server what was received and what is durable, when that changed or time is up.
    pub(super) async fn report(&mut self, at_once: bool) -> Result<(), IngestError> {
        let durable = *self.feed.log.durable().borrow();
        let now = Instant::now();
        if !at_once && durable == self.confirmed && now < self.status_due {
            return Ok(());
        }
        self.send_status(false).await;
        Ok(())
    }

    async fn send_status(&mut self, reply_requested: bool) {
        let durable = *self.feed.log.durable().borrow();
        let written = self.received.max(durable);
        debug_assert!(self.confirmed <= durable, "durable never goes back");
        let status = StandbyStatus { written, flushed: durable, applied: durable, reply_requested };
        self.stream.send_status(status).await;
        self.confirmed = durable;
        self.progress.set_confirmed(durable);
        self.status_due = Instant::now() + self.status_interval;
    }
}
