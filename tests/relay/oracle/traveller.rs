//! A device that comes and goes at random by every transport, and keeps its copy by the rules for clients.

use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Instant;

use serde_json::{Value, json};

use super::calls::From;
use super::parts::{Part, covers, is_ahead};
use super::socket::{Socket, part_of, topics_of};
use super::stream::Stream;
use super::tally::Done;
use super::tokens;
use super::trail::Trail;
use super::weather::{Setback, Weather};
use super::wish::Wish;
use crate::support::copy::{Copy, table_of};
use crate::support::device::Device;
use crate::support::dice::Dice;
use crate::support::frame::{Change, Frame, place};
use crate::support::http::Http;

pub(super) struct Traveller {
    /// Where relays come and go.
    pub(super) relay: SocketAddr,
    pub(super) weather: Weather,
    pub(super) user: String,
    pub(super) name: String,
    pub(super) token: String,
    /// Its token grants less than the wish.
    pub(super) narrow: bool,
    pub(super) wish: Wish,
    pub(super) dice: Dice,
    pub(super) copy: Copy,
    /// What is granted of the wish.
    pub(super) parts: Vec<Part>,
    /// What is not, at the moment.
    pub(super) lost: Vec<String>,
    pub(super) link: Link,
    /// It has the empty copy of empty tables.
    pub(super) is_new: bool,
    /// The greatest place and time that REST told, of one epoch.
    pub(super) latest: Option<(String, String)>,
    /// The last `sync_required`, for whoever reads a failure.
    pub(super) told: String,
    pub(super) trail: Trail,
    /// Since when it cannot go on.
    pub(super) kept_since: Option<Instant>,
    pub(super) done: Done,
}

/// What is open to the relay.
pub(super) enum Link {
    Away,
    Socket(Box<Socket>),
    Stream(Box<Stream>),
}

impl Traveller {
    /// Begins with an empty copy of empty tables.
    pub(super) async fn start(
        relay: SocketAddr,
        weather: Weather,
        user: &str,
        name: &str,
        wish: Wish,
        mut dice: Dice,
    ) -> Self {
        let parts = Part::divide(&wish, &mut dice);
        let mut traveller = Traveller {
            relay,
            weather,
            user: user.to_owned(),
            name: name.to_owned(),
            token: tokens::wide(user),
            narrow: false,
            wish,
            dice,
            copy: Copy::default(),
            parts,
            lost: Vec::new(),
            link: Link::Away,
            is_new: true,
            latest: None,
            told: String::new(),
            trail: Trail::of(format!("user {user}'s device {name}")),
            kept_since: None,
            done: Done::default(),
        };
        while let Err(setback) = traveller.board().await {
            traveller.bear(setback).await;
        }
        traveller.is_new = false;
        traveller
    }

    pub(super) fn done(&self) -> Done {
        self.done.clone()
    }

    /// Does one thing that devices do.
    pub(super) async fn act(&mut self) {
        match self.try_act().await {
            Ok(()) => self.kept_since = None,
            Err(setback) => self.bear(setback).await,
        }
    }

    async fn try_act(&mut self) -> Result<(), Setback> {
        let at = self.dice.roll(self.parts.len() as u64) as usize;
        match self.dice.roll(36) {
            0..=7 => self.read().await,
            8 => {
                self.leave();
                Ok(())
            }
            9 => self.acknowledge().await,
            10 | 11 => self.resubscribe().await,
            12 | 13 => self.sync_alone(at, From::Cursor).await,
            14 => self.sync_alone(at, From::Nothing).await,
            15 | 16 => self.sync_alone(at, From::Time).await,
            17 => {
                self.leave();
                self.done.count("rested");
                self.let_commits_pass().await
            }
            18 => self.lag().await,
            19 | 20 => self.poll_some(at).await,
            21 => self.poll_by_time(at).await,
            22 | 23 => self.snapshot(at).await,
            24..=26 => self.open_stream(at).await,
            27 => self.read_compressed(at).await,
            28..=31 => self.change_token().await,
            32 => self.be_removed().await,
            _ => self.divide_anew().await,
        }
    }

    /// Comes back later, if that is what the weather asks for.
    pub(super) async fn bear(&mut self, setback: Setback) {
        self.trail.note(format!("is set back: {setback}"));
        assert!(self.weather.bears(&setback), "{}: {setback}", self.whereabouts());
        if setback.token {
            self.token = tokens::minted_now(&self.user, self.narrow);
        }
        if let Some(topic) = &setback.lost {
            assert!(self.narrow, "{} is not granted {topic}", self.whereabouts());
            self.done.count("not granted any more");
            self.lose(std::slice::from_ref(topic));
        }
        let since = *self.kept_since.get_or_insert_with(Instant::now);
        let patience = self.weather.patience();
        assert!(
            since.elapsed() < patience,
            "{} could not go on for {patience:?}: {setback}",
            self.whereabouts()
        );
        self.leave();
        self.done.count("set back");
        tokio::time::sleep(setback.pause).await;
    }

