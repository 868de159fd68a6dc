//! The copy that a device keeps: applied exactly as a client should, compared byte for byte.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use rowcast::topic::decode_segment;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::frame::Change;
use super::http::Http;
use super::postgres::TestPostgres;

/// Rows by table (the topic's last segment, decoded) and the key's text; records as they were sent.
#[derive(Debug, Default, Clone)]
pub(crate) struct Copy {
    rows: BTreeMap<(String, String), String>,
    /// The newest change of each topic: what comes later must have a greater cursor.
    applied: HashMap<String, String>,
    /// Tables may be altered: an update of a row may show it before the device is told to sync.
    pub(crate) altered: bool,
}

/// One page of a POST `/api/realtime/sync` answer.
#[derive(Debug, Deserialize)]
pub(crate) struct SyncPage {
    pub(crate) cursor: String,
    #[serde(default)]
    pub(crate) topics: Vec<String>,
    pub(crate) tables: HashMap<String, SyncTable>,
    pub(crate) changes: HashMap<String, Vec<Change>>,
    /// Patterns that the cursor vouched for and the token no longer grants.
    #[serde(default)]
    pub(crate) revoked: Vec<String>,
    pub(crate) has_more: bool,
    #[serde(default)]
    pub(crate) consistent: bool,
    #[serde(default)]
    pub(crate) sync_timestamp: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct SyncTable {
    #[serde(default)]
    pub(crate) full: bool,
    /// Blocked: the copy stays as it is.
    #[serde(default)]
    pub(crate) unavailable: bool,
    #[serde(default)]
    pub(crate) reason: Option<String>,
}

impl Copy {
    /// Applies a live or replayed change, and asserts that its topic goes forward: nothing twice,
    /// nothing out of order.
    pub(crate) fn apply(&mut self, change: &Change) {
        let cursor = change.cursor.as_ref().unwrap_or_else(|| panic!("a frame without a cursor: {change:?}"));
        if let Some(before) = self.applied.insert(change.topic.clone(), cursor.clone()) {
            assert!(before < *cursor, "{} after {before}: {change:?}", cursor);
        }
        self.put(&change.topic_table(), change, false);
    }

    /// Applies a change that the copy may have had before, and others behind it: they are repeated too.
    pub(crate) fn apply_again(&mut self, change: &Change) {
        self.put(&change.topic_table(), change, true);
    }

    /// Forgets all rows of tables.
    pub(crate) fn forget(&mut self, which: impl Fn(&str) -> bool) {
        self.rows.retain(|(table, _), _| !which(table));
        self.applied.retain(|topic, _| !which(&table_of(topic)));
    }

    /// Takes all rows of another copy, which has none of the same tables.
    pub(crate) fn take_in(&mut self, other: Copy) {
        self.rows.extend(other.rows);
        self.applied.extend(other.applied);
    }

    /// Applies all pages of one sync. A full table's copy is replaced.
    pub(crate) fn apply_sync(&mut self, pages: &[SyncPage]) {
        self.take_sync(pages, false);
    }

    /// Applies pages that begin before the copy's place, as those by timestamp do. An update of a row that
    /// the copy has lost since is passed over where it is not whole: the row's end is repeated as well.
    pub(crate) fn apply_repeating(&mut self, pages: &[SyncPage]) {
        self.take_sync(pages, true);
    }

    fn take_sync(&mut self, pages: &[SyncPage], repeats: bool) {
        let mut replaced = Vec::new();
        for page in pages {
            for (table, about) in &page.tables {
                if about.full && !replaced.contains(table) {
                    self.rows.retain(|(known, _), _| known != table);
                    replaced.push(table.clone());
                }
            }
            for (table, changes) in &page.changes {
                changes.iter().for_each(|change| self.put(table, change, repeats));
            }
        }
        // A new epoch's cursors need not be greater.
        self.applied.clear();
    }

    /// Puts rows of a snapshot into it.
    pub(crate) fn put_rows(&mut self, rows: &[Change]) {
        rows.iter().for_each(|row| self.put(&row.topic_table(), row, false));
    }

