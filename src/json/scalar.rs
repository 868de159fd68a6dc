//! Values that are neither strings nor made of other values.

use super::ValueError;

pub(super) fn write_bool(text: &[u8], out: &mut Vec<u8>) -> Result<(), ValueError> {
    match text {
        b"t" => out.extend_from_slice(b"true"),
        b"f" => out.extend_from_slice(b"false"),
        _ => return Err(ValueError::expected("t or f", 0)),
    }
    Ok(())
}

/// A number as it is, or `"NaN"` and the infinities as strings.
pub(super) fn write_number(text: &[u8], out: &mut Vec<u8>) -> Result<(), ValueError> {
    if matches!(text, b"NaN" | b"Infinity" | b"-Infinity") {
        write_quoted(text, out);
        return Ok(());
    }
    let end = number_end(text).ok_or(ValueError::expected("a number", 0))?;
    if end != text.len() {
        return Err(ValueError::expected("the end of a number", end));
    }
    out.extend_from_slice(text);
    Ok(())
}

/// Where the JSON number that `text` begins with ends.
pub(super) fn number_end(text: &[u8]) -> Option<usize> {
    let mut at = usize::from(text.first() == Some(&b'-'));
    let whole = digits(text, at);
    if whole == 0 || (whole > 1 && text.get(at) == Some(&b'0')) {
        return None;
    }
    at += whole;
    if text.get(at) == Some(&b'.') {
        let fraction = digits(text, at + 1);
        if fraction == 0 {
            return None;
        }
        at += 1 + fraction;
    }
    if matches!(text.get(at), Some(b'e' | b'E')) {
        at += 1 + usize::from(matches!(text.get(at + 1), Some(b'+' | b'-')));
        let exponent = digits(text, at);
        if exponent == 0 {
            return None;
        }
        at += exponent;
    }
    Some(at)
}

pub(super) fn write_date(text: &[u8], out: &mut Vec<u8>) -> Result<(), ValueError> {
    if !is_infinite(text) {
        let end = date_end(text).ok_or(ValueError::expected("a date in ISO style", 0))?;
        expect_era(text, end)?;
    }
    write_quoted(text, out);
    Ok(())
}

/// ISO 8601: `T` between date and time, and the zone with its minutes.
pub(super) fn write_timestamp(text: &[u8], has_zone: bool, out: &mut Vec<u8>) -> Result<(), ValueError> {
    if is_infinite(text) {
        write_quoted(text, out);
        return Ok(());
    }
    let date = date_end(text).ok_or(ValueError::expected("a timestamp in ISO style", 0))?;
    if text.get(date) != Some(&b' ') {
        return Err(ValueError::expected("a space", date));
    }
    let time = time_end(text, date + 1).ok_or(ValueError::expected("a time", date + 1))?;
    let mut end = time;
    let mut minutes: &[u8] = b"";
    if has_zone {
        end = zone_end(text, time).ok_or(ValueError::expected("a time zone offset", time))?;
        if end == time + HOURS_OF_ZONE {
            minutes = b":00";
        }
    }
    expect_era(text, end)?;
    out.reserve(text.len() + 5);
    out.push(b'"');
    out.extend_from_slice(&text[..date]);
    out.push(b'T');
    out.extend_from_slice(&text[date + 1..end]);
    out.extend_from_slice(minutes);
    out.extend_from_slice(&text[end..]);
    out.push(b'"');
    Ok(())
}

/// Newlines can stand only between tokens, for inside a string PostgreSQL does not accept them.
pub(super) fn write_json(text: &[u8], out: &mut Vec<u8>) {
    let mut rest = text;
    while let Some(at) = memchr::memchr2(b'\n', b'\r', rest) {
        out.extend_from_slice(&rest[..at]);
        out.push(b' ');
        rest = &rest[at + 1..];
    }
    out.extend_from_slice(rest);
}

/// `+00`, to which ISO 8601 as PostgreSQL prints it adds the minutes.
const HOURS_OF_ZONE: usize = 3;

/// Appends a text that has nothing to escape.
fn write_quoted(text: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    out.extend_from_slice(text);
    out.push(b'"');
}

fn is_infinite(text: &[u8]) -> bool {
    matches!(text, b"infinity" | b"-infinity")
}

/// How many digits stand at `at`.
fn digits(text: &[u8], at: usize) -> usize {
    text.get(at..).map_or(0, |rest| rest.iter().take_while(|byte| byte.is_ascii_digit()).count())
}

/// Where two digits at `at` end.
fn pair(text: &[u8], at: usize) -> Option<usize> {
    (digits(text, at) == 2).then_some(at + 2)
}

fn byte(text: &[u8], at: usize, wanted: u8) -> Option<usize> {
    (text.get(at) == Some(&wanted)).then_some(at + 1)
}

/// Where `2024-02-29`, with four digits or more for the year, ends.
fn date_end(text: &[u8]) -> Option<usize> {
    let year = digits(text, 0);
    if year < 4 {
        return None;
    }
    let month = pair(text, byte(text, year, b'-')?)?;
    pair(text, byte(text, month, b'-')?)
}

/// Where `23:59:59.999999` ends.
fn time_end(text: &[u8], at: usize) -> Option<usize> {
    let minutes = pair(text, byte(text, pair(text, at)?, b':')?)?;
    let seconds = pair(text, byte(text, minutes, b':')?)?;
    match byte(text, seconds, b'.') {
        None => Some(seconds),
        Some(fraction) => match digits(text, fraction) {
            0 => None,
            digits => Some(fraction + digits),
        },
    }
}

/// Where `+00`, `-03:30` or `+00:19:32` ends.
fn zone_end(text: &[u8], at: usize) -> Option<usize> {
    let hours = pair(text, byte(text, at, b'+').or(byte(text, at, b'-'))?)?;
    let Some(minutes) = byte(text, hours, b':') else { return Some(hours) };
    let minutes = pair(text, minutes)?;
    let Some(seconds) = byte(text, minutes, b':') else { return Some(minutes) };
    pair(text, seconds)
}

fn expect_era(text: &[u8], at: usize) -> Result<(), ValueError> {
    match text.get(at..) {
        Some(b"" | b" BC") => Ok(()),
        _ => Err(ValueError::expected("the end of a date, or BC", at)),
    }
}
