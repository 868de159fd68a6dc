//! Ingest: a backlog from the write-ahead log to the durable log, against `pg_recvlogical` into a file. And how
//! large the log is then.

use crate::Size;
use crate::ingesting::Backlog;
use crate::outcome::{Aim, Line, Outcome};

const USERS: u64 = 10_000;

pub(super) async fn measure(size: Size, outcome: &mut Outcome) -> anyhow::Result<()> {
    for (rows, each) in [(size.of(500_000, 1_000), 250), (size.of(200_000, 1_000), 1)] {
        let mut backlog = Backlog::write(rows, each, USERS, 1).await?;
        let records = "SELECT sum(octet_length(row_to_json(b)::text))::float8 FROM rowcast_bench.bench b";
        let records = backlog.world.number(records).await?;
        for (tcp, transport) in [(false, "unix socket"), (true, "TCP")] {
            backlog.world.connect_over_tcp(tcp)?;
            let form = format!("{each} a transaction, {transport}");
            let what = format!("{rows} rows of {:.0} B, {form}", records / rows as f64);
            read(&backlog, size.runs, records, &what, &form, outcome).await?;
        }
    }
    Ok(())
}

async fn read(
    backlog: &Backlog,
    runs: usize,
    records: f64,
    what: &str,
    form: &str,
    outcome: &mut Outcome,
) -> anyhow::Result<()> {
    let (mut ours, mut reference) = (Vec::new(), Vec::new());
    let (mut cpu, mut peak, mut disk) = (Vec::new(), Vec::new(), Vec::new());
    for run in 0..runs {
        // In turn, and each as often first.
        if run % 2 == 0 {
            reference.push(backlog.by_reference().await?);
        }
        let ingested = backlog.by_relay().await?;
        if run % 2 == 1 {
            reference.push(backlog.by_reference().await?);
        }
        ours.push(ingested.rows_per_second);
        cpu.push(ingested.cpu_microseconds_per_row);
        peak.push(ingested.peak_mib);
        disk.push(ingested.log_bytes as f64 / records);
    }
    outcome.add(
        Line::new("ingest", what, "rows/s", ours).against("pg_recvlogical", reference).aim(Aim::Ratio(0.9)),
    );
    outcome.add(Line::new("ingest", format!("CPU, {form}"), "µs/row", cpu));
    outcome.add(Line::new("ingest", format!("peak memory, {form}"), "MiB", peak));
    outcome.add(Line::new("disk", format!("log per byte of record, {form}"), "bytes", disk));
    Ok(())
}
