//! What a device wants, and which rows it should have for it.

use serde_json::Value;

use crate::support::dice::Dice;

/// Topics, and for each table the rows that they are.
#[derive(Debug, Clone)]
pub(super) struct Wish {
    /// As in a topic.
    segment: String,
    pub(super) topics: Vec<String>,
    rows: Vec<(String, String)>,
}

impl Wish {
    /// One of several that a user may have.
    pub(super) fn of(user: &str, dice: &mut Dice) -> Self {
        let patterns: &[&str] = match dice.roll(4) {
            0 => &["user:U:*"],
            1 => &["user:U:*", "global:*"],
            2 => &["user:U:*", "team:U:*", "global:g"],
            _ => &["user:U:a", "team:U:d", "user:U:c", "user:U:t", "user:U:mark"],
        };
        let topics: Vec<String> = patterns.iter().map(|pattern| pattern.replace('U', user)).collect();
        let wish = Wish { segment: user.to_owned(), topics, rows: Vec::new() };
        let mut rows = Vec::new();
        for (table, audience, condition) in [
            ("a", "user", "user_id = U"),
            ("b", "user", "user_id = U"),
            ("c", "user", "(sender = U OR recipient = U)"),
            ("d", "user", "user_id = U"),
            ("d", "team", "team_id = U"),
            ("t", "user", "user_id = U"),
        ] {
            if wish.covers(&format!("{audience}:{user}:{table}")) {
                rows.push((table.to_owned(), condition.replace('U', user)));
            }
        }
        if wish.covers("global:g") {
            rows.push(("g".to_owned(), "true".to_owned()));
        }
        Wish { rows, ..wish }
    }

    /// The user's topics, all of them.
    pub(super) fn own(&self) -> String {
        format!("user:{}:*", self.segment)
    }

    /// The topic of broadcasts that tell a device of this user how far it has come; every wish covers it.
    pub(super) fn mark(&self) -> String {
        format!("user:{}:mark", self.segment)
    }

    /// For each table, by the last segment of its topics, the query of its rows as the database is now. It
    /// selects none of a table that is not tracked at the moment.
    pub(super) fn queries(&self) -> Vec<(String, String)> {
        let mut tables: Vec<_> = self.rows.iter().map(|(table, _)| table.clone()).collect();
        tables.dedup();
        let query = |table: String| {
            let of_table = self.rows.iter().filter(|(known, _)| *known == table);
            let conditions: Vec<&str> = of_table.map(|(_, condition)| condition.as_str()).collect();
            let query = format!("SELECT * FROM {table} WHERE {}", conditions.join(" OR "));
            (table, query)
        };
        tables.into_iter().map(query).collect()
    }

    pub(super) fn covers(&self, topic: &str) -> bool {
        self.topics.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(prefix) => topic.starts_with(prefix),
            None => pattern == topic,
        })
    }

    /// Whether a device may see a row under a topic: the topic is its own, and the row is of that topic.
    pub(super) fn allows(&self, topic: &str, record: Option<&str>) -> bool {
        let columns: &[&str] = match topic.split(':').collect::<Vec<_>>()[..] {
            ["team", ..] => &["team_id"],
            ["user", _, "c"] => &["sender", "recipient"],
            ["user", ..] => &["user_id"],
            _ => &[],
        };
        let owner = topic.split(':').nth(1).unwrap_or_default();
        let of_owner = |record: &str| {
            let record: Value = serde_json::from_str(record).unwrap();
            columns.is_empty()
                || columns.iter().map(|column| record[column].to_string()).any(|text| text == owner)
        };
        self.covers(topic) && record.is_none_or(|record| record == "null" || of_owner(record))
    }
}
