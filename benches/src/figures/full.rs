//! Full sync of a large table, against `COPY (SELECT row_to_json(t) …) TO STDOUT` piped to a file.

use std::fs::File;
use std::io::Write;
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, ensure};
use rowcast::bench::{processes, tables};
use tokio::process::Command;

use crate::Size;
use crate::fleets::stage;
use crate::outcome::{Aim, Line, Outcome};
use crate::relay::Relay;
use crate::world::World;

const ROWS: u64 = 1_000_000;

pub(super) async fn measure(size: Size, outcome: &mut Outcome) -> anyhow::Result<()> {
    let rows = size.of(ROWS, 5_000);
    let (world, relay) = stage().await?;
    // All of one user.
    tables::fill(&world.client, 1, 0..rows, 1_000, 1).await?;
    world
        .client
        .batch_execute("CREATE INDEX ON rowcast_bench.bench (user_id); ANALYZE rowcast_bench.bench")
        .await?;
    let end = world.end().await?;
    world.mark().await?;
    relay.wait_durable(end, crate::fleets::PATIENCE).await?;
    let (mut ours, mut reference, mut memory) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..size.runs {
        reference.push(rows as f64 / copied(&world, rows).await?);
        processes::forget_peak(relay.pid)?;
        let before = processes::status(relay.pid, "VmRSS").context("its memory")?;
        ours.push(rows as f64 / synced(&world, &relay, rows).await?);
        let peak = processes::status(relay.pid, "VmHWM").context("its memory")?;
        memory.push(peak.saturating_sub(before) as f64 / 1024.0);
    }
    let what = format!("full sync of {rows} rows as NDJSON");
    outcome.add(Line::new("full", what, "rows/s", ours).against("COPY", reference).aim(Aim::Ratio(0.8)));
    outcome.add(Line::new("full", "memory that it takes at its peak", "MiB", memory));
    relay.stop().await
}

async fn copied(world: &World, rows: u64) -> anyhow::Result<f64> {
    let file = world.directory.path().join("copy.out");
    let own = world.cluster.binaries().directory().join("psql");
    let begun = Instant::now();
    let status = Command::new(own)
        .args(["-X", "-q", "-d", &world.url, "-c"])
        .arg("COPY (SELECT row_to_json(t) FROM rowcast_bench.bench t WHERE user_id = 1) TO STDOUT")
        .stdin(Stdio::null())
        .stdout(File::create(&file)?)
        .status()
        .await
        .context("psql")?;
    let took = begun.elapsed().as_secs_f64();
    ensure!(status.success(), "psql: {status}");
    let lines = std::fs::read(&file)?.iter().filter(|byte| **byte == b'\n').count();
    ensure!(lines as u64 == rows, "COPY gave {lines} rows of {rows}");
    std::fs::remove_file(file)?;
    Ok(took)
}

async fn synced(world: &World, relay: &Relay, rows: u64) -> anyhow::Result<f64> {
    let path = world.directory.path().join("sync.out");
    let mut file = File::create(&path)?;
    let mut http = relay.http_as(1).await?;
    let begun = Instant::now();
    let url = "/api/realtime/sync?device_id=bench&topics=user:1:bench";
    http.send("GET", url, "Accept: application/x-ndjson\r\n", b"").await?;
    let mut failed = None;
    let status = http.answer_to(|bytes| failed = file.write_all(bytes).err().or(failed.take())).await?;
    let took = begun.elapsed().as_secs_f64();
    ensure!(status == 200 && failed.is_none(), "the full sync is answered with {status}: {failed:?}");
    let answer = std::fs::read(&path)?;
    let changes = memchr::memmem::find_iter(&answer, b"{\"type\":\"change\"").count();
    let ended = memchr::memmem::find(&answer, b"{\"type\":\"end\"").is_some();
    ensure!(changes as u64 == rows && ended, "the full sync gave {changes} rows of {rows}, ended: {ended}");
    std::fs::remove_file(path)?;
    Ok(took)
}
