//! Wires the stages: configuration in, a running relay out; and the order in which it starts and stops.
//!
//! Nothing here waits for PostgreSQL: HTTP answers at once, `/ready` says 503, and ingest keeps trying.
//! The one token `Relay::shutdown` ends everything; the death of a critical task ends the program.

mod alarms;
mod edge;
mod embedded;
mod signals;
mod stopped;
mod tending;

use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Config;
use crate::devices::{Devices, Sessions};
use crate::ingest::{Ingest, IngestError, IngestOptions, SlotWatch};
use crate::log::LogOptions;
use crate::postgres::Target;
use crate::sync::{FullOptions, FullSync};
use crate::transport::{self, Caller, FrontDoor, Limits, Messages, Relay, Tickets, Tls};

use edge::Edge;
use embedded::EmbeddedDatabase;
use signals::Signals;

/// What ingest may have handed to the log before it has to wait. Several parts of a big transaction, and
/// far below what a transaction may cost in memory (256 MiB).
const LOG_QUEUE_BYTES: usize = 32 * 1024 * 1024;

/// More than anybody writes for long; a backlog comes twice as quickly on two old cores. Tests, which run debug
/// builds and write little, shall see both of the log's ways.
const LOG_GATHER_RATE: usize = if cfg!(debug_assertions) { 128 * 1024 } else { 32 * 1024 * 1024 };

/// A connection over which nothing is written for so long is closed. Longer than any request takes.
const IDLE_CONNECTION: Duration = Duration::from_secs(75);

/// How long a full sync waits for ingest to meet the present; then it says how far behind the relay is.
const FENCE_WAIT: Duration = Duration::from_secs(5);

/// Critical tasks: ingest, HTTP, metrics, the slot's guard, alarms, signing keys, the keeper of devices, tending.
/// Each fails at most once.
const CRITICAL_TASKS: usize = 8;

/// Runs the relay until SIGTERM, SIGINT or a failure that nobody can wait out.
pub async fn serve(config: Config) -> anyhow::Result<()> {
    let mut signals = Signals::listen().context("signals cannot be listened to")?;
    // Given up on the way, everything that was started ends with what it is held by.
    let mut running = tokio::select! {
        running = start(config) => running?,
        () = signals.stop() => return Ok(()),
    };
    announce(&running);
    let failure = tokio::select! {
        () = signals.stop() => None,
        failure = running.failed() => Some(failure),
    };
    let stopping = running.shutdown();
    tokio::select! {
        () = stopping => {}
        () = signals.stop() => {
            tracing::warn!("told twice: ending at once");
            std::process::exit(1);
        }
    }
    failure.map_or(Ok(()), Err)
}

/// A relay that runs in this process.
#[derive(Debug)]
pub struct Running {
    address: SocketAddr,
    /// Where `/metrics` is served, if apart.
    operation: Option<SocketAddr>,
    tls: bool,
    relay: Arc<Relay>,
    /// The tasks without which the relay is none.
    critical: TaskTracker,
    failures: mpsc::Receiver<anyhow::Error>,
    grace: Duration,
    database: Option<EmbeddedDatabase>,
}

/// Starts a relay. It listens when this returns; whether it is ready, `/ready` tells.
pub async fn start(config: Config) -> anyhow::Result<Running> {
    let verifier = edge::verifier(&config)?;
    let edge = Edge::open(&config).await?;
    let address = edge.devices.local_addr()?;
    let operation = edge.operation.as_ref().map(TcpListener::local_addr).transpose()?;
    let database = match config.embedded_directory() {
        Some(directory) => Some(EmbeddedDatabase::start(&directory).await?),
        None => None,
    };
    let metrics = transport::install_metrics();
    let options = ingest_options(&config, database.as_ref())?;
    let messages = Messages::new(options.target.clone(), config.device_topic.clone());
    let progress = Arc::default();
    let mut slot_watch = SlotWatch::new(&options, config.wal_limit, Arc::clone(&progress));
    let full = FullSync::new(full_options(&config, &options.target));
    // Opening the log reads the disk, and recovers after a crash.
    let opened = tokio::task::spawn_blocking(move || Ingest::new(options, progress)).await?;
    if opened.is_err() {
        // A log that cannot be opened, as on a full disk, must not disarm the guard: who is started again
        // and again looks once each time.
        slot_watch.look().await;
    }
    let (ingest, feed) = opened.map_err(stopped::explain)?;
    let sessions = Sessions::default();
    let relay = Arc::new(Relay {
        devices: Devices::new(feed.clone(), sessions.clone(), config.device_max_age),
        messages,
        feed,
        verifier,
        gate: edge::gate(&config),
        progress: ingest.progress(),
        sessions,
        full,
        tickets: Tickets::default(),
        limits: limits(&config),
        metrics,
        shutdown: CancellationToken::new(),
        tasks: TaskTracker::new(),
    });
    // No await from here on: what is started is held.
    let (failed, failures) = mpsc::channel(CRITICAL_TASKS);
    let running = Running {
        address,
        operation,
        tls: edge.tls.is_some(),
        relay,
        critical: TaskTracker::new(),
        failures,
        grace: config.shutdown_grace,
        database,
    };
    running.spawn_ingest(ingest, failed.clone())?;
    let shutdown = running.relay.shutdown.clone();
    running.spawn_critical("the slot's guard", failed.clone(), async move {
        slot_watch.run(shutdown).await;
        Ok(())
    });
    running.spawn_http(edge, &failed);
    running.spawn_keys(failed.clone());
    let (shutdown, tasks) = (running.relay.shutdown.clone(), running.relay.tasks.clone());
    let keeping = running.relay.devices.clone().keep(shutdown, tasks);
    running.spawn_critical("the keeper of devices", failed.clone(), async move {
        keeping.await;
        Ok(())
    });
    running.spawn_critical(
        "the alarms",
        failed.clone(),
        alarms::watch(Arc::clone(&running.relay), config.wal_alert, config.wal_limit),
    );
    let tending = tending::tend(Arc::clone(&running.relay), config.log_max_age);
    running.spawn_critical("tending", failed, tending);
    Ok(running)
}

