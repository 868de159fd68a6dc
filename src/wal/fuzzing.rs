//! Any bytes as what a server sends, from the startup's answer to the output plugin's messages.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::{Builder, Runtime};
use tokio_util::sync::CancellationToken;

use super::connection::ReplicationConnection;
use super::pgoutput::{Message, OldTuple, Tuple, Value, decode, encode};
use super::startup;
use super::wire::Wire;
use super::{Frame, ReplicationStream, StandbyStatus};
use crate::lsn::Lsn;
use crate::postgres::Target;

/// One message of the output plugin: read within its bounds, and the same when it is written again.
pub(crate) fn message(body: &[u8]) {
    match decode(Bytes::copy_from_slice(body)) {
        Ok(message) => {
            let written = encode(&message);
            assert!(written.len() <= body.len(), "what is not in the body was read");
            assert_eq!(decode(written).as_ref(), Ok(&message));
            tuples(&message).into_iter().for_each(check_tuple);
            if let Message::Relation(relation) = &message {
                assert!(relation.columns.capacity() <= body.len() / 10, "a column has ten bytes at least");
            }
        }
        Err(error) => assert!(error.offset <= body.len(), "{error}"),
    }
}

fn tuples(message: &Message) -> Vec<&Tuple> {
    match message {
        Message::Insert(insert) => vec![&insert.new],
        Message::Update(update) => update.old.iter().map(old_tuple).chain([&update.new]).collect(),
        Message::Delete(delete) => vec![old_tuple(&delete.old)],
        _ => Vec::new(),
    }
}

fn old_tuple(old: &OldTuple) -> &Tuple {
    let (OldTuple::Key(tuple) | OldTuple::Full(tuple)) = old;
    tuple
}

fn check_tuple(tuple: &Tuple) {
    assert_eq!(tuple.iter().count(), tuple.len());
    let size = |value: Value<'_>| match value {
        Value::Null | Value::UnchangedToast => 1,
        Value::Text(bytes) | Value::Binary(bytes) => 5 + bytes.len(),
    };
    assert_eq!(tuple.iter().map(size).sum::<usize>(), tuple.byte_len());
}

/// Stands in a server's bytes for the nonce that our side made, so that SCRAM can go on.
const NONCE: &[u8] = b"{nonce}";

/// A server that says what it was given, in pieces of one size, and then hangs up.
struct Server {
    rest: Vec<u8>,
    at: usize,
    piece: usize,
    heard: Arc<Mutex<Vec<u8>>>,
}

impl Server {
    /// What our side called its nonce in the first message of SCRAM.
    fn nonce(&self) -> Vec<u8> {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let start = memchr::memmem::find(&heard, b"n=,r=").map_or(heard.len(), |at| at + 5);
        heard[start..].to_vec()
    }
}

impl AsyncRead for Server {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let said = self.rest.get(self.at..).unwrap_or_default();
        let marker = memchr::memmem::find(said, NONCE).unwrap_or(said.len());
        if marker == 0 && !said.is_empty() {
            let nonce = self.nonce();
            let room = nonce.len().min(into.remaining());
            into.put_slice(&nonce[..room]);
            self.at += NONCE.len();
            return Poll::Ready(Ok(()));
        }
        let length = marker.min(self.piece).min(into.remaining());
        into.put_slice(&said[..length]);
        self.at += length;
        Poll::Ready(Ok(()))
    }
}

/// What it is told.
struct Ear(Arc<Mutex<Vec<u8>>>);

impl AsyncWrite for Ear {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Where a session has got to when the bytes begin.
enum Stage {
    Startup,
    Commands,
    Stream,
}

/// A whole session with a server that sends these bytes: it ends, in an error that can be shown or in good order.
///
/// The first byte says where it begins and how large the pieces are in which the bytes arrive.
pub(crate) fn server(data: &[u8]) {
    static RUNTIME: LazyLock<Runtime> =
        LazyLock::new(|| Builder::new_current_thread().enable_time().build().expect("a runtime without I/O"));
    let Some((&how, said)) = data.split_first() else { return };
    let stage = match how & 3 {
        0 => Stage::Commands,
        1 => Stage::Stream,
        _ => Stage::Startup,
    };
    let heard = Arc::default();
    let server =
        Server { rest: said.to_vec(), at: 0, piece: 1 << ((how >> 2) & 15), heard: Arc::clone(&heard) };
    let mut wire = Wire::new(Box::new(server), Box::new(Ear(heard)));
    RUNTIME.block_on(async {
        if matches!(stage, Stage::Stream) {
            wire.trust();
            return stream(ReplicationStream::new(wire), said.len()).await;
        }
        if let Err(error) = session(wire, stage, said.len()).await {
            let _ = format!("{error} {error:?}");
        }
    });
}

async fn session(mut wire: Wire, stage: Stage, said: usize) -> Result<(), super::WalError> {
    static TARGET: LazyLock<Target> = LazyLock::new(|| {
        let text = "postgres://user:secret@127.0.0.1:1/db?sslmode=disable&target_session_attrs=any";
        text.parse().expect("a connection string")
    });
    let target = &*TARGET;
    let endpoint = target.endpoints().first().copied().expect("one server").clone();
    let session = match stage {
        Stage::Startup => startup::start(&mut wire, target, &endpoint).await?,
        Stage::Commands | Stage::Stream => {
            wire.trust();
            startup::Session::default()
        }
    };
    let mut connection = ReplicationConnection::over(wire, session, target, endpoint);
    let _ = connection.server_major();
    let identity = connection.identify_system().await?;
    let _ = connection.timeline_history(identity.timeline).await?;
    let slot = connection.create_slot("s", true, &CancellationToken::new()).await?;
    let opened = connection.start_replication("s", slot.consistent_point, "p").await?;
    stream(opened, said).await;
    Ok(())
}

async fn stream(mut stream: ReplicationStream, said: usize) {
    let mut received = 0;
    for turn in 0_u64.. {
        match stream.next().await {
            Ok(Frame::XLogData(data)) => {
                received += data.body.len();
                message(&data.body);
            }
            Ok(Frame::Keepalive(keepalive)) => {
                let at = keepalive.wal_end;
                let status =
                    StandbyStatus { written: at, flushed: at, applied: Lsn::new(turn), ..<_>::default() };
                stream.send_status(status).await;
            }
            Err(error) => {
                let _ = format!("{error} {error:?} {}", error.is_transient());
                break;
            }
        }
    }
    assert!(received <= said, "more arrived than was sent");
    let _ = stream.close(Duration::from_secs(1)).await;
}
