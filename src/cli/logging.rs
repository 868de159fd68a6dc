//! Where the relay's own messages go: to standard error, as the configuration says.

use std::io::{self, IsTerminal};

use rowcast::config::{Config, LogFormat};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::Directive;

use super::failure::Failure;

/// Libraries that would write down what passes through them, rows and tokens, at their lower levels. At
/// `info` tokio-postgres repeats every NOTICE of the server, also into the demo, which asks for warnings.
const QUIET: [&str; 3] = ["tungstenite", "tokio_tungstenite", "tokio_postgres"];

/// The storage engine tells of its housekeeping; only its warnings concern a user who asks for no more.
const HOUSEKEEPING: [&str; 2] = ["fjall", "lsm_tree"];

/// Wins over a level for all targets, and over one that was given for this one.
fn at_level(target: &str, level: &str) -> Directive {
    format!("{target}={level}").parse().expect("a target and a level")
}

/// Sets up messages for the rest of the process.
pub(super) fn start(config: &Config) -> Result<(), Failure> {
    let filter = EnvFilter::builder().parse(&config.log_level);
    let filter = filter.map_err(|error| Failure::usage(format!("log_level: {error}")))?;
    let filter = QUIET.iter().fold(filter, |filter, target| filter.add_directive(at_level(target, "warn")));
    let unnamed = HOUSEKEEPING.iter().filter(|target| !config.log_level.contains(**target));
    let filter = unnamed.fold(filter, |filter, target| filter.add_directive(at_level(target, "warn")));
    let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(io::stderr);
    let started = match config.log_format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| Failure::new(format!("messages cannot be set up: {error}")))
}
