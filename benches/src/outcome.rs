//! What was measured.

use serde::Serialize;

use crate::Size;

/// Everything of one run of the benchmark.
#[derive(Debug, Serialize)]
pub(crate) struct Outcome {
    machine: Machine,
    scale: f64,
    log_scale: f64,
    runs: usize,
    pub(crate) lines: Vec<Line>,
    pub(crate) curves: Vec<Curve>,
    pub(crate) notes: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Machine {
    cpu: String,
    cores: usize,
    /// Of the last minute, before anything was measured: what else runs.
    load: String,
    version: &'static str,
}

/// One number, measured several times, with its reference and its aim.
#[derive(Debug, Serialize)]
pub(crate) struct Line {
    pub(crate) figure: &'static str,
    pub(crate) what: String,
    pub(crate) unit: &'static str,
    pub(crate) ours: Vec<f64>,
    pub(crate) reference: Option<Reference>,
    pub(crate) aim: Aim,
}

#[derive(Debug, Serialize)]
pub(crate) struct Reference {
    pub(crate) name: &'static str,
    pub(crate) values: Vec<f64>,
}

/// What is wanted of a line's median.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) enum Aim {
    /// At least so many times the reference.
    Ratio(f64),
    AtLeast(f64),
    AtMost(f64),
    /// Shown beside the others.
    Told,
}

/// How a number grows with a size.
#[derive(Debug, Serialize)]
pub(crate) struct Curve {
    pub(crate) what: String,
    pub(crate) grows: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) points: Vec<(f64, f64)>,
}

impl Outcome {
    pub(crate) fn new(size: Size) -> Self {
        let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cpu = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        let machine = Machine {
            cpu: cpu.map_or_else(|| "unknown".to_owned(), |(_, name)| name.trim().to_owned()),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            load: std::fs::read_to_string("/proc/loadavg").unwrap_or_default().trim().to_owned(),
            version: env!("CARGO_PKG_VERSION"),
        };
        let Size { scale, log_scale, runs } = size;
        Outcome { machine, scale, log_scale, runs, lines: Vec::new(), curves: Vec::new(), notes: Vec::new() }
    }

    /// Adds a line, and prints it as it comes.
    pub(crate) fn add(&mut self, line: Line) {
        println!("  {}", crate::table::short(&line));
        self.lines.push(line);
    }

    pub(crate) fn note(&mut self, note: String) {
        self.notes.push(note);
    }
}

impl Line {
    pub(crate) fn new(
        figure: &'static str,
        what: impl Into<String>,
        unit: &'static str,
        ours: Vec<f64>,
    ) -> Self {
        Line { figure, what: what.into(), unit, ours, reference: None, aim: Aim::Told }
    }

    pub(crate) fn against(mut self, name: &'static str, values: Vec<f64>) -> Self {
        self.reference = Some(Reference { name, values }).filter(|reference| !reference.values.is_empty());
        self
    }

    pub(crate) fn aim(mut self, aim: Aim) -> Self {
        self.aim = aim;
        self
    }

    /// Ours over the reference's.
    pub(crate) fn ratio(&self) -> Option<f64> {
        let reference = median(&self.reference.as_ref()?.values);
        (reference > 0.0).then(|| median(&self.ours) / reference)
    }

    /// Whether the aim is reached; `None` where there is none, or no reference.
    pub(crate) fn met(&self) -> Option<bool> {
        let ours = median(&self.ours);
        match self.aim {
            Aim::Ratio(least) => self.ratio().map(|ratio| ratio >= least),
            Aim::AtLeast(least) => Some(ours >= least),
            Aim::AtMost(most) => Some(ours <= most),
            Aim::Told => None,
        }
    }
}

pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => sorted[middle],
        _ => (sorted[middle - 1] + sorted[middle]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_aims() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0]), 2.5);
        let line =
            Line::new("f", "w", "u", vec![9.0, 11.0, 10.0]).against("r", vec![10.0]).aim(Aim::Ratio(1.0));
        assert_eq!((line.ratio(), line.met()), (Some(1.0), Some(true)));
        assert_eq!(Line::new("f", "w", "u", vec![1.0]).aim(Aim::Ratio(1.0)).met(), None, "no reference");
        assert_eq!(Line::new("f", "w", "u", vec![3.0]).aim(Aim::AtMost(2.0)).met(), Some(false));
    }
}
