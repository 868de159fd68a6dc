//! The statement that reads one table's rows for some audiences. Pure.
//!
//! It may find rows that are of none of the audiences after all (a collation may take different texts
//! for equal); whoever reads them routes each row like any other. It never misses one, and it compares
//! columns as they are, so that an index serves it.

use postgres_protocol::escape::{escape_identifier, escape_literal};

use crate::postgres::types::Type;
use crate::route::{Template, Tracked};
use crate::topic::Audience;

const INT2: u32 = 21;
const INT4: u32 = 23;
const INT8: u32 = 20;
const TEXT: u32 = 25;
const VARCHAR: u32 = 1043;
const UUID: u32 = 2950;

/// The table's name, as SQL.
pub(super) fn qualified(schema: &str, table: &str) -> String {
    format!("{}.{}", escape_identifier(schema), escape_identifier(table))
}

/// `None`: no row can be of these audiences.
pub(super) fn copy_statement<'a>(
    tracked: &Tracked,
    (schema, table): (&str, &str),
    columns: impl Iterator<Item = &'a str>,
    type_of: impl Fn(&str) -> Option<&'a Type>,
    audiences: &[Audience],
) -> Option<String> {
    let mut conditions = Vec::new();
    let mut all = false;
    for audience in audiences {
        for template in tracked.templates.iter().filter(|template| template.may_give(audience)) {
            match condition(template, audience, &type_of) {
                Condition::All => all = true,
                Condition::Where(text) => conditions.push(text),
                Condition::Nothing => {}
            }
        }
    }
    conditions.sort_unstable();
    conditions.dedup();
    let filter = match (all, conditions.is_empty()) {
        (true, _) => String::new(),
        (false, true) => return None,
        (false, false) => format!(" WHERE {}", conditions.join(" OR ")),
    };
    let columns: Vec<String> = columns.map(escape_identifier).collect();
    Some(format!("COPY (SELECT {} FROM {}{filter}) TO STDOUT", columns.join(", "), qualified(schema, table)))
}

enum Condition {
    All,
    Where(String),
    /// No value of the column has this text.
    Nothing,
}

fn condition<'a>(
    template: &Template,
    audience: &Audience,
    type_of: &impl Fn(&str) -> Option<&'a Type>,
) -> Condition {
    let Some(column) = template.column() else { return Condition::All };
    let (Some(value), Some(ty)) = (audience.id(), type_of(column)) else { return Condition::Nothing };
    // No text of PostgreSQL holds it.
    if value.contains('\0') {
        return Condition::Nothing;
    }
    let name = escape_identifier(column);
    let literal = escape_literal(&value);
    match ty.oid {
        INT2 | INT4 | INT8 => match integer(&value, ty.oid) {
            Some(number) => Condition::Where(format!("{name} = '{number}'::pg_catalog.int8")),
            None => Condition::Nothing,
        },
        TEXT | VARCHAR => Condition::Where(format!("{name} = {literal}")),
        UUID if is_uuid(&value) => Condition::Where(format!("{name} = {literal}::pg_catalog.uuid")),
        UUID => Condition::Nothing,
        // An enum: a text that is no label must not be an error.
        oid => Condition::Where(format!(
            "{name} = ANY (ARRAY(SELECT e.enumlabel::pg_catalog.text::{} FROM pg_catalog.pg_enum e \
             WHERE e.enumtypid = {oid}::pg_catalog.oid AND e.enumlabel = {literal}))",
            ty.name
        )),
    }
}

/// Only as PostgreSQL prints it: `042` is another text, and so another topic.
fn integer(text: &str, oid: u32) -> Option<i64> {
    let number: i64 = text.parse().ok()?;
    let fits = match oid {
        INT2 => i16::try_from(number).is_ok(),
        INT4 => i32::try_from(number).is_ok(),
        _ => true,
    };
    (fits && number.to_string() == text).then_some(number)
}

fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(place, byte)| match place {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
        })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::postgres::types::Kind;

    fn statement(templates: &[&str], oid: u32, audiences: &[&str]) -> Option<String> {
        let tracked = Tracked {
            relid: 1,
            schema: "public".into(),
            table: "or\"ders".into(),
            name: "orders".into(),
            templates: templates.iter().map(|t| Template::parse(t).unwrap()).collect(),
            columns: None,
            generation: 1,
        };
        let ty = Type { oid, name: "public.mood".into(), kind: Kind::Text };
        let audiences: Vec<Audience> = audiences.iter().map(|a| Audience::parse(a).unwrap()).collect();
        let columns = ["id", "a b"];
        // Leaked for the test: the types of a table outlive the statement.
        let ty: &'static Type = Box::leak(Box::new(ty));
        copy_statement(&tracked, ("public", "or\"ders"), columns.into_iter(), |_| Some(ty), &audiences)
    }

    #[test]
    fn values_never_leave_their_literals() {
        let text = statement(&["user:{owner}:orders"], TEXT, &["user:o'hara"]).unwrap();
        assert_eq!(
            text,
            "COPY (SELECT \"id\", \"a b\" FROM \"public\".\"or\"\"ders\" WHERE \"owner\" = 'o''hara') TO STDOUT"
        );
        assert!(statement(&["user:{owner}:orders"], TEXT, &["user:a\\b"]).unwrap().contains(" E'a\\\\b'"));
        assert_eq!(statement(&["user:{owner}:orders"], TEXT, &["user:a%00b"]), None);
    }

    #[test]
    fn only_a_values_own_text_is_it() {
        let asks = |oid, id: &str| statement(&["user:{o}:orders"], oid, &[&format!("user:{id}")]).is_some();
        assert!(asks(INT4, "42") && asks(INT4, "-7") && asks(INT8, "9007199254740993"));
        for other in ["042", "+42", " 42", "4.2", "x", "2147483648"] {
            assert!(!asks(INT4, other), "{other}");
        }
        assert!(!asks(INT2, "32768") && !asks(INT8, "9223372036854775808"));
        assert!(asks(UUID, "0b7c0e3e-3c1f-4a6f-9d6e-000000000001"));
        assert!(!asks(UUID, "0B7C0E3E-3C1F-4A6F-9D6E-000000000001") && !asks(UUID, "0b7c"));
        assert!(asks(99_999, "happy"));
    }

    #[test]
    fn audiences_add_up() {
        let templates = ["user:{a}:orders", "user:{b}:orders", "global:orders"];
        let text = statement(&templates, INT8, &["user:1", "user:2"]).unwrap();
        assert_eq!(text.matches(" OR ").count(), 3);
        assert!(!statement(&templates, INT8, &["user:1", "global"]).unwrap().contains("WHERE"));
        assert_eq!(statement(&templates, INT8, &["team:1"]), None);
    }
}
