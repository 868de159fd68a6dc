//! Which tables are tracked, and how: the relay's picture of `rowcast.tables` and `rowcast.settings`.
//!
//! Read from Postgres once, when a log is opened; from then on every change of it arrives in the
//! replication stream at its place, and the picture is kept in the log at its position. So old rows
//! are routed by the templates of their time, also after a restart.

use std::collections::HashMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::template::{Template, TemplateError};
use crate::topic::Pattern;
use crate::wal::pgoutput::{Relation, Tuple, Value};

/// Where the catalog lives.
pub(super) const SCHEMA: &str = "rowcast";

/// One row of `rowcast.tables`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tracked {
    pub relid: u32,
    pub schema: String,
    pub table: String,
    /// The last segment of its topics, as in text; unique.
    pub name: Arc<str>,
    pub templates: Vec<Template>,
    /// `None`: all columns.
    pub columns: Option<Vec<String>>,
    /// Another one at each `track`.
    pub generation: i64,
}

impl Tracked {
    /// Whether a column leaves the database.
    pub fn publishes(&self, column: &str) -> bool {
        self.columns.as_ref().is_none_or(|list| list.iter().any(|name| name == column))
    }

    pub fn scopes(&self) -> Vec<String> {
        let mut scopes: Vec<String> = self.templates.iter().map(|t| t.scope().to_owned()).collect();
        scopes.sort_unstable();
        scopes.dedup();
        scopes
    }
}

