//! A traveller on a WebSocket: parts with cursors of their own, each frame by the rules for clients.

use std::collections::BTreeMap;
use std::time::Instant;

use serde_json::{Value, json};

use super::calls::From;
use super::parts::{Chain, Part, covers, is_ahead};
use super::snapshot::Showing;
use super::traveller::{Link, Traveller};
use super::weather::{Setback, frame_of};
use crate::support::copy::table_of;
use crate::support::device::{Device, Incoming};
use crate::support::frame::{Change, Frame};

/// The number of no request.
const NOBODY: u64 = 0;

/// A connection, and what the relay has said on it.
pub(super) struct Socket {
    pub(super) device: Device,
    /// Topics that are delivered here.
    held: Vec<String>,
    /// Topics that were asked to begin again or to end, by the request whose answer is awaited: what comes
    /// of them until then counts for nothing.
    leaving: BTreeMap<String, u64>,
    replaying: Option<Vec<String>>,
    pub(super) showing: Option<Showing>,
    chain: Chain,
    requests: u64,
}

impl Socket {
    fn new(device: Device) -> Self {
        Socket {
            device,
            held: Vec::new(),
            leaving: BTreeMap::new(),
            replaying: None,
            showing: None,
            chain: Chain::default(),
            requests: 0,
        }
    }

    pub(super) fn has(&self, part: &Part) -> bool {
        part.is_within(&self.held)
    }

    /// Nothing of these topics counts until the request is answered; [`NOBODY`]'s is not to be.
    pub(super) fn leave(&mut self, topics: &[String], request: u64) {
        self.held.retain(|held| !topics.contains(held));
        self.leaving.extend(topics.iter().map(|topic| (topic.clone(), request)));
    }

    /// Whether an answer is under way, or rows.
    fn awaits(&self) -> bool {
        self.showing.is_some() || self.leaving.values().any(|request| *request != NOBODY)
    }

    /// Topics that the answer to a request names, if it is the one that is awaited.
    pub(super) fn answered(&mut self, topics: &[String], json: &Value) -> Vec<String> {
        let request = json["ref"].as_u64();
        self.chain.forget();
        let awaited = |topic: &&String| self.leaving.get(*topic).copied() == request;
        let topics: Vec<String> = topics.iter().filter(awaited).cloned().collect();
        self.leaving.retain(|topic, _| !topics.contains(topic));
        topics
    }

    pub(super) fn hold(&mut self, topics: &[String]) {
        self.held.extend(topics.iter().cloned());
    }

    fn end(&mut self, topics: &[String]) {
        self.held.retain(|held| !topics.contains(held));
        self.leaving.retain(|leaving, _| !topics.contains(leaving));
        self.chain.forget();
    }

    /// Whose cursor a frame's cursor is.
    fn moves(&self, part: &Part) -> bool {
        self.has(part) && self.replaying.as_ref().is_none_or(|topics| part.is_within(topics))
    }
}

impl Traveller {
    /// A socket on which all parts are delivered.
    pub(super) async fn board(&mut self) -> Result<(), Setback> {
        let begun = Instant::now();
        loop {
            if !matches!(self.link, Link::Socket(_)) {
                self.open_socket(false).await?;
            }
            let Link::Socket(socket) = &self.link else { continue };
            let Some(at) = self.parts.iter().position(|part| !socket.has(part)) else { return Ok(()) };
            if self.parts[at].cursor.is_some() || self.is_new {
                self.subscribe(at).await?;
            } else if self.dice.roll(2) == 0 {
                self.show(at).await?;
            } else {
                self.sync(at, From::Cursor).await?;
            }
            let patience = self.weather.patience();
            assert!(begun.elapsed() < patience, "{} is not let in within {patience:?}", self.whereabouts());
        }
    }

    pub(super) async fn open_socket(&mut self, small_buffer: bool) -> Result<(), Setback> {
        self.leave();
        let batch = self.dice.roll(2);
        let connect = Device::at(self.relay, &self.user, &self.name).token(&self.token);
        let connect = connect.query(&format!("batch={batch}"));
        let connect = if small_buffer { connect.small_buffer() } else { connect };
        let device = self.weather.in_time("the handshake", connect.handshake()).await?;
        self.link = Link::Socket(Box::new(Socket::new(device)));
        self.trail.note("connects".to_owned());
        let first = self.frame().await?;
        assert_eq!(first.kind, "connection_established", "{}: {}", self.whereabouts(), first.text);
        self.done.count(if batch == 1 { "batched socket" } else { "socket" });
        Ok(())
    }

    /// Subscribes a part on the open socket, from where its copy stands. Where it has to sync instead, it
    /// does.
    pub(super) async fn subscribe(&mut self, at: usize) -> Result<(), Setback> {
        let Part { topics, cursor, .. } = self.parts[at].clone();
        let mut subscribe = json!({"topics": topics});
        if let Some(cursor) = cursor {
            subscribe["cursor"] = cursor.into();
        }
        self.ask_socket("subscribe", subscribe, &topics).await
    }

