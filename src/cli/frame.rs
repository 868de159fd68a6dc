//! What the relay sends, as `rowcast tail` sees it. Pure: text in, lines and the new state out.
//!
//! All patterns of a tail are subscribed together, so one cursor stands for all of them.

use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;

#[derive(Deserialize)]
struct Frame<'a> {
    #[serde(rename = "type")]
    kind: String,
    cursor: Option<String>,
    #[serde(default)]
    topics: Vec<String>,
    topic: Option<String>,
    operation: Option<String>,
    commit_timestamp: Option<String>,
    timestamp: Option<String>,
    event: Option<String>,
    reason: Option<String>,
    code: Option<String>,
    message: Option<String>,
    #[serde(default)]
    retryable: bool,
    #[serde(borrow)]
    key: Option<&'a RawValue>,
    #[serde(borrow)]
    new_record: Option<&'a RawValue>,
    #[serde(borrow)]
    payload: Option<&'a RawValue>,
    #[serde(borrow, default)]
    changes: Vec<&'a RawValue>,
    heartbeat_ms: Option<u64>,
}

/// What a frame leads to, in order.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// A line of the output.
    Show(String),
    /// Something about the connection, for the person watching.
    Note(String),
    Send(String),
    /// Nothing more will come.
    Refused(String),
}

/// What one tail wants and has.
#[derive(Debug)]
pub(super) struct Follow {
    patterns: Vec<String>,
    refused: Vec<String>,
    json: bool,
    cursor: Option<String>,
    /// Between two signs of life from the relay, in milliseconds.
    pub(super) heartbeat_ms: u64,
}

impl Follow {
    pub(super) fn new(patterns: Vec<String>, json: bool) -> Self {
        Follow { patterns, refused: Vec::new(), json, cursor: None, heartbeat_ms: 30_000 }
    }

    /// The first message of a connection: from where the last one ended.
    pub(super) fn subscribe(&mut self) -> String {
        self.refused.clear();
        match &self.cursor {
            Some(cursor) => json!({"type": "subscribe", "topics": self.patterns, "cursor": cursor}),
            None => json!({"type": "subscribe", "topics": self.patterns}),
        }
        .to_string()
    }

    pub(super) fn on_frame(&mut self, text: &str) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.json {
            actions.push(Action::Show(printable(text)));
        }
        self.take(text, &mut actions);
        actions
    }

    fn take(&mut self, text: &str, actions: &mut Vec<Action>) {
        let Ok(frame) = serde_json::from_str::<Frame<'_>>(text) else {
            return actions
                .push(Action::Note(format!("a frame that is not understood: {}", printable(text))));
        };
        if let Some(line) = if self.json { None } else { line(&frame) } {
            actions.push(line);
        }
        match frame.kind.as_str() {
            "database_changes" => frame.changes.iter().for_each(|change| {
                let json = std::mem::take(&mut self.json);
                // With --json the whole batch has been shown as it came.
                if json {
                    self.advance(change.get())
                } else {
                    self.take(change.get(), actions)
                }
                self.json = json;
            }),
            "connection_established" => {
                self.heartbeat_ms = frame.heartbeat_ms.unwrap_or(self.heartbeat_ms).max(1_000);
            }
            // These topics have ended; a tail keeps no copy to bring up to date and goes on from now.
            "sync_required" if !frame.topics.is_empty() => {
                let again = json!({"type": "subscribe", "topics": frame.topics});
                actions.push(Action::Send(again.to_string()));
            }
            "error" if !frame.retryable => actions.extend(self.refuse(&frame)),
            _ => {}
        }
        if frame.cursor.is_some() {
            self.cursor = frame.cursor;
        }
    }

    fn advance(&mut self, change: &str) {
        if let Ok(Frame { cursor: Some(cursor), .. }) = serde_json::from_str(change) {
            self.cursor = Some(cursor);
        }
    }

    /// An error for one topic leaves the others; without any left there is nothing to wait for.
    fn refuse(&mut self, frame: &Frame<'_>) -> Option<Action> {
        let topic = frame.topic.clone().filter(|topic| self.patterns.contains(topic))?;
        if !self.refused.contains(&topic) {
            self.refused.push(topic);
        }
        let message = frame.message.as_deref().or(frame.code.as_deref()).unwrap_or("no reason given");
        (self.refused.len() == self.patterns.len())
            .then(|| Action::Refused(format!("nothing can be subscribed: {}", printable(message))))
    }
}

