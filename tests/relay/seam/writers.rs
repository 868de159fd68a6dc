//! Applications that write at full speed, over several connections.

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::support::dice::Dice;
use crate::support::postgres::{TestPostgres, explain};

/// Identity by an index, and FULL.
pub(super) const TABLES: &str = "
    CREATE TABLE a (id int PRIMARY KEY, user_id int NOT NULL, n int, note text);
    CREATE UNIQUE INDEX ON a (user_id, id);
    CREATE TABLE b (id int PRIMARY KEY, user_id int, n int, note text);
    SELECT rowcast.track('a'); SELECT rowcast.track('b');";

/// Ids are few, so that rows are inserted, moved and deleted again and again.
const IDS: u64 = 60;

/// Commits `transactions` on each of `connections` connections, and waits for all.
pub(super) async fn write_all(pg: &TestPostgres, dice: &mut Dice, connections: usize, transactions: usize) {
    let mut writing = Vec::new();
    for _ in 0..connections {
        let (client, dice) = (pg.client().await, Dice(dice.next()));
        writing.push(tokio::spawn(write(client, dice, transactions)));
    }
    for writer in writing {
        writer.await.unwrap();
    }
}

async fn write(client: Client, mut dice: Dice, transactions: usize) {
    for _ in 0..transactions {
        let sql = transaction(&mut dice);
        let Err(error) = client.batch_execute(&sql).await else { continue };
        // Two writers met; the transaction has no effect, which devices must not see either.
        let met = [SqlState::UNIQUE_VIOLATION, SqlState::T_R_DEADLOCK_DETECTED];
        assert!(error.code().is_some_and(|code| met.contains(code)), "{}\nin {sql}", explain(&error));
        client.batch_execute("ROLLBACK").await.unwrap();
    }
}

fn transaction(dice: &mut Dice) -> String {
    let statements: Vec<String> = (0..=dice.roll(4)).map(|_| statement(dice)).collect();
    let body = statements.join(";");
    match dice.roll(8) {
        0 => format!("BEGIN; {body}; ROLLBACK"),
        1 => format!(
            "BEGIN; {}; SAVEPOINT s; {body}; ROLLBACK TO s; {}; COMMIT",
            statement(dice),
            statement(dice)
        ),
        _ => format!("BEGIN; {body}; COMMIT"),
    }
}

fn statement(dice: &mut Dice) -> String {
    let table = if dice.roll(2) == 0 { "a" } else { "b" };
    let (id, user, n) = (dice.roll(IDS), 1 + dice.roll(3), dice.roll(1000));
    match dice.roll(100) {
        0 => format!("TRUNCATE {table}"),
        1..=40 => format!(
            "INSERT INTO {table} VALUES ({id}, {user}, {n}, 'i') ON CONFLICT (id) DO UPDATE SET n = excluded.n, note = 'u'"
        ),
        41..=60 => format!("UPDATE {table} SET n = {n} WHERE id = {id}"),
        61..=75 => format!("UPDATE {table} SET user_id = {user}, n = {n} WHERE id = {id}"),
        76..=82 => format!("UPDATE {table} SET id = {id} WHERE id = {}", dice.roll(IDS)),
        83..=87 => format!("UPDATE {table} SET n = n + 1 WHERE user_id = {user}"),
        88..=90 => format!("UPDATE b SET user_id = NULL WHERE id = {id}"),
        _ => format!("DELETE FROM {table} WHERE id = {id}"),
    }
}
