//! A moment as PostgreSQL's protocol writes it.
//!
//! Leaf type: microseconds since 2000-01-01 00:00 UTC, as in Begin, Commit and keepalive messages.
//! The only text form is RFC 3339, UTC, always six digits: `2026-01-01T00:00:00.000000Z`.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Microseconds from 1970-01-01 to 2000-01-01, both UTC.
const EPOCH_OFFSET_MICROS: i64 = 946_684_800_000_000;

/// Microseconds since 2000-01-01 00:00 UTC.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PgTimestamp(i64);

impl PgTimestamp {
    pub const fn from_micros(micros_since_2000: i64) -> Self {
        PgTimestamp(micros_since_2000)
    }

    pub const fn micros(self) -> i64 {
        self.0
    }

    /// Saturates at the ends of `i64`, 290,000 years away.
    pub const fn from_unix_micros(micros_since_1970: i64) -> Self {
        PgTimestamp(micros_since_1970.saturating_sub(EPOCH_OFFSET_MICROS))
    }

    /// Saturates at the ends of `i64`, 290,000 years away.
    pub const fn unix_micros(self) -> i64 {
        self.0.saturating_add(EPOCH_OFFSET_MICROS)
    }

    /// This machine's clock; a clock before 1970 reads as 1970.
    pub fn now() -> Self {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self::from_unix_micros(i64::try_from(since_1970.as_micros()).unwrap_or(i64::MAX))
    }
}

/// RFC 3339; a moment outside the years -9999 to 9999 shows the nearest one inside.
impl fmt::Display for PgTimestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nearest = if self.0 < 0 { jiff::Timestamp::MIN } else { jiff::Timestamp::MAX };
        let moment = jiff::Timestamp::from_microsecond(self.unix_micros()).unwrap_or(nearest);
        write!(f, "{moment:.6}")
    }
}

impl fmt::Debug for PgTimestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_rfc3339_with_six_digits() {
        for (micros, text) in [
            (0, "2000-01-01T00:00:00.000000Z"),
            (820_540_800_000_000, "2026-01-01T00:00:00.000000Z"),
            (820_540_800_000_001, "2026-01-01T00:00:00.000001Z"),
            (-1, "1999-12-31T23:59:59.999999Z"),
        ] {
            assert_eq!(PgTimestamp::from_micros(micros).to_string(), text);
        }
    }

    #[test]
    fn unix_conversion_round_trips_and_never_overflows() {
        let moment = PgTimestamp::from_unix_micros(1_767_225_600_123_456);
        assert_eq!(moment.unix_micros(), 1_767_225_600_123_456);
        assert_eq!(moment.to_string(), "2026-01-01T00:00:00.123456Z");
        for end in [i64::MIN, i64::MAX] {
            assert!(!PgTimestamp::from_micros(end).to_string().is_empty());
            let _ = PgTimestamp::from_unix_micros(end);
        }
        assert!(PgTimestamp::now() > PgTimestamp::from_micros(0));
    }
}
