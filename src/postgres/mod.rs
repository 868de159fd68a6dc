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
pub mod partitions;
mod passfile;
mod settings;
pub mod tables;
mod target;
pub mod types;

pub use connect::{Driver, connect};
pub use database::Database;
pub use error::{ConnectError, ServerError};
pub use settings::{PinScope, SET_LOCAL};
pub use target::{Target, TargetError};

pub(crate) use error::Severity;
pub(crate) use settings::{REPLICATION_PINS, session_options};
pub(crate) use target::{Endpoint, Host};
