//! `rowcast uninstall`: take everything of rowcast out of the database, and leave nothing behind.
//!
//! In this order, each step safe to repeat: every table is untracked, which puts its replica identity
//! back; publication and schema go in one transaction; then the slot; then the roles, unless something
//! else needs them. A table that is in use keeps the rest from going, so that nothing is forgotten: run
//! again. It works on the catalog of any release.

use std::collections::BTreeSet;
use std::io::{self, BufRead, IsTerminal, Write};

use tokio_postgres::{Client, Transaction};

use super::database::DatabaseArgs;
use super::failure::Failure;
use super::{Settings, note, say};

/// Those that `sql/001_roles.sql` makes.
const ROLES: [&str; 3] = ["rowcast_relay", "rowcast_writer", "rowcast_owner"];

#[derive(clap::Args)]
pub(super) struct Args {
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// Leave the roles rowcast_owner, rowcast_relay and rowcast_writer, without rights in this database
    #[arg(long)]
    keep_roles: bool,
    /// The replication slot [default: the configured one]
    #[arg(long, value_name = "NAME")]
    slot: Option<String>,
    #[command(flatten)]
    database: DatabaseArgs,
}

pub(super) async fn run(args: Args, settings: Settings) -> Result<(), Failure> {
    let config = settings.clone().load_for_tool(&[("slot", args.slot)])?;
    let mut database = args.database.connect(settings).await?;
    let found = Found::read(&database.client, &config.slot).await;
    let found = found.map_err(|error| Failure::caused("what is installed cannot be seen", &error))?;
    found.refuse()?;
    if found.nothing() {
        return say(&format!("nothing of rowcast is in the database {}", found.database));
    }
    if !args.yes {
        confirm(&found, args.keep_roles)?;
    }
    let removed = remove(&mut database.client, &found, args.keep_roles).await;
    database.close().await;
    removed?;
    for slot in &found.other_slots {
        note(&format!(
            "another slot may be a relay's, and keeps WAL; if so: SELECT pg_drop_replication_slot('{slot}');"
        ));
    }
    say(&format!(
        "rowcast is out of the database {}; the relay's own log is in its data directory",
        found.database
    ))
}

/// What is there before anything is done.
struct Found {
    database: String,
    schema: bool,
    publication: bool,
    /// The configured slot, if it is there.
    slot: Option<String>,
    /// Who streams from it.
    holder: Option<String>,
    /// Slots of this database with a name like it.
    other_slots: Vec<String>,
    tables: Vec<String>,
    roles: Vec<String>,
}

impl Found {
    async fn read(client: &Client, slot: &str) -> Result<Self, tokio_postgres::Error> {
        const OBJECTS: &str = "SELECT pg_catalog.current_database()::text,
            EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = 'rowcast'),
            EXISTS (SELECT FROM pg_catalog.pg_publication p JOIN pg_catalog.pg_roles r ON r.oid = p.pubowner
                    WHERE pubname = 'rowcast' AND r.rolname = 'rowcast_owner'),
            pg_catalog.to_regclass('rowcast.tables') IS NOT NULL,
            ARRAY(SELECT rolname::text FROM pg_catalog.pg_roles WHERE rolname = ANY ($1))";
        let row = client.query_one(OBJECTS, &[&ROLES.as_slice()]).await?;
        let has_tables: bool = row.try_get(3)?;
        const TABLES: &str =
            "SELECT pg_catalog.format('%I.%I', schema_name, table_name) FROM rowcast.tables ORDER BY 1";
        let tables = if has_tables { client.query(TABLES, &[]).await? } else { Vec::new() };
        const SLOTS: &str = "SELECT s.slot_name::text, s.slot_name = $1,
                CASE WHEN s.active THEN pg_catalog.concat_ws(' ', 'process ' || s.active_pid, a.application_name,
                  'at ' || pg_catalog.host(a.client_addr), 'as ' || a.usename) END
            FROM pg_catalog.pg_replication_slots s LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = s.active_pid
            WHERE s.plugin = 'pgoutput' AND s.database = pg_catalog.current_database()
              AND (s.slot_name = $1 OR s.slot_name LIKE 'rowcast%')";
        let slots = client.query(SLOTS, &[&slot]).await?;
        let ours = slots.iter().find(|row| row.get(1));
        let others = slots.iter().filter(|row| !row.get::<_, bool>(1));
        Ok(Found {
            database: row.try_get(0)?,
            schema: row.try_get(1)?,
            publication: row.try_get(2)?,
            slot: ours.map(|row| row.get(0)),
            holder: ours.and_then(|row| row.get(2)),
            other_slots: others.map(|row| row.get(0)).collect(),
            tables: tables.iter().map(|row| row.get(0)).collect(),
            roles: row.try_get(4)?,
        })
    }

    fn nothing(&self) -> bool {
        !self.schema && !self.publication && self.slot.is_none() && self.roles.is_empty()
    }

    fn refuse(&self) -> Result<(), Failure> {
        match &self.holder {
            Some(holder) => Err(Failure::new(format!("a relay streams from this database: {holder}"))
                .hint("stop it first; its devices would be told to come back, and find nothing")),
            None => Ok(()),
        }
    }
}

