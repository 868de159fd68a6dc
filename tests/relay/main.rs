//! The integration tests: the real binary against a real PostgreSQL, one private cluster for each test.
#![allow(clippy::unwrap_used)]

mod delivery;
mod harness;
mod records;
mod seam;
mod support;
mod values;
