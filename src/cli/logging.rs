//! Where the relay's own messages go: to standard error, as the configuration says.

use std::io;

use rowcast::config::{Config, LogFormat};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::Directive;

use super::failure::Failure;

/// Libraries that would write down what passes through them, rows and tokens, at their lower levels.
const QUIET: [&str; 3] = ["tungstenite", "tokio_tungstenite", "tokio_postgres"];

/// Wins over a level for all targets, and over one that was given for this one.
fn discreet(target: &str) -> Directive {
    format!("{target}=info").parse().expect("a target and a level")
}

/// Sets up messages for the rest of the process.
pub(super) fn start(config: &Config) -> Result<(), Failure> {
    let filter = EnvFilter::builder().parse(&config.log_level);
    let filter = filter.map_err(|error| Failure::usage(format!("log_level: {error}")))?;
    let filter = QUIET.iter().fold(filter, |filter, target| filter.add_directive(discreet(target)));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    let started = match config.log_format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| Failure::new(format!("messages cannot be set up: {error}")))
}
