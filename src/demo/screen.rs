//! What the person at the terminal sees: calm, 80 columns, colours only where they are wanted.
//!
//! Nothing that comes from a frame or a row can act on the terminal. Knows no protocol.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

const WIDTH: usize = 80;

/// Where the demo is told.
pub(super) struct Screen {
    colours: bool,
    steps: u32,
}

#[derive(Clone, Copy)]
enum Style {
    Bold,
    Dim,
    Green,
    Cyan,
}

impl Style {
    fn code(self) -> &'static str {
        match self {
            Style::Bold => "1",
            Style::Dim => "2",
            Style::Green => "32",
            Style::Cyan => "36",
        }
    }
}

impl Screen {
    /// Standard output; see <https://no-color.org>.
    pub(super) fn new() -> Self {
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|value| value == "dumb");
        Screen { colours: io::stdout().is_terminal() && !unwanted && !dumb, steps: 0 }
    }

    pub(super) fn title(&self, text: &str) -> io::Result<()> {
        self.line(&format!("\n  {}", self.paint(Style::Bold, text)))?;
        self.blank()
    }

    /// A name and what it stands for.
    pub(super) fn fact(&self, name: &str, text: &str) -> io::Result<()> {
        self.line(&format!("  {}  {text}", self.paint(Style::Dim, &format!("{name:<9}"))))
    }

    /// A new step of the story.
    pub(super) fn step(&mut self, title: &str) -> io::Result<()> {
        self.steps += 1;
        let number = self.paint(Style::Cyan, &format!("{:>2}", self.steps));
        self.line(&format!("\n {number}  {}", self.paint(Style::Bold, title)))
    }

    /// What is run, as it is run.
    pub(super) fn code(&self, text: &str) -> io::Result<()> {
        text.lines().try_for_each(|line| self.line(&format!("     {}", self.paint(Style::Dim, line))))
    }

    /// One line about one device.
    pub(super) fn device(&self, name: &str, after: Option<Duration>, what: &str) -> io::Result<()> {
        let after = after.map_or(" ".repeat(10), |after| format!("{:>7.2} ms", after.as_secs_f64() * 1e3));
        let room = WIDTH - 34;
        self.line(&format!("     {name:<14} {}  {}", self.paint(Style::Green, &after), fit(what, room)))
    }

    /// A row or a key, as it came; cut at the edge.
    pub(super) fn record(&self, text: &str) -> io::Result<()> {
        self.line(&format!("       {}", fit(text, WIDTH - 7)))
    }

    /// One line of an endless series; cut at the edge.
    pub(super) fn event(
        &self,
        name: &str,
        after: Option<Duration>,
        what: &str,
        text: &str,
    ) -> io::Result<()> {
        let after = after.map_or(" ".repeat(9), |after| format!("{:>6.1} ms", after.as_secs_f64() * 1e3));
        let line = fit(&format!("{what} {text}"), WIDTH - 27);
        self.line(&format!("  {name:<12}  {}  {line}", self.paint(Style::Green, &after)))
    }

    pub(super) fn note(&self, text: &str) -> io::Result<()> {
        self.line(&format!("     {}", self.paint(Style::Dim, text)))
    }

    pub(super) fn verdict(&self, text: &str) -> io::Result<()> {
        self.line(&format!("\n  {}", self.paint(Style::Green, text)))
    }

    /// A line that is to be copied: never cut, never painted.
    pub(super) fn plain(&self, text: &str) -> io::Result<()> {
        self.line(&format!("  {text}"))
    }

    pub(super) fn blank(&self) -> io::Result<()> {
        self.line("")
    }

    fn line(&self, text: &str) -> io::Result<()> {
        let mut out = io::stdout().lock();
        writeln!(out, "{}", text.trim_end())?;
        out.flush()
    }

    fn paint(&self, style: Style, text: &str) -> String {
        if self.colours { format!("\x1b[{}m{text}\x1b[0m", style.code()) } else { text.to_owned() }
    }
}

/// A text in at most `room` columns, with nothing in it that acts on a terminal.
fn fit(text: &str, room: usize) -> String {
    let shown = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    if text.chars().count() <= room {
        return text.chars().map(shown).collect();
    }
    let cut = text.chars().take(room.saturating_sub(1)).map(shown);
    cut.chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_at_the_edge_and_cannot_act_on_the_terminal() {
        assert_eq!(fit("abc", 3), "abc");
        assert_eq!(fit("äbcd", 3), "äb…");
        assert_eq!(fit("\u{1b}[2J", 9), "\u{fffd}[2J");
    }
}
