//! Ordinary SQL connections, by tokio-postgres.

use std::error::Error as _;
use std::future::poll_fn;
use std::io;

use tokio::task::JoinHandle;
use tokio_postgres::{AsyncMessage, Client, Config, Connection, NoTls, Socket, tls::NoTlsStream};

use super::error::{ConnectError, ServerError};
use super::settings::{PinScope, pin_scope, session_options};
use super::target::{Endpoint, Target};

type Plain = Connection<Socket, NoTlsStream>;

/// Carries the traffic of one [`Client`]; dropping it ends the connection.
#[derive(Debug)]
pub struct Driver {
    task: JoinHandle<()>,
    pins: PinScope,
}

impl Driver {
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
    let mut last = None;
    for endpoint in target.endpoints() {
        match attempt(target, endpoint).await {
            Ok(session) => return Ok(session),
            Err(error) if error.is_transient() => last = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(last.unwrap_or_else(|| ConnectError::Closed { endpoint: target.servers() }))
}

async fn attempt(target: &Target, endpoint: &Endpoint) -> Result<(Client, Driver), ConnectError> {
    let Some(limit) = target.connect_timeout() else { return open(target, endpoint).await };
    match tokio::time::timeout(limit, open(target, endpoint)).await {
        Ok(result) => result,
        Err(_) => Err(ConnectError::TimedOut { endpoint: endpoint.to_string(), after: limit }),
    }
}

async fn open(target: &Target, endpoint: &Endpoint) -> Result<(Client, Driver), ConnectError> {
    let mut config = target.config(endpoint);
    config.options(session_options(target.options(), None));
    let (client, connection, pins) = match start(&config, endpoint).await {
        Ok((client, connection)) => {
            let pins = pin_scope(|name| connection.parameter(name));
            (client, connection, pins)
        }
        Err(error) if error.refuses_options() => {
            let mut config = target.config(endpoint);
            if let Some(own) = target.options() {
                config.options(own);
            }
            let (client, connection) = start(&config, endpoint).await?;
            (client, connection, PinScope::Transaction)
        }
        Err(error) => return Err(error),
    };
    target
        .accepts(|name| connection.parameter(name))
        .map_err(|wanted| ConnectError::WrongServer { endpoint: endpoint.to_string(), wanted })?;
    Ok((client, Driver { task: tokio::spawn(drive(connection)), pins }))
}

async fn start(config: &Config, endpoint: &Endpoint) -> Result<(Client, Plain), ConnectError> {
    config.connect(NoTls).await.map_err(|error| classify(error, endpoint))
}

/// Moves bytes until the connection ends. How it ended is told by the client's own calls.
async fn drive(mut connection: Plain) {
    loop {
        match poll_fn(|context| connection.poll_message(context)).await {
            Some(Ok(AsyncMessage::Notice(notice))) => ServerError::from(&notice).trace(),
            Some(Ok(_)) => {}
            Some(Err(error)) => {
                tracing::debug!(%error, "SQL connection ended");
                return;
            }
            None => return,
        }
    }
}

fn classify(error: tokio_postgres::Error, endpoint: &Endpoint) -> ConnectError {
    if let Some(server) = error.as_db_error() {
        return ConnectError::from_server(server.into());
    }
    let endpoint = endpoint.to_string();
    if error.is_closed() {
        return ConnectError::Closed { endpoint };
    }
    let kind = error.source().and_then(|source| source.downcast_ref::<io::Error>()).map(io::Error::kind);
    match kind {
        // What tokio-postgres makes of bytes that are not the protocol, or of a failed SCRAM proof.
        Some(io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData | io::ErrorKind::Other) => {
            ConnectError::Protocol(Box::new(error))
        }
        Some(kind) => ConnectError::Unreachable { endpoint, source: io::Error::new(kind, error) },
        // "password missing" is the only error of this kind that a checked target leaves possible.
        None if error.to_string().starts_with("invalid configuration") => ConnectError::PasswordMissing,
        None => ConnectError::Protocol(Box::new(error)),
    }
}
