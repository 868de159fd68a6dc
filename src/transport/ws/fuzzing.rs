//! Any query string as that of a socket, and any bytes as what comes on one.

use axum::http::Uri;

use super::incoming::{Broken, Heard, Incoming};
use super::{labels, wishes};
use crate::fuzzing::Source;

pub(crate) fn query(uri: &Uri) {
    let query = uri.query().unwrap_or_default();
    let wishes = wishes(query);
    assert!(!wishes.batch || query.contains("batch="));
    assert!(!wishes.numbers_as_strings || query.contains("numbers=string"));
    let _ = labels(uri);
}

/// Large enough for frames of all forms, and small enough to be passed.
const MOST: usize = 70_000;

/// The same messages come of the same bytes, whatever the portions that they arrive in; no message is larger
/// than allowed; after what breaks the rules nothing is heard.
pub(crate) fn frames(data: &[u8]) {
    let mut source = Source::new(data);
    let portion = 1 + usize::from(source.byte());
    let bytes = source.rest();
    let (at_once, in_portions) = (heard(bytes, bytes.len().max(1)), heard(bytes, portion));
    assert!(at_once == in_portions, "portions of {portion}");
}

fn heard(bytes: &[u8], portion: usize) -> (Vec<Heard>, Option<Broken>) {
    let mut incoming = Incoming::new(MOST);
    let mut all = Vec::new();
    for some in bytes.chunks(portion) {
        incoming.add(some);
        loop {
            match incoming.message() {
                Ok(Some(Heard::Text(text))) if text.len() > MOST => panic!("a message is too large"),
                Ok(Some(message)) => all.push(message),
                Ok(None) => break,
                Err(broken) => {
                    incoming.add(b"\x81\x80\0\0\0\0");
                    assert_eq!(incoming.message(), Err(broken), "nothing is heard any more");
                    return (all, Some(broken));
                }
            }
        }
    }
    (all, None)
}
