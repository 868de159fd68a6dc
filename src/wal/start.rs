//! START_REPLICATION: from a connection to a running stream.

use postgres_protocol::message::backend::Message;

use super::connection::{ReplicationConnection, quote_identifier, quote_literal};
use super::error::{During, WalError};
use super::stream::ReplicationStream;
use super::wire::Packet;
use crate::lsn::Lsn;
use crate::postgres::ServerError;

impl ReplicationConnection {
    /// Streams the slot's changes for `publication` by pgoutput: protocol 1, text, with logical
    /// messages; transactions come whole, after their commit. The server begins at the later of
    /// `from` and the slot's confirmed position, always with a whole transaction.
    ///
    /// The publication is looked up only when a change comes: [`WalError::publication_missing`] is an
    /// error of the stream.
    pub async fn start_replication(
        mut self,
        slot: &str,
        from: Lsn,
        publication: &str,
    ) -> Result<ReplicationStream, WalError> {
        self.send(&command(slot, from, publication))?;
        loop {
            match self.wire.next().await? {
                Packet::CopyBothResponse => return Ok(ReplicationStream::new(self.wire)),
                Packet::Other(Message::NoticeResponse(body)) => {
                    ServerError::from_fields(body.fields()).trace();
                }
                Packet::Other(Message::ErrorResponse(body)) => {
                    let error = ServerError::from_fields(body.fields());
                    return Err(WalError::Server { during: During::StartReplication, error });
                }
                Packet::Other(Message::ParameterStatus(_)) => {}
                Packet::Other(_) | Packet::CopyData(_) => {
                    return Err(WalError::Protocol("not an answer to START_REPLICATION"));
                }
            }
        }
    }
}

/// The publication's name is quoted twice: as an identifier inside a list, and the list as a literal.
fn command(slot: &str, from: Lsn, publication: &str) -> String {
    let slot = quote_identifier(slot);
    let publications = quote_literal(&quote_identifier(publication));
    format!(
        "START_REPLICATION SLOT {slot} LOGICAL {from} \
         (proto_version '1', publication_names {publications}, messages 'true')"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_for_both_grammars() {
        let text = command("s1", Lsn::new(0x1_0000_0002), "o'clock, \"x\"");
        assert_eq!(
            text,
            "START_REPLICATION SLOT \"s1\" LOGICAL 1/2 \
             (proto_version '1', publication_names '\"o''clock, \"\"x\"\"\"', messages 'true')"
        );
    }
}
