//! PostgreSQL as the rest of the relay reaches it: where the server is, and ordinary SQL connections.
//!
//! The base of the data flow: `wal` opens its replication connection from the same [`Target`], with
//! the same pinned session settings and the same classification of what can go wrong. Knows nothing
//! of slots, topics or the log.

pub mod catalog;
mod connect;
mod conninfo;
mod database;
mod error;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
pub mod partitions;
mod passfile;
mod reach;
mod settings;
pub mod tables;
mod target;
mod tls;
pub mod types;

pub use connect::{Driver, connect, connect_unpinned};
pub use database::Database;
pub use error::{ConnectError, ServerError};
pub use settings::{PinScope, SET_LOCAL};
pub use target::{Target, TargetError};
pub use tls::TlsError;

pub(crate) use error::Severity;
pub(crate) use reach::reach;
pub(crate) use settings::{REPLICATION_PINS, session_options};
pub(crate) use target::{Endpoint, Host};
pub(crate) use tls::{Channel, ChannelBinding, Security};
