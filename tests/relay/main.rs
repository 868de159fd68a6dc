//! The integration tests: the real binary against a real PostgreSQL, one private cluster for each test.
#![allow(clippy::unwrap_used)]

mod big;
mod bounds;
mod catalog;
mod check;
mod crash;
mod ddl;
mod delivery;
mod devices;
mod edge;
mod events;
mod full;
mod gaps;
mod grants;
mod guard;
mod harness;
mod keys;
mod openapi;
mod oracle;
mod partitions;
mod poll;
mod privacy;
mod records;
mod seam;
mod serve;
mod signin;
mod slot;
mod slow;
mod support;
mod tables;
mod tickets;
mod tls;
mod tracking;
mod uninstall;
mod upgrade;
mod values;
