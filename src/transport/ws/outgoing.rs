//! Frames on their way to the socket: grouped where the device asked for it, written together.
//!
//! A frame of the server is its head and the JSON as it is (RFC 6455, section 5.2: unmasked), so the JSON
//! that all sessions share is written from where it lies. Small frames that are there together go out in
//! one write.
//!
//! Invariant: whatever ends a session, no frame is torn: what is half written is kept here until it is
//! written whole, and what was not begun stays with the caller, who may take it back.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use smallvec::SmallVec;
use tokio::io::AsyncWrite;

use crate::transport::protocol::Closing;
use crate::transport::session::Frame;

/// A group of changes is closed when it is this large.
const BATCH_BYTES: usize = 64 * 1024;
const BATCH_HEAD: &[u8] = b"{\"type\":\"database_changes\",\"changes\":[";
/// What may stand in a group.
const CHANGE: &str = "database_change";

/// Frames up to here are copied together for one write: cheaper than to name each piece to the system.
const SMALL: usize = 4 * 1024;
/// What is written at once, a large frame aside.
const TOGETHER: usize = 16 * 1024;

/// First bytes of whole frames.
const TEXT: u8 = 0x81;
const CLOSE: u8 = 0x88;
const PING: u8 = 0x89;
const PONG: u8 = 0x8a;

thread_local! {
    /// What is put together for a write. One for each thread, not for each device.
    static TABLE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

#[derive(Debug, Default)]
pub(super) struct Outgoing {
    batch: bool,
    ping: bool,
    /// The answer to the last ping: one is enough.
    pong: Option<Bytes>,
    /// What is left of what was half written, and then of a large frame's text.
    rest: Option<Box<(Bytes, Bytes)>>,
}

impl Outgoing {
    pub(super) fn new(batch: bool) -> Self {
        Outgoing { batch, ..Outgoing::default() }
    }

    /// Call it before frames are sent that came since the last time.
    pub(super) fn group(&self, frames: &mut Vec<Frame>) {
        if self.batch && !frames.is_empty() {
            *frames = grouped(std::mem::take(frames));
        }
    }

    /// Whether nothing of it waits to be written.
    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_none() && !self.ping && self.pong.is_none()
    }

    pub(super) fn ping(&mut self) {
        self.ping = true;
    }

    pub(super) fn pong(&mut self, payload: Bytes) {
        self.pong = Some(payload);
    }

    /// Nothing follows it.
    pub(super) fn close(&mut self, why: Closing) {
        let mut payload = why.code().to_be_bytes().to_vec();
        payload.extend_from_slice(why.reason().as_bytes());
        self.end_with(&payload);
    }

    /// Answers the device's own close frame.
    pub(super) fn answer_close(&mut self, code: Option<u16>) {
        match code {
            Some(code) => self.end_with(&code.to_be_bytes()),
            None => self.end_with(&[]),
        }
    }

    fn end_with(&mut self, payload: &[u8]) {
        (self.ping, self.pong) = (false, None);
        let (half, text) = self.rest.take().map(|rest| *rest).unwrap_or_default();
        let mut last = [half.as_ref(), text.as_ref()].concat();
        put(&mut last, CLOSE, payload);
        self.rest = Some(Box::new((last.into(), Bytes::new())));
    }

    /// Writes everything. A frame leaves the list when it is begun.
    pub(super) fn poll_send(
        &mut self,
        context: &mut Context<'_>,
        mut line: Pin<&mut impl AsyncWrite>,
        frames: &mut Vec<Frame>,
    ) -> Poll<io::Result<()>> {
        loop {
            if self.rest.is_some() {
                ready!(self.poll_rest(context, line.as_mut()))?;
            } else if !frames.is_empty() || self.ping || self.pong.is_some() {
                ready!(TABLE.with_borrow_mut(|table| self.poll_some(context, line.as_mut(), frames, table)))?;
            } else {
                return line.poll_flush(context);
            }
        }
    }

    fn poll_rest(
        &mut self,
        context: &mut Context<'_>,
        line: Pin<&mut impl AsyncWrite>,
    ) -> Poll<io::Result<()>> {
        let Some(rest) = &mut self.rest else { return Poll::Ready(Ok(())) };
        let (half, text) = &mut **rest;
        let written = if half.is_empty() {
            ready!(line.poll_write(context, text))?
        } else {
            ready!(line.poll_write_vectored(context, &[IoSlice::new(half), IoSlice::new(text)]))?
        };
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        let of_half = written.min(half.len());
        half.advance(of_half);
        text.advance(written - of_half);
        if half.is_empty() && text.is_empty() {
            self.rest = None;
        }
        Poll::Ready(Ok(()))
    }

    /// One write of what there is; at most one large frame, as the last.
    fn poll_some(
        &mut self,
        context: &mut Context<'_>,
        line: Pin<&mut impl AsyncWrite>,
        frames: &mut Vec<Frame>,
        table: &mut Vec<u8>,
    ) -> Poll<io::Result<()>> {
        table.clear();
        if let Some(payload) = &self.pong {
            put(table, PONG, payload);
        }
        if self.ping {
            put(table, PING, &[]);
        }
        let mut laid: SmallVec<[usize; 16]> = SmallVec::new();
        let (controls, mut large) = (table.len(), Bytes::new());
        for Frame { json, .. } in frames.iter() {
            // Made by us from checked text.
            debug_assert!(std::str::from_utf8(json).is_ok(), "frames are text");
            if table.len() >= TOGETHER {
                break;
            }
            if json.len() > SMALL {
                put_head(table, TEXT, json.len());
                large = json.clone();
                laid.push(table.len() + large.len());
                break;
            }
            put(table, TEXT, json);
            laid.push(table.len());
        }
        let written = if large.is_empty() {
            ready!(line.poll_write(context, table))?
        } else {
            ready!(line.poll_write_vectored(context, &[IoSlice::new(table), IoSlice::new(&large)]))?
        };
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        (self.ping, self.pong) = (false, None);
        // The first that is not written whole was begun, unless nothing of it was.
        let whole = laid.partition_point(|end| *end <= written);
        let begins = whole.checked_sub(1).map_or(controls, |last| laid[last]);
        let (begun, ends) = match laid.get(whole) {
            Some(end) if written > begins => (whole + 1, *end),
            _ => (whole, begins),
        };
        frames.drain(..begun);
        if written < ends {
            let half = &table[written.min(table.len())..ends.min(table.len())];
            let text = if ends > table.len() {
                large.slice(written.saturating_sub(table.len())..)
            } else {
                Bytes::new()
            };
            self.rest = Some(Box::new((Bytes::copy_from_slice(half), text)));
        }
        Poll::Ready(Ok(()))
    }
}

