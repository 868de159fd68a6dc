//! How the text of a setting becomes its type.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use crate::auth::{AdminClaim, GrantPattern, JwksUrl, PublicKeySource, Secret};

/// A type that a setting can have. An error is what was expected instead.
pub(super) trait Setting: Sized {
    const EXPECTED: &'static str;
    const SECRET: bool = false;
    const LIST: bool = false;
    const SWITCH: bool = false;

    fn parse(text: &str) -> Result<Self, String>;

    fn parse_all(texts: &[String]) -> Result<Self, String> {
        match texts {
            [text] => Self::parse(text),
            _ => Err(format!("one value: {}", Self::EXPECTED)),
        }
    }
}

/// Whether and where a private PostgreSQL runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Embedded {
    Off,
    InDataDir,
    Directory(PathBuf),
}

/// How the relay's own messages are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

/// How devices say who they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthMode {
    Jwt,
    /// They do not.
    None,
}

/// Ten years: whatever is longer is a mistake, and would overflow what clocks can hold.
const MAX_DURATION_MS: u64 = 10 * 365 * 86_400_000;

/// `50ms`, `30s`, `5m`, `72h`, `7d`.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let (number, unit) = number_and_unit(text)?;
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    let milliseconds = number.checked_mul(unit_ms).filter(|&ms| ms <= MAX_DURATION_MS)?;
    Some(Duration::from_millis(milliseconds))
}

fn parse_size(text: &str) -> Option<u64> {
    let (number, unit) = number_and_unit(text)?;
    let shift = match unit {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        "TiB" => 40,
        _ => return None,
    };
    number.checked_mul(1 << shift)
}

fn number_and_unit(text: &str) -> Option<(u64, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    Some((number.parse().ok()?, unit.trim_start()))
}

impl Setting for Duration {
    const EXPECTED: &'static str = "a duration such as 50ms, 30s, 5m, 72h or 7d";

    fn parse(text: &str) -> Result<Self, String> {
        parse_duration(text).ok_or_else(|| Self::EXPECTED.to_owned())
    }
}

/// A size in bytes; counts are `usize`.
impl Setting for u64 {
    const EXPECTED: &'static str = "a size such as 64KiB, 8MiB or 10GiB";

    fn parse(text: &str) -> Result<Self, String> {
        parse_size(text).ok_or_else(|| Self::EXPECTED.to_owned())
    }
}

impl Setting for usize {
    const EXPECTED: &'static str = "a whole number";

    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| Self::EXPECTED.to_owned())
    }
}

impl Setting for bool {
    const EXPECTED: &'static str = "true or false";
    const SWITCH: bool = true;

    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| Self::EXPECTED.to_owned())
    }
}

impl Setting for String {
    const EXPECTED: &'static str = "a text";

    fn parse(text: &str) -> Result<Self, String> {
        Ok(text.to_owned())
    }
}

impl Setting for PathBuf {
    const EXPECTED: &'static str = "a directory";

    fn parse(text: &str) -> Result<Self, String> {
        Ok(PathBuf::from(text))
    }
}

impl Setting for SocketAddr {
    const EXPECTED: &'static str = "an address and a port such as 127.0.0.1:4000 or [::]:4000";

    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| Self::EXPECTED.to_owned())
    }
}

impl Setting for Secret {
    const EXPECTED: &'static str = "a connection string such as postgres://rowcast:…@localhost:5432/app";
    const SECRET: bool = true;

    fn parse(text: &str) -> Result<Self, String> {
        Ok(Secret::new(text))
    }
}

impl Setting for Embedded {
    const EXPECTED: &'static str = "true, false or a directory";
    const SWITCH: bool = true;

    fn parse(text: &str) -> Result<Self, String> {
        Ok(match text {
            "false" => Embedded::Off,
            "true" => Embedded::InDataDir,
            directory => Embedded::Directory(directory.into()),
        })
    }
}

