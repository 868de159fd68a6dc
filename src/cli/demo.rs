//! `rowcast demo`: a relay with its own PostgreSQL and an example.

use super::failure::Failure;
use super::{Settings, logging, serve};

#[derive(clap::Args)]
pub(super) struct Args {
    /// Address to listen on
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// Where everything is kept
    #[arg(long, value_name = "DIRECTORY")]
    data_dir: Option<String>,
}

pub(super) async fn run(args: Args, settings: Settings) -> Result<(), Failure> {
    let flags = [("listen", args.listen), ("data_dir", args.data_dir)];
    let mut config = settings.load_for_tool(&flags)?;
    logging::start(&config)?;
    serve::ensure_secret(&mut config)?;
    rowcast::demo::run(config).await.map_err(|error| Failure::caused("the demo stopped", error.as_ref()))
}
