//! `rowcast tables`: what is tracked, what could be, what it would cost, and why something cannot be.
//!
//! The database judges (`rowcast.candidates`, by the same rules as `track`); this shows it.

use serde::Serialize;
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;

use super::database::DatabaseArgs;
use super::failure::Failure;
use super::{Settings, say, sizes};

#[derive(clap::Args)]
pub(super) struct Args {
    /// Only tables of these schemas; may be repeated
    #[arg(long = "schema", value_name = "SCHEMA")]
    schemas: Vec<String>,
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    database: DatabaseArgs,
}

const QUERY: &str =
    "SELECT pg_catalog.format('%I.%I', schema_name, table_name) AS name, tracked, bytes, row_estimate, key,
        identity_now, identity_then, topics, columns, costs, prepare, obstacle, mend
     FROM rowcast.candidates() WHERE $1::text[] = '{}' OR schema_name = ANY ($1)";

#[derive(Debug, Serialize)]
struct Table {
    /// As SQL names it.
    name: String,
    tracked: bool,
    bytes: u64,
    row_estimate: u64,
    key: Vec<String>,
    identity_now: String,
    /// What `track` would do; absent where the table cannot be tracked.
    identity_then: Option<String>,
    /// As tracked, or as suggested by the names of columns.
    topics: Option<Vec<String>>,
    columns: Option<Vec<String>>,
    costs: Vec<String>,
    /// SQL to run before.
    prepare: Vec<String>,
    obstacle: Option<String>,
    mend: Option<String>,
    /// The command that tracks it; absent where only a person can say whose rows it holds.
    command: Option<String>,
}

pub(super) async fn run(args: Args, settings: Settings) -> Result<(), Failure> {
    let database = args.database.connect(settings).await?;
    let rows = database.client.query(QUERY, &[&args.schemas]).await;
    database.close().await;
    let rows = rows.map_err(|error| failed(&error))?;
    let tables = rows.iter().map(Table::of).collect::<Result<Vec<_>, _>>();
    let tables = tables.map_err(|error| Failure::caused("the tables were not listed", &error))?;
    if args.json {
        let text = serde_json::to_string_pretty(&serde_json::json!({ "tables": tables }));
        return say(&text.map_err(|error| Failure::caused("the tables were not listed", &error))?);
    }
    say(page(&tables).trim_end())
}

fn failed(error: &tokio_postgres::Error) -> Failure {
    let failure = Failure::caused("the tables were not listed", error);
    match error.code() {
        Some(&SqlState::INVALID_SCHEMA_NAME | &SqlState::UNDEFINED_FUNCTION) => {
            failure.hint("install the catalog first, or bring it up to date: rowcast init")
        }
        Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
            failure.hint("use the relay's role, a member of rowcast_owner or a superuser")
        }
        _ => failure,
    }
}

impl Table {
    fn of(row: &Row) -> Result<Self, tokio_postgres::Error> {
        let count = |name| Ok(u64::try_from(row.try_get::<_, i64>(name)?).unwrap_or(0));
        let mut table = Table {
            name: row.try_get("name")?,
            tracked: row.try_get("tracked")?,
            bytes: count("bytes")?,
            row_estimate: count("row_estimate")?,
            key: row.try_get("key")?,
            identity_now: row.try_get("identity_now")?,
            identity_then: row.try_get("identity_then")?,
            topics: row.try_get("topics")?,
            columns: row.try_get("columns")?,
            costs: row.try_get("costs")?,
            prepare: row.try_get::<_, Vec<Option<String>>>("prepare")?.into_iter().flatten().collect(),
            obstacle: row.try_get("obstacle")?,
            mend: row.try_get("mend")?,
            command: None,
        };
        table.command = table.command();
        Ok(table)
    }

