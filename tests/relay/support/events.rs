//! A reader of Server-Sent Events, as strict as the standard: what it is given must be a stream of
//! events, named as their messages are, each with an id.

use super::frame::{Change, Frame};
use super::http::{Http, Open, Request};
use super::wait::within;

/// A stream that is being read.
pub(crate) struct Events {
    open: Open,
    /// Milliseconds, as the server said last.
    pub(crate) retry: Option<u64>,
    /// Of the last event.
    pub(crate) id: Option<String>,
}

/// A GET for a stream; more headers may follow.
pub(crate) fn ask(http: &Http, topics: &str, rest: &str) -> Request {
    http.request("GET", &format!("/api/realtime/events?device_id=phone&topics={topics}{rest}"))
}

impl Events {
    /// Begins to read a stream, which is there.
    pub(crate) async fn open(request: Request) -> Self {
        let open = request.open().await;
        assert_eq!(open.status, 200);
        assert_eq!(open.headers.get("content-type"), Some("text/event-stream"));
        assert_eq!(open.headers.get("cache-control"), Some("no-store"));
        assert_eq!(open.headers.get("x-accel-buffering"), Some("no"));
        Events::begun(open)
    }

    /// A stream whose head was looked at.
    pub(crate) fn begun(open: Open) -> Self {
        Events { open, retry: None, id: None }
    }

    /// From now on, or from a cursor; returns when it is subscribed.
    pub(crate) async fn of(http: &Http, topics: &str, last_event_id: Option<&str>) -> Self {
        let request = ask(http, topics, "");
        let request = match last_event_id {
            Some(id) => request.header("last-event-id", id),
            None => request,
        };
        let mut events = Events::open(request).await;
        events.expect("connection_established").await;
        events.expect("subscribed").await;
        events
    }

    /// The next event's message; `None` at the end of the stream.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        within("an event", self.try_next()).await.unwrap()
    }

    /// Like [`Events::next`], where the connection may break, however long it takes.
    pub(crate) async fn try_next(&mut self) -> std::io::Result<Option<Frame>> {
        let mut event = Event::default();
        while let Some(line) = self.open.try_line().await? {
            if let Some(frame) = event.line(&line) {
                self.retry = event.retry.or(self.retry);
                self.id = event.id.or(self.id.take());
                return Ok(Some(frame));
            }
        }
        Ok(None)
    }

    pub(crate) async fn recv(&mut self) -> Frame {
        self.next().await.expect("an event, not the end of the stream")
    }

    /// The next event but `progress`, which must be of this type.
    pub(crate) async fn expect(&mut self, kind: &str) -> Frame {
        loop {
            let frame = self.recv().await;
            if frame.kind == kind {
                return frame;
            }
            assert_eq!(frame.kind, "progress", "expected {kind}, not {}", frame.text);
        }
    }

    pub(crate) async fn change(&mut self) -> Change {
        let change = self.expect("database_change").await.change().expect("of that type");
        assert_eq!(change.cursor, self.id, "a change stands where its id says");
        change
    }
}

/// The lines of one event.
#[derive(Debug, Default)]
pub(crate) struct Event {
    name: Option<String>,
    data: Option<String>,
    pub(crate) id: Option<String>,
    retry: Option<u64>,
}

impl Event {
    /// One more line; with the last one, which is empty, its message.
    pub(crate) fn line(&mut self, line: &str) -> Option<Frame> {
        if line.is_empty() {
            let frame = Frame::parse(self.data.take().expect("an event has data"));
            assert_eq!(self.name.as_ref(), Some(&frame.kind));
            return Some(frame);
        }
        let (field, value) = line.split_once(": ").unwrap_or_else(|| panic!("no field: {line:?}"));
        match field {
            "id" => self.id = Some(value.to_owned()),
            "event" => self.name = Some(value.to_owned()),
            "retry" => self.retry = value.parse().ok(),
            "data" => match &mut self.data {
                Some(data) => data.push_str(&format!("\n{value}")),
                None => self.data = Some(value.to_owned()),
            },
            other => panic!("an unknown field: {other}"),
        }
        None
    }
}
