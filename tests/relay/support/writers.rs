//! Applications that write at full speed, over several connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, NoTls};
use tokio_util::task::AbortOnDropHandle;

use super::dice::Dice;
use super::postgres::{TestPostgres, explain};

/// A table that is written: its name, and the columns that say whose its rows are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Written {
    pub(crate) table: &'static str,
    pub(crate) owners: &'static [Owner],
    /// Notes of some rows are so large that PostgreSQL keeps them elsewhere and leaves them out of the
    /// stream when they do not change.
    pub(crate) large: bool,
}

/// A column that names an owner.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Owner {
    pub(crate) column: &'static str,
    pub(crate) nullable: bool,
}

const USER: Owner = Owner { column: "user_id", nullable: false };
const MAYBE_USER: Owner = Owner { column: "user_id", nullable: true };

/// Identity by an index, and FULL.
pub(crate) const A: Written = Written { table: "a", owners: &[USER], large: false };
pub(crate) const B: Written = Written { table: "b", owners: &[MAYBE_USER], large: false };
pub(crate) const TABLES: &str = "
    CREATE TABLE a (id int PRIMARY KEY, user_id int NOT NULL, n int, note text);
    CREATE UNIQUE INDEX ON a (user_id, id);
    CREATE TABLE b (id int PRIMARY KEY, user_id int, n int, note text);
    SELECT rowcast.track('a'); SELECT rowcast.track('b');";

/// Rows of two users, of a user and a team, of everybody, and with large values.
pub(crate) const C: Written = Written {
    table: "c",
    owners: &[Owner { column: "sender", nullable: false }, Owner { column: "recipient", nullable: false }],
    large: false,
};
pub(crate) const D: Written =
    Written { table: "d", owners: &[MAYBE_USER, Owner { column: "team_id", nullable: true }], large: false };
pub(crate) const G: Written = Written { table: "g", owners: &[], large: false };
pub(crate) const T: Written = Written { table: "t", owners: &[USER], large: true };
pub(crate) const MORE_TABLES: &str = "
    CREATE TABLE c (id int PRIMARY KEY, sender int NOT NULL, recipient int NOT NULL, n int, note text);
    CREATE UNIQUE INDEX ON c (sender, recipient, id);
    CREATE TABLE d (id int PRIMARY KEY, user_id int, team_id int, n int, note text);
    CREATE TABLE g (id int PRIMARY KEY, n int, note text);
    CREATE TABLE t (id int PRIMARY KEY, user_id int NOT NULL, n int, note text);
    CREATE UNIQUE INDEX ON t (user_id, id);
    ALTER TABLE t ALTER note SET STORAGE EXTERNAL;
    SELECT rowcast.track('c', topics => ARRAY['user:{sender}:c', 'user:{recipient}:c']);
    SELECT rowcast.track('d', topics => ARRAY['user:{user_id}:d', 'team:{team_id}:d']);
    SELECT rowcast.track('g', topics => ARRAY['global:g']);
    SELECT rowcast.track('t');";

/// Ids are few, so that rows are inserted, moved and deleted again and again.
const IDS: u64 = 60;

/// Who owns rows: 1 to 3.
const OWNERS: u64 = 3;

/// Commits `transactions` on each of `connections` connections, and waits for all.
pub(crate) async fn write_all(
    pg: &TestPostgres,
    tables: &'static [Written],
    dice: &mut Dice,
    connections: usize,
    transactions: usize,
) {
    let mut writing = Vec::new();
    for _ in 0..connections {
        let (client, dice) = (pg.client().await, Dice(dice.next()));
        writing.push(tokio::spawn(write(client, tables, dice, transactions)));
    }
    for writer in writing {
        writer.await.unwrap();
    }
}

/// Commits on each of `connections` connections until told that it is over, and comes back whenever the
/// server goes away.
pub(crate) async fn write_until(
    url: &str,
    tables: &'static [Written],
    dice: &mut Dice,
    connections: usize,
    over: &Arc<AtomicBool>,
) -> Vec<AbortOnDropHandle<()>> {
    let writer = |_| {
        let (url, dice, over) = (url.to_owned(), Dice(dice.next()), Arc::clone(over));
        AbortOnDropHandle::new(tokio::spawn(write_on(url, tables, dice, over)))
    };
    (0..connections).map(writer).collect()
}

