//! The protocol's messages over a byte stream, in both directions.
//!
//! Owns all bytes in flight: what is half read stays in `input`, what is half written in `output`, so
//! every wait here may be dropped (`select!`, a time limit) and taken up again without losing any.
//! A body is cut from the receive chunk it arrived in, never copied.

use std::io;

use bytes::{Bytes, BytesMut};
use postgres_protocol::message::backend::{self, Message};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, UnixStream};

use super::error::WalError;
use crate::postgres::{Channel, ConnectError, Endpoint, Host, Security};

/// Size of a receive buffer: large enough that a busy stream needs few reads, small enough that a
/// kept body pins little.
pub(super) const CHUNK: usize = 128 * 1024;
/// Read on into the same buffer while it has at least this much room.
const LEAST_ROOM: usize = 16 * 1024;
/// Type and length.
const HEADER: usize = 5;
/// PostgreSQL builds no message above its 1 GiB limit for one allocation.
const LARGEST: usize = 1 << 30;
/// Before the session is open the peer may be anyone, and no message is long.
const LARGEST_AT_STARTUP: usize = 64 * 1024;

type Reader = Box<dyn AsyncRead + Send + Sync + Unpin>;
type Writer = Box<dyn AsyncWrite + Send + Sync + Unpin>;

/// A connection's two directions, and the bytes between them and us.
pub(super) struct Wire {
    reader: Reader,
    writer: Writer,
    input: BytesMut,
    pub(super) output: BytesMut,
    /// TLS may hold back what it took of `output`.
    unflushed: bool,
    /// What ties SCRAM to this connection, within TLS.
    end_point: Option<Vec<u8>>,
    /// A failed write. Reading goes on: the server's reason may still be on its way.
    broken: Option<io::Error>,
    largest: usize,
}

impl std::fmt::Debug for Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Wire({} bytes in, {} bytes out)", self.input.len(), self.output.len())
    }
}

/// One message of the server.
pub(super) enum Packet {
    CopyData(Bytes),
    /// The answer to START_REPLICATION, which postgres-protocol does not know.
    CopyBothResponse,
    Other(Message),
}

impl Wire {
    /// Opens the socket, and TLS on it.
    pub(super) async fn open(
        endpoint: &Endpoint,
        security: &Security,
        keepalives: bool,
    ) -> Result<Wire, ConnectError> {
        let unreachable = |source| ConnectError::Unreachable { endpoint: endpoint.to_string(), source };
        let (name, address) = match &endpoint.host {
            Host::Unix(directory) => {
                let path = directory.join(format!(".s.PGSQL.{}", endpoint.port));
                let (reader, writer) = UnixStream::connect(path).await.map_err(unreachable)?.into_split();
                return Ok(Wire::new(Box::new(reader), Box::new(writer)));
            }
            Host::Tcp(name, address) => (name, *address),
        };
        let socket = open_tcp(name, address, endpoint.port, keepalives).await.map_err(unreachable)?;
        let channel = security.secure(socket).await.map_err(|error| ConnectError::tls(endpoint, error))?;
        let end_point = channel.end_point();
        let wire = match channel {
            // Halves of a bare socket need no lock.
            Channel::Plain(socket) => {
                let (reader, writer) = socket.into_split();
                Wire::new(Box::new(reader), Box::new(writer))
            }
            Channel::Tls(stream) => {
                let (reader, writer) = tokio::io::split(stream);
                Wire::new(Box::new(reader), Box::new(writer))
            }
        };
        Ok(Wire { end_point, ..wire })
    }

    pub(super) fn new(reader: Reader, writer: Writer) -> Wire {
        Wire {
            reader,
            writer,
            input: BytesMut::with_capacity(CHUNK),
            output: BytesMut::new(),
            unflushed: false,
            end_point: None,
            broken: None,
            largest: LARGEST_AT_STARTUP,
        }
    }

    /// Bytes that were received and not taken.
    pub(super) fn unread(&self) -> usize {
        self.input.len()
    }

    /// The `tls-server-end-point` of this connection, if it has one.
    pub(super) fn end_point(&self) -> Option<&[u8]> {
        self.end_point.as_deref()
    }

    /// The peer has proven to be our server: long messages are welcome from here on.
    pub(super) fn trust(&mut self) {
        self.largest = LARGEST;
    }

    /// The next message; also carries out what is to be sent. Cancel-safe.
    pub(super) async fn next(&mut self) -> Result<Packet, WalError> {
        loop {
            if let Some(packet) = self.buffered()? {
                return Ok(packet);
            }
            self.exchange().await?;
        }
    }

