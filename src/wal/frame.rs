//! The messages inside a replication stream's CopyData.
//!
//! PostgreSQL documentation, "Streaming Replication Protocol": XLogData and the primary's keepalive
//! from the server, the standby's status update to it. Pure.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::error::WalError;
use crate::lsn::Lsn;
use crate::timestamp::PgTimestamp;

/// One message from the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    XLogData(XLogData),
    Keepalive(Keepalive),
}

/// One decoded message of the output plugin.
#[derive(Clone, PartialEq, Eq)]
pub struct XLogData {
    /// Where the message's record begins; zero for messages that stand for no record. No order.
    pub wal_start: Lsn,
    pub wal_end: Lsn,
    pub sent_at: PgTimestamp,
    /// A slice of the receive buffer: keeping it keeps a chunk of 128 KiB alive.
    pub body: Bytes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keepalive {
    /// How far the server has read its log for us.
    pub wal_end: Lsn,
    pub sent_at: PgTimestamp,
    /// Answer at once, or the server will take the connection for dead.
    pub reply_requested: bool,
}

/// How far the relay is. The server may free its log up to `flushed`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StandbyStatus {
    pub written: Lsn,
    pub flushed: Lsn,
    pub applied: Lsn,
    /// Asks the server for a keepalive in return.
    pub reply_requested: bool,
}

/// A row's values stay out of logs.
impl std::fmt::Debug for XLogData {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("XLogData")
            .field("wal_start", &self.wal_start)
            .field("wal_end", &self.wal_end)
            .field("sent_at", &self.sent_at)
            .field("body", &format_args!("{} bytes", self.body.len()))
            .finish()
    }
}

impl Frame {
    /// Takes one CopyData payload apart; the body stays where it is.
    #[inline]
    pub(super) fn parse(mut data: Bytes) -> Result<Frame, WalError> {
        const SHORT: WalError = WalError::Protocol("a replication message that is too short");
        let kind = data.try_get_u8().map_err(|_| SHORT)?;
        let needed = match kind {
            b'w' => 24,
            b'k' => 17,
            _ => return Err(WalError::Protocol("a replication message of unknown kind")),
        };
        if data.len() < needed {
            return Err(SHORT);
        }
        if kind == b'w' {
            return Ok(Frame::XLogData(XLogData {
                wal_start: Lsn::new(data.get_u64()),
                wal_end: Lsn::new(data.get_u64()),
                sent_at: PgTimestamp::from_micros(data.get_i64()),
                body: data,
            }));
        }
        Ok(Frame::Keepalive(Keepalive {
            wal_end: Lsn::new(data.get_u64()),
            sent_at: PgTimestamp::from_micros(data.get_i64()),
            reply_requested: data.get_u8() != 0,
        }))
    }
}

impl StandbyStatus {
    /// The complete CopyData message.
    pub(super) fn encode(self, now: PgTimestamp, out: &mut BytesMut) {
        const LENGTH: u32 = 4 + 1 + 4 * 8 + 1;
        out.put_u8(b'd');
        out.put_u32(LENGTH);
        out.put_u8(b'r');
        out.put_u64(self.written.get());
        out.put_u64(self.flushed.get());
        out.put_u64(self.applied.get());
        out.put_i64(now.micros());
        out.put_u8(u8::from(self.reply_requested));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn frames_are_taken_apart() {
        let mut data = BytesMut::new();
        data.put_u8(b'w');
        data.put_u64(1);
        data.put_u64(2);
        data.put_i64(3);
        data.put_slice(b"body");
        let expected = XLogData {
            wal_start: Lsn::new(1),
            wal_end: Lsn::new(2),
            sent_at: PgTimestamp::from_micros(3),
            body: Bytes::from_static(b"body"),
        };
        assert_eq!(Frame::parse(data.freeze()).unwrap(), Frame::XLogData(expected));
    }

    #[test]
    fn a_status_is_what_the_documentation_says() {
        let status = StandbyStatus {
            written: Lsn::new(3),
            flushed: Lsn::new(2),
            applied: Lsn::new(1),
            reply_requested: true,
        };
        let mut out = BytesMut::new();
        status.encode(PgTimestamp::from_micros(9), &mut out);
        let numbers = [3u64, 2, 1, 9].map(u64::to_be_bytes).concat();
        assert_eq!(&out[..], [&b"d\0\0\0\x26r"[..], &numbers, &[1]].concat());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(kind in prop::sample::select(b"wkx".to_vec()), rest in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = Frame::parse([&[kind], &rest[..]].concat().into());
        }
    }
}
