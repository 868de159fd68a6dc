//! A device that comes and goes at random, and keeps its copy by the rules for clients.

use std::net::SocketAddr;
use std::ops::AddAssign;
use std::time::{Instant, UNIX_EPOCH};

use serde_json::{Value, json};

use super::weather::{Setback, Weather, frame_of};
use super::wish::Wish;
use crate::support::copy::Copy;
use crate::support::device::Device;
use crate::support::dice::Dice;
use crate::support::frame::{Change, Frame, place};
use crate::support::postgres::TestPostgres;
use crate::support::token;

const FAR_FUTURE: i64 = 4_102_444_800;

pub(super) struct Traveller {
    /// Where relays come and go.
    pub(super) relay: SocketAddr,
    pub(super) weather: Weather,
    pub(super) user: String,
    pub(super) name: String,
    pub(super) token: String,
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
    /// Since when it cannot go on.
    kept_since: Option<Instant>,
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
    /// Requests that were to be asked again.
    pub(super) put_off: u64,
    required: u64,
    /// How often it had to come back.
    set_back: u64,
    epochs: u64,
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
        self.set_back += other.set_back;
        self.epochs += other.epochs;
    }
}

impl Traveller {
    /// Begins with an empty copy of empty tables.
    pub(super) async fn start(
        relay: SocketAddr,
        weather: Weather,
        user: &str,
        name: &str,
        wish: Wish,
        dice: Dice,
    ) -> Self {
        let mut traveller = Traveller {
            relay,
            weather,
            user: user.to_owned(),
            name: name.to_owned(),
            token: token::user(user),
            wish,
            dice,
            copy: Copy::default(),
            cursor: String::new(),
            time: None,
            device: None,
            before: None,
            kept_since: None,
            done: Done::default(),
        };
        while let Err(setback) = traveller.connected().await {
            traveller.bear(setback).await;
        }
        traveller
    }

    pub(super) fn done(&self) -> Done {
        self.done
    }

    /// Does one thing that devices do.
    pub(super) async fn act(&mut self) {
        match self.try_act().await {
            Ok(()) => self.kept_since = None,
            Err(setback) => self.bear(setback).await,
        }
    }

    async fn try_act(&mut self) -> Result<(), Setback> {
        match self.dice.roll(16) {
            0..=4 => self.read().await,
            5 => {
                self.device = None;
                Ok(())
            }
            6 => self.send(&json!({"type": "ping"})).await,
            7 => self.resubscribe().await,
            8 | 9 => self.sync().await,
            10 => self.sync_in_full().await,
            11 => self.sync_by_time().await,
            12 => self.rest().await,
            13 => self.lag().await,
            _ => self.read_until_pong().await,
        }
    }

    /// Catches up with what is committed now. In rough weather, once it is over: the database is there.
    pub(super) async fn arrive(&mut self, pg: &TestPostgres) {
        let mark = format!("SELECT rowcast.broadcast('{}', 'mark', 'null')", self.wish.mark());
        let begun = Instant::now();
        loop {
            match self.catch_up(pg, &mark).await {
                Ok(true) => break,
                Ok(false) => {}
                Err(setback) => self.bear(setback).await,
            }
            let patience = self.weather.patience();
            assert!(begun.elapsed() < patience, "{} did not arrive within {patience:?}", self.whereabouts());
        }
        self.kept_since = None;
    }

    async fn catch_up(&mut self, pg: &TestPostgres, mark: &str) -> Result<bool, Setback> {
        // A mark that is committed while it syncs over REST is behind it.
        self.connected().await?;
        let id = pg.value(mark).await;
        self.take_until(|frame| frame.kind == "broadcast" && frame.json()["id"] == *id).await
    }

    /// Comes back later, if that is what the weather asks for.
    pub(super) async fn bear(&mut self, setback: Setback) {
        assert!(self.weather.bears(&setback), "{}: {setback}", self.whereabouts());
        self.device = None;
        self.before = None;
        if setback.token {
            self.token = mint_now(&self.user);
        }
        let since = *self.kept_since.get_or_insert_with(Instant::now);
        let patience = self.weather.patience();
        assert!(
            since.elapsed() < patience,
            "{} could not go on for {patience:?}: {setback}",
            self.whereabouts()
        );
        self.done.set_back += 1;
        tokio::time::sleep(setback.pause).await;
    }

