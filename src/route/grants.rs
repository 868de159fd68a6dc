//! Grants that rows make: how a row of a membership table is read, and which rows grant what.
//!
//! A rule of `rowcast.grants` says which column names the user and which pattern he is granted. Values
//! are taken as the stream prints them, so no type has to be known; a row is found again by its primary
//! key alone, which is all that an old row has to carry.
//!
//! Invariants: a rule whose table is no longer what it was, or of which a row cannot be read, grants
//! nothing from there on, until another `grant_by` (its generation is another one, and all rows come
//! anew); a value never becomes a separator or a wildcard. Applying a row again changes nothing. Pure.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::row::Row;
use super::template::{Template, TemplateError};
use crate::auth::NamedUser;
use crate::topic::{Audience, MAX_SEGMENT_BYTES, Pattern};
use crate::wal::pgoutput::{Relation, ReplicaIdentity, Value};

/// What a rule grants: a topic template whose last segment may be `*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrantTemplate {
    text: String,
    template: Template,
    /// The last segment is `*`.
    all: bool,
}

/// Stands for the last segment where that is `*`.
const ANY_TABLE: &str = "any";

impl GrantTemplate {
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let (template, all) = match text.strip_suffix(":*") {
            Some(audience) => (Template::parse(&format!("{audience}:{ANY_TABLE}"))?, true),
            None => (Template::parse(text)?, false),
        };
        Ok(GrantTemplate { text: text.to_owned(), template, all })
    }

    fn column(&self) -> Option<&str> {
        self.template.column()
    }

    fn pattern(&self, audience: Audience) -> Pattern {
        Pattern { audience, table: (!self.all).then(|| Arc::clone(self.template.table())) }
    }
}

impl fmt::Display for GrantTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Serialize for GrantTemplate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for GrantTemplate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        GrantTemplate::parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

/// One row of `rowcast.grants`, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantRule {
    pub generation: i64,
    pub relid: u32,
    pub schema: String,
    pub table: String,
    pub user_column: String,
    pub pattern: GrantTemplate,
    pub issuer: Option<Arc<str>>,
    pub key_columns: Vec<String>,
    /// All that are read, with their types.
    pub columns: Vec<(String, u32)>,
    /// Another one after each TRUNCATE: rows of an earlier one are no more.
    pub era: u32,
    /// Its table cannot be relied on: it grants nothing for good.
    pub ended: bool,
}

/// Why the rows of a table make no grants any more. Never carries a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrantFault {
    #[error("it was granted as {granted} and is now {found}")]
    Renamed { granted: String, found: String },
    #[error("its column {0} is gone or of another type")]
    Column(String),
    #[error("its replica identity does not carry the key column {0}")]
    Identity(String),
    #[error("a row has {found} columns where the relation has {expected}")]
    Columns { found: usize, expected: usize },
    #[error("a value of its column {0} is not text in UTF-8")]
    Unreadable(String),
    #[error("a value of its key column {0} was not sent")]
    KeyNotSent(String),
    #[error("{0}")]
    Found(String),
}

/// What one row grants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    #[serde(rename = "u")]
    pub user: Arc<str>,
    #[serde(rename = "a")]
    audience: Audience,
}

/// The text of a row's primary key: a JSON array of its columns' texts.
pub(super) type MemberKey = Box<str>;

impl GrantRule {
    pub fn full_name(&self) -> String {
        format!("{}.{}", self.schema, self.table)
    }

    /// The column that the pattern names.
    pub fn value_column(&self) -> Option<&str> {
        self.pattern.column()
    }

    /// What a row with these values grants; nothing where one is missing, empty or too long.
    pub fn member(&self, user: Option<&str>, value: Option<&str>) -> Option<Member> {
        let user = user.filter(|user| (1..=MAX_SEGMENT_BYTES).contains(&user.len()))?;
        let audience = self.pattern.template.audience(value)?;
        Some(Member { user: user.into(), audience })
    }

    pub fn grant_of(&self, member: &Member) -> (NamedUser, Pattern) {
        let user = NamedUser { issuer: self.issuer.clone(), subject: Arc::clone(&member.user) };
        (user, self.pattern.pattern(member.audience.clone()))
    }
}

/// How the tuples of one relation are read for one rule.
#[derive(Debug)]
pub(super) struct GrantPlan {
    width: usize,
    key: Vec<usize>,
    user: usize,
    value: Option<usize>,
    names: Vec<String>,
}

