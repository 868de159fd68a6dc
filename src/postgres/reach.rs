//! Which server is tried when, and with which encryption: the same for both kinds of connections.

use super::error::ConnectError;
use super::target::{Endpoint, Host, Target};
use super::tls::Security;

/// Opens a session with the first of the target's servers that will have us.
///
/// A server that is down, starting or of the wrong kind lets the next one be tried; one that refuses
/// us for good ends the attempt. Each gets `connect_timeout`, and is tried with each kind of
/// encryption that sslmode allows. Cancel-safe if `open` is.
pub(crate) async fn reach<T, F>(
    target: &Target,
    open: impl Fn(Endpoint, Security) -> F,
) -> Result<T, ConnectError>
where
    F: Future<Output = Result<T, ConnectError>>,
{
    let mut last = None;
    for endpoint in target.endpoints() {
        let attempt = each_way(target, endpoint, &open);
        let result = match target.connect_timeout() {
            Some(limit) => tokio::time::timeout(limit, attempt).await.unwrap_or_else(|_| {
                Err(ConnectError::TimedOut { endpoint: endpoint.to_string(), after: limit })
            }),
            None => attempt.await,
        };
        match result {
            Ok(session) => return Ok(session),
            Err(error) if error.is_transient() => last = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(last.unwrap_or_else(|| ConnectError::Closed { endpoint: target.servers() }))
}

async fn each_way<T, F>(
    target: &Target,
    endpoint: &Endpoint,
    open: &impl Fn(Endpoint, Security) -> F,
) -> Result<T, ConnectError>
where
    F: Future<Output = Result<T, ConnectError>>,
{
    let ways = match &endpoint.host {
        Host::Unix(_) => vec![Security::Plain],
        Host::Tcp(name, _) => {
            target.tls().ways(name).await.map_err(|error| ConnectError::tls(endpoint, error))?
        }
    };
    let mut first_refusal = None;
    for (number, way) in (1..).zip(&ways) {
        match open(endpoint.clone(), way.clone()).await {
            Err(error) if number < ways.len() && error.suggests_other_encryption(way) => {
                tracing::debug!(%endpoint, %error, "refused with {way:?}");
                first_refusal = Some(error);
            }
            // Refused either way: the reason is what was said to the way that is preferred.
            Err(error) if error.refuses_encryption() => return Err(first_refusal.unwrap_or(error)),
            result => return result,
        }
    }
    Err(first_refusal.unwrap_or_else(|| ConnectError::Closed { endpoint: endpoint.to_string() }))
}
