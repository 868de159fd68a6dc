//! How much of everything a run has, and the least with which a seed fails.

use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use futures_util::FutureExt;

use super::tally::Done;

/// Tries to make a failure smaller stop after this long.
const SHRINKING: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size {
    /// At most.
    pub(super) tables: u64,
    pub(super) devices: usize,
    pub(super) rounds: usize,
    pub(super) connections: usize,
    /// Of each connection, in a round.
    pub(super) transactions: usize,
    /// By the DBA, in a round.
    pub(super) alterations: u64,
}

impl Size {
    /// For a few seconds.
    pub(super) fn small() -> Self {
        Size { tables: 6, devices: 6, rounds: 3, connections: 4, transactions: 60, alterations: 2 }
    }

    /// As `ROWCAST_ORACLE_SIZE` says, in the order of the fields.
    pub(super) fn asked() -> Self {
        let Ok(text) = std::env::var("ROWCAST_ORACLE_SIZE") else { return Self::small() };
        let numbers: Vec<usize> = text.split(',').map(|part| part.parse().expect("six numbers")).collect();
        let [tables, devices, rounds, connections, transactions, alterations] = numbers[..] else {
            panic!("ROWCAST_ORACLE_SIZE is not six numbers: {text}")
        };
        let (tables, alterations) = (tables as u64, alterations as u64);
        Size { tables, devices, rounds, connections, transactions, alterations }
    }

    fn text(self) -> String {
        let Size { tables, devices, rounds, connections, transactions, alterations } = self;
        format!("{tables},{devices},{rounds},{connections},{transactions},{alterations}")
    }

    /// What a failure may need less of, each for itself.
    fn smaller(self) -> impl Iterator<Item = Size> {
        let halves = [
            Size { transactions: self.transactions / 2, ..self },
            Size { devices: self.devices / 2, ..self },
            Size { rounds: self.rounds / 2, ..self },
            Size { alterations: self.alterations / 2, ..self },
            Size { connections: self.connections / 2, ..self },
            Size { tables: self.tables / 2, ..self },
        ];
        let runs = |size: &Size| {
            size.transactions > 4
                && size.devices > 0
                && size.rounds > 0
                && size.connections > 0
                && size.tables > 0
        };
        halves.into_iter().filter(move |size| *size != self && runs(size))
    }
}

/// Runs a seed; where it fails, says how to run it again, and fails.
pub(super) async fn run_and_shrink(seed: u64, size: Size) -> Done {
    println!("oracle: SEED={seed}");
    if let Some(done) = passes(seed, size).await {
        return done;
    }
    println!("oracle: to run it again: {}", command(seed, size));
    let (mut least, begun) = (size, Instant::now());
    'smaller: while begun.elapsed() < SHRINKING {
        for size in least.smaller() {
            let left = SHRINKING.saturating_sub(begun.elapsed());
            // A run that takes too long is not what is looked for.
            if let Ok(None) = tokio::time::timeout(left, passes(seed, size)).await {
                least = size;
                continue 'smaller;
            }
        }
        break;
    }
    panic!("the oracle failed: {}", command(seed, least));
}

fn command(seed: u64, size: Size) -> String {
    format!("make oracle SEED={seed} SIZE={}", size.text())
}

/// What a run did, unless it fails; why, is printed by the panic itself.
async fn passes(seed: u64, size: Size) -> Option<Done> {
    AssertUnwindSafe(super::run(seed, size)).catch_unwind().await.ok()
}
