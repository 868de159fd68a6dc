//! One device of one user: a WebSocket through the relay's public surface, and the copy that it keeps.
//!
//! A task reads the socket, so that the moment of arrival is that of the frame and not that at which
//! the story looks at it. Every frame with data is checked here against the topics of its user: a
//! device that is ever sent another one's row fails the demo, whatever the story expects just then.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::{HeaderValue, header::SEC_WEBSOCKET_PROTOCOL};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async_with_config};
use tokio_util::task::AbortOnDropHandle;

use super::rest::{self, Synced};
use super::wait::within;

/// Frames that were read and not yet looked at; with more, the socket is left unread.
const UNREAD_FRAMES: usize = 256;
const PING_PAUSE: Duration = Duration::from_millis(2);

/// A device, connected or not.
pub(super) struct Device {
    pub(super) name: &'static str,
    pub(super) id: &'static str,
    pub(super) user: &'static str,
    /// What it subscribes, and all that it may ever be sent.
    pub(super) topics: Vec<String>,
    address: SocketAddr,
    token: String,
    link: Option<Link>,
    /// What its app would keep: rows by table and key, and the cursor up to which they are whole.
    rows: BTreeMap<(String, String), String>,
    cursor: String,
}

struct Link {
    sink: SplitSink<Socket, Message>,
    frames: mpsc::Receiver<Result<(Instant, Frame), Error>>,
    _reader: AbortOnDropHandle<()>,
}

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// A frame, as far as the demo looks at it.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Frame {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) topic: Option<String>,
    pub(super) operation: Option<String>,
    pub(super) key: Option<Box<RawValue>>,
    pub(super) new_record: Option<Box<RawValue>>,
    pub(super) cursor: Option<String>,
    pub(super) last: Option<bool>,
    pub(super) commit_timestamp: Option<String>,
    pub(super) source_device: Option<String>,
    pub(super) correlation_id: Option<String>,
    pub(super) event: Option<String>,
    pub(super) payload: Option<Box<RawValue>>,
    pub(super) code: Option<String>,
    /// The frame itself.
    #[serde(skip)]
    pub(super) text: String,
}

impl Frame {
    /// Whether it carries an app's data, rather than a word about the connection.
    pub(super) fn is_data(&self) -> bool {
        matches!(self.kind.as_str(), "database_change" | "broadcast")
    }

    /// Whether it may come at any time and asks for nothing.
    fn is_sign_of_life(&self) -> bool {
        matches!(self.kind.as_str(), "connection_established" | "heartbeat" | "replay_begin" | "caught_up")
    }
}

impl Device {
    pub(super) fn new(
        name: &'static str,
        id: &'static str,
        user: &'static str,
        address: SocketAddr,
        token: String,
    ) -> Self {
        let topics = vec![format!("user:{user}:*"), "global:*".to_owned()];
        Device {
            name,
            id,
            user,
            topics,
            address,
            token,
            link: None,
            rows: BTreeMap::new(),
            cursor: String::new(),
        }
    }

    pub(super) fn is_online(&self) -> bool {
        self.link.is_some()
    }

    pub(super) fn cursor(&self) -> &str {
        &self.cursor
    }

    pub(super) fn rows(&self) -> &BTreeMap<(String, String), String> {
        &self.rows
    }

    /// Connects and subscribes: from its cursor, where it has one. Back when the relay says `subscribed`.
    pub(super) async fn go_online(&mut self) -> anyhow::Result<()> {
        let connecting = connect(self.address, self.id, &self.token);
        self.link = Some(within(&format!("{} to connect", self.name), connecting).await??);
        let mut request = json!({"type": "subscribe", "topics": self.topics});
        if !self.cursor.is_empty() {
            request["cursor"] = self.cursor.as_str().into();
        }
        self.send(&request).await?;
        self.answer("subscribed").await?;
        Ok(())
    }

    /// Closes the connection; copy and cursor stay.
    pub(super) async fn go_offline(&mut self) -> anyhow::Result<()> {
        if let Some(mut link) = self.link.take() {
            // The relay may have gone already.
            let _ = within(&format!("{} to disconnect", self.name), link.sink.close()).await?;
        }
        Ok(())
    }

    /// Catches up over REST, from its cursor.
    pub(super) async fn sync(&mut self) -> anyhow::Result<Synced> {
        let asking = rest::sync(self.address, &self.token, self.id, &self.topics, &self.cursor);
        let synced = within("an answer of POST /api/realtime/sync", asking).await??;
        for change in synced.changes.values().flatten() {
            self.check_mine(&change.topic)?;
            self.apply(&change.topic, &change.key, change.record.as_deref());
        }
        self.cursor.clone_from(&synced.cursor);
        Ok(synced)
    }

    /// The next frame with data.
    pub(super) async fn data(&mut self, what: &str) -> anyhow::Result<(Instant, Frame)> {
        loop {
            let (at, frame) = self.next_in_time(what).await?;
            if frame.is_data() {
                return Ok((at, frame));
            }
            self.check_sign_of_life(&frame)?;
        }
    }

    /// Subscribes to something else, and returns what the relay answers for it.
    pub(super) async fn try_subscribe(&mut self, topic: &str) -> anyhow::Result<Frame> {
        self.send(&json!({"type": "subscribe", "topics": [topic]})).await?;
        loop {
            let (_, frame) = self.next_in_time("an answer to a subscription").await?;
            match frame.kind.as_str() {
                "error" | "subscribed" => return Ok(frame),
                _ => self.check_sign_of_life(&frame)?,
            }
        }
    }

