//! pgoutput, protocol version 1: bytes in, a typed message or a typed error out.
//!
//! Pure: no I/O, no clock, no state between messages. Knows nothing of tables or topics; the
//! relation that a tuple belongs to is only a number here. No input can make it panic, and it
//! allocates nothing for a row: tuples stay slices of the body and decode when they are iterated.

mod decode;
#[cfg(any(test, feature = "fuzzing"))]
mod encode;
mod error;
mod message;
mod reader;
mod tuple;

pub use decode::decode;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use encode::encode;
pub use error::{DecodeError, Why};
pub use message::{
    Begin, Column, Commit, Delete, Insert, LogicalMessage, Message, OldTuple, Origin, Relation,
    ReplicaIdentity, Truncate, Type, Update,
};
pub use tuple::{Tuple, Value, Values};

#[cfg(test)]
mod tests;
