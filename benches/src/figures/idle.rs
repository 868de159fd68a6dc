//! Commit → device while nothing else happens, against bare `pg_recvlogical` into a pipe.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use hdrhistogram::Histogram;
use memchr::memmem;
use rowcast::bench::board::Board;
use rowcast::bench::fleet::Fleet;
use rowcast::bench::service::Audience;
use rowcast::bench::writers::{self, Load};
use rowcast::bench::{Latency, histogram};
use tokio::io::AsyncReadExt;

use crate::fleets::{self, drive, stage};
use crate::outcome::{Aim, Line, Outcome};
use crate::world::{BODY_BYTES, World};
use crate::{Size, recvlogical};

/// Slow enough that everything sleeps in between.
const RATE: f64 = 50.0;
const SLOT: &str = "bench_pipe";
/// In an Insert message of pgoutput: a new tuple of four columns, of which the first (`id`) is a text.
const NEW_ROW: &[u8] = b"N\x00\x04t";
const PATIENCE: Duration = Duration::from_secs(30);

pub(super) async fn measure(size: Size, outcome: &mut Outcome) -> anyhow::Result<()> {
    let (world, relay) = stage().await?;
    world
        .client
        .execute("SELECT pg_create_logical_replication_slot($1, 'pgoutput')", &[&SLOT])
        .await
        .context("the reference's slot")?;
    let count = size.of(1_000, 100);
    let (mut fleet, _) = fleets::joined(relay.service(Audience::Own), 1).await?;
    let (mut ours, mut reference) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    let mut first = 1;
    for _ in 0..size.runs {
        let writes = load(&world, first, count);
        first += writes.rows();
        let driven;
        (fleet, driven) = drive(&world, &relay, fleet, writes).await?;
        ours[0].push(driven.delivery.p50);
        ours[1].push(driven.delivery.p99);
        let bare = bare(&world, load(&world, first, count)).await?;
        first += count;
        // The device got the reference's rows too, and is not asked about them.
        fleet = skip(fleet, count).await?;
        reference[0].push(bare.p50);
        reference[1].push(bare.p99);
    }
    let [p50, p99] = ours;
    let [bare_p50, bare_p99] = reference;
    let what = format!("commit → device, one writer, {RATE} rows/s");
    outcome.add(
        Line::new("idle", format!("{what}, p50"), "ms", p50)
            .against("pg_recvlogical", bare_p50)
            .aim(Aim::AtMost(0.3)),
    );
    outcome.add(
        Line::new("idle", format!("{what}, p99"), "ms", p99)
            .against("pg_recvlogical", bare_p99)
            .aim(Aim::AtMost(2.0)),
    );
    relay.stop().await
}

fn load(world: &World, first: u64, count: u64) -> Load {
    Load {
        database: world.target.clone(),
        audience: Audience::Own,
        users: 1,
        connections: 1,
        rate: RATE,
        count,
        rows_each: 1,
        first,
        n_from: first,
        body_bytes: BODY_BYTES,
    }
    .ordered()
}

async fn skip(mut fleet: Fleet, count: u64) -> anyhow::Result<Fleet> {
    fleets::blocking(move || {
        ensure!(
            fleet.receive(count, None, PATIENCE)?,
            "rows are missing: {:?}",
            fleet.take_tally().complaints
        );
        fleet.take_tally();
        Ok(fleet)
    })
    .await
}

/// The same writes, as `pg_recvlogical` prints them.
async fn bare(world: &World, load: Load) -> anyhow::Result<Latency> {
    // What was written meanwhile is not for this run.
    world.client.execute("SELECT pg_replication_slot_advance($1, pg_current_wal_lsn())", &[&SLOT]).await?;
    let mut reader = recvlogical::to_pipe(world, SLOT)?;
    let mut pipe = reader.stdout.take().context("a pipe")?;
    let streams =
        "SELECT count(*)::float8 FROM pg_stat_replication WHERE application_name = 'pg_recvlogical'";
    let begun = Instant::now();
    while world.number(streams).await? < 1.0 {
        ensure!(begun.elapsed() < PATIENCE, "pg_recvlogical does not stream");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let board = Arc::new(Board::new(load.first, load.rows()));
    let writing = writers::start(load.clone(), Arc::clone(&board))?;
    let mut arrivals: Vec<(u64, Instant)> = Vec::new();
    let mut buffer = Vec::new();
    let patience = Duration::from_secs_f64(load.count as f64 / load.rate) + PATIENCE;
    while arrivals.len() < usize::try_from(load.rows())? {
        let left = patience.checked_sub(begun.elapsed()).context("rows are missing")?;
        let read =
            tokio::time::timeout(left, pipe.read_buf(&mut buffer)).await.context("rows are missing")??;
        let arrived = Instant::now();
        ensure!(read > 0, "pg_recvlogical ended");
        let mut used = 0;
        while let Some((id, end)) = row(&buffer[used..]) {
            used += end;
            if id >= load.first {
                arrivals.push((id, arrived));
            }
        }
        buffer.drain(..used);
    }
    writing.finish()?;
    reader.kill().await?;
    let mut latencies: Histogram<u64> = histogram();
    for (id, arrived) in arrivals {
        latencies.saturating_record(board.since_return(id, arrived).context("a commit that did not return")?);
    }
    Ok(Latency::of(&latencies))
}

/// The next row's `id`, and where it ends.
fn row(bytes: &[u8]) -> Option<(u64, usize)> {
    let at = memmem::find(bytes, NEW_ROW)? + NEW_ROW.len();
    let length = usize::try_from(u32::from_be_bytes(*bytes.get(at..)?.first_chunk::<4>()?)).ok()?;
    let id = std::str::from_utf8(bytes.get(at + 4..at + 4 + length)?).ok()?.parse().ok()?;
    Some((id, at + 4 + length))
}
