//! Waiting until the relay stands behind a moment of the database.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tokio_postgres::Client;

use super::fleet::Fleet;
use super::service::Service;
use crate::cursor::Cursor;
use crate::lsn::Lsn;

/// How long a relay may be behind.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long devices may be refused, or told to sync the tables.
const REFUSED: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(50);

/// Returns when whoever subscribes stands behind all that is committed now: devices that join while a table is
/// being tracked are told to sync it. Asks as a device does, by subscribing.
pub async fn caught_up(client: &Client, service: &Service) -> anyhow::Result<()> {
    let row = client.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await?;
    let lsn: Lsn = row.try_get::<_, &str>(0)?.parse().context("a position in the write-ahead log")?;
    // A transaction for devices, so that cursors move on at once.
    client.execute("SELECT rowcast.broadcast('global:bench_all', 'ready', 'null')", &[]).await?;
    let service = service.clone();
    tokio::task::spawn_blocking(move || scout(&service, lsn)).await.context("the scout panicked")?
}

fn scout(service: &Service, lsn: Lsn) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        let stands = cursor(service).map(|cursor| cursor.position.commit);
        match stands {
            Ok(stands) if stands > lsn => return Ok(()),
            Err(error) if begun.elapsed() > REFUSED => return Err(error),
            Ok(stands) if begun.elapsed() > PATIENCE => {
                bail!(
                    "the relay stands at {stands}, before {lsn}, after {PATIENCE:?}: does it read this database?"
                )
            }
            _ => std::thread::sleep(PAUSE),
        }
    }
}

fn cursor(service: &Service) -> anyhow::Result<Cursor> {
    let mut fleet = Fleet::new(service.clone())?;
    fleet.remember_cursors();
    fleet.connect(1, 1, PATIENCE)?;
    let cursor = fleet.cursor(0).context("the relay told no cursor")?;
    Ok(cursor.parse()?)
}
