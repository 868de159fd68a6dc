//! The table of settings, and what is derived from it.

use std::sync::LazyLock;

use super::setting::Setting;

/// One setting, as users meet it.
#[derive(Debug)]
pub struct Key {
    /// In the file: `log_max_age`.
    pub name: &'static str,
    /// In the environment: `ROWCAST_LOG_MAX_AGE`.
    pub env: String,
    /// On the command line, without the dashes: `log-max-age`.
    pub flag: String,
    /// Empty where there is none.
    pub default: &'static str,
    /// What a value looks like, in words.
    pub expected: &'static str,
    pub help: &'static str,
    pub secret: bool,
    /// Takes several values.
    pub list: bool,
    /// The flag alone, without a value, means `true`.
    pub switch: bool,
}

impl Key {
    /// `expected` is the setting's own description; empty takes the type's.
    pub(super) fn of<S: Setting>(
        name: &'static str,
        default: &'static str,
        expected: &'static str,
        help: &'static str,
    ) -> Key {
        Key {
            name,
            env: format!("ROWCAST_{}", name.to_ascii_uppercase()),
            flag: name.replace('_', "-"),
            default,
            expected: if expected.is_empty() { S::EXPECTED } else { expected },
            help: help.trim(),
            secret: S::SECRET,
            list: S::LIST,
            switch: S::SWITCH,
        }
    }

    pub(super) fn default_texts(&self) -> Vec<String> {
        split(self.default, self.list)
    }
}

/// The texts of one value from a place that has no lists of its own: those are comma-separated.
pub(super) fn split(text: &str, list: bool) -> Vec<String> {
    let parts: Vec<&str> = if list { text.split(',').collect() } else { vec![text] };
    parts.into_iter().map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()).collect()
}

/// All settings, in the order of the documentation.
pub fn keys() -> &'static [Key] {
    static KEYS: LazyLock<Vec<Key>> = LazyLock::new(super::Config::declare);
    &KEYS
}

/// The settings as a Markdown table, for the README.
pub fn table() -> String {
    let mut text = String::from("| key | environment, flag | default | what |\n|---|---|---|---|\n");
    for key in keys() {
        let default = if key.default.is_empty() { String::new() } else { format!("`{}`", key.default) };
        let Key { name, env, flag, help, .. } = key;
        text.push_str(&format!("| `{name}` | `{env}`, `--{flag}` | {default} | {help} |\n"));
    }
    text
}

/// Declares the `Config` struct and the table of its keys:
/// `/// help` and `name: Type = "default", "what is expected";`.
macro_rules! settings {
    ($( $(#[doc = $help:literal])+ $name:ident: $type:ty = $default:literal $(, $expected:literal)?; )+) => {
        /// Every setting, typed. Sizes (`u64`) are in bytes.
        #[derive(Debug, Clone)]
        pub struct Config {
            $( $(#[doc = $help])+ pub $name: $type, )+
        }

        impl Config {
            fn declare() -> Vec<$crate::config::keys::Key> {
                vec![$( $crate::config::keys::Key::of::<$type>(
                    stringify!($name),
                    $default,
                    concat!($($expected)?),
                    concat!($($help),+),
                ) ),+]
            }

            /// Every value that cannot be read is among the mistakes; `None` only if a default cannot be.
            fn read(
                given: &$crate::config::sources::Given,
                mistakes: &mut Vec<$crate::config::Mistake>,
            ) -> Option<Config> {
                $( let $name = given.read::<$type>(stringify!($name), mistakes); )+
                Some(Config { $( $name: $name?, )+ })
            }
        }
    };
}
pub(super) use settings;
