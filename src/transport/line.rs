//! One connection as HTTP reads it: plain or under TLS, and no longer patient than a device needs.
//!
//! The handshake is made by whoever reads or writes first, which is the connection's own task: accepting
//! never waits for it. A handshake, and the head of a request from its first byte on, have to come
//! within [`HEAD_TIMEOUT`] and within [`MAX_HEAD_BYTES`]; who sends a byte now and then is cut off. A
//! connection that says nothing at all is the front door's to give up. Whether a head is awaited is
//! known only above HTTP: the guard tells it through [`Caller`].

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::IncomingStream;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};
use tokio_rustls::server::TlsStream;
use tokio_rustls::{Accept, TlsAcceptor};

use super::listener::{Connection, FrontDoor};

/// A handshake of three round trips over the worst of mobile links, and a head of a few packets.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Far more than a token and what proxies add; HTTP itself would buffer six times as much.
const MAX_HEAD_BYTES: usize = 64 * 1024;

/// A connection, from its first byte to its end.
#[derive(Debug)]
pub(crate) struct Line {
    wire: Wire,
    caller: Caller,
    /// No head is awaited any more.
    of_session: bool,
    /// The caller's, when it was last looked at.
    turn: u32,
    /// When the handshake or the head began that is not there yet.
    begun: Option<Instant>,
    /// What was read of that head.
    head_bytes: usize,
    /// Rings when it took too long. Only there while something is awaited: a quiet device has none.
    alarm: Option<Pin<Box<Sleep>>>,
}

/// Boxed, so that a plain connection is no larger than it has to be.
enum Wire {
    Plain(Connection),
    Handshake(Box<Accept<Connection>>),
    Tls(Box<TlsStream<Connection>>),
    /// The handshake failed.
    Broken,
}

/// Who is at the other end of a connection, for the handlers of its requests.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    peer: IpAddr,
    tls: bool,
    /// Counts both the heads that came and the answers to them: a head is awaited while it is even.
    turns: Arc<AtomicU32>,
}

impl Caller {
    fn new(peer: SocketAddr, tls: bool) -> Self {
        // A listener on [::] sees IPv4 peers as mapped addresses.
        let peer = peer.ip().to_canonical();
        Caller { peer, tls, turns: Arc::default() }
    }

    /// The connection's other end: the device, or the last proxy before the relay.
    pub(super) fn peer(&self) -> IpAddr {
        self.peer
    }

    /// Whether the device speaks TLS with the relay itself.
    pub(super) fn is_tls(&self) -> bool {
        self.tls
    }

    /// The head of a request is there.
    pub(super) fn head_came(&self) {
        self.turns.fetch_or(1, Ordering::Relaxed);
    }

    /// The answer to the head that came is there: what is read from now on is the head of another request.
    pub(super) fn await_head(&self) {
        self.turns.fetch_add(1, Ordering::Relaxed);
    }
}

impl Connected<IncomingStream<'_, FrontDoor>> for Caller {
    fn connect_info(stream: IncomingStream<'_, FrontDoor>) -> Self {
        stream.io().caller.clone()
    }
}

impl Line {
    pub(super) fn new(connection: Connection, peer: SocketAddr, tls: Option<&Arc<ServerConfig>>) -> Self {
        let (wire, begun) = match tls {
            Some(tls) => {
                let handshake = TlsAcceptor::from(Arc::clone(tls)).accept(connection);
                (Wire::Handshake(Box::new(handshake)), Some(Instant::now()))
            }
            None => (Wire::Plain(connection), None),
        };
        Line {
            wire,
            caller: Caller::new(peer, tls.is_some()),
            of_session: false,
            turn: 0,
            begun,
            head_bytes: 0,
            alarm: None,
        }
    }

    /// What is left for a session, which keeps its own time: no head is awaited any more, and how long
    /// nothing was written is seen to there.
    pub(super) fn for_session(mut self) -> Self {
        self.of_session = true;
        self.begun = None;
        self.alarm = None;
        match &mut self.wire {
            Wire::Plain(connection) => connection.never_give_up(),
            Wire::Tls(stream) => stream.get_mut().0.never_give_up(),
            Wire::Handshake(_) | Wire::Broken => {}
        }
        self
    }

