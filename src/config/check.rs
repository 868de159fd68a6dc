//! What the types alone cannot say: ranges, and settings that depend on each other.

use std::time::Duration;

use tracing_subscriber::EnvFilter;

use super::keys::keys;
use super::mistake::Mistake;
use super::sources::Given;
use super::{AuthMode, Config, Embedded, Purpose};
use crate::auth::{check_issuers, check_secret};
use crate::transport::is_origin;

impl Config {
    pub(super) fn check(&self, given: &Given, purpose: Purpose, mistakes: &mut Vec<Mistake>) {
        let mut wrong = |name: &str, problem: String| {
            let mistake = given.mistake(name, problem);
            // What could not be read has said so; here its default was looked at.
            if mistakes.iter().all(|known| known.at != mistake.at) {
                mistakes.push(mistake);
            }
        };
        for name in self.zeros() {
            wrong(name, "expected more than zero".to_owned());
        }
        if !is_slot_name(&self.slot) {
            wrong("slot", format!("expected {}", expected("slot")));
        }
        if EnvFilter::builder().parse(&self.log_level).is_err() {
            wrong("log_level", format!("expected {}", expected("log_level")));
        }
        if self.database_url.as_ref().is_some_and(|url| !is_connection_string(url.expose())) {
            wrong("database_url", format!("expected {}", expected("database_url")));
        }
        if let Some(Err(error)) = self.jwt_secret.as_ref().map(check_secret) {
            wrong("jwt_secret", format!("{error}; expected {}", expected("jwt_secret")));
        }
        if let Err(error) = check_issuers(&self.jwt_issuer, &self.grants) {
            wrong("grants", error.to_string());
        }
        if let Some(strange) = self.allowed_origins.iter().find(|origin| !is_origin(origin)) {
            wrong(
                "allowed_origins",
                format!("expected {}; {strange:?} is none", expected("allowed_origins")),
            );
        }
        if self.tls_cert.is_some() != self.tls_key.is_some() {
            let missing = if self.tls_key.is_none() { "tls_key" } else { "tls_cert" };
            wrong(missing, "is not set; tls_cert and tls_key go together".to_owned());
        }
        if !self.device_topic.is_of_one_user() {
            wrong("device_topic", format!("expected {}", expected("device_topic")));
        }
        if purpose == Purpose::Serve {
            self.check_needed(&mut wrong);
        }
        if self.wal_limit.is_some_and(|limit| limit <= self.wal_alert) {
            wrong("wal_limit", "expected more than wal_alert, so that the alert comes first".to_owned());
        }
    }

    fn check_needed(&self, wrong: &mut impl FnMut(&str, String)) {
        let embedded = self.embedded != Embedded::Off;
        if embedded && self.database_url.is_some() {
            wrong("embedded", "there is a database_url too; expected one of the two".to_owned());
        }
        if !embedded && self.database_url.is_none() {
            wrong("database_url", format!("is not set; expected {}", expected("database_url")));
        }
        if self.auth == AuthMode::None {
            self.check_unauthenticated(wrong);
        } else if !embedded && !self.has_keys() {
            let problem = format!(
                "is not set, and neither is jwt_public_key nor jwks_url; expected one of them, here {}",
                expected("jwt_secret")
            );
            wrong("jwt_secret", problem);
        }
        for key in &self.jwt_public_key {
            if let Err(error) = key.check() {
                wrong("jwt_public_key", error.to_string());
            }
        }
    }

    /// Without authentication the relay is for this machine alone, or somebody has said otherwise.
    fn check_unauthenticated(&self, wrong: &mut impl FnMut(&str, String)) {
        if !self.listen.ip().to_canonical().is_loopback() && !self.allow_unauthenticated {
            let problem = format!(
                "without authentication everyone who reaches {} could read what `grants` says; listen on 127.0.0.1, or set allow_unauthenticated",
                self.listen
            );
            wrong("auth", problem);
        }
    }

    /// The settings that are zero and must not be. A leeway, a grace or a replay may be.
    fn zeros(&self) -> Vec<&'static str> {
        let durations = [
            ("log_max_age", self.log_max_age),
            ("group_commit_interval", self.group_commit_interval),
            ("heartbeat", self.heartbeat),
            ("ready_lag_time", self.ready_lag_time),
            ("auth_timeout", self.auth_timeout),
            ("request_timeout", self.request_timeout),
            ("fingerprint_interval", self.fingerprint_interval),
            ("jwks_refresh", self.jwks_refresh),
            ("rate_limit_window", self.rate_limit_window),
            ("device_max_age", self.device_max_age),
        ];
        let numbers = [
            ("log_max_size", self.log_max_size),
            ("group_commit_size", self.group_commit_size),
            ("max_message_size", self.max_message_size),
            ("outbox_size", self.outbox_size),
            ("max_sessions_per_user", self.max_sessions_per_user as u64),
            ("max_subscriptions_per_session", self.max_subscriptions_per_session as u64),
            ("ready_lag_bytes", self.ready_lag_bytes),
            ("wal_alert", self.wal_alert),
            ("big_transaction_size", self.big_transaction_size),
        ];
        let durations = durations.into_iter().filter(|(_, value)| *value == Duration::ZERO);
        let numbers = numbers.into_iter().filter(|(_, value)| *value == 0);
        durations.map(|(name, _)| name).chain(numbers.map(|(name, _)| name)).collect()
    }
}

fn expected(name: &str) -> &'static str {
    keys().iter().find(|key| key.name == name).map_or("", |key| key.expected)
}

/// What PostgreSQL takes as a slot's name: NAMEDATALEN - 1 bytes of `[a-z0-9_]`.
fn is_slot_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    (1..=63).contains(&name.len()) && name.bytes().all(allowed)
}

/// A URL or `key=value` pairs; connecting says the rest.
fn is_connection_string(text: &str) -> bool {
    text.starts_with("postgres://") || text.starts_with("postgresql://") || text.contains('=')
}
