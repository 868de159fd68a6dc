//! The one cursor from which a device may go on that named its topics once.
//!
//! Invariant: resuming all of these topics from it misses nothing in silence. What was ended on the way
//! (`sync_required`) is told again, since the cursor stays before the place up to which a copy of it is
//! stale; and it never goes back.

use super::Session;
use crate::cursor::Cursor;
use crate::position::Position;

#[derive(Debug, Clone, Copy)]
pub(in crate::transport) struct Vouched {
    cursor: Option<Cursor>,
}

impl Vouched {
    /// `cursor` is where the device says that it stands.
    pub(in crate::transport) fn new(cursor: Option<Cursor>) -> Self {
        Vouched { cursor }
    }

    pub(in crate::transport) fn cursor(self) -> Option<Cursor> {
        self.cursor
    }

    /// The device has everything up to `position` of what is still subscribed.
    pub(in crate::transport) fn advance(&mut self, session: &Session, position: Position) {
        let further = self.cursor.is_none_or(|own| own.position < position);
        if further && position < session.vouched {
            self.cursor = Some(session.feed.cursor(position));
        }
    }
}
