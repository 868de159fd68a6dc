//! What was found, how bad it is, and what that means to a script.

use serde::Serialize;

/// Rising: the worst one decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Level {
    /// Looked at, and as it should be.
    Ok,
    /// Works, and could be safer.
    Advice,
    /// Could not be looked at.
    Unknown,
    /// Does not work, or will hurt.
    Problem,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    pub(super) level: Level,
    /// server, database, role, catalog, publication, slot, table, configuration
    pub(super) area: &'static str,
    pub(super) what: String,
    /// The command that mends it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) mend: Option<String>,
}

#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    findings: Vec<Finding>,
}

impl Report {
    pub(super) fn ok(&mut self, area: &'static str, what: impl Into<String>) {
        self.findings.push(Finding { level: Level::Ok, area, what: what.into(), mend: None });
    }

    pub(super) fn advice(&mut self, area: &'static str, what: impl Into<String>, mend: impl Into<String>) {
        self.add(Level::Advice, area, what, mend);
    }

    pub(super) fn unknown(&mut self, area: &'static str, what: impl Into<String>, mend: impl Into<String>) {
        self.add(Level::Unknown, area, what, mend);
    }

    pub(super) fn problem(&mut self, area: &'static str, what: impl Into<String>, mend: impl Into<String>) {
        self.add(Level::Problem, area, what, mend);
    }

    pub(super) fn add(
        &mut self,
        level: Level,
        area: &'static str,
        what: impl Into<String>,
        mend: impl Into<String>,
    ) {
        let mend = Some(mend.into()).filter(|mend| !mend.is_empty());
        self.findings.push(Finding { level, area, what: what.into(), mend });
    }

    /// Whether anything worse than `Ok` was found in an area.
    pub(super) fn is_clean(&self, area: &str) -> bool {
        self.findings.iter().all(|finding| finding.area != area || finding.level == Level::Ok)
    }

    /// The worst of it; `strict` takes advice for a problem.
    pub(super) fn verdict(&self, strict: bool) -> Level {
        let worst = self.findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok);
        match worst {
            Level::Advice if strict => Level::Problem,
            Level::Advice => Level::Ok,
            // What could not be looked at does not excuse what was.
            Level::Unknown if strict && self.count(Level::Advice) > 0 => Level::Problem,
            worst => worst,
        }
    }

    pub(super) fn count(&self, level: Level) -> usize {
        self.findings.iter().filter(|finding| finding.level == level).count()
    }

    /// The worst first.
    pub(super) fn page(&self) -> String {
        let mut page = String::new();
        for (level, word) in [
            (Level::Problem, "PROBLEM"),
            (Level::Unknown, "unknown"),
            (Level::Advice, "advice "),
            (Level::Ok, "ok     "),
        ] {
            for finding in self.findings.iter().filter(|finding| finding.level == level) {
                page.push_str(&format!("{word}  {}: {}\n", finding.area, finding.what));
                finding.mend.iter().for_each(|mend| page.push_str(&format!("         mend: {mend}\n")));
            }
        }
        page
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_decides() {
        let verdict = |levels: &[Level], strict| {
            let mut report = Report::default();
            levels.iter().for_each(|level| report.add(*level, "server", "x", ""));
            report.verdict(strict)
        };
        assert_eq!(verdict(&[], false), Level::Ok);
        assert_eq!(verdict(&[Level::Ok, Level::Advice], false), Level::Ok);
        assert_eq!(verdict(&[Level::Ok, Level::Advice], true), Level::Problem);
        assert_eq!(verdict(&[Level::Advice, Level::Unknown], false), Level::Unknown);
        assert_eq!(verdict(&[Level::Advice, Level::Unknown], true), Level::Problem);
        assert_eq!(verdict(&[Level::Problem, Level::Unknown], false), Level::Problem);
    }
}
