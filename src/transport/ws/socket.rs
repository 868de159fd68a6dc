//! A device's connection after its upgrade, as messages. Waits for nothing by itself.

use std::cell::RefCell;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::{AsyncRead, ReadBuf};

use super::incoming::{Broken, Heard, Incoming};
use super::outgoing::Outgoing;
use crate::transport::line::Line;
use crate::transport::protocol::Closing;
use crate::transport::session::Frame;

/// What is read at once: most messages are far smaller.
const READ_BYTES: usize = 4 * 1024;

thread_local! {
    /// Where readings land. One for each thread, not for each device.
    static READING: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BYTES]);
}

/// Why a device is heard no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// The connection is over.
    Gone,
    Broken(Broken),
}

#[derive(Debug)]
pub(super) struct Socket {
    line: Line,
    incoming: Incoming,
    outgoing: Outgoing,
}

impl Socket {
    /// `read` is what came together with the handshake.
    pub(super) fn new(line: Line, read: &[u8], most: usize, batch: bool) -> Self {
        let mut incoming = Incoming::new(most);
        incoming.add(read);
        Socket { line: line.for_session(), incoming, outgoing: Outgoing::new(batch) }
    }

    /// The next message. Cancel-safe.
    pub(super) fn poll_hear(&mut self, context: &mut Context<'_>) -> Poll<Result<Heard, Ended>> {
        loop {
            match self.incoming.message() {
                Ok(Some(heard)) => return Poll::Ready(Ok(heard)),
                Ok(None) => {}
                Err(broken) => return Poll::Ready(Err(Ended::Broken(broken))),
            }
            if ready!(self.poll_read(context, |incoming, bytes| incoming.add(bytes))) == 0 {
                return Poll::Ready(Err(Ended::Gone));
            }
        }
    }

    /// Reads on, whatever it is, until the device has closed the connection or said that it will.
    pub(super) fn poll_until_closed(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            let closed = match ready!(self.poll_hear(context)) {
                Ok(heard) => matches!(heard, Heard::Close(_)),
                Err(Ended::Gone) => true,
                // What cannot be understood is read all the same: a connection that is closed before that
                // is reset, and takes with it what the device was told.
                Err(Ended::Broken(_)) => ready!(self.poll_read(context, |_, _| {})) == 0,
            };
            if closed {
                return Poll::Ready(());
            }
        }
    }

    /// How many bytes were read; none at the connection's end.
    fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        take: impl FnOnce(&mut Incoming, &[u8]),
    ) -> Poll<usize> {
        READING.with_borrow_mut(|place| {
            let mut buffer = ReadBuf::new(place);
            match ready!(Pin::new(&mut self.line).poll_read(context, &mut buffer)) {
                Ok(()) => {
                    take(&mut self.incoming, buffer.filled());
                    Poll::Ready(buffer.filled().len())
                }
                Err(_) => Poll::Ready(0),
            }
        })
    }

    /// As [`Outgoing::poll_send`]. Cancel-safe: what is begun goes on with the next call.
    pub(super) fn poll_send(
        &mut self,
        context: &mut Context<'_>,
        frames: &mut Vec<Frame>,
    ) -> Poll<Result<(), Closing>> {
        let sent = ready!(self.outgoing.poll_send(context, Pin::new(&mut self.line), frames));
        Poll::Ready(sent.map_err(|_| Closing::Gone))
    }

    /// Whether nothing waits but frames.
    pub(super) fn is_empty(&self) -> bool {
        self.outgoing.is_empty()
    }

    pub(super) fn group(&self, frames: &mut Vec<Frame>) {
        self.outgoing.group(frames);
    }

    pub(super) fn ping(&mut self) {
        self.outgoing.ping();
    }

    pub(super) fn pong(&mut self, payload: Bytes) {
        self.outgoing.pong(payload);
    }

    pub(super) fn close(&mut self, why: Closing) {
        self.outgoing.close(why);
    }

    pub(super) fn answer_close(&mut self, code: Option<u16>) {
        self.outgoing.answer_close(code);
    }
}
