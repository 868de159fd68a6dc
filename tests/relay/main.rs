//! The integration tests: the real binary against a real PostgreSQL, one private cluster for each test.
#![allow(clippy::unwrap_used)]

mod big;
mod catalog;
mod crash;
mod ddl;
mod delivery;
mod full;
mod harness;
mod keys;
mod oracle;
mod privacy;
mod records;
mod seam;
mod serve;
mod signin;
mod slot;
mod slow;
mod support;
mod tls;
mod tracking;
mod values;
