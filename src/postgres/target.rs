//! Where PostgreSQL is and who we are there.
//!
//! Read from a connection string, filled up from the environment and the password file as libpq
//! does, and checked whole before anything connects. Debug output holds no password.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio_postgres::Config;
use tokio_postgres::config::{self, SslMode, SslNegotiation};

use super::conninfo::{self, Pairs};
use super::passfile::{self, Wanted};
use super::tls::{ChannelBinding, Security, TlsSettings};

/// Unless the URL names others. A path that is gone shows within half a minute, whether something was sent or a
/// long answer is awaited; the system's own patience is a quarter of an hour and two hours.
const TCP_DEFAULTS: [(&str, &str); 4] = [
    // Milliseconds.
    ("tcp_user_timeout", "30000"),
    ("keepalives_idle", "10"),
    ("keepalives_interval", "5"),
    ("keepalives_retries", "4"),
];
/// Longest wait for one server to answer, unless `connect_timeout` says otherwise.
const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const DEFAULT_PORT: u16 = 5432;
const DEFAULT_APPLICATION_NAME: &str = "rowcast";
/// Where servers usually put their socket: Debian's directory, then PostgreSQL's own default.
const SOCKET_DIRECTORIES: [&str; 2] = ["/var/run/postgresql", "/tmp"];

/// Each keyword that libpq also takes from the environment.
const ENVIRONMENT: [(&str, &str); 25] = [
    ("host", "PGHOST"),
    ("hostaddr", "PGHOSTADDR"),
    ("port", "PGPORT"),
    ("dbname", "PGDATABASE"),
    ("user", "PGUSER"),
    ("password", "PGPASSWORD"),
    ("passfile", "PGPASSFILE"),
    ("options", "PGOPTIONS"),
    ("application_name", "PGAPPNAME"),
    ("sslmode", "PGSSLMODE"),
    ("sslnegotiation", "PGSSLNEGOTIATION"),
    ("sslrootcert", "PGSSLROOTCERT"),
    ("sslcert", "PGSSLCERT"),
    ("sslkey", "PGSSLKEY"),
    ("sslcertmode", "PGSSLCERTMODE"),
    ("sslcrl", "PGSSLCRL"),
    ("sslcrldir", "PGSSLCRLDIR"),
    ("sslsni", "PGSSLSNI"),
    ("ssl_min_protocol_version", "PGSSLMINPROTOCOLVERSION"),
    ("ssl_max_protocol_version", "PGSSLMAXPROTOCOLVERSION"),
    ("gssencmode", "PGGSSENCMODE"),
    ("channel_binding", "PGCHANNELBINDING"),
    ("connect_timeout", "PGCONNECT_TIMEOUT"),
    ("target_session_attrs", "PGTARGETSESSIONATTRS"),
    ("load_balance_hosts", "PGLOADBALANCEHOSTS"),
];

/// Keywords of libpq that change nothing here: no Kerberos, no compression, and no key with a password.
const WITHOUT_EFFECT: [&str; 7] = [
    "sslpassword",
    "sslcompression",
    "krbsrvname",
    "gsslib",
    "gssdelegation",
    "client_encoding",
    "fallback_application_name",
];