    /// Sends a request, and takes frames up to its answer.
    pub(super) async fn ask_socket(
        &mut self,
        kind: &str,
        mut request: Value,
        topics: &[String],
    ) -> Result<(), Setback> {
        let Link::Socket(socket) = &mut self.link else { return Err(Setback::put_off("no socket")) };
        socket.requests += 1;
        let number = socket.requests;
        socket.leave(topics, number);
        (request["type"], request["ref"]) = (kind.into(), number.into());
        self.send(&request).await?;
        let answer = match kind {
            "subscribe" if request["snapshot"] == true => "snapshot_end",
            "subscribe" => "subscribed",
            "unsubscribe" => "unsubscribed",
            "auth" => "granted",
            _ => "pong",
        };
        self.take_until(|frame| frame.kind == answer && frame.json()["ref"] == number).await?;
        Ok(())
    }

    pub(super) async fn send(&mut self, message: &Value) -> Result<(), Setback> {
        let Link::Socket(socket) = &mut self.link else { return Err(Setback::put_off("no socket")) };
        self.trail.note(format!("says {message}"));
        let weather = self.weather;
        let sent = weather.in_time("sending", async {
            match socket.device.try_send(message).await {
                true => Ok(()),
                false => Err(Setback::broken("nothing can be sent")),
            }
        });
        sent.await
    }

    pub(super) async fn frame(&mut self) -> Result<Frame, Setback> {
        let Link::Socket(socket) = &mut self.link else { return Err(Setback::put_off("no socket")) };
        let next = async { frame_of(socket.device.next_incoming().await) };
        let frame = self.weather.in_time("a frame", next).await?;
        self.trail.note(format!("hears {}", frame.text));
        Ok(frame)
    }

    /// Takes frames up to one; false if there was none, for the device had to sync.
    pub(super) async fn take_until(&mut self, mut over: impl FnMut(&Frame) -> bool) -> Result<bool, Setback> {
        let begun = Instant::now();
        loop {
            let frame = self.frame().await?;
            if let Some(topics) = self.take(&frame) {
                self.do_as_required(topics).await?;
                return Ok(false);
            }
            if over(&frame) {
                return Ok(true);
            }
            let patience = self.weather.patience();
            assert!(
                begun.elapsed() < patience,
                "{} waits in vain, now for {}",
                self.whereabouts(),
                frame.text
            );
        }
    }

    /// Takes a frame. The topics whose copy counts no more, if that is what it says.
    fn take(&mut self, frame: &Frame) -> Option<Vec<String>> {
        if let Some(change) = frame.change() {
            self.take_change(change);
            return None;
        }
        let (json, who) = (frame.json(), self.whereabouts());
        let topics = topics_of(&json);
        let cursor = json["cursor"].as_str();
        let Link::Socket(socket) = &mut self.link else { return None };
        match frame.kind.as_str() {
            "subscribed" => {
                let topics = socket.answered(&topics, &json);
                socket.hold(&topics);
                self.stand_subscribed(&topics, cursor.expect("a cursor"));
            }
            "unsubscribed" => {
                socket.answered(&topics, &json);
            }
            "replay_begin" => {
                assert!(socket.replaying.is_none(), "{who}: {}", frame.text);
                socket.replaying = Some(topics);
                socket.chain.forget();
            }
            "caught_up" => {
                assert!(socket.replaying.take().is_some(), "{who}: {}", frame.text);
                socket.chain.forget();
                self.done.count("replay");
                for part in self.parts.iter_mut().filter(|part| part.is_within(&topics) && socket.has(part)) {
                    part.advance(cursor.expect("a cursor"));
                }
            }
            "snapshot_begin" | "snapshot" | "snapshot_end" => self.take_snapshot(frame, &json),
            "revoked" => {
                self.done.count("revoked on a socket");
                socket.chain.forget();
                self.lose(&topics);
            }
            "sync_required" => {
                socket.end(&topics);
                socket.showing.iter_mut().for_each(|showing| showing.leave_out(&topics));
                self.note_required(&json);
                self.done.count("sync required");
                return Some(topics);
            }
            "broadcast" | "pong" | "heartbeat" => {
                if let Some(cursor) = cursor {
                    self.move_parts(cursor);
                }
            }
            "connection_established" | "other_device_synced" | "granted" => {}
            _ => panic!("{who}: an unknown frame: {}", frame.text),
        }
        None
    }

    /// Where the relay says that the copies stand.
    fn stand_subscribed(&mut self, topics: &[String], cursor: &str) {
        let who = self.whereabouts();
        for part in self.parts.iter_mut().filter(|part| part.is_within(topics)) {
            let known = part.cursor.get_or_insert_with(|| cursor.to_owned());
            let known = known.clone();
            assert!(part.stands_at(cursor), "{who} subscribed from {known}, and was told {cursor}");
        }
        if self.parts.iter().filter(|part| part.cursor.is_some()).count() > 1 {
            let first = self.parts[0].cursor.as_deref().unwrap_or_default();
            if self.parts.iter().any(|part| !part.stands_at(first)) {
                self.done.count("cursors of their own on a socket");
            }
        }
    }

