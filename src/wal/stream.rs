//! A running replication stream.

use std::time::Duration;

use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend;
use tokio::time::timeout;
use tokio_postgres::error::SqlState;

use super::error::{During, WalError};
use super::frame::{Frame, StandbyStatus};
use super::pace::{self, Pace};
use super::wire::{Packet, Wire};
use crate::postgres::{ServerError, Severity};
use crate::timestamp::PgTimestamp;

/// Frames from the server, progress to it, on one task.
///
/// Both directions keep what is half done here, so [`Self::next`] and [`Self::send_status`] may race
/// with anything in `select!`. Memory is one receive buffer, or the one frame that is longer. After an
/// error the stream is over.
#[derive(Debug)]
pub struct ReplicationStream {
    wire: Wire,
    /// The newest status, while an earlier one is still being written. A newer one replaces it, so
    /// that a server that does not read cannot make us collect them.
    pending: Option<StandbyStatus>,
    pace: Pace,
}

impl ReplicationStream {
    pub(super) fn new(wire: Wire) -> Self {
        ReplicationStream { wire, pending: None, pace: Pace::default() }
    }

    /// The next frame. Sends what status is waiting meanwhile. Cancel-safe. Of a busy stream it blocks its
    /// thread for moments, see [`Pace`].
    pub async fn next(&mut self) -> Result<Frame, WalError> {
        loop {
            if let Some(frame) = self.try_next()? {
                return Ok(frame);
            }
            self.load_status();
            if self.pace.wants_more() {
                std::thread::sleep(pace::PAUSE);
            }
            let (before, waiting) = (self.wire.unread(), self.pace.waits());
            self.wire.exchange().await?;
            self.pace.read(self.wire.unread() - before, waiting.elapsed());
        }
    }

    /// A frame that has already arrived whole; `None` says nothing about the socket.
    #[inline]
    pub fn try_next(&mut self) -> Result<Option<Frame>, WalError> {
        loop {
            match self.wire.buffered()? {
                Some(Packet::CopyData(data)) => return Frame::parse(data).map(Some),
                Some(Packet::Other(message)) => aside(message)?,
                Some(Packet::CopyBothResponse) => {
                    return Err(WalError::Protocol("a stream that starts twice"));
                }
                None => return Ok(None),
            }
        }
    }

    /// Reports progress. Returns at once: what the socket does not take now is sent by the next call of
    /// this or of [`Self::next`], and until then a newer status replaces it. A broken connection shows
    /// in `next`, after what had still arrived. Cancel-safe.
    pub async fn send_status(&mut self, status: StandbyStatus) {
        let asked = self.pending.is_some_and(|pending| pending.reply_requested);
        let reply_requested = status.reply_requested || asked;
        self.pending = Some(StandbyStatus { reply_requested, ..status });
        self.wire.push().await;
        self.load_status();
        self.wire.push().await;
    }

    fn load_status(&mut self) {
        if self.wire.output.is_empty()
            && let Some(status) = self.pending.take()
        {
            status.encode(PgTimestamp::now(), &mut self.wire.output);
        }
    }

    /// Ends the stream in good order: sends the last status, asks the server to stop, waits until it
    /// has, and says goodbye. Frames that still arrive are dropped. A server in the middle of a long
    /// transaction may not stop within `grace`: then the connection is closed and `Err` tells so, but
    /// the status has been sent.
    pub async fn close(mut self, grace: Duration) -> Result<(), WalError> {
        let ended = timeout(grace, self.finish()).await;
        frontend::terminate(&mut self.wire.output);
        // Goodbye is a courtesy: once the stream has ended nothing can be lost with it.
        let farewell = timeout(Duration::from_millis(100), self.wire.shutdown()).await;
        match ended {
            Ok(result) => result,
            Err(elapsed) => {
                tracing::debug!(farewell = ?farewell.is_ok(), "the server did not end the stream in time");
                Err(WalError::Lost(Some(elapsed.into())))
            }
        }
    }

