//! What the publication says of itself: whether all that the stream needs is in it, and whether it is still
//! the one that the log was filled by.
//!
//! PostgreSQL leaves out of the stream what the publication did not have at a change's place, and says
//! nothing of it. Of a tracked table its fingerprint tells (`postgres::tables`); of the options and of the
//! catalog's own tables, by which tracks, rights and revocations come, nobody else does. So these are
//! looked at together with the fingerprints: what is not right stops ingest with what to do, and what
//! was otherwise in between begins a new epoch, for nobody knows what it left out.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tokio_postgres::Client;

use super::PUBLICATION;

/// The number, the version of its row (every change of its options writes it), what is wrong with the
/// options, and the catalog's own tables with their numbers in the publication.
const LOOK: &str = "
SELECT p.oid, p.xmin::text,
  pg_catalog.concat_ws(' and ',
    CASE WHEN NOT (p.pubinsert AND p.pubupdate AND p.pubdelete AND p.pubtruncate)
      THEN 'leaves out ' || pg_catalog.concat_ws(', ', CASE WHEN NOT p.pubinsert THEN 'INSERT' END, CASE WHEN NOT p.pubupdate THEN 'UPDATE' END,
        CASE WHEN NOT p.pubdelete THEN 'DELETE' END, CASE WHEN NOT p.pubtruncate THEN 'TRUNCATE' END) END,
    CASE WHEN p.pubviaroot THEN 'publishes partitions under the name of their root' END,
    CASE WHEN pg_catalog.to_jsonb(p) ->> 'pubgencols' <> 'n' THEN 'publishes generated columns' END),
  ARRAY(SELECT c.relname::text FROM pg_catalog.pg_class c
    WHERE c.relnamespace = pg_catalog.to_regnamespace('rowcast') AND c.relname = ANY ($2) ORDER BY c.relname),
  ARRAY(SELECT coalesce((SELECT r.oid FROM pg_catalog.pg_publication_rel r
      WHERE r.prpubid = p.oid AND r.prrelid = c.oid AND r.prqual IS NULL AND r.prattrs IS NULL), 0)
    FROM pg_catalog.pg_class c WHERE c.relnamespace = pg_catalog.to_regnamespace('rowcast') AND c.relname = ANY ($2) ORDER BY c.relname)
FROM pg_catalog.pg_publication p WHERE p.pubname = $1";

/// What the relay learns from through the stream.
const OWN: [&str; 5] = ["tables", "settings", "revocations", "grants", "grant_seeds"];

/// The publication at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// One made again has another.
    pub(super) oid: u32,
    pub(super) publishes: Publishes,
    /// Why the stream would not be whole.
    pub(super) fault: Option<String>,
}

/// What must stay as it is for the stream to have left nothing out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publishes {
    /// Empty: of a log that did not keep it yet.
    options: String,
    own: BTreeMap<String, u32>,
}

impl Publishes {
    /// Whether a log filled under `self` can be gone on with. Tables that a later release adds are no break.
    pub(super) fn goes_on_as(&self, now: &Publishes) -> bool {
        let kept = |(name, number)| now.own.get(name) == Some(number);
        self.options.is_empty() || (self.options == now.options && self.own.iter().all(kept))
    }
}

/// `None`: there is no such publication.
pub(super) async fn look(client: &Client) -> Result<Option<Found>, tokio_postgres::Error> {
    let own: &[&str] = &OWN;
    let Some(row) = client.query_opt(LOOK, &[&PUBLICATION, &own]).await? else { return Ok(None) };
    let (names, numbers): (Vec<String>, Vec<u32>) = (row.get(3), row.get(4));
    let own: BTreeMap<String, u32> = names.into_iter().zip(numbers).collect();
    let lacking: Vec<String> =
        own.iter().filter(|(_, number)| **number == 0).map(|(name, _)| format!("rowcast.{name}")).collect();
    let mut faults: Vec<String> = vec![row.get(2)];
    if !lacking.is_empty() {
        faults.push(format!("lacks {}, or has them in part", lacking.join(", ")));
    }
    faults.retain(|fault| !fault.is_empty());
    let fault = (!faults.is_empty()).then(|| faults.join(" and "));
    Ok(Some(Found { oid: row.get(0), publishes: Publishes { options: row.get(1), own }, fault }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publishes(options: &str, own: &[(&str, u32)]) -> Publishes {
        let own = own.iter().map(|(name, number)| ((*name).to_owned(), *number)).collect();
        Publishes { options: options.to_owned(), own }
    }

    #[test]
    fn what_was_otherwise_in_between_is_found_and_what_joins_is_no_break() {
        let log = publishes("700", &[("settings", 1), ("tables", 2)]);
        assert!(log.goes_on_as(&log));
        assert!(log.goes_on_as(&publishes("700", &[("grants", 9), ("settings", 1), ("tables", 2)])));
        assert!(!log.goes_on_as(&publishes("701", &[("settings", 1), ("tables", 2)])));
        assert!(!log.goes_on_as(&publishes("700", &[("settings", 1), ("tables", 3)])));
        assert!(!log.goes_on_as(&publishes("700", &[("settings", 1)])));
        assert!(Publishes::default().goes_on_as(&log), "a log of an earlier release");
    }
}