    /// Leaves what is open. A table that went on by its name stands with its wildcard again, or the
    /// wildcard begins anew.
    pub(super) fn leave(&mut self) {
        self.link = Link::Away;
        while let Some(at) = self.parts.iter().position(|part| part.aside) {
            let aside = self.parts.remove(at);
            let wild = self.parts.iter_mut().find(|part| part.covers(&aside.topics[0]));
            let Some(part) = wild else { continue };
            part.blocked |= aside.blocked;
            if aside.cursor.is_none_or(|cursor| !part.stands_at(&cursor)) {
                part.forget_place();
            }
        }
    }

    /// Which device, how it travels, and where it stands.
    pub(super) fn whereabouts(&self) -> String {
        let transport = match &self.link {
            Link::Away => "no connection".to_owned(),
            Link::Socket(_) => "a WebSocket".to_owned(),
            Link::Stream(stream) => format!("events of {:?}", stream.topics),
        };
        let stand =
            |part: &Part| format!("{:?} at {}", part.topics, part.cursor.as_deref().unwrap_or("nothing"));
        let parts: Vec<String> = self.parts.iter().map(stand).collect();
        format!("user {}'s device {} on {transport}, {}", self.user, self.name, parts.join(", "))
    }

    /// Some frames of what is open, which may end anywhere; opens something, if nothing is.
    async fn read(&mut self) -> Result<(), Setback> {
        match (&self.link, self.dice.roll(3)) {
            (Link::Stream(_), _) => self.read_stream().await,
            (Link::Away, 0) => {
                let at = self.dice.roll(self.parts.len() as u64) as usize;
                self.open_stream(at).await
            }
            (_, 1) => {
                self.board().await?;
                self.ask_socket("ping", json!({}), &[]).await
            }
            _ => {
                self.board().await?;
                let mut left = 1 + self.dice.roll(40);
                // There is always one more after a ping.
                self.send(&json!({"type": "ping"})).await?;
                let over = |frame: &Frame| {
                    left -= 1;
                    left == 0 || frame.kind == "pong"
                };
                self.take_until(over).await.map(drop)
            }
        }
    }

    /// Says what it has, which is its sync status then.
    async fn acknowledge(&mut self) -> Result<(), Setback> {
        self.board().await?;
        let Some(cursor) = self.parts.iter().find_map(|part| part.cursor.clone()) else { return Ok(()) };
        self.send(&json!({"type": "ack", "cursor": cursor})).await?;
        self.ask_socket("ping", json!({}), &[]).await?;
        let path = format!("/api/realtime/sync-status?device_id={}", self.name);
        let http = Http::at(self.relay).with_token(&self.token);
        let status = self.weather.in_time("a sync status", http.request("GET", &path).whole()).await?;
        if status.status != 200 {
            return Err(Setback::of_answer(&status));
        }
        let told = status.json()["cursor"].as_str().map(place).map(str::to_owned);
        let right = told.as_deref() == Some(place(&cursor));
        assert!(
            right || self.weather == Weather::Rough,
            "{} acknowledged {cursor}: {told:?}",
            self.whereabouts()
        );
        self.done.count("ack");
        Ok(())
    }

    /// Connected, and reads nothing for as long as some commits take.
    async fn lag(&mut self) -> Result<(), Setback> {
        self.open_socket(true).await?;
        self.board().await?;
        let before = self.sessions_behind().await?;
        self.let_commits_pass().await?;
        self.done.count("lagged");
        if self.sessions_behind().await? > before {
            self.done.count("sent to the log");
        }
        if matches!(self.link, Link::Socket(_)) {
            self.ask_socket("ping", json!({}), &[]).await?;
        }
        Ok(())
    }

    /// How often a session was sent to the log, whoever's.
    async fn sessions_behind(&self) -> Result<u64, Setback> {
        let metrics = Http::at(self.relay).request("GET", "/metrics");
        let metrics = self.weather.in_time("metrics", metrics.whole()).await?;
        let lines = metrics.text().lines();
        let value = lines.filter_map(|line| line.strip_prefix("rowcast_sessions_behind_total "));
        Ok(value.filter_map(|value| value.parse::<u64>().ok()).sum())
    }

    pub(super) async fn let_commits_pass(&self) -> Result<(), Setback> {
        let watch = Device::at(self.relay, &self.user, "watch").token(&self.token);
        let mut other = self.weather.in_time("the handshake of a second device", watch.handshake()).await?;
        let subscribe = json!({"type": "subscribe", "topics": [self.wish.own()]});
        for message in [subscribe, json!({"type": "ping"}), json!({"type": "ping"}), json!({"type": "ping"})]
        {
            let wanted = if message["type"] == "ping" { "pong" } else { "subscribed" };
            if !other.try_send(&message).await {
                return Err(Setback::broken("nothing can be sent"));
            }
            let begun = Instant::now();
            loop {
                let next = async { super::weather::frame_of(other.next_incoming().await) };
                if self.weather.in_time("a frame for a second device", next).await?.kind == wanted {
                    break;
                }
                assert!(begun.elapsed() < self.weather.patience(), "no {wanted}: {}", self.whereabouts());
            }
        }
        Ok(())
    }

