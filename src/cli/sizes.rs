//! Numbers of bytes and rows for the eye.

const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];

/// `0 B`, `8.0 KiB`, `310 MiB`.
pub(super) fn bytes(bytes: u64) -> String {
    let mut scaled = bytes;
    let mut tenths = 0;
    let mut unit = 0;
    while scaled >= 1024 && unit + 1 < UNITS.len() {
        tenths = scaled % 1024 * 10 / 1024;
        scaled /= 1024;
        unit += 1;
    }
    let name = UNITS[unit];
    if unit > 0 && scaled < 10 { format!("{scaled}.{tenths} {name}") } else { format!("{scaled} {name}") }
}

/// `about 1,200 rows`; the server counts none before its first ANALYZE.
pub(super) fn rows(estimate: u64) -> String {
    if estimate == 0 {
        return "rows not counted yet".to_owned();
    }
    let digits = estimate.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    format!("about {text} {}", if estimate == 1 { "row" } else { "rows" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        let texts = [0, 1023, 1024, 8704, 325_058_560, u64::MAX].map(bytes);
        assert_eq!(texts, ["0 B", "1023 B", "1.0 KiB", "8.5 KiB", "310 MiB", "16777215 TiB"]);
        let texts = [0, 1, 999, 1_200, 1_000_000].map(rows);
        assert_eq!(texts[0], "rows not counted yet");
        assert_eq!(texts[1..], ["about 1 row", "about 999 rows", "about 1,200 rows", "about 1,000,000 rows"]);
    }
}
