//! Asks the catalog for types, with everything that they are made of, in one query.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use tokio_postgres::types::Type as SqlType;
use tokio_postgres::{Client, Row};

use super::{Kind, MAX_DEPTH, MAX_NODES, Type, Unsupported};

/// The catalog could not be read.
#[derive(Debug, thiserror::Error)]
pub enum TypeError {
    #[error("could not read types from the database's catalog; retry on a new connection")]
    Query(#[from] tokio_postgres::Error),
}

/// Resolves `oids`. Types that the catalog does not know (any more) are absent from the answer.
///
/// At most one query, in which the whole answer is of one snapshot, and none where all types are
/// built in. Names and operators do not depend on the session's search path.
pub async fn load(client: &Client, oids: &[u32]) -> Result<HashMap<u32, Arc<Type>>, TypeError> {
    let unknown: HashSet<u32> = oids.iter().copied().filter(|oid| Type::builtin(*oid).is_none()).collect();
    let mut resolver = Resolver::default();
    if !unknown.is_empty() {
        let unknown: Vec<u32> = unknown.into_iter().collect();
        for row in client.query_typed(CLOSURE, &[(&unknown, SqlType::OID_ARRAY)]).await? {
            resolver.rows.insert(row.try_get("oid")?, Entry::from_row(&row)?);
        }
    }
    Ok(oids.iter().filter_map(|&oid| Some((oid, resolver.resolve(oid, 0)?.ty))).collect())
}

/// One row for each type reachable from `$1`. An element or an attribute that is itself refused
/// must be known for what it is, and so must the subtype of a range, whose text is part of the range's.
/// PostgreSQL looks for a cast to json (114) only where the type is not its own (16384 and above).
const CLOSURE: &str = "
WITH RECURSIVE reachable(oid) AS (
    SELECT pg_catalog.unnest($1::pg_catalog.oid[])
  UNION
    SELECT part.oid
      FROM reachable
      JOIN pg_catalog.pg_type t ON t.oid = reachable.oid
      JOIN LATERAL (
          SELECT t.typbasetype WHERE t.typtype = 'd'
        UNION ALL
          SELECT t.typelem WHERE t.typsubscript = 'pg_catalog.array_subscript_handler'::pg_catalog.regproc
        UNION ALL
          SELECT a.atttypid FROM pg_catalog.pg_attribute a
           WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
        UNION ALL
          SELECT r.rngsubtype FROM pg_catalog.pg_range r
           WHERE t.typtype IN ('r', 'm') AND (r.rngtypid = t.oid OR r.rngmultitypid = t.oid)
      ) AS part(oid) ON part.oid <> 0
)
SELECT t.oid,
       n.nspname = 'pg_catalog' AND t.typname LIKE 'reg%' AS prints_names,
       pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(t.typname) AS name,
       t.typtype AS class,
       t.typbasetype AS base,
       CASE WHEN t.typsubscript = 'pg_catalog.array_subscript_handler'::pg_catalog.regproc
            THEN t.typelem ELSE 0::pg_catalog.oid END AS element,
       t.typdelim AS delimiter,
       COALESCE((SELECT r.rngsubtype FROM pg_catalog.pg_range r
                  WHERE r.rngtypid = t.oid OR r.rngmultitypid = t.oid), 0::pg_catalog.oid) AS subtype,
       ARRAY(SELECT a.attname::pg_catalog.text FROM pg_catalog.pg_attribute a
              WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
              ORDER BY a.attnum) AS field_names,
       ARRAY(SELECT a.atttypid FROM pg_catalog.pg_attribute a
              WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
              ORDER BY a.attnum) AS field_types,
       t.oid >= 16384 AND EXISTS (
           SELECT FROM pg_catalog.pg_cast c
            WHERE c.castsource = t.oid AND c.casttarget = 114 AND c.castmethod = 'f') AS casts_to_json,
       t.typname = 'hstore' AND EXISTS (
           SELECT FROM pg_catalog.pg_depend d
             JOIN pg_catalog.pg_extension e ON e.oid = d.refobjid
            WHERE d.classid = 'pg_catalog.pg_type'::pg_catalog.regclass AND d.objid = t.oid
              AND d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass
              AND d.deptype = 'e' AND e.extname = 'hstore') AS is_hstore
  FROM reachable
  JOIN pg_catalog.pg_type t ON t.oid = reachable.oid
  JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace";

/// What the catalog says of one type.
#[derive(Debug, Clone)]
struct Entry {
    name: String,
    /// `pg_type.typtype`.
    class: u8,
    base: u32,
    /// Of a true array, else 0.
    element: u32,
    /// Between elements of an array of this type.
    delimiter: u8,
    /// Of a range or multirange, else 0.
    subtype: u32,
    fields: Vec<(String, u32)>,
    prints_names: bool,
    casts_to_json: bool,
    is_hstore: bool,
}

impl Entry {
    fn from_row(row: &Row) -> Result<Self, tokio_postgres::Error> {
        let names: Vec<String> = row.try_get("field_names")?;
        let types: Vec<u32> = row.try_get("field_types")?;
        Ok(Entry {
            name: row.try_get("name")?,
            class: row.try_get::<_, i8>("class")?.cast_unsigned(),
            base: row.try_get("base")?,
            element: row.try_get("element")?,
            delimiter: row.try_get::<_, i8>("delimiter")?.cast_unsigned(),
            subtype: row.try_get("subtype")?,
            fields: names.into_iter().zip(types).collect(),
            prints_names: row.try_get("prints_names")?,
            casts_to_json: row.try_get("casts_to_json")?,
            is_hstore: row.try_get("is_hstore")?,
        })
    }
}

/// Builds the trees out of the catalog's rows. The catalog forbids types that contain themselves,
/// but the recursion does not rely on it.
#[derive(Debug, Default)]
struct Resolver {
    rows: HashMap<u32, Entry>,
    done: HashMap<u32, Resolved>,
}

#[derive(Debug, Clone)]
struct Resolved {
    ty: Arc<Type>,
    depth: usize,
    nodes: usize,
}

/// How far to follow types inside each other, domains over domains included.
const MAX_STEPS: usize = 4 * MAX_DEPTH;

impl Resolver {
    /// `None` for a type that the catalog does not know.
    fn resolve(&mut self, oid: u32, steps: usize) -> Option<Resolved> {
        if let Some(done) = self.done.get(&oid) {
            return Some(done.clone());
        }
        if let Some(ty) = Type::builtin(oid) {
            // The deepest are arrays of a vector of numbers.
            return Some(Resolved { ty, depth: 3, nodes: 3 });
        }
        let entry = self.rows.get(&oid)?.clone();
        let mut resolved = if steps < MAX_STEPS {
            self.build(oid, &entry, steps + 1)?
        } else {
            Resolved::leaf(oid, &entry.name, Kind::Unsupported { why: Unsupported::TooComplex })
        };
        if resolved.depth > MAX_DEPTH || resolved.nodes > MAX_NODES {
            resolved = Resolved::leaf(oid, &entry.name, Kind::Unsupported { why: Unsupported::TooComplex });
        }
        self.done.insert(oid, resolved.clone());
        Some(resolved)
    }

