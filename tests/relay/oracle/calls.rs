//! What a traveller does over REST: syncs by cursor, by timestamp and in full, as JSON and as NDJSON.

use std::collections::HashMap;
use std::time::Instant;

use serde_json::{Value, json};

use super::traveller::{Traveller, is_ahead};
use super::weather::Setback;
use crate::support::copy::SyncPage;
use crate::support::http::{Http, Response};

impl Traveller {
    /// From where the copy stands, in pages.
    pub(super) async fn sync(&mut self) -> Result<(), Setback> {
        let mut body = self.body();
        body["cursor"] = self.known_cursor();
        let pages = self.ask(&mut body).await?;
        self.done.full += u64::from(pages.iter().any(|page| page.tables.values().any(|table| table.full)));
        self.copy.apply_sync(&pages);
        self.stand(&pages);
        Ok(())
    }

    /// All over again.
    pub(super) async fn sync_in_full(&mut self) -> Result<(), Setback> {
        let mut body = self.body();
        if self.dice.roll(2) == 0 {
            body["cursor"] = self.known_cursor();
        }
        body["force_full_sync"] = true.into();
        let pages = self.ask(&mut body).await?;
        let tables = &pages[0].tables;
        let told = tables.values().all(|table| table.full || table.unavailable);
        assert!(told, "{} is not given all in full: {tables:?}", self.whereabouts());
        self.done.full += 1;
        // What it does not name is not tracked any more.
        self.copy.keep_only(|table| tables.contains_key(table));
        self.copy.apply_sync(&pages);
        self.stand(&pages);
        Ok(())
    }

    /// By the time that the last answer said, which lies before the place that the copy had reached: from
    /// its end the device goes on by cursor.
    pub(super) async fn sync_by_time(&mut self) -> Result<(), Setback> {
        let Some(time) = self.time.clone() else { return self.sync().await };
        let reached = self.cursor.clone();
        let mut body = self.body();
        body["last_sync_timestamp"] = time.into();
        let begun = Instant::now();
        loop {
            let pages = self.ask(&mut body).await?;
            self.copy.apply_repeating(&pages);
            self.stand(&pages);
            if !is_ahead(&reached, &self.cursor) {
                break;
            }
            let patience = self.weather.patience();
            assert!(begun.elapsed() < patience, "{} syncs by time to {reached}", self.whereabouts());
        }
        self.done.by_time += 1;
        Ok(())
    }

    fn known_cursor(&self) -> Value {
        if self.cursor.is_empty() { Value::Null } else { self.cursor.clone().into() }
    }

    fn body(&mut self) -> Value {
        self.device = None;
        json!({"device_id": self.name, "topics": self.wish.topics, "limit": 1 + self.dice.roll(60)})
    }

    /// The copy stands where the last page ends.
    fn stand(&mut self, pages: &[SyncPage]) {
        for change in pages.iter().flat_map(|page| page.changes.values()).flatten() {
            self.check_foreign(change);
        }
        let reasons: Vec<_> = pages[0].tables.values().filter_map(|table| table.reason.clone()).collect();
        reasons.iter().for_each(|reason| self.check_reason(&json!(reason)));
        let last = &pages[pages.len() - 1];
        assert!(!last.cursor.starts_with("full."), "{}", last.cursor);
        assert!(last.sync_timestamp.is_some() && last.consistent, "{}: {last:?}", self.whereabouts());
        self.cursor = last.cursor.clone();
        self.time = last.sync_timestamp.clone();
    }

    /// All pages; `body` goes on from them.
    async fn ask(&mut self, body: &mut Value) -> Result<Vec<SyncPage>, Setback> {
        let from = body["cursor"].as_str().unwrap_or_default().to_owned();
        let lines = self.dice.roll(3) == 0;
        if lines {
            body["limit"] = Value::Null;
            self.done.lines += 1;
        }
        let mut pages: Vec<SyncPage> = Vec::new();
        loop {
            let page = self.page(body, lines).await?;
            body["cursor"] = page.cursor.clone().into();
            // Once begun, it goes on by its cursor.
            for field in ["last_sync_timestamp", "force_full_sync"] {
                body.as_object_mut().unwrap().remove(field);
            }
            let more = page.has_more;
            pages.push(page);
            if !more {
                break;
            }
        }
        let reached = &pages[pages.len() - 1].cursor;
        assert!(
            !is_ahead(&from, reached),
            "{}: a sync from {from} went back to {reached}",
            self.whereabouts()
        );
        Ok(pages)
    }

    /// Asks until it is answered.
    async fn page(&mut self, body: &Value, lines: bool) -> Result<SyncPage, Setback> {
        let begun = Instant::now();
        loop {
            let http = Http::at(self.relay).with_token(&self.token);
            let asked =
                async { if lines { of_lines(&http, body).await } else { of_json(&http, body).await } };
            let setback = match self.weather.in_time("a sync", asked).await {
                Ok(page) => return Ok(page),
                Err(setback) => setback,
            };
            if setback.begin_again || setback.token || !self.weather.bears(&setback) {
                return Err(setback);
            }
            let patience = self.weather.patience();
            assert!(
                begun.elapsed() < patience,
                "{}: not answered within {patience:?}, but {setback}: {body}",
                self.whereabouts()
            );
            self.done.put_off += 1;
            tokio::time::sleep(setback.pause).await;
        }
    }
}

async fn of_json(http: &Http, body: &Value) -> Result<SyncPage, Setback> {
    let answer = http.request("POST", "/api/realtime/sync").json(body).whole().await?;
    if answer.status != 200 {
        return Err(Setback::of_answer(&answer));
    }
    Ok(answer.parse())
}

/// What has no `end` line counts for nothing.
async fn of_lines(http: &Http, body: &Value) -> Result<SyncPage, Setback> {
    let request = http.request("POST", "/api/realtime/sync").header("accept", "application/x-ndjson");
    let mut open = request.json(body).try_open().await?;
    if open.status != 200 {
        let mut body = Vec::new();
        while let Some(part) = open.part().await? {
            body.extend(part);
        }
        return Err(Setback::of_answer(&Response { status: open.status, headers: open.headers, body }));
    }
    let mut whole = json!({"tables": {}, "changes": {}});
    let mut changes: HashMap<String, Vec<String>> = HashMap::new();
    while let Some(text) = open.try_line().await? {
        let line: Value = serde_json::from_str(&text).unwrap();
        match line["type"].as_str() {
            Some("begin") => whole["tables"] = line["tables"].clone(),
            // Its records stay the text that was sent.
            Some("change") => {
                let table = line["table"].as_str().unwrap_or_default().to_owned();
                changes.entry(table).or_default().push(text);
            }
            Some("end") => {
                for field in ["cursor", "has_more", "consistent", "sync_timestamp"] {
                    whole[field] = line[field].clone();
                }
                let mut page: SyncPage = serde_json::from_value(whole).unwrap();
                for (table, lines) in changes {
                    let changes = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
                    page.changes.insert(table, changes);
                }
                return Ok(page);
            }
            Some("error") => return Err(Setback::of_problem(&line)),
            Some("progress") => {}
            _ => panic!("an unknown line: {text}"),
        }
    }
    Err(Setback::broken("the lines ended without an end"))
}