impl GrantPlan {
    pub(super) fn compile(rule: &GrantRule, relation: &Relation) -> Result<Self, GrantFault> {
        if (&relation.namespace, &relation.name) != (&rule.schema, &rule.table) {
            return Err(GrantFault::Renamed {
                granted: rule.full_name(),
                found: format!("{}.{}", relation.namespace, relation.name),
            });
        }
        let find = |name: &str| {
            let ty = rule.columns.iter().find(|(column, _)| column == name).map(|(_, ty)| *ty);
            let found = relation.columns.iter().position(|c| c.name == name && Some(c.type_oid) == ty);
            found.ok_or_else(|| GrantFault::Column(name.to_owned()))
        };
        let key = rule.key_columns.iter().map(|name| find(name)).collect::<Result<Vec<_>, _>>()?;
        for index in &key {
            if relation.identity != ReplicaIdentity::Full && !relation.columns[*index].key {
                return Err(GrantFault::Identity(relation.columns[*index].name.clone()));
            }
        }
        Ok(GrantPlan {
            width: relation.columns.len(),
            key,
            user: find(&rule.user_column)?,
            value: rule.value_column().map(find).transpose()?,
            names: relation.columns.iter().map(|column| column.name.clone()).collect(),
        })
    }

    /// The key of a row; what it lacks stands in the old one.
    pub(super) fn key(&self, row: &Row<'_>, old: Option<&Row<'_>>) -> Result<MemberKey, GrantFault> {
        self.check(row)?;
        let mut texts = Vec::with_capacity(self.key.len());
        for index in &self.key {
            let value = match row[*index] {
                Value::UnchangedToast => old.and_then(|old| old.get(*index).copied()),
                value => Some(value),
            };
            let not_sent = || GrantFault::KeyNotSent(self.names[*index].clone());
            texts.push(self.text(value.ok_or_else(not_sent)?, *index)?.ok_or_else(not_sent)?);
        }
        Ok(key_text(&texts))
    }

    /// What a row grants. `full`: the whole old row. `kept`: what this row granted before. `Err(None)`:
    /// a value was not sent and nobody knows it.
    pub(super) fn member(
        &self,
        rule: &GrantRule,
        row: &Row<'_>,
        full: Option<&Row<'_>>,
        kept: Option<&Member>,
    ) -> Result<Option<Member>, Option<GrantFault>> {
        self.check(row)?;
        let sent = |index: usize| match row[index] {
            Value::UnchangedToast => full.and_then(|full| full.get(index).copied()).unwrap_or(row[index]),
            value => value,
        };
        let (user, value) = (sent(self.user), self.value.map(|index| (sent(index), index)));
        let user_kept = matches!(user, Value::UnchangedToast);
        let value_kept = matches!(value, Some((Value::UnchangedToast, _)));
        if (user_kept || value_kept) && kept.is_none() {
            return Err(None);
        }
        let user: Option<Arc<str>> = match kept.filter(|_| user_kept) {
            Some(kept) => Some(Arc::clone(&kept.user)),
            None => self.text(user, self.user)?.map(Into::into),
        };
        if let Some(kept) = kept.filter(|_| value_kept) {
            let member = |user| Member { user, audience: kept.audience.clone() };
            let usable = |user: &Arc<str>| (1..=MAX_SEGMENT_BYTES).contains(&user.len());
            return Ok(user.filter(usable).map(member));
        }
        let value = match value {
            Some((value, index)) => self.text(value, index)?,
            None => None,
        };
        Ok(rule.member(user.as_deref(), value))
    }

    fn check(&self, row: &Row<'_>) -> Result<(), GrantFault> {
        if row.len() == self.width {
            Ok(())
        } else {
            Err(GrantFault::Columns { found: row.len(), expected: self.width })
        }
    }

    fn text<'a>(&self, value: Value<'a>, index: usize) -> Result<Option<&'a str>, GrantFault> {
        match value {
            Value::Null => Ok(None),
            Value::Text(text) => {
                let unreadable = |_| GrantFault::Unreadable(self.names[index].clone());
                std::str::from_utf8(text).map(Some).map_err(unreadable)
            }
            Value::UnchangedToast => Err(GrantFault::KeyNotSent(self.names[index].clone())),
            Value::Binary(_) => Err(GrantFault::Unreadable(self.names[index].clone())),
        }
    }
}

/// As a row's key stands in the log, whoever read its columns.
pub(super) fn key_text<S: Serialize>(columns: &[S]) -> MemberKey {
    // Texts always serialize.
    serde_json::to_string(columns).unwrap_or_default().into()
}

/// The rows of one `rowcast.grant_seeds`: key, user, value.
pub(super) type Seed = (Vec<String>, Option<String>, Option<String>);

/// All rows that grant something, by rule.
pub(super) type Members = HashMap<i64, HashMap<MemberKey, Member>>;
