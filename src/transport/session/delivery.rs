//! From transactions to a session's frames: what of them it wants, how it sees that, and which is the
//! last of a transaction. Live delivery and replay come through here alike.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use super::frame::{At, Frame};
use super::subscriptions::Subscriptions;
use crate::auth::UserId;
use crate::change::{Body, Broadcast, Delivery, Tag, Transaction};
use crate::cursor::Epoch;
use crate::hub::{FrameStyle, Item, Shown, frame_of, view};
use crate::transport::Relay;

/// The reader, as far as frames depend on it.
#[derive(Debug)]
pub(super) struct Reader {
    pub(super) relay: Arc<Relay>,
    pub(super) epoch: Epoch,
    pub(super) user: UserId,
    pub(super) device: Arc<str>,
    pub(super) numbers_as_strings: bool,
}

impl Reader {
    /// The frames of a transaction that was published: shared with other sessions.
    pub(super) fn live(&self, item: &Item, wanted: &Subscriptions, out: &mut Vec<Frame>) {
        let published = &item.published;
        let transaction = &published.transaction;
        let deliveries = item.places().filter_map(|place| Some((place, transaction.deliveries.get(place)?)));
        self.frames(
            transaction,
            deliveries,
            wanted,
            false,
            i64::MIN,
            |place, _, shown, style| published.frame(place, shown, style),
            out,
        );
    }

    /// The frames of a transaction that was read from the log. `goes_on`: more of it will follow.
    /// Broadcasts before `broadcasts_from` (microseconds since 1970) are over.
    pub(super) fn replayed(
        &self,
        transaction: &Transaction,
        wanted: &Subscriptions,
        goes_on: bool,
        broadcasts_from: i64,
        out: &mut Vec<Frame>,
    ) {
        let deliveries = transaction.deliveries.iter().enumerate();
        let encode = |_: usize, delivery: &Delivery, shown: &Shown<'_>, style| {
            frame_of(transaction, delivery, shown, style)
        };
        self.frames(transaction, deliveries, wanted, goes_on, broadcasts_from, encode, out);
    }

    #[expect(clippy::too_many_arguments, reason = "one walk for both ways, which must not differ")]
    fn frames<'a>(
        &self,
        transaction: &'a Transaction,
        deliveries: impl Iterator<Item = (usize, &'a Delivery)>,
        wanted: &Subscriptions,
        goes_on: bool,
        broadcasts_from: i64,
        encode: impl Fn(usize, &Delivery, &Shown<'_>, FrameStyle) -> Bytes,
        out: &mut Vec<Frame>,
    ) {
        let own = transaction.tag.as_ref().is_some_and(|tag| self.is_own(tag));
        let style =
            FrameStyle { epoch: self.epoch, last: false, numbers_as_strings: self.numbers_as_strings, own };
        let before = out.len();
        let frame = |place: usize, delivery: &Delivery, shown: &Shown<'_>, style| {
            let at =
                At { position: transaction.position(delivery), committed_at: Some(transaction.committed_at) };
            Frame { json: encode(place, delivery, shown, style), at: Some(at) }
        };
        // One change is held back until it is known whether another follows.
        let mut held: Option<(usize, &Delivery, Shown<'_>)> = None;
        let mut broadcasts: Vec<Frame> = Vec::new();
        for (place, delivery) in deliveries {
            let at = transaction.position(delivery);
            let shown = match &delivery.body {
                Body::Row(row) => {
                    view(row, |m| wanted.wants(&m.audience, &row.shape.name, at)).map(Shown::Row)
                }
                Body::Truncate(shape) => {
                    // A session that reads the table under several audiences empties its copy once.
                    wanted.reader_of(&shape.scopes, &shape.name, at).cloned().map(Shown::Truncate)
                }
                Body::Broadcast(broadcast) => {
                    let fresh = transaction.committed_at >= broadcasts_from;
                    let meant = !self.is_own_message(transaction.tag.as_ref(), broadcast);
                    if fresh && meant && wanted.wants(&broadcast.audience, &broadcast.name, at) {
                        // Behind the change that is held back, if there is one.
                        let queue = if held.is_some() { &mut broadcasts } else { &mut *out };
                        queue.push(frame(place, delivery, &Shown::Broadcast, style));
                    }
                    continue;
                }
            };
            let Some(shown) = shown else { continue };
            if let Some((place, delivery, shown)) = held.replace((place, delivery, shown)) {
                out.push(frame(place, delivery, &shown, style));
                out.append(&mut broadcasts);
            }
        }
        if let Some((place, delivery, shown)) = held {
            out.push(frame(place, delivery, &shown, FrameStyle { last: !goes_on, ..style }));
        }
        out.append(&mut broadcasts);
        deliveries_total().increment((out.len() - before) as u64);
    }

    /// What a device sent to the user's other devices does not come back to it.
    fn is_own_message(&self, tag: Option<&Tag>, broadcast: &Broadcast) -> bool {
        let sent_here =
            |tag: &Tag| tag.device == self.device && tag.user.as_deref() == Some(&*self.user.subject);
        tag.is_some_and(sent_here)
            && self
                .relay
                .messages
                .topic_of(&self.user)
                .is_some_and(|topic| topic.matches(&broadcast.audience, &broadcast.name))
    }

    /// A device's id says nothing to other users, so it is told only to its own.
    fn is_own(&self, tag: &Tag) -> bool {
        match &tag.user {
            Some(user) => **user == *self.user.subject,
            None => tag.device == self.device || self.relay.sessions.knows_device(&self.user, &tag.device),
        }
    }
}

/// Looked up once: each delivery to each device counts.
fn deliveries_total() -> &'static metrics::Counter {
    static TOTAL: OnceLock<metrics::Counter> = OnceLock::new();
    TOTAL.get_or_init(|| metrics::counter!("rowcast_deliveries_total"))
}