    /// In the order in which PostgreSQL itself tells the cases apart.
    fn build(&mut self, oid: u32, entry: &Entry, steps: usize) -> Option<Resolved> {
        if entry.class == b'd' {
            let base = self.resolve(entry.base, steps)?;
            let ty = Type { oid, name: entry.name.clone(), kind: base.ty.kind.clone() };
            return Some(Resolved { ty: Arc::new(ty), ..base });
        }
        if entry.element != 0 {
            let delimiter = self.rows.get(&entry.element).map_or(b',', |element| element.delimiter);
            let element = self.resolve(entry.element, steps)?;
            let ty = Type {
                oid,
                name: format!("{}[]", element.ty.name),
                kind: Kind::Array { element: element.ty, delimiter },
            };
            return Some(Resolved { ty: Arc::new(ty), depth: element.depth + 1, nodes: element.nodes + 1 });
        }
        if entry.class == b'c' {
            return self.composite(oid, entry, steps);
        }
        let kind = if entry.is_hstore && entry.casts_to_json {
            Kind::Hstore
        } else if entry.casts_to_json {
            Kind::Unsupported { why: Unsupported::JsonCast }
        } else if entry.prints_names || self.subtype_prints_names(entry.subtype, steps) {
            Kind::Unsupported { why: Unsupported::SearchPath }
        } else {
            Kind::Text
        };
        Some(Resolved::leaf(oid, &entry.name, kind))
    }

    fn composite(&mut self, oid: u32, entry: &Entry, steps: usize) -> Option<Resolved> {
        let (mut depth, mut nodes) = (1, 1_usize);
        let mut fields = Vec::with_capacity(entry.fields.len());
        for (name, field) in &entry.fields {
            let field = self.resolve(*field, steps)?;
            depth = depth.max(field.depth + 1);
            nodes = nodes.saturating_add(field.nodes);
            fields.push((name.clone(), field.ty));
        }
        let ty = Type { oid, name: entry.name.clone(), kind: Kind::Composite { fields } };
        Some(Resolved { ty: Arc::new(ty), depth, nodes })
    }

    /// A range prints the text of its bounds, whatever their own JSON would be.
    fn subtype_prints_names(&mut self, subtype: u32, steps: usize) -> bool {
        subtype != 0
            && self
                .resolve(subtype, steps)
                .is_some_and(|subtype| matches!(subtype.ty.unsupported(), Some((_, Unsupported::SearchPath))))
    }
}

impl Resolved {
    fn leaf(oid: u32, name: &str, kind: Kind) -> Self {
        Resolved { ty: Arc::new(Type { oid, name: name.to_owned(), kind }), depth: 1, nodes: 1 }
    }
}
