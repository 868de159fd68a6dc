//! A device that comes and goes at random, and keeps its copy by the rules for clients.

use std::ops::AddAssign;

use serde_json::json;

use super::wish::Wish;
use crate::support::copy::Copy;
use crate::support::device::Device;
use crate::support::dice::Dice;
use crate::support::frame::{Change, Frame, place};
use crate::support::postgres::TestPostgres;
use crate::support::relay::Relay;

pub(super) struct Traveller {
    pub(super) user: String,
    pub(super) name: String,
    pub(super) wish: Wish,
    pub(super) dice: Dice,
    pub(super) copy: Copy,
    /// The greatest cursor of the wish's topics.
    pub(super) cursor: String,
    /// What the last answer over REST called its time.
    pub(super) time: Option<String>,
    pub(super) device: Option<Device>,
    /// The change before, of this connection and subscription.
    before: Option<Change>,
    pub(super) done: Done,
}

/// How often a traveller did or met something that may be rare.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Done {
    changes: u64,
    connected: u64,
    pub(super) full: u64,
    pub(super) by_time: u64,
    pub(super) lines: u64,
    /// Syncs that were to be asked for again.
    pub(super) put_off: u64,
    required: u64,
}

impl AddAssign for Done {
    fn add_assign(&mut self, other: Done) {
        self.changes += other.changes;
        self.connected += other.connected;
        self.full += other.full;
        self.by_time += other.by_time;
        self.lines += other.lines;
        self.put_off += other.put_off;
        self.required += other.required;
    }
}

impl Traveller {
    /// Begins with an empty copy of empty tables.
    pub(super) async fn start(relay: &Relay, user: &str, name: &str, wish: Wish, dice: Dice) -> Self {
        let mut device = Device::of(relay, user, name).connect().await;
        let topics: Vec<&str> = wish.topics.iter().map(String::as_str).collect();
        let cursor = device.subscribe(&topics, None).await.cursor().unwrap();
        Traveller {
            user: user.to_owned(),
            name: name.to_owned(),
            wish,
            dice,
            copy: Copy::default(),
            cursor,
            time: None,
            device: Some(device),
            before: None,
            done: Done::default(),
        }
    }

    pub(super) fn done(&self) -> Done {
        self.done
    }

    /// Does one thing that devices do.
    pub(super) async fn act(&mut self, relay: &Relay) {
        match self.dice.roll(16) {
            0..=4 => self.read(relay).await,
            5 => self.device = None,
            6 => self.connected(relay).await.send(&json!({"type": "ping"})).await,
            7 => self.resubscribe(relay).await,
            8 | 9 => self.sync(relay).await,
            10 => self.sync_in_full(relay).await,
            11 => self.sync_by_time(relay).await,
            12 => self.rest(relay).await,
            13 => self.lag(relay).await,
            _ => self.read_until_pong(relay).await,
        }
    }

    /// Catches up with what is committed now.
    pub(super) async fn arrive(&mut self, pg: &TestPostgres, relay: &Relay) {
        let topic = self.wish.mark().replace('\'', "''");
        let mark = format!("SELECT rowcast.broadcast('{topic}', 'mark', 'null')");
        loop {
            // A mark that is committed while it syncs over REST is behind it.
            self.connected(relay).await;
            let id = pg.value(&mark).await;
            if self.take_until(relay, |frame| frame.kind == "broadcast" && frame.json()["id"] == *id).await {
                break;
            }
        }
    }

    /// Some frames, which may end anywhere; there is always one more after a ping.
    async fn read(&mut self, relay: &Relay) {
        let mut left = 1 + self.dice.roll(40);
        self.connected(relay).await.send(&json!({"type": "ping"})).await;
        self.take_until(relay, |frame| {
            left -= 1;
            left == 0 || frame.kind == "pong"
        })
        .await;
    }

    async fn read_until_pong(&mut self, relay: &Relay) {
        self.connected(relay).await.send(&json!({"type": "ping", "ref": "p"})).await;
        self.take_until(relay, |frame| frame.kind == "pong" && frame.json()["ref"] == "p").await;
    }