/// A connection string that cannot be used. Holds no password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    #[error("malformed connection string: {why}")]
    Syntax { why: &'static str },
    #[error("unknown keyword `{0}` in the connection string")]
    Unknown(String),
    #[error("`{keyword}`: expected {expected}")]
    Value { keyword: &'static str, expected: &'static str },
    #[error("`{what}` {why}")]
    Tls { what: &'static str, why: &'static str },
    #[error("{hosts} hosts but {others} values of `{keyword}`")]
    Count { keyword: &'static str, hosts: usize, others: usize },
    #[error("no user is named and the operating system's user has no name; set `user` or PGUSER")]
    NoUser,
}

/// Where and how to connect.
#[derive(Clone)]
pub struct Target {
    endpoints: Vec<Endpoint>,
    user: String,
    dbname: String,
    application_name: String,
    options: Option<String>,
    connect_timeout: Option<Duration>,
    session: SessionAttrs,
    random_order: bool,
    tls: TlsSettings,
    /// What is common to all endpoints, without hosts and passwords.
    base: Config,
}

/// One server of a [`Target`].
#[derive(Clone)]
pub(crate) struct Endpoint {
    pub(crate) host: Host,
    pub(crate) port: u16,
    password: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Host {
    /// The directory of a Unix socket.
    Unix(PathBuf),
    /// A host name, and where `hostaddr` gives it, its address.
    Tcp(String, Option<IpAddr>),
}

/// `target_session_attrs`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SessionAttrs {
    Any,
    ReadWrite,
    ReadOnly,
    Primary,
    Standby,
}

impl Target {
    /// Reads a URI or `keyword=value` string; what it leaves out comes from the `PG…` environment
    /// variables, the password file, and libpq's defaults. Reads the environment and that file, and
    /// looks for a server's socket; connects to nothing.
    pub fn parse(text: &str) -> Result<Self, TargetError> {
        Self::parse_in(text, &|name| std::env::var(name).ok())
    }

    pub(super) fn parse_in(
        text: &str,
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, TargetError> {
        let mut pairs = conninfo::parse(text)?;
        for (keyword, variable) in ENVIRONMENT {
            if !pairs.contains_key(keyword)
                && let Some(value) = environment(variable).filter(|value| !value.is_empty())
            {
                pairs.insert(keyword.to_owned(), value);
            }
        }
        let home = environment("HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
        let tls = TlsSettings::take(&mut pairs, home.as_deref())?;
        WITHOUT_EFFECT.iter().for_each(|keyword| drop(pairs.remove(*keyword)));

        let user = pairs.remove("user").or_else(os_user).ok_or(TargetError::NoUser)?;
        let dbname = pairs.remove("dbname").unwrap_or_else(|| user.clone());
        let password = pairs.remove("password");
        let passfile = pairs.remove("passfile").map(PathBuf::from);
        let passfile = passfile.or_else(|| Some(home?.join(".pgpass")));
        let mut endpoints = endpoints(&mut pairs)?;
        give_passwords(&mut endpoints, password, passfile.as_deref(), &user, &dbname);
        let session = SessionAttrs::parse(pairs.remove("target_session_attrs").as_deref())?;
        let application_name = pairs.remove("application_name");
        let options = pairs.remove("options");
        let connect_timeout = connect_timeout(pairs.remove("connect_timeout").as_deref())?;
        let random_order = random_order(pairs.remove("load_balance_hosts").as_deref())?;
        let base = base_config(pairs)?;
        Ok(Target {
            endpoints,
            user,
            dbname,
            application_name: application_name.unwrap_or_else(|| DEFAULT_APPLICATION_NAME.to_owned()),
            options,
            connect_timeout,
            session,
            random_order,
            tls,
            base,
        })
    }

    pub fn user(&self) -> &str {
        &self.user
    }

    pub fn dbname(&self) -> &str {
        &self.dbname
    }

    pub fn application_name(&self) -> &str {
        &self.application_name
    }

    /// The same server, named differently in `pg_stat_activity`.
    pub fn with_application_name(&self, name: impl Into<String>) -> Self {
        Target { application_name: name.into(), ..self.clone() }
    }

    /// The endpoints as text, for messages: no user and no password.
    pub fn servers(&self) -> String {
        self.endpoints.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }

    pub(crate) fn options(&self) -> Option<&str> {
        self.options.as_deref()
    }

    /// The limit for one endpoint: from the first byte until the session is ready.
    pub(crate) fn connect_timeout(&self) -> Option<Duration> {
        self.connect_timeout
    }

    pub(crate) fn keepalives(&self) -> bool {
        self.base.get_keepalives()
    }

    /// The endpoints in the order in which this attempt shall try them.
    pub(crate) fn endpoints(&self) -> Vec<&Endpoint> {
        let mut endpoints: Vec<_> = self.endpoints.iter().collect();
        if self.random_order {
            use rand::seq::SliceRandom as _;
            endpoints.shuffle(&mut rand::rng());
        }
        endpoints
    }

    pub(super) fn tls(&self) -> &TlsSettings {
        &self.tls
    }

    /// Whether signing in must be tied to the TLS session.
    pub(crate) fn channel_binding(&self) -> ChannelBinding {
        self.tls.binding()
    }

    /// tokio-postgres' configuration for one endpoint, but for its `options`.
    pub(super) fn config(&self, endpoint: &Endpoint, security: &Security) -> Config {
        let mut config = self.base.clone();
        if !security.is_plain() {
            // Nothing is left to it: our connector asks for TLS, and knows whether it may do without.
            config.ssl_mode(SslMode::Require).ssl_negotiation(SslNegotiation::Direct);
        }
        config.channel_binding(match self.channel_binding() {
            ChannelBinding::Disable => config::ChannelBinding::Disable,
            ChannelBinding::Prefer => config::ChannelBinding::Prefer,
            ChannelBinding::Require => config::ChannelBinding::Require,
        });
        config.user(&self.user).dbname(&self.dbname).application_name(&self.application_name);
        config.port(endpoint.port);
        match &endpoint.host {
            Host::Unix(directory) => config.host_path(directory),
            Host::Tcp(name, None) => config.host(name),
            Host::Tcp(name, Some(address)) => config.host(name).hostaddr(*address),
        };
        if let Some(password) = endpoint.password() {
            config.password(password);
        }
        config
    }

    /// Judges a new session by what the server reported of itself; names what was wanted if it is not that.
    pub(crate) fn accepts<'a>(&self, reported: impl Fn(&str) -> Option<&'a str>) -> Result<(), &'static str> {
        let on = |name| reported(name) == Some("on");
        let (standby, read_only) = (on("in_hot_standby"), on("default_transaction_read_only"));
        match self.session {
            SessionAttrs::ReadWrite if standby || read_only => Err("read-write"),
            SessionAttrs::ReadOnly if !standby && !read_only => Err("read-only"),
            SessionAttrs::Primary if standby => Err("primary"),
            SessionAttrs::Standby if !standby => Err("standby"),
            _ => Ok(()),
        }
    }
}

impl std::str::FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        Self::parse(text)
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target")
            .field("endpoints", &self.endpoints)
            .field("user", &self.user)
            .field("dbname", &self.dbname)
            .field("application_name", &self.application_name)
            .field("connect_timeout", &self.connect_timeout)
            .field("session", &self.session)
            .finish_non_exhaustive()
    }
}

