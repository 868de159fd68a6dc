//! The JSON of a change as devices get it, made once for each way in which it is shown and shared by
//! all sessions that see it that way.

use std::io::Write as _;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use smallvec::SmallVec;

use super::view::View;
use crate::change::{Body, Broadcast, Delivery, Operation, RowChange, Shape, Transaction};
use crate::cursor::{Cursor, Epoch};
use crate::json;
use crate::json::numbers::quote_numbers;
use crate::lsn::Lsn;
use crate::topic::Audience;

/// A published transaction with the frames made for it so far.
#[derive(Debug)]
pub struct Published {
    pub transaction: Arc<Transaction>,
    pub end: Lsn,
    /// Of the transaction, in bytes.
    pub(super) size: usize,
    frames: Vec<Mutex<Variants>>,
}

/// The frames of one delivery, by [`Shown::variant`] and style.
type Variants = SmallVec<[(u32, Bytes); 1]>;

/// What of a frame depends on the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameStyle {
    pub epoch: Epoch,
    /// The last change that this device gets from the transaction.
    pub last: bool,
    /// int8 and numeric as strings.
    pub numbers_as_strings: bool,
    /// The device that wrote it belongs to this session's user.
    pub own: bool,
}

impl Published {
    pub(super) fn new(transaction: Arc<Transaction>, end: Lsn) -> Self {
        let frames = transaction.deliveries.iter().map(|_| Mutex::default()).collect();
        let size = transaction.size();
        Published { transaction, end, size, frames }
    }

    /// The frame of one delivery, by its place in the transaction.
    pub fn frame(&self, place: usize, shown: &Shown<'_>, style: FrameStyle) -> Bytes {
        let delivery = &self.transaction.deliveries[place];
        let Some(variant) = shown.variant() else {
            return frame_of(&self.transaction, delivery, shown, style);
        };
        let number = variant << 3
            | u32::from(style.last) << 2
            | u32::from(style.numbers_as_strings) << 1
            | u32::from(style.own);
        let mut made = self.frames[place].lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some((_, frame)) = made.iter().find(|(other, _)| *other == number) {
            return frame.clone();
        }
        let frame = frame_of(&self.transaction, delivery, shown, style);
        made.push((number, frame.clone()));
        frame
    }
}

/// How a session sees a delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shown<'a> {
    Row(View<'a>),
    /// Under which of its audiences the session reads the table.
    Truncate(Audience),
    Broadcast,
}

impl Shown<'_> {
    /// Equal numbers mean equal frames; `None` is never shared (a TRUNCATE names an audience of each
    /// session's own).
    fn variant(&self) -> Option<u32> {
        match self {
            Shown::Row(view) => Some(view.variant),
            Shown::Broadcast => Some(0),
            Shown::Truncate(_) => None,
        }
    }
}

/// The JSON of one delivery, as docs/PROTOCOL.md has it.
pub fn frame_of(
    transaction: &Transaction,
    delivery: &Delivery,
    shown: &Shown<'_>,
    style: FrameStyle,
) -> Bytes {
    let cursor = Cursor::new(style.epoch, transaction.position(delivery));
    let mut frame = Frame { out: Vec::with_capacity(delivery.size() + 320), style };
    match (&delivery.body, shown) {
        (Body::Row(row), Shown::Row(view)) => frame.row(transaction, row, view, cursor),
        (Body::Truncate(shape), Shown::Truncate(audience)) => {
            frame.truncate(transaction, shape, audience, cursor)
        }
        (Body::Broadcast(broadcast), _) => frame.broadcast(transaction, broadcast, cursor),
        // A delivery is shown by its own kind; nothing else is made (see `transport::session`).
        (Body::Row(_) | Body::Truncate(_), _) => {}
    }
    frame.out.into()
}

/// RFC 3339, UTC, microseconds.
pub fn timestamp(unix_micros: i64) -> String {
    match jiff::Timestamp::from_microsecond(unix_micros) {
        Ok(time) => format!("{time:.6}"),
        // Postgres' range is wider than the calendar's: year 9999 is the last that the format has.
        Err(_) => "9999-12-31T23:59:59.999999Z".to_owned(),
    }
}

