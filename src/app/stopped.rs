//! Why the relay cannot run, in words for whoever started it: what happened, and what to do.

use crate::ingest::IngestError;
use crate::postgres::ConnectError;
use crate::wal::WalError;

/// The error with its causes, and the way out where there is one.
pub(super) fn explain(error: IngestError) -> anyhow::Error {
    match advice(&error) {
        Some(advice) => anyhow::anyhow!("{}; {advice}", chain(&error)),
        None => error.into(),
    }
}

fn advice(error: &IngestError) -> Option<&'static str> {
    match error {
        IngestError::Connect(error) | IngestError::Wal(WalError::Connect(error)) => connecting(error),
        IngestError::Wal(error) if error.no_free_slot() => Some(
            "drop a slot that nobody uses (SELECT slot_name, active FROM pg_replication_slots) or raise \
             max_replication_slots, which takes a restart of PostgreSQL",
        ),
        IngestError::Wal(error) if error.not_permitted() => {
            Some("the role of database_url needs REPLICATION: run ALTER ROLE … REPLICATION")
        }
        IngestError::Query(error)
            if error.code() == Some(&tokio_postgres::error::SqlState::INSUFFICIENT_PRIVILEGE) =>
        {
            Some("run GRANT rowcast_relay TO the role of database_url")
        }
        _ => None,
    }
}

fn connecting(error: &ConnectError) -> Option<&'static str> {
    match error {
        ConnectError::Credentials(_) => {
            Some("check user and password in database_url, and the server's pg_hba.conf")
        }
        ConnectError::UnknownDatabase(_) => Some("create it, or correct the name in database_url"),
        ConnectError::NotPermitted(_) => {
            Some("the role of database_url needs REPLICATION: run ALTER ROLE … REPLICATION")
        }
        ConnectError::Protocol(_) => Some("check host and port in database_url: is this PostgreSQL?"),
        _ => None,
    }
}

/// Each cause once: many errors repeat theirs in their own text.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let own = cause.to_string();
        if !text.contains(&own) {
            text.push_str(": ");
            text.push_str(&own);
        }
        next = cause.source();
    }
    text
}
