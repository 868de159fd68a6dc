//! Rows against a model: whatever happens to a table, each reader's copy follows it and holds nothing else.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet, HashMap};

use proptest::prelude::*;
use serde_json::{Map, Value as Json};

use super::super::Known;
use super::*;
use crate::change::{Operation, Shape};
use crate::hub::view;
use crate::postgres::tables::TableInfo;
use crate::route::Tracked;
use crate::wal::pgoutput::{Column, Relation, ReplicaIdentity};

const COLUMNS: [&str; 6] = ["id", "owner", "team", "note", "big", "secret"];
const PUBLISHED: usize = 5;

fn plan(full: bool) -> Plan {
    let column = |name: &&str| Column {
        key: full || ["id", "owner", "team"].contains(name),
        name: (*name).to_owned(),
        type_oid: if *name == "id" { 23 } else { 25 },
        type_modifier: -1,
    };
    let relation = Relation {
        relid: 1,
        namespace: "public".to_owned(),
        name: "docs".to_owned(),
        identity: if full { ReplicaIdentity::Full } else { ReplicaIdentity::Index },
        columns: COLUMNS.iter().map(column).collect(),
    };
    let tracked = Tracked::from_columns(|name| match name {
        "relid" | "generation" => Some("1"),
        "schema_name" => Some("public"),
        "table_name" => Some("docs"),
        "topics" => Some("{user:{owner}:docs,team:{team}:docs}"),
        "columns" => Some("{id,owner,team,note,big}"),
        _ => None,
    });
    let info = TableInfo {
        schema: "public".to_owned(),
        name: "items".to_owned(),
        primary_key: vec!["id".to_owned()],
        types: HashMap::new(),
        fingerprint: String::new(),
        partitions: None,
    };
    let known = Known {
        info: info.into(),
        shape: None,
        ours: true,
        blocked: false,
        weak: BTreeSet::new(),
        unpublished: false,
    };
    Plan::compile(&relation, &tracked.unwrap(), &known, |shape: Shape| shape.into()).unwrap()
}

/// One version of a row, as text; `None` is NULL.
type Cells = [Option<String>; 6];
/// A reader's copy: key to record.
type Copy = BTreeMap<String, Map<String, Json>>;

fn values(cells: &Cells) -> Row<'_> {
    cells.iter().map(|cell| cell.as_ref().map_or(Value::Null, |text| Value::Text(text.as_bytes()))).collect()
}

fn audiences(cells: &Cells) -> BTreeSet<String> {
    let owner = cells[1].as_ref().filter(|text| !text.is_empty()).map(|text| format!("user:{text}"));
    let team = cells[2].as_ref().filter(|text| !text.is_empty()).map(|text| format!("team:{text}"));
    owner.into_iter().chain(team).collect()
}

fn key(cells: &Cells) -> String {
    format!("{{\"id\":{}}}", cells[0].as_deref().unwrap())
}

fn record(cells: &Cells) -> Map<String, Json> {
    let mut record = Map::new();
    for (name, cell) in COLUMNS.iter().zip(cells).take(PUBLISHED) {
        let json = cell.as_ref().map_or(Json::Null, |text| {
            if *name == "id" { text.parse::<i64>().unwrap().into() } else { text.clone().into() }
        });
        record.insert((*name).to_owned(), json);
    }
    record
}

/// What a reader of these audiences should hold.
fn expected(table: &BTreeMap<i32, Cells>, readers: &BTreeSet<String>) -> Copy {
    let rows = table.values().filter(|cells| !audiences(cells).is_disjoint(readers));
    rows.map(|cells| (key(cells), record(cells))).collect()
}

/// Applies a change as a device does, and checks what no device may see.
fn apply(copy: &mut Copy, change: &RowChange, readers: &BTreeSet<String>) {
    let Some(seen) = view(change, |member| readers.contains(member.audience.as_str())) else { return };
    assert!(readers.contains(seen.audience.as_str()), "under a topic of its own");
    let key = String::from_utf8(change.key.to_vec()).unwrap();
    let Some(json) = seen.record else {
        assert_eq!(seen.operation, Operation::Delete);
        assert!(copy.remove(&key).is_some(), "deletes what was there");
        return;
    };
    assert_ne!(seen.operation, Operation::Delete, "a DELETE carries no values");
    assert!(!String::from_utf8_lossy(json).contains("secret"));
    let mut new: Map<String, Json> = serde_json::from_slice(json).unwrap();
    let old = copy.remove(&key);
    match seen.operation {
        Operation::Insert => {
            assert!(old.is_none() && seen.unchanged.is_empty(), "an INSERT is new and whole")
        }
        _ => assert!(old.is_some(), "an UPDATE is of a row that the reader has"),
    }
    for name in seen.unchanged {
        let old = old.as_ref().unwrap();
        new.insert(name.to_string(), old[&**name].clone());
    }
    copy.insert(key, new);
}

