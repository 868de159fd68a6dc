//! The oracle: whatever writers, devices and a DBA do, in the end every device's copy is what the
//! database holds for its topics, and no device ever saw a row that was not its own.
//!
//! `SEED=n` runs one seed again, `ROWCAST_ORACLE_SEEDS=n` that many fresh ones. A seed decides what each
//! writer and device does; how they meet is the machine's.

mod calls;
mod faults;
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
use faults::Fault;
use traveller::{Done, Traveller};
use weather::Weather;
use wish::Wish;

const WRITTEN: [Written; 6] = [A, B, C, D, G, T];
const CONNECTIONS: usize = 4;
/// Of each connection.
const TRANSACTIONS: usize = 300;
/// A DBA takes a column back, and gives it again.
const NARROW: &str = "SELECT rowcast.track('b', columns => ARRAY['id', 'user_id', 'n'])";
const WIDE: &str = "SELECT rowcast.track('b')";
const GRANTS: &str = "user:{sub}:*,team:{sub}:*,global:*";

#[tokio::test]
async fn seeds_that_are_always_tried() {
    for seed in 1..=3 {
        run(Dice(seed), seed).await;
    }
}

#[tokio::test]
async fn seeds_that_were_never_tried() {
    let count = std::env::var("ROWCAST_ORACLE_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let (faults, named) = Fault::asked();
    for _ in 0..count {
        let dice = Dice::seeded("oracle");
        let seed = dice.0;
        if !faults.is_empty() {
            faults::run::run(seed, &faults, &named).await;
            continue;
        }
        run(dice, seed).await;
    }
}

/// Everything breaks that can, one after the other.
#[tokio::test]
async fn a_seed_with_faults_that_is_always_tried() {
    faults::run::run(101, &Fault::named("all"), "all").await;
}

#[tokio::test]
async fn a_seed_with_faults_that_was_never_tried() {
    // Asked for by name, faults are the other test's.
    faults::run::run(Dice::seeded("oracle with faults").0, &Fault::named("all"), "all").await;
}

/// Devices of three users come, go, lag, resume and sync in every way while four connections write.
async fn run(mut dice: Dice, seed: u64) {
    println!("oracle: SEED={seed}");
    let (pg, relay) = scene_with(&format!("{TABLES}{MORE_TABLES}"), |setup| {
        // So that a device that lags is sent to the log.
        setup.env("ROWCAST_GRANTS", GRANTS).env("ROWCAST_OUTBOX_SIZE", "16KiB")
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
    println!("oracle: SEED={seed}: {done:?}");
}

/// Until the writers let it have its lock.
async fn track_again(pg: &TestPostgres, statement: &str) {
    let client = pg.client().await;
    while let Err(error) = client.batch_execute(statement).await {
        let busy = [SqlState::LOCK_NOT_AVAILABLE, SqlState::T_R_DEADLOCK_DETECTED];
        assert!(error.code().is_some_and(|code| busy.contains(code)), "{}", explain(&error));
    }
}
