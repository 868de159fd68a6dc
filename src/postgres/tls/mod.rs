//! TLS to PostgreSQL, the same for ordinary and for replication connections.
//!
//! * `settings` reads what a connection string says of it, and touches no file;
//! * `files` reads certificates and keys, anew for each connection, so that renewed ones are taken up;
//! * `verify` judges the server's certificate as the mode demands;
//! * `channel` asks the server for TLS on a fresh socket, and is the stream of bytes that comes of it;
//! * `connector` hands that to tokio-postgres;
//! * `binding` computes what ties a SCRAM exchange to the certificate (RFC 5929);
//! * `error` says which check failed, and what to do about it.
//!
//! Invariants: TLS is asked for before anything else is sent; nothing goes on in plain text after a
//! certificate failed its check; a Unix socket never has TLS. The cryptography is ring's, named
//! wherever a configuration is made: nothing depends on a default of the process.
//! PostgreSQL documentation, "SSL Support" of libpq, and "SSL Session Encryption" of the protocol.

mod binding;
mod channel;
mod connector;
mod error;
mod files;
mod settings;
mod verify;

pub use error::TlsError;

pub(crate) use channel::{Channel, Security};
pub(crate) use connector::Connector;
pub(crate) use settings::{ChannelBinding, TlsSettings};
