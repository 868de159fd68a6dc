//! What the server says is wrong, and what can go wrong on the way to it.

use std::io;
use std::time::Duration;

use postgres_protocol::message::backend::ErrorFields;
use tokio_postgres::error::{DbError, SqlState};

use super::target::Endpoint;
use super::tls::{Security, TlsError};

/// An error or notice as the server worded it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message} (SQLSTATE {})", code.code())]
pub struct ServerError {
    pub code: SqlState,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
    pub(crate) severity: Severity,
}

/// As far as anyone here asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Severity {
    /// ERROR, FATAL or PANIC.
    Error,
    Warning,
    /// NOTICE, INFO, LOG or DEBUG.
    Notice,
}

impl Severity {
    fn parse(text: &[u8]) -> Self {
        match text {
            b"ERROR" | b"FATAL" | b"PANIC" => Severity::Error,
            b"WARNING" => Severity::Warning,
            _ => Severity::Notice,
        }
    }
}

impl ServerError {
    /// Reads the fields of an ErrorResponse or NoticeResponse; what is malformed ends the reading.
    pub(crate) fn from_fields(mut fields: ErrorFields<'_>) -> Self {
        use tokio_postgres::fallible_iterator::FallibleIterator as _;
        let mut error = ServerError {
            code: SqlState::INTERNAL_ERROR,
            message: String::new(),
            detail: None,
            hint: None,
            severity: Severity::Error,
        };
        while let Ok(Some(field)) = fields.next() {
            let text = || String::from_utf8_lossy(field.value_bytes()).into_owned();
            match field.type_() {
                b'V' => error.severity = Severity::parse(field.value_bytes()),
                b'C' => error.code = SqlState::from_code(&text()),
                b'M' => error.message = text(),
                b'D' => error.detail = Some(text()),
                b'H' => error.hint = Some(text()),
                _ => {}
            }
        }
        error
    }

    /// Hands a notice to the program's log, at the level of its severity.
    pub(crate) fn trace(&self) {
        let (code, detail) = (self.code.code(), self.detail.as_deref());
        match self.severity {
            Severity::Error | Severity::Warning => {
                tracing::warn!(code, detail, "PostgreSQL: {}", self.message);
            }
            Severity::Notice => tracing::info!(code, detail, "PostgreSQL: {}", self.message),
        }
    }

    /// Whether the same request may succeed later, with nobody changing anything.
    pub fn is_transient(&self) -> bool {
        match self.code.code().get(..2) {
            // connection, rollback, resources, not in state, intervention, system error
            Some("08" | "40" | "53" | "57" | "58") => true,
            _ => self.code == SqlState::OBJECT_IN_USE || self.code == SqlState::LOCK_NOT_AVAILABLE,
        }
    }
}

impl From<&DbError> for ServerError {
    fn from(error: &DbError) -> Self {
        use tokio_postgres::error::Severity as Reported;
        ServerError {
            code: error.code().clone(),
            message: error.message().to_owned(),
            detail: error.detail().map(str::to_owned),
            hint: error.hint().map(str::to_owned),
            severity: match error.parsed_severity() {
                None | Some(Reported::Error | Reported::Fatal | Reported::Panic) => Severity::Error,
                Some(Reported::Warning) => Severity::Warning,
                Some(_) => Severity::Notice,
            },
        }
    }
}

