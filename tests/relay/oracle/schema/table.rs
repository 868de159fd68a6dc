//! One generated table: what it is made of, and how it may be tracked.

use super::super::columns::{self, Column, Labels, literal, pick, quoted};
use super::super::owners::{Owners, segment};
use super::{TableNow, Template};
use crate::support::dice::Dice;

/// Names of tables; each is made unique by a number.
const NAMES: &[&str] = &[
    "orders",
    "Mixed Case",
    "quote\"d",
    "apo'strophe",
    "select",
    "ünï-cødé",
    "a:b*",
    "100%",
    "😀",
    "x\"; drop table y; --",
];

/// Names of columns that say whose a row is. A template can name these; `user_id` needs none.
const OWNER_NAMES: &[&str] = &["user_id", "Owner", "sender id", "to\"whom", "владелец", "who's"];

/// The values of a `List` division's column: a leaf for each of the first two, and one for the rest.
pub(in super::super) const REGIONS: [&str; 3] = ["eu", "US", "else:%"];
/// What a `Range` division has in each leaf but the last, of the numbers that keys are made of.
const RANGE: u64 = 15;

/// A table that was made. Columns are told by their numbers.
#[derive(Debug, Clone)]
pub(in super::super) struct Table {
    /// As it was made: with its schema, quoted.
    pub(in super::super) name: String,
    /// In the primary key's order.
    pub(in super::super) key: Vec<i16>,
    /// Of the key: what tells rows apart.
    pub(in super::super) id: i16,
    id_type: String,
    /// Columns that name an owner.
    pub(in super::super) owners: Vec<i16>,
    /// Never published.
    pub(in super::super) hidden: Option<i16>,
    /// Its values are large and not compressed.
    pub(in super::super) large: Option<i16>,
    /// A foreign key to the key of an earlier table.
    pub(in super::super) parent: Option<(i16, usize)>,
    pub(in super::super) division: Option<Division>,
    /// The column of a `List` division.
    pub(in super::super) region: Option<i16>,
    /// The last segment of its topics, where `track` is told.
    topic_name: String,
    pub(in super::super) create: String,
    pub(in super::super) track: Track,
}

/// A way to track a table.
#[derive(Debug, Clone, Default)]
pub(in super::super) struct Track {
    pub(in super::super) sql: String,
    /// The last segment of its topics.
    pub(in super::super) name: String,
    pub(in super::super) templates: Vec<Template>,
}

/// How a partitioned table is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Division {
    List,
    /// By the key's number.
    Range,
    /// A leaf of the list is divided by range.
    Both,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Key,
    Owner,
    Region,
    Hidden,
    Large,
    Parent,
    Data,
    Generated,
}

/// A column to be made.
struct Made {
    name: String,
    ty: String,
    role: Role,
    in_key: bool,
    not_null: bool,
    /// What else stands in its definition.
    rest: String,
}

impl Table {
    pub(super) fn generate(
        number: u64,
        owners: &Owners,
        labels: &Labels,
        earlier: &[Table],
        dice: &mut Dice,
    ) -> Self {
        let division = match dice.roll(8) {
            0 => Some(Division::List),
            1 => Some(Division::Range),
            2 => Some(Division::Both),
            _ => None,
        };
        let mut made = Builder { columns: Vec::new(), labels }.columns(division, owners, dice);
        let parent = (dice.roll(4) == 0).then(|| add_parent(&mut made, earlier)).flatten();
        shuffle(&mut made, dice);
        let of = |role: Role| numbers(&made, |column| column.role == role);
        let mut key = numbers(&made, |column| column.in_key);
        shuffle(&mut key, dice);
        let id = (1..).zip(&made).find(|(_, column)| column.name == "id").expect("every key has one");
        let space = if dice.roll(5) == 0 { "\"Other one\"" } else { "public" };
        let bare_name = format!("{} {number}", pick(NAMES, dice));
        let mut table = Table {
            name: format!("{space}.{}", quoted(&bare_name)),
            key,
            id: id.0,
            id_type: id.1.ty.clone(),
            owners: of(Role::Owner),
            hidden: of(Role::Hidden).first().copied(),
            large: of(Role::Large).first().copied(),
            parent: of(Role::Parent).first().copied().zip(parent),
            division,
            region: of(Role::Region).first().copied(),
            topic_name: match dice.roll(3) {
                0 => format!("t{number}%3A%2A"),
                _ => format!("t{number}"),
            },
            create: String::new(),
            track: Track::default(),
        };
        table.create = table.created(number, &made, dice);
        table.track = table.some_track(&table.as_made(bare_name, &made), dice);
        table
    }

