//! A traveller that asks: `/api/sync/poll`, by cursor and by time.

use std::time::Instant;

use serde_json::{Value, json};

use super::calls::{From, in_query};
use super::parts::{Chain, is_ahead};
use super::socket::topics_of;
use super::traveller::Traveller;
use super::weather::Setback;
use crate::support::http::Http;
use crate::support::poll::Answer;

impl Traveller {
    /// A few polls of a part, with nothing else open.
    pub(super) async fn poll_some(&mut self, at: usize) -> Result<(), Setback> {
        self.leave();
        let at = at % self.parts.len();
        let mut chain = Chain::default();
        for _ in 0..=self.dice.roll(4) {
            let Some(since) = self.parts[at].cursor.clone() else { break };
            self.done.count("poll by cursor");
            if !self.poll_from(at, since.into(), &mut chain).await? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// One poll by cursor.
    pub(super) async fn poll(&mut self, at: usize) -> Result<(), Setback> {
        match self.parts[at].cursor.clone() {
            Some(since) => self.poll_from(at, since.into(), &mut Chain::default()).await.map(drop),
            None => self.sync(at, From::Cursor).await.map(drop),
        }
    }

    /// From the time that the last answer said, and on by cursor to the place where the part stood.
    pub(super) async fn poll_by_time(&mut self, at: usize) -> Result<(), Setback> {
        self.leave();
        let at = at % self.parts.len();
        let part = &mut self.parts[at];
        let (Some(reached), Some(time)) = (part.cursor.clone(), part.millis) else {
            return self.poll(at).await;
        };
        if !part.is_repeating() {
            part.repeats_to = Some(reached.clone());
        }
        self.done.count("poll by time");
        let mut chain = Chain::default();
        let mut since = json!(time);
        let begun = Instant::now();
        while self.poll_from(at, since, &mut chain).await? {
            let stands = self.parts[at].cursor.clone().unwrap_or_default();
            if !is_ahead(&reached, &stands) {
                break;
            }
            since = stands.into();
            let patience = self.weather.patience();
            assert!(begun.elapsed() < patience, "{} polls from {time} to {reached}", self.whereabouts());
        }
        Ok(())
    }

    /// False where the part had to sync.
    async fn poll_from(&mut self, at: usize, since: Value, chain: &mut Chain) -> Result<bool, Setback> {
        let topics = self.parts[at].topics.clone();
        let by_time = since.is_number();
        let mut body =
            json!({"device_id": self.name, "topics": topics, "since": since, "wait": self.dice.roll(2)});
        if self.dice.roll(2) == 0 {
            body["limit"] = (1 + self.dice.roll(40)).into();
        }
        let http = Http::at(self.relay).with_token(&self.token);
        let request = match in_query(&body).filter(|_| self.dice.roll(2) == 0) {
            Some(query) => {
                self.done.count("poll through GET");
                http.request("GET", &format!("/api/sync/poll?{query}"))
            }
            None => {
                self.done.count("poll through POST");
                http.request("POST", "/api/sync/poll").json(&body)
            }
        };
        let answer = self.weather.in_time("a poll", request.whole()).await?;
        if answer.status != 200 {
            return Err(Setback::of_answer(&answer));
        }
        self.trail.note(format!("polls {body}, and is told {}", answer.text()));
        let answer: Answer = answer.parse();
        assert!(answer.is_whole(), "{}: {answer:?}", self.whereabouts());
        let mut required = Vec::new();
        let mut before = since.as_str().unwrap_or_default().to_owned();
        for message in answer.messages {
            let frame = message.frame();
            if let Some(change) = frame.change() {
                self.check_foreign(&change);
                chain.add(change.clone(), || self.whereabouts());
                let cursor = change.cursor.clone().unwrap_or_default();
                let rises = before.is_empty() || is_ahead(&cursor, &before);
                assert!(
                    rises && message.id == cursor,
                    "{}: {} after {before}",
                    self.whereabouts(),
                    frame.text
                );
                self.parts[at].apply(&mut self.copy, &change);
                self.done.count("change");
                before = cursor;
                continue;
            }
            match frame.kind.as_str() {
                "sync_required" => {
                    let json = frame.json();
                    self.note_required(&json);
                    required.extend(topics_of(&json));
                }
                "broadcast" | "granted" => {}
                _ => panic!("{}: an unknown message: {}", self.whereabouts(), frame.text),
            }
        }
        if body["limit"].as_u64() == Some(answer.count as u64) {
            self.done.count("poll that was cut");
        }
        self.stand_polled(at, answer.cursor, answer.timestamp, &before, by_time, required.is_empty());
        if required.is_empty() {
            return Ok(true);
        }
        self.done.count("sync required");
        self.do_as_required(required).await?;
        Ok(false)
    }

    /// Where the part stands behind an answer whose last change is at `last`.
    fn stand_polled(
        &mut self,
        at: usize,
        cursor: Option<String>,
        time: Option<i64>,
        last: &str,
        by_time: bool,
        whole: bool,
    ) {
        let who = self.whereabouts();
        let part = &mut self.parts[at];
        let Some(cursor) = cursor else {
            return assert!(!whole, "{who}: a poll without a cursor");
        };
        let stood = part.cursor.clone().unwrap_or_default();
        assert!(by_time || !is_ahead(&stood, &cursor), "{who}: a poll went back to {cursor}");
        assert!(!whole || last.is_empty() || !is_ahead(last, &cursor), "{who}: {last} lies behind {cursor}");
        // What came behind it comes again.
        if is_ahead(last, &cursor) && !part.repeats(last) {
            part.repeats_to = Some(last.to_owned());
        }
        part.cursor = Some(cursor);
        part.millis = time.or(part.millis);
    }
}
