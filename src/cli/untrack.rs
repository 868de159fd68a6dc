//! `rowcast untrack`: stop replicating a table.

use super::database::DatabaseArgs;
use super::failure::Failure;
use super::track::failed;
use super::{Settings, say};

#[derive(clap::Args)]
pub(super) struct Args {
    /// The table, with its schema: public.orders
    table: String,
    #[command(flatten)]
    database: DatabaseArgs,
}

pub(super) async fn run(args: Args, settings: Settings) -> Result<(), Failure> {
    let database = args.database.connect(settings).await?;
    let untracked =
        database.client.execute("SELECT rowcast.untrack($1::text::regclass)", &[&args.table]).await;
    database.close().await;
    untracked.map_err(|error| failed(&args.table, "untracked", &error))?;
    say(&format!("{} is untracked", args.table))
}
