//! What the database's own catalogs say of a table: key, types, and a fingerprint of all that a
//! change of shape would change.
//!
//! The replication stream is no witness of DDL: it repeats itself after VACUUM, and is silent about
//! `ALTER TYPE`, a rewritten column or a new default. So the fingerprint is asked for, and after it the
//! place up to which copies may be older than the answer.

use std::collections::HashMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio_postgres::Client;

use super::partitions::{self, Partitions};
use super::types::{self, Type, TypeError};
use crate::lsn::Lsn;

/// A table as the database describes it at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableInfo {
    pub schema: String,
    pub name: String,
    /// In the key's order.
    pub primary_key: Vec<String>,
    /// Of its columns, by oid.
    pub types: HashMap<u32, Arc<Type>>,
    /// Equal as long as nothing changed that could change rows or their meaning.
    pub fingerprint: String,
    /// Where it is partitioned; its rows come under the names of the leaves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partitions: Option<Partitions>,
}

impl TableInfo {
    /// The leaves that joined since `old`, if nothing else changed that could change rows.
    pub fn joined(&self, old: &TableInfo) -> Option<Vec<u32>> {
        fn own(info: &TableInfo) -> &str {
            info.fingerprint.split_once(TREE).map_or(&info.fingerprint, |(own, _)| own)
        }
        if own(self) != own(old) {
            return None;
        }
        self.partitions.as_ref()?.joined(old.partitions.as_ref()?)
    }
}

/// An answer about a table, and up to where copies may be older than it.
#[derive(Debug, Clone)]
pub struct TableFetch {
    /// `None`: there is no such table.
    pub info: Option<TableInfo>,
    /// The leaves that joined since the last answer are known to have brought no rows.
    pub joined_without_rows: bool,
    /// The publication lacks the table, or has it otherwise than this `track` of it says: its generation.
    pub unpublished: Option<i64>,
    /// `pg_current_wal_insert_lsn()`, read after the answer.
    pub insert_lsn: Lsn,
}