fn confirm(found: &Found, keep_roles: bool) -> Result<(), Failure> {
    note(&format!("This takes out of the database {}:", found.database));
    for table in &found.tables {
        note(&format!("  tracked table {table}: untracked, its replica identity put back"));
    }
    found.slot.iter().for_each(|slot| note(&format!("  replication slot {slot}")));
    if found.publication {
        note("  publication rowcast");
    }
    if found.schema {
        note("  schema rowcast, with the secret that signs messages");
    }
    if !keep_roles && !found.roles.is_empty() {
        note(&format!("  roles {}, unless other databases use them", found.roles.join(", ")));
    }
    if !io::stdin().is_terminal() {
        return Err(Failure::usage("nobody is there to confirm it").hint("pass --yes"));
    }
    let mut err = io::stderr().lock();
    let _ = write!(err, "Type the database's name to go on: ").and_then(|()| err.flush());
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer);
    match read {
        Ok(_) if answer.trim() == found.database => Ok(()),
        _ => Err(Failure::new("nothing was done")),
    }
}

async fn remove(client: &mut Client, found: &Found, keep_roles: bool) -> Result<(), Failure> {
    untrack_all(client).await?;
    let transaction = client.transaction().await.map_err(|error| failed("the catalog", &error))?;
    drop_objects(&transaction).await?;
    transaction.commit().await.map_err(|error| failed("the catalog", &error))?;
    if let Some(slot) = &found.slot {
        let dropped = client.execute("SELECT pg_catalog.pg_drop_replication_slot($1)", &[slot]).await;
        dropped.map_err(|error| failed("the slot", &error))?;
    }
    for role in &found.roles {
        drop_role(client, role, keep_roles).await?;
    }
    Ok(())
}

fn failed(what: &str, error: &tokio_postgres::Error) -> Failure {
    Failure::caused(&format!("{what} could not be removed"), error)
}

/// Every table by itself, so that one that is in use does not keep the locks of the others.
async fn untrack_all(client: &mut Client) -> Result<(), Failure> {
    const EXISTS: &str = "SELECT pg_catalog.to_regprocedure('rowcast.untrack(regclass)') IS NOT NULL";
    let exists = client.query_one(EXISTS, &[]).await.map_err(|error| failed("the tables", &error))?;
    if !exists.get::<_, bool>(0) {
        return Ok(());
    }
    const TRACKED: &str =
        "SELECT relid, pg_catalog.format('%I.%I', schema_name, table_name) FROM rowcast.tables";
    const CHANGED: &str = "SELECT relid, relid::pg_catalog.regclass::text FROM rowcast.identity_changes
        WHERE NOT EXISTS (SELECT FROM rowcast.tables t WHERE t.relid = identity_changes.relid)";
    const UNTRACK: &str = "SELECT rowcast.untrack($1::oid::pg_catalog.regclass)";
    // Tables that serve another end, as for grants, have no row among the tracked ones.
    const RESTORE: &str = "SELECT rowcast.lock_table(relid, true, 'uninstall'), rowcast.restore_identity(relid)
        FROM rowcast.identity_changes WHERE relid = $1 AND EXISTS (SELECT FROM pg_catalog.pg_class WHERE oid = relid)";
    let mut left = Vec::new();
    for (list, statement) in [(TRACKED, UNTRACK), (CHANGED, RESTORE)] {
        let rows = client.query(list, &[]).await.map_err(|error| failed("the tables", &error))?;
        for row in &rows {
            let (relid, name): (u32, String) = (row.get(0), row.get(1));
            if let Err(error) = client.execute(statement, &[&relid]).await {
                let failure = Failure::caused(&name, &error);
                note(failure.texts().0);
                left.push(name);
            }
        }
    }
    if left.is_empty() {
        return Ok(());
    }
    Err(Failure::new(format!("still tracked: {}; nothing else was removed", left.join(", ")))
        .hint("run it again when these tables are not in use, as a role that owns them"))
}

