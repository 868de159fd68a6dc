//! Where settings come from: the file, then the environment, then flags; the last one counts.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::keys::{Key, keys, split};
use super::mistake::{Mistake, nearest};
use super::setting::Setting;

/// The file that is read if it is there and none is named.
const DEFAULT_FILE: &str = "rowcast.toml";

/// Variables with our prefix that are no settings: those of the command line, and what Kubernetes
/// sets for a Service called `rowcast`.
const NO_SETTINGS: [&str; 5] =
    ["ROWCAST_CONFIG", "ROWCAST_TOKEN", "ROWCAST_URL", "ROWCAST_PORT", "ROWCAST_PG_BIN"];
const NO_SETTING_PREFIXES: [&str; 2] = ["ROWCAST_PORT_", "ROWCAST_SERVICE_"];

/// All that settings are read from.
#[derive(Clone, Default)]
#[allow(missing_debug_implementations, reason = "it holds secrets")]
pub struct Sources {
    /// Named by `--config`; `ROWCAST_CONFIG` comes next, then `rowcast.toml` where it exists.
    pub file: Option<PathBuf>,
    pub env: Vec<(OsString, OsString)>,
    /// By setting name, e.g. `log_max_age`.
    pub flags: Vec<(String, Vec<String>)>,
    /// Where `rowcast.toml` is looked for.
    pub directory: PathBuf,
}

/// The texts that were given, by setting name.
pub(super) struct Given {
    values: BTreeMap<&'static str, Value>,
}

struct Value {
    /// As the user knows the place, for messages.
    at: String,
    /// Absent where it was of a type that has no text; that is a known mistake.
    texts: Option<Vec<String>>,
}

impl Sources {
    /// Of this process, with the flags that it was given.
    pub fn of_process(file: Option<PathBuf>, flags: Vec<(String, Vec<String>)>) -> Self {
        Sources { file, env: std::env::vars_os().collect(), flags, directory: PathBuf::from(".") }
    }

    pub(super) fn collect(&self, mistakes: &mut Vec<Mistake>) -> Given {
        let mut given = Given { values: BTreeMap::new() };
        self.read_file(&mut given, mistakes);
        self.read_env(&mut given, mistakes);
        for (name, texts) in &self.flags {
            if let Some(key) = keys().iter().find(|key| key.name == name) {
                let texts = texts.iter().flat_map(|text| split(text, key.list)).collect();
                given.set(key, format!("--{}", key.flag), texts);
            }
        }
        given
    }

    fn read_file(&self, given: &mut Given, mistakes: &mut Vec<Mistake>) {
        let env = || self.env.iter().find(|(name, value)| name == "ROWCAST_CONFIG" && !value.is_empty());
        let named = self.file.clone().or_else(|| env().map(|(_, value)| PathBuf::from(value)));
        let path = named.clone().unwrap_or_else(|| self.directory.join(DEFAULT_FILE));
        match fs::read_to_string(&path) {
            Ok(text) => read_toml(&path, &text, given, mistakes),
            Err(error) if error.kind() == io::ErrorKind::NotFound && named.is_none() => {}
            Err(error) => mistakes.push(Mistake {
                at: path.display().to_string(),
                given: None,
                problem: format!("the file cannot be read: {error}"),
            }),
        }
    }

    fn read_env(&self, given: &mut Given, mistakes: &mut Vec<Mistake>) {
        for (name, value) in &self.env {
            let Some(name) = name.to_str().filter(|name| name.starts_with("ROWCAST_")) else { continue };
            let ignored = NO_SETTINGS.contains(&name)
                || NO_SETTING_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
            if ignored {
                continue;
            }
            let Some(key) = keys().iter().find(|key| key.env == name) else {
                mistakes.push(unknown(name, keys().iter().map(|key| key.env.as_str())));
                continue;
            };
            match value.to_str() {
                // Compose files hand over variables that nobody set as empty ones.
                Some("") => {}
                Some(text) => given.set(key, name.to_owned(), split(text, key.list)),
                None => mistakes.push(wrong(key, name.to_owned(), None, "a text in UTF-8")),
            }
        }
    }
}