impl Setting for LogFormat {
    const EXPECTED: &'static str = "text or json";

    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(LogFormat::Text),
            "json" => Ok(LogFormat::Json),
            _ => Err(Self::EXPECTED.to_owned()),
        }
    }
}

impl Setting for AuthMode {
    const EXPECTED: &'static str = "jwt or none";

    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "jwt" => Ok(AuthMode::Jwt),
            "none" => Ok(AuthMode::None),
            _ => Err(Self::EXPECTED.to_owned()),
        }
    }
}

/// A single address is a network too.
impl Setting for IpNet {
    const EXPECTED: &'static str = "networks such as 10.0.0.0/8, fd00::/8 or 192.0.2.1";

    fn parse(text: &str) -> Result<Self, String> {
        let address = || Some(IpNet::from(text.parse::<IpAddr>().ok()?));
        text.parse().ok().or_else(address).ok_or_else(|| Self::EXPECTED.to_owned())
    }
}

impl Setting for GrantPattern {
    const EXPECTED: &'static str = "patterns such as user:{sub}:* or global:*";

    fn parse(text: &str) -> Result<Self, String> {
        GrantPattern::parse(text).map_err(|error| format!("{} ({text}: {error})", Self::EXPECTED))
    }
}

impl Setting for AdminClaim {
    const EXPECTED: &'static str = "a claim and its value such as role=admin";

    fn parse(text: &str) -> Result<Self, String> {
        AdminClaim::parse(text).ok_or_else(|| Self::EXPECTED.to_owned())
    }
}

/// Never shown: what is given may be the private half.
impl Setting for PublicKeySource {
    const EXPECTED: &'static str = "a public key in PEM, or a file that holds it";
    const SECRET: bool = true;

    fn parse(text: &str) -> Result<Self, String> {
        Ok(PublicKeySource::parse(text))
    }
}

impl Setting for JwksUrl {
    const EXPECTED: &'static str = "a URL such as https://login.example/.well-known/jwks.json";
    /// It may hold a password, which is a mistake, and then a mistake that is told.
    const SECRET: bool = true;

    fn parse(text: &str) -> Result<Self, String> {
        JwksUrl::parse(text).map_err(|error| format!("{} ({error})", Self::EXPECTED))
    }
}

impl<S: Setting> Setting for Option<S> {
    const EXPECTED: &'static str = S::EXPECTED;
    const SECRET: bool = S::SECRET;

    fn parse(text: &str) -> Result<Self, String> {
        S::parse(text).map(Some)
    }

    fn parse_all(texts: &[String]) -> Result<Self, String> {
        if texts.is_empty() { Ok(None) } else { S::parse_all(texts).map(Some) }
    }
}

impl<S: Setting> Setting for Vec<S> {
    const EXPECTED: &'static str = S::EXPECTED;
    const SECRET: bool = S::SECRET;
    const LIST: bool = true;

    fn parse(text: &str) -> Result<Self, String> {
        S::parse(text).map(|one| vec![one])
    }

    fn parse_all(texts: &[String]) -> Result<Self, String> {
        texts.iter().map(|text| S::parse(text)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_name_their_unit() {
        for (text, ms) in [("50ms", 50), ("30s", 30_000), ("5m", 300_000), ("72h", 259_200_000), ("0s", 0)] {
            assert_eq!(parse_duration(text), Some(Duration::from_millis(ms)), "{text}");
        }
        for bad in ["", "5", "s", "-5s", "1.5h", "5 x", "3651d", "18446744073709551615d", "5µs"] {
            assert_eq!(parse_duration(bad), None, "{bad}");
        }
        for (text, bytes) in [("65536", 65536), ("64KiB", 65536), ("10 GiB", 10 << 30), ("1B", 1)] {
            assert_eq!(parse_size(text), Some(bytes), "{text}");
        }
        for bad in ["", "KiB", "1kb", "1MB", "-1", "1.5GiB", "99999999TiB"] {
            assert_eq!(parse_size(bad), None, "{bad}");
        }
    }
}
