//! What the devices connect to: a relay, or nchan as a reference.

use std::net::SocketAddr;
use std::time::Duration;

use super::websocket;
use crate::auth::{ExtraClaims, Secret, mint};

/// Tokens outlast any measurement.
const TOKEN_TTL: Duration = Duration::from_secs(24 * 3600);

/// Whose rows a device asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audience {
    /// Each device those of a user of its own: `user:{number}:bench`.
    Own,
    /// All devices the same ones: `global:bench_all`.
    All,
}

/// A WebSocket service on an address.
#[derive(Debug, Clone)]
pub struct Service {
    pub address: SocketAddr,
    pub kind: Kind,
}

#[derive(Debug, Clone)]
pub enum Kind {
    /// A relay, with the secret that it checks tokens with.
    Relay { secret: Secret, audience: Audience },
    /// A subscriber's location of nchan, by its path.
    Nchan { path: String },
}

/// What one device says.
#[derive(Debug, Clone)]
pub(super) struct Script {
    pub(super) request: Vec<u8>,
    /// What it subscribes, once it is connected; none where connecting is subscribing.
    pub(super) pattern: Option<String>,
    /// Whose rows it is to get.
    pub(super) user: u64,
}

impl Service {
    /// For the device of this number; users begin with 1.
    pub(super) fn script(&self, number: u64) -> anyhow::Result<Script> {
        let host = self.address.to_string();
        let user = number + 1;
        Ok(match &self.kind {
            Kind::Nchan { path } => {
                Script { request: websocket::request(&host, path, None), pattern: None, user: 0 }
            }
            Kind::Relay { secret, audience } => {
                let token = mint(secret, &user.to_string(), TOKEN_TTL, ExtraClaims::new())?;
                let path = format!("/api/realtime/ws/bench-{user}");
                let request = websocket::request(&host, &path, Some(&token));
                let (pattern, user) = match audience {
                    Audience::Own => (format!("user:{user}:*"), user),
                    Audience::All => ("global:*".to_owned(), 0),
                };
                Script { request, pattern: Some(pattern), user }
            }
        })
    }

    /// Whether a device is told that it is subscribed.
    pub(super) fn answers(&self) -> bool {
        matches!(self.kind, Kind::Relay { .. })
    }
}
