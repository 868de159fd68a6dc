//! Keeps ingest going: connects, goes on with the log or begins a new one, streams, and starts over
//! after any failure, with growing pauses and without end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::driver::{Driver, STATE_HORIZON, STATE_ROUTER, STATE_SHAPES};
use super::error::IngestError;
use super::opening::{self, Decision, Found, FoundSlot, Identity, NewEpoch, STATE_IDENTITY};
use super::poller::Poller;
use super::progress::{Progress, State};
use super::publication::Publishes;
use super::release::released;
use super::{IngestOptions, PUBLICATION, visibility};
use crate::cursor::Epoch;
use crate::feed::{CurrentFeed, Feed};
use crate::horizon::Horizon;
use crate::log::{Beginning, FjallLog, Log};
use crate::lsn::Lsn;
use crate::position::Position;
use crate::postgres::Database;
use crate::route::{LogicalMessage, MemberChange, PREFIX, Router, RouterState, STATE_GRANT, STATE_REVOKED};
use crate::timestamp::PgTimestamp;
use crate::wal::pgoutput::{self, Message};
use crate::wal::{Frame, ReplicationConnection, ReplicationStream, StandbyStatus};

const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// Between two questions for a slot that someone else has: who has it may go at any time, and taking over
/// should be quick.
const SLOT_RETRY: Duration = Duration::from_millis(500);
/// The same failure again is told again after this long.
const TELL_EVERY: Duration = Duration::from_secs(60);
/// How long an orderly end may take to be acknowledged by the server.
pub(super) const CLOSE_GRACE: Duration = Duration::from_secs(2);

/// The ingest stage, as a task.
#[derive(Debug)]
pub struct Ingest {
    options: IngestOptions,
    feed: watch::Sender<Option<Arc<Feed>>>,
    progress: Arc<Progress>,
    /// Once it streamed, a mistake in the setup is waited out; before, it ends the program.
    streamed: bool,
    /// The greatest commit time that a log before this one had: devices may ask by it.
    greatest_before: i64,
}

/// Everything that one connection needs.
struct Connected {
    connection: ReplicationConnection,
    database: Database,
    found: Found,
}

impl Ingest {
    /// The log that is already there serves readers at once, before the database is reached.
    pub fn new(options: IngestOptions, progress: Arc<Progress>) -> Result<(Self, CurrentFeed), IngestError> {
        let feed = match FjallLog::open(&options.log)? {
            Some(log) => Some(resumed_feed(log, options.several_issuers)?),
            None => None,
        };
        let (feed, receiver) = watch::channel(feed);
        Ok((Ingest { options, feed, progress, streamed: false, greatest_before: i64::MIN }, receiver))
    }

    pub fn progress(&self) -> Arc<Progress> {
        Arc::clone(&self.progress)
    }

    /// Runs until `shutdown`; then everything durable was confirmed to the server. Fails only with what
    /// nobody can wait out: a dead log, or before the first stream a mistake in the setup.
    pub async fn run(mut self, shutdown: CancellationToken) -> Result<(), IngestError> {
        let mut pause = BACKOFF_MIN;
        let mut told = Told::default();
        loop {
            let streamed_before = std::mem::replace(&mut self.streamed, false);
            let result = self.connect_and_stream(&shutdown).await;
            let streamed_now = self.streamed;
            self.streamed |= streamed_before;
            if shutdown.is_cancelled() {
                return result.or_else(|error| {
                    tracing::warn!(%error, "the last position could not be confirmed; the server will send again what follows the one before");
                    Ok(())
                });
            }
            let Err(error) = result else { continue };
            if matches!(error, IngestError::Log(_)) || (!self.streamed && !error.is_transient()) {
                return Err(error);
            }
            if streamed_now {
                pause = BACKOFF_MIN;
            }
            let wait = if error.slot_in_use() {
                self.progress.set_state(State::Waiting);
                SLOT_RETRY
            } else {
                self.progress.set_state(State::Failed(error.to_string().into()));
                metrics::counter!("rowcast_ingest_failures_total").increment(1);
                match error {
                    IngestError::PublicationChanged => SLOT_RETRY,
                    _ => pause.mul_f64(rand::random_range(0.0..1.0)).max(Duration::from_millis(20)),
                }
            };
            if streamed_now || told.is_news(&error) {
                tell(&error, wait);
            }
            pause = (pause * 2).min(BACKOFF_MAX);
            shutdown.run_until_cancelled(tokio::time::sleep(wait)).await;
        }
    }

