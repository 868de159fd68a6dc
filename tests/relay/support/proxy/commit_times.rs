//! Commit times that jump: what a server's clock does when it is set, without a clock to set.
//!
//! Knows as much of the protocol as it needs: messages and their lengths, XLogData within CopyData, and
//! pgoutput's Begin and Commit within that. A commit's jump depends on its LSN alone, so that it has the
//! same time however often it is sent.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::support::dice::Dice;

/// A message's type and length.
const HEAD: usize = 5;
/// The head, 'w' and XLogData's three positions and times, the longest of Begin and Commit.
const LOOKED_AT: usize = HEAD + 1 + 24 + 26;
/// Where a pgoutput message begins in such a message.
const BODY: usize = HEAD + 1 + 24;
/// A packet that a client begins with is small.
const LONGEST_STARTUP: usize = 10_000;

/// The packet with which a client begins a session.
pub(super) async fn startup(client: &mut TcpStream) -> Option<Vec<u8>> {
    let mut packet = vec![0; 4];
    client.read_exact(&mut packet).await.ok()?;
    let length = u32::from_be_bytes(packet[..].try_into().unwrap()) as usize;
    assert!((8..LONGEST_STARTUP).contains(&length), "no startup packet: {packet:?}");
    packet.resize(length, 0);
    client.read_exact(&mut packet[4..]).await.ok()?;
    Some(packet)
}

pub(super) fn is_replication(startup: &[u8]) -> bool {
    startup.windows(13).any(|window| window == b"\0replication\0")
}

/// Which commits have which times, for all connections.
#[derive(Debug, Default)]
pub(super) struct Jumps {
    /// The greatest commit that has passed.
    passed: u64,
    /// From an LSN on: the seed, and the greatest jump in microseconds.
    eras: Vec<(u64, u64, i64)>,
    jumped: u64,
}

impl Jumps {
    pub(super) fn begin(&mut self, seed: u64, most: Duration) {
        self.eras.push((self.passed + 1, seed, i64::try_from(most.as_micros()).unwrap()));
    }

    pub(super) fn jumped(&self) -> u64 {
        self.jumped
    }

    fn of(&mut self, commit: u64) -> i64 {
        self.passed = self.passed.max(commit);
        let era = self.eras.iter().rev().find(|(from, ..)| *from <= commit);
        let Some((_, seed, most)) = era.filter(|(_, _, most)| *most > 0) else { return 0 };
        let mut dice = Dice(seed ^ commit);
        // Some are right.
        if dice.roll(4) == 0 {
            return 0;
        }
        i64::try_from(dice.roll(2 * most.unsigned_abs())).unwrap() - most
    }
}

/// One direction of one connection.
#[derive(Debug)]
pub(super) struct Rewriting {
    jumps: Arc<Mutex<Jumps>>,
    /// The beginning of a message, not passed on yet.
    begun: Vec<u8>,
    /// Bytes of a message whose beginning was passed on.
    rest: usize,
}

impl Rewriting {
    pub(super) fn new(jumps: Arc<Mutex<Jumps>>) -> Self {
        Rewriting { jumps, begun: Vec::new(), rest: 0 }
    }

    /// What goes on for these bytes, with other commit times in it.
    pub(super) fn pass(&mut self, mut bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(bytes.len() + LOOKED_AT);
        while !bytes.is_empty() {
            if self.rest > 0 {
                let (passed, left) = bytes.split_at(self.rest.min(bytes.len()));
                out.extend_from_slice(passed);
                (self.rest, bytes) = (self.rest - passed.len(), left);
                continue;
            }
            let whole = if self.begun.len() < HEAD { HEAD } else { self.length().min(LOOKED_AT) };
            let (taken, left) = bytes.split_at((whole - self.begun.len()).min(bytes.len()));
            self.begun.extend_from_slice(taken);
            bytes = left;
            if self.begun.len() >= HEAD && self.begun.len() == self.length().min(LOOKED_AT) {
                self.rewrite();
                self.rest = self.length() - self.begun.len();
                out.append(&mut self.begun);
            }
        }
        out
    }

    /// Of the message that has begun, whole.
    fn length(&self) -> usize {
        1 + u32::from_be_bytes(self.begun[1..HEAD].try_into().unwrap()) as usize
    }

    fn rewrite(&mut self) {
        if self.begun[0] != b'd' || self.begun.get(HEAD) != Some(&b'w') {
            return;
        }
        // Where the commit's LSN and its time are, counted from the message's type.
        let (commit, time) = match self.begun.get(BODY) {
            Some(b'B') => (1, 9),
            Some(b'C') => (2, 18),
            _ => return,
        };
        let read = |at: usize| self.begun[BODY + at..BODY + at + 8].try_into().unwrap();
        let (commit, at) = (u64::from_be_bytes(read(commit)), i64::from_be_bytes(read(time)));
        let mut jumps = self.jumps.lock().unwrap();
        let jump = jumps.of(commit);
        jumps.jumped += u64::from(jump != 0);
        self.begun[BODY + time..BODY + time + 8].copy_from_slice(&(at + jump).to_be_bytes());
    }
}

mod tests {
    use super::*;

    fn xlog_data(body: &[u8]) -> Vec<u8> {
        let mut message = vec![b'd'];
        message.extend((4 + 1 + 24 + body.len() as u32).to_be_bytes());
        message.push(b'w');
        message.extend([7; 24]);
        message.extend(body);
        message
    }

    /// However the bytes are cut, only times change, and one commit has one time.
    #[test]
    fn only_commit_times_change_and_always_alike() {
        let mut begin = vec![b'B'];
        begin.extend(1000_u64.to_be_bytes());
        begin.extend(5_000_000_i64.to_be_bytes());
        begin.extend(42_u32.to_be_bytes());
        let mut commit = vec![b'C', 0];
        commit.extend(1000_u64.to_be_bytes());
        commit.extend(1040_u64.to_be_bytes());
        commit.extend(5_000_000_i64.to_be_bytes());
        let mut all = vec![b'Z', 0, 0, 0, 5, b'I'];
        for body in [&begin[..], &[b'I'; 300], &[b'I'; 2], &commit] {
            all.extend(xlog_data(body));
        }
        let jumps = Arc::new(Mutex::new(Jumps::default()));
        assert_eq!(Rewriting::new(Arc::clone(&jumps)).pass(&all), all, "no jumps yet");
        *jumps.lock().unwrap() = Jumps::default();
        jumps.lock().unwrap().begin(4, Duration::from_secs(3600));
        let whole = Rewriting::new(Arc::clone(&jumps)).pass(&all);
        assert_eq!(whole.len(), all.len());
        let differ: Vec<usize> = (0..all.len()).filter(|&at| all[at] != whole[at]).collect();
        let time = 6 + BODY + 9;
        assert!(!differ.is_empty(), "a jump");
        assert!(
            differ.iter().all(|at| (time..time + 8).contains(at) || *at >= all.len() - 8),
            "bytes that are no times: {differ:?}"
        );
        assert_eq!(whole[time..time + 8], whole[all.len() - 8..]);
        for size in 1..80 {
            let mut cut = Rewriting::new(Arc::clone(&jumps));
            let parts: Vec<u8> = all.chunks(size).flat_map(|part| cut.pass(part)).collect();
            assert_eq!(parts, whole, "in parts of {size}");
        }
    }
}
