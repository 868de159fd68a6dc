//! A TCP proxy between the relay and Postgres, or a device and the relay, that cuts, stalls and slows.
//!
//! In front of Postgres it also knows replication streams from ordinary sessions, and can make commit
//! times jump ([`commit_times`]).

mod commit_times;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use commit_times::{Jumps, Rewriting};

/// How often a slow direction passes its share.
const TICK: Duration = Duration::from_millis(20);

/// Where the proxy leads.
#[derive(Debug, Clone)]
pub(crate) enum Upstream {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// The way of the bytes, seen from the one who connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    ToServer,
    ToClient,
}

/// How a direction flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flow {
    Open,
    /// Nothing passes, and nobody is told.
    Stalled,
    BytesPerSecond(usize),
}

#[derive(Debug, Clone)]
struct State {
    upstream: Upstream,
    to_server: Flow,
    to_client: Flow,
    /// What the server sends on replication connections, where it does not flow as the rest.
    changes: Flow,
    /// Connections made under an earlier count are cut.
    cuts: u64,
    /// Connections made under an earlier count are stalled for good.
    silences: u64,
    accepting: bool,
}

/// What one connection was when it was made.
#[derive(Debug, Clone, Copy)]
struct Made {
    cuts: u64,
    silences: u64,
    replication: bool,
}

/// A running proxy; its connections end with it.
pub(crate) struct Proxy {
    address: SocketAddr,
    state: watch::Sender<State>,
    jumps: Option<Arc<Mutex<Jumps>>>,
    task: JoinHandle<()>,
}

impl Proxy {
    pub(crate) async fn start(upstream: Upstream) -> Self {
        Self::start_with(upstream, None).await
    }

    /// In front of a Postgres, to which everyone connects without TLS.
    pub(crate) async fn start_before_postgres(upstream: Upstream) -> Self {
        Self::start_with(upstream, Some(Arc::default())).await
    }

