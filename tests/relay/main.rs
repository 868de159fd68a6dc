//! The integration tests: the real binary against a real PostgreSQL, one private cluster for each test.
#![allow(clippy::unwrap_used)]

mod big;
mod catalog;
mod crash;
mod ddl;
mod harness;
mod serve;
mod slot;
mod slow;
mod privacy;
mod support;
mod tracking;
mod delivery;
mod harness;
mod records;
mod seam;
mod support;
mod values;
