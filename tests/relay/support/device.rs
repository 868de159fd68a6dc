//! A WebSocket device.
//!
//! It reads only inside its own methods. One that is not asked for anything has stopped reading, and
//! with [`Connect::small_buffer`] the relay notices after a few kilobytes.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use super::copy::Copy;
use super::frame::{Change, Frame};
use super::relay::Relay;
use super::token;
use super::wait::within;

/// A connected device.
pub(crate) struct Device {
    socket: WebSocketStream<TcpStream>,
    /// Read, and not asked for yet.
    ready: VecDeque<Frame>,
}

/// How a device connects.
#[derive(Debug, Clone)]
pub(crate) struct Connect {
    address: SocketAddr,
    device: String,
    token: Option<String>,
    query: String,
    receive_buffer: Option<u32>,
    from: Option<IpAddr>,
    read_buffer: Option<usize>,
}

/// What comes next on the socket.
#[derive(Debug)]
pub(crate) enum Incoming {
    Frame(Frame),
    /// The relay closed: code and reason, `None` where the connection just broke.
    Closed(Option<(u16, String)>),
}

impl Connect {
    /// Another address: a proxy's, or that of a relay that was started again.
    pub(crate) fn via(mut self, address: SocketAddr) -> Self {
        self.address = address;
        self
    }

    pub(crate) fn token(mut self, token: &str) -> Self {
        self.token = Some(token.to_owned());
        self
    }

    /// No token in the handshake: the first message must be `auth`.
    pub(crate) fn without_token(mut self) -> Self {
        self.token = None;
        self
    }

    /// The query string, as in `batch=1&numbers=string`.
    pub(crate) fn query(mut self, query: &str) -> Self {
        self.query = format!("?{query}");
        self
    }

    /// A kernel receive buffer of a few kilobytes: not reading is felt at the other end soon.
    pub(crate) fn small_buffer(mut self) -> Self {
        self.receive_buffer = Some(4096);
        self
    }

    /// From an address of its own: a loopback address has 28,000 ports.
    pub(crate) fn from(mut self, address: IpAddr) -> Self {
        self.from = Some(address);
        self
    }

    /// One of thousands in this process: little memory at this end.
    pub(crate) fn lean(mut self) -> Self {
        self.read_buffer = Some(4096);
        self
    }

    /// Connects and takes the `connection_established` frame.
    pub(crate) async fn connect(self) -> Device {
        let mut device = self.try_connect().await.unwrap_or_else(|error| panic!("no WebSocket: {error}"));
        device.expect("connection_established").await;
        device
    }

    /// Connects without reading a frame; an answer that is no upgrade is `Error::Http`.
    pub(crate) async fn try_connect(self) -> Result<Device, Error> {
        within("the WebSocket handshake", self.handshake()).await
    }

    /// Like [`Connect::try_connect`], however long it takes.
    pub(crate) async fn handshake(self) -> Result<Device, Error> {
        let uri = format!("ws://{}/api/realtime/ws/{}{}", self.address, self.device, self.query);
        let mut request = uri.into_client_request()?;
        let protocols = match &self.token {
            Some(token) => format!("rowcast.v1, bearer.{token}"),
            None => "rowcast.v1".to_owned(),
        };
        request.headers_mut().insert("sec-websocket-protocol", protocols.parse()?);
        let tcp = TcpSocket::new_v4()?;
        if let Some(bytes) = self.receive_buffer {
            tcp.set_recv_buffer_size(bytes)?;
        }
        if let Some(address) = self.from {
            tcp.bind(SocketAddr::new(address, 0))?;
        }
        let tcp = tcp.connect(self.address).await?;
        tcp.set_nodelay(true)?;
        // A frame is as large as its row.
        let mut config = WebSocketConfig::default().max_message_size(None).max_frame_size(None);
        if let Some(bytes) = self.read_buffer {
            config = config.read_buffer_size(bytes).write_buffer_size(0);
        }
        let (socket, answer) = client_async_with_config(request, tcp, Some(config)).await?;
        let protocol = answer.headers().get("sec-websocket-protocol");
        assert_eq!(protocol.map(|value| value.as_bytes()), Some(&b"rowcast.v1"[..]), "the subprotocol");
        Ok(Device { socket, ready: VecDeque::new() })
    }
}

impl Device {
    /// A device of a user, with a valid token.
    pub(crate) fn of(relay: &Relay, user: &str, device: &str) -> Connect {
        Device::at(relay.address(), user, device)
    }

    /// The same at an address, behind which a relay may come and go.
    pub(crate) fn at(address: SocketAddr, user: &str, device: &str) -> Connect {
        Connect {
            address,
            device: device.to_owned(),
            token: Some(token::user(user)),
            query: String::new(),
            receive_buffer: None,
            from: None,
            read_buffer: None,
        }
    }

    pub(crate) async fn send(&mut self, message: &Value) {
        self.send_text(&message.to_string()).await;
    }

    pub(crate) async fn send_text(&mut self, text: &str) {
        within("sending a frame", self.socket.send(Message::text(text))).await.unwrap();
    }

    /// Sends a message to a relay that may be gone; whether it went out.
    pub(crate) async fn try_send(&mut self, message: &Value) -> bool {
        self.socket.send(Message::text(message.to_string())).await.is_ok()
    }

