//! Whose history a log holds, and where it parts from a server's.
//!
//! A promotion begins a timeline: what lies before the switch is shared, what comes behind it is the new
//! primary's alone. One timeline's number says too little: two standbys of one primary may both be
//! promoted to the same number, at different places. So the whole way is compared, from the first
//! timeline on. Pure.
//!
//! What no history can tell apart: two servers promoted from the same place to the same number.

use serde::{Deserialize, Serialize};

use super::publication::Publishes;
use crate::lsn::Lsn;
use crate::wal::TimelineSwitch;

/// Whose history a log holds, or a server has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub system_id: u64,
    pub database: String,
    pub slot: String,
    pub timeline: u32,
    /// The publication's oid: one made again is another one.
    pub publication: u32,
    #[serde(default)]
    pub publishes: Publishes,
    /// The timelines before that one, oldest first. Logs of the first release have none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<TimelineSwitch>,
}

impl Identity {
    /// Where this history and a server's part: what lies before is the same in both. `None`: nowhere.
    pub(super) fn parts_from(&self, server: &Identity) -> Option<Lsn> {
        if self.history.is_empty() && self.timeline > 1 {
            return self.parts_by_number(server);
        }
        let mut shared = Lsn::ZERO;
        for ((ours, our_end), (theirs, their_end)) in self.way().zip(server.way()) {
            if ours != theirs {
                return Some(shared);
            }
            match (our_end, their_end) {
                (None, None) => return None,
                (Some(ours), Some(theirs)) if ours == theirs => shared = ours,
                (Some(ours), Some(theirs)) => return Some(ours.min(theirs)),
                (Some(end), None) | (None, Some(end)) => return Some(end),
            }
        }
        Some(shared)
    }

    /// Whether the server is one that this history has left behind: it never saw the switch.
    pub(super) fn left(&self, server: &Identity) -> bool {
        self.system_id == server.system_id && server.timeline < self.timeline && {
            let before = |switch: &TimelineSwitch| switch.timeline == server.timeline;
            self.history.is_empty() || self.history.iter().any(before)
        }
    }

    /// All that can be told where only the last timeline is known.
    fn parts_by_number(&self, server: &Identity) -> Option<Lsn> {
        if self.timeline == server.timeline {
            return None;
        }
        let switch = server.history.iter().find(|switch| switch.timeline == self.timeline);
        Some(switch.map_or(Lsn::ZERO, |switch| switch.switch_point))
    }

    /// The timelines and their ends; the last has none.
    fn way(&self) -> impl Iterator<Item = (u32, Option<Lsn>)> {
        let before = self.history.iter().map(|switch| (switch.timeline, Some(switch.switch_point)));
        before.chain([(self.timeline, None)])
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) mod tests {
    use super::*;

    /// A server that went through these timelines, up to their ends.
    pub(in crate::ingest) fn on(history: &[(u32, u64)], timeline: u32) -> Identity {
        let switch = |&(timeline, at)| TimelineSwitch { timeline, switch_point: Lsn::new(at) };
        Identity {
            system_id: 7,
            database: "app".into(),
            slot: "rowcast".into(),
            timeline,
            publication: 3,
            publishes: Publishes::default(),
            history: history.iter().map(switch).collect(),
        }
    }

    fn parts(ours: &Identity, theirs: &Identity) -> Option<u64> {
        let at = ours.parts_from(theirs).map(Lsn::get);
        if !ours.history.is_empty() && !theirs.history.is_empty() {
            assert_eq!(at, theirs.parts_from(ours).map(Lsn::get), "from either side");
        }
        at
    }

    #[test]
    fn a_history_that_went_on_parts_at_the_switch() {
        assert_eq!(parts(&on(&[], 1), &on(&[], 1)), None);
        assert_eq!(parts(&on(&[], 1), &on(&[(1, 50)], 2)), Some(50));
        assert_eq!(parts(&on(&[(1, 50)], 2), &on(&[(1, 50)], 2)), None);
        assert_eq!(parts(&on(&[(1, 50)], 2), &on(&[(1, 50), (2, 70)], 3)), Some(70));
        assert_eq!(parts(&on(&[], 1), &on(&[(1, 50), (2, 70)], 3)), Some(50));
    }

    #[test]
    fn two_servers_that_took_the_same_number_part_where_the_first_of_them_left() {
        assert_eq!(parts(&on(&[(1, 50)], 2), &on(&[(1, 40)], 2)), Some(40));
        assert_eq!(parts(&on(&[(1, 50)], 2), &on(&[(1, 60), (2, 90)], 3)), Some(50));
        // One of them took the next number that was free.
        assert_eq!(parts(&on(&[(1, 50)], 2), &on(&[(1, 50)], 3)), Some(50));
        assert_eq!(parts(&on(&[(1, 50), (2, 80)], 4), &on(&[(1, 50), (3, 80)], 4)), Some(50));
        assert_eq!(parts(&on(&[(2, 50)], 3), &on(&[(1, 50)], 3)), Some(0));
    }

    #[test]
    fn a_former_primary_is_known_by_its_timeline() {
        let log = on(&[(1, 50), (3, 80)], 4);
        assert!(log.left(&on(&[], 1)) && log.left(&on(&[(1, 50)], 3)));
        assert!(!log.left(&on(&[(1, 50)], 2)), "a branch of its own, which is judged by where it parts");
        assert!(!log.left(&log) && !log.left(&on(&[(1, 50), (3, 80), (4, 90)], 5)));
        let other = Identity { system_id: 8, ..on(&[], 1) };
        assert!(!log.left(&other));
    }

    #[test]
    fn a_log_that_kept_no_history_knows_its_own_timeline() {
        let kept = r#"{"system_id":7,"database":"app","slot":"rowcast","timeline":2,"publication":3}"#;
        let log: Identity = serde_json::from_str(kept).unwrap();
        assert_eq!(parts(&log, &on(&[(1, 50)], 2)), None);
        assert_eq!(parts(&log, &on(&[(1, 50), (2, 70)], 3)), Some(70));
        assert_eq!(parts(&log, &on(&[(1, 50)], 3)), Some(0));
        assert!(log.left(&on(&[], 1)));
    }
}
