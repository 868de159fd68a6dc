//! The stream of a new slot before the log's beginning: what changes the catalog and rights until the fence
//! that is the oldest cursor. Rows are nobody's yet.

use super::error::IngestError;
use super::opening;
use super::supervisor::status_interval;
use crate::lsn::Lsn;
use crate::position::Position;
use crate::postgres::Database;
use crate::route::{LogicalMessage, MemberChange, PREFIX, Router};
use crate::wal::pgoutput::{self, Message};
use crate::wal::{Frame, ReplicationStream, StandbyStatus};

/// The stream before the log's beginning: only changes of the catalog and of rights count.
pub(super) struct OpeningStream {
    pub(super) stream: ReplicationStream,
    pub(super) router: Router,
}

impl OpeningStream {
    /// Waits until everything that committed before now is visible. The server hears of us meanwhile;
    /// what it sends waits on the way.
    pub(super) async fn serve_while_settling(&mut self, database: &mut Database) -> Result<(), IngestError> {
        let interval = status_interval(database).await?;
        let settling = opening::settle(database.client().await?);
        tokio::pin!(settling);
        loop {
            tokio::select! {
                settled = &mut settling => return settled,
                () = tokio::time::sleep(interval) => self.stream.send_status(StandbyStatus::default()).await,
            }
        }
    }

    /// Reads up to the fence; gives the end of its transaction and its commit time.
    pub(super) async fn until_fence(&mut self, id: &str) -> Result<(Lsn, i64), IngestError> {
        let (mut xid, mut met, mut committed_at) = (0, false, 0);
        loop {
            let body = match self.stream.next().await? {
                Frame::XLogData(data) => data.body,
                Frame::Keepalive(keepalive) => {
                    if keepalive.reply_requested {
                        self.stream.send_status(StandbyStatus::default()).await;
                    }
                    continue;
                }
            };
            match pgoutput::decode(body)? {
                Message::Begin(begin) => (xid, committed_at) = (begin.xid, begin.commit_time.unix_micros()),
                Message::Relation(relation) => self.router.relation(relation),
                Message::Insert(insert) => {
                    self.router.before_beginning(insert.relid, MemberChange::Insert(&insert.new))?;
                }
                Message::Update(update) => {
                    let change = MemberChange::Update { old: update.old.as_ref(), new: &update.new };
                    self.router.before_beginning(update.relid, change)?;
                }
                Message::Delete(delete) => {
                    self.router.before_beginning(delete.relid, MemberChange::Delete(&delete.old))?;
                }
                Message::Truncate(truncate) => {
                    for relid in &truncate.relids {
                        self.router.table_truncated(*relid);
                        self.router.truncate_catalog(*relid, Position::ZERO);
                    }
                }
                Message::Message(message) if message.transactional && message.prefix == PREFIX => {
                    let opened = self.router.secret().open(xid, &message.content);
                    met |= matches!(opened, Ok(LogicalMessage::Fence(other)) if other == id);
                }
                Message::Commit(commit) if met => return Ok((commit.end_lsn, committed_at)),
                _ => {}
            }
        }
    }
}
