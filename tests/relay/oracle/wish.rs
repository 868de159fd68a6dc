//! What a device wants, and which rows it should have for it.

use std::collections::BTreeMap;
use std::sync::Arc;

use rowcast::topic::decode_segment;
use serde_json::Value;

use super::columns::{literal, quoted};
use super::owners::segment;
use super::schema::{Id, NEVER_TOLD, Schema, TableNow, Template};
use crate::support::dice::Dice;

/// Topics, and for each table the rows that they are.
#[derive(Debug, Clone)]
pub(super) struct Wish {
    schema: Arc<Schema>,
    /// The user as in a topic.
    segment: String,
    pub(super) topics: Vec<String>,
}

impl Wish {
    /// One of several that a user may have.
    pub(super) fn of(schema: &Arc<Schema>, user: &str, dice: &mut Dice) -> Self {
        let segment = segment(user).expect("users have topics");
        let now = schema.now();
        let names: Vec<&str> =
            now.tables.iter().filter_map(|table| Some(&*table.tracking.as_ref()?.name)).collect();
        let mine = |scope: &str| format!("{scope}:{segment}");
        let all = |audience: &str| format!("{audience}:*");
        let named =
            |audience: &str| names.iter().map(|name| format!("{audience}:{name}")).collect::<Vec<_>>();
        let topics = match dice.roll(5) {
            0 => vec![all(&mine("user"))],
            1 => vec![all(&mine("user")), all("global")],
            2 => vec![all(&mine("user")), all(&mine("team")), all("global"), all("room:lobby")],
            // Tables by their names, also where their rows have no such topic.
            3 => [named(&mine("user")), named(&mine("team")), vec![mine("user") + ":mark"]].concat(),
            _ => [named("global"), named("room:lobby"), vec![mine("user") + ":mark"]].concat(),
        };
        Wish { schema: Arc::clone(schema), segment, topics }
    }

    /// The user's topics, all of them.
    pub(super) fn own(&self) -> String {
        format!("user:{}:*", self.segment)
    }

    /// The topic of broadcasts that tell a device of this user how far it has come; every wish covers it.
    pub(super) fn mark(&self) -> String {
        format!("user:{}:mark", self.segment)
    }

    /// For each table, by the last segment of its topics (decoded), the query of its rows as the database is now. It
    /// selects none of a table that is not tracked at the moment.
    pub(super) fn queries(&self) -> Vec<(String, String)> {
        let now = self.schema.now();
        let nothing = "SELECT 1 AS none WHERE false".to_owned();
        let mut queries: BTreeMap<String, String> =
            now.ever.keys().map(|name| (decoded(name), nothing.clone())).collect();
        for table in &now.tables {
            let Some(tracking) = &table.tracking else { continue };
            let templates = tracking.templates.iter();
            let conditions: Vec<String> =
                templates.filter_map(|template| self.condition(template, &tracking.name, table)).collect();
            if conditions.is_empty() {
                continue;
            }
            let columns: Vec<String> = table.published().map(|column| quoted(&column.name)).collect();
            let (columns, conditions) = (columns.join(", "), conditions.join(" OR "));
            let query = format!("SELECT {columns} FROM {} WHERE {conditions}", table.name);
            queries.insert(decoded(&tracking.name), query);
        }
        queries.into_iter().collect()
    }

    /// Which rows come by a template, as SQL.
    fn condition(&self, template: &Template, name: &str, table: &TableNow) -> Option<String> {
        let Template { scope, id } = template;
        match id {
            Id::None => self.covers(&format!("{scope}:{name}")).then(|| "true".to_owned()),
            Id::Fixed(id) => self.covers(&format!("{scope}:{id}:{name}")).then(|| "true".to_owned()),
            Id::Column(column) => {
                assert!(
                    table.columns.iter().any(|known| known.name == *column),
                    "{column} of {}",
                    table.name
                );
                // Wishes name no other owner than the user.
                let user = self.user();
                self.covers(&format!("{scope}:{}:{name}", self.segment))
                    .then(|| format!("{}::text = {}", quoted(column), literal(user)))
            }
        }
    }

    fn user(&self) -> &'static str {
        let mut users = self.schema.owners.users.into_iter();
        users.find(|user| segment(user).as_deref() == Some(&self.segment)).expect("one of them")
    }

    pub(super) fn covers(&self, topic: &str) -> bool {
        self.topics.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(prefix) => topic.strip_prefix(prefix).is_some_and(|table| !table.contains(':')),
            None => pattern == topic,
        })
    }

    /// Whether a device may see a row under a topic: the topic is its own, the row is of that topic, and
    /// nothing is in it that never leaves.
    pub(super) fn allows(&self, topic: &str, record: Option<&str>) -> bool {
        let record = record.filter(|record| *record != "null");
        self.covers(topic) && record.is_none_or(|record| self.is_of(topic, record))
    }

    fn is_of(&self, topic: &str, record: &str) -> bool {
        let segments: Vec<&str> = topic.split(':').collect();
        let (scope, name) = (segments[0], segments[segments.len() - 1]);
        let id = (segments.len() == 3).then(|| segments[1]);
        let now = self.schema.now();
        let columns: serde_json::Map<String, Value> = serde_json::from_str(record).unwrap();
        let gives = |template: &Template| match &template.id {
            Id::None => id.is_none(),
            Id::Fixed(fixed) => id == Some(fixed),
            Id::Column(column) => id.is_some_and(|id| match columns.get(column) {
                Some(Value::String(text)) => segment(text).as_deref() == Some(id),
                Some(Value::Number(number)) => number.to_string() == id,
                _ => false,
            }),
        };
        // By the templates of any time: which were in force for this row, only the relay can say.
        let templates = now.ever.get(name).into_iter().flatten().filter(|template| template.scope == scope);
        !record.contains(NEVER_TOLD) && templates.into_iter().any(gives)
    }
}

fn decoded(segment: &str) -> String {
    decode_segment(segment).expect("a segment of a topic")
}