    async fn start_with(upstream: Upstream, jumps: Option<Arc<Mutex<Jumps>>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let open = State {
            upstream,
            to_server: Flow::Open,
            to_client: Flow::Open,
            changes: Flow::Open,
            cuts: 0,
            silences: 0,
            accepting: true,
        };
        let (state, watching) = watch::channel(open);
        let task = tokio::spawn(accept(listener, watching, jumps.clone()));
        Proxy { address, state, jumps, task }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The superuser's URL of a Postgres behind this proxy.
    pub(crate) fn postgres_url(&self, database: &str) -> String {
        format!("postgresql://postgres@{}/{database}?sslmode=disable", self.address)
    }

    /// Leads new connections elsewhere, as to a server that was started again at another port.
    pub(crate) fn lead_to(&self, upstream: Upstream) {
        self.state.send_modify(|state| state.upstream = upstream);
    }

    /// Closes every connection; new ones are welcome.
    pub(crate) fn cut(&self) {
        self.state.send_modify(|state| state.cuts += 1);
    }

    /// Stalls every open connection for good, as a path that is gone does; new ones pass.
    pub(crate) fn silence(&self) {
        self.state.send_modify(|state| state.silences += 1);
    }

    /// Closes every connection, and new ones at once, until [`Proxy::let_in`].
    pub(crate) fn shut_out(&self) {
        self.state.send_modify(|state| {
            state.cuts += 1;
            state.accepting = false;
        });
    }

    pub(crate) fn let_in(&self) {
        self.state.send_modify(|state| state.accepting = true);
    }

    /// Sets how one direction flows, for connections that are open too.
    pub(crate) fn set(&self, direction: Direction, flow: Flow) {
        self.state.send_modify(|state| match direction {
            Direction::ToServer => state.to_server = flow,
            Direction::ToClient => state.to_client = flow,
        });
    }

    /// Sets how what Postgres sends on replication connections flows; ordinary sessions are as before.
    pub(crate) fn set_changes(&self, flow: Flow) {
        self.state.send_modify(|state| state.changes = flow);
    }

    /// From the next commit on, commit times lie up to `most` before or after the true ones. A commit
    /// that is sent again has the time that it had.
    pub(crate) fn jump_commit_times(&self, seed: u64, most: Duration) {
        let jumps = self.jumps.as_ref().expect("a proxy before Postgres");
        jumps.lock().unwrap().begin(seed, most);
    }

    /// How many commits passed with another time than their own.
    pub(crate) fn jumped(&self) -> u64 {
        self.jumps.as_ref().map_or(0, |jumps| jumps.lock().unwrap().jumped())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // The connections see their channel close.
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, state: watch::Receiver<State>, jumps: Option<Arc<Mutex<Jumps>>>) {
    loop {
        let Ok((client, _)) = listener.accept().await else { continue };
        let now = state.borrow().clone();
        if now.accepting {
            tokio::spawn(serve(client, state.clone(), now, jumps.clone()));
        }
    }
}

async fn serve(
    mut client: TcpStream,
    state: watch::Receiver<State>,
    now: State,
    jumps: Option<Arc<Mutex<Jumps>>>,
) {
    let _ = client.set_nodelay(true);
    let mut first = Vec::new();
    if jumps.is_some() {
        let Some(packet) = commit_times::startup(&mut client).await else { return };
        first = packet;
    }
    let replication = commit_times::is_replication(&first);
    let made = Made { cuts: now.cuts, silences: now.silences, replication };
    let rewriting = jumps.filter(|_| replication).map(Rewriting::new);
    match now.upstream {
        Upstream::Tcp(address) => {
            let Ok(server) = TcpStream::connect(address).await else { return };
            let _ = server.set_nodelay(true);
            join(client, server, first, state, made, rewriting).await;
        }
        Upstream::Unix(path) => {
            let Ok(server) = UnixStream::connect(path).await else { return };
            join(client, server, first, state, made, rewriting).await;
        }
    }
}

async fn join(
    client: TcpStream,
    server: impl AsyncRead + AsyncWrite,
    first: Vec<u8>,
    mut state: watch::Receiver<State>,
    made: Made,
    rewriting: Option<Rewriting>,
) {
    let flow =
        move |state: &State, flow: Flow| if state.silences == made.silences { flow } else { Flow::Stalled };
    let sent = move |state: &State| match state.changes {
        Flow::Open => state.to_client,
        other if made.replication => other,
        _ => state.to_client,
    };
    let (client_read, client_write) = tokio::io::split(client);
    let (server_read, server_write) = tokio::io::split(server);
    let to_server = pump(
        client_read,
        server_write,
        first,
        state.clone(),
        move |state| flow(state, state.to_server),
        None,
    );
    let to_client = pump(
        server_read,
        client_write,
        Vec::new(),
        state.clone(),
        move |state| flow(state, sent(state)),
        rewriting,
    );
    tokio::select! {
        // One that breaks takes the other along, as a process that dies does.
        _ = async { tokio::try_join!(to_server, to_client) } => {}
        // Also when the proxy is dropped.
        _ = state.wait_for(|state| state.cuts != made.cuts) => {}
    }
}

/// A direction that broke, or whose proxy is gone.
struct Broken;

/// Passes bytes one way until their end, then closes that direction.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    first: Vec<u8>,
    mut state: watch::Receiver<State>,
    flow: impl Fn(&State) -> Flow,
    mut rewriting: Option<Rewriting>,
) -> Result<(), Broken> {
    to.write_all(&first).await.map_err(|_| Broken)?;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let now = state.wait_for(|state| flow(state) != Flow::Stalled).await.map(|now| flow(&now));
        let now = now.map_err(|_| Broken)?;
        let share = match now {
            Flow::BytesPerSecond(rate) => (rate / 50).clamp(1, buffer.len()),
            Flow::Open | Flow::Stalled => buffer.len(),
        };
        let length = from.read(&mut buffer[..share]).await.map_err(|_| Broken)?;
        if length == 0 {
            return to.shutdown().await.map_err(|_| Broken);
        }
        // It may have stalled while nothing was there to read.
        state.wait_for(|state| flow(state) != Flow::Stalled).await.map_err(|_| Broken)?;
        match &mut rewriting {
            Some(rewriting) => to.write_all(&rewriting.pass(&buffer[..length])).await,
            None => to.write_all(&buffer[..length]).await,
        }
        .map_err(|_| Broken)?;
        if let Flow::BytesPerSecond(_) = now {
            tokio::time::sleep(TICK).await;
        }
    }
}