/// What happens to a row.
#[derive(Debug, Clone)]
struct Step {
    id: i32,
    delete: bool,
    /// New values by column, where they change; of the id the new one.
    set: [Option<Option<u8>>; 6],
    /// The large value is stored out of line.
    toasted: bool,
    /// The log knows owed values.
    payable: bool,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let cell = || prop::option::weighted(0.4, prop::option::weighted(0.85, 0u8..4));
    let set = [cell(), cell(), cell(), cell(), cell(), cell()];
    let step = (0..4i32, prop::bool::weighted(0.15), set, any::<bool>(), any::<bool>());
    let step =
        step.prop_map(|(id, delete, set, toasted, payable)| Step { id, delete, set, toasted, payable });
    prop::collection::vec(step, 1..60)
}

fn text(column: usize, value: Option<u8>) -> Option<String> {
    match (column, value) {
        (0, value) => Some(value.unwrap_or(0).to_string()),
        // The empty text gives no topic, as NULL does.
        (1 | 2, Some(3)) => Some(String::new()),
        (5, value) => Some(format!("secret {value:?}")),
        (_, value) => value.map(|value| format!("v{value}\"é")),
    }
}

struct Model {
    plan: Plan,
    full: bool,
    table: BTreeMap<i32, Cells>,
    copies: Vec<(BTreeSet<String>, Copy)>,
}

impl Model {
    fn new(full: bool) -> Self {
        let names = ["user:v0\"é", "user:v1\"é", "user:v2\"é", "team:v0\"é", "team:v1\"é"];
        let singles = names.iter().map(|name| BTreeSet::from([(*name).to_owned()]));
        let pairs = [[0, 1], [0, 3], [2, 4]].map(|pair| pair.map(|i| names[i].to_owned()).into());
        let copies =
            singles.chain(pairs).chain([names.map(str::to_owned).into()]).map(|who| (who, Copy::new()));
        Model { plan: plan(full), full, table: BTreeMap::new(), copies: copies.collect() }
    }

    fn tell(&mut self, changes: &[RowChange]) {
        for (readers, copy) in &mut self.copies {
            changes.iter().for_each(|change| apply(copy, change, readers));
        }
    }

