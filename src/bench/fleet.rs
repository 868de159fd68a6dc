//! Many devices on one thread: one `epoll`, one buffer to read into.
//!
//! Blocks the thread that it is called on. Between calls nothing is read, and pings go unanswered: no more than
//! a minute should pass.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use mio::{Events, Interest, Poll, Token};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::{Domain, Protocol, Socket, Type};

use super::board::Board;
use super::device::{Device, Sight, Stage};
use super::histogram;
use super::service::{Script, Service};

/// Each address has ports for 28,000 connections to one service.
const ADDRESSES: u64 = 8;
/// Several frames of several devices at once; what is larger is read in parts.
const SCRATCH: usize = 256 * 1024;
const EVENTS: usize = 1024;
/// How long one look waits: a goal that is reached meanwhile by nobody's message is seen then.
const LOOK: Duration = Duration::from_millis(20);
/// What a run shows of what went wrong; the rest is counted.
const SHOWN: usize = 5;
/// Nothing comes any more when nothing came for so long after the last write.
const SILENCE: Duration = Duration::from_secs(10);
/// Descriptors that are not devices.
const OTHER_FILES: u64 = 128;

/// The devices of one service.
#[derive(Debug)]
pub struct Fleet {
    service: Service,
    poll: Poll,
    events: Events,
    devices: Vec<Device>,
    scratch: Vec<u8>,
    tally: Tally,
    remember: bool,
    /// Devices that are on their way to being live.
    joining: usize,
    live: usize,
}

/// What was received, and what was wrong with it, since it was last taken.
#[derive(Debug)]
pub struct Tally {
    pub rows: u64,
    /// Of the messages that carried them.
    pub bytes: u64,
    /// Times that something was read from a socket.
    pub reads: u64,
    /// Nanoseconds from the commit's return, zero for what came before it.
    pub delivery: Histogram<u64>,
    /// Nanoseconds from when the write was due: free of coordinated omission also where the database was late.
    pub due: Histogram<u64>,
    /// Rows that came before their commit's return was noted.
    early: Vec<(u64, Instant)>,
    pub wrong: u64,
    /// The first of what was wrong.
    pub complaints: Vec<String>,
}

impl Tally {
    fn new() -> Self {
        Tally {
            rows: 0,
            bytes: 0,
            reads: 0,
            delivery: histogram(),
            due: histogram(),
            early: Vec::new(),
            wrong: 0,
            complaints: Vec::new(),
        }
    }

    pub(super) fn row(&mut self, id: u64, bytes: usize, board: Option<&Board>, arrived: Instant) {
        self.rows += 1;
        self.bytes += bytes as u64;
        let Some(board) = board else { return };
        if !self.note(board, id, arrived) {
            self.early.push((id, arrived));
        }
    }

    fn note(&mut self, board: &Board, id: u64, arrived: Instant) -> bool {
        let Some(nanoseconds) = board.since_return(id, arrived) else { return false };
        self.delivery.saturating_record(nanoseconds);
        if let Some(nanoseconds) = board.since_due(id, arrived) {
            self.due.saturating_record(nanoseconds);
        }
        true
    }

    fn settle(&mut self, board: &Board) {
        for (id, arrived) in std::mem::take(&mut self.early) {
            if !self.note(board, id, arrived) {
                self.early.push((id, arrived));
            }
        }
    }

    fn complain(&mut self, complaint: String) {
        self.wrong += 1;
        if self.complaints.len() < SHOWN {
            self.complaints.push(complaint);
        }
    }
}

/// Lets this process have as many open files as it may; says for how many devices that is.
pub fn allow_files() -> io::Result<usize> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok(usize::try_from(hard.saturating_sub(OTHER_FILES)).unwrap_or(usize::MAX))
}