    /// Asks until the relay says that this device has everything up to `cursor`. Nothing with data may
    /// come before that.
    pub(super) async fn expect_nothing_up_to(&mut self, cursor: &str) -> anyhow::Result<()> {
        let name = self.name;
        let asking = async {
            loop {
                self.send(&json!({"type": "ping"})).await?;
                let pong = self.answer("pong").await?;
                // Cursors of one epoch compare as text.
                if pong.cursor.as_deref() >= Some(cursor) {
                    return Ok(());
                }
                sleep(PING_PAUSE).await;
            }
        };
        within(&format!("{name} to be at {cursor}"), asking).await?
    }

    /// The next frame, checked and applied to the copy. Waits without limit; safe to cancel.
    pub(super) async fn next(&mut self) -> anyhow::Result<(Instant, Frame)> {
        let link = self.link.as_mut().with_context(|| format!("{} is offline", self.name))?;
        let received = link.frames.recv().await;
        let received = received.ok_or_else(|| anyhow!("the relay closed the connection of {}", self.name))?;
        let (at, frame) = received.with_context(|| format!("{} lost its connection", self.name))?;
        self.take(&frame)?;
        Ok((at, frame))
    }

    async fn next_in_time(&mut self, what: &str) -> anyhow::Result<(Instant, Frame)> {
        let what = format!("{what} on {}", self.name);
        within(&what, self.next()).await?
    }

    /// The answer of this type; nothing with data may come before it.
    async fn answer(&mut self, kind: &str) -> anyhow::Result<Frame> {
        loop {
            let (_, frame) = self.next_in_time(&format!("a frame `{kind}`")).await?;
            if frame.kind == kind {
                return Ok(frame);
            }
            self.check_sign_of_life(&frame)?;
        }
    }

    fn check_sign_of_life(&self, frame: &Frame) -> anyhow::Result<()> {
        if !frame.is_sign_of_life() {
            bail!("{} was sent what nobody expected: {}", self.name, frame.text);
        }
        Ok(())
    }

    fn take(&mut self, frame: &Frame) -> anyhow::Result<()> {
        if let Some(topic) = frame.topic.as_deref().filter(|_| frame.is_data()) {
            self.check_mine(topic)?;
            if let Some(key) = &frame.key {
                self.apply(topic, key, frame.new_record.as_deref());
            }
        }
        if let Some(cursor) = &frame.cursor {
            self.cursor.clone_from(cursor);
        }
        Ok(())
    }

    fn check_mine(&self, topic: &str) -> anyhow::Result<()> {
        let mine = self.topics.iter().any(|pattern| topic.starts_with(pattern.trim_end_matches('*')));
        if !mine {
            bail!("{} was sent a row of {topic}, which is not its user's", self.name);
        }
        Ok(())
    }

    /// Upserts and tombstones, by table and key.
    fn apply(&mut self, topic: &str, key: &RawValue, record: Option<&RawValue>) {
        let table = topic.rsplit(':').next().unwrap_or_default();
        let place = (table.to_owned(), key.get().to_owned());
        match record {
            Some(record) => self.rows.insert(place, record.get().to_owned()),
            None => self.rows.remove(&place),
        };
    }

    async fn send(&mut self, message: &Value) -> anyhow::Result<()> {
        let link = self.link.as_mut().with_context(|| format!("{} is offline", self.name))?;
        let sending = link.sink.send(Message::text(message.to_string()));
        within(&format!("{} to send", self.name), sending)
            .await?
            .with_context(|| format!("{} cannot send", self.name))
    }
}

async fn connect(address: SocketAddr, device: &str, token: &str) -> anyhow::Result<Link> {
    let mut request = format!("ws://{address}/api/realtime/ws/{device}").into_client_request()?;
    // As a browser does it, which cannot set a header of its own.
    let mut protocols = HeaderValue::from_str(&format!("rowcast.v1, bearer.{token}"))?;
    protocols.set_sensitive(true);
    request.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, protocols);
    let (socket, _) = connect_async_with_config(request, None, true).await.context("no WebSocket")?;
    let (sink, stream) = socket.split();
    let (sender, frames) = mpsc::channel(UNREAD_FRAMES);
    let reader = AbortOnDropHandle::new(tokio::spawn(read(stream, sender)));
    Ok(Link { sink, frames, _reader: reader })
}

/// Until the connection or the device ends.
async fn read(mut stream: SplitStream<Socket>, sender: mpsc::Sender<Result<(Instant, Frame), Error>>) {
    while let Some(message) = stream.next().await {
        let at = Instant::now();
        let frame = match message {
            Ok(Message::Text(text)) => Ok((at, parse(&text))),
            Ok(Message::Close(_)) => return,
            // The library answers pings.
            Ok(_) => continue,
            Err(error) => Err(error),
        };
        if sender.send(frame).await.is_err() {
            return;
        }
    }
}

/// What is not understood becomes a frame of no known type, which whoever waits for another one shows.
fn parse(text: &str) -> Frame {
    let parsed = serde_json::from_str::<Frame>(text);
    let parsed =
        parsed.unwrap_or_else(|error| Frame { kind: format!("not understood: {error}"), ..Frame::default() });
    Frame { text: text.to_owned(), ..parsed }
}
