//! Devices that connect, and devices that rest: connects a second, and memory for each, against nchan.

use rowcast::bench::fleet::Fleet;
use rowcast::bench::service::{Audience, Service};

use crate::fleets::{self, resting, stage};
use crate::outcome::{Aim, Line, Outcome};
use crate::{Size, nchan};

const DEVICES: [u64; 3] = [5_000, 10_000, 18_000];
/// Devices that come and go first, so that what the first ones make is not counted as theirs.
const WARM_UP: usize = 50;

pub(super) async fn measure(size: Size, outcome: &mut Outcome) -> anyhow::Result<()> {
    let sizes = DEVICES.map(|devices| size.of(devices, devices / 50));
    let none = || sizes.map(|_| Vec::new());
    let (mut memory, mut connects, mut reference, mut reference_connects) = (none(), none(), none(), none());
    for _ in 0..size.runs {
        // A new process each time: the one before keeps what it had taken.
        let (world, relay) = stage().await?;
        let service = relay.service(Audience::Own);
        crowd(service, relay.pid, sizes, &mut memory, &mut connects).await?;
        relay.stop().await?;
        match nchan::start(world.directory.path()).await? {
            Some(nchan) => {
                crowd(nchan.service(), nchan.worker, sizes, &mut reference, &mut reference_connects).await?;
                nchan.stop().await?;
            }
            None => outcome.note(nchan::MISSING.to_owned()),
        }
    }
    for (devices, (ours, reference)) in sizes.iter().zip(memory.into_iter().zip(reference)) {
        let what = format!("memory of an idle device, {devices} of them");
        outcome
            .add(Line::new("devices", what, "KiB", ours).against("nchan", reference).aim(Aim::AtMost(4.0)));
    }
    for (devices, (ours, reference)) in sizes.iter().zip(connects.into_iter().zip(reference_connects)) {
        let what = format!("connected and subscribed, up to {devices}");
        outcome.add(
            Line::new("devices", what, "devices/s", ours).against("nchan", reference).aim(Aim::Ratio(0.5)),
        );
    }
    Ok(())
}

async fn crowd(
    service: Service,
    pid: u32,
    sizes: [u64; 3],
    memory: &mut [Vec<f64>; 3],
    connects: &mut [Vec<f64>; 3],
) -> anyhow::Result<()> {
    let (fleet, _) = fleets::joined(service.clone(), WARM_UP).await?;
    drop(fleet);
    let (mut fleet, base) = resting(Fleet::new(service)?, pid).await?;
    for (place, size) in sizes.into_iter().enumerate() {
        let more = usize::try_from(size)?.saturating_sub(fleet.len());
        let rate;
        (fleet, rate) = fleets::more(fleet, more).await?;
        let resident;
        (fleet, resident) = resting(fleet, pid).await?;
        connects[place].push(rate);
        memory[place].push((resident - base) / size as f64);
    }
    Ok(())
}
