//! What a device sends: bytes in, whole messages out (RFC 6455, section 5). Pure.
//!
//! Between messages nothing is kept. Invariants: no more is held than one message may be and what one
//! reading brought; after a frame that breaks the rules nothing is read any more.

use std::io::Cursor;

use bytes::{Buf, Bytes, BytesMut};
use tokio_tungstenite::tungstenite::protocol::frame::FrameHeader;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Control, Data, OpCode};

/// The longest payload of a control frame.
const MAX_CONTROL_BYTES: usize = 125;

/// One message of a device.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    Text(String),
    Binary,
    /// To be answered with the same.
    Ping(Bytes),
    Pong,
    /// The code, if one was given.
    Close(Option<u16>),
}

/// Why a device is heard no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Broken {
    #[error("a message is larger than allowed")]
    TooLarge,
    #[error("not a WebSocket message: {0}")]
    Rules(&'static str),
}

#[derive(Debug)]
pub(super) struct Incoming {
    /// Read, and no whole frame yet.
    buffer: BytesMut,
    /// The pieces so far of a message in several frames.
    pieces: Option<Pieces>,
    /// The most that a message may be.
    most: usize,
    broken: Option<Broken>,
}

#[derive(Debug)]
struct Pieces {
    text: bool,
    bytes: Vec<u8>,
}

impl Incoming {
    pub(super) fn new(most: usize) -> Self {
        Incoming { buffer: BytesMut::new(), pieces: None, most, broken: None }
    }

    /// What was read. Call it when [`Incoming::message`] has no more.
    pub(super) fn add(&mut self, bytes: &[u8]) {
        if self.broken.is_none() {
            self.buffer.extend_from_slice(bytes);
        }
    }

    /// The next message that is there whole.
    pub(super) fn message(&mut self) -> Result<Option<Heard>, Broken> {
        if let Some(broken) = self.broken {
            return Err(broken);
        }
        let message = self.decode();
        if let Err(broken) = &message {
            self.broken = Some(*broken);
        }
        if self.buffer.is_empty() || message.is_err() {
            self.buffer = BytesMut::new();
        }
        message
    }

    fn decode(&mut self) -> Result<Option<Heard>, Broken> {
        while let Some((header, payload)) = self.frame()? {
            let message = match header.opcode {
                OpCode::Control(control) => self.control(control, payload)?,
                OpCode::Data(data) => self.data(data, header.is_final, payload)?,
            };
            if message.is_some() {
                return Ok(message);
            }
        }
        Ok(None)
    }

    /// The next frame, unmasked, if it is there whole. What it may not be is found at its head.
    fn frame(&mut self) -> Result<Option<(FrameHeader, BytesMut)>, Broken> {
        let mut cursor = Cursor::new(&self.buffer[..]);
        let head = FrameHeader::parse(&mut cursor).map_err(|_| Broken::Rules("an unknown kind of frame"))?;
        let Some((header, length)) = head else { return Ok(None) };
        let head_length = usize::try_from(cursor.position()).map_err(|_| Broken::TooLarge)?;
        if header.rsv1 || header.rsv2 || header.rsv3 {
            return Err(Broken::Rules("a reserved bit is set"));
        }
        let mask = header.mask.ok_or(Broken::Rules("a frame is not masked"))?;
        let length = usize::try_from(length).map_err(|_| Broken::TooLarge)?;
        match header.opcode {
            OpCode::Control(_) if !header.is_final => return Err(Broken::Rules("a control frame in pieces")),
            OpCode::Control(_) if length > MAX_CONTROL_BYTES => {
                return Err(Broken::Rules("a control frame is too large"));
            }
            OpCode::Control(_) => {}
            OpCode::Data(_) => {
                let before = self.pieces.as_ref().map_or(0, |pieces| pieces.bytes.len());
                if before.checked_add(length).is_none_or(|whole| whole > self.most) {
                    return Err(Broken::TooLarge);
                }
            }
        }
        let end = head_length + length;
        if self.buffer.len() < end {
            return Ok(None);
        }
        let mut payload = self.buffer.split_to(end);
        payload.advance(head_length);
        for (byte, key) in payload.iter_mut().zip(mask.iter().cycle()) {
            *byte ^= key;
        }
        Ok(Some((header, payload)))
    }

    fn control(&self, control: Control, payload: BytesMut) -> Result<Option<Heard>, Broken> {
        Ok(Some(match control {
            Control::Ping => Heard::Ping(Bytes::copy_from_slice(&payload)),
            Control::Pong => Heard::Pong,
            Control::Close => match payload.split_first_chunk() {
                None if payload.is_empty() => Heard::Close(None),
                None => return Err(Broken::Rules("half a close code")),
                Some((_, reason)) if std::str::from_utf8(reason).is_err() => {
                    return Err(Broken::Rules("a reason that is no text"));
                }
                Some((code, _)) => Heard::Close(Some(u16::from_be_bytes(*code))),
            },
            Control::Reserved(_) => return Err(Broken::Rules("an unknown kind of frame")),
        }))
    }

