//! `rowcast bench`: a load generator for any relay and its database, in a process of its own.
//!
//! * `fleet` is the devices: thousands of WebSockets on one thread, each of which checks what it is sent;
//!   `device` is one of them, `websocket` and `frames` are the bytes, `service` says what they speak to;
//! * `writers` writes rows through SQL, by a schedule; `board` notes when each commit returned;
//! * `tables` is what is written to, `ready` waits until the relay knows them, `processes` is what everyone costs;
//! * `run` puts them together, `report` says what came of it.
//!
//! It stands outside of the relay and knows only its public surface. What it measures must not be its own
//! cost: one thread receives, with one buffer for all devices and no JSON tree; another one writes. The
//! benchmark in `benches/` is built of the same parts.

pub mod board;
mod device;
pub mod fleet;
mod frames;
pub mod processes;
pub mod ready;
mod report;
mod run;
pub mod service;
pub mod tables;
mod websocket;
pub mod writers;

pub use report::{Latency, Report, Share};
pub use run::{Plan, run};

use std::time::Duration;

use hdrhistogram::Histogram;

/// Latencies are kept up to this; what takes longer counts as this long.
const LONGEST: Duration = Duration::from_secs(600);

/// An empty histogram of nanoseconds, exact to three digits.
pub fn histogram() -> Histogram<u64> {
    let longest = u64::try_from(LONGEST.as_nanos()).unwrap_or(u64::MAX);
    Histogram::new_with_bounds(1, longest, 3).expect("constant bounds that are valid")
}
