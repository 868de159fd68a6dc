//! The results as text.

use std::fmt::Write;

use crate::outcome::{Aim, Line, Outcome, median};

pub(crate) fn of(outcome: &Outcome) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "{:10} {:58} {:>11} {:>11} {:>6} {:>9}  {:10} unit",
        "figure", "what", "ours", "reference", "ratio", "aim", ""
    );
    for line in &outcome.lines {
        let Line { figure, what, unit, .. } = line;
        let reference = line.reference.as_ref().map(|reference| number(median(&reference.values)));
        let ratio = line.ratio().map(|ratio| format!("{ratio:.2}"));
        let aim = match line.aim {
            Aim::Ratio(least) => format!("×{least}"),
            Aim::AtLeast(least) => format!("≥ {}", number(least)),
            Aim::AtMost(most) => format!("≤ {}", number(most)),
            Aim::Told => String::new(),
        };
        let met = match line.met() {
            Some(true) => "reached",
            Some(false) => "NOT",
            None => "",
        };
        let ours = number(median(&line.ours));
        let (reference, ratio) = (reference.unwrap_or_default(), ratio.unwrap_or_default());
        let _ = writeln!(
            out,
            "{figure:10} {what:58} {ours:>11} {reference:>11} {ratio:>6} {aim:>9}  {met:10} {unit}"
        );
    }
    for curve in &outcome.curves {
        let points: Vec<String> =
            curve.points.iter().map(|(x, y)| format!("{}: {}", number(*x), number(*y))).collect();
        let _ = writeln!(
            out,
            "growth     {} by {}: {} {}",
            curve.what,
            curve.grows,
            points.join(", "),
            curve.unit
        );
    }
    for note in &outcome.notes {
        let _ = writeln!(out, "note: {note}");
    }
    out
}

/// One line while the benchmark runs.
pub(crate) fn short(line: &Line) -> String {
    let values = |values: &[f64]| values.iter().map(|value| number(*value)).collect::<Vec<_>>().join(", ");
    let mut text = format!("{}: {} {}", line.what, values(&line.ours), line.unit);
    if let Some(reference) = &line.reference {
        let _ = write!(text, " ({}: {})", reference.name, values(&reference.values));
    }
    text
}

fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 10_000.0 => format!("{value:.0}"),
        size if size >= 100.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}
