//! Rights as the database has them when a log is opened: the revocation list, and the rows of every
//! table whose rows make grants.
//!
//! Read between two waits for what is not yet visible, so that everything before the slot is in the
//! answer; what commits from the slot on comes in the stream and is applied over it, which changes
//! nothing where it was seen already.

use futures_util::TryStreamExt;
use tokio_postgres::Client;
use tokio_postgres::types::ToSql;

use super::error::IngestError;
use super::poller::{grant_faults, knows_grants};
use crate::route::{GrantFault, GrantRule, Router};

const GRANTS: &str = "
SELECT generation::text, relid::text, schema_name, table_name, user_column, pattern, issuer,
       key_columns::text, columns::text, column_types::text
FROM rowcast.grants ORDER BY generation";
const GRANT_COLUMNS: [&str; 10] = [
    "generation",
    "relid",
    "schema_name",
    "table_name",
    "user_column",
    "pattern",
    "issuer",
    "key_columns",
    "columns",
    "column_types",
];

const REVOCATIONS: &str = "SELECT user_id, issuer, before_unix_us::text FROM rowcast.revocations";
const REVOCATION_COLUMNS: [&str; 3] = ["user_id", "issuer", "before_unix_us"];

/// Takes all of them into a router that knows none.
pub(super) async fn read(client: &mut Client, router: &mut Router) -> Result<(), IngestError> {
    if !knows_grants(client).await? {
        return Ok(());
    }
    for row in client.query(REVOCATIONS, &[]).await? {
        router.put_revocation(|name| column(&row, &REVOCATION_COLUMNS, name))?;
    }
    for row in client.query(GRANTS, &[]).await? {
        router.put_grant(|name| column(&row, &GRANT_COLUMNS, name))?;
    }
    for fault in grant_faults(client).await? {
        router.end_grants(fault.generation, &GrantFault::Found(fault.why));
    }
    let rules: Vec<GrantRule> = router.grant_rules().cloned().collect();
    for rule in &rules {
        match read_members(client, rule, router).await {
            Ok(()) => {}
            // Of this table alone nothing can be known; a connection that broke is tried again.
            Err(error) if error.as_db_error().is_some_and(|error| !is_passing(error.code().code())) => {
                router.end_grants(rule.generation, &GrantFault::Found(format!("it cannot be read: {error}")));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Connections, resources, shutdown, conflicts: not the table's fault.
fn is_passing(code: &str) -> bool {
    matches!(&code[..2], "08" | "40" | "53" | "57")
}

fn column<'a>(row: &'a tokio_postgres::Row, names: &[&str], name: &str) -> Option<&'a str> {
    let place = names.iter().position(|known| *known == name)?;
    row.get::<_, Option<&str>>(place)
}

async fn read_members(
    client: &mut Client,
    rule: &GrantRule,
    router: &mut Router,
) -> Result<(), tokio_postgres::Error> {
    let transaction = client.build_transaction().read_only(true).start().await?;
    // Rows that row security hides would be missing in silence; without the right to see them this fails.
    transaction.batch_execute("SET LOCAL row_security = off").await?;
    transaction.batch_execute(crate::postgres::SET_LOCAL).await?;
    let none: [&(dyn ToSql + Sync); 0] = [];
    let rows = transaction.query_raw(&select(rule), none).await?;
    let mut rows = std::pin::pin!(rows);
    let keys = rule.key_columns.len();
    while let Some(row) = rows.try_next().await? {
        let key: Vec<String> = (0..keys).map(|place| row.get(place)).collect();
        let value = rule.value_column().and_then(|_| row.get(keys + 1));
        router.put_member(rule.generation, &key, row.get(keys), value);
    }
    Ok(())
}

/// format() prints with a type's output function, as the stream does; a cast to text may differ. It prints
/// NULL as an empty text, which grants nothing either.
fn select(rule: &GrantRule) -> String {
    let columns = rule.key_columns.iter().chain([&rule.user_column]).map(String::as_str);
    let columns: Vec<String> = columns
        .chain(rule.value_column())
        .map(|name| format!("pg_catalog.format('%s', {})", quoted(name)))
        .collect();
    format!(
        "SELECT {} FROM ONLY {}.{} WHERE {} IS NOT NULL",
        columns.join(", "),
        quoted(&rule.schema),
        quoted(&rule.table),
        quoted(&rule.user_column)
    )
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
