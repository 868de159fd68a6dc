//! The private PostgreSQL of `serve --embedded`: started, with a database and the catalog in it.

use std::path::Path;

use anyhow::Context;

use crate::embedded::{Cluster, Options, StopMode};
use crate::postgres::{self, Target, catalog};

/// The database that is made for the application.
const DATABASE: &str = "app";

#[derive(Debug)]
pub(super) struct EmbeddedDatabase {
    cluster: Cluster,
}

impl EmbeddedDatabase {
    pub(super) async fn start(directory: &Path) -> anyhow::Result<Self> {
        tracing::info!(directory = %directory.display(), "starting the private PostgreSQL");
        let mut cluster = Cluster::open_or_create(directory, Options::durable()).await?;
        cluster.start().await?;
        let database = EmbeddedDatabase { cluster };
        database.prepare().await.context("the private PostgreSQL cannot be prepared")?;
        Ok(database)
    }

    pub(super) fn url(&self) -> String {
        self.cluster.url(DATABASE)
    }

    pub(super) async fn stop(&mut self) {
        if let Err(error) = self.cluster.stop(StopMode::Fast).await {
            tracing::error!(%error, "the private PostgreSQL did not stop in order; it recovers at the next start");
        }
    }

    async fn prepare(&self) -> anyhow::Result<()> {
        let (client, _driver) = postgres::connect(&Target::parse(&self.cluster.url("postgres"))?).await?;
        let exists =
            client.query_opt("SELECT FROM pg_catalog.pg_database WHERE datname = $1", &[&DATABASE]).await?;
        if exists.is_none() {
            client.batch_execute(&format!("CREATE DATABASE {DATABASE}")).await?;
        }
        let (mut client, _driver) = postgres::connect(&Target::parse(&self.url())?).await?;
        catalog::install(&mut client).await?;
        Ok(())
    }
}
