//! Ordinary SQL against the database.

pub mod catalog;
