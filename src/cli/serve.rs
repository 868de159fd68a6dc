//! `rowcast serve`: run the relay.

use rowcast::config::{AuthMode, Config, Purpose, development_secret};

use super::failure::Failure;
use super::flags::Flags;
use super::{Settings, logging, note};

const PLACES: &str = "\
Each setting can stand in the file, as in log_max_age = \"72h\", in the environment, or on the command
line; the later of these counts. Lists are comma-separated, or repeated flags, or arrays in the file.";

#[derive(clap::Args)]
#[command(after_help = PLACES)]
pub(super) struct Args {
    #[command(flatten)]
    flags: Flags,
}

pub(super) async fn run(args: Args, settings: Settings) -> Result<(), Failure> {
    let mut config = settings.load(Purpose::Serve, args.flags.0)?;
    logging::start(&config)?;
    ensure_secret(&mut config)?;
    rowcast::app::serve(config).await.map_err(|error| Failure::caused("the relay stopped", error.as_ref()))
}

/// Without any key, which only a private PostgreSQL allows, one for development is made and kept.
pub(super) fn ensure_secret(config: &mut Config) -> Result<(), Failure> {
    if config.has_keys() || config.auth == AuthMode::None {
        return Ok(());
    }
    let made = development_secret(&config.data_dir, true);
    if let Some((secret, path)) = made.map_err(|error| Failure::new(error.to_string()))? {
        note(&format!("tokens are signed with the development secret in {}", path.display()));
        note("make one with: rowcast token --sub 42");
        config.jwt_secret = Some(secret);
    }
    Ok(())
}