/// A frame for the eye; nothing for the signs of life.
fn line(frame: &Frame<'_>) -> Option<Action> {
    let text = |part: &Option<String>| part.as_deref().unwrap_or("-").to_owned();
    let record = || frame.new_record.filter(|record| record.get() != "null").or(frame.key);
    let raw = |raw: Option<&RawValue>| raw.map_or("", RawValue::get).to_owned();
    let topics = frame.topics.join(" ");
    let (time, topic) = (text(&frame.commit_timestamp), text(&frame.topic));
    let show = |line: String| Some(Action::Show(printable(line.trim_end())));
    let note = |line: String| Some(Action::Note(printable(&line)));
    match frame.kind.as_str() {
        "database_change" => show(format!("{time} {:<8} {topic} {}", text(&frame.operation), raw(record()))),
        "broadcast" => show(format!(
            "{} BROADCAST {topic} {} {}",
            text(&frame.timestamp),
            text(&frame.event),
            raw(frame.payload)
        )),
        "subscribed" => note(format!("subscribed to {topics} at {}", text(&frame.cursor))),
        "sync_required" => note(format!("a gap in {topics} ({}); going on from now", text(&frame.reason))),
        "revoked" => note(format!("no longer granted: {topics}")),
        "granted" => note(format!("newly granted: {topics}")),
        "error" => note(format!("error {}: {}", text(&frame.code), text(&frame.message))),
        _ => None,
    }
}

/// Rows hold whatever users wrote: no character may act on the terminal. The result is still JSON,
/// where control characters can only stand within texts.
pub(super) fn printable(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { safe.push_str(&format!("\\u{:04x}", u32::from(c))) } else { safe.push(c) }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHANGE: &str = r#"{"type":"database_change","topic":"user:42:orders","schema":"public","table":"orders","operation":"INSERT","key":{"id":1},"old_record":null,"new_record":{"id":1,"n":9007199254740993},"commit_timestamp":"2026-01-01T00:00:00.000001Z","cursor":"e.1.2","last":true}"#;
    const DELETE: &str = r#"{"type":"database_change","topic":"user:42:orders","operation":"DELETE","key":{"id":1},"new_record":null,"commit_timestamp":"t","cursor":"e.1.3"}"#;

    fn follow(json: bool) -> Follow {
        Follow::new(vec!["user:42:*".to_owned(), "global:*".to_owned()], json)
    }

    #[test]
    fn changes_are_shown_with_their_own_text() {
        let mut follow = follow(false);
        let shown = follow.on_frame(CHANGE);
        let line = r#"2026-01-01T00:00:00.000001Z INSERT   user:42:orders {"id":1,"n":9007199254740993}"#;
        assert_eq!(shown, [Action::Show(line.to_owned())]);
        let line = r#"t DELETE   user:42:orders {"id":1}"#;
        assert_eq!(follow.on_frame(DELETE), [Action::Show(line.to_owned())]);
    }

    #[test]
    fn a_connection_resumes_after_the_last_cursor() {
        for json in [false, true] {
            let mut follow = follow(json);
            assert!(!follow.subscribe().contains("cursor"));
            follow.on_frame(r#"{"type":"subscribed","topics":["user:42:*","global:*"],"cursor":"e.1.0"}"#);
            follow.on_frame(&format!(r#"{{"type":"database_changes","changes":[{CHANGE},{DELETE}]}}"#));
            assert!(follow.subscribe().contains(r#""cursor":"e.1.3""#));
            assert_eq!(follow.on_frame(r#"{"type":"heartbeat","cursor":"e.2.0"}"#).len(), usize::from(json));
            assert!(follow.subscribe().contains(r#""cursor":"e.2.0""#));
        }
    }

    #[test]
    fn json_shows_each_frame_as_it_came() {
        let batch = format!(r#"{{"type":"database_changes","changes":[{CHANGE}]}}"#);
        assert_eq!(follow(true).on_frame(&batch), [Action::Show(batch)]);
    }

    #[test]
    fn topics_that_ended_are_taken_up_again() {
        let frame =
            r#"{"type":"sync_required","topics":["user:42:*"],"from":"a","to":"b","reason":"too_old"}"#;
        let actions = follow(false).on_frame(frame);
        assert!(matches!(&actions[..], [Action::Note(_), Action::Send(text)] if text.contains("user:42:*")));
    }

    #[test]
    fn it_ends_when_nothing_is_granted() {
        let mut follow = follow(false);
        let error = |topic| {
            format!(
                r#"{{"type":"error","code":"not_granted","message":"no","retryable":false,"topic":"{topic}"}}"#
            )
        };
        assert_eq!(follow.on_frame(&error("user:42:*")).len(), 1);
        let last = follow.on_frame(&error("global:*"));
        assert!(matches!(&last[..], [Action::Note(_), Action::Refused(_)]), "{last:?}");
    }

    #[test]
    fn nothing_acts_on_the_terminal() {
        assert_eq!(printable("a\u{9b}31m\u{1b}[0m\n\u{7f}é"), "a\\u009b31m\\u001b[0m\\u000a\\u007fé");
        let odd = follow(false).on_frame("\u{1b}[2J");
        assert!(matches!(&odd[..], [Action::Note(text)] if !text.contains('\u{1b}')));
    }
}