    /// Some way to track the table, as it and its columns are called now.
    pub(in super::super) fn some_track(&self, now: &TableNow, dice: &mut Dice) -> Track {
        let owners = now.names(&self.owners);
        let user = |column: &str| format!("user:{{{column}}}");
        let (own_name, audiences) = match (owners.as_slice(), dice.roll(4)) {
            ([], 0) => (true, vec!["room:lobby".to_owned()]),
            ([], 1) => (true, vec!["room:lobby".to_owned(), "global".to_owned()]),
            ([], _) => (true, vec!["global".to_owned()]),
            // As `track` does by itself.
            (owners, 0 | 1) if owners.contains(&"user_id") => (false, vec![user("user_id")]),
            ([one], 2) => (true, vec![format!("team:{{{one}}}")]),
            ([one, ..], 3) => (true, vec![user(one), "global".to_owned()]),
            ([one], _) => (true, vec![user(one)]),
            ([one, two, ..], 2) => (true, vec![user(one), format!("team:{{{two}}}")]),
            ([one, two, ..], _) => (true, vec![user(one), user(two)]),
        };
        let name = match own_name {
            true => self.topic_name.clone(),
            false => segment(&now.bare_name).expect("a table's name is a segment"),
        };
        let topics: Vec<String> = audiences.iter().map(|audience| format!("{audience}:{name}")).collect();
        let mut arguments = vec![literal(&now.name)];
        if own_name {
            let topics: Vec<String> = topics.iter().map(literal).collect();
            arguments.push(format!("topics => ARRAY[{}]", topics.join(", ")));
        }
        if let Some(columns) = self.some_columns(now, dice) {
            arguments.push(format!("columns => ARRAY[{}]", columns.join(", ")));
        }
        let templates = topics.iter().map(|topic| Template::parse(topic)).collect();
        Track { sql: format!("SELECT rowcast.track({})", arguments.join(", ")), name, templates }
    }

    /// What leaves: key and owners in any case, the hidden column in none.
    fn some_columns(&self, now: &TableNow, dice: &mut Dice) -> Option<Vec<String>> {
        if self.hidden.is_none() && dice.roll(5) > 0 {
            return None;
        }
        let needed =
            |column: &Column| self.key.contains(&column.number) || self.owners.contains(&column.number);
        let mut columns = Vec::new();
        for column in now.columns.iter().filter(|column| !column.generated) {
            if needed(column) || (Some(column.number) != self.hidden && dice.roll(3) > 0) {
                columns.push(literal(&column.name));
            }
        }
        shuffle(&mut columns, dice);
        Some(columns)
    }

    fn as_made(&self, bare_name: String, made: &[Made]) -> TableNow {
        let column = |(number, made): (i16, &Made)| Column {
            number,
            name: made.name.clone(),
            ty: made.ty.clone(),
            nullable: !made.not_null,
            generated: made.role == Role::Generated,
        };
        TableNow {
            oid: String::new(),
            name: self.name.clone(),
            bare_name,
            columns: (1..).zip(made).map(column).collect(),
            tracking: None,
            leaves: Vec::new(),
        }
    }

    fn created(&self, number: u64, made: &[Made], dice: &mut Dice) -> String {
        let named = |number: &i16| quoted(&made[*number as usize - 1].name);
        let list = |numbers: &[i16]| numbers.iter().map(named).collect::<Vec<_>>().join(", ");
        let definitions: Vec<String> = made.iter().map(Made::definition).collect();
        let by_range = format!("PARTITION BY RANGE ({})", named(&self.id));
        let by_list = || format!("PARTITION BY LIST ({})", named(&self.region.expect("it is divided by it")));
        let by = match self.division {
            None => String::new(),
            Some(Division::Range) => by_range.clone(),
            Some(_) => by_list(),
        };
        let name = &self.name;
        let mut sql = vec![format!(
            "CREATE TABLE {name} ({}, PRIMARY KEY ({})) {by}",
            definitions.join(", "),
            list(&self.key)
        )];
        let leaf = |part: &str| quoted(format!("leaf {part} {number}"));
        let ranges = |sql: &mut Vec<String>, of: &str| {
            for part in 0..3 {
                let upto = if part == 2 { "MAXVALUE".to_owned() } else { ((part + 1) * RANGE).to_string() };
                let values = format!("FROM ({}) TO ({upto})", part * RANGE);
                sql.push(format!(
                    "CREATE TABLE {} PARTITION OF {of} FOR VALUES {values}",
                    leaf(&format!("{part}"))
                ));
            }
        };
        if self.division == Some(Division::Range) {
            ranges(&mut sql, name);
        } else if let Some(division) = self.division {
            // Another order of columns, and once it had one more.
            let mut other: Vec<String> = made.iter().rev().map(Made::definition).collect();
            other.insert(other.len() / 2, "gone int".to_owned());
            let [eu, us, _] = REGIONS.map(literal);
            sql.push(format!("CREATE TABLE {} ({})", leaf("eu"), other.join(", ")));
            sql.push(format!("ALTER TABLE {} DROP COLUMN gone", leaf("eu")));
            sql.push(format!("ALTER TABLE {name} ATTACH PARTITION {} FOR VALUES IN ({eu})", leaf("eu")));
            let more = if division == Division::Both { by_range } else { String::new() };
            sql.push(format!("CREATE TABLE {} PARTITION OF {name} FOR VALUES IN ({us}) {more}", leaf("us")));
            if division == Division::Both {
                ranges(&mut sql, &leaf("us"));
            }
            sql.push(format!("CREATE TABLE {} PARTITION OF {name} DEFAULT", leaf("else")));
        }
        if let Some(large) = &self.large {
            sql.push(format!("ALTER TABLE {name} ALTER COLUMN {} SET STORAGE EXTERNAL", named(large)));
        }
        let in_key = self.owners.iter().all(|owner| self.key.contains(owner));
        let nullable = self.owners.iter().any(|owner| !made[*owner as usize - 1].not_null);
        if !in_key && !nullable && dice.roll(2) == 0 {
            let lacking: Vec<i16> = self.owners.iter().filter(|c| !self.key.contains(c)).copied().collect();
            sql.push(format!("CREATE UNIQUE INDEX ON {name} ({}, {})", list(&lacking), list(&self.key)));
        } else if self.division.is_none()
            && made.iter().all(|column| column.role != Role::Generated)
            && dice.roll(4) == 0
        {
            sql.push(format!("ALTER TABLE {name} REPLICA IDENTITY FULL"));
        }
        sql.join(";\n")
    }
}