    /// Syncs over REST until there is no more, as a user with `body`'s device, topics and cursor;
    /// returns the last cursor.
    pub(crate) async fn sync(&mut self, http: &Http, body: &serde_json::Value) -> String {
        let mut pages = pages(http, body).await;
        self.apply_sync(&pages);
        pages.pop().map(|page| page.cursor).unwrap_or_default()
    }

    /// Drops the rows of other tables.
    pub(crate) fn keep_only(&mut self, named: impl Fn(&str) -> bool) {
        self.rows.retain(|(table, _), _| named(table));
    }

    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    /// The records of a table, sorted as text.
    pub(crate) fn records(&self, table: &str) -> Vec<String> {
        let of_table = self.rows.iter().filter(|((known, _), _)| known == table);
        let mut records: Vec<String> = of_table.map(|(_, record)| record.clone()).collect();
        records.sort();
        records
    }

    /// Asserts that the copy of a table holds exactly the rows that `query` selects, as
    /// `row_to_json` prints them.
    pub(crate) async fn assert_equals(&self, postgres: &TestPostgres, table: &str, query: &str) {
        let differences = self.differences(postgres, table, query).await;
        assert!(differences.is_empty(), "the copy of {table} is not what the database has:\n{differences}");
    }

    /// What the copy of a table holds and `query` does not select, and the other way round, a line each.
    pub(crate) async fn differences(&self, postgres: &TestPostgres, table: &str, query: &str) -> String {
        let (copied, expected) = (self.records(table), rows_as_json(postgres, query).await);
        let lines = |of: &[String], other: &[String], what: &str| {
            let lacking = of.iter().filter(|record| !other.contains(record));
            lacking.map(|record| format!("  only in the {what}: {record}\n")).collect::<String>()
        };
        let mut differences = lines(&copied, &expected, "copy") + &lines(&expected, &copied, "database");
        if differences.is_empty() && copied != expected {
            differences =
                format!("  {} rows in the copy, {} in the database\n", copied.len(), expected.len());
        }
        differences
    }