    fn command(&self) -> Option<String> {
        let topics = self.topics.as_ref().filter(|_| !self.tracked && self.obstacle.is_none())?;
        let mut command = format!("rowcast track {}", shell(&self.name));
        // What `track` takes by itself.
        if !matches!(topics.as_slice(), [topic] if topic.starts_with("user:{user_id}:")) {
            topics.iter().for_each(|topic| command.push_str(&format!(" --topic {}", shell(topic))));
        }
        Some(command)
    }

    fn kind(&self) -> Kind {
        match (self.tracked, &self.obstacle, &self.topics) {
            (true, ..) => Kind::Tracked,
            (false, Some(_), _) => Kind::Not,
            (false, None, Some(_)) => Kind::Ready,
            (false, None, None) => Kind::Whose,
        }
    }

    fn show(&self, page: &mut String) {
        let mut line = |indent: &str, text: &str| page.push_str(&format!("{indent}{text}\n"));
        let key = if self.key.is_empty() { "none".to_owned() } else { self.key.join(", ") };
        let (size, rows) = (sizes::bytes(self.bytes), sizes::rows(self.row_estimate));
        line("  ", &format!("{}  {rows}, {size}, key: {key}, identity: {}", self.name, self.identity()));
        let topics = self.topics.as_deref().unwrap_or_default();
        match self.kind() {
            Kind::Tracked => {
                let columns =
                    self.columns.as_ref().map(|columns| format!(", columns: {}", columns.join(", ")));
                line("      ", &format!("{}{}", topics.join(", "), columns.unwrap_or_default()));
            }
            Kind::Ready => line("      ", &format!("run:   {}", self.command.as_deref().unwrap_or_default())),
            Kind::Whose => {
                let name = shell(&self.name);
                line(
                    "      ",
                    &format!("rows of a user:       rowcast track {name} --topic 'user:{{column}}:NAME'"),
                );
                line("      ", &format!("the same for everyone: rowcast track {name} --topic 'global:NAME'"));
            }
            Kind::Not => {}
        }
        let word = if self.tracked { "wrong:" } else { "costs:" };
        self.costs.iter().for_each(|cost| line("      ", &format!("{word} {cost}")));
        let word = if self.tracked { "mend: " } else { "first:" };
        self.prepare.iter().for_each(|sql| line("      ", &format!("{word} {sql}")));
        self.obstacle.iter().for_each(|why| line("      ", &format!("why:   {why}")));
        self.mend.iter().for_each(|mend| line("      ", &format!("mend:  {mend}")));
    }

    fn identity(&self) -> String {
        let then = match self.identity_then.as_deref() {
            Some("default") => "the primary key",
            Some("index") => "an index that is there",
            Some("build") => "a new index",
            Some("full") => "FULL",
            _ => return self.identity_now.clone(),
        };
        format!("{}, by track {then}", self.identity_now)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Tracked,
    Ready,
    /// Trackable, but nothing says whose rows they are.
    Whose,
    Not,
}

fn page(tables: &[Table]) -> String {
    const HEADINGS: [(Kind, &str); 4] = [
        (Kind::Tracked, "Tracked"),
        (Kind::Ready, "Can be tracked (the topics are a guess from the names of columns)"),
        (Kind::Whose, "Can be tracked; whose rows they hold is for you to say"),
        (Kind::Not, "Cannot be tracked as they are"),
    ];
    let mut page = String::new();
    for (kind, heading) in HEADINGS {
        let mut of_kind = tables.iter().filter(|table| table.kind() == kind).peekable();
        if of_kind.peek().is_some() {
            page.push_str(&format!("{heading}:\n"));
            of_kind.for_each(|table| table.show(&mut page));
            page.push('\n');
        }
    }
    if page.is_empty() {
        page.push_str("there are no tables\n");
    }
    page
}

/// An argument for a shell.
fn shell(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | ':');
    if text.chars().all(plain) { text.to_owned() } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_safe_in_a_shell() {
        assert_eq!(shell("public.orders"), "public.orders");
        assert_eq!(shell("user:{a}:b"), "'user:{a}:b'");
        assert_eq!(shell("x\"y'z"), "'x\"y'\\''z'");
    }
}
