//! The oracle: whatever writers, devices and a DBA do, in the end every device's copy is what the
//! database holds for its topics, and no device ever saw a row that was not its own.
//!
//! `SEED=n` runs one seed again, `ROWCAST_ORACLE_SEEDS=n` that many fresh ones. A seed decides the schema and
//! what each writer and device does; how they meet is the machine's.

mod arrival;
mod calls;
mod columns;
mod faults;
mod line;
mod owners;
mod parts;
mod polls;
mod schema;
mod snapshot;
mod socket;
mod statements;
mod stream;
mod tally;
mod tokens;
mod traveller;
mod weather;
mod wish;
mod writing;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rowcast::embedded::Options;
use rowcast::postgres::catalog;

use crate::support::dice::Dice;
use crate::support::postgres::TestPostgres;
use crate::support::relay::Relay;
use faults::Fault;
use schema::Schema;
use tally::Done;
use traveller::Traveller;
use weather::Weather;
use wish::Wish;
use writing::Writers;

/// Always tried.
const SEEDS: u64 = 3;
/// How they meet is the machine's, and some things are rare: so many are tried until all was.
const MOST_SEEDS: u64 = 9;
const TABLES: u64 = 6;
const ROUNDS: usize = 3;
const CONNECTIONS: usize = 4;
/// Of each connection, in a round.
const TRANSACTIONS: usize = 100;

#[tokio::test]
async fn seeds_that_are_always_tried() {
    let mut done = Done::default();
    for seed in 1..=MOST_SEEDS {
        done += run(seed).await;
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
    let (faults, named) = Fault::asked();
    for _ in 0..count {
        let seed = Dice::seeded("oracle").0;
        if faults.is_empty() {
            run(seed).await;
        } else {
            faults::run::run(seed, &faults, &named).await;
        }
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

/// Devices of three users come, go, lag, resume and sync in every way while connections write. Now and
/// then the writers pause, and each device has what the database has.
async fn run(seed: u64) -> Done {
    println!("oracle: SEED={seed}");
    let mut dice = Dice(seed);
    let schema = Arc::new(Schema::generate(&mut dice, TABLES));
    let pg = database(&schema).await;
    // So that a device that lags is sent to the log.
    let relay = Relay::on(&pg).env("ROWCAST_GRANTS", tokens::GRANTS).env("ROWCAST_OUTBOX_SIZE", "16KiB");
    let relay = relay.env("ROWCAST_FINGERPRINT_INTERVAL", "100ms").start().await;
    let mut travellers = Vec::new();
    for user in schema.owners.users {
        for device in ["a", "b"] {
            let wish = Wish::of(&schema, user, &mut dice);
            let dice = Dice(dice.next());
            let traveller = Traveller::start(relay.address(), Weather::Calm, user, device, wish, dice);
            travellers.push(traveller.await);
        }
    }
    let writers = Writers::new(&schema, &pg.url());
    for round in 1..=ROUNDS {
        let over = Arc::new(AtomicBool::new(false));
        let travelling: Vec<_> = travellers.into_iter().map(|traveller| travel(traveller, &over)).collect();
        writers.round(&mut dice, CONNECTIONS, TRANSACTIONS, round < ROUNDS).await;
        over.store(true, Ordering::Relaxed);
        travellers = Vec::new();
        for traveller in travelling {
            let traveller = traveller.await;
            travellers.push(traveller.unwrap_or_else(|error| panic!("SEED={seed}: {error}")));
        }
        schema.look(&pg.client().await).await.unwrap();
        for traveller in &mut travellers {
            traveller.arrive(&pg).await;
            for (table, query) in traveller.wish.queries() {
                let differences = traveller.copy.differences(&pg, &table, &query).await;
                assert!(
                    differences.is_empty(),
                    "round {round}, {}'s {} with {:?}, {table} by {query}:\n{differences}\n{}",
                    traveller.user,
                    traveller.name,
                    traveller.wish.topics,
                    traveller.done()
                );
            }
        }
    }
    writers.assert_effective();
    let mut done = Done::default();
    travellers.iter().for_each(|traveller| done += traveller.done());
    println!("oracle: SEED={seed}: {}, {done}", writers.told());
    done
}

async fn database(schema: &Schema) -> TestPostgres {
    let options = Options::scratch().setting("max_prepared_transactions", "10").setting("timezone", "UTC");
    let pg = TestPostgres::start_with(options).await;
    catalog::install(&mut pg.client().await).await.unwrap();
    pg.sql(&schema.sql()).await;
    schema.look(&pg.client().await).await.unwrap();
    pg
}

fn travel(mut traveller: Traveller, over: &Arc<AtomicBool>) -> tokio::task::JoinHandle<Traveller> {
    let over = Arc::clone(over);
    tokio::spawn(async move {
        while !over.load(Ordering::Relaxed) {
            traveller.act().await;
        }
        traveller
    })
}
