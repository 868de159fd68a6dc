//! What a traveller does over REST: syncs by cursor, by timestamp and in full, as JSON and as NDJSON.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::traveller::Traveller;
use crate::support::copy::SyncPage;
use crate::support::frame::place;
use crate::support::http::Http;
use crate::support::relay::Relay;
use crate::support::wait::PATIENCE;

impl Traveller {
    /// From where the copy stands, in pages.
    pub(super) async fn sync(&mut self, relay: &Relay) {
        let mut body = self.body();
        body["cursor"] = self.cursor.clone().into();
        let pages = self.ask(relay, &mut body).await;
        self.done.full += u64::from(pages.iter().any(|page| page.tables.values().any(|table| table.full)));
        self.copy.apply_sync(&pages);
        self.stand(&pages, true);
    }

    /// All over again.
    pub(super) async fn sync_in_full(&mut self, relay: &Relay) {
        let mut body = self.body();
        if self.dice.roll(2) == 0 {
            body["cursor"] = self.cursor.clone().into();
        }
        body["force_full_sync"] = true.into();
        let pages = self.ask(relay, &mut body).await;
        // But those that are not tracked at the moment.
        assert!(pages[0].tables.values().all(|table| table.full), "not full: {:?}", pages[0].tables);
        self.done.full += 1;
        self.copy.apply_sync(&pages);
        self.stand(&pages, true);
    }

    /// By the time that the last answer said; it may end before the place that the copy had reached.
    pub(super) async fn sync_by_time(&mut self, relay: &Relay) {
        let Some(time) = self.time.clone() else { return self.sync(relay).await };
        let reached = self.cursor.clone();
        let mut body = self.body();
        body["last_sync_timestamp"] = time.into();
        loop {
            let pages = self.ask(relay, &mut body).await;
            self.copy.apply_repeating(&pages);
            self.stand(&pages, false);
            if place(&self.cursor) >= place(&reached) {
                break;
            }
        }
        self.done.by_time += 1;
    }

    fn body(&mut self) -> Value {
        self.device = None;
        json!({"device_id": self.name, "topics": self.wish.topics, "limit": 1 + self.dice.roll(60)})
    }

    /// The copy stands where the last page ends.
    fn stand(&mut self, pages: &[SyncPage], forward: bool) {
        for change in pages.iter().flat_map(|page| page.changes.values()).flatten() {
            let record = change.new_record.as_ref().map(|record| record.get());
            assert!(self.wish.allows(&change.topic, record), "{}'s device was given {change:?}", self.user);
        }
        let last = &pages[pages.len() - 1];
        assert!(!last.cursor.starts_with("full."), "{}", last.cursor);
        assert!(
            !forward || place(&last.cursor) >= place(&self.cursor),
            "a sync went back from {} to {}: {:?}",
            self.cursor,
            last.cursor,
            pages.iter().map(|page| &page.tables).collect::<Vec<_>>()
        );
        self.cursor = last.cursor.clone();
        self.time = last.sync_timestamp.clone();
        assert!(self.time.is_some() && last.consistent, "{last:?}");
    }

    /// All pages; `body` goes on from them.
    async fn ask(&mut self, relay: &Relay, body: &mut Value) -> Vec<SyncPage> {
        let http = relay.http_as(&self.user);
        let lines = self.dice.roll(3) == 0;
        if lines {
            body["limit"] = Value::Null;
            self.done.lines += 1;
        }
        let mut pages = Vec::new();
        loop {
            let page = self.page(&http, body, lines).await;
            body["cursor"] = page.cursor.clone().into();
            // Once begun, it goes on by its cursor.
            for field in ["last_sync_timestamp", "force_full_sync"] {
                body.as_object_mut().unwrap().remove(field);
            }
            let more = page.has_more;
            pages.push(page);
            if !more {
                return pages;
            }
        }
    }

    /// Asks until it is answered.
    async fn page(&mut self, http: &Http, body: &Value, lines: bool) -> SyncPage {
        let begun = Instant::now();
        loop {
            let page = if lines { of_lines(http, body).await } else { of_json(http, body).await };
            match page {
                Some(page) => return page,
                None => self.done.put_off += 1,
            }
            assert!(begun.elapsed() < PATIENCE, "not answered within {PATIENCE:?}: {body}");
            // As `eventually` waits between two tries, which cannot be used in a task that moves threads.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// `None`: to be tried again, as the answer says.
async fn of_json(http: &Http, body: &Value) -> Option<SyncPage> {
    let answer = http.post("/api/realtime/sync", body).await;
    if answer.status == 503 {
        assert!(answer.headers.get("retry-after").is_some(), "{}", answer.text());
        return None;
    }
    Some(answer.expect_status(200).parse())
}

/// What has no `end` line counts for nothing.
async fn of_lines(http: &Http, body: &Value) -> Option<SyncPage> {
    let request = http.request("POST", "/api/realtime/sync").header("accept", "application/x-ndjson");
    let mut open = request.json(body).open().await;
    if open.status == 503 {
        return None;
    }
    assert_eq!(open.status, 200);
    let mut whole = json!({"tables": {}, "changes": {}});
    let mut changes: HashMap<String, Vec<String>> = HashMap::new();
    while let Some(text) = open.line().await {
        let line: Value = serde_json::from_str(&text).unwrap();
        match line["type"].as_str() {
            Some("begin") => whole["tables"] = line["tables"].clone(),
            // Its records stay the text that was sent.
            Some("change") => changes.entry(line["table"].as_str()?.to_owned()).or_default().push(text),
            Some("end") => {
                for field in ["cursor", "has_more", "consistent", "sync_timestamp"] {
                    whole[field] = line[field].clone();
                }
                let mut page: SyncPage = serde_json::from_value(whole).unwrap();
                for (table, lines) in changes {
                    let changes = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
                    page.changes.insert(table, changes);
                }
                return Some(page);
            }
            Some("error") => return None,
            Some("progress") => {}
            _ => panic!("an unknown line: {text}"),
        }
    }
    panic!("the lines ended without an end")
}
