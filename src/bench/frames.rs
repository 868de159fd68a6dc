//! What a message says, as far as the benchmark has to know, read without a JSON tree.
//!
//! The rows are of the tables in [`super::tables`], whose first three columns are numbers: `row_to_json`
//! prints them in their order and without spaces.

use memchr::memmem;

/// One message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told<'a> {
    Row(Row),
    Subscribed {
        cursor: Option<&'a str>,
    },
    CaughtUp,
    /// What needs no answer and says nothing about rows.
    Other,
    /// A message that means that the device has not got what it should, by its type.
    Bad(&'a str),
}

/// A row of the benchmark's tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Row {
    /// The user that the topic names; none for a topic of all.
    pub(super) topic: Option<u64>,
    /// `id`: the number of the write.
    pub(super) id: u64,
    /// `user_id`: whose it is.
    pub(super) user: u64,
    /// `n`: the how many-th of this user.
    pub(super) n: u64,
}

const HEAD: &[u8] = b"{\"type\":\"";
const TOPIC_OF_USER: &[u8] = b"\"topic\":\"user:";
const RECORD: &[u8] = b"\"new_record\":{\"id\":";
const USER: &[u8] = b",\"user_id\":";
const N: &[u8] = b",\"n\":";
const CURSOR: &[u8] = b"\"cursor\":\"";

pub(super) fn read(message: &[u8]) -> Told<'_> {
    let kind = message.strip_prefix(HEAD).and_then(|rest| text(rest)).unwrap_or("no message");
    match kind {
        "database_change" => row(message).map_or(Told::Bad("unreadable"), Told::Row),
        "subscribed" => Told::Subscribed { cursor: cursor(message) },
        "caught_up" => Told::CaughtUp,
        "connection_established" | "heartbeat" | "pong" | "replay_begin" | "granted" => Told::Other,
        bad => Told::Bad(bad),
    }
}

/// The cursor that a message carries.
pub(super) fn cursor(message: &[u8]) -> Option<&str> {
    let at = memmem::rfind(message, CURSOR)?;
    text(message.get(at + CURSOR.len()..)?)
}

fn row(message: &[u8]) -> Option<Row> {
    let topic = memmem::find(message.get(..message.len().min(128))?, TOPIC_OF_USER);
    let topic = topic.and_then(|at| number(message.get(at + TOPIC_OF_USER.len()..)?)).map(|(user, _)| user);
    let at = memmem::find(message, RECORD)?;
    let (id, rest) = number(message.get(at + RECORD.len()..)?)?;
    let (user, rest) = number(rest.strip_prefix(USER)?)?;
    let (n, _) = number(rest.strip_prefix(N)?)?;
    Some(Row { topic, id, user, n })
}

fn number(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value: u64 = 0;
    let mut digits = 0;
    for byte in bytes.iter().take_while(|byte| byte.is_ascii_digit()) {
        value = value.checked_mul(10)?.checked_add(u64::from(byte - b'0'))?;
        digits += 1;
    }
    (digits > 0).then(|| (value, bytes.get(digits..).unwrap_or_default()))
}

/// Up to the next quote.
fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes.get(..memchr::memchr(b'"', bytes)?)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHANGE: &str = r#"{"type":"database_change","topic":"user:42:bench","schema":"rowcast_bench","table":"bench","operation":"INSERT","key":{"id":9},"old_record":null,"new_record":{"id":9,"user_id":42,"n":3,"body":"x"},"commit_timestamp":"2026-01-01T12:00:00.000000Z","cursor":"7558fcd30905edf8.00000000019a6b30.00000001","last":true}"#;

    #[test]
    fn rows_are_read_where_they_stand() {
        let row = Row { topic: Some(42), id: 9, user: 42, n: 3 };
        assert_eq!(read(CHANGE.as_bytes()), Told::Row(row));
        assert_eq!(cursor(CHANGE.as_bytes()), Some("7558fcd30905edf8.00000000019a6b30.00000001"));
        let all = CHANGE.replace("user:42:bench", "global:bench_all");
        assert_eq!(read(all.as_bytes()), Told::Row(Row { topic: None, ..row }));
    }

    #[test]
    fn what_should_not_come_is_told_apart() {
        assert_eq!(read(b"{\"type\":\"sync_required\",\"topics\":[]}"), Told::Bad("sync_required"));
        assert_eq!(read(b"{\"type\":\"heartbeat\",\"cursor\":\"a\"}"), Told::Other);
        assert_eq!(read(b"nonsense"), Told::Bad("no message"));
        let delete =
            CHANGE.replace(r#""new_record":{"id":9,"user_id":42,"n":3,"body":"x"}"#, r#""new_record":null"#);
        assert_eq!(read(delete.as_bytes()), Told::Bad("unreadable"));
        assert_eq!(
            read(b"{\"type\":\"subscribed\",\"topics\":[\"user:1:*\"],\"cursor\":\"a.b\",\"tables\":{}}"),
            Told::Subscribed { cursor: Some("a.b") }
        );
    }
}
