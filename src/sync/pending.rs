//! How much a device is behind: the changes that the log holds for its token after a position.

use crate::auth::Grants;
use crate::change::Body;
use crate::feed::Feed;
use crate::log::{Interest, ReadError, ReadRequest, Tables};
use crate::position::Position;

/// More changes than this are not counted.
pub const MAX_PENDING: usize = 1_000;

/// Entries of the log that one count looks at, in pages of so many, so that it stays cheap in an
/// audience of which the token grants only a rare table. A count that ends there is a least one.
const PAGE_VISITS: usize = 16 * 1024;
const MAX_PAGES: usize = 16;

/// A page's changes are only counted.
const PAGE_BYTES: usize = 256 * 1024;

/// What a device has not got yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pending {
    /// Changes, up to [`MAX_PENDING`].
    pub changes: usize,
    /// When the first of them was committed, microseconds since 1970.
    pub oldest: Option<i64>,
}

/// What the grants give after a position. `TooOld` where the log no longer tells. Blocks on the disk.
pub fn pending(feed: &Feed, grants: &Grants, after: Position) -> Result<Pending, ReadError> {
    let interests: Vec<Interest> = grants
        .patterns()
        .iter()
        .map(|pattern| Interest {
            audience: pattern.audience.clone(),
            tables: match &pattern.table {
                Some(table) => Tables::Only(vec![table.clone()]),
                None => Tables::All { except: Vec::new() },
            },
            after,
        })
        .collect();
    let (mut after, mut pending) = (after, Pending::default());
    for _ in 0..MAX_PAGES {
        let page = feed.log.read(&ReadRequest {
            interests: &interests,
            after,
            upto: Position::MAX,
            max_deliveries: MAX_PENDING,
            max_bytes: PAGE_BYTES,
            max_visited: PAGE_VISITS,
        })?;
        for transaction in &page.transactions {
            let changes =
                transaction.deliveries.iter().filter(|delivery| !matches!(delivery.body, Body::Broadcast(_)));
            let changes = changes.count();
            if changes > 0 {
                pending.oldest.get_or_insert(transaction.committed_at);
                pending.changes += changes;
            }
        }
        if !page.more || pending.changes >= MAX_PENDING {
            break;
        }
        after = page.through;
    }
    pending.changes = pending.changes.min(MAX_PENDING);
    Ok(pending)
}