    fn old_tuple<'a>(&self, old: &'a Cells) -> OldRow<'a> {
        let mut row = values(old);
        if self.full {
            return OldRow::Full(row);
        }
        row.iter_mut().skip(3).for_each(|value| *value = Value::Null);
        OldRow::Key(row)
    }

    fn run(&mut self, step: &Step) {
        let Some(old) = self.table.get(&step.id).cloned() else {
            let mut new: Cells = std::array::from_fn(|i| text(i, step.set[i].flatten()));
            new[0] = Some(step.id.to_string());
            let change = self.plan.insert(&values(&new)).unwrap();
            assert_eq!(change.is_none(), audiences(&new).is_empty());
            self.table.insert(step.id, new);
            return self.tell(change.as_slice());
        };
        if step.delete {
            let change = self.plan.delete(&self.old_tuple(&old)).unwrap();
            self.table.remove(&step.id);
            return self.tell(change.as_slice());
        }
        self.update(step, &old);
    }

    fn update(&mut self, step: &Step, old: &Cells) {
        let mut new = old.clone();
        for (column, value) in step.set.iter().enumerate() {
            if let Some(value) = value {
                new[column] = text(column, *value);
            }
        }
        let id: i32 = new[0].as_ref().unwrap().parse().unwrap();
        if id != step.id && self.table.contains_key(&id) {
            new[0] = old[0].clone();
        }
        let sent = self.full || (0..3).any(|column| old[column] != new[column]);
        let mut row = values(&new);
        if step.toasted && new[4].is_some() && new[4] == old[4] {
            row[4] = Value::UnchangedToast;
        }
        let old_row = sent.then(|| self.old_tuple(old));
        let mut debt = Debt::Open;
        let mut stale = Vec::new();
        let changes = loop {
            match self.plan.update(old_row.as_ref(), &row, &debt).unwrap() {
                Update::Nothing => break Vec::new(),
                Update::Changed(change) => break vec![change],
                Update::Rekeyed { delete, insert } => break delete.into_iter().chain(insert).collect(),
                Update::Owed(owed) => {
                    assert!(
                        matches!(debt, Debt::Open) && !self.full,
                        "asked once, and never with the whole old row"
                    );
                    assert_eq!(owed.columns, [(4, "big".to_owned())]);
                    if step.payable {
                        debt = Debt::Supplied(vec![(4, serde_json::to_string(&new[4]).unwrap())]);
                    } else {
                        let newly = self.plan.newly(old_row.as_ref(), &row).unwrap();
                        stale = newly.iter().map(|audience| audience.as_str().to_owned()).collect();
                        debt = Debt::Unpayable;
                    }
                }
            }
        };
        let id: i32 = new[0].as_ref().unwrap().parse().unwrap();
        self.table.remove(&step.id);
        self.table.insert(id, new.clone());
        self.tell(&changes);
        // Those who were told to sync did.
        for (readers, copy) in &mut self.copies {
            if stale.iter().any(|audience| readers.contains(audience)) {
                *copy = expected(&self.table, readers);
            }
        }
    }
}

proptest! {
    #[test]
    fn copies_follow_the_table(full: bool, steps in steps()) {
        let mut model = Model::new(full);
        for step in &steps {
            model.run(step);
            for (readers, copy) in &model.copies {
                prop_assert_eq!(copy, &expected(&model.table, readers), "{:?} after {:?}", readers, step);
            }
        }
    }
}

fn cells(texts: [&str; 6]) -> Cells {
    texts.map(|text| Some(text.to_owned()))
}

#[test]
fn an_update_of_only_unpublished_columns_is_for_nobody() {
    let old = cells(["1", "a", "b", "n", "x", "secret 1"]);
    let mut new = old.clone();
    new[5] = Some("secret 2".to_owned());
    let full = plan(true);
    let update = full.update(Some(&OldRow::Full(values(&old))), &values(&new), &Debt::Open).unwrap();
    assert!(matches!(update, Update::Nothing));
}

#[test]
fn what_was_not_sent_and_is_needed_is_an_error() {
    let plan = plan(false);
    let new = cells(["1", "a", "b", "n", "x", "s"]);
    let mut row = values(&new);
    row[1] = Value::UnchangedToast;
    let error = plan.update(None, &row, &Debt::Open).unwrap_err();
    assert!(matches!(error, RowError::KeyNotSent(column) if column == "owner"));
    row[1] = Value::Binary(b"a");
    assert!(matches!(plan.insert(&row), Err(RowError::Binary(_))));
    row.pop();
    assert!(matches!(plan.insert(&row), Err(RowError::Columns { found: 5, expected: 6 })));
    let mut row = values(&new);
    row[1] = Value::Text(b"\xff");
    let error = plan.insert(&row).unwrap_err();
    assert!(matches!(error, RowError::Value { source: ValueError::Encoding { offset: 0 }, .. }));
}

#[test]
fn key_and_topic_values_that_were_not_sent_come_from_the_old_key() {
    let plan = plan(false);
    let old = cells(["1", "a", "b", "n", "x", "s"]);
    let new = cells(["1", "a", "c", "m", "y", "s"]);
    let mut row = values(&new);
    row[1] = Value::UnchangedToast;
    let mut before = values(&old);
    before.iter_mut().skip(3).for_each(|value| *value = Value::Null);
    let update = plan.update(Some(&OldRow::Key(before)), &row, &Debt::Open).unwrap();
    let Update::Changed(change) = update else { panic!("{update:?}") };
    let members: Vec<_> =
        change.memberships.iter().map(|m| (m.audience.as_str(), m.before, m.after)).collect();
    assert_eq!(members, [("team:b", true, false), ("team:c", false, true), ("user:a", true, true)]);
}