fn read_toml(path: &Path, text: &str, given: &mut Given, mistakes: &mut Vec<Mistake>) {
    let file = path.display();
    let table: toml::Table = match text.parse() {
        Ok(table) => table,
        Err(error) => return mistakes.push(not_toml(path, text, &error)),
    };
    for (name, value) in &table {
        let Some(key) = keys().iter().find(|key| key.name == name) else {
            let mut mistake = unknown(name, keys().iter().map(|key| key.name));
            mistake.at = format!("{name} in {file}");
            mistakes.push(mistake);
            continue;
        };
        let at = format!("{name} in {file}");
        match texts_of(value) {
            Some(texts) if key.list || !value.is_array() => given.set(key, at, texts),
            _ => {
                given.values.insert(key.name, Value { at: at.clone(), texts: None });
                mistakes.push(wrong(key, at, Some(value.to_string()), key.expected));
            }
        }
    }
}

/// The parser's own text would quote the line, and with it perhaps a secret.
fn not_toml(path: &Path, text: &str, error: &toml::de::Error) -> Mistake {
    let start = error.span().map_or(0, |span| span.start);
    let line = text.get(..start).map_or(1, |before| before.matches('\n').count() + 1);
    Mistake {
        at: format!("{} line {line}", path.display()),
        given: None,
        problem: "the file is not valid TOML there; a setting is written as key = \"value\"".to_owned(),
    }
}

fn texts_of(value: &toml::Value) -> Option<Vec<String>> {
    match value {
        toml::Value::String(text) => Some(vec![text.clone()]),
        toml::Value::Integer(number) => Some(vec![number.to_string()]),
        toml::Value::Boolean(truth) => Some(vec![truth.to_string()]),
        toml::Value::Array(items) => items.iter().map(|item| item.as_str().map(str::to_owned)).collect(),
        _ => None,
    }
}

fn unknown<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Mistake {
    let problem = match nearest(name, known) {
        Some(meant) => format!("there is no such setting; did you mean {meant}?"),
        None => "there is no such setting; `rowcast serve --help` lists them".to_owned(),
    };
    Mistake { at: name.to_owned(), given: None, problem }
}

fn wrong(key: &Key, at: String, given: Option<String>, expected: &str) -> Mistake {
    Mistake { at, given: given.filter(|_| !key.secret), problem: format!("expected {expected}") }
}

impl Given {
    /// Of a file with this text, and nothing else.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn of_toml(path: &Path, text: &str, mistakes: &mut Vec<Mistake>) -> Self {
        let mut given = Given { values: BTreeMap::new() };
        read_toml(path, text, &mut given, mistakes);
        given
    }

    fn set(&mut self, key: &'static Key, at: String, texts: Vec<String>) {
        self.values.insert(key.name, Value { at, texts: Some(texts) });
    }

    /// The setting's value. Where it cannot be read that is a mistake, and the default stands in,
    /// so that the rest can still be checked.
    pub(super) fn read<S: Setting>(&self, name: &'static str, mistakes: &mut Vec<Mistake>) -> Option<S> {
        let key = keys().iter().find(|key| key.name == name)?;
        if let Some(Value { at, texts: Some(texts) }) = self.values.get(name) {
            match S::parse_all(texts) {
                Ok(value) => return Some(value),
                Err(expected) => mistakes.push(wrong(key, at.clone(), Some(texts.join(",")), &expected)),
            }
        }
        S::parse_all(&key.default_texts()).ok()
    }

    /// A mistake in a value that could be read, but cannot be used.
    pub(super) fn mistake(&self, name: &str, problem: String) -> Mistake {
        let secret = keys().iter().any(|key| key.name == name && key.secret);
        let given =
            self.values.get(name).and_then(|value| Some(value.texts.as_ref()?.join(","))).filter(|_| !secret);
        Mistake { at: self.place(name), given, problem }
    }

    fn place(&self, name: &str) -> String {
        let unset = || format!("{name} (ROWCAST_{})", name.to_ascii_uppercase());
        self.values.get(name).map_or_else(unset, |value| value.at.clone())
    }
}
