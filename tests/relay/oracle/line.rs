//! A connection to the database that comes back after every break, and knows which refusals are nobody's fault.

use std::time::{Duration, Instant};

use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, NoTls};

use crate::support::postgres::explain;
use crate::support::wait::PATIENCE;

/// A database that is away for longer has failed.
const LONGEST_AWAY: Duration = PATIENCE.saturating_mul(3);
/// Between two tries to connect.
const PAUSE: Duration = Duration::from_millis(20);

/// What may be said to a statement when others write, and alter tables, at the same time. Above all not
/// among them: that a table lacks the identity that its publication needs.
const EXPECTED: [SqlState; 25] = [
    SqlState::UNIQUE_VIOLATION,
    SqlState::FOREIGN_KEY_VIOLATION,
    SqlState::NOT_NULL_VIOLATION,
    // There is no partition for the row.
    SqlState::CHECK_VIOLATION,
    SqlState::CARDINALITY_VIOLATION,
    SqlState::T_R_DEADLOCK_DETECTED,
    SqlState::T_R_SERIALIZATION_FAILURE,
    SqlState::LOCK_NOT_AVAILABLE,
    SqlState::UNDEFINED_COLUMN,
    SqlState::UNDEFINED_TABLE,
    SqlState::UNDEFINED_OBJECT,
    SqlState::UNDEFINED_FUNCTION,
    SqlState::DUPLICATE_COLUMN,
    SqlState::DUPLICATE_TABLE,
    SqlState::DATATYPE_MISMATCH,
    SqlState::INVALID_TEXT_REPRESENTATION,
    SqlState::INVALID_DATETIME_FORMAT,
    SqlState::NUMERIC_VALUE_OUT_OF_RANGE,
    SqlState::STRING_DATA_RIGHT_TRUNCATION,
    SqlState::IN_FAILED_SQL_TRANSACTION,
    SqlState::NO_ACTIVE_SQL_TRANSACTION,
    SqlState::OBJECT_IN_USE,
    SqlState::ADMIN_SHUTDOWN,
    SqlState::CRASH_SHUTDOWN,
    SqlState::CANNOT_CONNECT_NOW,
];

pub(super) struct Line {
    url: String,
    /// Run on each new connection.
    settings: &'static str,
    client: Option<Client>,
}

/// How statements went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Done,
    /// Without effect, but that a transaction may be open and failed.
    Refused,
    /// The connection is gone, and nobody knows.
    Lost,
}

impl Line {
    pub(super) fn new(url: &str, settings: &'static str) -> Self {
        Line { url: url.to_owned(), settings, client: None }
    }

    pub(super) async fn run(&mut self, sql: &str) -> Outcome {
        let running = tokio::time::timeout(PATIENCE, self.client().await.batch_execute(sql)).await;
        let Ok(result) = running else {
            // Where the path is gone nobody says so.
            self.client = None;
            return Outcome::Lost;
        };
        let Err(error) = result else { return Outcome::Done };
        if self.is_lost(&error) {
            return Outcome::Lost;
        }
        let code = error.code();
        assert!(code.is_some_and(|code| EXPECTED.contains(code)), "{}\nin {sql}", explain(&error));
        Outcome::Refused
    }

    /// Whether the connection is gone; then another is made for what comes next.
    pub(super) fn is_lost(&mut self, error: &tokio_postgres::Error) -> bool {
        let ends = [SqlState::ADMIN_SHUTDOWN, SqlState::CRASH_SHUTDOWN, SqlState::CANNOT_CONNECT_NOW];
        let lost = error.code().is_none_or(|code| ends.contains(code));
        if lost {
            self.client = None;
        }
        lost
    }

    /// Connected, for as long as that takes.
    pub(super) async fn client(&mut self) -> &Client {
        let begun = Instant::now();
        while self.client.as_ref().is_none_or(Client::is_closed) {
            match connect(&self.url, self.settings).await {
                Ok(client) => self.client = Some(client),
                Err(error) => {
                    assert!(begun.elapsed() < LONGEST_AWAY, "the database is away: {}", explain(&error));
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        self.client.as_ref().expect("connected above")
    }
}

async fn connect(url: &str, settings: &str) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    client.batch_execute(settings).await?;
    Ok(client)
}