impl Fleet {
    pub fn new(service: Service) -> io::Result<Self> {
        Ok(Fleet {
            service,
            poll: Poll::new()?,
            events: Events::with_capacity(EVENTS),
            devices: Vec::new(),
            scratch: vec![0; SCRATCH],
            tally: Tally::new(),
            remember: false,
            joining: 0,
            live: 0,
        })
    }

    /// Devices keep the cursors that they are told, for [`Fleet::reconnect`].
    pub fn remember_cursors(&mut self) {
        self.remember = true;
    }

    /// The last cursor that a device was told, if these are remembered.
    pub fn cursor(&self, number: usize) -> Option<&str> {
        self.devices.get(number).map(|device| device.cursor.as_str()).filter(|cursor| !cursor.is_empty())
    }

    /// How many devices there are.
    pub fn len(&self) -> usize {
        self.devices.len()
    }

    pub fn is_empty(&self) -> bool {
        self.devices.is_empty()
    }

    /// Connects and subscribes so many more devices, `at_once` at a time. Returns how long that took, without the
    /// making of their tokens.
    pub fn connect(&mut self, count: usize, at_once: usize, patience: Duration) -> anyhow::Result<Duration> {
        let first = self.devices.len();
        self.devices.extend((0..count).map(|_| Device::new()));
        self.join(first, at_once, patience)
    }

    /// All devices come back, each with its cursor.
    pub fn reconnect(&mut self, at_once: usize, patience: Duration) -> anyhow::Result<Duration> {
        self.join(0, at_once, patience)
    }

    /// Every device goes, without a word.
    pub fn disconnect(&mut self) {
        self.devices.iter_mut().for_each(Device::leave);
        self.live = 0;
    }

    /// The rows that come from now on begin with `n` for every device.
    pub fn expect_from(&mut self, n: u64) {
        self.devices.iter_mut().for_each(|device| device.next = n);
    }

    /// Receives until there are so many rows in the tally; `false` if they are not there in time, or something was
    /// wrong.
    pub fn receive(&mut self, rows: u64, board: Option<&Board>, patience: Duration) -> io::Result<bool> {
        let begun = Instant::now();
        let mut came = (self.tally.rows, begun);
        while self.tally.rows < rows && self.tally.wrong == 0 && begun.elapsed() < patience {
            self.turn(board)?;
            if self.tally.rows > came.0 {
                came = (self.tally.rows, Instant::now());
            } else if board.is_some_and(Board::is_stopped) && came.1.elapsed() > SILENCE {
                break;
            }
        }
        self.settle(board, begun, patience)?;
        Ok(self.tally.rows >= rows && self.tally.wrong == 0)
    }

    /// Receives for so long, whatever comes.
    pub fn linger(&mut self, board: Option<&Board>, time: Duration) -> io::Result<()> {
        let begun = Instant::now();
        while begun.elapsed() < time {
            self.turn(board)?;
        }
        Ok(())
    }

    /// Complains of every device that has not got as many rows as it should, by its user.
    pub fn check(&mut self, expected: impl Fn(u64) -> u64) {
        for (number, device) in self.devices.iter().enumerate() {
            let (got, expected) = (device.next - 1, expected(device.user));
            if got != expected {
                self.tally.complain(format!("device {number} has {got} rows of {expected}"));
            }
        }
    }

    /// What came since it was last taken.
    pub fn take_tally(&mut self) -> Tally {
        std::mem::replace(&mut self.tally, Tally::new())
    }

    fn join(&mut self, first: usize, at_once: usize, patience: Duration) -> anyhow::Result<Duration> {
        let mut scripts = VecDeque::new();
        for number in first..self.devices.len() {
            scripts.push_back((number, self.service.script(number as u64)?));
        }
        let begun = Instant::now();
        while (self.joining > 0 || !scripts.is_empty()) && self.tally.wrong == 0 {
            while self.joining < at_once
                && let Some((number, script)) = scripts.pop_front()
            {
                self.begin(number, script)?;
            }
            self.turn(None)?;
            anyhow::ensure!(
                begun.elapsed() < patience,
                "{} of {} devices were not connected and subscribed after {patience:?}",
                self.joining + scripts.len(),
                self.devices.len()
            );
        }
        if let Some(complaint) = self.tally.complaints.first() {
            anyhow::bail!("a device could not join: {complaint}");
        }
        Ok(begun.elapsed())
    }

