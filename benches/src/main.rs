//! `make bench`: every figure of the benchmark, with its reference, in one run.
//!
//! * `world` is a private PostgreSQL, `relay` the release build on it, `nchan` and `recvlogical` what it is
//!   compared with, `http` a small client;
//! * `figures` measures, one file for each kind; `ingesting` and `fleets` are what several of them share;
//! * `outcome` is what was measured, `table` and `plot` show it.
//!
//! The load comes from `rowcast::bench`, in this process: its cost is not the relay's. Everything listens on
//! loopback, is bounded in time and number, and is gone in the end.

mod figures;
mod fleets;
mod http;
mod ingesting;
mod nchan;
mod outcome;
mod plot;
mod recvlogical;
mod relay;
mod table;
mod world;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;

use crate::outcome::Outcome;

/// Measures rowcast's figures against their references.
#[derive(Parser)]
#[command(name = "rowcast-benches")]
struct Arguments {
    /// Which figures, with commas between them
    #[arg(long, env = "FIGURES", default_value = "all", value_delimiter = ',')]
    figures: Vec<String>,
    /// Factor of all sizes: rows, devices, messages, time
    #[arg(long, env = "SCALE", default_value_t = 1.0)]
    scale: f64,
    /// Factor of the large logs besides (`sync` reads 5 million changes at 1, `start` 20 million)
    #[arg(long, env = "LOG_SCALE", default_value_t = 0.2)]
    log_scale: f64,
    /// How often each is measured; medians are shown
    #[arg(long, env = "RUNS", default_value_t = 3)]
    runs: usize,
    /// Where the results go
    #[arg(long, default_value = "benches/results")]
    results: PathBuf,
}

/// How large everything is.
#[derive(Debug, Clone, Copy)]
struct Size {
    scale: f64,
    log_scale: f64,
    runs: usize,
}

impl Size {
    /// A number at full size, scaled, and at least so much.
    fn of(&self, full: u64, least: u64) -> u64 {
        ((full as f64 * self.scale) as u64).max(least)
    }

    /// The same of a large log.
    fn of_log(&self, full: u64, least: u64) -> u64 {
        ((full as f64 * self.scale * self.log_scale) as u64).max(least)
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rowcast-benches: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    anyhow::ensure!(
        arguments.scale > 0.0 && arguments.log_scale > 0.0 && arguments.runs > 0,
        "sizes are positive"
    );
    let size = Size { scale: arguments.scale, log_scale: arguments.log_scale, runs: arguments.runs };
    rowcast::bench::fleet::allow_files().context("the limit of open files")?;
    let chosen = figures::choose(&arguments.figures)?;
    let mut outcome = Outcome::new(size);
    let measured = tokio::select! {
        measured = measure(&chosen, size, &mut outcome) => measured,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    // What was measured before something failed is shown, and kept.
    println!("\n{}", table::of(&outcome));
    std::fs::create_dir_all(&arguments.results)?;
    let json = serde_json::to_string_pretty(&outcome)?;
    std::fs::write(arguments.results.join("results.json"), json)?;
    plot::write(&outcome, &arguments.results)?;
    println!("written to {}", arguments.results.display());
    measured
}

async fn measure(chosen: &[figures::Figure], size: Size, outcome: &mut Outcome) -> anyhow::Result<()> {
    let mut failed = Vec::new();
    for figure in chosen {
        println!("# {}", figure.name());
        if let Err(error) = figure.measure(size, outcome).await {
            println!("{} failed: {error:#}", figure.name());
            outcome.note(format!("{} failed: {error:#}", figure.name()));
            failed.push(figure.name());
        }
    }
    anyhow::ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    Ok(())
}
