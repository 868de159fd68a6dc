//! A device of any transport that keeps a copy, hears what it is told, and does what that asks.

use std::collections::VecDeque;
use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::support::copy::{Copy, SyncPage, pages};
use crate::support::device::Device;
use crate::support::events::{Events, ask};
use crate::support::frame::{Change, Frame, place};
use crate::support::http::Http;
use crate::support::postgres::TestPostgres;
use crate::support::relay::Relay;
use crate::support::wait::eventually;

/// On a busy machine, with DDL that the relay has to find.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Socket,
    Stream,
    Poll,
}

pub(super) const KINDS: [Kind; 3] = [Kind::Socket, Kind::Stream, Kind::Poll];

enum How {
    Socket(Box<Device>),
    Stream(Box<Events>),
    Poll(VecDeque<Frame>),
}

pub(super) struct Ear {
    /// For messages of failed tests.
    pub(super) name: String,
    pub(super) kind: Kind,
    user: String,
    http: Http,
    how: How,
    topics: Vec<String>,
    pub(super) copy: Copy,
    /// From where it goes on.
    pub(super) cursor: String,
    /// What waited for a DBA is mended: a wildcard is told so, with the reason to sync it by.
    pub(super) mended: Option<String>,
    told_mended: bool,
}

/// A poll's answer, with records as they were sent.
#[derive(Deserialize)]
struct Polled {
    messages: Vec<PolledMessage>,
    cursor: String,
}

#[derive(Deserialize)]
struct PolledMessage {
    payload: Box<RawValue>,
}

/// The topics of a user, all by one pattern or each by its name.
pub(super) fn topics(user: &str, named: bool) -> Vec<String> {
    let tables: &[&str] = if named { &["orders", "meals", "mark"] } else { &["*"] };
    tables.iter().map(|table| format!("user:{user}:{table}")).collect()
}

impl Ear {
    /// A device that holds a copy as of a cursor, and goes on from there.
    pub(super) async fn from(
        relay: &Relay,
        kind: Kind,
        user: &str,
        topics: Vec<String>,
        (copy, cursor): &(Copy, String),
    ) -> Self {
        let name = format!("{kind:?} of {}", topics.join(","));
        let http = relay.http_as(user);
        let how = match kind {
            Kind::Socket => {
                let mut device = Device::of(relay, user, "ear").connect().await;
                device.send(&json!({"type": "subscribe", "topics": topics, "cursor": cursor})).await;
                How::Socket(Box::new(device))
            }
            Kind::Stream => How::Stream(Box::new(stream(&http, &topics, cursor).await)),
            Kind::Poll => How::Poll(VecDeque::new()),
        };
        let (copy, cursor) = (copy.clone(), cursor.clone());
        let (mended, told_mended) = (None, false);
        Ear { name, kind, user: user.to_owned(), http, how, topics, copy, cursor, mended, told_mended }
    }

    async fn next(&mut self) -> Frame {
        match &mut self.how {
            How::Socket(device) => device.recv().await,
            How::Stream(events) => {
                let frame = events.recv().await;
                if let Some(id) = &events.id {
                    self.cursor.clone_from(id);
                }
                frame
            }
            How::Poll(waiting) => loop {
                if let Some(frame) = waiting.pop_front() {
                    return frame;
                }
                let since = self.cursor.clone().into();
                let answer = poll(&self.http, &self.topics, since, 15).await.expect_status(200);
                let answer: Polled = answer.parse();
                let frames = answer.messages.iter().map(|message| message.payload.get().to_owned());
                waiting.extend(frames.map(Frame::parse));
                self.cursor = answer.cursor;
            },
        }
    }

    /// What comes up to the next frame of this type. Changes are applied; nothing else may be news.
    pub(super) async fn until(&mut self, kind: &str) -> Value {
        let frame = self.until_frame(|frame| frame.kind == kind).await;
        frame.json()
    }

    /// Applies changes up to one that the test knows.
    pub(super) async fn until_change(&mut self, known: impl Fn(&Change) -> bool) {
        self.until_frame(|frame| frame.change().is_some_and(|change| known(&change))).await;
    }

    /// Whether it is told when a table is mended that it reads on without.
    fn reads_on(&self) -> bool {
        matches!(self.how, How::Socket(_)) && self.topics.iter().any(|topic| topic.ends_with('*'))
    }

    fn is_told_mended(&self, frame: &Frame) -> bool {
        let told = frame.json();
        frame.kind == "sync_required"
            && self.reads_on()
            && self.mended.as_deref() == told["reason"].as_str()
            && told["to"].is_string()
    }