    fn take_change(&mut self, change: Change) {
        self.check_foreign(&change);
        let who = self.whereabouts();
        let Link::Socket(socket) = &mut self.link else { return };
        self.done.count("change");
        if let Some(showing) = socket.showing.as_mut().filter(|showing| showing.covers(&change.topic)) {
            return showing.take(change, || who);
        }
        socket.chain.add(change.clone(), || who.clone());
        if socket.leaving.keys().any(|pattern| covers(pattern, &change.topic)) {
            return;
        }
        let cursor = change.cursor.clone().expect("the chain has looked");
        let at =
            part_of(&self.parts, &change.topic).unwrap_or_else(|| panic!("{who}: no part has {change:?}"));
        let part = &self.parts[at];
        assert!(socket.moves(part), "{who}: {:?} is not delivered at the moment: {change:?}", part.topics);
        let new = part.cursor.as_deref().is_some_and(|before| is_ahead(&cursor, before));
        assert!(new, "{who} was told again: {change:?}");
        part.apply(&mut self.copy, &change);
        self.move_parts(&cursor);
    }

    fn move_parts(&mut self, cursor: &str) {
        let Link::Socket(socket) = &self.link else { return };
        self.parts.iter_mut().filter(|part| socket.moves(part)).for_each(|part| part.advance(cursor));
    }

    /// Unsubscribes, perhaps, and subscribes with the cursor on the same socket.
    pub(super) async fn resubscribe(&mut self) -> Result<(), Setback> {
        self.board().await?;
        let at = self.dice.roll(self.parts.len() as u64) as usize;
        let topics = self.parts[at].topics.clone();
        if self.dice.roll(2) == 0 {
            self.done.count("unsubscribed");
            self.ask_socket("unsubscribe", json!({"topics": topics}), &topics).await?;
        }
        if matches!(self.link, Link::Socket(_)) && at < self.parts.len() && self.parts[at].topics == topics {
            self.done.count("subscribed again");
            self.subscribe(at).await?;
        }
        Ok(())
    }

    /// A table that has ended goes on by its name with the cursor of a sync, on the same socket. Whether
    /// that can be done.
    pub(super) async fn go_on_by_name(&mut self, topic: &str) -> Result<bool, Setback> {
        // All that a wildcard covers may have ended.
        let named = Some(topic).filter(|topic| !topic.ends_with('*'));
        let Some(at) = named.and_then(|topic| part_of(&self.parts, topic)) else { return Ok(false) };
        let (table, part) = (table_of(topic), &self.parts[at]);
        // Who syncs what it has asked for already would be answered twice.
        let free = matches!(&self.link, Link::Socket(socket) if !socket.awaits());
        if !free || part.aside || (part.is_wild() && part.topics.len() > 1) {
            return Ok(false);
        }
        let mut new = Part::new(vec![topic.to_owned()]);
        if part.is_wild() {
            new.aside = true;
        } else {
            let (of_table, others) = part.topics.iter().cloned().partition(|own| table_of(own) == table);
            new.topics = of_table;
            self.parts[at].topics = others;
        }
        if let Link::Socket(socket) = &mut self.link {
            // Of other audiences of the table there may be more under way.
            socket.leave(&new.topics, NOBODY);
        }
        self.parts.push(new);
        self.parts.retain(|part| !part.topics.is_empty());
        let at = self.parts.len() - 1;
        self.sync(at, From::Cursor).await?;
        if self.parts[at].cursor.is_some() && matches!(self.link, Link::Socket(_)) {
            self.done.count("table by its name");
            self.subscribe(at).await?;
        }
        Ok(true)
    }
}

impl Traveller {
    /// The socket of a removed device is closed; what came before counts.
    pub(super) async fn await_removal(&mut self) -> Result<(), Setback> {
        let begun = Instant::now();
        loop {
            let Link::Socket(socket) = &mut self.link else { return Ok(()) };
            let incoming = async { Ok::<_, Setback>(socket.device.next_incoming().await) };
            match self.weather.in_time("the end of a removed device's socket", incoming).await? {
                Incoming::Closed(Some((4410, _))) => return Ok(()),
                Incoming::Closed(close) => return Err(Setback::of_close(close)),
                Incoming::Frame(frame) if frame.kind == "error" => {
                    return Err(Setback::of_problem(&frame.json()));
                }
                Incoming::Frame(frame) => {
                    if self.take(&frame).is_some() {
                        self.leave();
                    }
                }
            }
            let patience = self.weather.patience();
            assert!(begun.elapsed() < patience, "{} was removed, and is still told", self.whereabouts());
        }
    }
}

/// The part that has a topic: by its name, or else by a wildcard.
pub(super) fn part_of(parts: &[Part], topic: &str) -> Option<usize> {
    let named = parts.iter().position(|part| part.topics.iter().any(|own| own == topic));
    named.or_else(|| parts.iter().position(|part| part.covers(topic)))
}

pub(super) fn topics_of(json: &Value) -> Vec<String> {
    let topics = json["topics"].as_array().into_iter().flatten();
    topics.filter_map(|topic| topic.as_str().map(str::to_owned)).collect()
}
