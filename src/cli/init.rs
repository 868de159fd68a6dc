//! `rowcast init`: install or update the catalog in the database.

use rowcast::postgres::catalog::{self, Installed};
use tokio_postgres::Client;

use super::database::DatabaseArgs;
use super::failure::Failure;
use super::{Settings, note, say};

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
    let mends = match &installed {
        Ok(_) => mends(&database.client).await,
        Err(_) => Ok(Vec::new()),
    };
    database.close().await;
    let installed = installed.map_err(|error| Failure::caused("the catalog was not installed", &error))?;
    let mends =
        mends.map_err(|error| Failure::caused("the catalog is installed, and cannot be read", &error))?;
    match installed {
        Installed::Fresh => {
            say("the catalog is installed; next: rowcast tables, rowcast track public.orders")
        }
        Installed::Upgraded { from } => say(&format!(
            "the catalog was brought from version {from} to {}; tracked tables stay as they are",
            catalog::VERSION
        )),
        Installed::Unchanged => {
            say("the catalog is installed in this version already; it is as it should be")
        }
    }?;
    if !mends.is_empty() {
        note("tracked tables that are not as they should be, as after a lost publication; run:");
        mends.iter().for_each(|mend| note(&format!("  {mend}")));
    }
    Ok(())
}

/// What has to be run so that tables are tracked as the catalog says. A publication that was dropped and
/// made anew holds none of them.
async fn mends(client: &Client) -> Result<Vec<String>, tokio_postgres::Error> {
    const QUERY: &str = "SELECT DISTINCT mend FROM rowcast.status
        WHERE part = 'table' AND mend LIKE 'SELECT rowcast.%' ORDER BY mend";
    client.query(QUERY, &[]).await?.iter().map(|row| row.try_get(0)).collect()
}
