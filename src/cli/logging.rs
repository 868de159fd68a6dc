//! Where the relay's own messages go: to standard error, as the configuration says.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};

use rowcast::config::{Config, LogFormat};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::Directive;

use super::failure::Failure;

/// Libraries that would write down what passes through them, rows and tokens, at their lower levels. At
/// `info` tokio-postgres repeats every NOTICE of the server, also into the demo, which asks for warnings.
const QUIET: [&str; 3] = ["tungstenite", "tokio_tungstenite", "tokio_postgres"];

/// The storage engine tells of its housekeeping; only its warnings concern a user who asks for no more.
const HOUSEKEEPING: [&str; 2] = ["fjall", "lsm_tree"];

/// Wins over a level for all targets, and over one that was given for this one.
fn at_level(target: &str, level: &str) -> Directive {
    format!("{target}={level}").parse().expect("a target and a level")
}

/// Sets up messages for the rest of the process.
pub(super) fn start(config: &Config) -> Result<(), Failure> {
    let filter = EnvFilter::builder().parse(&config.log_level);
    let filter = filter.map_err(|error| Failure::usage(format!("log_level: {error}")))?;
    let filter = QUIET.iter().fold(filter, |filter, target| filter.add_directive(at_level(target, "warn")));
    let unnamed = HOUSEKEEPING.iter().filter(|target| !config.log_level.contains(**target));
    let filter = unnamed.fold(filter, |filter, target| filter.add_directive(at_level(target, "warn")));
    let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(colours)
        .with_writer(|| Lines(io::stderr()));
    let started = match config.log_format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| Failure::new(format!("messages cannot be set up: {error}")))
}

/// One message, one line, and nothing in it that acts on a terminal: names of tables and the words of servers
/// may hold any character, and must not pass for messages of the relay's own. The formatter hands over one
/// message at a time.
struct Lines<W>(W);

impl<W: Write> Write for Lines<W> {
    fn write(&mut self, message: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(message);
        let body = text.strip_suffix('\n').unwrap_or(&text);
        let end = &text[body.len()..];
        self.0.write_all(format!("{}{end}", harmless(body)).as_bytes()).map(|()| message.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Escapes control characters, but for tabs and the formatter's colours.
fn harmless(text: &str) -> Cow<'_, str> {
    let acts = |c: char| c.is_control() && c != '\t';
    if !text.contains(acts) {
        return text.into();
    }
    let mut safe = String::with_capacity(text.len() + 16);
    let mut rest = text;
    while let Some(place) = rest.find(acts) {
        let (before, from) = rest.split_at(place);
        let (control, after) =
            from.split_at(colour(from).or_else(|| Some(from.chars().next()?.len_utf8())).unwrap_or(0));
        safe.push_str(before);
        match control.chars().next() {
            Some(c) if control.len() == c.len_utf8() => safe.extend(c.escape_default()),
            _ => safe.push_str(control),
        }
        rest = after;
    }
    safe.push_str(rest);
    safe.into()
}

/// How long the change of colour is that a text begins with: `ESC [ numbers m`.
fn colour(text: &str) -> Option<usize> {
    let numbers = text.strip_prefix("\u{1b}[")?;
    let end = numbers.find(|c: char| !c.is_ascii_digit() && c != ';')?;
    numbers[end..].starts_with('m').then_some("\u{1b}[".len() + end + "m".len())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line_whatever_stands_in_it() {
        let mut out = Vec::new();
        for message in ["plain\tü\n", "a\r\nb\n\n", "no end", "\n"] {
            Lines(&mut out).write_all(message.as_bytes()).unwrap();
        }
        assert_eq!(String::from_utf8(out).unwrap(), "plain\tü\na\\r\\nb\\n\nno end\n");
    }

    #[test]
    fn only_colours_act_on_a_terminal() {
        let text =
            "\u{1b}[1;31mred\u{1b}[0m\u{1b}[m \u{1b}[2J\u{1b}]0;title\u{7}\u{9b}31m\u{7f}\u{1b}[\u{1b}[3";
        let shown = "\u{1b}[1;31mred\u{1b}[0m\u{1b}[m \\u{1b}[2J\\u{1b}]0;title\\u{7}\\u{9b}31m\\u{7f}\\u{1b}[\\u{1b}[3";
        assert_eq!(harmless(text), shown);
    }
}
