//! What a traveller does over REST: syncs by cursor, by timestamp and in full, as JSON and as NDJSON.

use std::collections::HashMap;
use std::time::Instant;

use serde_json::{Value, json};

use super::parts::is_ahead;
use super::traveller::Traveller;
use super::weather::{Setback, whole};
use crate::support::copy::{SyncPage, SyncTable};
use crate::support::frame::place;
use crate::support::http::{Http, Request};

/// From where a part is synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum From {
    /// Its cursor; without one all of it comes.
    Cursor,
    /// The time that its last answer said.
    Time,
    /// All over again.
    Nothing,
}

impl Traveller {
    /// Syncs a part, with nothing else open.
    pub(super) async fn sync_alone(&mut self, at: usize, from: From) -> Result<(), Setback> {
        self.leave();
        self.sync(at % self.parts.len(), from).await.map(drop)
    }

    /// Syncs a part, in pages. What is told of its tables.
    pub(super) async fn sync(
        &mut self,
        at: usize,
        from: From,
    ) -> Result<HashMap<String, SyncTable>, Setback> {
        let part = self.parts[at].clone();
        // A cursor says nothing of a table that could not be had.
        let from = if part.blocked { From::Nothing } else { from };
        let limit = 1 + self.dice.roll(60);
        let mut body = json!({"device_id": self.name, "topics": part.topics, "limit": limit});
        let time = part.time.as_ref().filter(|_| from == From::Time && part.cursor.is_some());
        match (from, time) {
            (_, Some(time)) => body["last_sync_timestamp"] = self.some_time(time),
            (From::Nothing, _) => {
                body["force_full_sync"] = true.into();
                if self.dice.roll(2) == 0 {
                    body["cursor"] = part.cursor.clone().into();
                }
                self.done.count("full sync by force");
            }
            _ => {
                body["cursor"] = part.cursor.clone().into();
                self.done.count("sync by cursor");
            }
        }
        let mut pages = self.ask(&mut body).await?;
        if time.is_some() {
            self.done.count("sync by time");
            // It begins before the place that the copy had reached, and may end there.
            let part = &mut self.parts[at];
            if !part.is_repeating() {
                part.repeats_to = part.cursor.clone();
            }
        } else if part.cursor.is_none() {
            self.copy.forget(|table| part.has_table(table));
        }
        if from == From::Nothing {
            let full = pages[0].tables.values().all(|table| table.full || table.unavailable);
            assert!(full, "{} is not given all in full: {:?}", self.whereabouts(), pages[0].tables);
            // What it does not name is not tracked any more.
            self.copy.forget(|table| part.has_table(table) && !pages[0].tables.contains_key(table));
        }
        self.stand(at, &pages, time.is_some() || part.is_repeating());
        Ok(std::mem::take(&mut pages[0].tables))
    }

    /// Applies all pages: the copy stands where the last one ends.
    fn stand(&mut self, at: usize, pages: &[SyncPage], repeats: bool) {
        for change in pages.iter().flat_map(|page| page.changes.values()).flatten() {
            self.check_foreign(change);
        }
        let tables = &pages[0].tables;
        tables.values().filter_map(|table| table.reason.clone()).for_each(|reason| {
            self.check_reason(&json!(reason));
            if reason == "newly_granted" {
                self.done.count("newly granted");
            }
        });
        if tables.values().any(|table| table.full) {
            self.done.count(if pages.len() > 1 { "paged full sync" } else { "full sync" });
        }
        let last = &pages[pages.len() - 1];
        assert!(!last.cursor.starts_with("full."), "{}: {}", self.whereabouts(), last.cursor);
        assert!(last.sync_timestamp.is_some() && last.consistent, "{}: {last:?}", self.whereabouts());
        pages.iter().for_each(|page| self.check_time(page));
        let part = &mut self.parts[at];
        match repeats {
            true => self.copy.apply_repeating(pages),
            false => self.copy.apply_sync(pages),
        }
        part.cursor = Some(last.cursor.clone());
        part.time = last.sync_timestamp.clone();
        part.blocked = tables.values().any(|table| table.unavailable);
        if part.blocked {
            self.done.count("blocked");
        }
    }

    /// Times never go back: of two cursors the further one has the later time.
    fn check_time(&mut self, page: &SyncPage) {
        let Some(time) = page.sync_timestamp.clone().filter(|_| !page.cursor.starts_with("full.")) else {
            return;
        };
        let here = place(&page.cursor).to_owned();
        let Some((further, latest)) = self.latest.as_ref().filter(|(other, _)| other[..16] == here[..16])
        else {
            self.latest = Some((here, time));
            return;
        };
        let right = if here >= *further { time >= *latest } else { time <= *latest };
        assert!(right, "{}: {time} at {here}, and {latest} at {further}", self.whereabouts());
        if here >= *further {
            self.latest = Some((here, time));
        }
    }

