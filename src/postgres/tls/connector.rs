//! Our negotiation, in the place where tokio-postgres calls for a TLS implementation.

use std::future::Future;
use std::pin::Pin;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};

use super::channel::{Channel, Security};
use super::error::TlsError;

/// To be used with `sslnegotiation=direct`, so that tokio-postgres leaves all of it to us: the
/// request for TLS, going on in plain text where that is allowed, and the handshake.
#[derive(Clone, Debug)]
pub(crate) struct Connector(pub(crate) Security);

impl<S> MakeTlsConnect<S> for Connector
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Stream = Channel<S>;
    type TlsConnect = Connector;
    type Error = TlsError;

    fn make_tls_connect(&mut self, _: &str) -> Result<Connector, TlsError> {
        Ok(self.clone())
    }
}

impl<S> TlsConnect<S> for Connector
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Stream = Channel<S>;
    type Error = TlsError;
    type Future = Pin<Box<dyn Future<Output = Result<Channel<S>, TlsError>> + Send>>;

    fn connect(self, socket: S) -> Self::Future {
        Box::pin(async move { self.0.secure(socket).await })
    }
}

impl<S> TlsStream for Channel<S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    fn channel_binding(&self) -> ChannelBinding {
        self.end_point().map_or_else(ChannelBinding::none, ChannelBinding::tls_server_end_point)
    }
}
