//! Ordinary SQL connections.

pub mod types;
