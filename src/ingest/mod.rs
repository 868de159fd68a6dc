//! The one task that reads the replication stream and feeds log and hub.
//!
//! In: the stream of one slot. Out: transactions for the log (durable, through its bounded queue) and
//! the hub (at once). Between them the router says whom a change concerns. It waits for no device; for
//! the disk only when the log's queue is full, and then still reports to the server; for a query only
//! where it meets a table that it does not know.
//!
//! Invariants: confirmed to the server ≤ durable in the log ≤ received. A transaction reaches the log
//! before or with the hub, never only the hub. Everything is in commit order. After any failure the
//! stage begins again from what the log holds: the router's state, the position, and the stream from
//! the last confirmed position on, of which it skips what the log has.

mod assembly;
mod driver;
mod error;
mod history;
mod opening;
mod opening_stream;
mod poller;
mod progress;
mod publication;
mod reach;
mod release;
mod resuming;
mod rights;
mod rows;
mod schema;
mod slot_watch;
mod stall;
mod supervisor;
mod visibility;

use std::time::Duration;

pub use error::IngestError;
pub use history::Identity;
pub use opening::{Decision, Found, FoundSlot, Known, Lost, NewEpoch, Refused, decide};
pub use progress::{Progress, State};
pub use publication::Publishes;
pub use slot_watch::SlotWatch;
pub use supervisor::Ingest;
pub use visibility::{VisibilityError, look};

use crate::log::LogOptions;
use crate::postgres::Target;

/// The publication that `rowcast init` creates.
pub const PUBLICATION: &str = "rowcast";

/// How long the database may take to answer a short question. After that the path to it is taken for gone, and
/// another is looked for.
const ANSWER_PATIENCE: Duration = Duration::from_secs(20);

/// How ingest is to work.
#[derive(Debug, Clone)]
pub struct IngestOptions {
    pub target: Target,
    pub slot: String,
    pub log: LogOptions,
    /// A transaction larger than this many bytes is passed on in parts.
    pub part_size: usize,
    /// How often the database's catalogs are compared with what is known of the tables.
    pub poll_interval: Duration,
    /// Tokens come from several issuers, so who is named without one is nobody.
    pub several_issuers: bool,
}
