//! One short connection for a command, with what the server says along the way shown as it comes.

use rowcast::auth::Secret;
use rowcast::config::Config;
use rowcast::postgres::{ConnectError, Driver, Target, connect_unpinned};
use tokio_postgres::Client;
use tokio_postgres::error::DbError;

use super::Settings;
use super::failure::Failure;
use super::note;

/// Which database a command means.
#[derive(clap::Args)]
pub(super) struct DatabaseArgs {
    /// Connection string, with a role that may do this [env: ROWCAST_DATABASE_URL]
    #[arg(long, value_name = "URL")]
    database_url: Option<String>,
}

impl DatabaseArgs {
    /// What the command line says.
    pub(super) fn given(&self) -> Option<String> {
        self.database_url.clone()
    }

    pub(super) async fn connect(self, settings: Settings) -> Result<Database, Failure> {
        let config = settings.load_for_tool(&[("database_url", self.database_url)])?;
        Database::connect(&url(config)?).await
    }
}

fn url(config: Config) -> Result<Secret, Failure> {
    config.database_url.ok_or_else(|| {
        Failure::usage("no database is configured")
            .hint("set ROWCAST_DATABASE_URL, database_url in rowcast.toml, or --database-url")
    })
}

pub(super) struct Database {
    pub(super) client: Client,
    driver: Driver,
}

impl Database {
    /// With the role's own `search_path`, so that a table is found by the name that `psql` knows.
    async fn connect(url: &Secret) -> Result<Self, Failure> {
        let target =
            Target::parse(url.expose()).map_err(|error| Failure::usage(format!("database_url: {error}")))?;
        let connecting = connect_unpinned(&target, |notice| note(&text_of(notice)));
        let (client, driver) = connecting.await.map_err(|error| {
            let failure = Failure::caused("cannot connect to the database", &error);
            match error {
                // They say themselves what to do.
                ConnectError::Tls { .. } | ConnectError::TlsNeeded(_) | ConnectError::PasswordMissing => {
                    failure
                }
                _ => failure.hint("check database_url, and that PostgreSQL runs and lets this role in"),
            }
        })?;
        Ok(Database { client, driver })
    }

    /// Closes the connection, after everything that the server said is shown.
    pub(super) async fn close(mut self) {
        drop(self.client);
        self.driver.closed().await;
    }
}

fn text_of(notice: &DbError) -> String {
    let mut text = format!("{}: {}", notice.severity(), notice.message());
    text.extend(notice.detail().map(|detail| format!("\nDETAIL: {detail}")));
    text.extend(notice.hint().map(|hint| format!("\nHINT: {hint}")));
    text
}
