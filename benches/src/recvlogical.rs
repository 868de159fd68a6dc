//! `pg_recvlogical`, PostgreSQL's own reader of a slot: the reference for everything behind it.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use rowcast::lsn::Lsn;
use tokio::process::{Child, Command};

use crate::world::World;

const PATIENCE: Duration = Duration::from_secs(1800);

/// Reads a slot up to a position into a file, and waits for the end.
pub(crate) async fn to_file(world: &World, slot: &str, end: Lsn, file: &Path) -> anyhow::Result<Reading> {
    let mut command = command(world, slot);
    command.arg("--endpos").arg(end.to_string()).arg("--file").arg(file);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    Ok(Reading(command.spawn().context("pg_recvlogical")?))
}

/// Reads a slot into a pipe, until it is dropped.
pub(crate) fn to_pipe(world: &World, slot: &str) -> anyhow::Result<Child> {
    let mut command = command(world, slot);
    command.args(["--file", "-"]).stdout(Stdio::piped()).stderr(Stdio::null());
    command.spawn().context("pg_recvlogical")
}

pub(crate) struct Reading(Child);

impl Reading {
    pub(crate) async fn finish(self) -> anyhow::Result<()> {
        let output = tokio::time::timeout(PATIENCE, self.0.wait_with_output()).await;
        let output = output.context("pg_recvlogical does not come to the end")??;
        ensure!(output.status.success(), "pg_recvlogical: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }
}

fn command(world: &World, slot: &str) -> Command {
    let mut command = Command::new(world.cluster.binaries().directory().join("pg_recvlogical"));
    command.arg("--dbname").arg(&world.url).args(["--start", "--no-loop", "--slot", slot]);
    for option in ["proto_version=1", "publication_names=rowcast", "messages=true"] {
        command.args(["--option", option]);
    }
    // It looks after its file only now and then, as the relay does.
    command.args(["--fsync-interval", "1", "--status-interval", "1"]).stdin(Stdio::null()).kill_on_drop(true);
    command
}
