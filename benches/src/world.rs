//! A private PostgreSQL with the catalog and the benchmark's tables.

use anyhow::Context;
use rowcast::bench::tables;
use rowcast::embedded::{Cluster, Options};
use rowcast::lsn::Lsn;
use rowcast::postgres::{Driver, Target, catalog, connect};
use tempfile::TempDir;
use tokio_postgres::Client;

/// A row with it is about 270 bytes of JSON.
pub(crate) const BODY_BYTES: usize = 225;

/// What a server of this size is given. It does not wait for its disk (a scratch cluster has `fsync` off): what is
/// measured is the relay, and the references read the same server.
const SETTINGS: &[(&str, &str)] = &[
    ("shared_buffers", "512MB"),
    ("max_wal_size", "16GB"),
    ("checkpoint_timeout", "1h"),
    ("autovacuum", "off"),
    ("max_connections", "120"),
    ("max_replication_slots", "60"),
    ("max_wal_senders", "30"),
    ("jit", "off"),
];

pub(crate) struct World {
    pub(crate) client: Client,
    pub(crate) target: Target,
    /// What relays and references connect to: the server's unix socket, unless another was chosen.
    pub(crate) url: String,
    _driver: Driver,
    pub(crate) cluster: Cluster,
    /// For relays' logs, and files.
    pub(crate) directory: TempDir,
}

impl World {
    pub(crate) async fn new() -> anyhow::Result<World> {
        let options = SETTINGS
            .iter()
            .fold(Options::scratch().with_tcp(), |options, (name, value)| options.setting(name, value));
        let mut cluster = Cluster::create_temporary(options).await.context("no private PostgreSQL")?;
        cluster.start().await?;
        let url = cluster.url("postgres");
        let target = Target::parse(&url)?;
        let (mut client, driver) = connect(&target).await?;
        catalog::install(&mut client).await.context("the catalog was not installed")?;
        tables::create(&client, BODY_BYTES).await.context("the tables were not made")?;
        let directory = tempfile::Builder::new().prefix("rowcast-bench-").tempdir()?;
        Ok(World { client, target, url, _driver: driver, cluster, directory })
    }

    /// Relays and references connect over TCP, or over the unix socket.
    pub(crate) fn connect_over_tcp(&mut self, tcp: bool) -> anyhow::Result<()> {
        self.url = match tcp {
            true => self.cluster.tcp_url("postgres").context("the server does not listen on TCP")?,
            false => self.cluster.url("postgres"),
        };
        Ok(())
    }

    /// One number.
    pub(crate) async fn number(&self, sql: &str) -> anyhow::Result<f64> {
        Ok(self.client.query_one(sql, &[]).await.with_context(|| sql.to_owned())?.try_get(0)?)
    }

    /// Where the write-ahead log ends.
    pub(crate) async fn end(&self) -> anyhow::Result<Lsn> {
        let row = self.client.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await?;
        Ok(row.try_get::<_, &str>(0)?.parse()?)
    }

    /// A transaction that every reader of the log meets behind all before it.
    pub(crate) async fn mark(&self) -> anyhow::Result<()> {
        let mark = "SELECT pg_logical_emit_message(true, 'rowcast_bench', 'end')::text";
        self.client.query_one(mark, &[]).await?;
        Ok(())
    }

    pub(crate) fn postmaster(&self) -> Option<u32> {
        self.cluster.pid()
    }
}
