//! Columns of any type, and values for them as SQL: ordinary ones, and those that break things.

use std::collections::HashMap;

use crate::support::dice::Dice;

/// The labels of each enum, by its name as `format_type` prints it.
pub(super) type Labels = HashMap<String, Vec<String>>;

/// A column as the database has it now.
#[derive(Debug, Clone)]
pub(super) struct Column {
    /// What it keeps through renames.
    pub(super) number: i16,
    pub(super) name: String,
    /// As `format_type` prints it.
    pub(super) ty: String,
    pub(super) nullable: bool,
    pub(super) generated: bool,
}

/// Types of columns that are only data.
const TYPES: &[&str] = &[
    "smallint",
    "integer",
    "bigint",
    "numeric",
    "double precision",
    "boolean",
    "text",
    "character varying(60)",
    "uuid",
    "timestamp with time zone",
    "date",
    "interval",
    "jsonb",
    "json",
    "bytea",
    "integer[]",
    "text[]",
];

/// Names of columns that are only data; none says what it is.
const NAMES: &[&str] = &[
    "n",
    "note",
    "Note",
    "a b",
    "from",
    "quote\"d",
    "apo'strophe",
    "ключ",
    "a:b",
    "100%",
    "{c}",
    "😀",
    "user",
    "back\\slash",
];

pub(super) fn some_type(labels: &Labels, dice: &mut Dice) -> String {
    let enums: Vec<&String> = labels.keys().collect();
    match dice.roll(8) {
        0 if !enums.is_empty() => least(&enums).to_owned(),
        1 if !enums.is_empty() => format!("{}[]", least(&enums)),
        _ => pick(TYPES, dice).to_string(),
    }
}

/// Of a hash map, whose order is no seed's.
fn least<'a>(names: &[&'a String]) -> &'a str {
    names.iter().min().expect("not empty")
}

/// Another one than those that are there.
pub(super) fn some_name<'a>(taken: impl Iterator<Item = &'a str> + Clone, dice: &mut Dice) -> String {
    let name = pick(NAMES, dice);
    let free = |name: &str| !taken.clone().any(|known| known == name);
    let numbered = (0..).map(|number| format!("{name}{number}"));
    std::iter::once(name.to_string())
        .chain(numbered)
        .find(|name| free(name))
        .expect("there is always another")
}

pub(super) fn pick<'a, T>(from: &'a [T], dice: &mut Dice) -> &'a T {
    &from[dice.roll(from.len() as u64) as usize]
}

/// A name as SQL.
pub(super) fn quoted(name: impl AsRef<str>) -> String {
    format!("\"{}\"", name.as_ref().replace('"', "\"\""))
}

/// A text as SQL.
pub(super) fn literal(text: impl AsRef<str>) -> String {
    format!("'{}'", text.as_ref().replace('\'', "''"))
}

/// The value of a key's column in its `n`th row.
pub(super) fn key(ty: &str, n: u64) -> String {
    match ty {
        "uuid" => format!("'{n:08x}-1111-4222-8333-000000000000'"),
        "text" => literal(format!("k{n}:%*\"' é{}", if n.is_multiple_of(3) { "\n" } else { "" })),
        // Not what JavaScript can count to.
        "bigint" => (9_007_199_254_740_993 + n).to_string(),
        _ => n.to_string(),
    }
}

/// Some value of a type, sometimes NULL.
pub(super) fn value(ty: &str, nullable: bool, labels: &Labels, dice: &mut Dice) -> String {
    if nullable && dice.roll(6) == 0 {
        return "NULL".to_owned();
    }
    let of_enum = |ty: &str| labels.get(ty).filter(|labels| !labels.is_empty());
    if let Some(labels) = of_enum(ty) {
        return literal(pick(labels, dice));
    }
    if let Some(labels) = ty.strip_suffix("[]").and_then(of_enum) {
        let elements: Vec<String> = (0..dice.roll(3)).map(|_| literal(pick(labels, dice))).collect();
        return format!("ARRAY[{}]::{ty}", elements.join(","));
    }
    let number = dice.roll(1000);
    let samples: &[&str] = match ty {
        "smallint" => &["0", "-32768", "32767"],
        "integer" => &["0", "-2147483648", "2147483647"],
        "bigint" => &["0", "9007199254740993", "-9223372036854775808", "9223372036854775807"],
        "numeric" => &["1.50", "NaN", "1e20", "-0.000", "Infinity", "12345678901234567890.123456789"],
        "double precision" => &["0.1", "1e20", "1e-300", "NaN", "-Infinity", "-0"],
        "boolean" => &["true", "false"],
        "timestamp with time zone" => {
            &["2026-01-01 12:00:00.123456+02", "infinity", "-infinity", "0044-03-15 00:00:00+00 BC", "now"]
        }
        "date" => &["2026-02-28", "infinity", "0044-03-15 BC", "10000-01-01"],
        "interval" => &["1 year -2 months 03:04:05.6", "0", "-1 day"],
        "jsonb" => &[r#"{"b": [1, 2.50, null], "a": {"é": "\"q\"\n"}}"#, "null", "[]", "1e20", r#""t""#],
        // A client that merges a record with what is unchanged keeps the tokens, and no spaces around them.
        "json" => &["{ \"b\" : [1,\n 2.50 ,null],\"b\":1e20 }", "null", "\"\\u0000\"", "7"],
        "bytea" => &["\\x", "\\x00ff", "\\xdeadbeef"],
        "uuid" => &["00000000-0000-0000-0000-000000000000", "ffffffff-ffff-4fff-bfff-ffffffffffff"],
        "integer[]" => &["{}", "{1,NULL,3}", "{{1,2},{3,4}}", "[0:1]={7,8}"],
        "text[]" => &["{}", r#"{a,"b c",NULL,"q\"x","{}","NULL"}"#, r#"{{"a","\\"},{"é",""}}"#],
        _ => &[
            "",
            "plain",
            "tab\tnew\nline",
            "quote\" \\ ' / <>&",
            "\u{1}\u{1f}\u{7f}\u{85}",
            "😀 ключ",
            "NULL",
        ],
    };
    match ty {
        "smallint" | "integer" | "bigint" | "numeric" | "double precision" if dice.roll(2) == 0 => {
            number.to_string()
        }
        "text" if dice.roll(2) == 0 => literal(format!("t{number}")),
        _ => literal(pick(samples, dice)),
    }
}

/// A text of two to eight kilobytes, which PostgreSQL keeps out of line where it is told not to compress.
pub(super) fn large(dice: &mut Dice) -> String {
    format!("repeat(md5('{}'), {})", dice.roll(1000), 64 + dice.roll(192))
}
