//! One device: from its connection to the check of what it is sent. Does no I/O but writing to its socket.

use std::io::{ErrorKind, Write};
use std::time::Instant;

use mio::net::TcpStream;

use super::board::Board;
use super::fleet::Tally;
use super::frames::{self, Row, Told};
use super::service::Script;
use super::websocket::{self, CLOSE, PING, PONG, TEXT};

/// A device without a socket is `Away`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Away,
    Connecting,
    Upgrading,
    Subscribing,
    /// Subscribed with an older cursor.
    CatchingUp,
    Live,
}

#[derive(Debug)]
pub(super) struct Device {
    pub(super) stage: Stage,
    pub(super) stream: Option<TcpStream>,
    /// Until it is sent.
    script: Option<Script>,
    /// The beginning of a frame, or of the answer's head, of which the rest is not there yet.
    part: Vec<u8>,
    unsent: Vec<u8>,
    /// Whose rows it is to get.
    pub(super) user: u64,
    /// The `n` of the row that comes next.
    pub(super) next: u64,
    /// The last one that it was told, where that is remembered.
    pub(super) cursor: String,
}

/// What everything that arrives is seen with.
pub(super) struct Sight<'a> {
    pub(super) tally: &'a mut Tally,
    pub(super) board: Option<&'a Board>,
    pub(super) arrived: Instant,
    /// Keep the cursors.
    pub(super) remember: bool,
}

impl Device {
    pub(super) fn new() -> Self {
        Device {
            stage: Stage::Away,
            stream: None,
            script: None,
            part: Vec::new(),
            unsent: Vec::new(),
            user: 0,
            next: 1,
            cursor: String::new(),
        }
    }

    /// Begins with a socket that is being connected.
    pub(super) fn begin(&mut self, stream: TcpStream, script: Script) {
        self.user = script.user;
        self.script = Some(script);
        self.stream = Some(stream);
        self.part.clear();
        self.unsent.clear();
        self.stage = Stage::Connecting;
    }

    pub(super) fn leave(&mut self) {
        self.stream = None;
        self.stage = Stage::Away;
    }

    /// Whether there is something that the socket did not take yet.
    pub(super) fn owes_bytes(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// The socket takes bytes.
    pub(super) fn writable(&mut self) -> Result<(), String> {
        if self.stage == Stage::Connecting {
            let Some(stream) = &self.stream else { return Ok(()) };
            match (stream.take_error(), stream.peer_addr()) {
                (Ok(None), Ok(_)) => {}
                // Not connected yet.
                (Ok(None), Err(error)) if error.kind() == ErrorKind::NotConnected => return Ok(()),
                (Ok(Some(error)) | Err(error), _) | (_, Err(error)) => {
                    return Err(format!("not connected: {error}"));
                }
            }
            self.unsent.extend(self.script.iter().flat_map(|script| &script.request));
            self.stage = Stage::Upgrading;
        }
        self.flush()
    }

    fn flush(&mut self) -> Result<(), String> {
        let Some(stream) = &mut self.stream else { return Ok(()) };
        while !self.unsent.is_empty() {
            match stream.write(&self.unsent) {
                Ok(sent) => {
                    self.unsent.drain(..sent);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(format!("cannot be written to: {error}")),
            }
        }
        self.unsent.shrink_to(0);
        Ok(())
    }

    /// Bytes came.
    pub(super) fn take(&mut self, bytes: &[u8], sight: &mut Sight<'_>) -> Result<(), String> {
        if self.part.is_empty() {
            let used = self.read(bytes, sight)?;
            self.part.extend_from_slice(bytes.get(used..).unwrap_or_default());
        } else {
            let mut part = std::mem::take(&mut self.part);
            part.extend_from_slice(bytes);
            let used = self.read(&part, sight)?;
            part.drain(..used);
            // An idle device holds no buffer.
            part.shrink_to(0);
            self.part = part;
        }
        if self.unsent.is_empty() { Ok(()) } else { self.flush() }
    }

    /// Reads what is there whole; returns how much that was.
    fn read(&mut self, bytes: &[u8], sight: &mut Sight<'_>) -> Result<usize, String> {
        let mut at = 0;
        if self.stage == Stage::Upgrading {
            let Some(end) = websocket::upgraded(bytes).map_err(|error| error.to_string())? else {
                return Ok(0);
            };
            at = end;
            self.upgraded();
        }
        loop {
            let rest = bytes.get(at..).unwrap_or_default();
            let Some(frame) = websocket::frame(rest).map_err(|error| error.to_string())? else {
                return Ok(at);
            };
            let payload = rest.get(frame.begin..frame.end).unwrap_or_default();
            match frame.opcode {
                TEXT => self.message(payload, sight)?,
                PING => websocket::write(PONG, payload, &mut self.unsent),
                CLOSE => {
                    let code = payload.first_chunk::<2>().map_or(0, |code| u16::from_be_bytes(*code));
                    return Err(format!("closed with {code}"));
                }
                _ => {}
            }
            at += frame.end;
        }
    }

    fn upgraded(&mut self) {
        let Some(pattern) = self.script.take().and_then(|script| script.pattern) else {
            self.stage = Stage::Live;
            return;
        };
        let cursor = match self.cursor.as_str() {
            "" => String::new(),
            cursor => format!(",\"cursor\":\"{cursor}\""),
        };
        let message = format!("{{\"type\":\"subscribe\",\"topics\":[\"{pattern}\"]{cursor}}}");
        websocket::write(TEXT, message.as_bytes(), &mut self.unsent);
        self.stage = Stage::Subscribing;
    }

    fn message(&mut self, message: &[u8], sight: &mut Sight<'_>) -> Result<(), String> {
        match frames::read(message) {
            Told::Row(row) => {
                self.check(row)?;
                sight.tally.row(row.id, message.len(), sight.board, sight.arrived);
                self.remember(frames::cursor(message), sight);
            }
            Told::Subscribed { cursor } => {
                // One that came back is told its own cursor here, and more rows before `caught_up`.
                self.stage = if self.cursor.is_empty() { Stage::Live } else { Stage::CatchingUp };
                self.remember(cursor, sight);
            }
            Told::CaughtUp => {
                self.stage = Stage::Live;
                self.remember(frames::cursor(message), sight);
            }
            Told::Other => {}
            Told::Bad(kind) => {
                let shown =
                    String::from_utf8_lossy(message.get(..message.len().min(200)).unwrap_or_default());
                return Err(format!("was told {kind}: {shown}"));
            }
        }
        Ok(())
    }

    fn remember(&mut self, cursor: Option<&str>, sight: &Sight<'_>) {
        if let Some(cursor) = cursor.filter(|_| sight.remember) {
            self.cursor.clear();
            self.cursor.push_str(cursor);
        }
    }

    /// Each row once, in order, and no other's.
    fn check(&mut self, row: Row) -> Result<(), String> {
        let Device { user, next, .. } = *self;
        if row.user != user || row.topic.is_some_and(|topic| topic != user) {
            return Err(format!("was sent a row of user {} (topic of {:?})", row.user, row.topic));
        }
        if row.n != next {
            return Err(format!("was sent row {} where row {next} comes next", row.n));
        }
        self.next += 1;
        Ok(())
    }
}