async fn write_on(url: String, tables: &'static [Written], mut dice: Dice, over: Arc<AtomicBool>) {
    const AGAIN: Duration = Duration::from_millis(20);
    while !over.load(Ordering::Relaxed) {
        let Ok((client, connection)) = tokio_postgres::connect(&url, NoTls).await else {
            tokio::time::sleep(AGAIN).await;
            continue;
        };
        let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
        while !over.load(Ordering::Relaxed) {
            let sql = transaction(tables, &mut dice);
            let Err(error) = client.batch_execute(&sql).await else { continue };
            let code = error.code().map_or("", SqlState::code);
            // Two writers met; or the server is going.
            if client.is_closed() || code.is_empty() || code.starts_with("57") {
                break;
            }
            let met = [SqlState::UNIQUE_VIOLATION, SqlState::T_R_DEADLOCK_DETECTED];
            assert!(error.code().is_some_and(|code| met.contains(code)), "{}\nin {sql}", explain(&error));
            if client.batch_execute("ROLLBACK").await.is_err() {
                break;
            }
        }
    }
}

async fn write(client: Client, tables: &'static [Written], mut dice: Dice, transactions: usize) {
    for _ in 0..transactions {
        let sql = transaction(tables, &mut dice);
        let Err(error) = client.batch_execute(&sql).await else { continue };
        // Two writers met; the transaction has no effect, which devices must not see either.
        let met = [SqlState::UNIQUE_VIOLATION, SqlState::T_R_DEADLOCK_DETECTED];
        assert!(error.code().is_some_and(|code| met.contains(code)), "{}\nin {sql}", explain(&error));
        client.batch_execute("ROLLBACK").await.unwrap();
    }
}

fn transaction(tables: &[Written], dice: &mut Dice) -> String {
    let statements: Vec<String> = (0..=dice.roll(4)).map(|_| statement(tables, dice)).collect();
    let body = statements.join(";");
    match dice.roll(8) {
        0 => format!("BEGIN; {body}; ROLLBACK"),
        1 => format!(
            "BEGIN; {}; SAVEPOINT s; {body}; ROLLBACK TO s; {}; COMMIT",
            statement(tables, dice),
            statement(tables, dice)
        ),
        _ => format!("BEGIN; {body}; COMMIT"),
    }
}

fn statement(tables: &[Written], dice: &mut Dice) -> String {
    let written = &tables[dice.roll(tables.len() as u64) as usize];
    let Written { table, owners, .. } = written;
    let (id, n) = (dice.roll(IDS), dice.roll(1000));
    let Some(owner) = owners.get(dice.roll(owners.len().max(1) as u64) as usize) else {
        return shared(table, id, n, dice);
    };
    let (column, user) = (owner.column, 1 + dice.roll(OWNERS));
    match dice.roll(100) {
        0 => format!("TRUNCATE {table}"),
        1..=40 => insert(written, id, n, dice),
        41..=60 => format!("UPDATE {table} SET n = {n} WHERE id = {id}"),
        61..=75 => format!("UPDATE {table} SET {column} = {user}, n = {n} WHERE id = {id}"),
        76..=82 => format!("UPDATE {table} SET id = {id} WHERE id = {}", dice.roll(IDS)),
        83..=87 => format!("UPDATE {table} SET n = n + 1 WHERE {column} = {user}"),
        88..=90 if owner.nullable => format!("UPDATE {table} SET {column} = NULL WHERE id = {id}"),
        _ => format!("DELETE FROM {table} WHERE id = {id}"),
    }
}

fn insert(written: &Written, id: u64, n: u64, dice: &mut Dice) -> String {
    let Written { table, owners, large } = written;
    let columns: String = owners.iter().map(|owner| format!("{}, ", owner.column)).collect();
    let values: String = owners.iter().map(|_| format!("{}, ", 1 + dice.roll(OWNERS))).collect();
    let note = if *large && dice.roll(2) == 0 {
        format!("(SELECT string_agg(md5('{n}' || i), '') FROM generate_series(1, 90) i)")
    } else {
        "'i'".to_owned()
    };
    format!(
        "INSERT INTO {table} (id, {columns}n, note) VALUES ({id}, {values}{n}, {note}) \
         ON CONFLICT (id) DO UPDATE SET n = excluded.n, note = 'u'"
    )
}

/// A table whose rows are nobody's own.
fn shared(table: &str, id: u64, n: u64, dice: &mut Dice) -> String {
    match dice.roll(100) {
        0 => format!("TRUNCATE {table}"),
        1..=50 => format!(
            "INSERT INTO {table} VALUES ({id}, {n}, 'i') ON CONFLICT (id) DO UPDATE SET n = excluded.n"
        ),
        51..=70 => format!("UPDATE {table} SET id = {id} WHERE id = {}", dice.roll(IDS)),
        _ => format!("DELETE FROM {table} WHERE id = {id}"),
    }
}
