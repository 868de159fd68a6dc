//! Keeps ingest going: connects, goes on with the log or begins a new one, streams, and starts over
//! after any failure, with growing pauses and without end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::driver::{Driver, STATE_ROUTER, STATE_SHAPES};
use super::error::IngestError;
use super::history::Identity;
use super::opening::{self, Decision, Found, FoundSlot, Known, NewEpoch, Refused, STATE_IDENTITY};
use super::opening_stream::OpeningStream;
use super::poller::Poller;
use super::progress::{Progress, State};
use super::publication::Publishes;
use super::release::released;
use super::resuming::{open_feed, read_state, restored_router};
use super::{IngestOptions, PUBLICATION, stall, visibility};
use crate::cursor::Epoch;
use crate::feed::{CurrentFeed, Feed};
use crate::horizon::Horizon;
use crate::log::{Append, Beginning, FjallLog, StateChange};
use crate::lsn::Lsn;
use crate::postgres::Database;
use crate::route::Router;
use crate::timestamp::PgTimestamp;
use crate::wal::{ReplicationConnection, ReplicationStream};

/// Stands in the log while a relay streams into it. Found there at a start, it tells of a crash.
const STATE_STREAMED: &str = "streamed";
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
    /// There is a log whose disk is too full to open it.
    unopened: bool,
    /// Once it streamed, a mistake in the setup is waited out; before, it ends the program.
    streamed: bool,
    /// The greatest commit time that anyone was told of before the log that begins: devices may ask by it. Each
    /// log hands it on to the next, also over restarts, for a log stays in its place until the next is whole.
    greatest_before: i64,
    /// The log was left by a relay that did not end in order: what devices saw last may not be in it.
    crash: Option<Crash>,
}

