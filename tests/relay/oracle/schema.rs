//! A generated schema: tables of many kinds, who owns their rows, and what the database says of them now.
//!
//! What is fixed when a table is made (its key, whose rows it holds, how it is divided) is told by columns'
//! numbers, which outlive renames. Everything else is asked of the database: after DDL whose outcome nobody
//! knows, it alone can tell.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use serde::Deserialize;
use tokio_postgres::{Client, SimpleQueryMessage};

use super::columns::{Column, Labels, literal};
use super::owners::Owners;
use crate::support::dice::Dice;

mod table;

pub(super) use table::{REGIONS, Table, Track};

/// Stands in values of columns that no `track` publishes.
pub(super) const NEVER_TOLD: &str = "never-told";

#[derive(Debug)]
pub(super) struct Schema {
    pub(super) owners: Owners,
    pub(super) tables: Vec<Table>,
    enums: Vec<(String, Vec<String>)>,
    now: Mutex<Arc<Now>>,
}

/// The schema as the database had it when it was looked at last.
#[derive(Debug, Default)]
pub(super) struct Now {
    /// In the schema's order.
    pub(super) tables: Vec<TableNow>,
    pub(super) labels: Labels,
    /// All that tables were ever tracked as, by the last segment of their topics.
    pub(super) ever: BTreeMap<String, Vec<Template>>,
}

#[derive(Debug, Clone)]
pub(super) struct TableNow {
    oid: String,
    /// With its schema, quoted.
    pub(super) name: String,
    bare_name: String,
    pub(super) columns: Vec<Column>,
    pub(super) tracking: Option<Tracking>,
    /// Partitions that hold rows, quoted.
    pub(super) leaves: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tracking {
    /// The last segment of its topics.
    pub(super) name: String,
    pub(super) templates: Vec<Template>,
    pub(super) columns: Option<Vec<String>>,
}

/// `scope:{column}:table`, `scope:id:table` or `scope:table`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Template {
    pub(super) scope: String,
    pub(super) id: Id,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Id {
    None,
    Fixed(String),
    Column(String),
}

impl Template {
    fn parse(text: &str) -> Self {
        let segments: Vec<&str> = text.split(':').collect();
        let id = match segments[..] {
            [_, id, _] => match id.strip_prefix('{').and_then(|id| id.strip_suffix('}')) {
                Some(column) => Id::Column(column.to_owned()),
                None => Id::Fixed(id.to_owned()),
            },
            _ => Id::None,
        };
        Template { scope: segments[0].to_owned(), id }
    }

    fn text(&self, name: &str) -> String {
        let scope = &self.scope;
        match &self.id {
            Id::None => format!("{scope}:{name}"),
            Id::Fixed(id) => format!("{scope}:{id}:{name}"),
            Id::Column(column) => format!("{scope}:{{{column}}}:{name}"),
        }
    }
}

impl Schema {
    /// At most so many tables.
    pub(super) fn generate(dice: &mut Dice, tables: u64) -> Self {
        let owners = Owners::some(dice);
        let mut enums = vec![(
            "\"Mood 😀\"".to_owned(),
            ["so so", "quote\"d", "a:b*%", "ünï"].map(str::to_owned).to_vec(),
        )];
        // Of the owners, so that one can be told by an enum.
        enums.push(("owner_label".to_owned(), owners.all().map(str::to_owned).collect()));
        let labels: Labels = enums.iter().cloned().collect();
        let count = 1 + dice.roll(tables);
        let mut made: Vec<Table> = Vec::new();
        for number in 0..count {
            let table = Table::generate(number, &owners, &labels, &made, dice);
            made.push(table);
        }
        let schema = Schema { owners, tables: made, enums, now: Mutex::default() };
        schema.tables.iter().for_each(|table| schema.announce(&table.track));
        schema
    }

    /// What makes it, and tracks its tables.
    pub(super) fn sql(&self) -> String {
        let mut sql = String::from("CREATE SCHEMA \"Other one\";\n");
        for (name, labels) in &self.enums {
            let labels: Vec<String> = labels.iter().map(literal).collect();
            sql.push_str(&format!("CREATE TYPE {name} AS ENUM ({});\n", labels.join(", ")));
        }
        for table in &self.tables {
            sql.push_str(&format!("{};\n{};\n", table.create, table.track.sql));
        }
        sql
    }

    /// As it was when the database was looked at last.
    pub(super) fn now(&self) -> Arc<Now> {
        Arc::clone(&self.now.lock().unwrap())
    }

    /// Asks the database what there is now.
    pub(super) async fn look(&self, client: &Client) -> Result<(), tokio_postgres::Error> {
        let before = self.now();
        let oids: Vec<String> = match before.tables.is_empty() {
            true => self.tables.iter().map(|table| format!("{}::regclass", literal(&table.name))).collect(),
            false => before.tables.iter().map(|table| format!("{}::oid", table.oid)).collect(),
        };
        let mut labels = Labels::new();
        for row in rows(client, LABELS).await? {
            labels.entry(row[0].clone()).or_default().push(row[1].clone());
        }
        let found = rows(client, &TABLES.replace("OIDS", &oids.join(", "))).await?;
        let tables: Vec<TableNow> = found.iter().map(|row| TableNow::of(row)).collect();
        assert_eq!(tables.len(), self.tables.len(), "tables do not vanish");
        let mut now = self.now.lock().unwrap();
        *now = Arc::new(Now { tables, labels, ever: now.ever.clone() });
        Ok(())
    }

