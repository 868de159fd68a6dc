//! The configuration: one struct, from a file, the environment and flags, in rising precedence.
//!
//! The `settings!` table below declares each setting once: name, type, default and help. The
//! struct, the parser, the flags, `--help` and the README's table all come from that one table.
//! Every mistake is collected, so that one start shows all of them; no secret is ever shown.
//!
//! Must not know: what the settings do.

mod check;
mod development;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod keys;
mod mistake;
mod setting;
mod sources;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use crate::auth::{AdminClaim, AuthConfig, GrantPattern, JwksConfig, JwksUrl, PublicKeySource, Secret};

pub use development::{DevelopmentSecretError, development_secret};
use keys::settings;
pub use keys::{Key, keys, table};
pub use mistake::{ConfigError, Mistake};
pub use setting::{AuthMode, Embedded, LogFormat, parse_duration};
pub use sources::Sources;

/// The issuer's keys, within the data directory.
const KEPT_KEYS: &str = "jwks.json";

settings! {
    /// Connection string of the database, with the relay's own role; not needed with `embedded`
    database_url: Option<Secret> = "";
    /// Run a private PostgreSQL for development, kept in the data directory or in one of its own
    embedded: Embedded = "false";
    /// Where the relay keeps what must outlast it
    data_dir: PathBuf = "./rowcast-data";
    /// Where the log of changes is kept, if not in `log` within the data directory
    log_dir: Option<PathBuf> = "";
    /// Name of the replication slot
    slot: String = "rowcast", "a name of at most 63 lower-case letters, digits and underscores";
    /// Address to listen on
    listen: SocketAddr = "127.0.0.1:4000";
    /// Certificate chain in PEM, for TLS with devices; read again when it changes
    tls_cert: Option<PathBuf> = "", "a PEM file";
    /// Private key of `tls_cert` in PEM, without a password
    tls_key: Option<PathBuf> = "", "a PEM file";
    /// Proxies whose `X-Forwarded-For` is believed, as networks
    trusted_proxies: Vec<IpNet> = "";
    /// Origins of other hosts whose web pages may connect; `*` for all
    allowed_origins: Vec<String> = "", "origins such as https://app.example.com, without a path, or *";
    /// Address for `/metrics`, `/health` and `/ready` alone; `/metrics` is then not served on `listen`
    metrics_listen: Option<SocketAddr> = "";
    /// How devices say who they are: `jwt`, or `none` for everyone as the user `anonymous`
    auth: AuthMode = "jwt";
    /// Let `auth = none` listen on an address that other machines reach
    allow_unauthenticated: bool = "false";
    /// HS256 secret that signs tokens; better in the file or the environment than on the command line
    jwt_secret: Option<Secret> = "", "at least 32 bytes, e.g. from `openssl rand -hex 32`";
    /// Public keys that check tokens (RS256 from 2048 bits, ES256, EdDSA): PEM text, or files that hold it
    jwt_public_key: Vec<PublicKeySource> = "";
    /// Where the issuer publishes its public keys (JWKS): https, or http on this machine
    jwks_url: Option<JwksUrl> = "";
    /// How often these are fetched; a token with an unknown key also causes it, at most every 30 s
    jwks_refresh: Duration = "15m";
    /// PEM file with the certificate authorities to trust for `jwks_url`, instead of the system's
    jwks_ca_file: Option<PathBuf> = "", "a file";
    /// Accepted issuers (`iss`); with several, every grant must contain `{iss}`
    jwt_issuer: Vec<String> = "";
    /// Accepted audiences (`aud`); a token must be meant for one of them
    jwt_audience: Vec<String> = "";
    /// How far the clocks of token issuer and relay may differ
    jwt_leeway: Duration = "30s";
    /// Refuse tokens that never expire
    jwt_require_exp: bool = "true";
    /// What a token may read, as patterns over its claims
    grants: Vec<GrantPattern> = "user:{sub}:*,global:*";
    /// Claim and value that open the admin endpoints, e.g. `role=admin`; must not be the user's to edit
    admin_claim: Option<AdminClaim> = "";
    /// Accept `token` in the URL, where proxies and browsers may keep it
    url_token: bool = "false";
    /// Changes older than this leave the log
    log_max_age: Duration = "72h";
    /// The oldest changes leave the log when it is larger than this
    log_max_size: u64 = "10GiB";
    /// Longest wait before changes are made durable together
    group_commit_interval: Duration = "50ms";
    /// Changes of this size are made durable without waiting
    group_commit_size: u64 = "1MiB";
    /// How often a quiet device hears from the relay; after two missed answers it is closed
    heartbeat: Duration = "30s";
    /// Largest message that a device may send
    max_message_size: u64 = "64KiB";
    /// What may wait for one slow device before it reads from the log instead
    outbox_size: u64 = "256KiB";
    /// Live connections of one user
    max_sessions_per_user: usize = "20";
    /// Subscriptions of one connection
    max_subscriptions_per_session: usize = "100";
    /// Authenticated requests of one user in `rate_limit_window`; 0 for no limit
    rate_limit_requests: usize = "1000";
    /// Polls, streams and sockets that one user may begin in that time; 0 for no limit
    rate_limit_polls: usize = "3000";
    /// Frames that one user's sockets may send in that time, 100 a second for hours; 0 for no limit
    rate_limit_messages: usize = "90000";
    /// Refused tokens from one address in that time; 0 for no limit
    rate_limit_failures: usize = "300";
    /// Time in which a rate limit fills again
    rate_limit_window: Duration = "15m";
    /// Write-ahead log that ingest may be behind while `/ready` says yes
    ready_lag_bytes: u64 = "64MiB";
    /// Time that ingest may be behind while `/ready` says yes
    ready_lag_time: Duration = "10s";
    /// Alert when the slot makes the database keep more write-ahead log than this
    wal_alert: u64 = "1GiB";
    /// Drop the slot when it makes the database keep more write-ahead log than this: every device then syncs in full; without it, never
    wal_limit: Option<u64> = "";
    /// Time to close connections on shutdown
    shutdown_grace: Duration = "10s";
    /// Time in which a new connection must authenticate
    auth_timeout: Duration = "5s";
    /// Time in which a request must be there whole and its answer begun; a poll may wait for 30 s of it
    request_timeout: Duration = "60s";
    /// How long broadcasts are replayed to devices that come back
    broadcast_replay: Duration = "5m";
    /// Devices that were not seen for so long are forgotten
    device_max_age: Duration = "90d";
    /// Topic through which a user's devices send each other messages; within what `grants` give
    device_topic: GrantPattern = "user:{sub}:devices", "a topic with {sub} in it, and no other claim but {iss}";
    /// Full syncs that read the database at the same time
    max_snapshots: usize = "4";
    /// Longest time that one full sync may read the database, and wait for its turn
    snapshot_timeout: Duration = "5m";
    /// How long a full sync waits for a table that is locked
    snapshot_lock_timeout: Duration = "2s";
    /// Memory for full answers that wait for their devices
    spool_memory: u64 = "64MiB";
    /// Space on disk for full answers that wait for their devices
    spool_size: u64 = "4GiB";
    /// How long a full answer is kept after it was last asked for
    spool_max_age: Duration = "10m";
    /// How often the shapes of tables are compared
    fingerprint_interval: Duration = "3s";
    /// Transactions larger than this go to the log in parts, in bounded memory
    big_transaction_size: u64 = "8MiB";
    /// How the relay's own messages are written
    log_format: LogFormat = "text";
    /// Which of its own messages are written: a level, or `target=level` pairs
    log_level: String = "info", "a level (error, warn, info, debug, trace) or pairs such as rowcast=debug,info";
}

