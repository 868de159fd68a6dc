//! One row change: tuples in, keys, records and memberships out. Pure.
//!
//! Never a value where the row does not belong: a DELETE carries the key alone, and what a topic's
//! reader must not see (columns that are not published, values of a row that moved away) is left out
//! here, once, and so is in no later stage.

use bytes::Bytes;
use smallvec::SmallVec;

use super::plan::Plan;
use crate::change::{Membership, Record, RowChange};
use crate::json::{self, ValueError};
use crate::topic::Audience;
use crate::wal::pgoutput::Value;

/// A tuple's values, one for each column of its plan.
pub type Row<'a> = SmallVec<[Value<'a>; 16]>;

/// The row before an UPDATE or DELETE, as far as the stream tells.
#[derive(Debug, Clone)]
pub enum OldRow<'a> {
    /// Only the identity's columns are there; the others read as NULL and mean nothing.
    Key(Row<'a>),
    Full(Row<'a>),
}

impl<'a> OldRow<'a> {
    fn row(&self) -> &Row<'a> {
        match self {
            OldRow::Key(row) | OldRow::Full(row) => row,
        }
    }
}

/// Why a row cannot be routed. Never carries a value.
#[derive(Debug, thiserror::Error)]
pub enum RowError {
    #[error("the stream sent {found} columns where the relation has {expected}")]
    Columns { found: usize, expected: usize },
    #[error("the value of the column {column} cannot be read: {source}")]
    Value { column: String, source: ValueError },
    #[error("the value of the key or topic column {0} was not sent")]
    KeyNotSent(String),
    #[error("the column {0} was sent in binary form, which was not asked for")]
    Binary(String),
}

/// Column values that an UPDATE left out though some reader has to get the whole row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owed {
    /// Whom the row belonged to; where its older entries stand in the log.
    pub audiences: Vec<Audience>,
    pub old_key: Bytes,
    /// Index in the plan, and name.
    pub columns: Vec<(usize, String)>,
}

/// JSON text of owed columns, by index in the plan.
pub type Supplied = Vec<(usize, String)>;

/// What an UPDATE comes to.
#[derive(Debug)]
pub enum Update {
    /// Nobody sees a difference.
    Nothing,
    Changed(RowChange),
    /// The key changed: two changes, at two indexes. Each is absent where it is for nobody.
    Rekeyed {
        delete: Option<RowChange>,
        insert: Option<RowChange>,
    },
    /// Values have to be found first. Call again with them, or without those to whom the row is new.
    Owed(Owed),
}

/// What is known of owed values.
#[derive(Debug, Clone)]
pub enum Debt {
    /// Not looked for yet.
    Open,
    Supplied(Supplied),
    /// Not to be had: those to whom the row is new get no row (and have to sync).
    Unpayable,
}

impl Plan {
    pub fn insert(&self, new: &Row<'_>) -> Result<Option<RowChange>, RowError> {
        self.check(new)?;
        let audiences = self.audiences(new)?;
        if audiences.is_empty() {
            return Ok(None);
        }
        let (json, unchanged) = self.record(new, &[])?;
        let record = Record { json, unchanged, whole: None };
        Ok(Some(self.change(self.key(new)?, Some(record), memberships(&[], &audiences))))
    }

    pub fn delete(&self, old: &OldRow<'_>) -> Result<Option<RowChange>, RowError> {
        self.check(old.row())?;
        let audiences = self.audiences(old.row())?;
        if audiences.is_empty() {
            return Ok(None);
        }
        Ok(Some(self.change(self.key(old.row())?, None, memberships(&audiences, &[]))))
    }