    /// Which device, how it travels, and where it stands.
    pub(super) fn whereabouts(&self) -> String {
        let transport = if self.device.is_some() { "a WebSocket" } else { "no connection" };
        format!(
            "user {}'s device {} of {:?} on {transport} at {}",
            self.user, self.name, self.wish.topics, self.cursor
        )
    }

    /// Some frames, which may end anywhere; there is always one more after a ping.
    async fn read(&mut self) -> Result<(), Setback> {
        let mut left = 1 + self.dice.roll(40);
        self.send(&json!({"type": "ping"})).await?;
        self.take_until(|frame| {
            left -= 1;
            left == 0 || frame.kind == "pong"
        })
        .await?;
        Ok(())
    }

    async fn read_until_pong(&mut self) -> Result<(), Setback> {
        self.send(&json!({"type": "ping", "ref": "p"})).await?;
        self.take_until(|frame| frame.kind == "pong" && frame.json()["ref"] == "p").await?;
        Ok(())
    }

    /// Unsubscribes, and subscribes with the cursor on the same socket.
    async fn resubscribe(&mut self) -> Result<(), Setback> {
        let topics = json!(self.wish.topics);
        if self.dice.roll(2) == 0 {
            self.send(&json!({"type": "unsubscribe", "topics": topics})).await?;
            if !self.take_until(|frame| frame.kind == "unsubscribed").await? {
                return Ok(());
            }
        }
        let cursor = self.cursor.clone();
        let subscribe = json!({"type": "subscribe", "topics": topics, "cursor": cursor, "ref": cursor});
        self.send(&subscribe).await?;
        // Until then the old subscription goes on; what it brought comes again from the cursor on.
        loop {
            let frame = self.recv().await?;
            match frame.kind.as_str() {
                "subscribed" if frame.json()["ref"] == cursor.as_str() => break,
                "sync_required" => return self.sync_as_required(&frame).await,
                _ => {}
            }
        }
        self.before = None;
        Ok(())
    }

    /// Away for as long as some commits take.
    async fn rest(&mut self) -> Result<(), Setback> {
        self.device = None;
        self.let_commits_pass().await
    }

    /// Connected, and reads nothing for as long.
    async fn lag(&mut self) -> Result<(), Setback> {
        self.device = None;
        self.connect(true).await?;
        self.let_commits_pass().await?;
        self.read_until_pong().await
    }

    async fn let_commits_pass(&self) -> Result<(), Setback> {
        let watch = Device::at(self.relay, &self.user, "watch").token(&self.token);
        let mut other = self.weather.in_time("the handshake of a second device", watch.handshake()).await?;
        let subscribe = json!({"type": "subscribe", "topics": [self.wish.own()]});
        for message in [subscribe, json!({"type": "ping"}), json!({"type": "ping"}), json!({"type": "ping"})]
        {
            let sent = other.try_send(&message).await;
            let wanted = if message["type"] == "ping" { "pong" } else { "subscribed" };
            while sent && self.next_of(&mut other).await?.kind != wanted {}
        }
        Ok(())
    }

    /// What the copy lacks is no longer in the changes.
    async fn sync_as_required(&mut self, frame: &Frame) -> Result<(), Setback> {
        self.check_reason(&frame.json()["reason"]);
        self.done.required += 1;
        self.sync().await
    }

    /// That a copy counts no more has its reasons. A new log is none where nothing was broken.
    pub(super) fn check_reason(&mut self, reason: &Value) {
        let reason = reason.as_str().unwrap_or_default();
        assert!(!reason.is_empty(), "{} was given no reason", self.whereabouts());
        self.done.epochs += u64::from(reason == "epoch");
        assert!(
            reason != "epoch" || self.weather == Weather::Rough,
            "{} has to sync: {reason}",
            self.whereabouts()
        );
    }

    async fn connected(&mut self) -> Result<(), Setback> {
        let begun = Instant::now();
        while self.device.is_none() {
            self.connect(false).await?;
            assert!(begun.elapsed() < self.weather.patience(), "{} is not let in", self.whereabouts());
        }
        Ok(())
    }

    async fn send(&mut self, message: &Value) -> Result<(), Setback> {
        self.connected().await?;
        let device = self.device.as_mut().expect("connected above");
        if device.try_send(message).await { Ok(()) } else { Err(Setback::broken("nothing can be sent")) }
    }

