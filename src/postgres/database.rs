//! A connection that is made when it is first needed, kept, and made again when it broke.

use std::time::Duration;

use tokio_postgres::Client;

use super::{ConnectError, Driver, Target, connect};

/// One session at a time; who needs several at once makes several of these.
#[derive(Debug)]
pub struct Database {
    target: Target,
    connection: Option<(Client, Driver)>,
}

impl Database {
    pub fn new(target: Target) -> Self {
        Database { target, connection: None }
    }

    /// To the same servers, not connected yet.
    pub fn another(&self) -> Self {
        Database::new(self.target.clone())
    }

    pub fn target(&self) -> &Target {
        &self.target
    }

    /// The session, connected. That it still works shows only when it is used.
    pub async fn client(&mut self) -> Result<&mut Client, ConnectError> {
        let connection = match self.connection.take() {
            Some(connection) if !connection.0.is_closed() => connection,
            _ => connect(&self.target).await?,
        };
        Ok(&mut self.connection.insert(connection).0)
    }

    /// Whether the session is there and answers within `patience`. Of one whose path is gone nobody else says so.
    pub async fn answers(&self, patience: Duration) -> bool {
        let Some((client, _)) = &self.connection else { return false };
        matches!(tokio::time::timeout(patience, client.batch_execute("")).await, Ok(Ok(())))
    }

    /// Gives the session up and has the server give up its work too: from the end of a connection alone it
    /// would learn of it only with the next row that it sends, and hold its locks until then. Returns when
    /// the server has ended the session, or does not answer within `patience`.
    pub async fn cancel(mut self, patience: Duration) {
        let Some((client, mut driver)) = self.connection.take() else { return };
        let ended = async {
            // Refused or not, the session ends below.
            let _ = client.cancel_token().cancel_query(driver.connector()).await;
            drop(client);
            driver.closed().await;
        };
        let _ = tokio::time::timeout(patience, ended).await;
    }

    /// Gives the session up, with whatever it was in the middle of; the next one is new.
    pub fn disconnect(&mut self) {
        self.connection = None;
    }
}