    pub fn update<'a>(
        &self,
        old: Option<&OldRow<'a>>,
        new: &Row<'a>,
        debt: &Debt,
    ) -> Result<Update, RowError> {
        self.check(new)?;
        let mut new = new.clone();
        if let Some(old) = old {
            self.check(old.row())?;
            // What did not change stands in the old row: all columns with FULL, else the identity's,
            // which Postgres sends detoasted when one of them is stored out of line.
            for (index, value) in new.iter_mut().enumerate() {
                let known = matches!(old, OldRow::Full(_)) || self.in_identity(index);
                if matches!(value, Value::UnchangedToast) && known {
                    *value = old.row()[index];
                }
            }
            if matches!(old, OldRow::Full(_)) && self.same_published(old.row(), &new) {
                return Ok(Update::Nothing);
            }
        }
        let after = self.audiences(&new)?;
        let key = self.key(&new)?;
        let (before, old_key) = match old {
            Some(old) => (self.audiences(old.row())?, self.key(old.row())?),
            None => (after.clone(), key.clone()),
        };
        let rekeyed = old_key != key;
        let newly = after.iter().any(|audience| rekeyed || !before.contains(audience));
        let missing = self.missing(&new);
        if newly && !missing.is_empty() && matches!(debt, Debt::Open) {
            return Ok(Update::Owed(Owed { audiences: before.to_vec(), old_key, columns: missing }));
        }
        let (json, unchanged) = self.record(&new, &[])?;
        let whole = match debt {
            Debt::Supplied(supplied) if newly && !missing.is_empty() => Some(self.record(&new, supplied)?.0),
            _ => None,
        };
        let whole_known = missing.is_empty() || whole.is_some();
        if rekeyed {
            let delete = (!before.is_empty()).then(|| self.change(old_key, None, memberships(&before, &[])));
            let insert = (!after.is_empty() && whole_known).then(|| {
                let record = Record { json: whole.unwrap_or(json), unchanged: Vec::new(), whole: None };
                self.change(key, Some(record), memberships(&[], &after))
            });
            return Ok(Update::Rekeyed { delete, insert });
        }
        let mut members = memberships(&before, &after);
        if !whole_known {
            members.retain(|m| m.before);
        }
        if members.is_empty() {
            return Ok(Update::Nothing);
        }
        let record = members.iter().any(|m| m.after).then_some(Record { json, unchanged, whole });
        Ok(Update::Changed(self.change(key, record, members)))
    }

    /// Those to whom an UPDATE that owes values is new: after it, and not before it or under another key.
    pub fn newly<'a>(&self, old: Option<&OldRow<'a>>, new: &Row<'a>) -> Result<Vec<Audience>, RowError> {
        let Some(old) = old else { return Ok(Vec::new()) };
        let before = self.audiences(old.row())?;
        let mut new = new.clone();
        for (index, value) in new.iter_mut().enumerate() {
            if matches!(value, Value::UnchangedToast) && self.in_identity(index) {
                *value = old.row()[index];
            }
        }
        let rekeyed = self.key(old.row())? != self.key(&new)?;
        let after = self.audiences(&new)?;
        Ok(after.into_iter().filter(|audience| rekeyed || !before.contains(audience)).collect())
    }

    fn change(
        &self,
        key: Bytes,
        record: Option<Record>,
        memberships: SmallVec<[Membership; 1]>,
    ) -> RowChange {
        RowChange { shape: self.shape.clone(), key, record, memberships }
    }

    fn check(&self, row: &Row<'_>) -> Result<(), RowError> {
        if row.len() == self.columns.len() {
            Ok(())
        } else {
            Err(RowError::Columns { found: row.len(), expected: self.columns.len() })
        }
    }

    fn in_identity(&self, index: usize) -> bool {
        self.full_identity
            || self.key.contains(&index)
            || self.templates.iter().any(|(_, c)| *c == Some(index))
    }

    /// Sorted, each once.
    fn audiences(&self, row: &Row<'_>) -> Result<SmallVec<[Audience; 2]>, RowError> {
        let mut audiences = SmallVec::new();
        for (template, column) in &self.templates {
            let value = match column {
                None => None,
                Some(index) => match self.text(row, *index)? {
                    Some(value) => Some(value),
                    None => continue,
                },
            };
            if let Some(audience) = template.audience(value) {
                audiences.push(audience);
            }
        }
        audiences.sort_unstable();
        audiences.dedup();
        Ok(audiences)
    }

    fn text<'a>(&self, row: &Row<'a>, index: usize) -> Result<Option<&'a str>, RowError> {
        let name = || self.columns[index].name.to_string();
        match row[index] {
            Value::Text(text) => match std::str::from_utf8(text) {
                Ok(text) => Ok(Some(text)),
                Err(error) => {
                    let source = ValueError::Encoding { offset: error.valid_up_to() };
                    Err(RowError::Value { column: name(), source })
                }
            },
            Value::Null => Ok(None),
            Value::UnchangedToast => Err(RowError::KeyNotSent(name())),
            Value::Binary(_) => Err(RowError::Binary(name())),
        }
    }

    fn key(&self, row: &Row<'_>) -> Result<Bytes, RowError> {
        let mut out = Vec::with_capacity(48);
        out.push(b'{');
        for (position, &index) in self.key.iter().enumerate() {
            if position > 0 {
                out.push(b',');
            }
            if matches!(row[index], Value::UnchangedToast) {
                return Err(RowError::KeyNotSent(self.columns[index].name.to_string()));
            }
            self.field(row, index, &mut out)?;
        }
        out.push(b'}');
        Ok(out.into())
    }

    /// The row's JSON, and the names of columns that it lacks.
    fn record(
        &self,
        row: &Row<'_>,
        supplied: &[(usize, String)],
    ) -> Result<(Bytes, Vec<std::sync::Arc<str>>), RowError> {
        let size: usize =
            row.iter().map(|value| if let Value::Text(text) = value { text.len() } else { 4 }).sum();
        let mut out = Vec::with_capacity(size + row.len() * 16);
        let mut unchanged = Vec::new();
        out.push(b'{');
        for (index, column) in self.record.iter().map(|index| (*index, &self.columns[*index])) {
            let found = supplied.iter().find(|(owed, _)| *owed == index);
            if matches!(row[index], Value::UnchangedToast) && found.is_none() {
                unchanged.push(column.name.clone());
                continue;
            }
            if out.len() > 1 {
                out.push(b',');
            }
            match found {
                Some((_, json)) => {
                    out.extend_from_slice(&column.label);
                    out.extend_from_slice(json.as_bytes());
                }
                None => self.field(row, index, &mut out)?,
            }
        }
        out.push(b'}');
        Ok((out.into(), unchanged))
    }

    fn field(&self, row: &Row<'_>, index: usize, out: &mut Vec<u8>) -> Result<(), RowError> {
        let column = &self.columns[index];
        out.extend_from_slice(&column.label);
        match row[index] {
            Value::Null => out.extend_from_slice(b"null"),
            Value::Text(text) => json::write_value(&column.ty, text, out)
                .map_err(|source| RowError::Value { column: column.name.to_string(), source })?,
            Value::UnchangedToast => return Err(RowError::KeyNotSent(column.name.to_string())),
            Value::Binary(_) => return Err(RowError::Binary(column.name.to_string())),
        }
        Ok(())
    }

    fn missing(&self, row: &Row<'_>) -> Vec<(usize, String)> {
        let columns = self.columns.iter().enumerate();
        columns
            .filter(|(index, column)| column.published && matches!(row[*index], Value::UnchangedToast))
            .map(|(index, column)| (index, column.name.to_string()))
            .collect()
    }

    fn same_published(&self, old: &Row<'_>, new: &Row<'_>) -> bool {
        let columns = self.columns.iter().enumerate();
        columns.filter(|(_, column)| column.published).all(|(index, _)| old[index] == new[index])
    }
}

/// Both sides sorted, each audience once.
fn memberships(before: &[Audience], after: &[Audience]) -> SmallVec<[Membership; 1]> {
    let mut members: SmallVec<[Membership; 1]> = before
        .iter()
        .map(|audience| Membership {
            audience: audience.clone(),
            before: true,
            after: after.contains(audience),
        })
        .collect();
    let new = after.iter().filter(|audience| !before.contains(audience));
    members.extend(new.map(|audience| Membership { audience: audience.clone(), before: false, after: true }));
    members.sort_unstable_by(|a, b| a.audience.cmp(&b.audience));
    members
}

#[cfg(test)]
mod tests;
