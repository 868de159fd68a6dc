//! An answer and its JSON, written directly: records stay the texts that they are.
//!
//! Two forms of the same content: one object, as docs/PROTOCOL.md has it, or NDJSON, one entry a line
//! between `begin` and `end`. An answer without its `end` is to be discarded.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::error::{SyncError, table_name};
use super::page::Entry;
use crate::change::Reason;
use crate::hub::timestamp;
use crate::json::{numbers::quote_numbers, write_string};
use crate::topic::Pattern;

/// What an answer is about.
#[derive(Debug, Clone)]
pub struct Head {
    /// What the cursor vouches for.
    pub topics: Vec<Pattern>,
    pub tables: BTreeMap<Arc<str>, TableHead>,
    /// Granted when the device's cursor was given, and no longer.
    pub revoked: Vec<Pattern>,
    pub numbers_as_strings: bool,
}

/// How a table is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableHead {
    /// The answer replaces the device's copy.
    pub full: bool,
    /// There is no answer for it now; the device keeps what it has.
    pub unavailable: bool,
    pub reason: Option<Reason>,
    /// The primary key's columns.
    pub key: Vec<String>,
}

impl TableHead {
    pub fn incremental(key: Vec<String>) -> Self {
        TableHead { full: false, unavailable: false, reason: None, key }
    }
}

/// How far an answer, or a page of it, reaches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tail {
    /// A cursor; or, while a full answer is paged, the token of its next page.
    pub cursor: String,
    /// The greatest commit time at or before the cursor; microseconds since 1970. Unknown while a full
    /// answer is being made.
    pub sync_timestamp: Option<i64>,
    pub total_changes: usize,
    pub has_more: bool,
    /// Ends at a commit.
    pub consistent: bool,
    /// Microseconds since 1970.
    pub next_sync_recommended: i64,
    /// Of a full answer; unknown while it is being made.
    pub total_rows: Option<Option<u64>>,
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
        let numbers_as_strings = self.head.numbers_as_strings;
        let tables = self.changes.iter().map(|(table, entries)| {
            let write = move |entry: &Entry, out: &mut Vec<u8>| {
                entry.write_members(numbers_as_strings, out);
            };
            (&**table, entries.iter(), write)
        });
        to_json(&self.head, &self.tail, size(&self.changes), tables)
    }
}

/// An answer as `application/json`. Each table comes with its entries, and how the members of one are
/// written.
pub(super) fn to_json<'a, E>(
    head: &Head,
    tail: &Tail,
    size: usize,
    tables: impl Iterator<Item = (&'a str, impl Iterator<Item = E>, impl Fn(E, &mut Vec<u8>))>,
) -> Bytes {
    let mut out = Vec::with_capacity(512 + size);
    out.push(b'{');
    tail.write_reach(&mut out);
    head.write_members(&mut out);
    out.extend_from_slice(b",\"changes\":{");
    for (place, (table, entries, write)) in tables.enumerate() {
        separate(place, &mut out);
        write_string(&table_name(table), &mut out);
        out.extend_from_slice(b":[");
        for (place, entry) in entries.enumerate() {
            separate(place, &mut out);
            out.push(b'{');
            write(entry, &mut out);
            out.push(b'}');
        }
        out.push(b']');
    }
    out.push(b'}');
    head.write_dropped(&mut out);
    tail.write_members(&mut out);
    out.push(b'}');
    out.into()
}