impl Running {
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The private PostgreSQL's URL, where there is one.
    pub fn database_url(&self) -> Option<String> {
        self.database.as_ref().map(EmbeddedDatabase::url)
    }

    /// Waits until the relay cannot go on, and says why. Cancel-safe.
    pub async fn failed(&mut self) -> anyhow::Error {
        self.failures.recv().await.unwrap_or_else(|| anyhow::anyhow!("every task of the relay has ended"))
    }

    /// Ends it in order, within the grace period: no new connections, sessions are told to come back,
    /// what is durable is confirmed to PostgreSQL.
    pub async fn shutdown(mut self) {
        let deadline = Instant::now() + self.grace;
        tracing::info!(grace = ?self.grace, "shutting down");
        self.relay.shutdown.cancel();
        // Sessions at rest listen for their bells alone.
        if let Some(feed) = self.relay.current_feed() {
            feed.hub.wake_all();
        }
        self.relay.tasks.close();
        self.critical.close();
        let orderly = async {
            self.relay.tasks.wait().await;
            self.critical.wait().await;
        };
        if tokio::time::timeout_at(deadline, orderly).await.is_err() {
            tracing::warn!(grace = ?self.grace, "not everything ended in time: connections that are left are cut, and what was not confirmed to PostgreSQL is sent again");
        }
        if let Some(database) = &mut self.database {
            database.stop().await;
        }
        tracing::info!("stopped");
    }

    /// On a thread of its own, so that no amount of work for devices delays it.
    fn spawn_ingest(&self, ingest: Ingest, failed: mpsc::Sender<anyhow::Error>) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let shutdown = self.relay.shutdown.clone();
        let (ended, end) = oneshot::channel();
        let body = move || {
            // Nobody waits any more when the process is on its way out.
            let _ = ended.send(runtime.block_on(ingest.run(shutdown)));
        };
        std::thread::Builder::new().name("ingest".to_owned()).spawn(body)?;
        self.spawn_critical("ingest", failed, async move {
            // The sender goes without a word only in a panic, which is in the log.
            end.await.unwrap_or(Err(IngestError::Protocol("ingest panicked"))).map_err(stopped::explain)
        });
        Ok(())
    }

    fn spawn_http(&self, edge: Edge, failed: &mpsc::Sender<anyhow::Error>) {
        let relay = || Arc::clone(&self.relay);
        let shutdown = &self.relay.shutdown;
        // Sockets hear a heartbeat before that, and requests are answered.
        let patience = IDLE_CONNECTION.max(self.relay.limits.heartbeat * 3);
        let door = FrontDoor::new(edge.devices, patience).with_tls(edge.tls.as_ref().map(Tls::config));
        let serve = |door: FrontDoor, router: Router| {
            let service = router.into_make_service_with_connect_info::<Caller>();
            let ending =
                axum::serve(door, service).with_graceful_shutdown(shutdown.clone().cancelled_owned());
            async move { Ok(ending.await?) }
        };
        self.spawn_critical("the HTTP server", failed.clone(), serve(door, transport::router(relay())));
        if let Some(listener) = edge.operation {
            let door = FrontDoor::for_operation(listener, patience);
            let served = serve(door, transport::operation_router(relay()));
            self.spawn_critical("the metrics server", failed.clone(), served);
        }
        let sweeping = relay();
        let over = shutdown.clone();
        self.critical.spawn(async move { sweeping.gate.rates.sweep(over).await });
        if let Some(tls) = edge.tls {
            self.critical.spawn(tls.follow(shutdown.clone()));
        }
    }

    fn spawn_keys(&self, failed: mpsc::Sender<anyhow::Error>) {
        let relay = Arc::clone(&self.relay);
        self.spawn_critical("the refresh of signing keys", failed, async move {
            match &relay.verifier {
                Some(verifier) => verifier.refresh_keys(&relay.shutdown).await,
                None => relay.shutdown.cancelled().await,
            }
            Ok(())
        });
    }

    /// A task whose failure, panic or untimely end is the relay's.
    fn spawn_critical(
        &self,
        name: &'static str,
        failed: mpsc::Sender<anyhow::Error>,
        task: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) {
        let shutdown = self.relay.shutdown.clone();
        let task = tokio::spawn(task);
        self.critical.spawn(async move {
            let failure = match task.await {
                Ok(Ok(())) if shutdown.is_cancelled() => return,
                Ok(Ok(())) => anyhow::anyhow!("{name} ended"),
                Ok(Err(error)) => error,
                Err(error) => anyhow::Error::new(error).context(format!("{name} died")),
            };
            if shutdown.is_cancelled() {
                tracing::error!(error = format!("{failure:#}"), "{name} failed while shutting down");
            }
            // There is room for every task's failure; nobody listens during shutdown.
            let _ = failed.try_send(failure);
        });
    }
}