    /// Ready when bytes of HTTP can go either way.
    fn poll_handshake(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Wire::Handshake(handshake) = &mut self.wire else { return Poll::Ready(Ok(())) };
        let Poll::Ready(done) = Pin::new(handshake.as_mut()).poll(context) else {
            return self.poll_overdue(context);
        };
        self.begun = None;
        self.alarm = None;
        match done {
            Ok(stream) => {
                self.wire = Wire::Tls(Box::new(stream));
                Poll::Ready(Ok(()))
            }
            Err(error) => {
                self.wire = Wire::Broken;
                tracing::debug!(peer = %self.caller.peer, %error, "a TLS handshake failed");
                metrics::counter!("rowcast_tls_handshake_failures_total").increment(1);
                Poll::Ready(Err(error))
            }
        }
    }

    /// Pending, or an error once what has begun takes too long.
    fn poll_overdue<T>(&mut self, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        let Some(begun) = self.begun else { return Poll::Pending };
        let alarm = || Box::pin(tokio::time::sleep_until(begun + HEAD_TIMEOUT));
        ready!(self.alarm.get_or_insert_with(alarm).as_mut().poll(context));
        tracing::debug!(peer = %self.caller.peer, "a request or a handshake came too slowly");
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    /// After `length` bytes were read.
    fn count(&mut self, length: usize) -> io::Result<()> {
        let turn = self.caller.turns.load(Ordering::Relaxed);
        if turn != self.turn {
            self.turn = turn;
            self.begun = None;
            self.alarm = None;
            self.head_bytes = 0;
        }
        let head_awaited = turn.is_multiple_of(2);
        if !head_awaited {
            return Ok(());
        }
        if length > 0 {
            self.begun.get_or_insert_with(Instant::now);
            self.head_bytes += length;
        }
        if self.head_bytes <= MAX_HEAD_BYTES {
            return Ok(());
        }
        tracing::debug!(peer = %self.caller.peer, "the head of a request is too large");
        Err(io::Error::new(io::ErrorKind::InvalidData, "the head of a request is too large"))
    }
}

impl Wire {
    fn stream(&mut self) -> io::Result<Pin<&mut dyn Stream>> {
        match self {
            Wire::Plain(connection) => Ok(Pin::new(connection)),
            Wire::Tls(stream) => Ok(Pin::new(stream.as_mut())),
            Wire::Handshake(_) | Wire::Broken => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin {}
impl<S: AsyncRead + AsyncWrite + Unpin> Stream for S {}

impl AsyncRead for Line {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.of_session {
            return self.wire.stream()?.poll_read(context, buffer);
        }
        ready!(self.poll_handshake(context))?;
        let before = buffer.filled().len();
        match self.wire.stream()?.poll_read(context, buffer) {
            Poll::Pending => {
                self.count(0)?;
                self.poll_overdue(context)
            }
            Poll::Ready(Ok(())) => {
                let length = buffer.filled().len() - before;
                Poll::Ready(self.count(length))
            }
            failed => failed,
        }
    }
}

impl AsyncWrite for Line {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_handshake(context))?;
        self.wire.stream()?.poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_handshake(context))?;
        self.wire.stream()?.poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        match &self.wire {
            Wire::Plain(connection) => connection.is_write_vectored(),
            Wire::Tls(stream) => stream.is_write_vectored(),
            Wire::Handshake(_) | Wire::Broken => false,
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.wire {
            // Nothing was written yet.
            Wire::Handshake(_) => Poll::Ready(Ok(())),
            wire => wire.stream()?.poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.wire {
            // The socket closes when it is dropped.
            Wire::Handshake(_) | Wire::Broken => Poll::Ready(Ok(())),
            wire => wire.stream()?.poll_shutdown(context),
        }
    }
}

impl std::fmt::Debug for Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Wire::Plain(_) => "Plain",
            Wire::Handshake(_) => "Handshake",
            Wire::Tls(_) => "Tls",
            Wire::Broken => "Broken",
        })
    }
}
