//! What the demo plays on: a private PostgreSQL with the fitness app's tables, and a relay on it.
//!
//! All of it is in directories of its own below /tmp and goes with the [`Stage`]. The relay connects as
//! `rowcast_relay`, with the rights that a DBA would give it and no more. Knows nothing of the story.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tempfile::TempDir;
use tokio::time::sleep;
use tokio_postgres::{Client, NoTls};
use tokio_util::task::AbortOnDropHandle;

use super::rest;
use super::wait::within;
use crate::app::{self, Running};
use crate::auth::{ExtraClaims, GrantPattern, Secret, mint};
use crate::config::{Config, Embedded};
use crate::embedded::{Cluster, Options, StopMode};
use crate::postgres::catalog;

const DATABASE: &str = "fitness";
const SCHEMA: &str = include_str!("../../examples/fitness.sql");
/// Making a slot waits for the open transactions of the whole cluster; here there are none.
const READY_TIMEOUT: Duration = Duration::from_secs(30);
const READY_POLL: Duration = Duration::from_millis(10);
/// A demo that is left running overnight still takes its tokens.
const TOKEN_TTL: Duration = Duration::from_secs(7 * 24 * 3600);

/// The tables as devices see them: name in topics, key, published columns, whose rows.
pub(super) struct Table {
    pub(super) name: &'static str,
    pub(super) key: &'static str,
    columns: &'static str,
    owner: Option<&'static str>,
}

pub(super) const TABLES: [Table; 5] = [
    Table { name: "exercise_sets", key: "id", columns: "*", owner: Some("user_id") },
    Table { name: "exercises", key: "id", columns: "*", owner: None },
    Table { name: "food_entries", key: "id", columns: "*", owner: Some("user_id") },
    Table {
        name: "profiles",
        key: "user_id",
        columns: "user_id, display_name, units",
        owner: Some("user_id"),
    },
    Table { name: "workout_sessions", key: "id", columns: "*", owner: Some("user_id") },
];

/// A running PostgreSQL with the app's tables, and what a relay on it needs.
pub(super) struct Stage {
    /// Where the relay listens, once it is started.
    address: SocketAddr,
    config: Config,
    database: Client,
    /// Drives `database`.
    _connection: AbortOnDropHandle<()>,
    cluster: Cluster,
    /// The relay's log.
    _data: TempDir,
    secret: Secret,
}

impl Stage {
    /// Starts the database. Given up on the way, it all goes again.
    pub(super) async fn set(config: Config) -> anyhow::Result<Stage> {
        let cluster = start_cluster().await?;
        let (database, connection) = prepare_database(&cluster).await?;
        let data = tempfile::Builder::new().prefix("rowcast-demo-").tempdir()?;
        let secret = Secret::new(hexadecimal(&rand::random::<[u8; 32]>()));
        let url = cluster.url(DATABASE).replacen("postgres@", "rowcast_relay@", 1);
        let config = own_config(config, data.path(), &secret, &url)?;
        let address = config.listen;
        Ok(Stage { address, config, database, _connection: connection, cluster, _data: data, secret })
    }

    /// Starts the relay, which is to be given back to [`Stage::strike`].
    pub(super) async fn start_relay(&mut self) -> anyhow::Result<Running> {
        let relay = app::start(self.config.clone()).await.context("the relay did not start")?;
        self.address = relay.address();
        Ok(relay)
    }