    async fn snapshot(&mut self, at: usize) -> Result<(), Setback> {
        if !matches!(self.link, Link::Socket(_)) {
            self.open_socket(false).await?;
        }
        // With the others around it, if they are there.
        if at < self.parts.len() && !self.parts[at].aside {
            self.show(at).await?;
        }
        Ok(())
    }

    /// Its user removes it, and takes it up again.
    async fn be_removed(&mut self) -> Result<(), Setback> {
        let path = format!("/api/realtime/devices/{}", self.name);
        let http = Http::at(self.relay).with_token(&self.token);
        let removed =
            self.weather.in_time("removing a device", http.request("DELETE", &path).whole()).await?;
        if !matches!(removed.status, 204 | 404) {
            return Err(Setback::of_answer(&removed));
        }
        if let Link::Socket(_) = self.link
            && removed.status == 204
        {
            self.await_removal().await?;
        }
        self.done.count("device removed");
        self.leave();
        Ok(())
    }

    /// Divides what it wants otherwise, where all of it stands at one place.
    async fn divide_anew(&mut self) -> Result<(), Setback> {
        if self.parts.len() > 1 {
            self.board().await?;
            self.ask_socket("ping", json!({}), &[]).await?;
        }
        self.leave();
        let first = self.parts[0].clone();
        let Some(cursor) = first.cursor.clone().filter(|_| self.lost.is_empty()) else { return Ok(()) };
        if self.parts.iter().all(|part| part.stands_at(&cursor)) {
            let three = place(&cursor).to_owned();
            self.parts = Part::divide(&self.wish, &mut self.dice);
            // What a cursor from REST vouches for was of the old parts.
            self.parts.iter_mut().for_each(|part| part.cursor = Some(three.clone()));
            if !first.is_wild() {
                self.done.count("divided anew");
            }
        }
        Ok(())
    }

    /// What the copy lacks of these topics is no longer in the changes.
    pub(super) fn do_as_required(
        &mut self,
        topics: Vec<String>,
    ) -> Pin<Box<dyn Future<Output = Result<(), Setback>> + Send + '_>> {
        Box::pin(async move {
            if let [topic] = topics.as_slice()
                && !topic.ends_with('*')
                && self.dice.roll(4) > 0
                && self.go_on_by_name(topic).await?
            {
                return Ok(());
            }
            self.leave();
            let concerned =
                |part: &Part| topics.iter().any(|topic| part.topics.contains(topic) || part.covers(topic));
            let told: Vec<usize> = (0..self.parts.len()).filter(|at| concerned(&self.parts[*at])).collect();
            for at in told {
                // A relay that was killed may have forgotten that it told so, until it finds it again.
                let stood = self.parts[at].cursor.is_some() && self.weather == Weather::Calm;
                let before = self.parts[at].cursor.clone();
                let stood = stood
                    && topics.len() == 1
                    && before.as_deref().is_some_and(|before| self.is_before_required(before));
                let tables = self.sync(at, From::Cursor).await?;
                for topic in topics.iter().filter(|topic| !topic.ends_with('*') && stood) {
                    let full =
                        tables.get(&table_of(topic)).is_none_or(|table| table.full || table.unavailable);
                    let own = part_of(&self.parts, topic) == Some(at);
                    assert!(
                        full || !own,
                        "{} had to sync {topic}, stood at {before:?}, was told {}, and was not given it: {tables:?}",
                        self.whereabouts(),
                        self.told
                    );
                }
            }
            Ok(())
        })
    }

    /// Whether what was told last concerns a copy at a cursor: one that was synced since may be beyond it.
    fn is_before_required(&self, cursor: &str) -> bool {
        let told: Value = serde_json::from_str(&self.told).unwrap_or_default();
        told["to"].as_str().is_none_or(|to| is_ahead(to, cursor))
    }

    /// What a device is told of topics that have ended. A table that waits for a DBA comes in full later,
    /// whatever the cursor is then.
    pub(super) fn note_required(&mut self, told: &Value) {
        self.told = told.to_string();
        self.check_reason(&told["reason"]);
        if told["to"].is_null() {
            let topics = topics_of(told);
            let concerned = |part: &&mut Part| topics.iter().any(|topic| part.covers(topic));
            self.parts.iter_mut().filter(concerned).for_each(|part| part.blocked = true);
        }
    }

    /// That a copy counts no more has its reasons. A new log is none where nothing was broken.
    pub(super) fn check_reason(&mut self, reason: &Value) {
        let reason = reason.as_str().unwrap_or_default();
        assert!(!reason.is_empty(), "{} was given no reason", self.whereabouts());
        let broken = reason == "epoch";
        assert!(!broken || self.weather == Weather::Rough, "{} has to sync: {reason}", self.whereabouts());
        if broken {
            self.done.count("epoch");
        }
    }

    /// Nothing is told of topics that are not wished, or not granted.
    pub(super) fn check_foreign(&self, change: &Change) {
        let record = change.new_record.as_ref().map(|record| record.get());
        let granted = !self.lost.iter().any(|lost| covers(lost, &change.topic));
        let allowed = granted && self.wish.allows(&change.topic, record);
        assert!(allowed, "{} was told {change:?}", self.whereabouts());
    }
}
