//! One short connection for a command, with what the server says along the way shown as it comes.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::poll_fn;
use rowcast::auth::Secret;
use rowcast::config::Config;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinHandle;
use tokio_postgres::error::DbError;
use tokio_postgres::{AsyncMessage, Client, Connection, NoTls};

use super::Settings;
use super::failure::Failure;
use super::note;

/// How long a host may take to answer before the next one is tried.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

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
    connection: JoinHandle<()>,
}

impl Database {
    async fn connect(url: &Secret) -> Result<Self, Failure> {
        let failed = |error| {
            Failure::caused("cannot connect to the database", &error)
                .hint("check database_url, and that PostgreSQL runs and lets this role in")
        };
        let mut target: tokio_postgres::Config = url.expose().parse().map_err(failed)?;
        target.application_name("rowcast").connect_timeout(CONNECT_TIMEOUT);
        let (client, connection) = target.connect(NoTls).await.map_err(failed)?;
        Ok(Database { client, connection: tokio::spawn(drive(connection)) })
    }

    /// Closes the connection, after everything that the server said is shown.
    pub(super) async fn close(self) {
        drop(self.client);
        // It only fails if it panicked, and then there is nothing more to show.
        let _ = self.connection.await;
    }
}

/// Runs the connection. Its errors reach the client's own calls, too, so they are not told here.
async fn drive<S, T>(mut connection: Connection<S, T>)
where
    S: AsyncRead + AsyncWrite + Unpin,
    T: AsyncRead + AsyncWrite + Unpin,
{
    let mut messages = poll_fn(move |context| connection.poll_message(context));
    while let Some(Ok(message)) = messages.next().await {
        if let AsyncMessage::Notice(notice) = message {
            note(&text_of(&notice));
        }
    }
}

fn text_of(notice: &DbError) -> String {
    let mut text = format!("{}: {}", notice.severity(), notice.message());
    text.extend(notice.detail().map(|detail| format!("\nDETAIL: {detail}")));
    text.extend(notice.hint().map(|hint| format!("\nHINT: {hint}")));
    text
}
