//! A storm: all devices lose their connection, miss a row, and come back with their cursors at once, while others
//! stay and want their rows as they are committed.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use rowcast::bench::board::Board;
use rowcast::bench::fleet::Fleet;
use rowcast::bench::service::Audience;
use rowcast::bench::writers::{self, Load};
use rowcast::bench::{Latency, tables};

use crate::Size;
use crate::fleets::{PATIENCE, blocking, joined, stage};
use crate::outcome::{Aim, Line, Outcome};
use crate::world::{BODY_BYTES, World};

const DEVICES: u64 = 15_000;
/// As clients that back off with jitter come: not one after another, and not all in one packet.
const AT_ONCE: usize = 512;
/// Rows a second for those that stayed.
const LIVE_RATE: f64 = 100.0;
const LOOK: Duration = Duration::from_millis(20);
/// Rows for those that stayed bear numbers from here on.
const LIVE_FIRST: u64 = 1_000_000_000;

pub(super) async fn measure(size: Size, outcome: &mut Outcome) -> anyhow::Result<()> {
    let devices = size.of(DEVICES, 200);
    let (mut drained, mut live) = (Vec::new(), Vec::new());
    for _ in 0..size.runs {
        let (took, latency) = storm(devices).await?;
        drained.push(took);
        live.push(latency.p99);
    }
    let what = format!("{devices} devices come back and have what they missed");
    outcome.add(Line::new("storm", what, "s", drained).aim(Aim::AtMost(15.0)));
    outcome.add(Line::new("storm", "commit → device meanwhile, p99", "ms", live).aim(Aim::AtMost(250.0)));
    Ok(())
}

async fn storm(devices: u64) -> anyhow::Result<(f64, Latency)> {
    let (world, relay) = stage().await?;
    let (mut fleet, _) = {
        let mut fleet = Fleet::new(relay.service(Audience::Own))?;
        fleet.remember_cursors();
        crate::fleets::more(fleet, usize::try_from(devices)?).await?
    };
    let (stayed, _) = joined(relay.service(Audience::All), 1).await?;
    // One row for each while they are here, one while they are not.
    tables::fill(&world.client, devices, 0..devices, 1_000, 1).await?;
    fleet = blocking(move || {
        ensure!(
            fleet.receive(devices, None, PATIENCE)?,
            "rows are missing: {:?}",
            fleet.take_tally().complaints
        );
        fleet.take_tally();
        fleet.disconnect();
        Ok(fleet)
    })
    .await?;
    tables::fill(&world.client, devices, devices..2 * devices, 1_000, 1).await?;
    let load = live_load(&world);
    let board = Arc::new(Board::new(load.first, load.rows()));
    let watching = tokio::spawn(watch(load, Arc::clone(&board), stayed));
    let took = blocking(move || {
        let took = fleet.reconnect(AT_ONCE, PATIENCE)?;
        fleet.receive(devices, None, PATIENCE)?;
        fleet.check(|_| 2);
        let tally = fleet.take_tally();
        ensure!(tally.wrong == 0, "not what they missed: {:?}", tally.complaints);
        Ok(took)
    })
    .await;
    board.stop();
    let took = took?;
    let latency = watching.await.context("the watcher panicked")??;
    relay.stop().await?;
    Ok((took.as_secs_f64(), latency))
}

fn live_load(world: &World) -> Load {
    Load {
        database: world.target.clone(),
        audience: Audience::All,
        users: 1,
        connections: 1,
        rate: LIVE_RATE,
        // It is stopped when the storm is over.
        count: (LIVE_RATE * PATIENCE.as_secs_f64()) as u64,
        rows_each: 1,
        first: LIVE_FIRST,
        n_from: 1,
        body_bytes: BODY_BYTES,
    }
    .ordered()
}

/// What one that stayed sees.
async fn watch(load: Load, board: Arc<Board>, mut fleet: Fleet) -> anyhow::Result<Latency> {
    blocking(move || {
        let writing = writers::start(load.clone(), Arc::clone(&board))?;
        while !board.is_stopped() {
            fleet.linger(Some(&board), LOOK)?;
        }
        let written = writing.finish()?;
        fleet.receive(written.count, Some(&board), PATIENCE)?;
        fleet.check(|_| written.count);
        let tally = fleet.take_tally();
        ensure!(tally.wrong == 0, "one that stayed: {:?}", tally.complaints);
        Ok(Latency::of(&tally.delivery))
    })
    .await
}