    /// Unsubscribes, and subscribes with the cursor on the same socket.
    async fn resubscribe(&mut self, relay: &Relay) {
        let topics = json!(self.wish.topics);
        if self.dice.roll(2) == 0 {
            self.connected(relay).await.send(&json!({"type": "unsubscribe", "topics": topics})).await;
            if !self.take_until(relay, |frame| frame.kind == "unsubscribed").await {
                return;
            }
        }
        let cursor = self.cursor.clone();
        let subscribe = json!({"type": "subscribe", "topics": topics, "cursor": cursor, "ref": cursor});
        self.connected(relay).await.send(&subscribe).await;
        // Until then the old subscription goes on; what it brought comes again from the cursor on.
        loop {
            let frame = self.connected(relay).await.recv().await;
            match frame.kind.as_str() {
                "subscribed" if frame.json()["ref"] == cursor.as_str() => break,
                "sync_required" => return self.sync_as_required(relay).await,
                "error" => panic!("unexpected: {}", frame.text),
                _ => {}
            }
        }
        self.before = None;
    }

    /// Away for as long as some commits take.
    async fn rest(&mut self, relay: &Relay) {
        self.device = None;
        self.let_commits_pass(relay).await;
    }

    /// Connected, and reads nothing for as long.
    async fn lag(&mut self, relay: &Relay) {
        self.device = None;
        self.connect(relay, true).await;
        self.let_commits_pass(relay).await;
        self.read_until_pong(relay).await;
    }

    async fn let_commits_pass(&self, relay: &Relay) {
        let mut other = Device::of(relay, &self.user, "watch").connect().await;
        other.subscribe(&[&self.wish.own()], None).await;
        for _ in 0..3 {
            other.send(&json!({"type": "ping"})).await;
            while other.recv().await.kind != "pong" {}
        }
    }

    /// What the copy lacks is no longer in the changes.
    async fn sync_as_required(&mut self, relay: &Relay) {
        self.done.required += 1;
        self.sync(relay).await;
    }

    async fn connected(&mut self, relay: &Relay) -> &mut Device {
        if self.device.is_none() {
            self.connect(relay, false).await;
        }
        self.device.as_mut().expect("connected above")
    }

    async fn connect(&mut self, relay: &Relay, small_buffer: bool) {
        let connect =
            Device::of(relay, &self.user, &self.name).query(&format!("batch={}", self.dice.roll(2)));
        let connect = if small_buffer { connect.small_buffer() } else { connect };
        let mut device = connect.connect().await;
        let topics: Vec<&str> = self.wish.topics.iter().map(String::as_str).collect();
        let subscribed = device.subscribe(&topics, Some(&self.cursor)).await;
        assert_eq!(subscribed.cursor().as_deref().map(place), Some(place(&self.cursor)));
        self.device = Some(device);
        self.before = None;
        self.done.connected += 1;
    }

    /// Takes frames up to one; false if there was none, for the device had to sync.
    async fn take_until(&mut self, relay: &Relay, mut over: impl FnMut(&Frame) -> bool) -> bool {
        loop {
            let frame = self.connected(relay).await.recv().await;
            if frame.kind == "sync_required" {
                self.sync_as_required(relay).await;
                return false;
            }
            let last = over(&frame);
            self.take(frame);
            if last {
                return true;
            }
        }
    }

    fn take(&mut self, frame: Frame) {
        assert!(frame.kind != "error", "unexpected: {}", frame.text);
        if let Some(change) = frame.change() {
            let record = change.new_record.as_ref().map(|record| record.get());
            assert!(
                self.wish.allows(&change.topic, record),
                "{}'s device was told {}",
                self.user,
                frame.text
            );
            self.check_whole(&change);
            let (cursor, before) = (place(change.cursor.as_deref().unwrap_or_default()), place(&self.cursor));
            assert!(cursor > before, "{cursor} after {before}: {}", frame.text);
            self.copy.apply(&change);
            self.before = Some(change);
            self.done.changes += 1;
        }
        // Of a replay that was ended by a new subscription nothing stands where it would have ended.
        let of_nothing = frame.kind == "caught_up" && frame.json()["topics"] == json!([]);
        // A session may stand behind the cursor that it was given: the greater one counts.
        if let Some(cursor) =
            frame.cursor().filter(|cursor| !of_nothing && place(cursor) > place(&self.cursor))
        {
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