    /// A table is about to be tracked in this way: from its commit on devices may be told so.
    pub(super) fn announce(&self, track: &Track) {
        let mut now = self.now.lock().unwrap();
        let mut ever = now.ever.clone();
        ever.entry(track.name.clone()).or_default().extend(track.templates.clone());
        *now = Arc::new(Now { tables: now.tables.clone(), labels: now.labels.clone(), ever });
    }
}

impl Tracking {
    /// Tracks a table as it is tracked already.
    pub(super) fn again(&self, table: &str) -> String {
        let list = |texts: Vec<String>| texts.iter().map(literal).collect::<Vec<_>>().join(", ");
        let topics = self.templates.iter().map(|template| template.text(&self.name)).collect();
        let columns = self.columns.clone().map(|columns| format!(", columns => ARRAY[{}]", list(columns)));
        let columns = columns.unwrap_or_default();
        format!("SELECT rowcast.track({}, topics => ARRAY[{}]{columns})", literal(table), list(topics))
    }
}

impl TableNow {
    fn of(row: &[String]) -> Self {
        #[derive(Deserialize)]
        struct Tracked {
            topic_name: String,
            topics: Vec<String>,
            columns: Option<Vec<String>>,
        }
        let columns: Vec<(i16, String, String, bool, bool)> = serde_json::from_str(&row[2]).unwrap();
        let tracked: Option<Tracked> = serde_json::from_str(&row[3]).unwrap();
        TableNow {
            oid: row[0].clone(),
            name: row[1].clone(),
            bare_name: row[5].clone(),
            columns: columns
                .into_iter()
                .map(|(number, name, ty, nullable, generated)| Column {
                    number,
                    name,
                    ty,
                    nullable,
                    generated,
                })
                .collect(),
            tracking: tracked.map(|tracked| Tracking {
                name: tracked.topic_name,
                templates: tracked.topics.iter().map(|text| Template::parse(text)).collect(),
                columns: tracked.columns,
            }),
            leaves: serde_json::from_str(&row[4]).unwrap(),
        }
    }

    /// A column by its number; gone if it was dropped.
    pub(super) fn column(&self, number: i16) -> Option<&Column> {
        self.columns.iter().find(|column| column.number == number)
    }

    /// Those of some columns that are there, by name.
    pub(super) fn names(&self, numbers: &[i16]) -> Vec<&str> {
        numbers.iter().filter_map(|number| Some(self.column(*number)?.name.as_str())).collect()
    }

    /// What leaves the database, in the table's order.
    pub(super) fn published(&self) -> impl Iterator<Item = &Column> {
        let listed = self.tracking.as_ref().and_then(|tracking| tracking.columns.as_ref());
        let leaves = move |column: &&Column| listed.is_none_or(|listed| listed.contains(&column.name));
        self.columns.iter().filter(|column| !column.generated).filter(leaves)
    }
}

const LABELS: &str =
    "SELECT format_type(enumtypid, NULL), enumlabel FROM pg_enum ORDER BY enumtypid, enumsortorder";

const TABLES: &str = "
SELECT c.oid, format('%I.%I', n.nspname, c.relname),
  (SELECT json_agg(json_build_array(attnum, attname, format_type(atttypid, atttypmod), NOT attnotnull, attgenerated <> '')
     ORDER BY attnum) FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped),
  coalesce((SELECT row_to_json(t)::text FROM rowcast.tables t WHERE t.relid = c.oid), 'null'),
  (SELECT coalesce(json_agg(format('%I.%I', ln.nspname, l.relname) ORDER BY l.oid), '[]')
     FROM pg_partition_tree(c.oid) p JOIN pg_class l ON l.oid = p.relid JOIN pg_namespace ln ON ln.oid = l.relnamespace
     WHERE p.isleaf AND p.relid <> c.oid),
  c.relname
FROM unnest(ARRAY[OIDS]::oid[]) WITH ORDINALITY AS wanted (oid, place)
JOIN pg_class c ON c.oid = wanted.oid JOIN pg_namespace n ON n.oid = c.relnamespace ORDER BY place";

/// Rows without NULLs, as text.
async fn rows(client: &Client, query: &str) -> Result<Vec<Vec<String>>, tokio_postgres::Error> {
    let row = |message| match message {
        SimpleQueryMessage::Row(row) => {
            Some((0..row.len()).map(|column| row.get(column).unwrap().to_owned()).collect())
        }
        _ => None,
    };
    Ok(client.simple_query(query).await?.into_iter().filter_map(row).collect())
}
