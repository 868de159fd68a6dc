//! Growth: the cost of a change at one, four and sixteen times of everything that there may be many of.

use rowcast::bench::service::Audience;

use crate::Size;
use crate::figures::sync;
use crate::fleets::{self, Publishing, fan_out, resting, stage};
use crate::ingesting::Backlog;
use crate::outcome::{Curve, Outcome};

const FACTORS: [u64; 3] = [1, 4, 16];
const EACH: u64 = 250;

pub(super) async fn measure(size: Size, outcome: &mut Outcome) -> anyhow::Result<()> {
    let rows = size.of(100_000, 1_000);
    let users = size.of(2_500, 10);
    let by_users =
        ingested(|factor| (users * factor, Form { rows, users: users * factor, tables: 1 })).await?;
    outcome.curves.push(curve("CPU of a row ingested", "users", "µs", by_users));
    let by_tables = ingested(|tables| (tables, Form { rows, users, tables })).await?;
    outcome.curves.push(curve("CPU of a row ingested", "tables", "µs", by_tables));
    let backlog = size.of(31_250, 1_000);
    let by_rows =
        ingested(|factor| (backlog * factor, Form { rows: backlog * factor, users: 1_000, tables: 1 }))
            .await?;
    outcome.curves.push(curve("CPU of a row ingested", "rows", "µs", by_rows));
    let (fanned, idle) = devices(size).await?;
    outcome.curves.push(curve("CPU of a delivery to all", "devices", "µs", fanned));
    outcome.curves.push(curve("memory of an idle device", "devices", "KiB", idle));
    outcome.curves.push(curve(
        "time of a sync of 1,000 changes",
        "changes in the log",
        "ms",
        syncs(size).await?,
    ));
    Ok(())
}

fn curve(what: &str, grows: &'static str, unit: &'static str, points: Vec<(f64, f64)>) -> Curve {
    println!("  {what} by {grows}: {points:?} {unit}");
    Curve { what: what.to_owned(), grows, unit, points }
}

/// A backlog's form.
struct Form {
    rows: u64,
    users: u64,
    tables: u64,
}

/// CPU by what grows, which `of` gives for each factor, with the backlog that is read.
async fn ingested(of: impl Fn(u64) -> (u64, Form)) -> anyhow::Result<Vec<(f64, f64)>> {
    let mut points = Vec::new();
    for factor in FACTORS {
        let (grown, Form { rows, users, tables }) = of(factor);
        let backlog = Backlog::write(rows, EACH, users, tables).await?;
        points.push((grown as f64, backlog.by_relay().await?.cpu_microseconds_per_row));
    }
    Ok(points)
}

async fn devices(size: Size) -> anyhow::Result<(Vec<(f64, f64)>, Vec<(f64, f64)>)> {
    let (mut fanned, mut idle) = (Vec::new(), Vec::new());
    let deliveries = size.of(100_000, 5_000);
    for factor in FACTORS {
        let devices = usize::try_from(size.of(1_000, 20) * factor)?;
        let (world, relay) = stage().await?;
        let (fleet, _) = fleets::joined(relay.service(Audience::Own), 20).await?;
        let (fleet, base) = resting(fleet, relay.pid).await?;
        let (fleet, _) = fleets::more(fleet, devices).await?;
        let (fleet, resident) = resting(fleet, relay.pid).await?;
        idle.push((devices as f64, (resident - base) / devices as f64));
        drop(fleet);
        let messages = (deliveries / devices as u64).max(5);
        let out = fan_out(&Publishing::Relay(&world, &relay), devices, messages, 1).await?;
        fanned.push((devices as f64, 1e6 / out.per_cpu_second));
        relay.stop().await?;
    }
    Ok((fanned, idle))
}

async fn syncs(size: Size) -> anyhow::Result<Vec<(f64, f64)>> {
    let mut points = Vec::new();
    for factor in FACTORS {
        let users = (size.of_log(312_500, 2_000) / 1_000).max(2) * factor;
        let (world, relay, cursor) = sync::filled(users, users * 1_000).await?;
        let (latency, _) = sync::run(&relay, users, &cursor, 1).await?;
        points.push(((users * 1_000) as f64, latency.p50));
        relay.stop().await?;
        drop(world);
    }
    Ok(points)
}
