//! Opens a replication session: startup packet, authentication, the server's parameters.
//!
//! PostgreSQL documentation, "Start-up" and "SASL Authentication".

use std::collections::HashMap;

use postgres_protocol::authentication::{self, sasl};
use postgres_protocol::message::backend::{AuthenticationSaslBody, Message};
use postgres_protocol::message::frontend;
use tokio_postgres::fallible_iterator::FallibleIterator as _;

use super::error::WalError;
use super::wire::{Packet, Wire};
use crate::postgres::{
    ChannelBinding, ConnectError, Endpoint, REPLICATION_PINS, ServerError, Target, session_options,
};

/// What the server told about a new session.
#[derive(Debug, Default)]
pub(super) struct Session {
    pub(super) parameters: HashMap<String, String>,
    pub(super) backend_pid: i32,
    pub(super) secret_key: i32,
}

/// One startup under way.
struct Startup<'a> {
    wire: &'a mut Wire,
    target: &'a Target,
    endpoint: &'a Endpoint,
}

/// Authenticates and waits until the session takes commands.
pub(super) async fn start(
    wire: &mut Wire,
    target: &Target,
    endpoint: &Endpoint,
) -> Result<Session, ConnectError> {
    let mut startup = Startup { wire, target, endpoint };
    startup.greet()?;
    startup.authenticate().await?;
    startup.wire.trust();
    let session = startup.session().await?;
    let reported = |name: &str| session.parameters.get(name).map(String::as_str);
    target
        .accepts(reported)
        .map_err(|wanted| ConnectError::WrongServer { endpoint: endpoint.to_string(), wanted })?;
    Ok(session)
}