impl Head {
    /// The first line of an NDJSON answer.
    pub(super) fn write_line(&self, total_rows: Option<Option<u64>>, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"type\":\"begin\"");
        self.write_members(out);
        self.write_dropped(out);
        write_total_rows(total_rows, out);
        out.extend_from_slice(b"}\n");
    }

    fn write_members(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b",\"topics\":");
        write_strings(self.topics.iter().map(Pattern::to_string), out);
        out.extend_from_slice(b",\"tables\":{");
        for (place, (table, head)) in self.tables.iter().enumerate() {
            separate(place, out);
            write_string(&table_name(table), out);
            write(out, format_args!(":{{\"full\":{}", head.full));
            if head.unavailable {
                out.extend_from_slice(b",\"unavailable\":true");
            }
            if let Some(reason) = head.reason {
                write(out, format_args!(",\"reason\":\"{}\"", reason.as_str()));
            }
            out.extend_from_slice(b",\"key\":");
            write_strings(&head.key, out);
            out.push(b'}');
        }
        out.push(b'}');
    }

    fn write_dropped(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b",\"revoked\":");
        write_strings(self.revoked.iter().map(Pattern::to_string), out);
        out.extend_from_slice(b",\"conflicts\":[]");
    }
}

impl Tail {
    /// The last line of a complete NDJSON answer.
    pub(super) fn write_line(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"type\":\"end\",");
        self.write_reach(out);
        self.write_members(out);
        out.extend_from_slice(b"}\n");
    }

    fn write_reach(&self, out: &mut Vec<u8>) {
        match self.sync_timestamp {
            Some(time) => write(out, format_args!("\"sync_timestamp\":\"{}\"", timestamp(time))),
            None => out.extend_from_slice(b"\"sync_timestamp\":null"),
        }
        write(out, format_args!(",\"cursor\":\"{}\"", self.cursor));
    }

    fn write_members(&self, out: &mut Vec<u8>) {
        let Tail { total_changes, has_more, consistent, next_sync_recommended, .. } = self;
        let next = timestamp(*next_sync_recommended);
        write_total_rows(self.total_rows, out);
        write(
            out,
            format_args!(
                ",\"total_changes\":{total_changes},\"has_more\":{has_more},\"consistent\":{consistent},\"next_sync_recommended\":\"{next}\""
            ),
        );
    }
}

fn write_total_rows(total_rows: Option<Option<u64>>, out: &mut Vec<u8>) {
    match total_rows {
        None => {}
        Some(None) => out.extend_from_slice(b",\"total_rows\":null"),
        Some(Some(rows)) => write(out, format_args!(",\"total_rows\":{rows}")),
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

/// One line of an NDJSON answer from members that are written already.
pub(super) fn write_change_line(table: &str, members: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"type\":\"change\",\"table\":");
    write_string(&table_name(table), out);
    out.push(b',');
    out.extend_from_slice(members.as_bytes());
    out.extend_from_slice(b"}\n");
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
    /// The members of its object. Gives the record's place among what was appended.
    pub(super) fn write_members(&self, numbers_as_strings: bool, out: &mut Vec<u8>) -> Range<usize> {
        write(out, format_args!("\"operation\":\"{}\",\"key\":", self.operation.as_str()));
        self.write_object(self.key.as_ref(), numbers_as_strings, out);
        out.extend_from_slice(b",\"record\":");
        let start = out.len();
        self.write_object(self.record.as_ref(), numbers_as_strings, out);
        let record = start..out.len();
        if !self.unchanged.is_empty() {
            out.extend_from_slice(b",\"unchanged\":");
            write_strings(&self.unchanged, out);
        }
        match self.committed_at {
            Some(time) => {
                write(out, format_args!(",\"commit_timestamp\":\"{}\",\"topic\":", timestamp(time)))
            }
            None => out.extend_from_slice(b",\"commit_timestamp\":null,\"topic\":"),
        }
        write_string(&format!("{}:{}", self.audience, self.shape.name), out);
        record
    }

    fn write_object(&self, object: Option<&Bytes>, numbers_as_strings: bool, out: &mut Vec<u8>) {
        let Some(object) = object else { return out.extend_from_slice(b"null") };
        // Our own rendering is well-formed; if it were not, the plain text is the better answer.
        let quoted = numbers_as_strings
            && std::str::from_utf8(object)
                .is_ok_and(|text| quote_numbers(text, &self.shape.columns, out).is_ok());
        if !quoted {
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
