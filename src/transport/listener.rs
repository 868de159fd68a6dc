//! The front door: how many connections are open at once, and when one is given up.
//!
//! Each connection takes a file descriptor, and so do the log and the connections to PostgreSQL, without
//! which the relay ends. So connections are counted against the process's limit before they are accepted,
//! and those that are too many wait in the system's queue. Over each connection something is written again
//! and again (answers, heartbeats); one over which nothing was written for long never asked for anything,
//! or takes nothing, and is closed; a session keeps that time itself. It must not know what goes over a connection.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::serve::Listener;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};

use super::line::Line;

/// File descriptors that are left to the log, to PostgreSQL and to the process itself.
const RESERVED_FILES: u64 = 256;

/// More connections than any machine serves; keeps an unlimited process countable.
const MOST_CONNECTIONS: u64 = 1 << 20;

/// Connections to the operator's address at once, out of the reserved files.
const OPERATION_PLACES: usize = 32;

/// How often a full house is reported.
const FULL_REPORT: Duration = Duration::from_secs(60);

/// Accepts connections while there are places for them.
#[derive(Debug)]
pub(crate) struct FrontDoor {
    listener: TcpListener,
    tls: Option<Arc<ServerConfig>>,
    places: Arc<Semaphore>,
    /// Nothing written for so long: the connection is closed.
    patience: Duration,
    reported: Option<Instant>,
}

impl FrontDoor {
    /// Takes the process's limit of open files as far up as it may go, and counts against it.
    pub(crate) fn new(listener: TcpListener, patience: Duration) -> Self {
        Self::with_places(listener, patience, connections(raise_open_files()))
    }

    /// For the operator: few connections, which have their places even when devices have taken all others.
    pub(crate) fn for_operation(listener: TcpListener, patience: Duration) -> Self {
        Self::with_places(listener, patience, OPERATION_PLACES)
    }

    /// Connections are under TLS.
    #[must_use]
    pub(crate) fn with_tls(mut self, tls: Option<Arc<ServerConfig>>) -> Self {
        self.tls = tls;
        self
    }

    fn with_places(listener: TcpListener, patience: Duration, places: usize) -> Self {
        FrontDoor { listener, tls: None, places: Arc::new(Semaphore::new(places)), patience, reported: None }
    }

    async fn place(&mut self) -> Option<OwnedSemaphorePermit> {
        let free = Arc::clone(&self.places).try_acquire_owned().ok();
        if free.is_some() {
            return free;
        }
        if self.reported.is_none_or(|at| at.elapsed() >= FULL_REPORT) {
            self.reported = Some(Instant::now());
            tracing::warn!(
                "as many connections are open as the limit of open files bears; new ones wait. Raise the limit (ulimit -n, LimitNOFILE)"
            );
        }
        // The semaphore is never closed.
        Arc::clone(&self.places).acquire_owned().await.ok()
    }
}

/// The limit of open files, raised to what the process may have.
fn raise_open_files() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 1024 };
    if soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() { hard } else { soft }
}

/// How many connections a limit of open files bears.
fn connections(files: u64) -> usize {
    let most = files.saturating_sub(RESERVED_FILES).max(files / 4).clamp(1, MOST_CONNECTIONS);
    usize::try_from(most).unwrap_or(usize::MAX)
}

impl Listener for FrontDoor {
    type Io = Line;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Line, SocketAddr) {
        let place = self.place().await;
        let (stream, address) = Listener::accept(&mut self.listener).await;
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY could not be set");
        }
        let connection = Connection {
            stream,
            patience: self.patience,
            written: Instant::now(),
            alarm: Some(Box::pin(tokio::time::sleep(self.patience))),
            _place: place,
        };
        (Line::new(connection, address, self.tls.as_ref()), address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that has its place until it is dropped.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    patience: Duration,
    /// When something was last written.
    written: Instant,
    /// Rings at `written + patience`, or before it: it is set anew only when it rings. `None`: whoever has
    /// the connection sees to it.
    alarm: Option<Pin<Box<Sleep>>>,
    _place: Option<OwnedSemaphorePermit>,
}

impl Connection {
    /// From now on it is not given up here.
    pub(super) fn never_give_up(&mut self) {
        self.alarm = None;
    }

    /// What a wait becomes: an error once it has lasted too long.
    fn waiting<T>(&mut self, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        let Some(alarm) = &mut self.alarm else { return Poll::Pending };
        loop {
            ready!(alarm.as_mut().poll(context));
            let due = self.written + self.patience;
            if due <= Instant::now() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            alarm.as_mut().reset(due);
        }
    }

    fn after_write(
        &mut self,
        context: &mut Context<'_>,
        result: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if result.is_pending() {
            return self.waiting(context);
        }
        if self.alarm.is_some() {
            self.written = Instant::now();
        }
        result
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.stream).poll_read(context, buffer) {
            Poll::Pending => self.waiting(context),
            result => result,
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.after_write(context, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.after_write(context, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn door(patience: Duration, places: usize) -> FrontDoor {
        FrontDoor::with_places(TcpListener::bind("127.0.0.1:0").await.unwrap(), patience, places)
    }

    #[test]
    fn the_log_keeps_files_whatever_the_limit() {
        for (files, most) in [(0, 1), (200, 50), (1024, 768), (20_000, 19_744), (u64::MAX, 1 << 20)] {
            assert_eq!(connections(files), most, "{files}");
        }
    }

    #[tokio::test]
    async fn a_connection_waits_for_a_place() {
        let mut door = door(Duration::from_secs(60), 1).await;
        let address = door.local_addr().unwrap();
        let _clients =
            [TcpStream::connect(address).await.unwrap(), TcpStream::connect(address).await.unwrap()];
        let (first, _) = door.accept().await;
        assert!(tokio::time::timeout(Duration::from_millis(50), door.accept()).await.is_err());
        drop(first);
        assert!(tokio::time::timeout(Duration::from_secs(5), door.accept()).await.is_ok());
    }

    #[tokio::test]
    async fn who_asks_for_nothing_and_who_takes_nothing_is_given_up() {
        let mut door = door(Duration::from_millis(100), 2).await;
        let mut client = TcpStream::connect(door.local_addr().unwrap()).await.unwrap();
        let (mut connection, _) = door.accept().await;
        // A byte now and then does not help.
        client.write_all(b"G").await.unwrap();
        let mut read = [0; 8];
        assert_eq!(connection.read(&mut read).await.unwrap(), 1);
        let begun = Instant::now();
        connection.write_all(b"answer").await.unwrap();
        assert_eq!(connection.read(&mut read).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(begun.elapsed() >= Duration::from_millis(100));
        let error = loop {
            if let Err(error) = connection.write_all(&[0; 64 * 1024]).await {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
