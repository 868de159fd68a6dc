//! An incremental answer and its JSON, written directly: records stay the texts that they are.
//!
//! Two forms of the same content: one object, as docs/PROTOCOL.md has it, or NDJSON, one entry a line
//! between `begin` and `end`. An answer without its `end` is to be discarded.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::Arc;

use bytes::Bytes;

use super::error::{SyncError, table_name};
use super::page::Entry;
use crate::cursor::Cursor;
use crate::hub::timestamp;
use crate::json::{numbers::quote_numbers, write_string};
use crate::topic::Pattern;

/// What an answer is about.
#[derive(Debug, Clone)]
pub struct Head {
    /// What the cursor vouches for.
    pub topics: Vec<Pattern>,
    /// Each table's key columns.
    pub tables: BTreeMap<Arc<str>, Vec<String>>,
    pub numbers_as_strings: bool,
}

/// How far an answer reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tail {
    pub cursor: Cursor,
    /// The greatest commit time at or before the cursor; microseconds since 1970.
    pub sync_timestamp: i64,
    pub total_changes: usize,
    pub has_more: bool,
    /// Ends at a commit.
    pub consistent: bool,
    /// Microseconds since 1970.
    pub next_sync_recommended: i64,
}

/// One page of an incremental sync.
#[derive(Debug, Clone)]
pub struct SyncAnswer {
    pub head: Head,
    pub changes: BTreeMap<Arc<str>, Vec<Entry>>,
    pub tail: Tail,
}

impl SyncAnswer {
    /// As `application/json`.
    pub fn to_json(&self) -> Bytes {
        let mut out = Vec::with_capacity(512 + size(&self.changes));
        let Tail { cursor, sync_timestamp, .. } = self.tail;
        write(
            &mut out,
            format_args!("{{\"sync_timestamp\":\"{}\",\"cursor\":\"{cursor}\"", timestamp(sync_timestamp)),
        );
        self.head.write_members(&mut out);
        out.extend_from_slice(b",\"changes\":{");
        for (place, (table, entries)) in self.changes.iter().enumerate() {
            separate(place, &mut out);
            write_string(&table_name(table), &mut out);
            out.extend_from_slice(b":[");
            for (place, entry) in entries.iter().enumerate() {
                separate(place, &mut out);
                out.push(b'{');
                entry.write_members(self.head.numbers_as_strings, &mut out);
                out.push(b'}');
            }
            out.push(b']');
        }
        out.extend_from_slice(b"},\"revoked\":[],\"conflicts\":[]");
        self.tail.write_members(&mut out);
        out.push(b'}');
        out.into()
    }
}

impl Head {
    /// The first line of an NDJSON answer.
    pub(super) fn write_line(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"type\":\"begin\"");
        self.write_members(out);
        out.extend_from_slice(b",\"revoked\":[],\"conflicts\":[]}\n");
    }

    fn write_members(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b",\"topics\":");
        write_strings(self.topics.iter().map(Pattern::to_string), out);
        out.extend_from_slice(b",\"tables\":{");
        for (place, (table, key)) in self.tables.iter().enumerate() {
            separate(place, out);
            write_string(&table_name(table), out);
            out.extend_from_slice(b":{\"full\":false,\"key\":");
            write_strings(key, out);
            out.push(b'}');
        }
        out.push(b'}');
    }
}

impl Tail {
    /// The last line of a complete NDJSON answer.
    pub(super) fn write_line(&self, out: &mut Vec<u8>) {
        let Tail { cursor, sync_timestamp, .. } = self;
        let time = timestamp(*sync_timestamp);
        write(out, format_args!("{{\"type\":\"end\",\"cursor\":\"{cursor}\",\"sync_timestamp\":\"{time}\""));
        self.write_members(out);
        out.extend_from_slice(b"}\n");
    }

    fn write_members(&self, out: &mut Vec<u8>) {
        let Tail { total_changes, has_more, consistent, next_sync_recommended, .. } = self;
        let next = timestamp(*next_sync_recommended);
        write(
            out,
            format_args!(
                ",\"total_changes\":{total_changes},\"has_more\":{has_more},\"consistent\":{consistent},\"next_sync_recommended\":\"{next}\""
            ),
        );
    }
}

/// Changes as lines of an NDJSON answer.
pub(super) fn write_change_lines(
    changes: &BTreeMap<Arc<str>, Vec<Entry>>,
    numbers_as_strings: bool,
    out: &mut Vec<u8>,
) {
    out.reserve(size(changes));
    for (table, entries) in changes {
        let table = table_name(table);
        for entry in entries {
            out.extend_from_slice(b"{\"type\":\"change\",\"table\":");
            write_string(&table, out);
            out.push(b',');
            entry.write_members(numbers_as_strings, out);
            out.extend_from_slice(b"}\n");
        }
    }
}

/// The last line of an NDJSON answer that failed on the way: the error as a problem, with its `code`.
pub(super) fn write_error_line(error: &SyncError, out: &mut Vec<u8>) {
    let problem = error.problem();
    let mut line = problem.extra.clone();
    line.insert("type".to_owned(), "error".into());
    line.insert("status".to_owned(), problem.status.into());
    line.insert("code".to_owned(), problem.code.into());
    line.insert("detail".to_owned(), problem.detail.into());
    write(out, format_args!("{}\n", serde_json::Value::Object(line)));
}

impl Entry {
    fn write_members(&self, numbers_as_strings: bool, out: &mut Vec<u8>) {
        write(out, format_args!("\"operation\":\"{}\",\"key\":", self.operation.as_str()));
        self.write_object(self.key.as_ref(), numbers_as_strings, out);
        out.extend_from_slice(b",\"record\":");
        self.write_object(self.record.as_ref(), numbers_as_strings, out);
        if !self.unchanged.is_empty() {
            out.extend_from_slice(b",\"unchanged\":");
            write_strings(&self.unchanged, out);
        }
        write(out, format_args!(",\"commit_timestamp\":\"{}\",\"topic\":", timestamp(self.committed_at)));
        write_string(&format!("{}:{}", self.audience, self.shape.name), out);
    }

    fn write_object(&self, object: Option<&Bytes>, numbers_as_strings: bool, out: &mut Vec<u8>) {
        let Some(object) = object else { return out.extend_from_slice(b"null") };
        let text = std::str::from_utf8(object).ok().filter(|_| numbers_as_strings);
        // Our own rendering is well-formed; if it were not, the plain text is the better answer.
        if text.is_none_or(|text| quote_numbers(text, &self.shape.columns, out).is_err()) {
            out.extend_from_slice(object);
        }
    }
}

/// Roughly the bytes of JSON.
fn size(changes: &BTreeMap<Arc<str>, Vec<Entry>>) -> usize {
    let bytes = |part: &Option<Bytes>| part.as_ref().map_or(4, Bytes::len);
    changes.values().flatten().map(|entry| 192 + bytes(&entry.key) + bytes(&entry.record)).sum()
}

fn separate(place: usize, out: &mut Vec<u8>) {
    if place > 0 {
        out.push(b',');
    }
}

fn write_strings(values: impl IntoIterator<Item = impl AsRef<str>>, out: &mut Vec<u8>) {
    out.push(b'[');
    for (place, value) in values.into_iter().enumerate() {
        separate(place, out);
        write_string(value.as_ref(), out);
    }
    out.push(b']');
}

fn write(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    // Writing to memory cannot fail.
    let _ = out.write_fmt(text);
}
