//! Fleets of devices on a relay or on nchan: joining, resting, and getting messages.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use rowcast::bench::board::Board;
use rowcast::bench::fleet::{Fleet, Tally};
use rowcast::bench::processes;
use rowcast::bench::ready::caught_up;
use rowcast::bench::service::{Audience, Service};
use rowcast::bench::writers::{self, Load, Written};
use rowcast::bench::{Latency, tables};

use crate::nchan::Nchan;
use crate::relay::{self, Relay};
use crate::world::World;

pub(crate) const PATIENCE: Duration = Duration::from_secs(300);
/// Devices that connect at the same time.
pub(crate) const AT_ONCE: usize = 128;

/// A database with a relay that knows its tables.
pub(crate) async fn stage() -> anyhow::Result<(World, Relay)> {
    let world = World::new().await?;
    let relay = relay::ready(&world, &world.directory.path().join("data")).await?;
    caught_up(&world.client, &relay.service(Audience::Own)).await?;
    Ok((world, relay))
}

/// Runs what blocks on a thread for it.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(work).await.context("the devices' thread panicked")?
}

/// Devices that have joined, and how many a second did.
pub(crate) async fn joined(service: Service, devices: usize) -> anyhow::Result<(Fleet, f64)> {
    let fleet = Fleet::new(service)?;
    more(fleet, devices).await
}

/// So many more of them.
pub(crate) async fn more(mut fleet: Fleet, devices: usize) -> anyhow::Result<(Fleet, f64)> {
    blocking(move || {
        let took = fleet.connect(devices, AT_ONCE, PATIENCE)?;
        let rate = devices as f64 / took.as_secs_f64();
        Ok((fleet, rate))
    })
    .await
}

/// Resident memory of a process, when the fleet has rested for a moment.
pub(crate) async fn resting(mut fleet: Fleet, pid: u32) -> anyhow::Result<(Fleet, f64)> {
    blocking(move || {
        fleet.linger(None, Duration::from_secs(1))?;
        let usage = processes::process(pid).context("its memory")?;
        Ok((fleet, usage.memory_kib as f64))
    })
    .await
}

/// Who publishes to all devices.
pub(crate) enum Publishing<'a> {
    Relay(&'a World, &'a Relay),
    Nchan(&'a Nchan, usize),
}

/// What a fan-out was like.
pub(crate) struct FannedOut {
    /// Deliveries for each second of the server's CPU.
    pub(crate) per_cpu_second: f64,
    pub(crate) per_second: f64,
    pub(crate) message_bytes: usize,
}

/// Publishes so many bursts of so many messages, each when the one before has reached every device.
pub(crate) async fn fan_out(
    publishing: &Publishing<'_>,
    devices: usize,
    bursts: u64,
    each: u64,
) -> anyhow::Result<FannedOut> {
    let (service, pid) = match publishing {
        Publishing::Relay(_, relay) => (relay.service(Audience::All), relay.pid),
        Publishing::Nchan(nchan, _) => (nchan.service(), nchan.worker),
    };
    let (mut fleet, _) = joined(service, devices).await?;
    let mut writing = match publishing {
        Publishing::Relay(world, _) => {
            return relay_fan_out(world, fleet, pid, bursts, each).await;
        }
        Publishing::Nchan(nchan, bytes) => nchan.publisher(*bytes).await?,
    };
    let before = processes::process(pid).context("nchan's costs")?;
    let begun = std::time::Instant::now();
    let mut expected = 0;
    for _ in 0..bursts {
        writing.publish(each).await?;
        expected += each * devices as u64;
        fleet = received(fleet, expected).await?;
    }
    finished(fleet, pid, before, begun, expected).await
}