fn put(table: &mut Vec<u8>, first: u8, payload: &[u8]) {
    put_head(table, first, payload.len());
    table.extend_from_slice(payload);
}

/// The head of a frame of the server: unmasked, and its length in as few bytes as it takes.
fn put_head(table: &mut Vec<u8>, first: u8, length: usize) {
    table.push(first);
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(length @ 0..126), _) => table.push(length),
        (_, Ok(length)) => {
            table.push(126);
            table.extend_from_slice(&length.to_be_bytes());
        }
        _ => {
            table.push(127);
            table.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
}

/// Runs of changes become one frame each; everything else stays as it is, in its place.
fn grouped(frames: Vec<Frame>) -> Vec<Frame> {
    let mut out = Vec::new();
    let mut group = BytesMut::new();
    let close = |group: &mut BytesMut, out: &mut Vec<Frame>| {
        if !group.is_empty() {
            group.extend_from_slice(b"]}");
            out.push(Frame { json: group.split().freeze(), at: None });
        }
    };
    for frame in frames {
        if frame.kind() != CHANGE {
            close(&mut group, &mut out);
            out.push(frame);
            continue;
        }
        if group.is_empty() {
            group.extend_from_slice(BATCH_HEAD);
        } else {
            group.extend_from_slice(b",");
        }
        group.extend_from_slice(&frame.json);
        if group.len() >= BATCH_BYTES {
            close(&mut group, &mut out);
        }
    }
    close(&mut group, &mut out);
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::task::Waker;

    use super::*;

    /// Takes so many bytes at each write, and then nothing until it is asked again.
    struct Slow {
        most: usize,
        taken: Vec<u8>,
        writes: usize,
        full: bool,
    }

    impl Slow {
        fn taking(most: usize) -> Self {
            Slow { most, taken: Vec::new(), writes: 0, full: false }
        }
    }

    impl AsyncWrite for Slow {
        fn poll_write(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.as_mut().poll_write_vectored(context, &[IoSlice::new(bytes)])
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            slices: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            if std::mem::replace(&mut self.full, true) {
                self.full = false;
                return Poll::Pending;
            }
            let before = self.taken.len();
            for slice in slices {
                let room = self.most - (self.taken.len() - before);
                self.taken.extend_from_slice(&slice[..slice.len().min(room)]);
            }
            self.writes += 1;
            Poll::Ready(Ok(self.taken.len() - before))
        }

        fn is_write_vectored(&self) -> bool {
            true
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn text(length: usize) -> Frame {
        Frame::from(format!("\"{}\"", "x".repeat(length - 2)))
    }

    /// First byte and payload of each frame.
    fn read(mut bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
        let mut frames = Vec::new();
        while let [first, short, rest @ ..] = bytes {
            let (length, rest) = match short {
                126 => (usize::from(u16::from_be_bytes(rest[..2].try_into().unwrap())), &rest[2..]),
                127 => (u64::from_be_bytes(rest[..8].try_into().unwrap()) as usize, &rest[8..]),
                short => (usize::from(*short), rest),
            };
            assert!(*short != 126 || length >= 126, "as short as it can be");
            assert!(*short != 127 || length > 65_535, "as short as it can be");
            frames.push((*first, rest[..length].to_vec()));
            bytes = &rest[length..];
        }
        frames
    }

    fn send_all(outgoing: &mut Outgoing, slow: &mut Slow, frames: &mut Vec<Frame>) {
        let mut context = Context::from_waker(Waker::noop());
        for _ in 0..1_000_000 {
            if outgoing.poll_send(&mut context, Pin::new(slow), frames).is_ready() {
                return;
            }
        }
        panic!("it does not end");
    }

    const LENGTHS: [usize; 9] = [2, 125, 126, 127, SMALL, SMALL + 1, 65_535, 65_536, 5];

    #[test]
    fn frames_are_whole_and_in_order_however_little_is_taken_at_once() {
        for most in [1, 3, 10, 1_000, 5_000, 70_000, usize::MAX] {
            let mut frames: Vec<Frame> = LENGTHS.map(text).to_vec();
            let expected: Vec<_> = frames.iter().map(|frame| (TEXT, frame.json.to_vec())).collect();
            let (mut outgoing, mut slow) = (Outgoing::new(false), Slow::taking(most));
            outgoing.pong(Bytes::from_static(b"first"));
            outgoing.pong(Bytes::from_static(b"last"));
            outgoing.ping();
            send_all(&mut outgoing, &mut slow, &mut frames);
            let mut read = read(&slow.taken);
            assert_eq!(read[..2], [(PONG, b"last".to_vec()), (PING, Vec::new())], "{most} at once");
            assert!(read.split_off(2) == expected, "{most} at once");
            assert!(outgoing.rest.is_none() && frames.is_empty());
        }
    }

    #[test]
    fn what_is_small_goes_out_in_one_write() {
        let mut frames: Vec<Frame> = (0..30).map(|_| text(300)).collect();
        let (mut outgoing, mut slow) = (Outgoing::new(false), Slow::taking(usize::MAX));
        send_all(&mut outgoing, &mut slow, &mut frames);
        assert_eq!((slow.writes, read(&slow.taken).len()), (1, 30));
    }

    #[test]
    fn what_was_not_begun_can_be_taken_back_and_the_end_comes_behind_a_whole_frame() {
        for most in [1, 2, 3, 301, 302, 303, 304, 305, 700, 5_000, 6_000] {
            let mut frames = vec![text(300), text(200), text(5_000), text(7)];
            let lengths: Vec<_> = frames.iter().map(|frame| frame.json.len()).collect();
            let (mut outgoing, mut slow) = (Outgoing::new(false), Slow::taking(most));
            let mut context = Context::from_waker(Waker::noop());
            assert!(outgoing.poll_send(&mut context, Pin::new(&mut slow), &mut frames).is_pending());
            let begun = lengths.len() - frames.len();
            assert!(begun > 0 && slow.taken.len() == most.min(slow.taken.len()));
            frames.clear();
            outgoing.close(Closing::Token("token_revoked"));
            send_all(&mut outgoing, &mut slow, &mut frames);
            let read = read(&slow.taken);
            let (end, texts) = read.split_last().unwrap();
            assert_eq!(texts.iter().map(|(_, text)| text.len()).collect::<Vec<_>>(), lengths[..begun]);
            assert_eq!((end.0, &end.1[..2]), (CLOSE, &4401_u16.to_be_bytes()[..]), "{most}");
        }
    }

    #[test]
    fn runs_of_changes_are_grouped_in_order() {
        let change = |n: u32| Frame::from(format!("{{\"type\":\"database_change\",\"n\":{n}}}"));
        let other = Frame::from("{\"type\":\"heartbeat\"}".to_owned());
        let frames = grouped(vec![change(1), change(2), other.clone(), change(3)]);
        assert_eq!(frames.len(), 3);
        assert_eq!(frames[1].json, other.json);
        let first: serde_json::Value = serde_json::from_slice(&frames[0].json).unwrap();
        assert_eq!(first["changes"].as_array().unwrap().len(), 2);
        assert_eq!(first["changes"][1]["n"], 2);
        let large =
            Frame::from(format!("{{\"type\":\"database_change\",\"n\":\"{}\"}}", "x".repeat(BATCH_BYTES)));
        assert_eq!(grouped(vec![large.clone(), large]).len(), 2);
    }
}