impl Endpoint {
    pub(crate) fn password(&self) -> Option<&str> {
        self.password.as_deref()
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Unix(directory) => write!(f, "{}/.s.PGSQL.{}", directory.display(), self.port),
            Host::Tcp(name, _) if name.contains(':') => write!(f, "[{name}]:{}", self.port),
            Host::Tcp(name, _) => write!(f, "{name}:{}", self.port),
        }
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let password = if self.password.is_some() { " (password redacted)" } else { "" };
        write!(f, "{self}{password}")
    }
}

impl SessionAttrs {
    fn parse(text: Option<&str>) -> Result<Self, TargetError> {
        Ok(match text {
            None | Some("any") => SessionAttrs::Any,
            Some("read-write") => SessionAttrs::ReadWrite,
            Some("read-only") => SessionAttrs::ReadOnly,
            Some("primary") => SessionAttrs::Primary,
            Some("standby") => SessionAttrs::Standby,
            Some(_) => {
                let expected = "any, read-write, read-only, primary or standby";
                return Err(TargetError::Value { keyword: "target_session_attrs", expected });
            }
        })
    }
}

fn endpoints(pairs: &mut Pairs) -> Result<Vec<Endpoint>, TargetError> {
    let mut list = |keyword: &str| -> Vec<String> {
        pairs
            .remove(keyword)
            .map(|text| text.split(',').map(|word| word.trim().to_owned()).collect())
            .unwrap_or_default()
    };
    let (hosts, addresses, ports) = (list("host"), list("hostaddr"), list("port"));
    let count = hosts.len().max(addresses.len()).max(1);
    for (keyword, others, shared) in [("hostaddr", addresses.len(), false), ("port", ports.len(), true)] {
        let fits = others == 0 || others == count || (shared && others == 1);
        if !fits || (!shared && !hosts.is_empty() && others > 0 && hosts.len() != others) {
            return Err(TargetError::Count { keyword, hosts: count.max(hosts.len()), others });
        }
    }
    (0..count)
        .map(|index| {
            let port = match ports.get(index).or(ports.first()).map(String::as_str) {
                None | Some("") => DEFAULT_PORT,
                Some(text) => text
                    .parse()
                    .ok()
                    .filter(|port| *port != 0)
                    .ok_or(TargetError::Value { keyword: "port", expected: "a number from 1 to 65535" })?,
            };
            let given = |list: &[String]| list.get(index).filter(|text| !text.is_empty()).cloned();
            let host = host(given(&hosts), given(&addresses), port)?;
            Ok(Endpoint { host, port, password: None })
        })
        .collect()
}

