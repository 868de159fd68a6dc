//! The catalog in the database that says which tables are tracked, and its installation.
//!
//! It is plain SQL, in the repository's folder `sql/`, which a DBA may as well run by hand: the
//! files of one release, in the order of their names, in one transaction. They may be run over an
//! older catalog, or over themselves, at any time; a newer one they refuse.
//!
//! Must not know: what the relay does with the catalog's rows.

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

/// The version of the catalog that this release installs and reads.
pub const VERSION: i32 = 2;

/// The oldest server that knows column lists in publications, as `server_version_num`.
const OLDEST_SERVER: i32 = 150_000;

/// Installations in one database come one after the other. The key is "rowcast" in ASCII.
const INSTALL_LOCK: i64 = 0x0072_6f77_6361_7374;

/// The files, in order.
const SCRIPTS: [&str; 11] = [
    include_str!("../../sql/001_roles.sql"),
    include_str!("../../sql/002_catalog.sql"),
    include_str!("../../sql/003_topics.sql"),
    include_str!("../../sql/004_messages.sql"),
    include_str!("../../sql/005_rules.sql"),
    include_str!("../../sql/006_identity.sql"),
    include_str!("../../sql/007_track.sql"),
    include_str!("../../sql/008_status.sql"),
    include_str!("../../sql/009_grants.sql"),
    include_str!("../../sql/010_candidates.sql"),
    include_str!("../../sql/099_finish.sql"),
];

/// What an installation found and did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Installed {
    /// There was no catalog.
    Fresh,
    /// There was an older one.
    Upgraded { from: i32 },
    /// It was there in this version; whatever of it had been changed or dropped is as it should be.
    Unchanged,
}

/// Why the catalog could not be installed. Nothing of it was.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    #[error("rowcast needs PostgreSQL 15 or later, the server is {0}")]
    OldServer(String),
    #[error("the server is a standby: run this on its primary")]
    Standby,
    #[error(
        "the catalog has version {found} and this release knows version {VERSION}: use the release that \
         installed it, or a later one"
    )]
    Newer { found: i32 },
    #[error("the catalog's version is not a number but {0:?}: was rowcast.settings edited?")]
    NoVersion(Option<String>),
    #[error("a right is missing: {message} ({hint})")]
    Rights { message: String, hint: String, source: tokio_postgres::Error },
    #[error("{message}{}", hint.as_deref().map(|hint| format!(" ({hint})")).unwrap_or_default())]
    Refused { message: String, hint: Option<String>, source: tokio_postgres::Error },
    #[error("the database did not answer")]
    Connection(#[source] tokio_postgres::Error),
}

impl From<tokio_postgres::Error> for CatalogError {
    fn from(source: tokio_postgres::Error) -> Self {
        let Some(error) = source.as_db_error() else { return CatalogError::Connection(source) };
        let message = match error.detail() {
            Some(detail) => format!("{}: {detail}", error.message()),
            None => error.message().to_owned(),
        };
        let hint = error.hint();
        if *error.code() == SqlState::INSUFFICIENT_PRIVILEGE {
            let hint = hint.unwrap_or("use a superuser or, once it is installed, a member of rowcast_owner");
            CatalogError::Rights { message, hint: hint.to_owned(), source }
        } else {
            CatalogError::Refused { message, hint: hint.map(str::to_owned), source }
        }
    }
}

/// All of the catalog, to be run by hand: `rowcast init --print | psql`.
///
/// One transaction that stops at its first error whatever psql is told.
pub fn sql() -> String {
    let scripts = scripts();
    format!("\\set ON_ERROR_STOP on\nBEGIN;\n\n{scripts}\nCOMMIT;\n")
}

/// Installs the catalog, or brings an older one up to date, in one transaction.
///
/// The connection needs a superuser, or a role that may create roles and schemas; what a managed
/// service refuses beyond that comes as a NOTICE on the connection.
pub async fn install(client: &mut Client) -> Result<Installed, CatalogError> {
    let server = client
        .query_one(
            "SELECT current_setting('server_version_num')::int4, current_setting('server_version'), \
             pg_is_in_recovery()",
            &[],
        )
        .await?;
    if server.try_get::<_, i32>(0)? < OLDEST_SERVER {
        return Err(CatalogError::OldServer(server.try_get(1)?));
    }
    if server.try_get(2)? {
        return Err(CatalogError::Standby);
    }
    let transaction = client.transaction().await?;
    transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&INSTALL_LOCK]).await?;
    let found = version(&transaction).await?;
    if let Some(found) = found.filter(|found| *found > VERSION) {
        return Err(CatalogError::Newer { found });
    }
    transaction.batch_execute(&scripts()).await?;
    transaction.commit().await?;
    Ok(match found {
        None => Installed::Fresh,
        Some(VERSION) => Installed::Unchanged,
        Some(from) => Installed::Upgraded { from },
    })
}

/// The version of the catalog in the database; `None` where there is none.
pub async fn version<C: tokio_postgres::GenericClient>(client: &C) -> Result<Option<i32>, CatalogError> {
    let exists = client.query_one("SELECT to_regclass('rowcast.settings') IS NOT NULL", &[]).await?;
    if !exists.try_get::<_, bool>(0)? {
        return Ok(None);
    }
    let row = client.query_opt("SELECT value FROM rowcast.settings WHERE name = 'version'", &[]).await?;
    let text: Option<String> = row.map(|row| row.try_get(0)).transpose()?;
    match text.as_deref().and_then(|text| text.parse().ok()) {
        Some(version) => Ok(Some(version)),
        None => Err(CatalogError::NoVersion(text)),
    }
}

fn scripts() -> String {
    SCRIPTS.join("\n")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_installed_in_order() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/sql");
        let mut names: Vec<_> =
            std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        names.sort();
        let files: Vec<_> = names.iter().map(|name| std::fs::read_to_string(name).unwrap()).collect();
        assert_eq!(files, SCRIPTS);
    }

    #[test]
    fn the_files_and_the_program_name_one_version() {
        assert!(scripts().contains(&format!("VALUES ('version', '{VERSION}')")));
        assert!(scripts().contains(&format!("IF installed > {VERSION} THEN")));
        assert!(scripts().contains(&format!("these files have version {VERSION}'")));
    }

    #[test]
    fn by_hand_it_is_one_transaction() {
        let sql = sql();
        assert!(sql.starts_with("\\set ON_ERROR_STOP on\nBEGIN;\n"));
        assert!(sql.ends_with("\nCOMMIT;\n"));
        assert_eq!(sql.matches("\nBEGIN;").count(), 1);
    }
}
