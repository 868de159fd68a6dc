//! The last good key set on disk, so that the relay can be restarted while the issuer's endpoint is
//! down.
//!
//! Whoever can write this file can sign tokens: it belongs to this user alone, or it is not read. Its
//! keys are checked like those of an answer; it counts for the address that it came from, and not for
//! long, since a key that was withdrawn meanwhile would count with it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::fetch::JwksUrl;
use crate::auth::jwk::JwkSet;
use crate::timestamp::PgTimestamp;

/// An endpoint that is down for longer than a day has an operator, who sees the alarm; a key that is
/// withdrawn should not come back after longer than that.
const MAX_AGE_SECONDS: i64 = 24 * 3600;

/// Written from an answer of at most a mebibyte, with fewer members.
const MAX_BYTES: u64 = 2 * 1024 * 1024;

#[derive(Debug, Clone)]
pub(super) struct Kept {
    path: PathBuf,
    url: String,
}

#[derive(Serialize, Deserialize)]
struct Contents {
    url: String,
    /// Unix seconds.
    fetched_at: i64,
    set: Box<RawValue>,
}

/// Why a kept set is not used.
#[derive(Debug, thiserror::Error)]
enum KeptError {
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
    #[error("others than this user may write or read it")]
    NotPrivate,
    #[error("it is not what this program writes")]
    Malformed,
    #[error("it came from another address")]
    OtherUrl,
    #[error("it is older than a day, or from the future")]
    Age,
}

impl Kept {
    pub(super) fn new(path: &Path, url: &JwksUrl) -> Self {
        Kept { path: path.to_owned(), url: url.as_str().to_owned() }
    }

    /// What was kept, if there is anything that may be used.
    pub(super) fn read(&self) -> Option<JwkSet> {
        match self.try_read(now()) {
            Ok(set) => {
                tracing::info!(path = %self.path.display(), keys = set.keys.len(), "signing keys of the last run count until jwks_url answers");
                Some(set)
            }
            Err(KeptError::Io(error)) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "the signing keys of the last run are not used");
                None
            }
        }
    }

    /// A failure costs a later restart its keys, and nothing now.
    pub(super) async fn write(&self, set: &JwkSet) {
        let (kept, set) = (self.clone(), set.to_json());
        let written = tokio::task::spawn_blocking(move || kept.try_write(&set, now())).await;
        match written {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(path = %self.path.display(), %error, "the signing keys cannot be kept: a restart while jwks_url is down would have none");
            }
            // The runtime is shutting down.
            Err(_) => {}
        }
    }

    fn try_read(&self, now: i64) -> Result<JwkSet, KeptError> {
        let file = File::open(&self.path)?;
        let about = file.metadata()?;
        let own = about.uid() == nix::unistd::geteuid().as_raw();
        if !own || about.mode() & 0o077 != 0 {
            return Err(KeptError::NotPrivate);
        }
        if !about.is_file() || about.len() > MAX_BYTES {
            return Err(KeptError::Malformed);
        }
        let mut text = Vec::new();
        file.take(MAX_BYTES).read_to_end(&mut text)?;
        let contents: Contents = serde_json::from_slice(&text).map_err(|_| KeptError::Malformed)?;
        if contents.url != self.url {
            return Err(KeptError::OtherUrl);
        }
        if !(0..=MAX_AGE_SECONDS).contains(&now.saturating_sub(contents.fetched_at)) {
            return Err(KeptError::Age);
        }
        JwkSet::parse(contents.set.get().as_bytes()).map_err(|_| KeptError::Malformed)
    }

    /// Whole or not at all, and never readable by others, not even for a moment.
    fn try_write(&self, set: &str, now: i64) -> io::Result<()> {
        let contents =
            Contents { url: self.url.clone(), fetched_at: now, set: RawValue::from_string(set.to_owned())? };
        let directory = self.path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(directory)?;
        // Made with mode 0600.
        let mut file = tempfile::NamedTempFile::new_in(directory)?;
        file.write_all(&serde_json::to_vec(&contents)?)?;
        file.as_file().sync_all()?;
        file.persist(&self.path).map_err(|error| error.error)?;
        Ok(())
    }
}

fn now() -> i64 {
    PgTimestamp::now().unix_micros().div_euclid(1_000_000)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const NOW: i64 = 1_800_000_000;

    fn kept(directory: &Path, url: &str) -> Kept {
        Kept::new(&directory.join("data/jwks.json"), &JwksUrl::parse(url).unwrap())
    }

    #[test]
    fn a_kept_set_counts_for_its_address_and_a_day() {
        let directory = tempfile::tempdir().unwrap();
        let own = kept(directory.path(), "https://a.example/jwks");
        assert!(matches!(own.try_read(NOW), Err(KeptError::Io(_))));
        own.try_write(r#"{"keys":[]}"#, NOW).unwrap();
        assert_eq!(fs::metadata(&own.path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(own.try_read(NOW).is_ok() && own.try_read(NOW + MAX_AGE_SECONDS).is_ok());
        assert!(matches!(own.try_read(NOW + MAX_AGE_SECONDS + 1), Err(KeptError::Age)));
        assert!(matches!(own.try_read(NOW - 1), Err(KeptError::Age)));
        let other = kept(directory.path(), "https://b.example/jwks");
        assert!(matches!(other.try_read(NOW), Err(KeptError::OtherUrl)));
    }

    #[test]
    fn what_others_may_touch_is_not_read() {
        let directory = tempfile::tempdir().unwrap();
        let kept = kept(directory.path(), "https://a.example/jwks");
        kept.try_write(r#"{"keys":[]}"#, NOW).unwrap();
        for mode in [0o660, 0o604, 0o640, 0o602] {
            fs::set_permissions(&kept.path, Permissions::from_mode(mode)).unwrap();
            assert!(matches!(kept.try_read(NOW), Err(KeptError::NotPrivate)), "{mode:o}");
        }
        // Written again, it is private again.
        kept.try_write(r#"{"keys":[]}"#, NOW).unwrap();
        assert!(kept.try_read(NOW).is_ok());
        for text in ["", "{}", "{\"url\":1}", "[]", "\0"] {
            fs::write(&kept.path, text).unwrap();
            assert!(matches!(kept.try_read(NOW), Err(KeptError::Malformed)), "{text:?}");
        }
    }
}
