//! A traveller that listens to Server-Sent Events: one part, from the id of the last event.

use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::calls::{From, in_query};
use super::parts::{Chain, is_ahead};
use super::socket::topics_of;
use super::traveller::{Link, Traveller};
use super::weather::{Setback, whole};
use crate::support::events::{Event, Events};
use crate::support::frame::Frame;
use crate::support::http::{Http, Open};

/// A listener that hears nothing for so long does something else.
const QUIET: Duration = Duration::from_millis(40);
/// What is read of a compressed stream at most.
const MOST_COMPRESSED: usize = 64 * 1024;

/// An event, and the id that the stream has with it.
type Told = (Frame, Option<String>);
/// What a stream's reader reads; nothing where the stream ended without a word.
type Read = std::io::Result<Option<Told>>;

/// A stream of one part's events.
pub(super) struct Stream {
    pub(super) topics: Vec<String>,
    events: mpsc::Receiver<Read>,
    /// Reads one event ahead.
    _reader: Option<AbortOnDropHandle<()>>,
    chain: Chain,
    /// The cursor of the last change.
    stands: String,
    required: Vec<String>,
}

impl Traveller {
    /// Listens to a part, and to nothing else.
    pub(super) async fn open_stream(&mut self, at: usize) -> Result<(), Setback> {
        self.leave();
        let at = at % self.parts.len();
        let small = self.dice.roll(4) == 0;
        let Some(open) = self.ask_for_events(at, small, false).await? else { return Ok(()) };
        if small {
            self.let_commits_pass().await?;
            self.done.count("lagged events");
        }
        let (sender, events) = mpsc::channel(1);
        let reader = AbortOnDropHandle::new(tokio::spawn(read_on(Events::begun(open), sender)));
        self.link = self.stream_of(at, events, Some(reader));
        self.read_stream().await
    }

    fn stream_of(
        &self,
        at: usize,
        events: mpsc::Receiver<Read>,
        reader: Option<AbortOnDropHandle<()>>,
    ) -> Link {
        let part = &self.parts[at];
        Link::Stream(Box::new(Stream {
            topics: part.topics.clone(),
            events,
            _reader: reader,
            chain: Chain::default(),
            stands: part.cursor.clone().unwrap_or_default(),
            required: Vec::new(),
        }))
    }

    /// The answer to a request for a part's events; none where it has to sync first.
    async fn ask_for_events(
        &mut self,
        at: usize,
        small: bool,
        compressed: bool,
    ) -> Result<Option<Open>, Setback> {
        let Some(cursor) = self.parts[at].cursor.clone() else {
            return self.sync(at, From::Cursor).await.map(|_| None);
        };
        let mut body = json!({"device_id": self.name, "topics": self.parts[at].topics});
        let by_header = self.dice.roll(2) == 0;
        if by_header {
            self.done.count("events from Last-Event-ID");
            // It counts more.
            if self.dice.roll(2) == 0 {
                body["cursor"] = "no cursor at all".into();
            }
        } else {
            self.done.count("events from a cursor");
            body["cursor"] = cursor.clone().into();
        }
        let http = Http::at(self.relay).with_token(&self.token);
        let mut request = match in_query(&body).filter(|_| self.dice.roll(2) == 0) {
            Some(query) => {
                self.done.count("events through GET");
                http.request("GET", &format!("/api/realtime/events?{query}"))
            }
            None => {
                self.done.count("events through POST");
                http.request("POST", "/api/realtime/events").json(&body)
            }
        };
        if by_header {
            request = request.header("last-event-id", &cursor);
        }
        if small {
            request = request.small_buffer();
        }
        if compressed {
            request = request.header("accept-encoding", "gzip");
        }
        self.trail.note(format!("listens: {body} from {cursor}"));
        let open = self.weather.in_time("events", request.try_open()).await?;
        if open.status != 200 {
            let mut answer = self.weather.in_time("a refusal of events", whole(open)).await?;
            if answer.headers.get("content-encoding").is_some() {
                answer.body = gunzip(answer.body).await.into_bytes();
            }
            return Err(Setback::of_answer(&answer));
        }
        assert_eq!(open.headers.get("content-type"), Some("text/event-stream"));
        Ok(Some(open))
    }

    /// Some events, as long as they come. After `sync_required` the others run on.
    pub(super) async fn read_stream(&mut self) -> Result<(), Setback> {
        for _ in 0..=self.dice.roll(40) {
            let Link::Stream(stream) = &mut self.link else { return Ok(()) };
            let had_to_sync = !stream.required.is_empty();
            let Ok(told) = tokio::time::timeout(QUIET, stream.events.recv()).await else { break };
            self.take_event(event_of(told)?);
            if had_to_sync {
                self.done.count("went on after sync required");
            }
        }
        self.done.count("events gone on with");
        self.sync_as_streamed().await
    }

    /// Up to a place.
    pub(super) async fn read_stream_to(&mut self, at: usize, goal: &str) -> Result<(), Setback> {
        let begun = Instant::now();
        while !self.parts[at].has_reached(goal) {
            let Link::Stream(stream) = &mut self.link else { return Ok(()) };
            if !stream.required.is_empty() {
                return self.sync_as_streamed().await;
            }
            let next = async { event_of(stream.events.recv().await) };
            let told = self.weather.in_time("an event", next).await?;
            self.take_event(told);
            let patience = self.weather.patience();
            assert!(begun.elapsed() < patience, "{} listens in vain for {goal}", self.whereabouts());
        }
        Ok(())
    }

