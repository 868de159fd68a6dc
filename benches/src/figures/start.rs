//! Start with a large log: from the process's start to `/ready`, after an orderly end and after SIGKILL.

use crate::Size;
use crate::figures::sync::filled;
use crate::ingesting::size_on_disk;
use crate::outcome::{Aim, Line, Outcome};
use crate::relay;

const CHANGES: u64 = 20_000_000;
const USERS: u64 = 10_000;

pub(super) async fn measure(size: Size, outcome: &mut Outcome) -> anyhow::Result<()> {
    let changes = size.of_log(CHANGES, 20_000);
    let (world, mut relay, _) = filled(USERS, changes).await?;
    let data = world.directory.path().join("data");
    let (mut orderly, mut crashed) = (Vec::new(), Vec::new());
    for _ in 0..size.runs {
        for (times, crash) in [(&mut orderly, false), (&mut crashed, true)] {
            if crash {
                relay.kill9().await?
            } else {
                relay.stop().await?
            }
            // The server may hold the slot for a moment; that is not the log's time.
            let free =
                "SELECT count(*)::float8 FROM pg_replication_slots WHERE slot_name = 'rowcast' AND active";
            while world.number(free).await? > 0.0 {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
            relay = relay::ready(&world, &data).await?;
            times.push(relay.begun.elapsed().as_secs_f64());
        }
    }
    let bytes = size_on_disk(&data.join("log")) as f64;
    let records = "SELECT sum(octet_length(row_to_json(b)::text))::float8 FROM rowcast_bench.bench b";
    let of_record = bytes / world.number(records).await?;
    outcome.add(
        Line::new("disk", format!("log per byte of record, {changes} changes"), "bytes", vec![of_record])
            .aim(Aim::AtMost(0.6)),
    );
    let gib = bytes / f64::from(1 << 30);
    let what = format!("ready with a log of {changes} changes, {gib:.2} GiB");
    outcome.add(Line::new("start", what, "s", orderly).aim(Aim::AtMost(2.0)));
    outcome.add(Line::new("start", "the same, after SIGKILL", "s", crashed).aim(Aim::AtMost(2.0)));
    relay.stop().await
}
