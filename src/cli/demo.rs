//! `rowcast demo`: a relay with its own PostgreSQL and an example.

use rowcast::demo::Mode;

use super::failure::Failure;
use super::{Settings, logging};

#[derive(clap::Args)]
pub(super) struct Args {
    /// Verify every step without pauses and end, with 0 if all of it holds
    #[arg(long)]
    check: bool,
    /// Address to listen on, with another port where that one is taken [default: 127.0.0.1:4000]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
}

pub(super) async fn run(args: Args, settings: Settings) -> Result<(), Failure> {
    let mut config = settings.load_for_tool(&[("listen", args.listen)])?;
    // The relay's own messages would run into the story; one who sets another level wants them.
    if config.log_level == "info" {
        config.log_level = "warn".to_owned();
    }
    logging::start(&config)?;
    let mode = if args.check { Mode::Check } else { Mode::Show };
    rowcast::demo::run(config, mode)
        .await
        .map_err(|error| Failure::caused("the demo stopped", error.as_ref()))
}
