//! What is wrong with a configuration, in words for whoever wrote it.

use std::fmt;

/// One mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// The setting as it was named where it stands: `log_max_age`, `ROWCAST_LOG_MAX_AGE`, `--log-max-age`.
    pub at: String,
    /// What was given; absent if nothing was, or if it is secret.
    pub given: Option<String>,
    /// What is wrong or what is expected, as the rest of a sentence.
    pub problem: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.at)?;
        if let Some(given) = &self.given {
            write!(f, "given {given:?}, ")?;
        }
        f.write_str(&self.problem)
    }
}

/// All mistakes of one configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    mistakes: Vec<Mistake>,
}

impl ConfigError {
    pub(super) fn new(mistakes: Vec<Mistake>) -> Self {
        ConfigError { mistakes }
    }

    pub fn mistakes(&self) -> &[Mistake] {
        &self.mistakes
    }
}

impl std::error::Error for ConfigError {}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.mistakes.len() {
            1 => f.write_str("one mistake in the configuration")?,
            many => write!(f, "{many} mistakes in the configuration")?,
        }
        self.mistakes.iter().try_for_each(|mistake| write!(f, "\n  {mistake}"))
    }
}

/// The known name that was probably meant.
pub(super) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (name.len() / 3).clamp(1, 4);
    known
        .map(|known| (distance(name, known), known))
        .filter(|&(distance, _)| distance <= limit)
        .min()
        .map(|(_, known)| known)
}

/// Levenshtein distance in bytes. Names are short, so the whole table is fine.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (slot, y) in row.iter_mut().skip(1).zip(b.bytes()) {
            let cost = (diagonal + usize::from(x != y)).min(left + 1).min(*slot + 1);
            diagonal = *slot;
            *slot = cost;
            left = cost;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_edits() {
        for (a, b, expected) in [
            ("", "abc", 3),
            ("abc", "", 3),
            ("abc", "abc", 0),
            ("listn", "listen", 1),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(distance(a, b), expected, "{a} {b}");
        }
        let known = || ["listen", "slot", "log_level"].into_iter();
        assert_eq!(nearest("lisen", known()), Some("listen"));
        assert_eq!(nearest("loglevel", known()), Some("log_level"));
        assert_eq!(nearest("password", known()), None);
    }
}
