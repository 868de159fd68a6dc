//! Any text as a connection string: refused with a reason, or servers to try; and no password where it shows.

use super::Target;
use super::passfile::{Wanted, lookup};

/// What shows of every connection string.
const WORDS: [&str; 4] =
    ["application_name", "(password redacted)", "connect_timeout", "/var/run/postgresql/.s.PGSQL.5432"];

pub(crate) fn connection_string(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    match Target::parse_in(&text, &|_| None) {
        Ok(target) => {
            assert!(!target.endpoints().is_empty());
            let shown = format!("{target:?} {}", target.servers());
            for endpoint in target.endpoints() {
                assert_ne!(endpoint.port, 0);
                // One that stands elsewhere too, as a host or a user, is no secret.
                if let Some(password) = endpoint.password().filter(|password| password.len() >= 12)
                    && text.matches(password).count() == 1
                    && !WORDS.iter().any(|word| word.contains(password))
                {
                    assert!(!shown.contains(password), "{shown}");
                }
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    let _ = lookup(&text, Wanted { host: "h", port: 5432, dbname: "d", user: "u" });
}
