//! rowcast: a Postgres change-data-capture relay.
//!
//! The way of one row change, one module for each step: `wal` decodes replication bytes, `route` maps
//! a change to topics, `log` keeps it durably, `hub` fans it out, `transport` speaks to devices;
//! `sync` answers devices that were away and `auth` decides who may see what.
//! `docs/ARCHITECTURE.md` follows a change through them.

// Their mistakes must not come into a release by way of `--all-features`.
#[cfg(all(feature = "failpoints", not(debug_assertions)))]
compile_error!("the feature `failpoints` makes a relay that loses changes: it is for tests only");

pub mod app;
pub mod auth;
pub mod bell;
pub mod bench;
pub mod change;
pub mod config;
pub mod cursor;
pub mod demo;
pub mod devices;
pub mod embedded;
pub mod feed;
pub mod fence;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
pub mod horizon;
pub mod hub;
pub mod ingest;
pub mod json;
pub mod log;
pub mod lsn;
pub mod position;
pub mod postgres;
pub mod route;
pub mod sync;
pub mod timestamp;
pub mod topic;
pub mod transport;
pub mod wal;