    /// The next frame or the close, however long it takes.
    pub(crate) async fn next_incoming(&mut self) -> Incoming {
        self.next().await
    }

    pub(crate) async fn send_binary(&mut self, bytes: Vec<u8>) {
        within("sending a frame", self.socket.send(Message::binary(bytes))).await.unwrap();
    }

    /// The next text frame as it is on the socket: a batch stays whole.
    pub(crate) async fn recv_whole(&mut self) -> Frame {
        assert!(self.ready.is_empty(), "frames were read and split before");
        loop {
            match within("a frame from the relay", self.socket.next()).await {
                Some(Ok(Message::Text(text))) => return Frame::parse(text.to_string()),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                other => panic!("no frame but {other:?}"),
            }
        }
    }

    /// The next frame but heartbeats, which must be an error with this code.
    pub(crate) async fn expect_error(&mut self, code: &str) -> Value {
        let error = self.expect("error").await.json();
        assert_eq!(error["code"], code, "{error}");
        assert!(error["message"].as_str().is_some_and(|text| !text.is_empty()), "{error}");
        error
    }

    /// The next frame or the close; a batch comes as its single changes.
    pub(crate) async fn incoming(&mut self) -> Incoming {
        within("a frame from the relay", self.next()).await
    }

    /// The next frame; panics when the relay closes.
    pub(crate) async fn recv(&mut self) -> Frame {
        match self.incoming().await {
            Incoming::Frame(frame) => frame,
            Incoming::Closed(close) => panic!("the relay closed the socket: {close:?}"),
        }
    }

    /// The next frame but heartbeats, which must be of this type.
    pub(crate) async fn expect(&mut self, kind: &str) -> Frame {
        loop {
            let frame = self.recv().await;
            if frame.kind == kind {
                return frame;
            }
            assert_eq!(frame.kind, "heartbeat", "expected {kind}, not {}", frame.text);
        }
    }

    /// The close code and reason; frames before it are dropped.
    pub(crate) async fn expect_close(&mut self) -> (u16, String) {
        loop {
            if let Incoming::Closed(close) = self.incoming().await {
                return close.expect("a close frame, not a broken connection");
            }
        }
    }

    /// All frames up to the first of this type, which is the last of them; heartbeats are left out.
    pub(crate) async fn until(&mut self, kind: &str) -> Vec<Frame> {
        let mut frames = Vec::new();
        loop {
            let frame = self.recv().await;
            let last = frame.kind == kind;
            if frame.kind != "heartbeat" {
                frames.push(frame);
            }
            if last {
                return frames;
            }
        }
    }

    /// The next change.
    pub(crate) async fn change(&mut self) -> Change {
        self.expect("database_change").await.change().expect("of that type")
    }

    /// The next `count` changes.
    pub(crate) async fn changes(&mut self, count: usize) -> Vec<Change> {
        let mut changes = Vec::with_capacity(count);
        while changes.len() < count {
            changes.push(self.change().await);
        }
        changes
    }

    /// Subscribes, and returns the answer. Changes that come before it are kept for later.
    pub(crate) async fn subscribe(&mut self, topics: &[&str], cursor: Option<&str>) -> Frame {
        let mut request = json!({"type": "subscribe", "topics": topics});
        if let Some(cursor) = cursor {
            request["cursor"] = cursor.into();
        }
        self.send(&request).await;
        self.answer("subscribed").await
    }

    pub(crate) async fn unsubscribe(&mut self, topics: &[&str]) -> Frame {
        self.send(&json!({"type": "unsubscribe", "topics": topics})).await;
        self.answer("unsubscribed").await
    }

    /// Sends `ping` and applies what comes until `pong`: everything up to the cursor returned.
    pub(crate) async fn drain_into(&mut self, copy: &mut Copy) -> String {
        self.send(&json!({"type": "ping"})).await;
        loop {
            let frame = self.recv().await;
            match frame.kind.as_str() {
                "database_change" => copy.apply(&frame.change().expect("of that type")),
                "pong" => {
                    return frame
                        .cursor()
                        .unwrap_or_else(|| panic!("a pong without a cursor: {}", frame.text));
                }
                "error" | "sync_required" => panic!("unexpected: {}", frame.text),
                _ => {}
            }
        }
    }

    /// Closes in order.
    pub(crate) async fn close(mut self) {
        // The relay may have gone already.
        let _ = within("closing", self.socket.close(None)).await;
    }

    /// The first frame of a type or an error; what is neither stays to be read, in its order.
    async fn answer(&mut self, kind: &str) -> Frame {
        let mut before = VecDeque::new();
        loop {
            let frame = self.recv().await;
            assert_ne!(frame.kind, "error", "expected {kind}, not {}", frame.text);
            if frame.kind == kind {
                before.append(&mut self.ready);
                self.ready = before;
                return frame;
            }
            before.push_back(frame);
        }
    }

    async fn next(&mut self) -> Incoming {
        loop {
            if let Some(frame) = self.ready.pop_front() {
                return Incoming::Frame(frame);
            }
            match self.socket.next().await {
                Some(Ok(Message::Text(text))) => self.ready.extend(Frame::parse(text.to_string()).split()),
                Some(Ok(Message::Close(close))) => {
                    let parts = |close: CloseFrame| (close.code.into(), close.reason.to_string());
                    return Incoming::Closed(close.map(parts));
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Incoming::Closed(None),
            }
        }
    }
}
