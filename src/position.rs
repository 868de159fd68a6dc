//! Where a change stands in the one order that everything in the relay follows.
//!
//! A position is (commit LSN as Begin names it, index in the transaction). Indexes of changes begin
//! at 1 and depend only on the replication stream, so that a transaction sent again gets the same
//! ones. Index 0 is a boundary: "every transaction whose commit record begins before this LSN", which
//! is also what PostgreSQL understands by a confirmed position.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::lsn::Lsn;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Position {
    pub commit: Lsn,
    pub index: u32,
}

impl Position {
    pub const ZERO: Position = Position { commit: Lsn::ZERO, index: 0 };
    /// After every change: an open end.
    pub const MAX: Position = Position { commit: Lsn::MAX, index: u32::MAX };

    pub const fn new(commit: Lsn, index: u32) -> Self {
        Position { commit, index }
    }

    /// After every transaction whose commit record begins before `lsn`, before all others.
    pub const fn boundary(lsn: Lsn) -> Self {
        Position { commit: lsn, index: 0 }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.commit, self.index)
    }
}

impl fmt::Debug for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