    async fn connect_and_stream(&mut self, shutdown: &CancellationToken) -> Result<(), IngestError> {
        // Who waits for the slot asks for it twice a second, and all that time waits.
        if self.progress.state() != State::Waiting {
            self.progress.set_state(State::Connecting);
        }
        if shutdown.run_until_cancelled(self.progress.slot_not_being_dropped()).await.is_none() {
            return Ok(());
        }
        let connecting = self.connect();
        let Some(connected) = shutdown.run_until_cancelled(connecting).await else { return Ok(()) };
        let connected = connected?;
        let known = match &*self.feed.borrow() {
            Some(feed) => {
                let identity: Option<Identity> = read_state(feed, STATE_IDENTITY)?;
                identity.map(|identity| (identity, feed.watermark().lsn))
            }
            None => None,
        };
        self.progress.restart_server_end(connected.found.server_end);
        let decision =
            opening::decide(known.as_ref().map(|(identity, end)| (identity, *end)), &connected.found);
        let publication = (connected.found.identity.publication, connected.found.identity.publishes.clone());
        let (feed, router, stream, database) = match decision {
            Decision::Resume => self.resume(connected).await?,
            Decision::Begin(why) => {
                let Some(begun) = self.begin(connected, &why, shutdown).await? else { return Ok(()) };
                begun
            }
        };
        self.stream(feed, router, stream, database, publication, shutdown).await
    }

    async fn connect(&self) -> Result<Connected, IngestError> {
        let mut database = Database::new(self.options.target.clone());
        let client = database.client().await?;
        let (publication, publishes, slot) = opening::look(client, &self.options.slot).await?;
        let mut connection =
            ReplicationConnection::connect(&self.options.target).await.map_err(crate::wal::WalError::from)?;
        let system = connection.identify_system().await?;
        let switches = if system.timeline > 1 {
            connection.timeline_history(system.timeline).await?
        } else {
            Vec::new()
        };
        let identity = Identity {
            system_id: system.system_id,
            database: system.dbname,
            slot: self.options.slot.clone(),
            timeline: system.timeline,
            publication,
            publishes,
        };
        let found = Found { identity, server_end: system.xlogpos, switches, slot };
        if let Some(FoundSlot { foreign: Some(foreign), .. }) = &found.slot {
            return Err(IngestError::setup(
                format!("the replication slot {} belongs to something else ({foreign})", self.options.slot),
                "name another one with --slot",
            ));
        }
        if let Some(FoundSlot { holder: Some(holder), .. }) = &found.slot {
            let (slot, holder) = (self.options.slot.clone(), holder.clone());
            return Err(IngestError::SlotInUse { slot, holder });
        }
        Ok(Connected { connection, database, found })
    }

    /// Goes on where the log ends.
    async fn resume(
        &self,
        mut connected: Connected,
    ) -> Result<(Arc<Feed>, Router, ReplicationStream, Database), IngestError> {
        let Some(feed) = self.feed.borrow().clone() else {
            return Err(IngestError::Protocol("no log to go on with"));
        };
        // The router's state belongs to the position that readers see: everything accepted is applied.
        feed.log.applied().await?;
        feed.log.flush().await?;
        let identity = serde_json::to_vec(&connected.found.identity)?;
        let append = crate::log::Append {
            state: vec![(STATE_IDENTITY.to_owned(), Some(identity))],
            ..crate::log::Append::default()
        };
        if feed.log.submit(append)?.is_err() {
            return Err(IngestError::Protocol("an empty queue refused an append"));
        }
        self.keep_on_standbys(&mut connected).await?;
        let router = restored_router(&feed)?;
        // What a connection left behind that broke in the middle of a transaction.
        feed.rights.replace(router.all_rights());
        let from = *feed.log.durable().borrow();
        tracing::info!(epoch = %feed.epoch, from = %from, "going on with the log");
        let stream = connected.connection.start_replication(&self.options.slot, from, PUBLICATION).await?;
        Ok((feed, router, stream, connected.database))
    }