    pub(super) async fn wait_ready(&self) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            let asking = rest::get(self.address, "/ready");
            let answer = within("the relay to answer GET /ready", asking).await??;
            if answer.status == 200 {
                return Ok(());
            }
            if begun.elapsed() > READY_TIMEOUT {
                bail!("the relay was not ready after {READY_TIMEOUT:?}; it says: {}", answer.body);
            }
            sleep(READY_POLL).await;
        }
    }

    /// Ends the relay, then the database, and removes what they wrote.
    pub(super) async fn strike(self, relay: Running) -> anyhow::Result<()> {
        relay.shutdown().await;
        let Stage { database, _connection: connection, mut cluster, .. } = self;
        drop((database, connection));
        cluster.stop(StopMode::Fast).await.context("PostgreSQL did not stop")
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn home(&self) -> &Path {
        self.cluster.home()
    }

    /// For psql.
    pub(super) fn database_url(&self) -> String {
        self.cluster.url(DATABASE)
    }

    pub(super) async fn version(&self) -> anyhow::Result<String> {
        self.text("SELECT split_part(current_setting('server_version'), ' ', 1)").await
    }

    /// A token, as the app's own login would make it.
    pub(super) fn token(&self, user: &str) -> anyhow::Result<String> {
        mint(&self.secret, user, TOKEN_TTL, ExtraClaims::new()).context("a token was not made")
    }

    /// Runs SQL as the app does; several statements are one transaction. The moment of the commit's return.
    pub(super) async fn run(&self, sql: &str) -> anyhow::Result<Instant> {
        within("PostgreSQL to run a statement", self.database.batch_execute(sql))
            .await?
            .with_context(|| format!("PostgreSQL refused: {sql}"))?;
        Ok(Instant::now())
    }

    /// What Postgres itself prints for a row: `row_to_json` of the published columns.
    pub(super) async fn record(&self, table: &Table, key: i64) -> anyhow::Result<String> {
        let Table { name, key: column, columns, .. } = table;
        let row = format!("SELECT {columns} FROM public.{name} WHERE {column} = {key}");
        self.text(&format!("SELECT row_to_json(r)::text FROM ({row}) AS r")).await
    }

    /// All rows of a user's topics, with their tables and keys, in one snapshot: the truth for a device.
    pub(super) async fn rows_of(&self, user: &str) -> anyhow::Result<Vec<(&'static str, String, String)>> {
        let mut rows = Vec::new();
        for Table { name, key, columns, owner } in &TABLES {
            let whose =
                owner.map(|column| format!("WHERE {column}::text = $1")).unwrap_or("WHERE $1 <> ''".into());
            let sql = format!(
                "SELECT (SELECT row_to_json(k)::text FROM (SELECT r.{key}) AS k), row_to_json(r)::text \
                 FROM (SELECT {columns} FROM public.{name} {whose}) AS r"
            );
            let found = within("PostgreSQL to read a table", self.database.query(&sql, &[&user])).await??;
            for row in found {
                rows.push((*name, row.try_get(0)?, row.try_get(1)?));
            }
        }
        Ok(rows)
    }

    async fn text(&self, sql: &str) -> anyhow::Result<String> {
        Ok(within("PostgreSQL to answer", self.database.query_one(sql, &[])).await??.try_get(0)?)
    }
}

async fn start_cluster() -> anyhow::Result<Cluster> {
    let options = Options::scratch().setting("timezone", "UTC");
    let mut cluster = Cluster::create_temporary(options).await?;
    cluster.start().await?;
    Ok(cluster)
}

async fn prepare_database(cluster: &Cluster) -> anyhow::Result<(Client, AbortOnDropHandle<()>)> {
    let (maintenance, connection) = connect(&cluster.url("postgres")).await?;
    maintenance.batch_execute(&format!("CREATE DATABASE {DATABASE}")).await?;
    drop((maintenance, connection));
    let (mut database, connection) = connect(&cluster.url(DATABASE)).await?;
    catalog::install(&mut database).await.context("the catalog was not installed")?;
    database.batch_execute(SCHEMA).await.context("examples/fitness.sql failed")?;
    database.batch_execute("ALTER ROLE rowcast_relay LOGIN").await?;
    Ok((database, connection))
}

async fn connect(url: &str) -> anyhow::Result<(Client, AbortOnDropHandle<()>)> {
    let connecting = tokio_postgres::connect(url, NoTls);
    let (client, connection) = within("a connection to PostgreSQL", connecting).await??;
    // Its errors reach the client's own calls, too.
    let driver = tokio::spawn(async move { drop(connection.await) });
    Ok((client, AbortOnDropHandle::new(driver)))
}

/// What the user configured for a relay of their own must not reach this one, but for where it listens
/// and its limits.
fn own_config(mut config: Config, data: &Path, secret: &Secret, url: &str) -> anyhow::Result<Config> {
    config.database_url = Some(Secret::new(url));
    config.embedded = Embedded::Off;
    config.data_dir = data.to_owned();
    config.log_dir = None;
    config.slot = "rowcast".to_owned();
    config.jwt_secret = Some(secret.clone());
    config.jwt_issuer = Vec::new();
    config.jwt_audience = Vec::new();
    config.grants =
        ["user:{sub}:*", "global:*"].map(GrantPattern::parse).into_iter().collect::<Result<_, _>>()?;
    if TcpListener::bind(config.listen).is_err_and(|error| error.kind() == std::io::ErrorKind::AddrInUse) {
        config.listen.set_port(0);
    }
    Ok(config)
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