/// Why there is no session. The same for ordinary and replication connections.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("cannot reach PostgreSQL at {endpoint}")]
    Unreachable { endpoint: String, source: io::Error },
    #[error("PostgreSQL at {endpoint} did not answer within {after:?}")]
    TimedOut { endpoint: String, after: Duration },
    #[error("PostgreSQL at {endpoint} closed the connection before it was ready")]
    Closed { endpoint: String },
    #[error("PostgreSQL asks for a password; give one in the URL, PGPASSWORD or the password file")]
    PasswordMissing,
    #[error("PostgreSQL refuses the credentials: {0}")]
    Credentials(ServerError),
    #[error("PostgreSQL asks for authentication by {0}, which rowcast does not know")]
    Method(&'static str),
    #[error("the server could not prove that it knows the password: {0}")]
    ServerNotTrusted(io::Error),
    #[error("the database does not exist: {0}")]
    UnknownDatabase(ServerError),
    #[error(
        "PostgreSQL does not let us in without TLS; use sslmode=require or stricter, or mend pg_hba.conf: {0}"
    )]
    TlsNeeded(ServerError),
    #[error("no TLS with PostgreSQL at {endpoint}")]
    Tls { endpoint: String, source: TlsError },
    #[error(
        "channel_binding=require, and PostgreSQL at {endpoint} did not sign us in by SCRAM over TLS with it"
    )]
    ChannelBinding { endpoint: String },
    #[error("PostgreSQL has no free connection: {0}")]
    TooManyConnections(ServerError),
    #[error("PostgreSQL is starting up or shutting down: {0}")]
    NotAccepting(ServerError),
    #[error("the role may not open this session: {0}")]
    NotPermitted(ServerError),
    #[error("PostgreSQL at {endpoint} is not a server with target_session_attrs={wanted}")]
    WrongServer { endpoint: String, wanted: &'static str },
    #[error("PostgreSQL refuses the session: {0}")]
    Server(ServerError),
    #[error("the answer to the connection request is not PostgreSQL's protocol")]
    Protocol(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl ConnectError {
    /// Whether trying again may help with nobody changing anything.
    pub fn is_transient(&self) -> bool {
        match self {
            ConnectError::Unreachable { .. }
            | ConnectError::TimedOut { .. }
            | ConnectError::Closed { .. }
            | ConnectError::TooManyConnections(_)
            | ConnectError::NotAccepting(_)
            | ConnectError::WrongServer { .. } => true,
            ConnectError::Server(error) => error.is_transient(),
            ConnectError::Tls { source, .. } => source.is_transient(),
            ConnectError::PasswordMissing
            | ConnectError::Credentials(_)
            | ConnectError::Method(_)
            | ConnectError::ServerNotTrusted(_)
            | ConnectError::UnknownDatabase(_)
            | ConnectError::TlsNeeded(_)
            | ConnectError::ChannelBinding { .. }
            | ConnectError::NotPermitted(_)
            | ConnectError::Protocol(_) => false,
        }
    }

    /// Sorts an error that the server sent instead of a session.
    pub(crate) fn from_server(error: ServerError) -> Self {
        match error.code.code() {
            // The text is the only place where the server says that encryption was the reason.
            "28000" if error.message.contains("no encryption") || error.message.contains("SSL off") => {
                ConnectError::TlsNeeded(error)
            }
            "28000" | "28P01" => ConnectError::Credentials(error),
            "3D000" => ConnectError::UnknownDatabase(error),
            "53300" => ConnectError::TooManyConnections(error),
            "57P01" | "57P02" | "57P03" => ConnectError::NotAccepting(error),
            "42501" => ConnectError::NotPermitted(error),
            _ => ConnectError::Server(error),
        }
    }

    pub(crate) fn tls(endpoint: &Endpoint, source: TlsError) -> Self {
        ConnectError::Tls { endpoint: endpoint.to_string(), source }
    }

    /// A broken connection; within TLS the reason may be a refusal in its own words.
    pub(crate) fn broken(endpoint: &Endpoint, error: io::Error) -> Self {
        match TlsError::within(&error) {
            Some(reason) => ConnectError::tls(endpoint, reason),
            None => ConnectError::Unreachable { endpoint: endpoint.to_string(), source: error },
        }
    }

    /// Whether the server, or its `pg_hba.conf`, wants it encrypted, or wants it not encrypted.
    pub(super) fn refuses_encryption(&self) -> bool {
        match self {
            ConnectError::TlsNeeded(_) => true,
            ConnectError::Credentials(error) => error.code == SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
            ConnectError::Tls { source: TlsError::NotOffered, .. } => true,
            _ => false,
        }
    }

    /// Whether the server may take a connection that is encrypted otherwise, where sslmode allows that.
    /// Never after the server's certificate failed a check.
    pub(super) fn suggests_other_encryption(&self, tried: &Security) -> bool {
        match self {
            ConnectError::Tls { source, .. } => !tried.is_plain() && source.is_incompatible(),
            _ => self.refuses_encryption(),
        }
    }

    /// A pooler's answer to startup options that it does not pass on.
    pub(super) fn refuses_options(&self) -> bool {
        match self {
            ConnectError::Server(error) => {
                error.code == SqlState::PROTOCOL_VIOLATION && error.message.contains("startup parameter")
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(code: &str, message: &str) -> ServerError {
        ServerError {
            code: SqlState::from_code(code),
            message: message.to_owned(),
            detail: None,
            hint: None,
            severity: Severity::Error,
        }
    }

    #[test]
    fn refusals_are_sorted() {
        let sort = |code, message| ConnectError::from_server(server(code, message));
        assert!(matches!(sort("28P01", ""), ConnectError::Credentials(_)));
        assert!(matches!(sort("28000", "role is not permitted to log in"), ConnectError::Credentials(_)));
        let tls = sort("28000", "no pg_hba.conf entry for host \"::1\", user \"a\", no encryption");
        assert!(matches!(tls, ConnectError::TlsNeeded(_)) && !tls.is_transient());
        assert!(matches!(sort("3D000", ""), ConnectError::UnknownDatabase(_)));
        assert!(matches!(sort("42501", ""), ConnectError::NotPermitted(_)));
        for code in ["53300", "57P03", "57P01"] {
            assert!(sort(code, "").is_transient(), "{code}");
        }
        assert!(sort("08P01", "unsupported startup parameter: options").refuses_options());
    }
}
