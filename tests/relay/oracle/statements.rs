//! What writers do to rows: one statement at a time, for tables as they are now.

use super::columns::{self, Column, literal, pick, quoted};
use super::schema::{NEVER_TOLD, Now, REGIONS, Schema, Table, TableNow};
use crate::support::dice::Dice;

/// Keys are made of so many numbers: few, so that rows are inserted, moved and deleted again and again.
const IDS: u64 = 40;

/// One table, as it was made and as it is.
pub(super) struct Statements<'a> {
    schema: &'a Schema,
    now: &'a Now,
    table: &'a Table,
    at: &'a TableNow,
}

/// How much a statement may touch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// A few rows, because its transaction stays open and holds locks.
    Few,
    Any,
}

pub(super) fn some_statement(schema: &Schema, now: &Now, reach: Reach, dice: &mut Dice) -> String {
    let number = dice.roll(schema.tables.len() as u64) as usize;
    let of = Statements { schema, now, table: &schema.tables[number], at: &now.tables[number] };
    match (dice.roll(100), reach) {
        (0, Reach::Any) => of.truncate(dice),
        (1..=5, Reach::Any) => of.update_many(dice),
        (6 | 7, Reach::Any) => of.delete_many(dice),
        (8..=35, _) => of.insert(1, dice),
        (36..=45, Reach::Any) => of.insert(2 + dice.roll(6), dice),
        (46..=60, _) => of.move_owner(dice),
        (61..=66, _) => of.move_key(dice),
        (67..=72, _) => of.move_region(dice),
        (73..=84, _) => of.delete(dice),
        _ => of.update(dice),
    }
}

