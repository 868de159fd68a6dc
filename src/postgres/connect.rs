//! Ordinary SQL connections, by tokio-postgres.

use std::future::poll_fn;
use std::io::{self, ErrorKind::*};

use tokio::task::JoinHandle;
use tokio_postgres::error::DbError;
use tokio_postgres::{AsyncMessage, Client, Connection, Socket};

use super::error::{ConnectError, ServerError};
use super::reach::reach;
use super::settings::{PinScope, pin_scope, session_options};
use super::target::{Endpoint, Target};
use super::tls::{Channel, Connector, Security, TlsError};

type Link = Connection<Socket, Channel<Socket>>;

/// Carries the traffic of one [`Client`]; dropping it ends the connection.
#[derive(Debug)]
pub struct Driver {
    task: JoinHandle<()>,
    pins: PinScope,
    security: Security,
}

impl Driver {
    /// How another connection to the same server is secured.
    pub(super) fn connector(&self) -> Connector {
        Connector(self.security.clone())
    }

    /// Whether the pinned settings hold for the session or must be set in each transaction.
    pub fn pins(&self) -> PinScope {
        self.pins
    }

    /// Waits until the connection has ended, for whatever reason. Cancel-safe.
    pub async fn closed(&mut self) {
        // The task neither panics nor is it aborted while this guard lives.
        let _ = (&mut self.task).await;
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Opens a session with the pinned settings, trying the target's servers in turn.
///
/// A server that is down, starting or of the wrong kind lets the next one be tried; one that refuses
/// us for good ends the attempt. Each gets `connect_timeout`. Must run inside a tokio runtime.
pub async fn connect(target: &Target) -> Result<(Client, Driver), ConnectError> {
    let session = reach(target, |endpoint, security| open(target, endpoint, security)).await?;
    let Session { client, connection, pins, security } = session;
    let task = tokio::spawn(drive(connection, |notice| ServerError::from(notice).trace()));
    Ok((client, Driver { task, pins, security }))
}

/// The same with the role's and the database's own settings, such as its `search_path`: for what a
/// person runs by hand. What the server remarks is handed to `notice`.
pub async fn connect_unpinned(
    target: &Target,
    notice: impl Fn(&DbError) + Send + 'static,
) -> Result<(Client, Driver), ConnectError> {
    let session = reach(target, async |endpoint, security| {
        let (client, connection) = start(target, &endpoint, &security, target.options()).await?;
        Ok(Session { client, connection, pins: PinScope::Transaction, security })
    });
    let Session { client, connection, pins, security } = session.await?;
    Ok((client, Driver { task: tokio::spawn(drive(connection, notice)), pins, security }))
}

struct Session {
    client: Client,
    connection: Link,
    pins: PinScope,
    security: Security,
}

async fn open(target: &Target, endpoint: Endpoint, security: Security) -> Result<Session, ConnectError> {
    let pinned = session_options(target.options(), None);
    match start(target, &endpoint, &security, Some(&pinned)).await {
        Ok((client, connection)) => {
            let pins = pin_scope(|name| connection.parameter(name));
            Ok(Session { client, connection, pins, security })
        }
        Err(error) if error.refuses_options() => {
            let (client, connection) = start(target, &endpoint, &security, target.options()).await?;
            Ok(Session { client, connection, pins: PinScope::Transaction, security })
        }
        Err(error) => Err(error),
    }
}

async fn start(
    target: &Target,
    endpoint: &Endpoint,
    security: &Security,
    options: Option<&str>,
) -> Result<(Client, Link), ConnectError> {
    let mut config = target.config(endpoint, security);
    if let Some(options) = options {
        config.options(options);
    }
    let connecting = config.connect(Connector(security.clone()));
    let (client, connection) = connecting.await.map_err(|error| classify(error, endpoint))?;
    target
        .accepts(|name| connection.parameter(name))
        .map_err(|wanted| ConnectError::WrongServer { endpoint: endpoint.to_string(), wanted })?;
    Ok((client, connection))
}

/// Moves bytes until the connection ends. How it ended is told by the client's own calls.
async fn drive(mut connection: Link, notice: impl Fn(&DbError)) {
    loop {
        match poll_fn(|context| connection.poll_message(context)).await {
            Some(Ok(AsyncMessage::Notice(body))) => notice(&body),
            Some(Ok(_)) => {}
            Some(Err(error)) => {
                tracing::debug!(%error, "SQL connection ended");
                return;
            }
            None => return,
        }
    }
}

/// Sorts what tokio-postgres reports: a TLS error of our own, the server's, the socket's, or a text.
fn classify(error: tokio_postgres::Error, endpoint: &Endpoint) -> ConnectError {
    if let Some(server) = error.as_db_error() {
        return ConnectError::from_server(server.into());
    }
    if error.is_closed() {
        return ConnectError::Closed { endpoint: endpoint.to_string() };
    }
    // These two have no mark but their text. A checked target leaves no other "invalid configuration".
    let text = error.to_string();
    if text.starts_with("invalid configuration") {
        return ConnectError::PasswordMissing;
    }
    let Some(cause) = error.into_source() else { return ConnectError::Protocol(text.into()) };
    if cause.to_string() == "server did not use channel binding" {
        return ConnectError::ChannelBinding { endpoint: endpoint.to_string() };
    }
    let cause = match cause.downcast::<TlsError>() {
        Ok(error) => return ConnectError::tls(endpoint, *error),
        Err(cause) => cause,
    };
    match cause.downcast::<io::Error>() {
        Ok(error) if TlsError::within(&error).is_some() => ConnectError::broken(endpoint, *error),
        // What tokio-postgres makes of bytes that are not the protocol, or of a failed SCRAM proof.
        Ok(error) if matches!(error.kind(), InvalidInput | InvalidData | Other) => {
            ConnectError::Protocol(error)
        }
        Ok(error) => ConnectError::broken(endpoint, *error),
        Err(cause) => ConnectError::Protocol(cause),
    }
}
