//! The tables that are written to, in a schema of their own, and what stands in them.

use tokio_postgres::Client;

use super::service::Audience;

/// Texts to choose from: many enough that a compressor's window does not hold them all.
const BODIES: u64 = 1024;

/// Words as in a note that somebody writes: neither random bytes nor one letter over and over.
const WORDS: [&str; 64] = [
    "after", "again", "apple", "bench", "bread", "bring", "carry", "chair", "clean", "climb", "cloud",
    "count", "dance", "day", "deep", "dinner", "early", "easy", "eight", "evening", "field", "first", "five",
    "garden", "glass", "green", "half", "happy", "heavy", "hour", "kitchen", "lemon", "letter", "light",
    "market", "meal", "minute", "morning", "nine", "note", "orange", "order", "paper", "past", "plan",
    "press", "quick", "rain", "rest", "river", "room", "salt", "second", "seven", "short", "sleep", "squat",
    "stone", "table", "tired", "train", "water", "week", "yellow",
];

/// Takes out what an earlier run may have left, too.
const DROP: &str = "\
DO $$ BEGIN
  PERFORM rowcast.untrack(t::regclass) FROM unnest(ARRAY['rowcast_bench.bench', 'rowcast_bench.bench_all']) t
    WHERE to_regclass(t) IS NOT NULL
      AND to_regclass(t) IN (SELECT relid FROM rowcast.tables);
END $$;
DROP SCHEMA IF EXISTS rowcast_bench CASCADE";

const CREATE: &str = "\
CREATE SCHEMA rowcast_bench;
CREATE TABLE rowcast_bench.bench (id int8 PRIMARY KEY, user_id int8 NOT NULL, n int8 NOT NULL, body text NOT NULL);
CREATE TABLE rowcast_bench.bench_all (id int8 PRIMARY KEY, user_id int8 NOT NULL, n int8 NOT NULL, body text NOT NULL);
CREATE TABLE rowcast_bench.bodies (n int8 PRIMARY KEY, body text NOT NULL);
SELECT rowcast.track('rowcast_bench.bench', topics => ARRAY['user:{user_id}:bench']);
SELECT rowcast.track('rowcast_bench.bench_all', topics => ARRAY['global:bench_all'])";

/// Makes the tables anew and tracks them. `body_bytes` is the length of a row's text. Needs the catalog, and a
/// role that may create a schema.
pub async fn create(client: &Client, body_bytes: usize) -> Result<(), tokio_postgres::Error> {
    remove(client).await?;
    // What `track` remarks is for people who track.
    client.batch_execute("SET client_min_messages = warning").await?;
    client.batch_execute(CREATE).await?;
    let bodies: Vec<String> = (0..BODIES).map(|seed| body(seed, body_bytes)).collect();
    let fill =
        "INSERT INTO rowcast_bench.bodies SELECT n - 1, t FROM unnest($1::text[]) WITH ORDINALITY AS b(t, n)";
    client.execute(fill, &[&bodies]).await.map(|_| ())
}

/// Untracks and removes them.
pub async fn remove(client: &Client) -> Result<(), tokio_postgres::Error> {
    client.batch_execute(DROP).await
}

/// Makes and tracks more tables of the same form: `bench_2` to `bench_{tables}`.
pub async fn create_more(client: &Client, tables: u64) -> Result<(), tokio_postgres::Error> {
    for table in 2..=tables {
        client
            .batch_execute(&format!(
                "CREATE TABLE rowcast_bench.bench_{table} (LIKE rowcast_bench.bench INCLUDING INDEXES);
                 SELECT rowcast.track('rowcast_bench.bench_{table}', topics => ARRAY['user:{{user_id}}:bench_{table}'])"
            ))
            .await?;
    }
    Ok(())
}

/// Writes rows of `users` users in turn, `first` to `last` by number, in transactions of `each` rows, as fast as the
/// server can: for a backlog. Each transaction is of one table, of so many in turn.
pub async fn fill(
    client: &Client,
    users: u64,
    rows: std::ops::Range<u64>,
    each: u64,
    tables: u64,
) -> Result<(), tokio_postgres::Error> {
    // A procedure commits on the way, so that small transactions cost no round trips.
    client
        .batch_execute(&format!(
            "DO $$ BEGIN
               FOR batch IN {}..{} BY {each} LOOP
                 EXECUTE format('INSERT INTO rowcast_bench.%I
                   SELECT g, 1 + g %% {users}, 1 + g / {users}, b.body
                   FROM generate_series($1::int8, $2::int8) g
                   JOIN rowcast_bench.bodies b ON b.n = g %% {BODIES}',
                   'bench' || coalesce('_' || nullif(1 + batch / {each} % {tables}, 1), ''))
                   USING batch, least(batch + {each}, {}) - 1;
                 COMMIT;
               END LOOP;
             END $$",
            rows.start,
            rows.end.saturating_sub(1),
            rows.end,
        ))
        .await
}

/// The statement that writes one row, or some rows of one user: id, user, n, body, and the number of rows.
pub fn insert(audience: Audience, rows: u64) -> String {
    let table = match audience {
        Audience::Own => "rowcast_bench.bench",
        Audience::All => "rowcast_bench.bench_all",
    };
    match rows {
        1 => format!("INSERT INTO {table} VALUES ($1::int8, $2::int8, $3::int8, $4::text)"),
        rows => format!(
            "INSERT INTO {table} SELECT $1::int8 + g, $2::int8, $3::int8 + g, $4::text FROM generate_series(0, {rows} - 1) g"
        ),
    }
}

/// A text of so many bytes, always the same one of a seed.
pub fn body(seed: u64, bytes: usize) -> String {
    let mut text = String::with_capacity(bytes + 8);
    let mut state = seed.wrapping_add(1);
    while text.len() < bytes {
        // Knuth's MMIX generator: its high bits are good enough to choose words.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        text.push_str(WORDS[(state >> 58) as usize]);
        text.push(' ');
    }
    text.truncate(bytes);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_as_long_as_asked_for_and_differ() {
        assert_eq!(body(7, 200).len(), 200);
        assert_eq!(body(7, 200), body(7, 200));
        assert_ne!(body(7, 200), body(8, 200));
        assert_eq!(body(0, 0), "");
    }
}