    /// A message, if this ends one.
    fn data(&mut self, data: Data, last: bool, payload: BytesMut) -> Result<Option<Heard>, Broken> {
        let text = match (data, &self.pieces) {
            (Data::Continue, Some(pieces)) => pieces.text,
            (Data::Continue, None) => return Err(Broken::Rules("a piece of no message")),
            (Data::Text | Data::Binary, Some(_)) => return Err(Broken::Rules("a message within a message")),
            (Data::Text, None) => true,
            (Data::Binary, None) => false,
            (Data::Reserved(_), _) => return Err(Broken::Rules("an unknown kind of frame")),
        };
        let whole = match self.pieces.take() {
            None if last => payload.to_vec(),
            pieces => {
                let mut pieces = pieces.unwrap_or(Pieces { text, bytes: Vec::new() });
                pieces.bytes.extend_from_slice(&payload);
                if !last {
                    self.pieces = Some(pieces);
                    return Ok(None);
                }
                pieces.bytes
            }
        };
        if !text {
            return Ok(Some(Heard::Binary));
        }
        let text = String::from_utf8(whole).map_err(|_| Broken::Rules("text that is not UTF-8"))?;
        Ok(Some(Heard::Text(text)))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const MOST: usize = 70_000;
    const KEY: [u8; 4] = [0x11, 0xfe, 0, 0x7f];

    /// A frame of a device.
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![first];
        match payload.len() {
            length @ 0..126 => frame.push(0x80 | length as u8),
            length @ 126..65_536 => {
                frame.push(0x80 | 126);
                frame.extend((length as u16).to_be_bytes());
            }
            length => {
                frame.push(0x80 | 127);
                frame.extend((length as u64).to_be_bytes());
            }
        }
        frame.extend(KEY);
        frame.extend(payload.iter().zip(KEY.iter().cycle()).map(|(byte, key)| byte ^ key));
        frame
    }

    /// All messages of these bytes, given in portions of this size.
    fn heard(bytes: &[u8], portion: usize) -> Result<Vec<Heard>, Broken> {
        let mut incoming = Incoming::new(MOST);
        let mut all = Vec::new();
        for some in bytes.chunks(portion) {
            incoming.add(some);
            while let Some(message) = incoming.message()? {
                all.push(message);
            }
        }
        assert!(incoming.buffer.is_empty() && incoming.buffer.capacity() == 0, "nothing is kept");
        assert!(incoming.pieces.is_none());
        Ok(all)
    }

    #[test]
    fn messages_come_whole_whatever_the_portions() {
        let long = "é".repeat(30_000);
        let bytes = [
            frame(0x81, b"one"),
            frame(0x89, b"ping"),
            frame(0x01, b"tw"),
            frame(0x8a, b""),
            frame(0x00, b"o \xc3"),
            frame(0x80, b"\xa9"),
            frame(0x81, b""),
            frame(0x82, b"\xff"),
            frame(0x81, long.as_bytes()),
            frame(0x81, "x".repeat(125).as_bytes()),
            frame(0x81, "x".repeat(126).as_bytes()),
            frame(0x81, "x".repeat(65_535).as_bytes()),
            frame(0x81, "x".repeat(65_536).as_bytes()),
            frame(0x88, b"\x03\xe8bye"),
            frame(0x88, b""),
        ]
        .concat();
        let x = |length: usize| Heard::Text("x".repeat(length));
        for portion in [1, 2, 3, 7, 4096, 1 << 20] {
            let all = heard(&bytes, portion).unwrap();
            let expected = [
                Heard::Text("one".into()),
                Heard::Ping(Bytes::from_static(b"ping")),
                Heard::Pong,
                Heard::Text("two é".into()),
                Heard::Text(String::new()),
                Heard::Binary,
                Heard::Text(long.clone()),
                x(125),
                x(126),
                x(65_535),
                x(65_536),
                Heard::Close(Some(1000)),
                Heard::Close(None),
            ];
            assert_eq!(all.len(), expected.len());
            assert!(all == expected, "portions of {portion}");
        }
    }

    #[test]
    fn a_frame_that_breaks_the_rules_is_the_last() {
        let rules = [
            ("not masked", vec![0x81, 1, b'x']),
            ("compressed", frame(0xc1, b"x")),
            ("a reserved bit", frame(0xa1, b"x")),
            ("another", frame(0x91, b"x")),
            ("a reserved kind", frame(0x83, b"x")),
            ("a reserved control", frame(0x8b, b"")),
            ("a large ping", frame(0x89, &[b'x'; 126])),
            ("a ping in pieces", frame(0x09, b"x")),
            ("a piece of nothing", frame(0x80, b"x")),
            ("a message within one", [frame(0x01, b"x"), frame(0x81, b"x")].concat()),
            ("no text", frame(0x81, b"\xff")),
            ("half a character", [frame(0x01, b"\xc3"), frame(0x80, b"\x28")].concat()),
            ("half a code", frame(0x88, b"\x03")),
            ("a reason that is no text", frame(0x88, b"\x03\xe8\xff")),
        ];
        for (what, bytes) in rules {
            let mut incoming = Incoming::new(MOST);
            incoming.add(&bytes);
            assert!(matches!(incoming.message(), Err(Broken::Rules(_))), "{what}");
            incoming.add(&frame(0x81, b"later"));
            assert!(matches!(incoming.message(), Err(Broken::Rules(_))), "{what}, for good");
            assert_eq!(incoming.buffer.capacity(), 0, "{what}");
        }
    }

    #[test]
    fn what_is_too_large_is_told_by_its_head() {
        let head = |length: u64| [&[0x81, 0xff][..], &length.to_be_bytes(), &KEY].concat();
        for length in [MOST as u64 + 1, 1 << 40, u64::MAX] {
            let mut incoming = Incoming::new(MOST);
            incoming.add(&head(length));
            assert_eq!(incoming.message(), Err(Broken::TooLarge), "{length}");
        }
        let mut incoming = Incoming::new(MOST);
        incoming.add(&head(MOST as u64));
        assert_eq!(incoming.message(), Ok(None));
        let mut incoming = Incoming::new(MOST);
        incoming.add(&[frame(0x01, &[b'x'; 40_000]), frame(0x00, &[b'x'; 40_000])].concat());
        assert_eq!(incoming.message(), Err(Broken::TooLarge), "pieces add up");
    }
}
