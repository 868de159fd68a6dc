//! The log as a whole, on real directories.
#![allow(clippy::unwrap_used)]

mod agreement;
mod bulk;
mod crash;
mod damage;
mod everyday;
mod format;
mod retention;
pub(super) mod support;
