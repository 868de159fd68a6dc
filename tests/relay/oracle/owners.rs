//! Whose rows there are: users that have devices, and others that have none.

use rowcast::topic::Audience;

use super::columns::{literal, pick};
use crate::support::dice::Dice;

/// Names of one kind, so that columns of several types can hold them.
#[derive(Debug, Clone)]
pub(super) struct Owners {
    pub(super) users: [&'static str; 3],
    /// Nobody's device is granted its rows.
    stranger: &'static str,
    /// Types of columns that name an owner.
    types: &'static [&'static str],
}

const KINDS: [Owners; 3] = [
    Owners {
        users: ["1", "2", "3"],
        stranger: "12",
        types: &["integer", "bigint", "smallint", "text", "character varying(40)", "owner_label"],
    },
    Owners {
        users: [
            "0b7c1e5a-0000-4000-8000-000000000001",
            "0b7c1e5a-0000-4000-8000-000000000002",
            "ffffffff-ffff-4fff-bfff-ffffffffffff",
        ],
        stranger: "0b7c1e5a-0000-4000-8000-000000000003",
        types: &["uuid", "text", "character varying(40)", "owner_label"],
    },
    // One begins as another, and all that a topic has to encode.
    Owners {
        users: ["a", "a:b*\n", "%3A😀\"\\"],
        stranger: "a:b",
        types: &["text", "character varying(40)", "owner_label"],
    },
];

impl Owners {
    pub(super) fn some(dice: &mut Dice) -> Self {
        pick(&KINDS, dice).clone()
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &'static str> {
        self.users.into_iter().chain([self.stranger])
    }

    pub(super) fn some_type(&self, dice: &mut Dice) -> &'static str {
        pick::<&str>(self.types, dice)
    }

    /// An owner as SQL; sometimes nobody, where the column may say so.
    pub(super) fn value(&self, ty: &str, nullable: bool, dice: &mut Dice) -> String {
        match dice.roll(20) {
            0 | 1 if nullable => "NULL".to_owned(),
            // Neither gives a topic.
            2 if ty == "text" || ty.starts_with("character varying") => "''".to_owned(),
            3 if ty == "text" => "repeat('long ', 60)".to_owned(),
            4..=6 => literal(self.stranger),
            _ => literal(pick(&self.users, dice)),
        }
    }
}

/// A value as it stands in a topic; `None` where it gives none.
pub(super) fn segment(value: &str) -> Option<String> {
    let audience = Audience::from_values("x", Some(value)).ok()?;
    Some(audience.as_str()["x:".len()..].to_owned())
}
