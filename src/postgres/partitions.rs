//! The partitions of a table: which relations hold its rows, what each tells of old rows, and whether
//! one that joined may have brought rows along.
//!
//! Data arrives under the name of the leaf, in the leaf's own order of columns, while a query of the
//! table shows the root's. Only the leaves of a tree hold rows, at whatever level they stand.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

/// A partitioned table as the database describes it at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partitions {
    /// The columns as a query of the table shows them, without generated ones.
    pub columns: Vec<String>,
    /// What holds the rows, by oid.
    pub leaves: BTreeMap<u32, Leaf>,
}

/// A partition that has none below it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leaf {
    /// Schema and name, quoted.
    pub name: String,
    /// How it came to belong to the table. One that left and came back has another place.
    pub place: String,
    /// Why its changes are not, or not wholly, in the stream.
    pub fault: Option<LeafFault>,
    /// What its old rows carry; `None` is all columns.
    pub identity: Option<Vec<String>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum LeafFault {
    #[error("it is a foreign table")]
    Foreign,
    #[error("it is unlogged")]
    Unlogged,
    #[error("it generates a column that the whole table does not")]
    Generated,
}

impl Partitions {
    /// The leaves that `old` lacks, if that is all that may have changed the table's rows.
    pub fn joined(&self, old: &Partitions) -> Option<Vec<u32>> {
        let stayed =
            |relid: &u32, leaf: &Leaf| self.leaves.get(relid).is_some_and(|new| new.place == leaf.place);
        let all_stayed =
            old.columns == self.columns && old.leaves.iter().all(|(relid, leaf)| stayed(relid, leaf));
        all_stayed
            .then(|| self.leaves.keys().filter(|relid| !old.leaves.contains_key(relid)).copied().collect())
    }
}

impl Leaf {
    /// The first of these columns that old rows do not carry.
    pub fn lacks<'a>(&self, mut needed: impl Iterator<Item = &'a str>) -> Option<&'a str> {
        let identity = self.identity.as_ref()?;
        needed.find(|column| !identity.iter().any(|known| known == column))
    }
}

const LEAVES: &str = r#"
WITH RECURSIVE tree(relid, place) AS (
    SELECT h.inhrelid, concat_ws(',', h.inhparent, h.xmin)
    FROM pg_catalog.pg_inherits h WHERE h.inhparent = $1 AND NOT h.inhdetachpending
  UNION ALL
    SELECT h.inhrelid, concat_ws(',', t.place, h.inhparent, h.xmin)
    FROM tree t JOIN pg_catalog.pg_class p ON p.oid = t.relid AND p.relkind = 'p'
    JOIN pg_catalog.pg_inherits h ON h.inhparent = t.relid AND NOT h.inhdetachpending
)
SELECT c.oid, pg_catalog.format('%I.%I', n.nspname, c.relname), concat_ws(',', t.place, c.relpersistence),
       c.relkind = 'f', c.relpersistence <> 'p',
       EXISTS (SELECT FROM pg_catalog.pg_attribute a
               JOIN pg_catalog.pg_attribute o ON o.attrelid = $1 AND o.attname = a.attname AND o.attgenerated = ''
               WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated <> ''),
       c.relreplident = 'f',
       ARRAY(SELECT a.attname::text FROM pg_catalog.pg_index i
             JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1])
             WHERE i.indrelid = c.oid AND i.indisvalid AND i.indimmediate
               AND CASE c.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident ELSE false END
             ORDER BY a.attnum)
FROM tree t JOIN pg_catalog.pg_class c ON c.oid = t.relid AND c.relkind <> 'p'
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
"#;

const COLUMNS: &str = "
SELECT a.attname::text FROM pg_catalog.pg_class c JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid
WHERE c.oid = $1 AND c.relkind = 'p' AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
ORDER BY a.attnum";

/// The root of the tree that a partition stands in; no row for what is no partition.
const ROOT: &str = "
WITH RECURSIVE above(relid) AS (
    SELECT h.inhparent FROM pg_catalog.pg_inherits h JOIN pg_catalog.pg_class c ON c.oid = h.inhrelid AND c.relispartition
    WHERE h.inhrelid = $1
  UNION ALL
    SELECT h.inhparent FROM above a JOIN pg_catalog.pg_inherits h ON h.inhrelid = a.relid
)
SELECT a.relid FROM above a WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_inherits h WHERE h.inhrelid = a.relid)";

