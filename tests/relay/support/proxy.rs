//! A TCP proxy between the relay and Postgres, or a device and the relay, that cuts, stalls and slows.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How often a slow direction passes its share.
const TICK: Duration = Duration::from_millis(20);

/// Where the proxy leads.
#[derive(Debug, Clone)]
pub(crate) enum Upstream {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// The way of the bytes, seen from the one who connects.
#[derive(Debug, Clone, Copy)]
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

#[derive(Debug, Clone, Copy)]
struct State {
    to_server: Flow,
    to_client: Flow,
    /// Connections made under an earlier count are cut.
    cuts: u64,
    /// Connections made under an earlier count are stalled for good.
    silences: u64,
    accepting: bool,
}

/// A running proxy; its connections end with it.
pub(crate) struct Proxy {
    address: SocketAddr,
    state: watch::Sender<State>,
    task: JoinHandle<()>,
}

impl Proxy {
    pub(crate) async fn start(upstream: Upstream) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let open =
            State { to_server: Flow::Open, to_client: Flow::Open, cuts: 0, silences: 0, accepting: true };
        let (state, watching) = watch::channel(open);
        let task = tokio::spawn(accept(listener, upstream, watching));
        Proxy { address, state, task }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The superuser's URL of a Postgres behind this proxy.
    pub(crate) fn postgres_url(&self, database: &str) -> String {
        format!("postgresql://postgres@{}/{database}?sslmode=disable", self.address)
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
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // The connections see their channel close.
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, upstream: Upstream, state: watch::Receiver<State>) {
    loop {
        let Ok((client, _)) = listener.accept().await else { continue };
        let now = *state.borrow();
        if now.accepting {
            tokio::spawn(serve(client, upstream.clone(), state.clone(), now));
        }
    }
}

async fn serve(client: TcpStream, upstream: Upstream, state: watch::Receiver<State>, made: State) {
    let _ = client.set_nodelay(true);
    match upstream {
        Upstream::Tcp(address) => {
            let Ok(server) = TcpStream::connect(address).await else { return };
            let _ = server.set_nodelay(true);
            join(client, server, state, made).await;
        }
        Upstream::Unix(path) => {
            let Ok(server) = UnixStream::connect(path).await else { return };
            join(client, server, state, made).await;
        }
    }
}

async fn join(
    client: TcpStream,
    server: impl AsyncRead + AsyncWrite,
    mut state: watch::Receiver<State>,
    made: State,
) {
    let flow =
        move |state: &State, flow: Flow| if state.silences == made.silences { flow } else { Flow::Stalled };
    let (client_read, client_write) = tokio::io::split(client);
    let (server_read, server_write) = tokio::io::split(server);
    let to_server = pump(client_read, server_write, state.clone(), move |state| flow(state, state.to_server));
    let to_client = pump(server_read, client_write, state.clone(), move |state| flow(state, state.to_client));
    tokio::select! {
        _ = async { tokio::join!(to_server, to_client) } => {}
        // Also when the proxy is dropped.
        _ = state.wait_for(|state| state.cuts != made.cuts) => {}
    }
}

/// Passes bytes one way until their end, then closes that direction.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut state: watch::Receiver<State>,
    flow: impl Fn(&State) -> Flow,
) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let Ok(now) = state.wait_for(|state| flow(state) != Flow::Stalled).await.map(|now| flow(&now)) else {
            return;
        };
        let share = match now {
            Flow::BytesPerSecond(rate) => (rate / 50).clamp(1, buffer.len()),
            Flow::Open | Flow::Stalled => buffer.len(),
        };
        let Ok(length) = from.read(&mut buffer[..share]).await else { return };
        if length == 0 {
            let _ = to.shutdown().await;
            return;
        }
        // It may have stalled while nothing was there to read.
        if state.wait_for(|state| flow(state) != Flow::Stalled).await.is_err() {
            return;
        }
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
        if let Flow::BytesPerSecond(_) = now {
            tokio::time::sleep(TICK).await;
        }
    }
}
