//! Where the relay's own messages go: to standard error, as the configuration says.

use std::io::{self, IsTerminal};

use rowcast::config::{Config, LogFormat};
use tracing_subscriber::EnvFilter;

use super::failure::Failure;

/// The storage engine tells of its housekeeping; only its warnings concern a user who asks for no more.
const QUIET: [&str; 2] = ["fjall=warn", "lsm_tree=warn"];

/// Sets up messages for the rest of the process.
pub(super) fn start(config: &Config) -> Result<(), Failure> {
    let filter = EnvFilter::builder().parse(&config.log_level);
    let mut filter = filter.map_err(|error| Failure::usage(format!("log_level: {error}")))?;
    for directive in QUIET {
        let engine = directive.split('=').next().unwrap_or(directive);
        if !config.log_level.contains(engine)
            && let Ok(directive) = directive.parse()
        {
            filter = filter.add_directive(directive);
        }
    }
    let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(io::stderr);
    let started = match config.log_format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| Failure::new(format!("messages cannot be set up: {error}")))
}
