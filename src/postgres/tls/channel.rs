//! From a fresh socket to a stream of bytes, in plain text or within TLS.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::binding;
use super::error::TlsError;

/// PostgreSQL's protocol within TLS, as registered for ALPN. Servers older than 17 pay no heed to it.
pub(super) const ALPN: &[u8] = b"postgresql";

/// What one attempt at a connection does about TLS.
#[derive(Clone)]
pub(crate) enum Security {
    Plain,
    /// TLS if the server offers it, else plain text.
    IfOffered(Terms),
    Required(Terms),
}

/// How TLS is spoken with one server.
#[derive(Clone)]
pub(crate) struct Terms {
    pub(super) connector: TlsConnector,
    pub(super) name: ServerName<'static>,
    pub(super) direct: bool,
}

/// A connection to a server.
#[derive(Debug)]
pub(crate) enum Channel<S> {
    Plain(S),
    Tls(Box<TlsStream<S>>),
}

/// The server's answer to a request for TLS.
enum Answer {
    Yes,
    No,
}

impl Security {
    pub(crate) fn is_plain(&self) -> bool {
        matches!(self, Security::Plain)
    }

    /// Does what is to be done before the startup message.
    pub(crate) async fn secure<S>(&self, mut socket: S) -> Result<Channel<S>, TlsError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let terms = match self {
            Security::Plain => return Ok(Channel::Plain(socket)),
            Security::IfOffered(terms) | Security::Required(terms) => terms,
        };
        if !terms.direct {
            match (ask(&mut socket).await?, self) {
                (Answer::Yes, _) => {}
                (Answer::No, Security::IfOffered(_)) => return Ok(Channel::Plain(socket)),
                (Answer::No, _) => return Err(TlsError::NotOffered),
            }
        }
        terms.shake_hands(socket).await
    }
}

impl std::fmt::Debug for Security {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Security::Plain => "no TLS",
            Security::IfOffered(_) => "TLS if offered",
            Security::Required(_) => "TLS",
        })
    }
}

/// SSLRequest, and its answer of one byte. What comes along with that byte was not sent by a server,
/// which now waits for us; taking it for the start of what TLS protects would let it be injected.
async fn ask(socket: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> Result<Answer, TlsError> {
    let mut request = BytesMut::new();
    frontend::ssl_request(&mut request);
    socket.write_all(&request).await.map_err(TlsError::Socket)?;
    socket.flush().await.map_err(TlsError::Socket)?;
    let mut answer = [0; 2];
    let length = socket.read(&mut answer).await.map_err(TlsError::Socket)?;
    match answer.get(..length) {
        Some(b"S") => Ok(Answer::Yes),
        Some(b"N") => Ok(Answer::No),
        Some(b"") | None => Err(TlsError::Socket(io::ErrorKind::UnexpectedEof.into())),
        Some([b'S' | b'N', _]) => Err(TlsError::Injected),
        // An error message. Nobody has proven to be our server, so its text is not shown.
        Some([b'E', ..]) => Err(TlsError::ServerFailed),
        Some(_) => Err(TlsError::NotPostgres),
    }
}

impl Terms {
    async fn shake_hands<S>(&self, socket: S) -> Result<Channel<S>, TlsError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let handshake = self.connector.connect(self.name.clone(), socket).await;
        let stream = handshake.map_err(|error| TlsError::from_handshake(error, self.direct))?;
        // Without the protocol's name another service could be made to answer on this port.
        if self.direct && stream.get_ref().1.alpn_protocol() != Some(ALPN) {
            return Err(TlsError::NotPostgres);
        }
        Ok(Channel::Tls(Box::new(stream)))
    }
}

impl<S> Channel<S> {
    /// What a SCRAM exchange is bound to on this channel, if it can be.
    pub(crate) fn end_point(&self) -> Option<Vec<u8>> {
        let Channel::Tls(stream) = self else { return None };
        binding::tls_server_end_point(stream.get_ref().1.peer_certificates()?.first()?)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Channel<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Channel::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Channel::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Channel<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Channel::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Channel::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Channel::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Channel::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Channel::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Channel::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
#[path = "channel_tests.rs"]
mod tests;