struct Frame {
    out: Vec<u8>,
    style: FrameStyle,
}

impl Frame {
    fn row(&mut self, transaction: &Transaction, row: &RowChange, view: &View<'_>, cursor: Cursor) {
        self.head(view.audience, &row.shape, view.operation);
        self.put(",\"key\":");
        self.object(&row.key, &row.shape);
        self.put(",\"old_record\":");
        match view.operation {
            Operation::Delete => self.object(&row.key, &row.shape),
            _ => self.put("null"),
        }
        self.put(",\"new_record\":");
        match view.record {
            Some(record) => self.object(record, &row.shape),
            None => self.put("null"),
        }
        if !view.unchanged.is_empty() {
            self.put(",\"unchanged\":[");
            for (place, column) in view.unchanged.iter().enumerate() {
                if place > 0 {
                    self.put(",");
                }
                self.string(column);
            }
            self.put("]");
        }
        self.tail(transaction, cursor);
    }

    fn truncate(&mut self, transaction: &Transaction, shape: &Shape, audience: &Audience, cursor: Cursor) {
        self.head(audience, shape, Operation::Truncate);
        self.put(",\"key\":null,\"old_record\":null,\"new_record\":null");
        self.tail(transaction, cursor);
    }

    fn broadcast(&mut self, transaction: &Transaction, broadcast: &Broadcast, cursor: Cursor) {
        self.put("{\"type\":\"broadcast\",\"id\":");
        self.string(&broadcast.id);
        self.put(",\"topic\":");
        self.string(&format!("{}:{}", broadcast.audience, broadcast.name));
        self.put(",\"event\":");
        self.string(&broadcast.event);
        self.put(",\"payload\":");
        self.out.extend_from_slice(&broadcast.payload);
        let time = timestamp(transaction.committed_at);
        let _ = write!(self.out, ",\"cursor\":\"{cursor}\",\"timestamp\":\"{time}\"");
        self.source(transaction);
        self.put("}");
    }

    fn head(&mut self, audience: &Audience, shape: &Shape, operation: Operation) {
        self.put("{\"type\":\"database_change\",\"topic\":");
        self.string(&format!("{audience}:{}", shape.name));
        self.put(",\"schema\":");
        self.string(&shape.schema);
        self.put(",\"table\":");
        self.string(&shape.table);
        self.put(",\"operation\":\"");
        self.put(operation.as_str());
        self.put("\"");
    }

    fn tail(&mut self, transaction: &Transaction, cursor: Cursor) {
        let time = timestamp(transaction.committed_at);
        // Writing to a Vec cannot fail.
        let _ = write!(
            self.out,
            ",\"commit_timestamp\":\"{time}\",\"cursor\":\"{cursor}\",\"last\":{}",
            self.style.last
        );
        self.source(transaction);
        self.put("}");
    }

    /// Which device made the transaction, for its user's devices.
    fn source(&mut self, transaction: &Transaction) {
        let Some(tag) = transaction.tag.as_ref().filter(|_| self.style.own) else { return };
        self.put(",\"source_device\":");
        self.string(&tag.device);
        if let Some(correlation) = &tag.correlation {
            self.put(",\"correlation_id\":");
            self.string(correlation);
        }
    }

    fn object(&mut self, object: &Bytes, shape: &Shape) {
        let text = std::str::from_utf8(object).ok().filter(|_| self.style.numbers_as_strings);
        // Our own rendering is well-formed; if it were not, the plain text is the better answer.
        if text.is_none_or(|text| quote_numbers(text, &shape.columns, &mut self.out).is_err()) {
            self.out.extend_from_slice(object);
        }
    }

    fn string(&mut self, value: &str) {
        json::write_string(value, &mut self.out);
    }

    fn put(&mut self, text: &str) {
        self.out.extend_from_slice(text.as_bytes());
    }
}
