//! Topic templates: what a DBA writes for a table, e.g. `user:{user_id}:orders`.
//!
//! Two or three segments; scope and table are literal, the middle may be one `{column}`. A NULL or
//! empty value, or one too long for a segment, gives no topic.

use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::topic::{Audience, Pattern, Topic, TopicError};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    text: String,
    scope: String,
    id: Id,
    table: Arc<str>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Id {
    /// Scope and literal id, if there is one: the same audience for every row.
    Fixed(Audience),
    Column(String),
}

/// Why a text is no topic template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    #[error("in the topic template `{template}`: {source}")]
    Topic { template: String, source: TopicError },
    #[error("in the topic template `{0}`: only the middle segment may be a column, written {{column}}")]
    Column(String),
}

impl Template {
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let topic_error = |source| TemplateError::Topic { template: text.to_owned(), source };
        let segments: Vec<&str> = text.split(':').collect();
        let column = match segments.as_slice() {
            [_, middle, _] => middle.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')),
            _ => None,
        };
        let literal = match (column, segments.as_slice()) {
            (Some(_), [scope, _, table]) => format!("{scope}:{table}"),
            _ => text.to_owned(),
        };
        if literal.contains(['{', '}']) || column.is_some_and(str::is_empty) {
            return Err(TemplateError::Column(text.to_owned()));
        }
        let topic = Topic::parse(&literal).map_err(topic_error)?;
        Ok(Template {
            text: text.to_owned(),
            scope: topic.audience.scope().to_owned(),
            table: topic.table().into(),
            id: match column {
                Some(column) => Id::Column(column.to_owned()),
                None => Id::Fixed(topic.audience),
            },
        })
    }

    /// First segment, as in text.
    pub fn scope(&self) -> &str {
        &self.scope
    }

    /// Last segment, as in text.
    pub fn table(&self) -> &Arc<str> {
        &self.table
    }

    /// The column that the audience depends on.
    pub fn column(&self) -> Option<&str> {
        match &self.id {
            Id::Column(column) => Some(column),
            Id::Fixed(_) => None,
        }
    }

    /// The audience of a row whose topic column has this value.
    pub fn audience(&self, value: Option<&str>) -> Option<Audience> {
        match &self.id {
            Id::Fixed(audience) => Some(audience.clone()),
            // The scope was canonical text already; a template's scope needs no escape in practice, and
            // where it has one, encoding it again would name another scope.
            Id::Column(_) => audience_of(&self.scope, value?),
        }
    }

    /// Whether rows of this audience may come of the template.
    pub fn may_give(&self, audience: &Audience) -> bool {
        match &self.id {
            Id::Fixed(own) => own == audience,
            Id::Column(_) => self.scope == audience.scope() && audience.as_str().len() > self.scope.len(),
        }
    }

    /// Whether readers of `pattern` may read this template's rows.
    pub fn may_match(&self, pattern: &Pattern) -> bool {
        self.may_give(&pattern.audience) && pattern.table.as_ref().is_none_or(|table| **table == *self.table)
    }
}

fn audience_of(scope: &str, value: &str) -> Option<Audience> {
    let mut text = String::with_capacity(scope.len() + 1 + value.len());
    text.push_str(scope);
    text.push(':');
    crate::topic::encode_segment(value, &mut text).ok()?;
    Some(Audience::from_canonical(text))
}

impl Serialize for Template {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Template {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Template::parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_column_value_becomes_one_segment() {
        let template = Template::parse("user:{user_id}:orders").unwrap();
        assert_eq!(
            (template.scope(), &**template.table(), template.column()),
            ("user", "orders", Some("user_id"))
        );
        assert_eq!(template.audience(Some("42")).unwrap().as_str(), "user:42");
        assert_eq!(template.audience(Some("a:*")).unwrap().as_str(), "user:a%3A%2A");
        for none in [None, Some(""), Some("x".repeat(300).as_str())] {
            assert_eq!(template.audience(none), None);
        }
        let global = Template::parse("global:exercises").unwrap();
        assert_eq!(global.audience(None).unwrap().as_str(), "global");
    }

    #[test]
    fn bad_templates_are_refused() {
        for bad in [
            "", "orders", "{a}:b:c", "a:b:{c}", "a:{b}", "a:{}:c", "a:x{b}:c", "a:*:c", "a:b:*", "a:b:c:d",
            "a::c",
        ] {
            assert!(Template::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn readers_of_a_table_are_known_by_scope() {
        let template = Template::parse("user:{user_id}:orders").unwrap();
        let may = |text| template.may_match(&Pattern::parse(text).unwrap());
        assert!(may("user:1:*") && may("user:1:orders"));
        assert!(!may("user:1:meals") && !may("team:1:*") && !may("user:*"));
    }
}
