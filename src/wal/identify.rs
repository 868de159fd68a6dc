//! IDENTIFY_SYSTEM and TIMELINE_HISTORY: which log this is.

use serde::{Deserialize, Serialize};

use super::connection::{ReplicationConnection, field, single};
use super::error::{During, WalError};
use crate::lsn::Lsn;

/// Which cluster, timeline and database a session is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemIdentity {
    /// The cluster's identity, from when it was initialised.
    pub system_id: u64,
    pub timeline: u32,
    /// How far the log is flushed (on a standby, replayed).
    pub xlogpos: Lsn,
    pub dbname: String,
}

/// The end of an earlier timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineSwitch {
    /// The timeline that ended.
    pub timeline: u32,
    /// What lies before this position is shared with the timeline that followed.
    pub switch_point: Lsn,
}

impl ReplicationConnection {
    pub async fn identify_system(&mut self) -> Result<SystemIdentity, WalError> {
        let row = single(self.command(During::Identify, "IDENTIFY_SYSTEM").await?)?;
        Ok(SystemIdentity {
            system_id: field(&row, 0)?,
            timeline: field(&row, 1)?,
            xlogpos: field(&row, 2)?,
            dbname: field(&row, 3)?,
        })
    }

    /// The timelines that led to `timeline`, oldest first; none for the first.
    pub async fn timeline_history(&mut self, timeline: u32) -> Result<Vec<TimelineSwitch>, WalError> {
        if timeline <= 1 {
            return Ok(Vec::new());
        }
        let command = format!("TIMELINE_HISTORY {timeline}");
        let row = single(self.command(During::TimelineHistory, &command).await?)?;
        parse_history(&field::<String>(&row, 1)?)
    }
}

/// A history file: `timeline`, `switch point` and a reason on each line, divided by blanks.
fn parse_history(text: &str) -> Result<Vec<TimelineSwitch>, WalError> {
    const MALFORMED: WalError = WalError::Protocol("a timeline history that does not parse");
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let mut words = line.split_ascii_whitespace();
            let timeline = words.next().and_then(|word| word.parse().ok()).ok_or(MALFORMED)?;
            let switch_point = words.next().and_then(|word| word.parse().ok()).ok_or(MALFORMED)?;
            Ok(TimelineSwitch { timeline, switch_point })
        })
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn history_files_are_read() {
        let text = "1\t0/3000060\tno recovery target specified\n\n# note\n2\t16/B374D848\tbefore 2026\n";
        let expected = [(1, 0x300_0060), (2, 0x16_B374_D848)]
            .map(|(timeline, at)| TimelineSwitch { timeline, switch_point: Lsn::new(at) });
        assert_eq!(parse_history(text).unwrap(), expected);
        assert!(parse_history("x\t0/1\t").is_err());
        assert!(parse_history("1").is_err());
    }
}
