//! Writers write, devices travel, and faults strike; at quiet points all copies equal the database.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::super::schema::Schema;
use super::super::traveller::{Done, Traveller};
use super::super::weather::Weather;
use super::super::wish::Wish;
use super::Fault;
use super::world::World;
use crate::support::dice::Dice;
use crate::support::writers::{A, B, C, D, G, MORE_TABLES, T, TABLES, Written, write_until};

const WRITTEN: [Written; 6] = [A, B, C, D, G, T];
const CONNECTIONS: usize = 4;
/// Quiet points.
const ROUNDS: u64 = 2;
const GRANTS: &str = "user:{sub}:*,team:{sub}:*,global:*,room:lobby:*";

/// Runs a seed: as many rounds, and up to three faults in each.
pub(crate) async fn run(seed: u64, faults: &[Fault], named: &str) {
    let again = format!("make oracle SEED={seed} FAULTS={named}");
    println!("oracle with faults: {again}");
    let mut dice = Dice(seed);
    let mut world = World::start(&format!("{TABLES}{MORE_TABLES}"), |setup| {
        setup.env("ROWCAST_GRANTS", GRANTS).env("ROWCAST_OUTBOX_SIZE", "16KiB")
    })
    .await;
    let schema = Arc::new(Schema::of_writers());
    schema.look(&world.pg.client().await).await.unwrap();
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
        let writing = write_until(&world.url(), &WRITTEN, &mut dice, CONNECTIONS, &quiet).await;
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
        for writer in writing {
            writer.await.unwrap_or_else(|error| panic!("{again}: {error}"));
        }
        // However often the tables were emptied: there is something to compare.
        let some = format!(
            "INSERT INTO a SELECT n, 1 + n % 3, n, '' FROM generate_series(100 * {round} + 1001, 100 * {round} + 1030) n"
        );
        world.pg.sql(&some).await;
        over.store(true, Ordering::Relaxed);
        for traveller in travelling {
            let mut traveller = traveller.await.unwrap_or_else(|error| panic!("{again}: {error}"));
            traveller.arrive(&world.pg).await;
            schema.look(&world.pg.client().await).await.unwrap();
            for (table, query) in traveller.wish.queries() {
                traveller.copy.assert_equals(&world.pg, &table, &query).await;
            }
            travellers.push(traveller);
        }
    }
    let mut done = Done::default();
    travellers.iter().for_each(|traveller| done += traveller.done());
    println!("oracle: SEED={seed}: {thrown:?}: {done:?}");
}

fn travel(mut traveller: Traveller, over: Arc<AtomicBool>) -> tokio::task::JoinHandle<Traveller> {
    tokio::spawn(async move {
        while !over.load(Ordering::Relaxed) {
            traveller.act().await;
        }
        traveller
    })
}