async fn relay_fan_out(
    world: &World,
    mut fleet: Fleet,
    pid: u32,
    bursts: u64,
    each: u64,
) -> anyhow::Result<FannedOut> {
    let written =
        world.number("SELECT coalesce(max(id), 0)::float8 FROM rowcast_bench.bench_all").await? as u64;
    fleet.expect_from(written + 1);
    let insert = world.client.prepare(&tables::insert(Audience::All, each)).await?;
    // A frame of about 300 bytes: what is not the record is most of it.
    let body = String::new();
    let before = processes::process(pid).context("the relay's costs")?;
    let begun = std::time::Instant::now();
    let mut expected = 0;
    for burst in 0..bursts {
        let n = i64::try_from(written + burst * each + 1)?;
        world.client.execute(&insert, &[&n, &0_i64, &n, &body]).await?;
        expected += each * fleet.len() as u64;
        fleet = received(fleet, expected).await?;
    }
    finished(fleet, pid, before, begun, expected).await
}

async fn received(mut fleet: Fleet, expected: u64) -> anyhow::Result<Fleet> {
    blocking(move || {
        let all = fleet.receive(expected, None, PATIENCE)?;
        if !all {
            let tally = fleet.take_tally();
            anyhow::bail!("{} of {expected} messages came: {:?}", tally.rows, tally.complaints);
        }
        Ok(fleet)
    })
    .await
}

async fn finished(
    mut fleet: Fleet,
    pid: u32,
    before: processes::Usage,
    begun: std::time::Instant,
    expected: u64,
) -> anyhow::Result<FannedOut> {
    let took = begun.elapsed().as_secs_f64();
    let after = processes::process(pid).context("its costs")?;
    let tally = fleet.take_tally();
    let cpu = after.cpu_since(&before).as_secs_f64();
    // The clock of CPU time has steps of 10 ms.
    Ok(FannedOut {
        per_cpu_second: expected as f64 / cpu.max(0.01),
        per_second: expected as f64 / took,
        message_bytes: usize::try_from(tally.bytes / tally.rows.max(1))?,
    })
}

/// What writes at a rate were like.
pub(crate) struct Driven {
    pub(crate) delivery: Latency,
    pub(crate) due: Latency,
    pub(crate) written_per_second: f64,
    pub(crate) relay_cpu_microseconds: f64,
    pub(crate) postgres_cpu_microseconds: f64,
}

/// Writes a load, receives everything, and insists that it is right.
pub(crate) async fn drive(
    world: &World,
    relay: &Relay,
    fleet: Fleet,
    load: Load,
) -> anyhow::Result<(Fleet, Driven)> {
    let (relay, postmaster) = (relay.pid, world.postmaster().context("PostgreSQL runs")?);
    blocking(move || {
        let mut fleet = fleet;
        fleet.expect_from(load.n_from);
        let costs = || Some((processes::process(relay)?, processes::server(postmaster)?));
        let before = costs().context("costs")?;
        let board = Arc::new(Board::new(load.first, load.rows()));
        let writing = writers::start(load.clone(), Arc::clone(&board))?;
        let patience = Duration::from_secs_f64(load.count as f64 / load.rate) + PATIENCE;
        fleet.receive(load.rows(), Some(&board), patience)?;
        let written = writing.finish()?;
        let after = costs().context("costs")?;
        fleet.check(|user| load.rows_of(user) + load.n_from - 1);
        let tally = fleet.take_tally();
        ensure!(
            tally.wrong == 0 && tally.rows == load.rows(),
            "{} rows of {}: {:?}",
            tally.rows,
            load.rows(),
            tally.complaints
        );
        let each = |cpu: Duration| cpu.as_secs_f64() * 1e6 / load.rows() as f64;
        let cpu = (each(after.0.cpu_since(&before.0)), each(after.1.cpu_since(&before.1)));
        let driven = driven(&load, &written, &tally, cpu);
        Ok((fleet, driven))
    })
    .await
}

fn driven(load: &Load, written: &Written, tally: &Tally, cpu: (f64, f64)) -> Driven {
    Driven {
        delivery: Latency::of(&tally.delivery),
        due: Latency::of(&tally.due),
        written_per_second: load.count as f64 / written.took.as_secs_f64(),
        relay_cpu_microseconds: cpu.0,
        postgres_cpu_microseconds: cpu.1,
    }
}