    async fn until_frame(&mut self, is_it: impl Fn(&Frame) -> bool) -> Frame {
        let heard = async {
            loop {
                let frame = self.next().await;
                if let Some(change) = frame.change() {
                    assert!(
                        change.topic.starts_with(&format!("user:{}:", self.user)),
                        "{}: {change:?}",
                        self.name
                    );
                    self.copy.apply(&change);
                }
                if is_it(&frame) {
                    return frame;
                }
                if self.is_told_mended(&frame) {
                    self.told_mended = true;
                    continue;
                }
                let news = ["sync_required", "error", "revoked", "granted", "close"];
                assert!(!news.contains(&&*frame.kind), "{}: {}", self.name, frame.text);
            }
        };
        let heard = tokio::time::timeout(PATIENCE, heard).await;
        heard.unwrap_or_else(|_| panic!("the frame that was expected did not come"))
    }

    /// Told that a topic ends, as the protocol has it. Gives the whole frame.
    pub(super) async fn told(&mut self, topics: &[String], reason: &str) -> Value {
        let told = self.until("sync_required").await;
        // An answer's cursor is for all of its messages.
        if let How::Poll(waiting) = &mut self.how {
            waiting.drain(..).filter_map(|frame| frame.change()).for_each(|change| self.copy.apply(&change));
        }
        let name = &self.name;
        assert_eq!((&told["topics"], &told["reason"]), (&json!(topics), &json!(reason)), "{name}");
        assert!(told["retry_after_ms"].as_u64().is_some_and(|pause| pause <= 5_000), "{name}: {told}");
        if let (Some(from), Some(to)) = (told["from"].as_str(), told["to"].as_str()) {
            assert!(place(from) < place(to), "{name}: {told}");
        }
        told
    }

    /// Syncs as it was told to, and goes on from there over its own transport: a socket with the topics that
    /// ended, on the same socket; who has one cursor for all topics, with all of them.
    pub(super) async fn obey(&mut self, told: &Value, reason: &str) {
        let whole = told["topics"] == json!(self.topics);
        let (topics, from) = match &self.how {
            How::Socket(_) => (told["topics"].clone(), told["from"].clone()),
            How::Stream(_) | How::Poll(_) => (json!(self.topics), json!(self.cursor)),
        };
        let body = json!({"device_id": "ear", "topics": topics, "cursor": from});
        let answer = fully(&self.http, &body).await;
        let orders = &answer[0].tables["orders"];
        assert_eq!((orders.full, orders.reason.as_deref()), (true, Some(reason)), "{}", self.name);
        let meals = answer[0].tables.get("meals").is_some_and(|meals| meals.full);
        assert_eq!(meals, whole, "{}: only what ended is full", self.name);
        self.copy.apply_sync(&answer);
        self.cursor = answer[answer.len() - 1].cursor.clone();
        if let Some(to) = told["to"].as_str() {
            assert!(place(&self.cursor) >= place(to), "{}: {} for {told}", self.name, self.cursor);
        }
        match &mut self.how {
            How::Socket(device) => {
                device.send(&json!({"type": "subscribe", "topics": topics, "cursor": self.cursor})).await;
            }
            How::Stream(events) => **events = stream(&self.http, &self.topics, &self.cursor).await,
            How::Poll(_) => {}
        }
    }

    /// Everything that was committed until now has come, and the copy is the database's.
    pub(super) async fn arrive(&mut self, pg: &TestPostgres, tables: &[&str]) {
        let user = self.user.clone();
        let id = pg.value(&format!("SELECT rowcast.broadcast('user:{user}:mark', 'mark', 'null')")).await;
        self.until_frame(|frame| frame.kind == "broadcast" && frame.json()["id"] == id.as_str()).await;
        let mended = self.mended.is_some() && self.reads_on();
        assert_eq!(self.told_mended, mended, "{}: told that it is mended", self.name);
        for table in ["orders", "meals"] {
            let wanted = if tables.contains(&table) { "true" } else { "false" };
            let rows = format!("SELECT * FROM {table} WHERE user_id = {user} AND {wanted}");
            self.copy.assert_equals(pg, table, &rows).await;
        }
    }
}

async fn stream(http: &Http, topics: &[String], cursor: &str) -> Events {
    Events::open(ask(http, &topics.join(","), "").header("last-event-id", cursor)).await
}

/// A poll's answer; `since` is a cursor or a time.
pub(super) async fn poll(
    http: &Http,
    topics: &[String],
    since: Value,
    wait: u64,
) -> crate::support::http::Response {
    let body = json!({"device_id": "ear", "topics": topics, "since": since, "wait": wait});
    http.post("/api/sync/poll", &body).await
}

/// All pages of a sync, once no table waits for a DBA.
pub(super) async fn fully(http: &Http, body: &Value) -> Vec<SyncPage> {
    eventually(PATIENCE, "a sync of all tables", async || {
        let answer: Value = http.post("/api/realtime/sync", body).await.expect_status(200).json();
        let tables = answer["tables"].as_object().unwrap();
        tables.values().all(|table| table["unavailable"] != true).then_some(())
    })
    .await;
    pages(http, body).await
}
