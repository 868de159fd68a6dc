//! A private PostgreSQL server: for `rowcast demo`, `rowcast serve --embedded` and the tests.
//!
//! Stands beside the flow: it starts a server and names its address, and the relay then connects
//! to it like to any other. It knows nothing of slots, publications or topics.
//!
//! A cluster's home directory holds `data/` (what `initdb` makes), `socket/`, `postgres.log` and a
//! `lock`. Invariants:
//! * One process at a time holds a home; the lock goes with the process, however that ends.
//! * No server outlives the process that started it, not even one that was killed with SIGKILL.
//! * Nobody but the server's own account and root can reach the server, unless TCP was asked for.

mod account;
mod binaries;
mod cluster;
mod leash;
mod server;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use account::Account;
pub use binaries::{Binaries, MINIMUM_MAJOR};
pub use cluster::Cluster;
pub use server::StopMode;

/// How a cluster is run.
#[derive(Debug, Clone)]
pub struct Options {
    /// What becomes of the data.
    pub keep: Keep,
    /// Also listen on 127.0.0.1, at a port from the system, for any local user without a password.
    /// Only for tests.
    pub tcp: bool,
    /// Settings as in `postgresql.conf`, which win over this module's own. `ALTER SYSTEM` wins over both.
    pub settings: Vec<(String, String)>,
    /// How long the server may take until it accepts connections, crash recovery included.
    pub start_timeout: Duration,
}

/// What becomes of a cluster's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// It stays, and is safe against a crash of the machine.
    Durable,
    /// Written without fsync and removed when the [`Cluster`] is dropped or its process ends.
    Scratch,
}

impl Options {
    /// A cluster that stays.
    pub fn durable() -> Self {
        Options {
            keep: Keep::Durable,
            tcp: false,
            settings: Vec::new(),
            start_timeout: Duration::from_secs(60),
        }
    }

    /// A cluster that goes with the process.
    pub fn scratch() -> Self {
        Options { keep: Keep::Scratch, ..Options::durable() }
    }

    /// Adds one setting.
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Also listens on 127.0.0.1; see [`Options::tcp`].
    pub fn with_tcp(mut self) -> Self {
        self.tcp = true;
        self
    }
}

/// Why there is no private server.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    #[error(
        "no PostgreSQL server programs (initdb, postgres) of version {wanted} were found; install them, on Debian \
         or Ubuntu with `apt-get install postgresql`, or name their directory in ROWCAST_PG_BIN{rejected}"
    )]
    NoBinaries {
        /// Which version: "15 or newer", or the one that the data directory needs.
        wanted: String,
        /// What was found and does not fit, for the end of the sentence.
        rejected: String,
    },
    #[error("ROWCAST_PG_BIN names {}, where there is no initdb and postgres that run", .0.display())]
    BadBinaryDirectory(PathBuf),
    #[error(
        "PostgreSQL refuses to run as root, and there is neither a user `postgres` nor `nobody` to run it as"
    )]
    NoAccount,
    #[error(
        "the user {account}, as whom PostgreSQL runs because rowcast is root, cannot enter {}; choose a directory \
         elsewhere, such as one below /var/lib, or allow that user to pass", .directory.display()
    )]
    Unreachable { directory: PathBuf, account: String },
    #[error("{} holds no PostgreSQL data directory", .0.display())]
    NoData(PathBuf),
    #[error("{} already holds a PostgreSQL data directory", .0.display())]
    DataExists(PathBuf),
    #[error("another process already runs the PostgreSQL in {}", .0.display())]
    InUse(PathBuf),
    #[error("the setting {0:?} cannot be written to a configuration file")]
    BadSetting(String),
    #[error("{program} failed:\n{output}")]
    Program { program: &'static str, output: String },
    #[error("PostgreSQL ended instead of starting ({status}); its log says:\n{log}")]
    Ended { status: std::process::ExitStatus, log: String },
    #[error(
        "a server that rowcast did not start still runs on {}; stop it with `pg_ctl stop -D {}`; the log says:\n{log}",
        .data.display(), .data.display()
    )]
    Occupied { data: PathBuf, log: String },
    #[error("PostgreSQL was not ready within {waited:?}; its log says:\n{log}")]
    NotReady { waited: Duration, log: String },
    #[error("PostgreSQL had not stopped after {waited:?}: {hint}")]
    NotStopped { waited: Duration, hint: &'static str },
    #[error("PostgreSQL is already running")]
    Running,
    #[error("{}: {source}", .path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// Names the path that an I/O error is about.
trait IoContext<T> {
    fn at(self, path: &Path) -> Result<T, EmbeddedError>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn at(self, path: &Path) -> Result<T, EmbeddedError> {
        self.map_err(|source| EmbeddedError::Io { path: path.to_owned(), source })
    }
}
