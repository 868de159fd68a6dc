//! How tuples of one relation are read: compiled once for each shape, used for every row.
//!
//! A plan joins what three sources say of a table: the stream's Relation message (columns, types and
//! identity at that place), the catalog (templates, published columns) and the database's own
//! catalogs (primary key, resolved types). It must not know transactions or positions.

use std::sync::Arc;

use super::Known;
use super::catalog::Tracked;
use super::template::Template;
use crate::change::Shape;
use crate::json;
use crate::json::numbers::Quoting;
use crate::postgres::types::Type;
use crate::wal::pgoutput::{Relation, ReplicaIdentity};

/// How to read the tuples of a relation.
#[derive(Debug)]
pub struct Plan {
    pub shape: Arc<Shape>,
    /// One for each column of the relation, in its order.
    pub columns: Vec<PlanColumn>,
    /// Where the primary key's columns stand.
    pub key: Vec<usize>,
    pub templates: Vec<(Template, Option<usize>)>,
    /// The published columns as a record shows them: in the table's order, which is not that of a leaf.
    pub record: Vec<usize>,
    /// The old row carries all columns.
    pub full_identity: bool,
    /// Of a leaf: a column that its old rows lack. New rows can be read all the same.
    pub lacks: Option<Arc<str>>,
}

#[derive(Debug)]
pub struct PlanColumn {
    pub name: Arc<str>,
    /// `"name":`
    pub label: Vec<u8>,
    pub ty: Arc<Type>,
    /// Leaves the database.
    pub published: bool,
}

/// Why a relation's rows cannot be routed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The stream and the database's catalogs speak of different shapes: one is older than the other.
    #[error("{0}")]
    Moved(String),
    #[error(
        "the replica identity of {table} does not carry the column {column}, which its key or topics need; \
         run SELECT rowcast.track again for it"
    )]
    Identity { table: String, column: String },
    #[error(
        "{found} has the number under which the catalog knows {tracked}: it was renamed, or the database was \
         restored and the catalog's numbers are those of another one; run SELECT rowcast.track again for it"
    )]
    Name { found: String, tracked: String },
}

impl Plan {
    /// For rows that are read from the table itself, with all of their values.
    ///
    /// `columns` are all that is read, in the table's order: what is published, the key and the topics'.
    pub fn of_table(
        tracked: &Tracked,
        (schema, table): (&str, &str),
        columns: &[(String, Arc<Type>)],
        primary_key: &[String],
    ) -> Result<Self, PlanError> {
        let find = |name: &str| {
            let found = columns.iter().position(|(column, _)| *column == name);
            found.ok_or_else(|| PlanError::Moved(format!("{schema}.{table} has no column {name} any more")))
        };
        let key = primary_key.iter().map(|name| find(name)).collect::<Result<Vec<_>, _>>()?;
        let mut templates = Vec::with_capacity(tracked.templates.len());
        for template in &tracked.templates {
            templates.push((template.clone(), template.column().map(&find).transpose()?));
        }
        let columns: Vec<PlanColumn> = columns
            .iter()
            .map(|(name, ty)| PlanColumn::new(name, Arc::clone(ty), tracked.publishes(name)))
            .collect();
        let record = published(&columns, 0..columns.len());
        let shape = Shape {
            id: 0,
            relid: tracked.relid,
            schema: schema.to_owned(),
            table: table.to_owned(),
            name: Arc::clone(&tracked.name),
            key: primary_key.to_vec(),
            scopes: tracked.scopes(),
            columns: contents(&columns, &record),
        };
        Ok(Plan { shape: Arc::new(shape), columns, key, templates, record, full_identity: true, lacks: None })
    }

