//! The command line: parse, call, exit code.
//!
//! 0 for success, 1 for a failure, 2 for a mistake in the command line or the configuration.

mod cli;

use std::process::ExitCode;

use clap::Parser;
use tikv_jemallocator::Jemalloc;

/// How it is set stands in `.cargo/config.toml`; `_RJEM_MALLOC_CONF` overrides it where the program runs.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// Readings of the log at once; more would only compete for the disk.
const BLOCKING_THREADS: usize = 64;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return cli::Failure::new(format!("the runtime does not start: {error}")).report(),
    };
    match runtime.block_on(cli::run(cli)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