    fn some_time(&mut self, time: &str) -> Value {
        if self.dice.roll(2) == 0 {
            return time.into();
        }
        self.done.count("sync in milliseconds");
        time.parse::<jiff::Timestamp>().expect("a time").as_millisecond().into()
    }

    /// All pages; `body` goes on from them.
    pub(super) async fn ask(&mut self, body: &mut Value) -> Result<Vec<SyncPage>, Setback> {
        let from = body["cursor"].as_str().unwrap_or_default().to_owned();
        let lines = self.dice.roll(3) == 0;
        if lines {
            body["limit"] = Value::Null;
            self.done.count("sync as lines");
        }
        let mut pages: Vec<SyncPage> = Vec::new();
        let begun = Instant::now();
        loop {
            let patience = self.weather.patience();
            assert!(begun.elapsed() < patience, "{}: pages without end, now {body}", self.whereabouts());
            let page = self.page(body, lines).await?;
            body["cursor"] = page.cursor.clone().into();
            // Once begun, it goes on by its cursor.
            for field in ["last_sync_timestamp", "force_full_sync"] {
                body.as_object_mut().expect("an object").remove(field);
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
            let request = match in_query(body).filter(|_| self.dice.roll(3) == 0) {
                Some(query) => {
                    self.done.count("sync through GET");
                    http.request("GET", &format!("/api/realtime/sync?{query}"))
                }
                None => http.request("POST", "/api/realtime/sync").json(body),
            };
            let asked = async { if lines { of_lines(request).await } else { of_json(request).await } };
            let answer = self.weather.in_time("a sync", asked).await;
            self.trail.note(format!("asks {body}, and is told {answer:?}"));
            let setback = match answer {
                Ok(page) => return Ok(page),
                Err(setback) => setback,
            };
            if !setback.same_again || !self.weather.bears(&setback) {
                return Err(setback);
            }
            let patience = self.weather.patience();
            assert!(
                begun.elapsed() < patience,
                "{}: not answered within {patience:?}, but {setback}: {body}",
                self.whereabouts()
            );
            self.done.count("put off");
            tokio::time::sleep(setback.pause).await;
        }
    }
}

/// A request's fields as a query string. There is none where a topic holds a comma.
pub(super) fn in_query(body: &Value) -> Option<String> {
    let mut query = Vec::new();
    for (name, value) in body.as_object().into_iter().flatten() {
        let text = match value {
            Value::Null => continue,
            Value::String(text) => text.clone(),
            Value::Array(texts) => {
                let texts: Vec<&str> = texts.iter().filter_map(Value::as_str).collect();
                if texts.iter().any(|text| text.contains(',')) {
                    return None;
                }
                texts.join(",")
            }
            other => other.to_string(),
        };
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
        let encoded = text.bytes().map(|byte| match plain(byte) {
            true => char::from(byte).to_string(),
            false => format!("%{byte:02X}"),
        });
        query.push(format!("{name}={}", encoded.collect::<String>()));
    }
    Some(query.join("&"))
}

async fn of_json(request: Request) -> Result<SyncPage, Setback> {
    let answer = request.whole().await?;
    if answer.status != 200 {
        return Err(Setback::of_answer(&answer));
    }
    Ok(answer.parse())
}

/// What has no `end` line counts for nothing.
async fn of_lines(request: Request) -> Result<SyncPage, Setback> {
    let mut open = request.header("accept", "application/x-ndjson").try_open().await?;
    if open.status != 200 {
        return Err(Setback::of_answer(&whole(open).await?));
    }
    let mut answer = json!({"tables": {}, "changes": {}});
    let mut changes: HashMap<String, Vec<String>> = HashMap::new();
    while let Some(text) = open.try_line().await? {
        let line: Value = serde_json::from_str(&text).unwrap();
        match line["type"].as_str() {
            Some("begin") => {
                for field in ["tables", "revoked"] {
                    answer[field] = line[field].clone();
                }
            }
            // Its records stay the text that was sent.
            Some("change") => {
                let table = line["table"].as_str().unwrap_or_default().to_owned();
                changes.entry(table).or_default().push(text);
            }
            Some("end") => {
                for field in ["cursor", "has_more", "consistent", "sync_timestamp"] {
                    answer[field] = line[field].clone();
                }
                let mut page: SyncPage = serde_json::from_value(answer).unwrap();
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
