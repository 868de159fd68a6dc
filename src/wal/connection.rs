//! An open replication session that is not streaming: runs one command at a time.

use std::collections::HashMap;

use postgres_protocol::message::backend::{DataRowBody, Message};
use postgres_protocol::message::frontend;
use tokio_postgres::fallible_iterator::FallibleIterator as _;

use super::error::{During, WalError};
use super::startup::{self, Session};
use super::wire::{Packet, Wire};
use crate::postgres::{ConnectError, Endpoint, Security, ServerError, Target, reach};

/// A walsender session in logical mode (`replication=database`).
///
/// Dropping a command's future before it is done leaves the session in the middle of it: later
/// commands answer [`WalError::Interrupted`]. Dropping the connection ends it, without a word to the server.
#[derive(Debug)]
pub struct ReplicationConnection {
    pub(super) wire: Wire,
    session: Session,
    target: Target,
    endpoint: Endpoint,
    security: Security,
    /// The answer of a command is still due.
    busy: bool,
}

/// One row of a command's answer, in text format.
pub(super) type Row = Vec<Option<String>>;

impl ReplicationConnection {
    /// Opens a replication session, trying the target's servers in turn: one that is down, starting or
    /// of the wrong kind lets the next one be tried. Cancel-safe: dropping it leaves nothing behind.
    pub async fn connect(target: &Target) -> Result<Self, ConnectError> {
        reach(target, async |endpoint, security| {
            let mut wire = Wire::open(&endpoint, &security, target.keepalives()).await?;
            let session = startup::start(&mut wire, target, &endpoint).await?;
            Ok(ReplicationConnection {
                wire,
                session,
                target: target.clone(),
                endpoint,
                security,
                busy: false,
            })
        })
        .await
    }

    /// A session on bytes that come from anywhere.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn over(wire: Wire, session: Session, target: &Target, endpoint: Endpoint) -> Self {
        let target = target.clone();
        ReplicationConnection { wire, session, target, endpoint, security: Security::Plain, busy: false }
    }

    /// A setting that the server reports, such as `server_version` or `in_hot_standby`.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.session.parameters.get(name).map(String::as_str)
    }

    /// All settings that the server reported.
    pub fn parameters(&self) -> &HashMap<String, String> {
        &self.session.parameters
    }

    /// The major version, such as 15; zero if the server does not tell.
    pub fn server_major(&self) -> u32 {
        let version = self.parameter("server_version").unwrap_or_default();
        let digits = version.find(|c: char| !c.is_ascii_digit()).unwrap_or(version.len());
        version.get(..digits).and_then(|digits| digits.parse().ok()).unwrap_or(0)
    }

    /// The server process of this session, as in `pg_stat_activity.pid`.
    pub fn backend_pid(&self) -> i32 {
        self.session.backend_pid
    }

    /// The server that answered, as text.
    pub fn endpoint(&self) -> String {
        self.endpoint.to_string()
    }

    /// Runs a replication command and collects its rows.
    pub(super) async fn command(&mut self, during: During, text: &str) -> Result<Vec<Row>, WalError> {
        self.send(text)?;
        self.answer(during).await
    }

    pub(super) fn send(&mut self, text: &str) -> Result<(), WalError> {
        if self.busy {
            return Err(WalError::Interrupted);
        }
        frontend::query(text, &mut self.wire.output).map_err(|_| WalError::ZeroByte)?;
        self.busy = true;
        Ok(())
    }

    /// The rest of a command's answer, up to where the session takes the next one. Cancel-safe: called
    /// again, it goes on, but rows that it had seen are lost.
    pub(super) async fn answer(&mut self, during: During) -> Result<Vec<Row>, WalError> {
        let (mut rows, mut failure) = (Vec::new(), None);
        loop {
            match self.message().await? {
                Message::DataRow(body) => rows.push(row(&body)?),
                Message::ErrorResponse(body) => {
                    let error = ServerError::from_fields(body.fields());
                    failure = Some(WalError::Server { during, error });
                }
                Message::ReadyForQuery(_) => break,
                Message::RowDescription(_) | Message::CommandComplete(_) | Message::EmptyQueryResponse => {}
                _ => return Err(WalError::Protocol("not an answer to a replication command")),
            }
        }
        self.busy = false;
        failure.map_or(Ok(rows), Err)
    }

    async fn message(&mut self) -> Result<Message, WalError> {
        loop {
            match self.wire.next().await? {
                Packet::Other(Message::NoticeResponse(body)) => {
                    ServerError::from_fields(body.fields()).trace();
                }
                Packet::Other(Message::ParameterStatus(body)) => {
                    if let (Ok(name), Ok(value)) = (body.name(), body.value()) {
                        self.session.parameters.insert(name.to_owned(), value.to_owned());
                    }
                }
                Packet::Other(message) => return Ok(message),
                Packet::CopyData(_) | Packet::CopyBothResponse => {
                    return Err(WalError::Protocol("replication data outside of a stream"));
                }
            }
        }
    }

    /// Asks the server, over a connection of its own, to cancel what this session is doing.
    pub(super) async fn request_cancel(&self) -> Result<(), ConnectError> {
        let request = async {
            let mut wire = Wire::open(&self.endpoint, &self.security, false).await?;
            frontend::cancel_request(self.session.backend_pid, self.session.secret_key, &mut wire.output);
            wire.shutdown().await.map_err(|source| {
                let endpoint = self.endpoint.to_string();
                ConnectError::Unreachable { endpoint, source }
            })
        };
        let Some(limit) = self.target.connect_timeout() else { return request.await };
        match tokio::time::timeout(limit, request).await {
            Ok(result) => result,
            Err(_) => Err(ConnectError::TimedOut { endpoint: self.endpoint.to_string(), after: limit }),
        }
    }
}

fn row(body: &DataRowBody) -> Result<Row, WalError> {
    const MALFORMED: WalError = WalError::Protocol("a row that does not parse");
    let (mut ranges, mut row) = (body.ranges(), Row::new());
    while let Some(range) = ranges.next().map_err(|_| MALFORMED)? {
        let value = range.map(|range| {
            let bytes = body.buffer().get(range).ok_or(MALFORMED)?;
            Ok::<_, WalError>(String::from_utf8_lossy(bytes).into_owned())
        });
        row.push(value.transpose()?);
    }
    Ok(row)
}

/// The value of a row's column, which the command's documentation says is there and what it is.
pub(super) fn field<T: std::str::FromStr>(row: &Row, index: usize) -> Result<T, WalError> {
    let text = row.get(index).and_then(Option::as_deref);
    text.and_then(|text| text.parse().ok())
        .ok_or(WalError::Protocol("a command's answer lacks a value or has one of another kind"))
}

/// The only row of an answer that has exactly one.
pub(super) fn single(rows: Vec<Row>) -> Result<Row, WalError> {
    <[Row; 1]>::try_from(rows)
        .map(|[row]| row)
        .map_err(|_| WalError::Protocol("a command's answer has not exactly one row"))
}

/// A name in double quotes, for the replication grammar and for lists of names.
pub(super) fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text in single quotes, for the replication grammar, which knows no backslash escapes.
pub(super) fn quote_literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}