    /// Of the table's own relation or, where it is partitioned, that of a leaf. `shape_of` gives the shape
    /// of these contents its number.
    pub fn compile(
        relation: &Relation,
        tracked: &Tracked,
        known: &Known,
        shape_of: impl FnOnce(Shape) -> Arc<Shape>,
    ) -> Result<Self, PlanError> {
        let info = &known.info;
        let table = || format!("{}.{}", relation.namespace, relation.name);
        // Rows of another table must never be routed by this one's topics.
        let leaf_of = known.info.partitions.as_ref().filter(|_| relation.relid != tracked.relid);
        let found = match leaf_of {
            Some(_) => (&info.schema, &info.name),
            None => (&relation.namespace, &relation.name),
        };
        if !known.ours && found != (&tracked.schema, &tracked.table) {
            return Err(PlanError::Name {
                found: table(),
                tracked: format!("{}.{}", tracked.schema, tracked.table),
            });
        }
        let find = |name: &str| {
            let found = relation.columns.iter().position(|c| *c.name == *name);
            found.ok_or_else(|| PlanError::Moved(format!("{} is sent without its column {name}", table())))
        };
        let mut columns = Vec::with_capacity(relation.columns.len());
        for column in &relation.columns {
            let ty = info.types.get(&column.type_oid).cloned().or_else(|| Type::builtin(column.type_oid));
            let ty = ty.ok_or_else(|| {
                PlanError::Moved(format!("the type of {}.{} is no longer there", table(), column.name))
            })?;
            columns.push(PlanColumn::new(&column.name, ty, tracked.publishes(&column.name)));
        }
        if info.primary_key.is_empty() {
            return Err(PlanError::Moved(format!("{} has no primary key any more", table())));
        }
        let key = info.primary_key.iter().map(|name| find(name)).collect::<Result<Vec<_>, _>>()?;
        let mut templates = Vec::with_capacity(tracked.templates.len());
        for template in &tracked.templates {
            templates.push((template.clone(), template.column().map(&find).transpose()?));
        }
        let order: Vec<usize> = match leaf_of {
            None => (0..columns.len()).collect(),
            Some(partitions) if partitions.columns.len() == columns.len() => {
                partitions.columns.iter().map(|name| find(name)).collect::<Result<_, _>>()?
            }
            Some(_) => {
                return Err(PlanError::Moved(format!(
                    "{} is sent with other columns than its table has",
                    table()
                )));
            }
        };
        let record = published(&columns, order);
        let mut needed = key.iter().copied().chain(templates.iter().filter_map(|(_, column)| *column));
        let full_identity = relation.identity == ReplicaIdentity::Full;
        let lacking = needed.find(|index| !full_identity && !relation.columns[*index].key);
        let lacks = lacking.map(|index| Arc::clone(&columns[index].name));
        if let Some(column) = lacks.as_ref().filter(|_| leaf_of.is_none()) {
            return Err(PlanError::Identity { table: table(), column: column.to_string() });
        }
        let (schema, name) = found;
        let shape = shape_of(Shape {
            id: 0,
            relid: tracked.relid,
            schema: schema.clone(),
            table: name.clone(),
            name: Arc::clone(&tracked.name),
            key: info.primary_key.clone(),
            scopes: tracked.scopes(),
            columns: contents(&columns, &record),
        });
        Ok(Plan { shape, columns, key, templates, record, full_identity, lacks })
    }
}

impl PlanColumn {
    fn new(name: &str, ty: Arc<Type>, published: bool) -> Self {
        let mut label = Vec::with_capacity(name.len() + 3);
        json::write_string(name, &mut label);
        label.push(b':');
        PlanColumn { name: Arc::from(name), label, ty, published }
    }
}

/// Those of the columns in this order that leave the database.
fn published(columns: &[PlanColumn], order: impl IntoIterator<Item = usize>) -> Vec<usize> {
    order.into_iter().filter(|index| columns[*index].published).collect()
}

fn contents(columns: &[PlanColumn], record: &[usize]) -> Vec<(String, Quoting)> {
    let published = record.iter().map(|index| &columns[*index]);
    published.map(|column| (column.name.to_string(), Quoting::of(&column.ty))).collect()
}
