//! Fan-out: one audience with many devices, against nchan, by the server's CPU.

use crate::fleets::{Publishing, fan_out, stage};
use crate::outcome::{Aim, Line, Outcome};
use crate::{Size, nchan};

const DELIVERIES: u64 = 500_000;
const DEVICES: [u64; 2] = [1_000, 10_000];
const BURST: u64 = 10;
/// What a message is without any of ours to go by.
const MESSAGE_BYTES: usize = 300;

pub(super) async fn measure(size: Size, outcome: &mut Outcome) -> anyhow::Result<()> {
    let (world, relay) = stage().await?;
    let nchan = nchan::start(world.directory.path()).await?;
    if nchan.is_none() {
        outcome.note(nchan::MISSING.to_owned());
    }
    let mut message_bytes = MESSAGE_BYTES;
    for devices in DEVICES {
        let devices = usize::try_from(size.of(devices, 50))?;
        let messages = size.of(DELIVERIES, 5_000) / devices as u64;
        for (each, how, aim) in [(1, "singly", 1.0), (BURST, "in bursts of 10", 1.5)] {
            let (mut ours, mut reference, mut wall, mut reference_wall) = (vec![], vec![], vec![], vec![]);
            let bursts = (messages / each).max(5);
            for _ in 0..size.runs {
                let fanned = fan_out(&Publishing::Relay(&world, &relay), devices, bursts, each).await?;
                ours.push(fanned.per_cpu_second);
                wall.push(fanned.per_second);
                message_bytes = fanned.message_bytes;
                if let Some(nchan) = &nchan {
                    let publishing = Publishing::Nchan(nchan, message_bytes);
                    let fanned = fan_out(&publishing, devices, bursts, each).await?;
                    reference.push(fanned.per_cpu_second);
                    reference_wall.push(fanned.per_second);
                }
            }
            let what = format!("{} messages of {message_bytes} B to {devices}, {how}", bursts * each);
            let unit = "deliveries/s of CPU";
            outcome
                .add(Line::new("fanout", &what, unit, ours).against("nchan", reference).aim(Aim::Ratio(aim)));
            outcome.add(
                Line::new("fanout", format!("the same, by the clock ({how})"), "deliveries/s", wall)
                    .against("nchan", reference_wall),
            );
        }
    }
    if let Some(nchan) = nchan {
        nchan.stop().await?;
    }
    relay.stop().await
}