impl Made {
    fn definition(&self) -> String {
        let not_null = if self.not_null { "NOT NULL" } else { "" };
        format!("{} {} {not_null} {}", quoted(&self.name), self.ty, self.rest)
    }

    /// Whether PostgreSQL would hold any value of it in an index.
    fn is_bounded(&self) -> bool {
        self.ty != "text"
    }
}

/// Puts columns together.
struct Builder<'a> {
    columns: Vec<Made>,
    labels: &'a Labels,
}

impl Builder<'_> {
    fn columns(mut self, division: Option<Division>, owners: &Owners, dice: &mut Dice) -> Vec<Made> {
        let id = match division {
            Some(Division::Range | Division::Both) => "integer",
            _ => pick(&["integer", "integer", "bigint", "uuid", "text"], dice),
        };
        self.add("id", id, Role::Key, true, true);
        if dice.roll(4) == 0 {
            self.add("line", "smallint", Role::Key, true, true);
        }
        if matches!(division, Some(Division::List | Division::Both)) {
            self.add("Region", "character varying(8)", Role::Region, true, true);
        }
        for place in 0..*pick(&[0, 1, 1, 1, 1, 2, 2, 3], dice) {
            let name = OWNER_NAMES[(dice.roll(2) as usize + 2 * place) % OWNER_NAMES.len()];
            let in_key = place == 0 && dice.roll(5) == 0;
            let not_null = in_key || dice.roll(2) == 0;
            self.add(name, owners.some_type(dice), Role::Owner, in_key, not_null);
        }
        for _ in 0..1 + dice.roll(4) {
            let ty = columns::some_type(self.labels, dice);
            let name = columns::some_name(self.columns.iter().map(|column| column.name.as_str()), dice);
            self.add(&name, &ty, Role::Data, false, false);
        }
        if dice.roll(3) == 0 {
            self.add("hidden", "text", Role::Hidden, false, false);
        }
        if dice.roll(2) == 0 {
            self.add("Large", "text", Role::Large, false, false);
            self.add_generated(division, dice);
        }
        self.columns
    }

    /// FULL does not go with it: it needs an identity of bounded columns.
    fn add_generated(&mut self, division: Option<Division>, dice: &mut Dice) {
        let mut owners = self.columns.iter().filter(|column| column.role == Role::Owner);
        let by_key = owners.clone().all(|column| column.in_key);
        let by_index = owners.all(|column| column.not_null && column.is_bounded())
            && self.columns.iter().filter(|column| column.in_key).all(Made::is_bounded);
        if division.is_none() && (by_key || by_index) && dice.roll(2) == 0 {
            self.add("length", "integer", Role::Generated, false, false);
            let column = self.columns.last_mut().expect("it was added");
            column.rest = "GENERATED ALWAYS AS (length(\"Large\")) STORED".to_owned();
        }
    }

    fn add(&mut self, name: &str, ty: &str, role: Role, in_key: bool, not_null: bool) {
        let made =
            Made { name: name.to_owned(), ty: ty.to_owned(), role, in_key, not_null, rest: String::new() };
        self.columns.push(made);
    }
}

/// A reference to an earlier table that can be referred to by one column.
fn add_parent(made: &mut Vec<Made>, earlier: &[Table]) -> Option<usize> {
    let parent = earlier.iter().rposition(|table| table.key.len() == 1)?;
    let ty = earlier[parent].id_type.clone();
    let rest = format!("REFERENCES {} ON DELETE SET NULL ON UPDATE CASCADE", earlier[parent].name);
    made.push(Made { name: "parent".into(), ty, role: Role::Parent, in_key: false, not_null: false, rest });
    Some(parent)
}

fn numbers(made: &[Made], wanted: impl Fn(&Made) -> bool) -> Vec<i16> {
    (1..).zip(made).filter(|(_, column)| wanted(column)).map(|(number, _)| number).collect()
}

fn shuffle<T>(list: &mut [T], dice: &mut Dice) {
    for last in (1..list.len()).rev() {
        list.swap(last, dice.roll(last as u64 + 1) as usize);
    }
}