    fn begin(&mut self, number: usize, script: Script) -> io::Result<()> {
        let socket = connecting(self.service.address, number as u64)?;
        let mut stream = mio::net::TcpStream::from_std(socket.into());
        self.poll.registry().register(&mut stream, Token(number), Interest::READABLE | Interest::WRITABLE)?;
        self.devices[number].begin(stream, script);
        self.joining += 1;
        Ok(())
    }

    /// Rows that came before their commit returned wait for that.
    fn settle(&mut self, board: Option<&Board>, begun: Instant, patience: Duration) -> io::Result<()> {
        let Some(board) = board else { return Ok(()) };
        self.tally.settle(board);
        while !self.tally.early.is_empty() && begun.elapsed() < patience && self.tally.wrong == 0 {
            std::thread::yield_now();
            self.tally.settle(board);
        }
        Ok(())
    }

    /// Waits for something to happen, and deals with it.
    fn turn(&mut self, board: Option<&Board>) -> io::Result<()> {
        match self.poll.poll(&mut self.events, Some(LOOK)) {
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()),
            polled => polled?,
        }
        let Fleet { events, devices, scratch, tally, joining, live, remember, service, .. } = self;
        for event in events.iter() {
            let number = event.token().0;
            let Some(device) = devices.get_mut(number).filter(|device| device.stage != Stage::Away) else {
                continue;
            };
            let before = device.stage;
            let mut done = Ok(());
            if event.is_writable() && (before == Stage::Connecting || device.owes_bytes()) {
                done = device.writable();
            }
            if done.is_ok() && event.is_readable() {
                let sight = Sight { tally, board, arrived: Instant::now(), remember: *remember };
                done = receive(device, scratch, sight);
            }
            let joined = device.stage == Stage::Live && (before != Stage::Live);
            match done {
                Ok(()) if joined => {
                    *joining -= 1;
                    *live += 1;
                }
                Ok(()) => {}
                Err(why) => {
                    let counted = if before == Stage::Live { &mut *live } else { &mut *joining };
                    *counted -= 1;
                    device.leave();
                    let what = if service.answers() { "device" } else { "subscriber" };
                    tally.complain(format!("{what} {number} {why}"));
                }
            }
        }
        if let Some(board) = board {
            self.tally.settle(board);
        }
        Ok(())
    }
}

/// Reads all that there is: the socket says once that something came.
fn receive(device: &mut Device, scratch: &mut [u8], mut sight: Sight<'_>) -> Result<(), String> {
    loop {
        let Some(stream) = &mut device.stream else { return Ok(()) };
        match stream.read(scratch) {
            Ok(0) => return Err("was hung up on".to_owned()),
            Ok(length) => {
                sight.tally.reads += 1;
                device.take(&scratch[..length], &mut sight)?;
                if length < scratch.len() {
                    return Ok(());
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(format!("cannot be read from: {error}")),
        }
        sight.arrived = Instant::now();
    }
}

/// A socket on its way, on this machine from one of several addresses.
fn connecting(address: SocketAddr, number: u64) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    if address.ip() == IpAddr::V4(Ipv4Addr::LOCALHOST) {
        let from = Ipv4Addr::from_bits(Ipv4Addr::new(127, 0, 1, 1).to_bits() + (number % ADDRESSES) as u32);
        socket.bind(&SocketAddr::new(from.into(), 0).into())?;
    }
    match socket.connect(&address.into()) {
        Ok(()) => Ok(socket),
        Err(error) if error.raw_os_error() == Some(nix::errno::Errno::EINPROGRESS as i32) => Ok(socket),
        Err(error) => Err(error),
    }
}