/// The server sends again what a crash took from the log.
#[derive(Debug)]
struct Crash {
    /// All that devices can have seen lies before this: the server's end when it was first asked.
    before: Option<Lsn>,
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
        let (feed, unopened) = match open_feed(&options) {
            Ok(feed) => (feed, false),
            Err(IngestError::Log(error)) if error.is_full() => {
                tracing::error!(%error, "the log cannot be opened yet: its disk is full");
                progress.set_log_trouble(Some(FjallLog::trouble_with(&options.log, &error)));
                (None, true)
            }
            Err(error) => return Err(error),
        };
        let crash = crash_of(feed.as_ref())?;
        let (feed, receiver) = watch::channel(feed);
        let greatest_before = i64::MIN;
        Ok((Ingest { options, feed, progress, unopened, streamed: false, greatest_before, crash }, receiver))
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
                if let Err(error) = result {
                    tracing::warn!(%error, "the last position could not be confirmed; the server will send again what follows the one before");
                }
                // A log that stalls is not waited for.
                let ended = tokio::time::timeout(CLOSE_GRACE, self.end_in_order()).await;
                if let Err(error) = ended.unwrap_or(Err(IngestError::EndStalled)) {
                    tracing::warn!(%error, "the log could not be ended in order; should PostgreSQL fail over before the next start, every device has to sync in full");
                }
                return Ok(());
            }
            let Err(error) = result else { continue };
            if error.ends_the_log() || (!self.streamed && !error.is_transient()) {
                return Err(error);
            }
            if streamed_now {
                pause = BACKOFF_MIN;
            }
            self.progress.set_log_trouble(match &error {
                IngestError::Log(error) if error.is_full() => {
                    Some(FjallLog::trouble_with(&self.options.log, error))
                }
                _ => None,
            });
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
        if self.unopened {
            let options = self.options.clone();
            let opened = tokio::task::spawn_blocking(move || open_feed(&options)).await;
            let feed = opened.map_err(|_| IngestError::Protocol("opening the log was given up"))??;
            self.crash = crash_of(feed.as_ref())?;
            self.feed.send_replace(feed);
            self.unopened = false;
        }
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
        let known = self.known().await?;
        let anew = match opening::decide(known.as_ref(), &connected.found) {
            Decision::Resume => None,
            Decision::Begin(why) => Some(why),
            Decision::Refuse(Refused { server, log }) => {
                return Err(IngestError::setup(
                    format!(
                        "the server is on timeline {server}, which the log left for timeline {log}: it is a former primary"
                    ),
                    "stop it or take it out of database_url; if it is meant to be the primary again, move the log's directory away",
                ));
            }
        };
        self.progress.restart_server_end(connected.found.server_end);
        let publication = (connected.found.identity.publication, connected.found.identity.publishes.clone());
        let (feed, router, stream, database) = match anew {
            // A log that stalls is waited for.
            None => match shutdown.run_until_cancelled(self.resume(connected)).await {
                Some(resumed) => resumed?,
                None => return Ok(()),
            },
            Some(why) => {
                let Some(begun) = self.begin(connected, &why, shutdown).await? else { return Ok(()) };
                begun
            }
        };
        self.stream(feed, router, stream, database, publication, shutdown).await
    }

    /// What the log remembers, once all that devices were sent is in it.
    async fn known(&mut self) -> Result<Option<Known>, IngestError> {
        let Some(feed) = self.feed.borrow().clone() else { return Ok(None) };
        feed.log.applied().await?;
        let identity: Option<Identity> = read_state(&feed, STATE_IDENTITY)?;
        let end = feed.watermark().lsn;
        self.crash.take_if(|crash| crash.before.is_some_and(|before| before <= end));
        Ok(identity.map(|identity| Known { identity, end, crashed: self.crash.is_some() }))
    }

    /// Keeps in the log that it holds all that devices were sent.
    async fn end_in_order(&mut self) -> Result<(), IngestError> {
        // Neither where a crash before is not made good yet.
        if self.known().await?.is_none_or(|known| known.crashed) {
            return Ok(());
        }
        let Some(feed) = self.feed.borrow().clone() else { return Ok(()) };
        submit_state(&feed, vec![(STATE_STREAMED.to_owned(), None)]).await
    }

    async fn connect(&self) -> Result<Connected, IngestError> {
        let mut database = Database::new(self.options.target.clone());
        let client = database.client().await?;
        let looked = opening::look(client, &self.options.slot).await?;
        let mut connection =
            ReplicationConnection::connect(&self.options.target).await.map_err(crate::wal::WalError::from)?;
        let system = connection.identify_system().await?;
        if (looked.system_id, looked.timeline) != (system.system_id, system.timeline) {
            return Err(IngestError::TwoServers);
        }
        let identity = Identity {
            system_id: system.system_id,
            database: system.dbname,
            slot: self.options.slot.clone(),
            timeline: system.timeline,
            publication: looked.publication,
            publishes: looked.publishes,
            history: connection.timeline_history(system.timeline).await?,
        };
        let found = Found { identity, server_end: system.xlogpos, slot: looked.slot };
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
        &mut self,
        mut connected: Connected,
    ) -> Result<(Arc<Feed>, Router, ReplicationStream, Database), IngestError> {
        let Some(feed) = self.feed.borrow().clone() else {
            return Err(IngestError::Protocol("no log to go on with"));
        };
        // The router's state belongs to the position that readers see: everything accepted is applied.
        feed.log.applied().await?;
        feed.log.flush().await?;
        let identity = serde_json::to_vec(&connected.found.identity)?;
        let streamed = (STATE_STREAMED.to_owned(), Some(Vec::new()));
        submit_state(&feed, vec![(STATE_IDENTITY.to_owned(), Some(identity)), streamed]).await?;
        if let Some(crash) = &mut self.crash {
            crash.before.get_or_insert(connected.found.server_end);
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
        // Before a slot is made for a log that there is no room for.
        let options = self.options.log.clone();
        tokio::task::spawn_blocking(move || FjallLog::has_room(&options))
            .await
            .map_err(|_| IngestError::Protocol("trying the disk was given up"))??;
        self.progress.set_state(State::Opening);
        if *why == NewEpoch::NoLog && connected.found.slot.is_none() {
            tracing::info!("beginning a log");
        } else {
            tracing::error!(%why, "a new epoch begins: every device has to sync in full");
            metrics::counter!("rowcast_new_epochs_total").increment(1);
        }
        self.crash = None;
        // What the old log holds ends here; its readers are told before it is taken away.
        if let Some(old) = self.feed.send_replace(None) {
            old.hub.close();
            self.greatest_before = self.greatest_before.max(old.greatest_told());
            if shutdown.run_until_cancelled(released(old)).await.is_none() {
                return Ok(None);
            }
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
            (STATE_STREAMED.to_owned(), Vec::new()),
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
        self.progress.set_log_trouble(None);
        self.streamed = true;
        let log = Arc::clone(&feed.log);
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
        let result = tokio::select! {
            result = driver.run(shutdown) => result,
            () = stall::server_stops(log, Arc::clone(&self.progress), self.options.target.clone()) => {
                Err(IngestError::ServerStops)
            }
            () = stall::end_waited_for(shutdown) => Err(IngestError::EndStalled),
        };
        stop.cancel();
        drop((poller, watching));
        result
    }
}

/// Whether the relay that wrote the log last did not end in order.
fn crash_of(feed: Option<&Arc<Feed>>) -> Result<Option<Crash>, IngestError> {
    let Some(feed) = feed else { return Ok(None) };
    Ok(feed.log.state(STATE_STREAMED)?.map(|_| Crash { before: None }))
}

/// Keeps named values in the log, and waits until they are safe.
async fn submit_state(feed: &Feed, state: Vec<StateChange>) -> Result<(), IngestError> {
    // Everything accepted is applied, and one append is always taken by an empty queue.
    feed.log.applied().await?;
    if feed.log.submit(Append { state, ..Append::default() })?.is_err() {
        return Err(IngestError::Protocol("an empty queue refused an append"));
    }
    feed.log.applied().await?;
    Ok(feed.log.flush().await?)
}

/// A third of the time after which the server gives up on us.
pub(super) async fn status_interval(database: &mut Database) -> Result<Duration, IngestError> {
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
