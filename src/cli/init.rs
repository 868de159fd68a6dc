//! `rowcast init`: install or update the catalog in the database.

use rowcast::postgres::catalog;

use super::database::DatabaseArgs;
use super::failure::Failure;
use super::{Settings, say};

#[derive(clap::Args)]
pub(super) struct Args {
    /// Print the SQL instead of running it, to be read or run by hand
    #[arg(long)]
    print: bool,
    #[command(flatten)]
    database: DatabaseArgs,
}

pub(super) async fn run(args: Args, settings: Settings) -> Result<(), Failure> {
    if args.print {
        return say(catalog::sql().trim_end());
    }
    let mut database = args.database.connect(settings).await?;
    let installed = catalog::install(&mut database.client).await;
    database.close().await;
    installed.map_err(|error| Failure::caused("the catalog was not installed", &error))?;
    say("the catalog is installed; next: rowcast track public.orders")
}
