//! Writers write, devices travel, and faults strike; at quiet points all copies equal the database.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::super::schema::Schema;
use super::super::tally::Done;
use super::super::tokens;
use super::super::traveller::Traveller;
use super::super::weather::Weather;
use super::super::wish::Wish;
use super::super::writing::Writers;
use super::Fault;
use super::world::World;
use crate::support::dice::Dice;

const TABLES: u64 = 4;
const CONNECTIONS: usize = 4;
/// Quiet points.
const ROUNDS: u64 = 2;

/// Runs a seed: as many rounds, and up to three faults in each.
pub(crate) async fn run(seed: u64, faults: &[Fault], named: &str) {
    let again = format!("make oracle SEED={seed} FAULTS={named}");
    println!("oracle with faults: {again}");
    let mut dice = Dice(seed);
    let schema = Arc::new(Schema::generate(&mut dice, TABLES));
    let mut world = World::start(&schema.sql(), &schema.owners.users, |setup| {
        setup.env("ROWCAST_GRANTS", tokens::GRANTS).env("ROWCAST_OUTBOX_SIZE", "16KiB")
    })
    .await;
    schema.look(&world.pg.client().await).await.unwrap();
    let writers = Writers::new(&schema, &world.url());
    let mut travellers = Vec::new();
    for user in schema.owners.users {
        for device in ["a", "b"] {
            let (wish, dice) = (Wish::of(&schema, user, &mut dice), Dice(dice.next()));
            let address = world.address();
            let mut traveller = Traveller::start(address, Weather::Rough, user, device, wish, dice).await;
            traveller.copy.altered = true;
            travellers.push(traveller);
        }
    }
    let mut thrown = Vec::new();
    for round in 0..ROUNDS {
        let (quiet, over) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let writing = write(&writers, Dice(dice.next()), &quiet);
        let travelling: Vec<_> = travellers.drain(..).map(|one| travel(one, Arc::clone(&over))).collect();
        for _ in 0..=dice.roll(3) {
            let fault = faults[dice.roll(faults.len() as u64) as usize];
            let begun = Instant::now();
            println!("oracle: round {round}: {fault:?}");
            world.suffer(fault, &mut dice).await;
            println!("oracle: round {round}: {fault:?} took {:?}", begun.elapsed());
            thrown.push(fault);
        }
        quiet.store(true, Ordering::Relaxed);
        writing.await.unwrap_or_else(|error| panic!("{again}: {error}"));
        over.store(true, Ordering::Relaxed);
        schema.look(&world.pg.client().await).await.unwrap();
        for traveller in travelling {
            let mut traveller = traveller.await.unwrap_or_else(|error| panic!("{again}: {error}"));
            traveller.arrive(&world.pg).await;
            for (table, query) in traveller.wish.queries() {
                let differences = traveller.copy.differences(&world.pg, &table, &query).await;
                assert!(
                    differences.is_empty(),
                    "{again}: round {round}, {}'s {} with {:?}, {table} by {query}:\n{differences}\n{}",
                    traveller.user,
                    traveller.name,
                    traveller.wish.topics,
                    traveller.done()
                );
            }
            travellers.push(traveller);
        }
    }
    let mut done = Done::default();
    travellers.iter().for_each(|traveller| done += traveller.done());
    println!("oracle: SEED={seed}: {thrown:?}: {}, {done}", writers.told());
}

/// Nothing stays open over a quiet point: a slot that is made there would wait for it.
fn write(writers: &Arc<Writers>, mut dice: Dice, quiet: &Arc<AtomicBool>) -> tokio::task::JoinHandle<()> {
    let (writers, quiet) = (Arc::clone(writers), Arc::clone(quiet));
    tokio::spawn(async move { writers.round(&mut dice, CONNECTIONS, &quiet, false).await })
}

fn travel(mut traveller: Traveller, over: Arc<AtomicBool>) -> tokio::task::JoinHandle<Traveller> {
    tokio::spawn(async move {
        while !over.load(Ordering::Relaxed) {
            traveller.act().await;
        }
        traveller
    })
}