/// What a configuration is read for: not every command needs every setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Running the relay: a database and a way to check tokens must be there.
    Serve,
    /// A command that asks for what it needs.
    Tool,
}

impl Config {
    /// Reads, checks and reports all mistakes of all sources at once.
    pub fn load(sources: &Sources, purpose: Purpose) -> Result<Config, ConfigError> {
        let mut mistakes = Vec::new();
        let given = sources.collect(&mut mistakes);
        let Some(config) = Config::read(&given, &mut mistakes) else {
            return Err(ConfigError::new(mistakes));
        };
        config.check(&given, purpose, &mut mistakes);
        if mistakes.is_empty() { Ok(config) } else { Err(ConfigError::new(mistakes)) }
    }

    /// The directory of the log of changes.
    pub fn log_directory(&self) -> PathBuf {
        self.log_dir.clone().unwrap_or_else(|| self.data_dir.join("log"))
    }

    /// The directory of the private PostgreSQL, if there is to be one.
    pub fn embedded_directory(&self) -> Option<PathBuf> {
        match &self.embedded {
            Embedded::Off => None,
            Embedded::InDataDir => Some(self.data_dir.join("postgres")),
            Embedded::Directory(directory) => Some(directory.clone()),
        }
    }

    /// Whether there is anything to check tokens with.
    pub fn has_keys(&self) -> bool {
        self.jwt_secret.is_some() || !self.jwt_public_key.is_empty() || self.jwks_url.is_some()
    }

    /// How tokens are checked; `None` without any key, which only [`Purpose::Serve`] demands.
    pub fn auth(&self) -> Option<AuthConfig> {
        let jwks = self.jwks_url.as_ref().map(|url| JwksConfig {
            url: url.clone(),
            refresh: self.jwks_refresh,
            ca_file: self.jwks_ca_file.clone(),
            kept_in: self.data_dir.join(KEPT_KEYS),
        });
        self.has_keys().then(|| AuthConfig {
            secret: self.jwt_secret.clone(),
            public_keys: self.jwt_public_key.clone(),
            jwks,
            issuers: self.jwt_issuer.clone(),
            audiences: self.jwt_audience.clone(),
            leeway: self.jwt_leeway,
            require_expiry: self.jwt_require_exp,
            grants: self.grants.clone(),
            admin: self.admin_claim.clone(),
        })
    }
}

#[cfg(test)]
mod tests;
