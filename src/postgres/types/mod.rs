//! Column types, resolved down to what decides how a value looks in JSON.
//!
//! Before the stages: `wal` asks for the types of a table's columns, `json` writes their values. A
//! [`Type`] is immutable and complete, a finite tree without references into the catalog, so that
//! the log can keep it beside the rows that were written with it. Domains are resolved: a domain
//! carries its own name and its base type's kind.
//!
//! [`Type::builtin`] knows the types that are the same on every server; [`load()`] asks the catalog
//! for the others, all of them in one query.
//!
//! Must not know: tables, topics, values.

mod builtin;
mod load;

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use load::{TypeError, load};

/// How many types may stand inside each other: arrays of composites of arrays and so on.
///
/// Small enough that a serialised type stays within the nesting that `serde_json` reads back.
pub const MAX_DEPTH: usize = 16;

/// How many types a resolved tree may hold. Sharing is lost when a type is serialised, so composites
/// that repeat each other grow without proportion to what the catalog holds.
pub const MAX_NODES: usize = 65_536;

/// A type of a column, an element or a field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Type {
    pub oid: u32,
    /// Schema-qualified and quoted where SQL would need it: `public.mood`, `pg_catalog.int8[]`.
    pub name: String,
    pub kind: Kind,
}

/// How the text of a value turns into JSON. The cases are those of `row_to_json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    Bool,
    /// Numbers that a double holds exactly: int2, int4, float4, float8.
    Number,
    /// int8 and numeric, which a client may ask to get quoted.
    WideNumber,
    Date,
    Timestamp,
    TimestampTz,
    Json,
    Jsonb,
    /// Everything that becomes a JSON string of its text.
    Text,
    Array {
        element: Arc<Type>,
        /// What stands between elements in text: `;` for box, `,` for all other built-in types.
        delimiter: u8,
    },
    /// int2vector and oidvector: arrays whose text is elements between spaces.
    Vector {
        element: Arc<Type>,
    },
    /// The attributes that are not dropped, in order.
    Composite {
        fields: Vec<(String, Arc<Type>)>,
    },
    /// The extension's hstore, which has a cast to json that `row_to_json` uses.
    Hstore,
    Unsupported {
        why: Unsupported,
    },
}

/// Why columns of a type are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unsupported {
    /// The reg* types print names that depend on the search path and on later renames.
    SearchPath,
    /// `row_to_json` calls the user's cast function, which the text of a value does not tell.
    JsonCast,
    /// Nested deeper or wider than [`MAX_DEPTH`] and [`MAX_NODES`] allow.
    TooComplex,
}

impl Type {
    /// A type that has the same oid and meaning on every server, or an array of one.
    pub fn builtin(oid: u32) -> Option<Arc<Type>> {
        builtin::get(oid)
    }

    /// The first type in this tree that cannot be written, with the reason.
    pub fn unsupported(&self) -> Option<(&Type, Unsupported)> {
        match &self.kind {
            Kind::Unsupported { why } => Some((self, *why)),
            Kind::Array { element, .. } | Kind::Vector { element } => element.unsupported(),
            Kind::Composite { fields } => fields.iter().find_map(|(_, ty)| ty.unsupported()),
            Kind::Bool
            | Kind::Number
            | Kind::WideNumber
            | Kind::Date
            | Kind::Timestamp
            | Kind::TimestampTz
            | Kind::Json
            | Kind::Jsonb
            | Kind::Text
            | Kind::Hstore => None,
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Unsupported::SearchPath => "its text depends on the search path; use oid or text instead",
            Unsupported::JsonCast => "it has a cast function to json of its own; drop the cast or the column",
            Unsupported::TooComplex => "it nests too many other types; use jsonb instead",
        })
    }
}
