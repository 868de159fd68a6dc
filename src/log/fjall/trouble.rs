//! A disk that is full or fails: what it is called, who is told, and when it is worth trying again.
//!
//! The storage engine says only that it is poisoned; what is wrong shows when one asks the file system
//! for its room and writes a little. Told once for each trouble, not for each try.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};
use std::time::Instant;

use nix::sys::statvfs::statvfs;

use super::shared::describe;
use crate::log::{LogError, Trouble, TroubleKind};

/// With less than this free after a failure, the log waits: reopening writes the newest journal file anew
/// (64 MiB at most), and then as much again has to fit before the first tables are written.
pub(super) const ROOM_BYTES: u64 = 128 << 20;

/// What is written to see whether the disk takes it.
const PROBE_BYTES: usize = 64 << 10;

const PROBE: &str = "probe";

/// What is wrong now, for all who ask.
pub(super) struct Troubles {
    directory: PathBuf,
    now: RwLock<Option<(Trouble, Instant)>>,
}

impl Troubles {
    pub(super) fn of(directory: &Path) -> Self {
        Troubles { directory: directory.to_owned(), now: RwLock::default() }
    }

    pub(super) fn now(&self) -> Option<Trouble> {
        self.now.read().unwrap_or_else(PoisonError::into_inner).as_ref().map(|(trouble, _)| trouble.clone())
    }

    pub(super) fn stalled(&self) -> LogError {
        let what = self.now().map(|trouble| trouble.what);
        LogError::Stalled(what.unwrap_or_else(|| "its storage is being opened anew".into()))
    }

    /// The log stops taking anything, or tried in vain. The same trouble is told once.
    pub(super) fn rise(&self, error: &LogError) {
        let trouble = self.name(error);
        let mut now = self.now.write().unwrap_or_else(PoisonError::into_inner);
        let (news, since) = match &*now {
            None => (true, Instant::now()),
            Some((known, since)) => (known.kind != trouble.kind, *since),
        };
        if news {
            metrics::counter!("rowcast_log_failures_total").increment(1);
            tracing::error!(
                directory = %self.directory.display(),
                error = describe(error),
                "the log takes nothing more: {}. Nothing is lost, PostgreSQL keeps what is not confirmed; \
                 the log goes on by itself when its disk works again",
                trouble.what
            );
        }
        *now = Some((trouble, since));
    }

    pub(super) fn pass(&self) {
        let over = self.now.write().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((_, since)) = over {
            tracing::warn!(directory = %self.directory.display(), after = ?since.elapsed(), "the log goes on: its disk works again");
        }
    }

    /// Tries the disk: whether it has room, and keeps what is written.
    pub(super) fn probe(&self) -> Result<(), LogError> {
        let failed = |source: io::Error| LogError::Storage {
            directory: self.directory.clone(),
            source: source.into(),
        };
        if self.free().is_some_and(|free| free < ROOM_BYTES) {
            return Err(failed(io::ErrorKind::StorageFull.into()));
        }
        let path = self.directory.join(PROBE);
        let written = File::create(&path).and_then(|mut file| {
            file.write_all(&vec![1; PROBE_BYTES])?;
            file.sync_all()
        });
        let removed = fs::remove_file(&path);
        written.and(removed).map_err(failed)
    }

    pub(super) fn free(&self) -> Option<u64> {
        free_bytes(&self.directory)
    }

    pub(super) fn name(&self, error: &LogError) -> Trouble {
        let directory = self.directory.display();
        let free = self.free();
        if error.is_full() || free.is_some_and(|free| free < ROOM_BYTES) {
            let (free, room) = (free.unwrap_or(0) >> 20, ROOM_BYTES >> 20);
            let what = format!(
                "the disk of {directory} is full: {free} MiB are free, and {room} MiB are needed to go on; \
                 make room on it"
            );
            return Trouble { kind: TroubleKind::DiskFull, what: what.into() };
        }
        let what = format!("the disk of {directory} fails; see to it, or move the directory to another one");
        Trouble { kind: TroubleKind::DiskFails, what: what.into() }
    }
}

/// Bytes that the file system of a directory has left for us.
#[expect(clippy::useless_conversion, reason = "the types differ between systems")]
pub(super) fn free_bytes(directory: &Path) -> Option<u64> {
    let found = statvfs(directory).ok()?;
    Some(u64::from(found.blocks_available()).saturating_mul(u64::from(found.fragment_size())))
}

/// What the first failure was called: the engine's own name for it says nothing.
pub(super) fn cause(first: LogError, probed: Result<(), LogError>) -> LogError {
    match probed {
        Err(error) if !first.is_full() => error,
        _ => first,
    }
}
