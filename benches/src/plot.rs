//! The results as pictures: bars for each figure with its reference, a line for each growth.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use crate::outcome::{Curve, Line, Outcome, median};

const WIDTH: f64 = 760.0;
const BAR: f64 = 16.0;
const LABEL: f64 = 380.0;
const OURS: &str = "#2563eb";
const REFERENCE: &str = "#9ca3af";

/// A file for each figure, and one for each growth.
pub(crate) fn write(outcome: &Outcome, directory: &Path) -> std::io::Result<()> {
    let mut figures = BTreeMap::<&str, Vec<&Line>>::new();
    for line in &outcome.lines {
        figures.entry(line.figure).or_default().push(line);
    }
    for (figure, lines) in figures {
        fs::write(directory.join(format!("{figure}.svg")), bars(figure, &lines))?;
    }
    for (number, curve) in outcome.curves.iter().enumerate() {
        fs::write(directory.join(format!("growth-{}.svg", number + 1)), growth(curve))?;
    }
    Ok(())
}

/// Each line has a scale of its own, which the longer of its two bars fills.
fn bars(figure: &str, lines: &[&Line]) -> String {
    let height = 40.0 + lines.len() as f64 * (2.0 * BAR + 14.0);
    let mut svg = begin(height, figure);
    for (place, line) in lines.iter().enumerate() {
        let top = 34.0 + place as f64 * (2.0 * BAR + 14.0);
        let ours = median(&line.ours);
        let reference = line.reference.as_ref().map(|reference| (reference.name, median(&reference.values)));
        let most = reference.map_or(ours, |(_, value)| ours.max(value)).max(f64::MIN_POSITIVE);
        text(&mut svg, 8.0, top + BAR, &format!("{} ({})", line.what, line.unit));
        bar(&mut svg, top, ours / most, OURS, &format!("rowcast {ours:.4}"));
        if let Some((name, value)) = reference {
            bar(&mut svg, top + BAR, value / most, REFERENCE, &format!("{name} {value:.4}"));
        }
    }
    svg + "</svg>\n"
}

fn bar(svg: &mut String, top: f64, part: f64, colour: &str, label: &str) {
    let width = (part * (WIDTH - LABEL - 150.0)).max(1.0);
    let _ = writeln!(
        svg,
        r#"<rect x="{LABEL}" y="{top:.1}" width="{width:.1}" height="{:.1}" fill="{colour}"/>"#,
        BAR - 2.0
    );
    text(svg, LABEL + width + 4.0, top + BAR - 5.0, label);
}

/// Both axes logarithmic: what does not depend on the size is level.
fn growth(curve: &Curve) -> String {
    let (left, top, width, height) = (70.0, 40.0, WIDTH - 110.0, 240.0);
    let mut svg = begin(330.0, &format!("{} ({}) by {}", curve.what, curve.unit, curve.grows));
    let logs: Vec<(f64, f64)> =
        curve.points.iter().map(|(x, y)| (x.max(1e-9).log10(), y.max(1e-9).log10())).collect();
    let range = |of: fn(&(f64, f64)) -> f64| {
        let least = logs.iter().map(of).fold(f64::INFINITY, f64::min);
        let most = logs.iter().map(of).fold(f64::NEG_INFINITY, f64::max);
        // A tenth and ten times as much around it, so that noise does not look like growth.
        (least - 0.5, (most - least + 1.0).max(1.0))
    };
    let (x, y) = (range(|point| point.0), range(|point| point.1));
    let place = |point: &(f64, f64)| {
        (left + (point.0 - x.0) / x.1 * width, top + height - (point.1 - y.0) / y.1 * height)
    };
    let _ = writeln!(
        svg,
        r##"<rect x="{left}" y="{top}" width="{width}" height="{height}" fill="none" stroke="#d1d5db"/>"##
    );
    let path: Vec<String> = logs.iter().map(place).map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    let _ = writeln!(
        svg,
        r#"<polyline points="{}" fill="none" stroke="{OURS}" stroke-width="2"/>"#,
        path.join(" ")
    );
    for (point, (x, y)) in logs.iter().map(place).zip(&curve.points) {
        let _ = writeln!(svg, r#"<circle cx="{:.1}" cy="{:.1}" r="4" fill="{OURS}"/>"#, point.0, point.1);
        text(&mut svg, point.0 - 20.0, point.1 - 10.0, &format!("{y:.3}"));
        text(&mut svg, point.0 - 20.0, top + height + 18.0, &format!("{x:.0}"));
    }
    svg + "</svg>\n"
}

fn begin(height: f64, title: &str) -> String {
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    text(&mut svg, 8.0, 20.0, title);
    svg
}

fn text(svg: &mut String, x: f64, y: f64, text: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(svg, r#"<text x="{x:.1}" y="{y:.1}">{text}</text>"#);
}