impl Statements<'_> {
    fn insert(&self, rows: u64, dice: &mut Dice) -> String {
        let columns: Vec<&Column> = self.at.columns.iter().filter(|column| !column.generated).collect();
        let names: Vec<String> = columns.iter().map(|column| quoted(&column.name)).collect();
        let rows: Vec<String> = (0..rows)
            .map(|_| {
                let n = dice.roll(IDS);
                let cells: Vec<String> = columns.iter().map(|column| self.cell(column, n, dice)).collect();
                format!("({})", cells.join(", "))
            })
            .collect();
        let key: Vec<String> = self.at.names(&self.table.key).into_iter().map(quoted).collect();
        let on_conflict = match (self.data(dice), dice.roll(6)) {
            (_, 0) => String::new(),
            (_, 1) => "ON CONFLICT DO NOTHING".to_owned(),
            // A row must not be met twice in one statement.
            (Some(column), _) if rows.len() == 1 => {
                let name = quoted(&column.name);
                format!("ON CONFLICT ({}) DO UPDATE SET {name} = excluded.{name}", key.join(", "))
            }
            _ => format!("ON CONFLICT ({}) DO NOTHING", key.join(", ")),
        };
        // A partition takes the rows that are its own; others are refused.
        let into = match self.at.leaves.as_slice() {
            leaves @ [_, ..] if dice.roll(10) == 0 => pick(leaves, dice),
            _ => &self.at.name,
        };
        format!("INSERT INTO {into} ({}) VALUES {} {on_conflict}", names.join(", "), rows.join(", "))
    }

    fn update(&self, dice: &mut Dice) -> String {
        let n = dice.roll(IDS);
        let mut set = Vec::new();
        for _ in 0..1 + dice.roll(2) {
            let Some(column) = self.data(dice) else { break };
            let assignment = match dice.roll(10) {
                0 => format!("{0} = {0}", quoted(&column.name)),
                _ => format!("{} = {}", quoted(&column.name), self.cell(column, n, dice)),
            };
            if !set.iter().any(|known: &String| known.starts_with(&quoted(&column.name))) {
                set.push(assignment);
            }
        }
        if set.is_empty() {
            return self.delete(dice);
        }
        self.set(&set.join(", "), n)
    }

    fn move_owner(&self, dice: &mut Dice) -> String {
        self.assign(
            |statements, dice| {
                let owners = &statements.table.owners;
                statements.at.column(*owners.get(dice.roll(owners.len().max(1) as u64) as usize)?)
            },
            dice,
        )
    }

    fn move_region(&self, dice: &mut Dice) -> String {
        self.assign(|statements, _| statements.at.column(statements.table.region?), dice)
    }

    fn move_key(&self, dice: &mut Dice) -> String {
        let id = self.column(self.table.id);
        self.set(&format!("{} = {}", quoted(&id.name), columns::key(&id.ty, dice.roll(IDS))), dice.roll(IDS))
    }

    /// Another value for one column of a row; an ordinary update where there is none of its kind.
    fn assign<'a>(
        &'a self,
        column: impl FnOnce(&'a Self, &mut Dice) -> Option<&'a Column>,
        dice: &mut Dice,
    ) -> String {
        let n = dice.roll(IDS);
        match column(self, dice) {
            Some(column) => {
                let value = self.cell(column, n, dice);
                self.set(&format!("{} = {value}", quoted(&column.name)), n)
            }
            None => self.update(dice),
        }
    }

    fn delete(&self, dice: &mut Dice) -> String {
        format!("DELETE FROM {} WHERE {}", self.at.name, self.row(dice.roll(IDS)))
    }

    fn update_many(&self, dice: &mut Dice) -> String {
        let Some(column) = self.data(dice) else { return self.delete_many(dice) };
        let value = self.cell(column, dice.roll(IDS), dice);
        format!("UPDATE {} SET {} = {value} WHERE {}", self.at.name, quoted(&column.name), self.many(dice))
    }

    fn delete_many(&self, dice: &mut Dice) -> String {
        format!("DELETE FROM {} WHERE {}", self.at.name, self.many(dice))
    }

    fn truncate(&self, dice: &mut Dice) -> String {
        let mut tables = vec![self.at.name.as_str()];
        match dice.roll(4) {
            0 if !self.at.leaves.is_empty() => tables = vec![pick::<String>(&self.at.leaves, dice).as_str()],
            1 => tables.push(&pick(&self.now.tables, dice).name),
            _ => {}
        }
        // Others may refer to it.
        format!("TRUNCATE {} CASCADE", tables.join(", "))
    }

    fn set(&self, assignments: &str, n: u64) -> String {
        format!("UPDATE {} SET {assignments} WHERE {}", self.at.name, self.row(n))
    }

    /// One row, or as many as there are with this number.
    fn row(&self, n: u64) -> String {
        let id = self.column(self.table.id);
        format!("{} = {}", quoted(&id.name), columns::key(&id.ty, n))
    }

    /// Those of an owner, or a third of all.
    fn many(&self, dice: &mut Dice) -> String {
        let owner = self.table.owners.first().and_then(|owner| self.at.column(*owner));
        match owner {
            Some(owner) if dice.roll(3) > 0 => {
                let name = quoted(&owner.name);
                format!("{name}::text = {}", literal(pick(&self.schema.owners.users, dice)))
            }
            _ => {
                let first = dice.roll(IDS);
                let id = self.column(self.table.id);
                let ids: Vec<String> =
                    (first..first + IDS / 3).map(|n| columns::key(&id.ty, n % IDS)).collect();
                format!("{} IN ({})", quoted(&id.name), ids.join(", "))
            }
        }
    }

    fn column(&self, number: i16) -> &Column {
        self.at.column(number).expect("no key is dropped")
    }

    /// A column that is neither of the key nor an owner's.
    fn data(&self, dice: &mut Dice) -> Option<&Column> {
        let fixed = |column: &&Column| {
            let number = column.number;
            self.table.key.contains(&number) || self.table.owners.contains(&number) || column.generated
        };
        let data: Vec<&Column> = self.at.columns.iter().filter(|column| !fixed(column)).collect();
        (!data.is_empty()).then(|| *pick(&data, dice))
    }

    /// What stands in a column of the `n`th row.
    fn cell(&self, column: &Column, n: u64, dice: &mut Dice) -> String {
        let table = self.table;
        let is = |wanted: Option<i16>| wanted == Some(column.number);
        if is(Some(table.id)) {
            return columns::key(&column.ty, n);
        }
        if table.owners.contains(&column.number) {
            return self.schema.owners.value(&column.ty, column.nullable, dice);
        }
        if is(table.region) {
            return literal(pick(&REGIONS, dice));
        }
        if table.key.contains(&column.number) {
            return dice.roll(3).to_string();
        }
        if is(table.hidden) {
            return literal(NEVER_TOLD);
        }
        if is(table.large) && dice.roll(3) > 0 {
            return columns::large(dice);
        }
        match table.parent {
            Some((number, parent)) if number == column.number => self.reference(parent, dice),
            _ => columns::value(&column.ty, column.nullable, &self.now.labels, dice),
        }
    }

    /// A row of another table, if it is there.
    fn reference(&self, parent: usize, dice: &mut Dice) -> String {
        let (table, at) = (&self.schema.tables[parent], &self.now.tables[parent]);
        let Some(id) = at.column(table.id).filter(|_| dice.roll(3) > 0) else { return "NULL".to_owned() };
        let (name, key) = (quoted(&id.name), columns::key(&id.ty, dice.roll(IDS)));
        format!("(SELECT {name} FROM {} WHERE {name} = {key})", at.name)
    }
}