#[derive(Debug, thiserror::Error)]
pub enum TableError {
    #[error("asking the database about tracked tables failed: {0}")]
    Query(#[from] tokio_postgres::Error),
    #[error(transparent)]
    Types(#[from] TypeError),
    #[error("the database answered with an LSN that cannot be read")]
    Lsn,
}

/// Between the fingerprint of a table's own and that of its partitions.
const TREE: char = '/';

/// All that a DDL statement on a table, on the types of its columns or on its publication changes.
///
/// Not the relfilenode, which TRUNCATE and VACUUM FULL change, nor the oid of an index, which REINDEX
/// CONCURRENTLY does.
const FINGERPRINTS: &str = r#"
WITH RECURSIVE wanted AS (SELECT unnest($1::oid[]) AS relid),
reached(relid, typid) AS (
    SELECT a.attrelid, a.atttypid
    FROM wanted w JOIN pg_catalog.pg_attribute a ON a.attrelid = w.relid AND a.attnum > 0 AND NOT a.attisdropped
  UNION
    SELECT r.relid, n.typid
    FROM reached r JOIN pg_catalog.pg_type t ON t.oid = r.typid CROSS JOIN LATERAL (
        SELECT t.typelem AS typid WHERE t.typelem <> 0
        UNION ALL SELECT t.typbasetype WHERE t.typbasetype <> 0
        UNION ALL SELECT a.atttypid FROM pg_catalog.pg_attribute a
                  WHERE t.typrelid <> 0 AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
    ) n
),
-- What belongs to a partitioned table, at all levels. A partition attached again has another xmin.
tree(root, relid, edge) AS (
    SELECT NULL::oid, w.relid, NULL::text FROM wanted w JOIN pg_catalog.pg_class p ON p.oid = w.relid AND p.relkind = 'p'
  UNION ALL
    SELECT coalesce(t.root, t.relid), c.oid,
        concat_ws(',', h.inhrelid, h.inhparent, h.xmin, c.relkind, c.relpersistence, c.relreplident,
            (SELECT string_agg(concat_ws(',', i.indisprimary, i.indisreplident, i.indkey), ',' ORDER BY i.indisprimary, i.indisreplident)
               FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND (i.indisprimary OR i.indisreplident)))
    FROM tree t JOIN pg_catalog.pg_inherits h ON h.inhparent = t.relid AND NOT h.inhdetachpending
    JOIN pg_catalog.pg_class c ON c.oid = h.inhrelid
)
SELECT c.oid, concat_ws('/', md5(concat_ws('|',
    n.nspname, c.relname, c.relkind, c.relreplident,
    (SELECT string_agg(concat_ws(',', a.attnum, a.xmin, a.attname, a.atttypid, a.atttypmod, a.attnotnull), ';' ORDER BY a.attnum)
       FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0),
    (SELECT string_agg(concat_ws(',', i.indisprimary, i.indisreplident, i.indkey), ';' ORDER BY i.indisprimary, i.indisreplident)
       FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND (i.indisprimary OR i.indisreplident)),
    (SELECT string_agg(concat_ws(',', h.inhrelid, h.inhparent), ';' ORDER BY h.inhrelid, h.inhparent)
       FROM pg_catalog.pg_inherits h WHERE (h.inhparent = c.oid AND c.relkind <> 'p') OR h.inhrelid = c.oid),
    (SELECT string_agg(concat_ws(',', t.oid, t.typname, t.typtype, t.typbasetype), ';' ORDER BY t.oid)
       FROM reached r JOIN pg_catalog.pg_type t ON t.oid = r.typid WHERE r.relid = c.oid AND t.typnamespace <> 11),
    (SELECT string_agg(concat_ws(',', a.attrelid, a.attnum, a.xmin, a.attname, a.atttypid), ';' ORDER BY a.attrelid, a.attnum)
       FROM reached r JOIN pg_catalog.pg_type t ON t.oid = r.typid AND t.typrelid <> 0
       JOIN pg_catalog.pg_attribute a ON a.attrelid = t.typrelid AND a.attnum > 0 WHERE r.relid = c.oid),
    (SELECT string_agg(concat_ws(',', e.oid, e.xmin, e.enumlabel), ';' ORDER BY e.oid)
       FROM reached r JOIN pg_catalog.pg_enum e ON e.enumtypid = r.typid WHERE r.relid = c.oid),
    (SELECT string_agg(concat_ws(',', p.oid, pr.oid, pr.xmin, pr.prattrs, pr.prqual), ';' ORDER BY p.oid)
       FROM pg_catalog.pg_publication p JOIN pg_catalog.pg_publication_rel pr ON pr.prpubid = p.oid
       WHERE p.pubname = $2 AND pr.prrelid = c.oid)
)), (SELECT md5(string_agg(t.edge, ';' ORDER BY t.edge)) FROM tree t WHERE t.root = c.oid)) AS fingerprint
FROM wanted w JOIN pg_catalog.pg_class c ON c.oid = w.relid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
"#;

const COLUMNS: &str = r#"
SELECT a.attname::text, a.atttypid,
       -- An index may INCLUDE columns that are no part of the key; indkey counts from 0.
       (SELECT array_position((i.indkey::int2[])[0:i.indnkeyatts - 1], a.attnum)
          FROM pg_catalog.pg_index i WHERE i.indrelid = a.attrelid AND i.indisprimary) AS key_place
FROM pg_catalog.pg_attribute a
WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attnum
"#;

const NAME: &str = "
SELECT n.nspname::text, c.relname::text
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1
";

/// What `rowcast.status` says too.
const UNPUBLISHED: &str = "
SELECT t.generation FROM rowcast.tables t
WHERE t.relid = $1 AND NOT rowcast.is_published(t.relid, rowcast.column_list(t.relid, rowcast.with_grants(t.relid, t.columns)))
";

/// The fingerprints of those tables that exist, and the insert LSN read after them.
pub async fn fingerprints(
    client: &Client,
    publication: &str,
    relids: &[u32],
) -> Result<(HashMap<u32, String>, Lsn), TableError> {
    let rows = client.query(FINGERPRINTS, &[&relids, &publication]).await?;
    let prints = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    Ok((prints, insert_lsn(client).await?))
}

/// One table, whole. The fingerprint is read before and after the rest, so that it belongs to it.
pub async fn fetch(client: &Client, publication: &str, relid: u32) -> Result<TableFetch, TableError> {
    loop {
        let (mut before, _) = fingerprints(client, publication, &[relid]).await?;
        let rows = client.query(COLUMNS, &[&relid]).await?;
        let mut key: Vec<(i32, String)> = Vec::new();
        let mut oids = Vec::with_capacity(rows.len());
        for row in &rows {
            oids.push(row.get::<_, u32>(1));
            if let Some(place) = row.get::<_, Option<i32>>(2) {
                key.push((place, row.get(0)));
            }
        }
        key.sort_unstable();
        let types = types::load(client, &oids).await?;
        let named = client.query_opt(NAME, &[&relid]).await?;
        let partitions = partitions::fetch(client, relid).await?;
        let unpublished = client.query_opt(UNPUBLISHED, &[&relid]).await?.map(|row| row.get(0));
        let (after, insert_lsn) = fingerprints(client, publication, &[relid]).await?;
        if before != after {
            continue;
        }
        let named = named.map(|row| (row.get(0), row.get(1)));
        let info = before.remove(&relid).zip(named).map(|(fingerprint, (schema, name))| TableInfo {
            schema,
            name,
            primary_key: key.into_iter().map(|(_, name)| name).collect(),
            types,
            fingerprint,
            partitions,
        });
        return Ok(TableFetch { info, joined_without_rows: false, unpublished, insert_lsn });
    }
}

pub async fn insert_lsn(client: &Client) -> Result<Lsn, TableError> {
    let row = client.query_one("SELECT pg_catalog.pg_current_wal_insert_lsn()::text", &[]).await?;
    row.get::<_, &str>(0).parse().map_err(|_| TableError::Lsn)
}
