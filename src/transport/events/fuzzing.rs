//! A frame written as an event, and read as browsers read it.

use super::encode::Events;
use crate::cursor::Cursor;
use crate::transport::session::Frame;

/// <https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation>
pub(crate) fn read_back(json: &str, kind: &str, id: Option<Cursor>) {
    let mut events = Events::default();
    events.push(&Frame::from(json.to_owned()), id);
    let text = String::from_utf8(events.take().concat()).expect("text");
    let (mut told, mut event, mut data) = (None, String::new(), Vec::new());
    let lines = text.strip_suffix("\n\n").expect("an event ends with an empty line");
    for line in lines.split(['\n', '\r']) {
        match line.split_once(": ") {
            Some(("id", id)) => told = Some(id.to_owned()),
            Some(("event", name)) => event = name.to_owned(),
            Some(("data", line)) => data.push(line),
            _ => panic!("no event has such a line: {line:?}"),
        }
    }
    assert_eq!(told, id.map(|id| id.to_string()));
    assert_eq!((event.as_str(), data.join("\n")), (kind, json.replace('\r', "\n")));
}