    async fn finish(&mut self) -> Result<(), WalError> {
        if let Some(status) = self.pending.take() {
            status.encode(PgTimestamp::now(), &mut self.wire.output);
        }
        frontend::copy_done(&mut self.wire.output);
        loop {
            match self.wire.next().await? {
                Packet::Other(Message::ReadyForQuery(_)) => return Ok(()),
                Packet::Other(Message::ErrorResponse(body)) => {
                    return Err(reported(ServerError::from_fields(body.fields())));
                }
                _ => {}
            }
        }
    }
}

fn reported(error: ServerError) -> WalError {
    WalError::Server { during: During::Streaming, error }
}

/// What comes between the frames.
#[cold]
fn aside(message: Message) -> Result<(), WalError> {
    match message {
        Message::ErrorResponse(body) => Err(reported(ServerError::from_fields(body.fields()))),
        Message::NoticeResponse(body) => {
            let notice = ServerError::from_fields(body.fields());
            // The only warning of this code that a stream can bring, see `PublicationSkipped`.
            let skipped = notice.severity == Severity::Warning
                && notice.code == SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE;
            if skipped {
                return Err(WalError::PublicationSkipped(notice));
            }
            notice.trace();
            Ok(())
        }
        // A server that shuts down ends the command, without CopyDone.
        Message::CopyDone | Message::CommandComplete(_) => Err(WalError::Ended),
        Message::ParameterStatus(_) => Ok(()),
        _ => Err(WalError::Protocol("not a message of a replication stream")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex, split};

    use super::*;
    use crate::lsn::Lsn;

    fn stream(buffer: usize) -> (ReplicationStream, DuplexStream) {
        let (ours, theirs) = duplex(buffer);
        let (reader, writer) = split(ours);
        (ReplicationStream::new(Wire::new(Box::new(reader), Box::new(writer))), theirs)
    }

    fn notice(tag: u8, severity: &str, code: &str) -> Vec<u8> {
        let fields = format!("V{severity}\0C{code}\0Mtext\0\0");
        let length = u32::try_from(fields.len() + 4).unwrap().to_be_bytes();
        [&[tag], &length[..], fields.as_bytes()].concat()
    }

    fn status(at: u64) -> StandbyStatus {
        let at = Lsn::new(at);
        StandbyStatus { written: at, flushed: at, applied: at, reply_requested: at == Lsn::new(2) }
    }

    #[tokio::test]
    async fn a_server_that_does_not_read_gets_the_newest_status() {
        let (mut stream, mut peer) = stream(10);
        for at in 1..=100 {
            stream.send_status(status(at)).await;
        }
        let mut received = [0; 2 * 39];
        let all = timeout(Duration::from_secs(5), peer.read_exact(&mut received));
        tokio::select! {
            read = all => assert_eq!(read.unwrap().unwrap(), received.len()),
            frame = stream.next() => panic!("{frame:?}"),
        }
        assert_eq!(received[6..14], 1u64.to_be_bytes());
        assert_eq!(received[39 + 6..39 + 14], 100u64.to_be_bytes());
        assert_eq!(received[77], 1, "a reply that was asked for is still asked for");
    }

    #[tokio::test]
    async fn what_the_server_says_between_frames_is_told_apart() {
        for (message, expected) in [
            (notice(b'E', "ERROR", "42704"), "publication missing"),
            (notice(b'N', "WARNING", "55000"), "publication missing"),
            (notice(b'E', "FATAL", "57P01"), "stopping"),
            (b"C\0\0\0\x0bCOPY 0\0".to_vec(), "stopping"),
            (b"c\0\0\0\x04".to_vec(), "stopping"),
        ] {
            let (mut stream, mut peer) = stream(256);
            peer.write_all(&notice(b'N', "WARNING", "01000")).await.unwrap();
            peer.write_all(&message).await.unwrap();
            let error = stream.next().await.unwrap_err();
            let kind = match (error.publication_missing(), error.server_stopping()) {
                (true, false) => "publication missing",
                (false, true) => "stopping",
                _ => "neither",
            };
            assert_eq!(kind, expected, "{error:?}");
        }
    }
}