fn protocol(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ConnectError {
    ConnectError::Protocol(error.into())
}

impl Startup<'_> {
    fn greet(&mut self) -> Result<(), ConnectError> {
        let options = session_options(self.target.options(), Some(REPLICATION_PINS));
        let parameters = [
            ("user", self.target.user()),
            ("database", self.target.dbname()),
            ("replication", "database"),
            ("client_encoding", "UTF8"),
            ("application_name", self.target.application_name()),
            ("options", options.as_str()),
        ];
        frontend::startup_message(parameters, &mut self.wire.output).map_err(protocol)
    }

    /// The next message; errors of the server end the startup, notices are only told.
    async fn next(&mut self) -> Result<Message, ConnectError> {
        loop {
            let packet = self.wire.next().await.map_err(|error| match error {
                WalError::Lost(Some(source)) => ConnectError::broken(self.endpoint, source),
                WalError::Lost(None) => ConnectError::Closed { endpoint: self.endpoint.to_string() },
                other => protocol(other),
            })?;
            match packet {
                Packet::Other(Message::NoticeResponse(body)) => {
                    ServerError::from_fields(body.fields()).trace();
                }
                Packet::Other(Message::ErrorResponse(body)) => {
                    return Err(ConnectError::from_server(ServerError::from_fields(body.fields())));
                }
                Packet::Other(message) => return Ok(message),
                Packet::CopyData(_) | Packet::CopyBothResponse => {
                    return Err(protocol("replication data before the session is open"));
                }
            }
        }
    }

    async fn authenticate(&mut self) -> Result<(), ConnectError> {
        let request = self.next().await?;
        // Before a password is sent: a server that asks for less may not be ours.
        if !matches!(request, Message::AuthenticationSasl(_)) {
            self.may_do_without_binding()?;
        }
        match request {
            Message::AuthenticationOk => return Ok(()),
            Message::AuthenticationCleartextPassword => {
                let password = self.password()?;
                self.answer(password.as_bytes())?;
            }
            Message::AuthenticationMd5Password(body) => {
                let user = self.target.user().as_bytes();
                let hash = authentication::md5_hash(user, self.password()?.as_bytes(), body.salt());
                self.answer(hash.as_bytes())?;
            }
            Message::AuthenticationSasl(body) => self.scram(&body).await?,
            Message::AuthenticationGss | Message::AuthenticationSspi | Message::AuthenticationKerberosV5 => {
                return Err(ConnectError::Method("Kerberos"));
            }
            Message::AuthenticationScmCredential => return Err(ConnectError::Method("SCM credentials")),
            _ => return Err(protocol("expected a request for authentication")),
        }
        match self.next().await? {
            Message::AuthenticationOk => Ok(()),
            _ => Err(protocol("expected the end of authentication")),
        }
    }

    fn password(&self) -> Result<String, ConnectError> {
        self.endpoint.password().map(str::to_owned).ok_or(ConnectError::PasswordMissing)
    }

    fn answer(&mut self, password: &[u8]) -> Result<(), ConnectError> {
        frontend::password_message(password, &mut self.wire.output).map_err(protocol)
    }

    fn may_do_without_binding(&self) -> Result<(), ConnectError> {
        match self.target.channel_binding() {
            ChannelBinding::Require => {
                Err(ConnectError::ChannelBinding { endpoint: self.endpoint.to_string() })
            }
            ChannelBinding::Disable | ChannelBinding::Prefer => Ok(()),
        }
    }

    /// The SCRAM mechanism for this connection, and what it is bound to.
    ///
    /// Where we could bind and the server does not offer it, we say so (`y`): a server that did offer
    /// it then knows that someone took the offer out, and refuses.
    fn mechanism(
        &self,
        body: &AuthenticationSaslBody,
    ) -> Result<(&'static str, sasl::ChannelBinding), ConnectError> {
        let offers = |name| body.mechanisms().any(|mechanism| Ok(mechanism == name)).map_err(protocol);
        let (plus, plain) = (offers(sasl::SCRAM_SHA_256_PLUS)?, offers(sasl::SCRAM_SHA_256)?);
        let wanted = self.target.channel_binding() != ChannelBinding::Disable;
        match self.wire.end_point().filter(|_| wanted) {
            Some(end_point) if plus => {
                let binding = sasl::ChannelBinding::tls_server_end_point(end_point.to_vec());
                Ok((sasl::SCRAM_SHA_256_PLUS, binding))
            }
            end_point if plain => {
                self.may_do_without_binding()?;
                let binding = match end_point {
                    Some(_) => sasl::ChannelBinding::unrequested(),
                    None => sasl::ChannelBinding::unsupported(),
                };
                Ok((sasl::SCRAM_SHA_256, binding))
            }
            _ => Err(ConnectError::Method("a SASL mechanism other than SCRAM-SHA-256")),
        }
    }

    /// SCRAM: both sides prove that they know the password.
    async fn scram(&mut self, body: &AuthenticationSaslBody) -> Result<(), ConnectError> {
        let (mechanism, binding) = self.mechanism(body)?;
        let mut scram = sasl::ScramSha256::new(self.password()?.as_bytes(), binding);
        frontend::sasl_initial_response(mechanism, scram.message(), &mut self.wire.output)
            .map_err(protocol)?;
        let Message::AuthenticationSaslContinue(body) = self.next().await? else {
            return Err(protocol("expected SASL to continue"));
        };
        scram.update(body.data()).map_err(ConnectError::ServerNotTrusted)?;
        frontend::sasl_response(scram.message(), &mut self.wire.output).map_err(protocol)?;
        let Message::AuthenticationSaslFinal(body) = self.next().await? else {
            return Err(protocol("expected the end of SASL"));
        };
        scram.finish(body.data()).map_err(ConnectError::ServerNotTrusted)
    }

    async fn session(&mut self) -> Result<Session, ConnectError> {
        let mut session = Session::default();
        loop {
            match self.next().await? {
                Message::ParameterStatus(body) => {
                    let (name, value) = (body.name().map_err(protocol)?, body.value().map_err(protocol)?);
                    session.parameters.insert(name.to_owned(), value.to_owned());
                }
                Message::BackendKeyData(body) => {
                    (session.backend_pid, session.secret_key) = (body.process_id(), body.secret_key());
                }
                Message::ReadyForQuery(_) => return Ok(session),
                _ => return Err(protocol("expected the session's parameters")),
            }
        }
    }
}