    /// Syncs what was told to have ended, with the stream closed.
    async fn sync_as_streamed(&mut self) -> Result<(), Setback> {
        let Link::Stream(stream) = &mut self.link else { return Ok(()) };
        let required = std::mem::take(&mut stream.required);
        if required.is_empty() {
            return Ok(());
        }
        self.done.count("sync required");
        self.do_as_required(required).await
    }

    fn take_event(&mut self, (frame, id): Told) {
        self.trail.note(format!("hears {id:?}: {}", frame.text));
        let who = self.whereabouts();
        let Link::Stream(stream) = &mut self.link else { return };
        let Some(at) = self.parts.iter().position(|part| part.topics == stream.topics) else { return };
        let json = frame.json();
        if let Some(change) = frame.change() {
            let cursor = change.cursor.clone().unwrap_or_default();
            assert!(is_ahead(&cursor, &stream.stands), "{who} was told again: {}", frame.text);
            let vouched = !stream.required.is_empty() || id.as_ref() == Some(&cursor);
            assert!(vouched, "{who}: the id {id:?} of {}", frame.text);
            stream.chain.add(change.clone(), || who.clone());
            stream.stands = cursor.clone();
            self.check_foreign(&change);
            self.done.count("change");
            let part = &mut self.parts[at];
            part.apply(&mut self.copy, &change);
            if id.as_ref() != Some(&cursor) && !part.repeats(&cursor) {
                part.repeats_to = Some(cursor);
            }
        } else {
            match frame.kind.as_str() {
                "subscribed" => {
                    let cursor = json["cursor"].as_str().unwrap_or_default();
                    assert!(self.parts[at].stands_at(cursor), "{who}: {}", frame.text);
                }
                "sync_required" => {
                    stream.chain.forget();
                    stream.required.extend(topics_of(&json));
                    self.note_required(&json);
                }
                "replay_begin" | "caught_up" => stream.chain.forget(),
                "connection_established" | "broadcast" | "progress" | "other_device_synced" | "granted" => {}
                _ => panic!("{who}: an unknown event: {}", frame.text),
            }
        }
        if let Some(id) = id {
            let part = &mut self.parts[at];
            let back = part.cursor.as_ref().is_some_and(|before| is_ahead(before, &id));
            assert!(!back, "{who}: the id {id} of {}", frame.text);
            part.advance(&id);
        }
    }

    /// What a stream has for a part at the moment, compressed.
    pub(super) async fn read_compressed(&mut self, at: usize) -> Result<(), Setback> {
        self.leave();
        let at = at % self.parts.len();
        let Some(mut open) = self.ask_for_events(at, false, true).await? else { return Ok(()) };
        assert_eq!(open.headers.get("content-encoding"), Some("gzip"));
        let mut compressed = Vec::new();
        while let Ok(part) = tokio::time::timeout(QUIET, open.part()).await {
            // One that has ended says so at once and for ever.
            let Some(part) = part? else { break };
            compressed.extend(part);
            if compressed.len() > MOST_COMPRESSED {
                break;
            }
        }
        let (_, nothing) = mpsc::channel(1);
        self.link = self.stream_of(at, nothing, None);
        for told in events_of(&gunzip(compressed).await) {
            self.take_event(event_of(Some(Ok(Some(told))))?);
        }
        self.done.count("events compressed");
        self.sync_as_streamed().await?;
        self.leave();
        Ok(())
    }
}

/// Reads events until there are no more, or nobody wants them.
async fn read_on(mut events: Events, sender: mpsc::Sender<Read>) {
    loop {
        let read = events.try_next().await;
        let read = read.map(|frame| frame.map(|frame| (frame, events.id.clone())));
        let over = !matches!(read, Ok(Some(_)));
        if sender.send(read).await.is_err() || over {
            return;
        }
    }
}

/// The event that was read, or why the stream ended.
fn event_of(read: Option<Read>) -> Result<Told, Setback> {
    let Some(told) = read.transpose()?.flatten() else {
        return Err(Setback::broken("the events ended without a word"));
    };
    let json = told.0.json();
    match told.0.kind.as_str() {
        "error" => Err(Setback::of_problem(&json)),
        "close" => {
            let code = json["code"].as_u64().and_then(|code| code.try_into().ok()).unwrap_or_default();
            let reason = json!({"retry_after_ms": json["retry_after_ms"]});
            Err(Setback::of_close(Some((code, reason.to_string()))))
        }
        _ => Ok(told),
    }
}

/// All whole events of a text.
fn events_of(text: &str) -> Vec<Told> {
    let whole = text.rfind("\n\n").map_or("", |end| &text[..end + 2]);
    let (mut event, mut id, mut all) = (Event::default(), None, Vec::new());
    for line in whole.split_terminator('\n') {
        if let Some(frame) = event.line(line) {
            let done = std::mem::take(&mut event);
            id = done.id.or(id);
            all.push((frame, id.clone()));
        }
    }
    all
}

/// What can be read of a file that is not whole.
async fn gunzip(compressed: Vec<u8>) -> String {
    let mut gzip = Command::new("gzip");
    let gzip = gzip.arg("-dc").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut gzip = gzip.spawn().unwrap();
    let mut stdin = gzip.stdin.take().unwrap();
    let write = async move {
        // It may have ended at a part that it cannot read.
        let _ = stdin.write_all(&compressed).await;
    };
    let ((), output) = tokio::join!(write, gzip.wait_with_output());
    // The text may end within a character.
    String::from_utf8_lossy(&output.unwrap().stdout).into_owned()
}
