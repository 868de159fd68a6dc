//! The integration tests: the real binary against a real PostgreSQL, one private cluster for each test.
#![allow(clippy::unwrap_used)]

mod catalog;
mod ddl;
mod harness;
mod privacy;
mod support;
mod tracking;
