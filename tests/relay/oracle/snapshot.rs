//! A part's rows over the socket: `subscribe` with `"snapshot": true`.

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::parts::{Chain, covers};
use super::socket::topics_of;
use super::traveller::{Link, Traveller};
use super::weather::Setback;
use crate::support::copy::{Copy, key_of, table_of};
use crate::support::frame::{Change, Frame};

/// A copy that is shown when it is complete.
pub(super) struct Showing {
    topics: Vec<String>,
    tables: Value,
    total: u64,
    rows: u64,
    copy: Copy,
    chain: Chain,
    /// Tables that had to be synced meanwhile.
    left_out: Vec<String>,
}

/// One frame of rows.
#[derive(Deserialize)]
struct Rows {
    table: String,
    rows: Vec<Box<RawValue>>,
}

impl Showing {
    /// A change behind the rows, of those that they did not see.
    pub(super) fn take(&mut self, change: Change, who: impl FnOnce() -> String) {
        self.copy.apply(&change);
        self.chain.add(change, who);
    }

    /// Tables whose rows here count for nothing any more: they are synced by themselves.
    pub(super) fn leave_out(&mut self, topics: &[String]) {
        let ended = topics.iter().filter(|topic| self.covers(topic) && !topic.ends_with('*'));
        let tables: Vec<String> = ended.map(|topic| table_of(topic)).collect();
        self.copy.forget(|table| tables.iter().any(|left| left == table));
        self.left_out.extend(tables);
    }

    pub(super) fn covers(&self, topic: &str) -> bool {
        self.topics.iter().any(|pattern| covers(pattern, topic))
    }
}

impl Traveller {
    /// The part's copy from the socket; it is delivered there from then on.
    pub(super) async fn show(&mut self, at: usize) -> Result<(), Setback> {
        let topics = self.parts[at].topics.clone();
        // What an earlier subscription brought between the rows could not be told from what belongs to them.
        self.ask_socket("unsubscribe", json!({"topics": topics}), &topics).await?;
        self.ask_socket("subscribe", json!({"topics": topics, "snapshot": true}), &topics).await
    }

    pub(super) fn take_snapshot(&mut self, frame: &Frame, json: &Value) {
        let who = self.whereabouts();
        let Link::Socket(socket) = &mut self.link else { return };
        match frame.kind.as_str() {
            "snapshot_begin" => {
                let total = json["total_rows"].as_u64().expect("how many rows");
                let (topics, tables) = (topics_of(json), json["tables"].clone());
                socket.showing = Some(Showing {
                    topics,
                    tables,
                    total,
                    rows: 0,
                    copy: Copy::default(),
                    chain: Chain::default(),
                    left_out: Vec::new(),
                });
            }
            "snapshot" => {
                let showing = socket.showing.as_mut().unwrap_or_else(|| panic!("{who}: {}", frame.text));
                let rows = showing.rows_of(frame);
                showing.rows += rows.len() as u64;
                showing.copy.put_rows(&rows);
                let topics = showing.topics.clone();
                for row in &rows {
                    // Under which of its topics a row is shown, nobody says.
                    let record = row.new_record.as_ref().map(|record| record.get());
                    let topic = |pattern: &String| match pattern.strip_suffix('*') {
                        Some(audience) => Some(format!("{audience}{}", row.topic)),
                        None => Some(pattern.clone()).filter(|topic| table_of(topic) == table_of(&row.topic)),
                    };
                    let allowed =
                        topics.iter().filter_map(topic).any(|topic| self.wish.allows(&topic, record));
                    assert!(allowed, "{who} was shown {row:?}");
                }
            }
            _ => self.end_showing(json),
        }
    }

    fn end_showing(&mut self, json: &Value) {
        let (who, ended) = (self.whereabouts(), topics_of(json));
        let Link::Socket(socket) = &mut self.link else { return };
        let showing = socket.showing.take().unwrap_or_else(|| panic!("{who}: {json}"));
        // With other topics than it began with it has failed, and an error or why they ended was told.
        if ended != showing.topics {
            return;
        }
        assert_eq!(showing.rows, showing.total, "{who}");
        let Some(at) = self.parts.iter().position(|part| part.topics == ended) else { return };
        let answered = socket.answered(&ended, json);
        socket.hold(&answered);
        let part = &mut self.parts[at];
        self.copy.forget(|table| part.has_table(table) && !showing.left_out.iter().any(|left| left == table));
        self.copy.take_in(showing.copy);
        part.forget_place();
        part.advance(json["cursor"].as_str().expect("a cursor"));
        self.done.count("snapshot");
    }
}

impl Showing {
    /// A change for each row, as an INSERT with this key would be.
    fn rows_of(&self, frame: &Frame) -> Vec<Change> {
        let Rows { table, rows } = serde_json::from_str(&frame.text).unwrap();
        let key: Vec<String> = serde_json::from_value(self.tables[&table]["key"].clone()).unwrap();
        // As in a topic.
        let segment = rowcast::topic::Audience::from_values("x", Some(&table)).unwrap();
        let segment = &segment.as_str()["x:".len()..];
        let change = |row: Box<RawValue>| {
            let (key, row) = (key_of(row.get(), &key), row.get());
            let change = format!(
                r#"{{"topic":{},"operation":"INSERT","key":{key},"new_record":{row},"commit_timestamp":null}}"#,
                json!(segment)
            );
            serde_json::from_str(&change).unwrap()
        };
        rows.into_iter().map(change).collect()
    }
}