fn ingest_options(config: &Config, database: Option<&EmbeddedDatabase>) -> anyhow::Result<IngestOptions> {
    let embedded = database.map(EmbeddedDatabase::url);
    let url = embedded.as_deref().or(config.database_url.as_ref().map(|url| url.expose()));
    let url = url.context("no database_url is set")?;
    Ok(IngestOptions {
        target: Target::parse(url).context("database_url")?,
        slot: config.slot.clone(),
        log: LogOptions {
            directory: config.log_directory(),
            max_age: config.log_max_age,
            max_size: config.log_max_size,
            group_commit_interval: config.group_commit_interval,
            group_commit_size: size(config.group_commit_size),
            queue_size: LOG_QUEUE_BYTES,
            gather_rate: LOG_GATHER_RATE,
        },
        part_size: size(config.big_transaction_size),
        poll_interval: config.fingerprint_interval,
        several_issuers: config.jwt_issuer.len() > 1,
    })
}

fn full_options(config: &Config, target: &Target) -> FullOptions {
    FullOptions {
        target: target.clone(),
        snapshots: config.max_snapshots,
        longest: config.snapshot_timeout,
        queue_wait: config.snapshot_timeout,
        lock_timeout: config.snapshot_lock_timeout,
        fence_wait: FENCE_WAIT,
        spool_memory: config.spool_memory,
        spool_disk: config.spool_size,
        spool_age: config.spool_max_age,
        spool_directory: config.data_dir.join("spool"),
    }
}

fn limits(config: &Config) -> Limits {
    Limits {
        heartbeat: config.heartbeat,
        auth_timeout: config.auth_timeout,
        request_timeout: config.request_timeout,
        max_message_size: size(config.max_message_size),
        outbox_size: size(config.outbox_size),
        max_sessions_per_user: config.max_sessions_per_user,
        max_subscriptions_per_session: config.max_subscriptions_per_session,
        broadcast_replay: config.broadcast_replay,
        url_token: config.url_token,
        metrics_apart: config.metrics_listen.is_some(),
        ready_lag_bytes: config.ready_lag_bytes,
        ready_lag_time: config.ready_lag_time,
    }
}

fn size(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// Tells whoever started the program where it is. Nobody may be reading.
fn announce(running: &Running) {
    let mut out = std::io::stdout().lock();
    let mut say = |line: String| drop(writeln!(out, "{line}"));
    if let Some(url) = running.database_url() {
        say(format!("PostgreSQL runs at {url}"));
        say(format!("  make a table:  psql '{url}'"));
        say("  share it:      SELECT rowcast.track('public.orders');".to_owned());
        say("  make a token:  rowcast token --sub 42".to_owned());
        say("  watch it:      rowcast tail 'user:42:*'".to_owned());
    }
    if let Some(operation) = running.operation {
        say(format!("metrics at http://{operation}/metrics"));
    }
    let scheme = if running.tls { "https" } else { "http" };
    say(format!("listening on {scheme}://{}", running.address));
}