    fn put(&mut self, table: &str, change: &Change, repeats: bool) {
        if change.operation == "TRUNCATE" {
            self.rows.retain(|(known, _), _| known != table);
            return;
        }
        let place = (table.to_owned(), change.key_text().to_owned());
        match change.operation.as_str() {
            "DELETE" => {
                assert!(change.new_record.is_none(), "a DELETE with a new record: {change:?}");
                self.rows.remove(&place);
            }
            "UPDATE" if repeats && !change.unchanged.is_empty() && !self.rows.contains_key(&place) => {}
            "INSERT" | "UPDATE" => {
                let record = match change.unchanged.as_slice() {
                    [] => change.record_text().to_owned(),
                    unchanged => {
                        let before = self.rows.get(&place);
                        let before = before.unwrap_or_else(|| panic!("no row to keep values of: {change:?}"));
                        merge(before, change.record_text(), unchanged, self.altered)
                    }
                };
                self.rows.insert(place, record);
            }
            other => panic!("unknown operation {other}: {change:?}"),
        }
    }
}

/// A table as answers over REST name it: the topic's last segment, decoded.
pub(crate) fn table_of(topic: &str) -> String {
    decode_segment(topic.rsplit(':').next().unwrap_or_default()).unwrap()
}

/// Asks for pages of a sync over REST until there is no more.
pub(crate) async fn pages(http: &Http, body: &serde_json::Value) -> Vec<SyncPage> {
    let mut body = body.clone();
    let mut pages: Vec<SyncPage> = Vec::new();
    loop {
        let page: SyncPage = http.post("/api/realtime/sync", &body).await.expect_status(200).parse();
        body["cursor"] = page.cursor.clone().into();
        let more = page.has_more;
        pages.push(page);
        if !more {
            return pages;
        }
    }
}

/// The key of a record, as changes have it.
pub(crate) fn key_of(record: &str, key: &[String]) -> String {
    let record: Columns = serde_json::from_str(record).unwrap();
    let column = |name: &String| {
        let known = record.0.iter().find(|(known, _)| known == name);
        let (_, value) = known.unwrap_or_else(|| panic!("a record without its key's column {name}"));
        format!("{}:{}", serde_json::to_string(name).unwrap(), value.get())
    };
    format!("{{{}}}", key.iter().map(column).collect::<Vec<_>>().join(","))
}

/// What `query` selects as `row_to_json` prints it, sorted; newlines between the tokens of a `json`
/// value become spaces, as on the wire.
pub(crate) async fn rows_as_json(postgres: &TestPostgres, query: &str) -> Vec<String> {
    let query = format!("SELECT row_to_json(r)::text FROM ({query}) r");
    let rows = postgres.query_text(&query).await;
    let mut rows: Vec<String> = rows
        .into_iter()
        .map(|row| row.into_iter().next().flatten().expect("a record").replace(['\n', '\r'], " "))
        .collect();
    rows.sort();
    rows
}

/// The record before with the values of the new one; the columns named in `unchanged` are the only
/// ones that the new one lacks.
fn merge(before: &str, after: &str, unchanged: &[String], altered: bool) -> String {
    let mut before: Columns = serde_json::from_str(before).unwrap();
    let after: Columns = serde_json::from_str(after).unwrap();
    if altered {
        let stays =
            |name: &String| unchanged.contains(name) || after.0.iter().any(|(known, _)| known == name);
        before.0.retain(|(name, _)| stays(name));
        let added = after.0.iter().filter(|(name, _)| !before.0.iter().any(|(known, _)| known == name));
        let added: Vec<_> = added.cloned().collect();
        before.0.extend(added);
    }
    let mut taken = 0;
    let columns = before.0.iter().map(|(name, old)| {
        let new = after.0.iter().find(|(known, _)| known == name);
        assert!(new.is_some() != unchanged.contains(name), "column {name}: in the record, or unchanged");
        taken += usize::from(new.is_some());
        let value = new.map_or(old, |(_, value)| value);
        format!("{}:{}", serde_json::to_string(name).unwrap(), value.get())
    });
    let merged = format!("{{{}}}", columns.collect::<Vec<_>>().join(","));
    assert_eq!(taken, after.0.len(), "a column that the row did not have before");
    merged
}

/// A record's columns in their order, with their values' text.
struct Columns(Vec<(String, Box<RawValue>)>);

impl<'de> Deserialize<'de> for Columns {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Columns;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a record")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Columns, A::Error> {
                let mut columns = Vec::new();
                while let Some(column) = map.next_entry()? {
                    columns.push(column);
                }
                Ok(Columns(columns))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(json: &str) -> Change {
        serde_json::from_str(json).unwrap()
    }

    fn frame(operation: &str, cursor: &str, rest: &str) -> Change {
        change(&format!(
            r#"{{"topic":"user:1:t","operation":"{operation}","cursor":"{cursor}","commit_timestamp":0,{rest}}}"#
        ))
    }

    #[test]
    fn a_copy_follows_its_changes() {
        let mut copy = Copy::default();
        copy.apply(&frame("INSERT", "1", r#""key":{"id":1},"new_record":{"id":1,"a":1.50,"b":"x"}"#));
        copy.apply(&frame("INSERT", "2", r#""key":{"id":2},"new_record":{"id":2,"a":null,"b":"y"}"#));
        copy.apply(&frame("UPDATE", "3", r#""key":{"id":1},"new_record":{"id":1,"a":2},"unchanged":["b"]"#));
        copy.apply(&frame("DELETE", "4", r#""key":{"id":2},"old_record":{"id":2},"new_record":null"#));
        assert_eq!(copy.records("t"), [r#"{"id":1,"a":2,"b":"x"}"#]);
        copy.apply(&frame("TRUNCATE", "5", r#""key":null,"new_record":null"#));
        assert_eq!(copy.len(), 0);
    }

    #[test]
    #[should_panic(expected = "1 after 1")]
    fn a_change_twice_is_an_error() {
        let mut copy = Copy::default();
        let once = frame("INSERT", "1", r#""key":{"id":1},"new_record":{"id":1}"#);
        copy.apply(&once);
        copy.apply(&once);
    }

    #[test]
    #[should_panic(expected = "column b: in the record, or unchanged")]
    fn a_column_left_out_silently_is_an_error() {
        merge(r#"{"id":1,"a":1,"b":2}"#, r#"{"id":1}"#, &["a".to_owned()], false);
    }
}
