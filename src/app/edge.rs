//! What stands between the network and the handlers, made from the configuration: TLS, the gate, and the
//! addresses that are listened on.

use std::net::SocketAddr;

use anyhow::Context;
use tokio::net::TcpListener;

use crate::auth::{Identity, Verifier};
use crate::config::{AuthMode, Config};
use crate::transport::{Anonymous, Gate, Origins, RateSettings, Rates, Tls, TrustedProxies};

/// Both addresses, bound, and the certificate, read: whatever is wrong with them is said at the start.
#[derive(Debug)]
pub(super) struct Edge {
    pub(super) devices: TcpListener,
    pub(super) operation: Option<TcpListener>,
    pub(super) tls: Option<Tls>,
}

impl Edge {
    pub(super) async fn open(config: &Config) -> anyhow::Result<Self> {
        let tls = match config.tls_cert.clone().zip(config.tls_key.clone()) {
            Some((cert, key)) => Some(Tls::load(cert, key).await?),
            None => None,
        };
        let operation = match config.metrics_listen {
            Some(address) => Some(bind(address, "metrics_listen").await?),
            None => None,
        };
        Ok(Edge { devices: bind(config.listen, "listen").await?, operation, tls })
    }
}

async fn bind(address: SocketAddr, setting: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}; choose another address in {setting}"))
}

/// Checks tokens, unless nobody is asked for one.
pub(super) fn verifier(config: &Config) -> anyhow::Result<Option<Verifier>> {
    if config.auth == AuthMode::None {
        return Ok(None);
    }
    let auth = config.auth().context("none of jwt_secret, jwt_public_key and jwks_url is set")?;
    Verifier::new(auth).context("tokens cannot be checked").map(Some)
}

pub(super) fn gate(config: &Config) -> Gate {
    Gate {
        proxies: TrustedProxies::new(config.trusted_proxies.clone()),
        origins: Origins::new(&config.allowed_origins),
        rates: Rates::new(RateSettings {
            requests: config.rate_limit_requests,
            polls: config.rate_limit_polls,
            messages: config.rate_limit_messages,
            failures: config.rate_limit_failures,
            window: config.rate_limit_window,
        }),
        anonymous: (config.auth == AuthMode::None).then(|| anonymous(config)),
    }
}

fn anonymous(config: &Config) -> Anonymous {
    let identity = Identity::anonymous(&config.grants);
    let grants: Vec<String> = identity.grants.patterns().iter().map(ToString::to_string).collect();
    tracing::warn!(
        listen = %config.listen,
        grants = grants.join(","),
        "authentication is off (auth = none): whoever reaches this address reads all of these topics as the user anonymous, and so does everyone whom a proxy on this machine lets through"
    );
    Anonymous { identity, by_address_only: !config.allow_unauthenticated }
}
