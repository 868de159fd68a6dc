//! The replication side of PostgreSQL: connect, keep the slot, decode bytes, report progress.
//!
//! First stage of the data flow. In layers, each of which knows only the one below:
//! * `wire` turns a byte stream into protocol messages and keeps what is half read or half written;
//! * `startup` opens a replication session on it;
//! * `connection` runs replication commands, one file for each: `identify`, `slot`, `start`;
//! * `stream` yields the frames of a running stream and carries progress back, at the `pace` that it is sent;
//! * `pgoutput` decodes a frame's body. Pure, and independent of all others.
//!
//! Nothing here reconnects, retries, or decides what may be confirmed: a caller sees each error,
//! typed, and [`WalError::is_transient`] says whether trying again can help. Bodies are slices of
//! the receive buffer, so nothing is copied between the socket and the decoder.

mod connection;
mod error;
mod frame;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod identify;
mod pace;
pub mod pgoutput;
mod slot;
mod start;
mod startup;
mod stream;
mod wire;

pub use connection::ReplicationConnection;
pub use error::{During, WalError};
pub use frame::{Frame, Keepalive, StandbyStatus, XLogData};
pub use identify::{SystemIdentity, TimelineSwitch};
pub use slot::CreatedSlot;
pub use stream::ReplicationStream;
