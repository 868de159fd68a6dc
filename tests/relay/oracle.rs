//! The oracle: whatever writers, devices and a DBA do, in the end every device's copy is what the
//! database holds for its topics, and no device ever saw a row that was not its own.
//!
//! `SEED=n` runs one seed again, `ROWCAST_ORACLE_SEEDS=n` that many fresh ones. A seed decides what each
//! writer and device does; how they meet is the machine's.

mod calls;
mod parts;
mod polls;
mod snapshot;
mod socket;
mod stream;
mod tally;
mod tokens;
mod traveller;
mod weather;
mod wish;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio_postgres::error::SqlState;

use crate::support::dice::Dice;
use crate::support::postgres::{TestPostgres, explain};
use crate::support::scene::scene_with;
use crate::support::writers::{A, B, C, D, G, MORE_TABLES, T, TABLES, Written, write_all};
use tally::Done;
use traveller::Traveller;
use weather::Weather;
use wish::Wish;

const WRITTEN: [Written; 6] = [A, B, C, D, G, T];
/// Always tried.
const SEEDS: u64 = 3;
/// How they meet is the machine's, and some things are rare: so many are tried until all was.
const MOST_SEEDS: u64 = 9;
const CONNECTIONS: usize = 4;
/// Of each connection.
const TRANSACTIONS: usize = 300;
/// A DBA takes a column back, and gives it again.
const NARROW: &str = "SELECT rowcast.track('b', columns => ARRAY['id', 'user_id', 'n'])";
const WIDE: &str = "SELECT rowcast.track('b')";

#[tokio::test]
async fn seeds_that_are_always_tried() {
    let mut done = Done::default();
    for seed in 1..=MOST_SEEDS {
        done += run(Dice(seed), seed).await;
        if seed >= SEEDS && done.missing().is_empty() {
            break;
        }
    }
    println!("oracle: all together: {done}");
    assert!(done.missing().is_empty(), "never tried: {:?}", done.missing());
}

#[tokio::test]
async fn seeds_that_were_never_tried() {
    let count = std::env::var("ROWCAST_ORACLE_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    for _ in 0..count {
        let dice = Dice::seeded("oracle");
        let seed = dice.0;
        run(dice, seed).await;
    }
}

/// Devices of three users come, go, lag, resume and sync in every way while four connections write.
async fn run(mut dice: Dice, seed: u64) -> Done {
    println!("oracle: SEED={seed}");
    let (pg, relay) = scene_with(&format!("{TABLES}{MORE_TABLES}"), |setup| {
        // So that a device that lags is sent to the log.
        setup.env("ROWCAST_GRANTS", tokens::GRANTS).env("ROWCAST_OUTBOX_SIZE", "16KiB")
    })
    .await;
    let (address, over) = (relay.address(), Arc::new(AtomicBool::new(false)));
    let mut travellers = Vec::new();
    for user in ["1", "2", "3"] {
        for device in ["a", "b"] {
            let wish = Wish::of(user, &mut dice);
            let dice = Dice(dice.next());
            travellers.push(Traveller::start(address, Weather::Calm, user, device, wish, dice).await);
        }
    }
    let travelling: Vec<_> = travellers
        .into_iter()
        .map(|mut traveller| {
            let over = Arc::clone(&over);
            tokio::spawn(async move {
                while !over.load(Ordering::Relaxed) {
                    traveller.act().await;
                }
                traveller
            })
        })
        .collect();
    for columns in [NARROW, WIDE] {
        let writing = write_all(&pg, &WRITTEN, &mut dice, CONNECTIONS, TRANSACTIONS / 2);
        tokio::join!(writing, track_again(&pg, columns));
    }
    // However often the tables were emptied: there is something to compare.
    pg.sql("INSERT INTO a SELECT n, 1 + n % 3, n, '' FROM generate_series(1001, 1030) n").await;
    over.store(true, Ordering::Relaxed);
    let mut done = Done::default();
    for traveller in travelling {
        let mut traveller = traveller.await.unwrap_or_else(|error| panic!("SEED={seed}: {error}"));
        traveller.arrive(&pg).await;
        for (table, query) in traveller.wish.queries() {
            traveller.copy.assert_equals(&pg, &table, &query).await;
        }
        done += traveller.done();
    }
    println!("oracle: SEED={seed}: {done}");
    done
}

/// Until the writers let it have its lock.
async fn track_again(pg: &TestPostgres, statement: &str) {
    let client = pg.client().await;
    while let Err(error) = client.batch_execute(statement).await {
        let busy = [SqlState::LOCK_NOT_AVAILABLE, SqlState::T_R_DEADLOCK_DETECTED];
        assert!(error.code().is_some_and(|code| busy.contains(code)), "{}", explain(&error));
    }
}