/// What would be gone with the schema and is not rowcast's.
const FOREIGN: &str = "
SELECT pg_catalog.pg_describe_object(classid, objid, 0) FROM (
  SELECT 'pg_catalog.pg_class'::pg_catalog.regclass, oid, relnamespace FROM pg_catalog.pg_class WHERE relkind IN ('r', 'v', 'm', 'p', 'f')
  UNION ALL SELECT 'pg_catalog.pg_proc'::pg_catalog.regclass, oid, pronamespace FROM pg_catalog.pg_proc
  UNION ALL SELECT 'pg_catalog.pg_attrdef'::pg_catalog.regclass, oid, 0 FROM pg_catalog.pg_attrdef
  UNION ALL SELECT 'pg_catalog.pg_trigger'::pg_catalog.regclass, oid, 0 FROM pg_catalog.pg_trigger
  UNION ALL SELECT 'pg_catalog.pg_policy'::pg_catalog.regclass, oid, 0 FROM pg_catalog.pg_policy
  UNION ALL SELECT 'pg_catalog.pg_constraint'::pg_catalog.regclass, oid, connamespace FROM pg_catalog.pg_constraint WHERE contype IN ('c', 'f')
) AS objects (classid, objid, namespace)
WHERE namespace IS DISTINCT FROM (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = 'rowcast')";

async fn drop_objects(transaction: &Transaction<'_>) -> Result<(), Failure> {
    let error = |error| failed("the catalog", &error);
    let before = transaction.query(FOREIGN, &[]).await.map_err(error)?;
    // A member of the owner role does it as that role; a superuser needs not be one.
    transaction
        .batch_execute(
            "SET LOCAL client_min_messages = warning;
             DROP PUBLICATION IF EXISTS rowcast; DROP SCHEMA IF EXISTS rowcast CASCADE",
        )
        .await
        .map_err(error)?;
    let after = transaction.query(FOREIGN, &[]).await.map_err(error)?;
    let after: BTreeSet<String> = after.iter().map(|row| row.get(0)).collect();
    let gone: Vec<String> = before
        .iter()
        .filter_map(|row| row.get::<_, Option<String>>(0))
        .filter(|name| !after.contains(name) && !name.contains(" rowcast."))
        .collect();
    if gone.is_empty() {
        return Ok(());
    }
    Err(Failure::new(format!(
        "these depend on rowcast and are yours: {}; nothing was removed",
        gone.join(", ")
    ))
    .hint("drop or change them first"))
}

/// Takes a role's rights in this database, and then itself, unless something else depends on it.
async fn drop_role(client: &Client, role: &str, keep: bool) -> Result<(), Failure> {
    let error = |error| failed(&format!("the role {role}"), &error);
    const NEEDED: &str = "SELECT coalesce(d.datname, 'the cluster')::text, s.deptype = 'o',
            s.dbid = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
        FROM pg_catalog.pg_shdepend s JOIN pg_catalog.pg_roles r ON r.oid = s.refobjid
        LEFT JOIN pg_catalog.pg_database d ON d.oid = s.dbid
        WHERE s.refclassid = 'pg_catalog.pg_authid'::pg_catalog.regclass AND r.rolname = $1 AND s.deptype <> 'i'";
    let needed = client.query(NEEDED, &[&role]).await.map_err(error)?;
    if needed.iter().any(|row| row.get::<_, Option<bool>>(2) == Some(true) && row.get::<_, bool>(1)) {
        note(&format!("the role {role} stays: it owns something of yours in this database"));
        return Ok(());
    }
    if let Err(refused) = revoke_all(client, role).await {
        let failure =
            Failure::caused(&format!("the role {role} stays, with what it was granted here"), &refused);
        note(failure.texts().0);
        return Ok(());
    }
    if keep {
        return Ok(());
    }
    // What is left after that is elsewhere.
    let left = client.query(NEEDED, &[&role]).await.map_err(error)?;
    let elsewhere: BTreeSet<String> = left.iter().map(|row| row.get(0)).collect();
    if !elsewhere.is_empty() {
        note(&format!(
            "the role {role} stays: it is used in {}",
            elsewhere.into_iter().collect::<Vec<_>>().join(", ")
        ));
        return Ok(());
    }
    client.batch_execute(&format!("DROP ROLE {role}")).await.map_err(error)?;
    Ok(())
}

/// Takes what a role was granted in this database; it owns nothing here. Who is no superuser has to be a
/// member for that, and is one for the moment.
async fn revoke_all(client: &Client, role: &str) -> Result<(), tokio_postgres::Error> {
    let member = client.query_one("SELECT pg_catalog.pg_has_role($1::name, 'USAGE')", &[&role]).await?;
    let lent = !member.try_get::<_, bool>(0)?;
    if lent {
        client.batch_execute(&format!("GRANT {role} TO CURRENT_USER")).await?;
    }
    client.batch_execute(&format!("DROP OWNED BY {role}")).await?;
    if lent {
        client.batch_execute(&format!("REVOKE {role} FROM CURRENT_USER")).await?;
    }
    Ok(())
}