fn host(name: Option<String>, address: Option<String>, port: u16) -> Result<Host, TargetError> {
    let address = address
        .map(|text| text.parse::<IpAddr>())
        .transpose()
        .map_err(|_| TargetError::Value { keyword: "hostaddr", expected: "an IP address" })?;
    Ok(match (name, address) {
        (Some(name), None) if name.starts_with('/') => Host::Unix(name.into()),
        (Some(name), address) => Host::Tcp(name, address),
        (None, Some(address)) => Host::Tcp(address.to_string(), Some(address)),
        (None, None) => default_host(port),
    })
}

/// The usual directory that has this port's socket; without one, TCP to this machine.
fn default_host(port: u16) -> Host {
    let has_socket = |directory: &&&str| Path::new(directory).join(format!(".s.PGSQL.{port}")).exists();
    match SOCKET_DIRECTORIES.iter().find(has_socket) {
        Some(directory) => Host::Unix(directory.into()),
        None => Host::Tcp("localhost".to_owned(), None),
    }
}

fn give_passwords(
    endpoints: &mut [Endpoint],
    password: Option<String>,
    passfile: Option<&Path>,
    user: &str,
    dbname: &str,
) {
    if password.is_some() {
        endpoints.iter_mut().for_each(|endpoint| endpoint.password.clone_from(&password));
        return;
    }
    let Some(text) = passfile.and_then(passfile::read) else { return };
    for endpoint in endpoints {
        let host = match &endpoint.host {
            Host::Unix(directory) => directory.to_string_lossy(),
            Host::Tcp(name, _) => name.as_str().into(),
        };
        endpoint.password =
            passfile::lookup(&text, Wanted { host: &host, port: endpoint.port, dbname, user });
    }
}

/// Zero and below mean no limit, as in libpq.
fn connect_timeout(text: Option<&str>) -> Result<Option<Duration>, TargetError> {
    let Some(text) = text else { return Ok(Some(DEFAULT_CONNECT_TIMEOUT)) };
    let seconds: i32 = text
        .parse()
        .map_err(|_| TargetError::Value { keyword: "connect_timeout", expected: "a number of seconds" })?;
    Ok(u64::try_from(seconds).ok().filter(|seconds| *seconds > 0).map(Duration::from_secs))
}

fn random_order(text: Option<&str>) -> Result<bool, TargetError> {
    match text {
        None | Some("disable") => Ok(false),
        Some("random") => Ok(true),
        Some(_) => Err(TargetError::Value { keyword: "load_balance_hosts", expected: "disable or random" }),
    }
}

/// What is left are the settings of the TCP connection, which tokio-postgres reads itself.
fn base_config(mut pairs: Pairs) -> Result<Config, TargetError> {
    const TCP: [&str; 5] =
        ["tcp_user_timeout", "keepalives", "keepalives_idle", "keepalives_interval", "keepalives_retries"];
    if let Some(count) = pairs.remove("keepalives_count") {
        pairs.insert("keepalives_retries".to_owned(), count);
    }
    for (keyword, value) in TCP_DEFAULTS {
        pairs.entry(keyword.to_owned()).or_insert_with(|| value.to_owned());
    }
    let mut words = String::new();
    for (keyword, value) in pairs {
        let Some(known) = TCP.iter().find(|known| **known == keyword) else {
            return Err(TargetError::Unknown(keyword));
        };
        if value.parse::<u32>().is_err() {
            return Err(TargetError::Value { keyword: known, expected: "a number" });
        }
        words.push_str(&format!("{known}={value} "));
    }
    let mut config: Config =
        words.parse().map_err(|_| TargetError::Syntax { why: "a TCP setting is out of range" })?;
    config.ssl_mode(SslMode::Disable);
    Ok(config)
}

fn os_user() -> Option<String> {
    nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten().map(|user| user.name)
}

#[cfg(test)]
#[path = "target_tests.rs"]
mod tests;
