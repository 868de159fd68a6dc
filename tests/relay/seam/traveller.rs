//! A device that comes and goes at random, and keeps its copy by the rules for clients.

use serde_json::json;

use crate::support::copy::Copy;
use crate::support::device::Device;
use crate::support::dice::Dice;
use crate::support::frame::{Change, Frame};
use crate::support::postgres::TestPostgres;
use crate::support::relay::Relay;

pub(super) struct Traveller {
    user: String,
    name: String,
    dice: Dice,
    copy: Copy,
    /// The greatest cursor of `user:{user}:*`.
    cursor: String,
    device: Option<Device>,
    /// The change before, of this connection and subscription.
    before: Option<Change>,
}

impl Traveller {
    /// Begins with an empty copy of empty tables.
    pub(super) async fn start(relay: &Relay, user: &str, name: &str, dice: Dice) -> Self {
        let mut device = Device::of(relay, user, name).connect().await;
        let pattern = format!("user:{user}:*");
        let cursor = device.subscribe(&[&pattern], None).await.cursor().unwrap();
        let (user, name) = (user.to_owned(), name.to_owned());
        Traveller { user, name, dice, copy: Copy::default(), cursor, device: Some(device), before: None }
    }

    /// Does one thing that devices do.
    pub(super) async fn act(&mut self, relay: &Relay) {
        match self.dice.roll(10) {
            0..=3 => self.read(relay).await,
            4 => self.device = None,
            5 => self.connected(relay).await.send(&json!({"type": "ping"})).await,
            6 => self.resubscribe(relay).await,
            7 => self.sync(relay).await,
            8 => self.rest(relay).await,
            _ => self.read_until_pong(relay).await,
        }
    }

    /// Catches up, and compares.
    pub(super) async fn arrive(&mut self, pg: &TestPostgres, relay: &Relay) {
        let id =
            pg.value(&format!("SELECT rowcast.broadcast('user:{}:mark', 'mark', 'null')", self.user)).await;
        loop {
            let frame = self.connected(relay).await.recv().await;
            let over = frame.kind == "broadcast" && frame.json()["id"] == id.as_str();
            self.take(frame);
            if over {
                break;
            }
        }
        for table in ["a", "b"] {
            let query = format!("SELECT * FROM {table} WHERE user_id = {}", self.user);
            self.copy.assert_equals(pg, table, &query).await;
        }
    }

    /// Some frames, which may end anywhere; there is always one more after a ping.
    async fn read(&mut self, relay: &Relay) {
        let count = 1 + self.dice.roll(40);
        self.connected(relay).await.send(&json!({"type": "ping"})).await;
        for _ in 0..count {
            let frame = self.connected(relay).await.recv().await;
            let over = frame.kind == "pong";
            self.take(frame);
            if over {
                break;
            }
        }
    }

    async fn read_until_pong(&mut self, relay: &Relay) {
        self.connected(relay).await.send(&json!({"type": "ping", "ref": "p"})).await;
        self.take_until(relay, |frame| frame.kind == "pong" && frame.json()["ref"] == "p").await;
    }

    /// Unsubscribes, and subscribes with the cursor on the same socket.
    async fn resubscribe(&mut self, relay: &Relay) {
        let topics = json!([format!("user:{}:*", self.user)]);
        if self.dice.roll(2) == 0 {
            self.connected(relay).await.send(&json!({"type": "unsubscribe", "topics": topics})).await;
            self.take_until(relay, |frame| frame.kind == "unsubscribed").await;
        }
        let cursor = self.cursor.clone();
        self.connected(relay)
            .await
            .send(&json!({"type": "subscribe", "topics": topics, "cursor": cursor, "ref": cursor}))
            .await;
        // Until then the old subscription goes on; what it brought comes again from the cursor on.
        loop {
            let frame = self.connected(relay).await.recv().await;
            match frame.kind.as_str() {
                "subscribed" if frame.json()["ref"] == cursor.as_str() => break,
                "error" | "sync_required" => panic!("unexpected: {}", frame.text),
                _ => {}
            }
        }
        self.before = None;
    }

    /// Over REST, in pages, from where the copy stands; then on from there.
    async fn sync(&mut self, relay: &Relay) {
        self.device = None;
        let limit = 1 + self.dice.roll(30);
        let body = json!({"device_id": self.name, "topics": [format!("user:{}:*", self.user)],
            "cursor": self.cursor, "limit": limit});
        let cursor = self.copy.sync(&relay.http_as(&self.user), &body).await;
        assert!(cursor >= self.cursor, "a sync went back");
        self.cursor = cursor;
    }

    /// Away for as long as some commits take.
    async fn rest(&mut self, relay: &Relay) {
        self.device = None;
        let mut other = Device::of(relay, &self.user, "watch").connect().await;
        other.subscribe(&[&format!("user:{}:*", self.user)], None).await;
        for _ in 0..3 {
            other.send(&json!({"type": "ping"})).await;
            while other.recv().await.kind != "pong" {}
        }
    }

    async fn connected(&mut self, relay: &Relay) -> &mut Device {
        if self.device.is_none() {
            let batch = format!("batch={}", self.dice.roll(2));
            let mut device = Device::of(relay, &self.user, &self.name).query(&batch).connect().await;
            let subscribed = device.subscribe(&[&format!("user:{}:*", self.user)], Some(&self.cursor)).await;
            // What a cursor of REST says besides is not the session's matter.
            let cursor = subscribed.cursor().expect("a cursor");
            assert!(self.cursor.starts_with(&cursor), "{cursor} {}", self.cursor);
            self.device = Some(device);
            self.before = None;
        }
        self.device.as_mut().expect("connected above")
    }

    async fn take_until(&mut self, relay: &Relay, mut over: impl FnMut(&Frame) -> bool) {
        loop {
            let frame = self.connected(relay).await.recv().await;
            let last = over(&frame);
            self.take(frame);
            if last {
                break;
            }
        }
    }

    fn take(&mut self, frame: Frame) {
        assert!(frame.kind != "error" && frame.kind != "sync_required", "unexpected: {}", frame.text);
        if let Some(change) = frame.change() {
            let owner = format!("user:{}:", self.user);
            assert!(change.topic.starts_with(&owner), "{}'s device was told {}", self.user, frame.text);
            self.check_whole(&change);
            self.copy.apply(&change);
            self.before = Some(change);
        }
        if let Some(cursor) = frame.cursor() {
            assert!(cursor >= self.cursor, "{cursor} after {}: {}", self.cursor, frame.text);
            self.cursor = cursor;
        }
    }

    /// A transaction ends with `last`, and with nothing else.
    fn check_whole(&self, change: &Change) {
        let commit = |change: &Change| change.cursor.as_ref().unwrap()[..33].to_owned();
        let Some(before) = &self.before else { return };
        let same = commit(before) == commit(change);
        assert_eq!(before.last, Some(!same), "{before:?}\nand then {change:?}");
    }
}