/// Those of some leaves that may not have been partitions from the first.
///
/// `CREATE TABLE ... PARTITION OF` writes the rows of all the new table's columns, those of the system
/// too, in one command, and some stay as they are (others get a default); `ATTACH PARTITION` writes
/// those of all its user's columns anew, in a command of its own if not in a transaction of its own.
const ATTACHED: &str = "
WITH RECURSIVE path(leaf, relid, parent, joined) AS (
    SELECT h.inhrelid, h.inhrelid, h.inhparent, h.xmin FROM pg_catalog.pg_inherits h WHERE h.inhrelid = ANY ($1::oid[])
  UNION ALL
    SELECT p.leaf, h.inhrelid, h.inhparent, h.xmin FROM path p JOIN pg_catalog.pg_inherits h ON h.inhrelid = p.parent
)
SELECT DISTINCT p.leaf FROM path p
JOIN pg_catalog.pg_attribute s ON s.attrelid = p.relid AND s.attnum = -1
WHERE p.joined <> s.xmin OR s.xmax::text <> '0' OR NOT EXISTS (
    SELECT FROM pg_catalog.pg_attribute a WHERE a.attrelid = p.relid AND a.attnum > 0
      AND a.xmin = s.xmin AND a.cmin = s.cmin AND a.xmax::text = '0')";

/// A lock on a leaf that someone holds for long must not hold up the stream.
const SIZES: &str = "SELECT coalesce(max(pg_catalog.pg_relation_size(oid)), 0) = 0 FROM pg_catalog.pg_class WHERE oid = ANY ($1::oid[])";
const LOCK_PATIENCE: &str = "SET LOCAL lock_timeout = '200ms'";

/// `None`: the table is not partitioned, or not there.
pub async fn fetch(client: &Client, relid: u32) -> Result<Option<Partitions>, tokio_postgres::Error> {
    let columns: Vec<String> = client.query(COLUMNS, &[&relid]).await?.iter().map(|row| row.get(0)).collect();
    if columns.is_empty() {
        return Ok(None);
    }
    let leaf = |row: &tokio_postgres::Row| {
        let faults = [(3, LeafFault::Foreign), (4, LeafFault::Unlogged), (5, LeafFault::Generated)];
        let leaf = Leaf {
            name: row.get(1),
            place: row.get(2),
            fault: faults.into_iter().find_map(|(column, fault)| row.get::<_, bool>(column).then_some(fault)),
            identity: (!row.get::<_, bool>(6)).then(|| row.get(7)),
        };
        (row.get(0), leaf)
    };
    let leaves = client.query(LEAVES, &[&relid]).await?.iter().map(leaf).collect();
    Ok(Some(Partitions { columns, leaves }))
}

/// The table whose partition this is now, at whatever level.
pub async fn root_of(client: &Client, relid: u32) -> Result<Option<u32>, tokio_postgres::Error> {
    Ok(client.query_opt(ROOT, &[&relid]).await?.map(|row| row.get(0)))
}

/// Whether it is certain that these leaves brought no rows: every row that they hold was written when
/// they were partitions already, or they are empty.
pub async fn came_without_rows(client: &mut Client, leaves: &[u32]) -> Result<bool, tokio_postgres::Error> {
    let attached: Vec<u32> = client.query(ATTACHED, &[&leaves]).await?.iter().map(|row| row.get(0)).collect();
    if attached.is_empty() {
        return Ok(true);
    }
    let transaction = client.transaction().await?;
    transaction.batch_execute(LOCK_PATIENCE).await?;
    let empty = match transaction.query_one(SIZES, &[&attached]).await {
        Ok(row) => row.get(0),
        Err(error) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => false,
        Err(error) => return Err(error),
    };
    transaction.rollback().await?;
    Ok(empty)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partitions(leaves: &[(u32, &str)]) -> Partitions {
        let leaf = |place: &str| Leaf { name: "l".into(), place: place.into(), fault: None, identity: None };
        Partitions {
            columns: vec!["id".into()],
            leaves: leaves.iter().map(|(relid, place)| (*relid, leaf(place))).collect(),
        }
    }

    #[test]
    fn only_leaves_that_joined_may_leave_rows_as_they_were() {
        let old = partitions(&[(1, "a"), (2, "b")]);
        assert_eq!(old.joined(&old), Some(vec![]));
        assert_eq!(partitions(&[(1, "a"), (2, "b"), (3, "c")]).joined(&old), Some(vec![3]));
        assert_eq!(partitions(&[(1, "a")]).joined(&old), None, "one left");
        assert_eq!(partitions(&[(1, "a"), (2, "c")]).joined(&old), None, "one left and came back");
        let wider = Partitions { columns: vec!["id".into(), "more".into()], ..old.clone() };
        assert_eq!(wider.joined(&old), None);
    }

    #[test]
    fn a_leaf_lacks_what_its_identity_does_not_carry() {
        let mut leaf = Leaf { name: "l".into(), place: "a".into(), fault: None, identity: None };
        assert_eq!(leaf.lacks(["id", "user_id"].into_iter()), None);
        leaf.identity = Some(vec!["id".into()]);
        assert_eq!(leaf.lacks(["id", "user_id"].into_iter()), Some("user_id"));
    }
}