    /// A slot made before the server knew failover slots (17), or by hand, becomes one.
    async fn keep_on_standbys(&self, connected: &mut Connected) -> Result<(), IngestError> {
        if !matches!(connected.found.slot, Some(FoundSlot { failover: Some(false), .. })) {
            return Ok(());
        }
        let slot = &self.options.slot;
        match connected.connection.set_failover(slot).await {
            Ok(()) => tracing::info!(slot, "the replication slot is a failover slot now"),
            Err(error) if error.server().is_some() => {
                tracing::warn!(slot, %error, "the replication slot does not become a failover slot");
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// A new slot and a new log.
    async fn begin(
        &mut self,
        mut connected: Connected,
        why: &NewEpoch,
        shutdown: &CancellationToken,
    ) -> Result<Option<(Arc<Feed>, Router, ReplicationStream, Database)>, IngestError> {
        self.progress.set_state(State::Opening);
        if *why == NewEpoch::NoLog && connected.found.slot.is_none() {
            tracing::info!("beginning a log");
        } else {
            tracing::error!(%why, "a new epoch begins: every device has to sync in full");
            metrics::counter!("rowcast_new_epochs_total").increment(1);
        }
        // What the old log holds ends here; its readers are told before it is taken away.
        if let Some(old) = self.feed.send_replace(None) {
            old.hub.close();
            self.greatest_before = self.greatest_before.max(old.watermark().greatest_committed_at);
            let released = released(old, &self.options.log);
            let Some(released) = shutdown.run_until_cancelled(released).await else { return Ok(None) };
            released?;
        }
        let slot = &self.options.slot;
        if connected.found.slot.is_some() {
            connected.connection.drop_slot(slot, false).await?;
        }
        tracing::info!(
            slot,
            "creating the replication slot; PostgreSQL waits for transactions that are open now"
        );
        let created = match connected.connection.create_slot(slot, true, shutdown).await {
            Err(crate::wal::WalError::Aborted) => return Ok(None),
            created => created?,
        };
        tracing::info!(slot, at = %created.consistent_point, "the replication slot is there");
        let begun = self.begin_behind_slot(connected, created.consistent_point, shutdown).await;
        if !matches!(begun, Ok(Some(_))) {
            self.drop_unused_slot().await;
        }
        begun
    }

    /// From a new slot to an open log; `None` on shutdown, which leaves the slot behind.
    async fn begin_behind_slot(
        &self,
        mut connected: Connected,
        consistent_point: Lsn,
        shutdown: &CancellationToken,
    ) -> Result<Option<(Arc<Feed>, Router, ReplicationStream, Database)>, IngestError> {
        let slot = &self.options.slot;
        let preparing = async {
            let client = connected.database.client().await?;
            opening::settle(client).await?;
            opening::read_catalog(client).await
        };
        let Some(router) = shutdown.run_until_cancelled(preparing).await else { return Ok(None) };
        let mut opening_stream = OpeningStream {
            stream: connected.connection.start_replication(slot, consistent_point, PUBLICATION).await?,
            router: router?,
        };
        let id = format!("{:032x}", rand::random::<u128>());
        let greatest = opening::fence(connected.database.client().await?, &id).await?;
        let Some(met) = shutdown.run_until_cancelled(opening_stream.until_fence(&id)).await else {
            return Ok(None);
        };
        let (start, fence_time) = met?;
        // What committed before the fence has to be visible to whoever reads the tables from now on.
        let settled =
            shutdown.run_until_cancelled(opening_stream.serve_while_settling(&mut connected.database)).await;
        let Some(settled) = settled else { return Ok(None) };
        settled?;
        let created_at = PgTimestamp::now().unix_micros();
        let identity = &connected.found.identity;
        let epoch =
            Epoch::of(&identity.system_id.to_string(), &identity.database, slot, created_at, rand::random());
        let mut router = opening_stream.router;
        let mut state = vec![
            (STATE_IDENTITY.to_owned(), serde_json::to_vec(identity)?),
            (STATE_ROUTER.to_owned(), serde_json::to_vec(router.state())?),
            (STATE_SHAPES.to_owned(), b"0".to_vec()),
        ];
        state.append(&mut router.all_rights_state());
        // A clock that was set back must not make an older log's times ones that this log can answer.
        let greatest_committed_at = greatest.max(fence_time).max(self.greatest_before);
        let beginning = Beginning { epoch, start, greatest_committed_at, state };
        let options = self.options.log.clone();
        let log = tokio::task::spawn_blocking(move || FjallLog::create(&options, beginning))
            .await
            .map_err(|_| IngestError::Protocol("making the log was given up"))??;
        let feed = Feed::new(log, start, Horizon::new(start));
        feed.set_directory(router.state());
        feed.rights.set_several_issuers(self.options.several_issuers);
        feed.rights.replace(router.all_rights());
        tracing::info!(epoch = %epoch, start = %start, "the log is open");
        self.feed.send_replace(Some(Arc::clone(&feed)));
        Ok(Some((feed, router, opening_stream.stream, connected.database)))
    }

    /// A slot without a log would keep WAL for nobody. The connection that used it is gone already.
    async fn drop_unused_slot(&self) {
        let slot = &self.options.slot;
        let dropping = async {
            let mut connection = ReplicationConnection::connect(&self.options.target).await?;
            connection.drop_slot(slot, true).await
        };
        match tokio::time::timeout(CLOSE_GRACE, dropping).await {
            Ok(Ok(())) => {
                tracing::info!(slot, "the replication slot was dropped again: there is no log for it yet")
            }
            Ok(Err(error)) => {
                tracing::warn!(slot, %error, "the new replication slot stays behind without a log, and keeps WAL; drop it, or start again");
            }
            Err(_) => {
                tracing::warn!(
                    slot,
                    "the new replication slot stays behind without a log, and keeps WAL; drop it, or start again"
                );
            }
        }
    }

    async fn stream(
        &mut self,
        feed: Arc<Feed>,
        router: Router,
        stream: ReplicationStream,
        mut database: Database,
        publication: (u32, Publishes),
        shutdown: &CancellationToken,
    ) -> Result<(), IngestError> {
        let status_interval = status_interval(&mut database).await?;
        let (tables, asked) = watch::channel(Vec::new());
        let (polls_sender, polls) = mpsc::channel(1);
        let nudge = Arc::new(Notify::new());
        let poller = Poller {
            target: self.options.target.clone(),
            interval: self.options.poll_interval,
            tables: asked,
            nudge: Arc::clone(&nudge),
            polls: polls_sender,
            progress: Arc::clone(&self.progress),
        };
        let stop = shutdown.child_token();
        let poller = AbortOnDropHandle::new(tokio::spawn(poller.run(stop.clone())));
        let watching = visibility::watch(Arc::clone(&feed), database.another(), stop.clone());
        let watching = AbortOnDropHandle::new(tokio::spawn(watching));
        self.progress.set_state(State::Streaming);
        self.streamed = true;
        let driver = Driver::new(
            stream,
            feed,
            router,
            database,
            Arc::clone(&self.progress),
            polls,
            tables,
            nudge,
            self.options.part_size,
            publication,
            status_interval,
        );
        let result = driver.run(shutdown).await;
        stop.cancel();
        drop((poller, watching));
        result
    }
}

/// The stream before the log's beginning: only changes of the catalog and of rights count.
struct OpeningStream {
    stream: ReplicationStream,
    router: Router,
}

impl OpeningStream {
    /// Waits until everything that committed before now is visible. The server hears of us meanwhile;
    /// what it sends waits on the way.
    async fn serve_while_settling(&mut self, database: &mut Database) -> Result<(), IngestError> {
        let interval = status_interval(database).await?;
        let settling = opening::settle(database.client().await?);
        tokio::pin!(settling);
        loop {
            tokio::select! {
                settled = &mut settling => return settled,
                () = tokio::time::sleep(interval) => self.stream.send_status(StandbyStatus::default()).await,
            }
        }
    }

    /// Reads up to the fence; gives the end of its transaction and its commit time.
    async fn until_fence(&mut self, id: &str) -> Result<(Lsn, i64), IngestError> {
        let (mut xid, mut met, mut committed_at) = (0, false, 0);
        loop {
            let body = match self.stream.next().await? {
                Frame::XLogData(data) => data.body,
                Frame::Keepalive(keepalive) => {
                    if keepalive.reply_requested {
                        self.stream.send_status(StandbyStatus::default()).await;
                    }
                    continue;
                }
            };
            match pgoutput::decode(body)? {
                Message::Begin(begin) => (xid, committed_at) = (begin.xid, begin.commit_time.unix_micros()),
                Message::Relation(relation) => self.router.relation(relation),
                Message::Insert(insert) => {
                    self.router.before_beginning(insert.relid, MemberChange::Insert(&insert.new))?;
                }
                Message::Update(update) => {
                    let change = MemberChange::Update { old: update.old.as_ref(), new: &update.new };
                    self.router.before_beginning(update.relid, change)?;
                }
                Message::Delete(delete) => {
                    self.router.before_beginning(delete.relid, MemberChange::Delete(&delete.old))?;
                }
                Message::Truncate(truncate) => {
                    for relid in &truncate.relids {
                        self.router.table_truncated(*relid);
                        self.router.truncate_catalog(*relid, Position::ZERO);
                    }
                }
                Message::Message(message) if message.transactional && message.prefix == PREFIX => {
                    let opened = self.router.secret().open(xid, &message.content);
                    met |= matches!(opened, Ok(LogicalMessage::Fence(other)) if other == id);
                }
                Message::Commit(commit) if met => return Ok((commit.end_lsn, committed_at)),
                _ => {}
            }
        }
    }
}

fn resumed_feed(log: Arc<FjallLog>, several_issuers: bool) -> Result<Arc<Feed>, IngestError> {
    let start = log.watermark().borrow().lsn;
    // A log that never kept one was written before there was a horizon: all of it is looked at again.
    let at = match log.state(STATE_HORIZON)? {
        Some(at) => serde_json::from_slice(&at)?,
        None => log.oldest(),
    };
    let feed = Feed::new(log, start, Horizon::resumed(at, start));
    let router = restored_router(&feed)?;
    feed.set_directory(router.state());
    feed.rights.set_several_issuers(several_issuers);
    feed.rights.replace(router.all_rights());
    Ok(feed)
}

fn restored_router(feed: &Feed) -> Result<Router, IngestError> {
    let state: RouterState = read_state(feed, STATE_ROUTER)?.unwrap_or_default();
    let mut router = Router::new(state);
    let kept = feed.log.states(STATE_GRANT)?.into_iter().chain(feed.log.states(STATE_REVOKED)?);
    router.restore_rights(kept)?;
    router.reserve_shapes(read_state::<u32>(feed, STATE_SHAPES)?.unwrap_or(0));
    Ok(router)
}

fn read_state<T: serde::de::DeserializeOwned>(feed: &Feed, name: &str) -> Result<Option<T>, IngestError> {
    let bytes = feed.log.state(name)?;
    Ok(bytes.map(|bytes| serde_json::from_slice(&bytes)).transpose()?)
}

/// A third of the time after which the server gives up on us.
async fn status_interval(database: &mut Database) -> Result<Duration, IngestError> {
    let row = database
        .client()
        .await?
        .query_one("SELECT setting::int8 FROM pg_catalog.pg_settings WHERE name = 'wal_sender_timeout'", &[])
        .await?;
    let timeout = u64::try_from(row.get::<_, i64>(0)).unwrap_or(0);
    let third = Duration::from_millis(timeout / 3);
    Ok(if timeout == 0 {
        Duration::from_secs(10)
    } else {
        third.clamp(Duration::from_millis(100), Duration::from_secs(10))
    })
}

/// What was told last: tries that end alike one after the other are one piece of news.
#[derive(Debug, Default)]
struct Told(Option<(String, Instant)>);

impl Told {
    fn is_news(&mut self, error: &IngestError) -> bool {
        let text = error.to_string();
        let known = self.0.as_ref().is_some_and(|(last, at)| *last == text && at.elapsed() < TELL_EVERY);
        if !known {
            self.0 = Some((text, Instant::now()));
        }
        !known
    }
}

fn tell(error: &IngestError, wait: Duration) {
    let cause = error_chain(error);
    if error.slot_in_use() {
        tracing::warn!(%error, cause, "this relay waits, and takes over when the slot is free");
    } else if error.is_transient() {
        tracing::warn!(%error, cause, retry_in = ?wait, "ingest was interrupted; it tries again until it works");
    } else {
        tracing::error!(%error, cause, retry_in = ?wait, "ingest has stopped; it goes on when this is mended");
    }
}

/// The causes beneath an error, for the log.
fn error_chain(error: &dyn std::error::Error) -> Option<String> {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    let causes: Vec<_> = causes.map(ToString::to_string).collect();
    (!causes.is_empty()).then(|| causes.join(": "))
}
