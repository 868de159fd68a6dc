//! What a run showed, as a table and as JSON.

use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::fleet::Tally;
use super::processes::{Costs, Usage};
use super::run::Plan;
use super::writers::{Load, Written};

/// The result of one run.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub devices: usize,
    /// Seconds in which all devices were connected and subscribed.
    pub joining_seconds: f64,
    pub transactions: u64,
    pub rows: u64,
    /// What the writers reached.
    pub transactions_per_second: f64,
    pub deliveries: u64,
    pub deliveries_per_second: f64,
    /// Mean length of a message with a row.
    pub message_bytes: f64,
    /// From a commit's return to the device.
    pub delivery_ms: Latency,
    /// From when a write was due to the device.
    pub due_ms: Latency,
    /// How long commits took to return.
    pub commit_ms: Latency,
    /// By how much writes began too late.
    pub late_ms: Latency,
    pub relay: Option<Share>,
    pub postgres: Option<Share>,
    pub generator: Option<Share>,
    /// Things that were not as they should; the first are told.
    pub wrong: u64,
    pub complaints: Vec<String>,
}

/// Percentiles in milliseconds.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Latency {
    pub p50: f64,
    pub p95: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

/// What one party took.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Share {
    /// CPU while rows were written and delivered.
    pub cpu_seconds: f64,
    pub cpu_microseconds_per_delivery: f64,
    pub memory_mib: f64,
    /// What the joining of the devices added, for each of them.
    pub kib_per_device: f64,
}

impl Latency {
    /// Of a histogram of nanoseconds.
    pub fn of(histogram: &Histogram<u64>) -> Self {
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e6;
        Latency {
            p50: at(0.5),
            p95: at(0.95),
            p99: at(0.99),
            p999: at(0.999),
            max: histogram.max() as f64 / 1e6,
        }
    }
}

impl Report {
    /// `costs`: before the devices joined, when they had, and in the end.
    pub(super) fn new(
        plan: &Plan,
        load: &Load,
        joining: Duration,
        took: Duration,
        written: &Written,
        tally: &Tally,
        costs: [Costs; 3],
    ) -> Self {
        let share = |of: fn(&Costs) -> Option<Usage>| {
            let [before, idle, after] = costs.each_ref().map(of);
            Share::new(before?, idle?, after?, tally.rows, plan.devices)
        };
        Report {
            devices: plan.devices,
            joining_seconds: joining.as_secs_f64(),
            transactions: load.count,
            rows: load.rows(),
            transactions_per_second: load.count as f64 / written.took.as_secs_f64(),
            deliveries: tally.rows,
            deliveries_per_second: tally.rows as f64 / took.as_secs_f64(),
            message_bytes: tally.bytes as f64 / tally.rows.max(1) as f64,
            delivery_ms: Latency::of(&tally.delivery),
            due_ms: Latency::of(&tally.due),
            commit_ms: Latency::of(&written.commit),
            late_ms: Latency::of(&written.late),
            relay: share(|costs| costs.relay),
            postgres: share(|costs| costs.postgres),
            generator: share(|costs| costs.generator),
            wrong: tally.wrong,
            complaints: tally.complaints.clone(),
        }
    }

    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default()
    }
}

impl Share {
    fn new(before: Usage, idle: Usage, after: Usage, deliveries: u64, devices: usize) -> Option<Self> {
        let cpu = after.cpu_since(&idle).as_secs_f64();
        Some(Share {
            cpu_seconds: cpu,
            cpu_microseconds_per_delivery: cpu * 1e6 / deliveries.max(1) as f64,
            memory_mib: after.memory_kib as f64 / 1024.0,
            kib_per_device: idle.memory_kib.saturating_sub(before.memory_kib) as f64 / devices.max(1) as f64,
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let connects = self.devices as f64 / self.joining_seconds;
        writeln!(
            f,
            "{} devices joined in {:.2} s, {connects:.0} a second",
            self.devices, self.joining_seconds
        )?;
        writeln!(
            f,
            "{} rows in {} transactions, {:.0} a second",
            self.rows, self.transactions, self.transactions_per_second
        )?;
        writeln!(
            f,
            "{} deliveries of {:.0} bytes, {:.0} a second\n",
            self.deliveries, self.message_bytes, self.deliveries_per_second
        )?;
        writeln!(
            f,
            "{:34} {:>9} {:>9} {:>9} {:>9} {:>9}",
            "milliseconds", "p50", "p95", "p99", "p99.9", "max"
        )?;
        for (name, latency) in [
            ("commit's return → device", self.delivery_ms),
            ("time of the write → device", self.due_ms),
            ("commit", self.commit_ms),
            ("writes begun too late by", self.late_ms),
        ] {
            let Latency { p50, p95, p99, p999, max } = latency;
            writeln!(f, "{name:34} {p50:>9.3} {p95:>9.3} {p99:>9.3} {p999:>9.3} {max:>9.3}")?;
        }
        writeln!(f, "\n{:34} {:>9} {:>9} {:>9} {:>9}", "", "CPU s", "µs each", "MiB", "KiB/dev.")?;
        for (name, share) in
            [("relay", self.relay), ("PostgreSQL", self.postgres), ("this generator", self.generator)]
        {
            match share {
                None => writeln!(f, "{name:34} not on this machine, or not to be seen")?,
                Some(share) => writeln!(
                    f,
                    "{name:34} {:>9.2} {:>9.2} {:>9.1} {:>9.2}",
                    share.cpu_seconds,
                    share.cpu_microseconds_per_delivery,
                    share.memory_mib,
                    share.kib_per_device
                )?,
            }
        }
        match self.wrong {
            0 => write!(f, "\nEvery device got exactly what it should."),
            wrong => {
                write!(f, "\nWRONG: {wrong} times a device did not get what it should:")?;
                self.complaints.iter().try_for_each(|complaint| write!(f, "\n  {complaint}"))
            }
        }
    }
}
