//! Commit → device while many write to many.

use rowcast::bench::service::Audience;
use rowcast::bench::writers::Load;

use crate::Size;
use crate::fleets::{self, drive, stage};
use crate::outcome::{Aim, Line, Outcome};
use crate::world::BODY_BYTES;

const DEVICES: u64 = 10_000;
const RATES: [u64; 3] = [1_000, 5_000, 10_000];
const SECONDS: f64 = 10.0;
const CONNECTIONS: usize = 16;

pub(super) async fn measure(size: Size, outcome: &mut Outcome) -> anyhow::Result<()> {
    let devices = size.of(DEVICES, 100);
    let (world, relay) = stage().await?;
    let (mut fleet, _) = fleets::joined(relay.service(Audience::Own), usize::try_from(devices)?).await?;
    let (mut first, mut n_from) = (1, 1);
    for rate in RATES {
        let seconds = (SECONDS * size.scale).max(1.0);
        let (mut p50, mut p99, mut due, mut reached) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (mut cpu, mut postgres) = (Vec::new(), Vec::new());
        for _ in 0..size.runs {
            let mut load = Load {
                database: world.target.clone(),
                audience: Audience::Own,
                users: devices,
                connections: CONNECTIONS,
                rate: rate as f64,
                count: 0,
                rows_each: 1,
                first,
                n_from,
                body_bytes: BODY_BYTES,
            }
            .ordered();
            // Whole turns, so that every user's next row has the same number.
            let turns = (rate as f64 * seconds / load.users as f64).ceil() as u64;
            load.count = turns * load.users;
            first += load.rows();
            n_from += turns;
            let driven;
            (fleet, driven) = drive(&world, &relay, fleet, load).await?;
            p50.push(driven.delivery.p50);
            p99.push(driven.delivery.p99);
            due.push(driven.due.p99);
            reached.push(driven.written_per_second);
            cpu.push(driven.relay_cpu_microseconds);
            postgres.push(driven.postgres_cpu_microseconds);
        }
        let what = format!("{rate} writes/s to {devices} devices");
        let (median, tail) = (Aim::AtMost(5.0), Aim::AtMost(50.0));
        outcome.add(Line::new("rates", format!("{what}, p50"), "ms", p50).aim(median));
        outcome.add(Line::new("rates", format!("{what}, p99"), "ms", p99).aim(tail));
        outcome.add(Line::new("rates", format!("{what}, p99 from when it was due"), "ms", due));
        outcome.add(Line::new("rates", format!("{what}, reached"), "writes/s", reached));
        outcome.add(Line::new("rates", format!("{what}, CPU of the relay"), "µs/write", cpu));
        outcome.add(Line::new("rates", format!("{what}, CPU of PostgreSQL"), "µs/write", postgres));
    }
    relay.stop().await
}
