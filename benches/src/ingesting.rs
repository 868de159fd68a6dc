//! A backlog in the write-ahead log, that relay and reference read from the same position, again and again.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use rowcast::bench::{processes, tables};
use rowcast::lsn::Lsn;

use crate::world::World;
use crate::{recvlogical, relay};

const PATIENCE: Duration = Duration::from_secs(1800);
/// A copy of the relay's slot, where it stood before the backlog.
const BASE: &str = "bench_base";
const REFERENCE: &str = "bench_reference";

pub(crate) struct Backlog {
    pub(crate) world: World,
    /// The relay's data directory, as it was before the backlog.
    base: PathBuf,
    end: Lsn,
    pub(crate) rows: u64,
}

/// What one reading took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ingested {
    pub(crate) rows_per_second: f64,
    /// Of the relay.
    pub(crate) cpu_microseconds_per_row: f64,
    pub(crate) peak_mib: f64,
    /// The log's size on disk, after an orderly end.
    pub(crate) log_bytes: u64,
}

impl Backlog {
    /// Writes so many rows, of so many users in turn, in transactions of `each` into one of `tables`.
    pub(crate) async fn write(rows: u64, each: u64, users: u64, tables: u64) -> anyhow::Result<Backlog> {
        let world = World::new().await?;
        tables::create_more(&world.client, tables).await.context("the tables were not made")?;
        let base = world.directory.path().join("base");
        // It makes the slot and the log that all runs begin with.
        relay::ready(&world, &base).await?.stop().await?;
        world.client.execute("SELECT pg_copy_logical_replication_slot('rowcast', $1)", &[&BASE]).await?;
        tables::fill(&world.client, users, 0..rows, each, tables)
            .await
            .context("the backlog was not written")?;
        let end = world.end().await?;
        world.mark().await?;
        Ok(Backlog { world, base, end, rows })
    }

    /// Rows a second into a file by `pg_recvlogical`.
    pub(crate) async fn by_reference(&self) -> anyhow::Result<f64> {
        self.copy_slot(REFERENCE).await?;
        let file = self.world.directory.path().join("reference.out");
        let reading = recvlogical::to_file(&self.world, REFERENCE, self.end, &file).await?;
        let begun = self.streaming_since().await?;
        reading.finish().await?;
        let took = self.now().await? - begun;
        std::fs::remove_file(&file)?;
        self.drop_slot(REFERENCE).await?;
        Ok(self.rows as f64 / took)
    }

    /// The same rows into the relay's durable log.
    pub(crate) async fn by_relay(&self) -> anyhow::Result<Ingested> {
        self.drop_slot("rowcast").await?;
        self.copy_slot("rowcast").await?;
        let data = self.world.directory.path().join("run");
        copy(&self.base, &data)?;
        let relay = relay::listening(&self.world, &data).await?;
        let begun = self.streaming_since().await?;
        self.wait_confirmed().await?;
        let took = self.now().await? - begun;
        let changes = relay.metric("rowcast_changes_total").await?;
        ensure!(changes == self.rows as f64, "the relay has {changes} changes of {}", self.rows);
        let usage = processes::process(relay.pid).context("the relay's costs")?;
        let peak = processes::status(relay.pid, "VmHWM").unwrap_or_default();
        relay.stop().await?;
        let log_bytes = size_on_disk(&data.join("log"));
        std::fs::remove_dir_all(&data)?;
        Ok(Ingested {
            rows_per_second: self.rows as f64 / took,
            cpu_microseconds_per_row: usage.cpu.as_secs_f64() * 1e6 / self.rows as f64,
            peak_mib: peak as f64 / 1024.0,
            log_bytes,
        })
    }

    async fn copy_slot(&self, name: &str) -> anyhow::Result<()> {
        let copy = "SELECT pg_copy_logical_replication_slot($1, $2)";
        self.world.client.execute(copy, &[&BASE, &name]).await.with_context(|| format!("slot {name}"))?;
        Ok(())
    }

    /// The server may hold it for a moment after its reader has gone.
    async fn drop_slot(&self, name: &str) -> anyhow::Result<()> {
        let begun = std::time::Instant::now();
        let drop = "SELECT pg_drop_replication_slot($1)";
        while let Err(error) = self.world.client.execute(drop, &[&name]).await {
            ensure!(begun.elapsed() < Duration::from_secs(10), "slot {name}: {error}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// When the server took the connection that streams, by its own clock: so that neither side's start counts.
    async fn streaming_since(&self) -> anyhow::Result<f64> {
        let begun = std::time::Instant::now();
        let since = "SELECT coalesce(max(extract(epoch FROM backend_start)), 0)::float8 FROM pg_stat_activity
                     WHERE backend_type = 'walsender'";
        loop {
            let at = self.world.number(since).await?;
            if at > 0.0 {
                return Ok(at);
            }
            ensure!(begun.elapsed() < Duration::from_secs(60), "nobody streams");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Until the relay has told the server that all of it is durable. The server is asked, which costs next to
    /// nothing, and not the relay, which would pay for its metrics meanwhile.
    async fn wait_confirmed(&self) -> anyhow::Result<()> {
        let begun = std::time::Instant::now();
        let confirmed = "SELECT (confirmed_flush_lsn - '0/0')::float8 FROM pg_replication_slots
                         WHERE slot_name = 'rowcast'";
        while self.world.number(confirmed).await? < self.end.get() as f64 {
            ensure!(begun.elapsed() < PATIENCE, "the relay does not confirm {}", self.end);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    async fn now(&self) -> anyhow::Result<f64> {
        self.world.number("SELECT extract(epoch FROM clock_timestamp())::float8").await
    }
}

/// A directory with all that is in it.
pub(crate) fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status()?;
    ensure!(status.success(), "copying {}: {status}", from.display());
    Ok(())
}

/// What a directory takes on disk.
pub(crate) fn size_on_disk(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let of = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => size_on_disk(&entry.path()),
        // What is allocated, in blocks of 512 bytes: journals are made large and empty.
        Ok(meta) => std::os::unix::fs::MetadataExt::blocks(&meta) * 512,
        Err(_) => 0,
    };
    entries.map(of).sum()
}