/// A row of the catalog that the relay cannot use. The catalog's functions never write one.
#[derive(Debug, thiserror::Error)]
pub enum CatalogRowError {
    #[error("a row of rowcast.tables lacks {0}")]
    Missing(&'static str),
    #[error("a row of rowcast.tables has a {0} that cannot be read")]
    Unreadable(&'static str),
    #[error("a row of rowcast.{table} has no {column} that can be read")]
    Right { table: &'static str, column: &'static str },
    #[error(transparent)]
    Template(#[from] TemplateError),
}

/// What a change of the catalog means for readers of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CatalogChange {
    Tracked(Arc<Tracked>),
    Retracked { old: Arc<Tracked>, new: Arc<Tracked> },
    Untracked(Arc<Tracked>),
    Nothing,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Catalog {
    tables: HashMap<u32, Arc<Tracked>>,
}

impl Catalog {
    pub fn get(&self, relid: u32) -> Option<&Arc<Tracked>> {
        self.tables.get(&relid)
    }

    pub fn tables(&self) -> impl Iterator<Item = &Arc<Tracked>> {
        self.tables.values()
    }

    /// The tables that readers of a pattern read, by name.
    pub fn matching<'a>(&'a self, pattern: &'a Pattern) -> impl Iterator<Item = &'a Arc<Tracked>> {
        self.tables.values().filter(|tracked| tracked.templates.iter().any(|t| t.may_match(pattern)))
    }

    /// Applies a new or changed row. Applying a row that is there already changes nothing.
    pub fn put(&mut self, new: Tracked) -> CatalogChange {
        let new = Arc::new(new);
        match self.tables.insert(new.relid, Arc::clone(&new)) {
            None => CatalogChange::Tracked(new),
            Some(old) if old.generation == new.generation => CatalogChange::Nothing,
            Some(old) => CatalogChange::Retracked { old, new },
        }
    }

    pub fn remove(&mut self, relid: u32) -> CatalogChange {
        match self.tables.remove(&relid) {
            Some(old) => CatalogChange::Untracked(old),
            None => CatalogChange::Nothing,
        }
    }
}

/// A row of one of the catalog's own tables, as it came in the stream.
#[derive(Debug)]
pub struct CatalogRow {
    pub(super) table: String,
    columns: HashMap<String, String>,
}

impl CatalogRow {
    /// `None` where the relation is not one of the catalog's.
    pub(super) fn of(relation: &Relation, tuple: &Tuple) -> Option<Self> {
        if relation.namespace != SCHEMA {
            return None;
        }
        let columns = relation.columns.iter().zip(tuple).filter_map(|(column, value)| match value {
            Value::Text(text) => Some((column.name.clone(), String::from_utf8_lossy(text).into_owned())),
            _ => None,
        });
        Some(CatalogRow { table: relation.name.clone(), columns: columns.collect() })
    }

    /// Which of the catalog's tables a relation is, if it is one.
    pub(super) fn table_of(relation: &Relation) -> Option<&str> {
        (relation.namespace == SCHEMA).then_some(relation.name.as_str())
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.columns.get(name).map(String::as_str)
    }
}

impl Tracked {
    /// From the columns of a row of `rowcast.tables`, as text.
    pub fn from_columns<'a>(column: impl Fn(&str) -> Option<&'a str>) -> Result<Self, CatalogRowError> {
        let need = |name: &'static str| column(name).ok_or(CatalogRowError::Missing(name));
        let templates = parse_text_array(need("topics")?).ok_or(CatalogRowError::Unreadable("topics"))?;
        let templates = templates.iter().map(|t| Template::parse(t)).collect::<Result<Vec<_>, _>>()?;
        let name = templates.first().ok_or(CatalogRowError::Missing("topics"))?.table().clone();
        let columns = match column("columns") {
            Some(text) => Some(parse_text_array(text).ok_or(CatalogRowError::Unreadable("columns"))?),
            None => None,
        };
        Ok(Tracked {
            relid: need("relid")?.parse().map_err(|_| CatalogRowError::Unreadable("relid"))?,
            schema: need("schema_name")?.to_owned(),
            table: need("table_name")?.to_owned(),
            name,
            templates,
            columns,
            generation: need("generation")?.parse().map_err(|_| CatalogRowError::Unreadable("generation"))?,
        })
    }
}

/// PostgreSQL's text of a one-dimensional `text[]` without NULLs.
pub(super) fn parse_text_array(text: &str) -> Option<Vec<String>> {
    let mut chars = text.strip_prefix('{')?.strip_suffix('}')?.chars().peekable();
    let mut elements = Vec::new();
    while chars.peek().is_some() {
        let mut element = String::new();
        if chars.next_if_eq(&'"').is_some() {
            loop {
                match chars.next()? {
                    '"' => break,
                    '\\' => element.push(chars.next()?),
                    c => element.push(c),
                }
            }
        } else {
            while let Some(c) = chars.next_if(|c| *c != ',') {
                element.push(c);
            }
        }
        elements.push(element);
        match chars.next() {
            Some(',') if chars.peek().is_some() => {}
            None => break,
            Some(_) => return None,
        }
    }
    Some(elements)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn text_arrays_are_read_as_postgres_writes_them() {
        let parsed = |text| parse_text_array(text).unwrap();
        assert_eq!(parsed("{}"), Vec::<String>::new());
        assert_eq!(parsed("{a,b}"), ["a", "b"]);
        assert_eq!(parsed(r#"{"user:{user_id}:orders","a\"b\\c"}"#), ["user:{user_id}:orders", r#"a"b\c"#]);
        for bad in ["", "{", "a", "{\"a", "{a,}", "{\"a\"b}"] {
            assert_eq!(parse_text_array(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_row_applied_again_changes_nothing() {
        let row = |generation: &'static str| {
            Tracked::from_columns(|name| match name {
                "relid" => Some("16400"),
                "schema_name" => Some("public"),
                "table_name" => Some("orders"),
                "topics" => Some("{\"user:{user_id}:orders\"}"),
                "generation" => Some(generation),
                _ => None,
            })
            .unwrap()
        };
        let mut catalog = Catalog::default();
        assert!(matches!(catalog.put(row("1")), CatalogChange::Tracked(_)));
        assert_eq!(catalog.put(row("1")), CatalogChange::Nothing);
        assert!(matches!(catalog.put(row("2")), CatalogChange::Retracked { .. }));
        assert!(matches!(catalog.remove(16400), CatalogChange::Untracked(_)));
        assert_eq!(catalog.remove(16400), CatalogChange::Nothing);
        let again: Catalog = serde_json::from_str(&serde_json::to_string(&catalog).unwrap()).unwrap();
        assert_eq!(again.tables().count(), 0);
    }
}
