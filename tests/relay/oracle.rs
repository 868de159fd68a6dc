//! The oracle: whatever writers, devices and a DBA do, at every quiet point each device's copy is what the
//! database holds for its topics, and no device ever saw a row that was not its own.
//!
//! `SEED=n` runs one seed again, `ROWCAST_ORACLE_SEEDS=n` that many fresh ones. A seed decides the schema and
//! what each writer, device and the DBA do; how they meet is the machine's. A seed that fails is tried again
//! with less of everything, and the least that failed too is printed.

mod arrival;
mod calls;
mod columns;
mod ddl;
mod faults;
mod line;
mod owners;
mod parts;
mod polls;
mod schema;
mod size;
mod snapshot;
mod socket;
mod statements;
mod stream;
mod tally;
mod tokens;
mod trail;
mod traveller;
mod weather;
mod wish;
mod writing;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use rowcast::embedded::Options;
use rowcast::postgres::catalog;
use tokio_util::task::AbortOnDropHandle;

use crate::support::dice::Dice;
use crate::support::postgres::TestPostgres;
use crate::support::relay::Relay;
use crate::support::wait::PATIENCE;
use ddl::Dba;
use faults::Fault;
use schema::Schema;
use size::Size;
use tally::Done;
use traveller::Traveller;
use weather::Weather;
use wish::Wish;
use writing::Writers;

/// How they meet is the machine's, and some things are rare: so many are tried until all was.
const MOST_SEEDS: u64 = 12;

/// Each a test of its own, so that they run beside each other.
macro_rules! seeds {
    ($($name:ident = $seed:expr;)*) => {
        /// How many are always tried.
        const SEEDS: usize = [$($seed),*].len();
        $(#[tokio::test]
        async fn $name() {
            let done = size::run_and_shrink($seed, Size::small()).await;
            all_was_tried(done).await;
        })*
    };
}

seeds! {
    seed_1_is_always_tried = 1;
    seed_2_is_always_tried = 2;
    seed_3_is_always_tried = 3;
    seed_4_is_always_tried = 4;
    seed_5_is_always_tried = 5;
    seed_6_is_always_tried = 6;
}

/// What the seeds that are always tried did together; the last of them sees that nothing was left out.
async fn all_was_tried(done: Done) {
    static TOGETHER: Mutex<(usize, Done)> = Mutex::new((0, Done::new()));
    let mut done = {
        let mut together = TOGETHER.lock().unwrap();
        together.0 += 1;
        together.1 += done;
        if together.0 < SEEDS {
            return;
        }
        together.1.clone()
    };
    for seed in SEEDS as u64 + 1..=MOST_SEEDS {
        if done.missing().is_empty() {
            break;
        }
        done += size::run_and_shrink(seed, Size::small()).await;
    }
    println!("oracle: all together: {done}");
    assert!(done.missing().is_empty(), "never tried: {:?}", done.missing());
}

#[tokio::test]
async fn seeds_that_were_never_tried() {
    let count = std::env::var("ROWCAST_ORACLE_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(2);
    let (faults, named) = Fault::asked();
    for _ in 0..count {
        let seed = Dice::seeded("oracle").0;
        if faults.is_empty() {
            size::run_and_shrink(seed, Size::asked()).await;
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

/// Devices of three users come, go, lag, resume and sync in every way while connections write and a DBA
/// alters tables. Now and then all pause, and each device has what the database has.
async fn run(seed: u64, size: Size) -> Done {
    let mut dice = Dice(seed);
    let schema = Arc::new(Schema::generate(&mut dice, size.tables));
    let pg = database(&schema).await;
    // So that a device that lags is sent to the log.
    let relay = Relay::on(&pg).env("ROWCAST_GRANTS", tokens::GRANTS).env("ROWCAST_OUTBOX_SIZE", "16KiB");
    let relay = relay.env("ROWCAST_FINGERPRINT_INTERVAL", "100ms").start().await;
    let mut travellers = Vec::new();
    for number in 0..size.devices {
        let user = schema.owners.users[number % schema.owners.users.len()];
        let (address, wish) = (relay.address(), Wish::of(&schema, user, &mut dice));
        let (device, dice) = (format!("device-{number}"), Dice(dice.next()));
        let mut traveller = Traveller::start(address, Weather::Calm, user, &device, wish, dice).await;
        traveller.copy.altered = size.alterations > 0;
        travellers.push(traveller);
    }
    let (writers, mut dba) = (Writers::new(&schema, &pg.url()), Dba::new(&schema, &pg.url()));
    for round in 1..=size.rounds {
        let over = Arc::new(AtomicBool::new(false));
        let travelling: Vec<_> = travellers.into_iter().map(|traveller| travel(traveller, &over)).collect();
        let (last, quiet) = (round == size.rounds, Arc::new(AtomicBool::new(false)));
        let (mut writing_dice, mut altering_dice) = (Dice(dice.next()), Dice(dice.next()));
        let (altered, over_before) = (dba.done(), writers.over());
        let writing = writers.round(&mut writing_dice, size.connections, &quiet, !last);
        let altering = async {
            let transactions = (size.connections * size.transactions) as u64;
            let apart = 1 + transactions / (size.alterations + 1);
            dba.work(&writers, size.alterations, apart, &mut altering_dice).await;
            writers.come_to(over_before + transactions).await;
            quiet.store(true, Ordering::Relaxed);
        };
        tokio::join!(writing, altering);
        if last {
            dba.tidy_up(&mut dice).await;
        }
        over.store(true, Ordering::Relaxed);
        travellers = Vec::new();
        for traveller in travelling {
            let mut traveller =
                traveller.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
            compare(&mut traveller, &pg, dba.done() > altered).await;
            travellers.push(traveller);
        }
    }
    writers.assert_effective();
    let mut done = Done::default();
    travellers.iter().for_each(|traveller| done += traveller.done());
    println!("oracle: SEED={seed}: {}, {} altered, {done}", writers.told(), dba.done());
    done
}

/// A device that has caught up has what the database has. Of tables that were altered the stream tells
/// nothing: until the relay has looked at the database, and told the device to sync, that may take a while.
async fn compare(traveller: &mut Traveller, pg: &TestPostgres, altered: bool) {
    let begun = Instant::now();
    loop {
        traveller.arrive(pg).await;
        let mut wrong = String::new();
        for (table, query) in traveller.wish.queries() {
            let differences = traveller.copy.differences(pg, &table, &query).await;
            if !differences.is_empty() {
                wrong.push_str(&format!("{table} by {query}:\n{differences}"));
            }
        }
        if wrong.is_empty() {
            return;
        }
        let waits = altered && begun.elapsed() < PATIENCE;
        assert!(waits, "{}'s {} with {:?}: {wrong}", traveller.user, traveller.name, traveller.wish.topics);
    }
}

async fn database(schema: &Schema) -> TestPostgres {
    let options = Options::scratch().setting("max_prepared_transactions", "10").setting("timezone", "UTC");
    let pg = TestPostgres::start_with(options).await;
    catalog::install(&mut pg.client().await).await.unwrap();
    pg.sql(&schema.sql()).await;
    schema.look(&pg.client().await).await.unwrap();
    pg
}

fn travel(mut traveller: Traveller, over: &Arc<AtomicBool>) -> AbortOnDropHandle<Traveller> {
    let over = Arc::clone(over);
    AbortOnDropHandle::new(tokio::spawn(async move {
        while !over.load(Ordering::Relaxed) {
            traveller.act().await;
        }
        traveller
    }))
}
