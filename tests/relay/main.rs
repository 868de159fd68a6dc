//! The integration tests: the real binary against a real PostgreSQL, one private cluster for each test.
#![allow(clippy::unwrap_used)]

mod big;
mod crash;
mod harness;
mod slot;
mod slow;
mod support;