    /// A message that has arrived whole. Touches no socket.
    #[inline]
    pub(super) fn buffered(&mut self) -> Result<Option<Packet>, WalError> {
        let Some((tag, total)) = self.header()? else { return Ok(None) };
        if self.input.len() < total {
            return Ok(None);
        }
        let mut packet = self.cut(total);
        match tag {
            b'd' => Ok(Some(Packet::CopyData(packet.split_off(HEADER).freeze()))),
            b'W' => Ok(Some(Packet::CopyBothResponse)),
            _ => match Message::parse(&mut packet) {
                Ok(Some(message)) => Ok(Some(Packet::Other(message))),
                Ok(None) | Err(_) => Err(WalError::Protocol("a message that does not parse")),
            },
        }
    }

    /// Type and total length of the message that `input` begins with.
    #[inline]
    fn header(&self) -> Result<Option<(u8, usize)>, WalError> {
        let Ok(header) = backend::Header::parse(&self.input) else {
            return Err(WalError::Protocol("a message with a negative length"));
        };
        let Some(header) = header else { return Ok(None) };
        let len = usize::try_from(header.len()).unwrap_or(usize::MAX);
        if len > self.largest {
            return Err(WalError::TooLarge { len, limit: self.largest });
        }
        Ok(Some((header.tag(), len + 1)))
    }

    /// Splits the first message off. A long one takes its buffer along, so that it is freed with it.
    #[inline]
    fn cut(&mut self, total: usize) -> BytesMut {
        let packet = self.input.split_to(total);
        if total > CHUNK {
            let mut fresh = BytesMut::with_capacity(CHUNK.max(self.input.len()));
            fresh.extend_from_slice(&self.input);
            self.input = fresh;
        }
        packet
    }

    /// Writes what is to be written; returns when all of it is, or when something has been read.
    /// Cancel-safe: both directions keep their state here.
    pub(super) async fn exchange(&mut self) -> Result<(), WalError> {
        self.make_room()?;
        loop {
            let Wire { reader, writer, input, output, unflushed, .. } = self;
            let sent = tokio::select! {
                biased;
                sent = send(writer, output), if !output.is_empty() || *unflushed => sent,
                read = reader.read_buf(input) => return match read {
                    Ok(0) => Err(WalError::Lost(self.broken.take())),
                    Ok(_) => Ok(()),
                    Err(error) => Err(WalError::Lost(Some(self.broken.take().unwrap_or(error)))),
                },
            };
            self.note(sent);
            if self.output.is_empty() && !self.unflushed {
                return Ok(());
            }
        }
    }

    /// Sends what the socket takes at once, without waiting for it.
    pub(super) async fn push(&mut self) {
        while !self.output.is_empty() || self.unflushed {
            let sent = tokio::select! {
                biased;
                sent = send(&mut self.writer, &mut self.output) => sent,
                () = std::future::ready(()) => return,
            };
            self.note(sent);
        }
    }

    fn note(&mut self, sent: io::Result<Sent>) {
        match sent {
            Ok(Sent::Some) => self.unflushed = true,
            Ok(Sent::All) => self.unflushed = false,
            Err(error) => {
                self.output.clear();
                self.unflushed = false;
                self.broken.get_or_insert(error);
            }
        }
    }

    /// Room for the rest of the message under way, or for a good read.
    fn make_room(&mut self) -> Result<(), WalError> {
        let missing = match self.header()? {
            Some((_, total)) => total.saturating_sub(self.input.len()),
            None => HEADER,
        };
        let room = self.input.capacity() - self.input.len();
        // The last bytes of a long message must not move the whole of it.
        let long = missing + self.input.len() > CHUNK;
        if room < missing || (!long && room < LEAST_ROOM) {
            self.input.reserve(missing.max(CHUNK - self.input.len().min(CHUNK)));
        }
        Ok(())
    }

    /// Sends the rest and closes our direction; the caller limits the time.
    pub(super) async fn shutdown(mut self) -> io::Result<()> {
        if let Some(error) = self.broken {
            return Err(error);
        }
        self.writer.write_all_buf(&mut self.output).await?;
        self.writer.shutdown().await
    }
}

/// What a step of sending came to.
enum Sent {
    Some,
    /// And the writer holds nothing back.
    All,
}

/// Hands over some of the output, or flushes when there is none. Cancel-safe: state is in the two.
async fn send(writer: &mut Writer, output: &mut BytesMut) -> io::Result<Sent> {
    if output.is_empty() {
        return writer.flush().await.map(|()| Sent::All);
    }
    match writer.write_buf(output).await? {
        0 => Err(io::ErrorKind::WriteZero.into()),
        _ => Ok(Sent::Some),
    }
}

async fn open_tcp(
    name: &str,
    address: Option<std::net::IpAddr>,
    port: u16,
    keepalives: bool,
) -> io::Result<TcpStream> {
    let addresses = match address {
        Some(address) => vec![(address, port).into()],
        None => tokio::net::lookup_host((name, port)).await?.collect(),
    };
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host name has no address");
    for address in addresses {
        let socket = match address {
            std::net::SocketAddr::V4(_) => TcpSocket::new_v4()?,
            std::net::SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        socket.set_nodelay(true)?;
        socket.set_keepalive(keepalives)?;
        match socket.connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