    async fn recv(&mut self) -> Result<Frame, Setback> {
        self.connected().await?;
        let weather = self.weather;
        let device = self.device.as_mut().expect("connected above");
        weather.in_time("a frame", async { frame_of(device.next_incoming().await) }).await
    }

    async fn next_of(&self, device: &mut Device) -> Result<Frame, Setback> {
        self.weather.in_time("a frame", async { frame_of(device.next_incoming().await) }).await
    }

    /// Connects and subscribes; where it has to sync instead, it does, and is not connected then.
    async fn connect(&mut self, small_buffer: bool) -> Result<(), Setback> {
        let connect = Device::at(self.relay, &self.user, &self.name).token(&self.token);
        let connect = connect.query(&format!("batch={}", self.dice.roll(2)));
        let connect = if small_buffer { connect.small_buffer() } else { connect };
        let mut device = self.weather.in_time("the handshake", connect.handshake()).await?;
        let mut subscribe = json!({"type": "subscribe", "topics": self.wish.topics});
        if !self.cursor.is_empty() {
            subscribe["cursor"] = self.cursor.clone().into();
        }
        if !device.try_send(&subscribe).await {
            return Err(Setback::broken("nothing can be sent"));
        }
        let subscribed = loop {
            let frame = self.next_of(&mut device).await?;
            match frame.kind.as_str() {
                "connection_established" | "heartbeat" | "other_device_synced" => {}
                "subscribed" => break frame.cursor().expect("a cursor"),
                "sync_required" => return self.sync_as_required(&frame).await,
                _ => panic!("{} was told before it subscribed: {}", self.whereabouts(), frame.text),
            }
        };
        if self.cursor.is_empty() {
            self.cursor = subscribed;
        } else {
            assert_eq!(place(&subscribed), place(&self.cursor), "{}", self.whereabouts());
        }
        self.device = Some(device);
        self.before = None;
        self.done.connected += 1;
        Ok(())
    }

    /// Takes frames up to one; false if there was none, for the device had to sync.
    async fn take_until(&mut self, mut over: impl FnMut(&Frame) -> bool) -> Result<bool, Setback> {
        let begun = Instant::now();
        loop {
            let frame = self.recv().await?;
            if frame.kind == "sync_required" {
                self.sync_as_required(&frame).await?;
                return Ok(false);
            }
            let last = over(&frame);
            self.take(frame);
            if last {
                return Ok(true);
            }
            let patience = self.weather.patience();
            assert!(
                begun.elapsed() < patience,
                "{} waits for a frame that does not come",
                self.whereabouts()
            );
        }
    }

    fn take(&mut self, frame: Frame) {
        if let Some(change) = frame.change() {
            self.check_foreign(&change);
            self.check_whole(&change);
            let cursor = change.cursor.as_deref().unwrap_or_default();
            assert!(is_ahead(cursor, &self.cursor), "{} was told {}", self.whereabouts(), frame.text);
            self.copy.apply(&change);
            self.before = Some(change);
            self.done.changes += 1;
        }
        // Of a replay that was ended by a new subscription nothing stands where it would have ended.
        let of_nothing = frame.kind == "caught_up" && frame.json()["topics"] == json!([]);
        // A session may stand behind the cursor that it was given: the greater one counts.
        if let Some(cursor) = frame.cursor().filter(|cursor| !of_nothing && is_ahead(cursor, &self.cursor)) {
            self.cursor = cursor;
        }
    }

    pub(super) fn check_foreign(&self, change: &Change) {
        let record = change.new_record.as_ref().map(|record| record.get());
        assert!(self.wish.allows(&change.topic, record), "{} was told {change:?}", self.whereabouts());
    }

    /// A transaction ends with `last`, and with nothing else.
    fn check_whole(&self, change: &Change) {
        let commit = |change: &Change| change.cursor.as_ref().unwrap()[..33].to_owned();
        let Some(before) = &self.before else { return };
        let same = commit(before) == commit(change);
        assert_eq!(before.last, Some(!same), "{before:?}\nand then {change:?}");
    }
}

/// Whether a cursor reaches further. Those of two epochs do not compare: the copy was synced in full.
pub(super) fn is_ahead(cursor: &str, before: &str) -> bool {
    place(cursor) > place(before) && cursor.get(..16) == before.get(..16)
}

/// A token as an app gets it when the one before counts no more.
fn mint_now(user: &str) -> String {
    let now = UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
    token::mint(&json!({"sub": user, "exp": FAR_FUTURE, "iat": now}))
}
