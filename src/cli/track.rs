//! `rowcast track`: choose a table to replicate.

use super::database::DatabaseArgs;
use super::failure::Failure;
use super::{Settings, say};

#[derive(clap::Args)]
pub(super) struct Args {
    /// The table, with its schema: public.orders
    table: String,
    /// Topic template, e.g. user:{sender_id}:messages; may be repeated [default: user:{user_id}:TABLE]
    #[arg(long = "topic", value_name = "TEMPLATE")]
    topics: Vec<String>,
    /// Publish only these columns; comma-separated, may be repeated [default: all]
    #[arg(long = "columns", value_name = "COLUMNS", value_delimiter = ',')]
    columns: Vec<String>,
    #[command(flatten)]
    database: DatabaseArgs,
}

pub(super) async fn run(args: Args, settings: Settings) -> Result<(), Failure> {
    let database = args.database.connect(settings).await?;
    let given = |texts: Vec<String>| Some(texts).filter(|texts| !texts.is_empty());
    let (topics, columns) = (given(args.topics), given(args.columns));
    const TRACK: &str =
        "SELECT rowcast.track($1::text::regclass, topics => $2::text[], columns => $3::text[])";
    let tracked = database.client.query_one(TRACK, &[&args.table, &topics, &columns]).await;
    database.close().await;
    let row = tracked.map_err(|error| failed(&args.table, "tracked", &error))?;
    let topics: Vec<String> = row.try_get(0).map_err(|error| failed(&args.table, "tracked", &error))?;
    // A table that is tracked again loses an earlier choice of columns; so it is said each time.
    let columns = columns.map_or_else(|| "all columns".to_owned(), |columns| columns.join(", "));
    say(&format!("{} is tracked: {}; publishes {columns}", args.table, topics.join(", ")))
}

/// What the server said, and what is most likely missing where it gives no hint itself.
pub(super) fn failed(table: &str, verb: &str, error: &tokio_postgres::Error) -> Failure {
    use tokio_postgres::error::SqlState;
    let failure = Failure::caused(&format!("{table} was not {verb}"), error);
    match error.code() {
        Some(&SqlState::INVALID_SCHEMA_NAME | &SqlState::UNDEFINED_FUNCTION) => {
            failure.hint("install the catalog first: rowcast init")
        }
        // The publication, dropped by hand.
        Some(&SqlState::UNDEFINED_OBJECT) => failure.hint("install the catalog again: rowcast init"),
        Some(&SqlState::UNDEFINED_TABLE) => {
            failure.hint("name the table with its schema, as in public.orders")
        }
        _ => failure,
    }
}
