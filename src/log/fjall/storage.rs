//! The directory: opening, making and replacing the database that holds a log.
//!
//! `lock` is held as long as the log is open. The database stands in `data`; a new one is made in `new`
//! and takes its place by a rename once everything in it is on disk, after the old one has been moved to
//! `old`. So a crash in the middle leaves the old log or the new one, which has all that outlives the
//! old one: the next opening finishes what was begun, and clears away the rest.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Bound;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use fjall::{AbstractTree, Database, Guard, Keyspace, PersistMode};

use super::codec::{FORMAT, Reader};
use super::database::{
    SCRATCH, SPAN_MEMTABLE_BYTES, failure_in, meta_options, open_database, open_guarded, recover,
    span_options,
};
use super::journal::{Ending, Prepared};
use super::shared::Shapes;
use super::spans::SpanInfo;
use crate::change::{Mark, Shape};
use crate::cursor::Epoch;
use crate::log::{Beginning, LASTING, LogError, Watermark};
use crate::lsn::Lsn;
use crate::position::Position;

/// With so many memtables to be written out fjall makes the next write wait, and with so many tables in
/// the top level; both for ever if nobody works on it any more.
const SEALED_MEMTABLES: usize = 4;
const HALT_TABLES: usize = 28;
const TABLES_POLL: Duration = Duration::from_millis(2);

const META: &str = "meta";
const KEY_FORMAT: &str = "format";
const KEY_EPOCH: &str = "epoch";
const KEY_WATERMARK: &str = "watermark";

/// An open database and where it is.
pub(super) struct Storage {
    pub(super) directory: PathBuf,
    pub(super) db: Database,
    pub(super) meta: Keyspace,
    /// Released last.
    _lock: File,
}

/// The applied position as it stands on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Applied {
    pub(super) watermark: Watermark,
    /// What was written to the newest span.
    pub(super) span_bytes: u64,
}

impl Applied {
    fn encode(self) -> [u8; 24] {
        let mut out = [0; 24];
        out[..8].copy_from_slice(&self.watermark.lsn.get().to_be_bytes());
        out[8..16].copy_from_slice(&self.watermark.greatest_committed_at.to_be_bytes());
        out[16..].copy_from_slice(&self.span_bytes.to_be_bytes());
        out
    }

    fn decode(value: &[u8]) -> Result<Self, LogError> {
        let mut reader = Reader { rest: value, what: "the watermark" };
        let lsn = Lsn::new(u64::from_be_bytes(reader.array()?));
        let greatest_committed_at = i64::from_be_bytes(reader.array()?);
        let span_bytes = u64::from_be_bytes(reader.array()?);
        reader.end()?;
        Ok(Applied { watermark: Watermark { lsn, greatest_committed_at }, span_bytes })
    }
}

impl Storage {
    /// `None` if there is no log in the directory.
    pub(super) fn open(directory: &Path) -> Result<Option<Self>, LogError> {
        let failed = failure_in(directory);
        if !directory.try_exists().map_err(&failed)? {
            return Ok(None);
        }
        close_to_others(directory).map_err(&failed)?;
        let lock = lock(directory)?;
        let [data, new, old] = ["data", "new", "old"].map(|name| directory.join(name));
        let is_there = |path: &Path| path.try_exists().map_err(&failed);
        if !is_there(&data)? && is_there(&old)? && is_there(&new)? {
            put_in_place(&new, directory).map_err(&failed)?;
        }
        for leftover in [new, old, directory.join(SCRATCH)] {
            remove(&leftover).map_err(&failed)?;
        }
        if !data.try_exists().map_err(&failed)? {
            return Ok(None);
        }
        let (db, prepared) = recover(directory, &data)?;
        if !db.keyspace_exists(META) {
            return Err(LogError::Corrupt("the log's format"));
        }
        let meta = db.keyspace(META, meta_options).map_err(failure_in(directory))?;
        let storage = Storage { directory: directory.to_owned(), db, meta, _lock: lock };
        storage.check_format()?;
        storage.check_tables(prepared)?;
        storage.sweep()?;
        // What came back from the journal may not have been flushed before the crash.
        storage.db.persist(PersistMode::SyncAll).map_err(storage.failure())?;
        Ok(Some(storage))
    }

    /// Puts an empty log in the place of what is in the directory.
    pub(super) fn create(directory: &Path, beginning: &Beginning, now: i64) -> Result<Self, LogError> {
        let failed = failure_in(directory);
        fs::create_dir_all(directory).map_err(&failed)?;
        close_to_others(directory).map_err(&failed)?;
        let lock = lock(directory)?;
        let [data, new, old] = ["data", "new", "old"].map(|name| directory.join(name));
        for leftover in [&new, &old] {
            remove(leftover).map_err(&failed)?;
        }
        fill(&new, beginning, now, &data).map_err(failure_in(directory))?;
        if data.try_exists().map_err(&failed)? {
            fs::rename(&data, &old).map_err(&failed)?;
        }
        put_in_place(&new, directory).map_err(&failed)?;
        remove(&old).map_err(&failed)?;
        drop(lock);
        Storage::open(directory)?.ok_or(LogError::Corrupt("the new log"))
    }

    pub(super) fn data_directory(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// Turns an error of the engine or the file system into the log's.
    pub(super) fn failure<E>(&self) -> impl Fn(E) -> LogError + '_
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        failure_in(&self.directory)
    }

    /// Tables are written from flushed batches only, or behind a flushed mark, so none of them may know more
    /// than what is left of the journal: what one keyspace has and another lost would be a hole that nobody sees.
    fn check_tables(&self, journal: Prepared) -> Result<(), LogError> {
        if journal.ending == Ending::Clean {
            return Ok(());
        }
        let torn = journal.ending == Ending::Torn;
        // Whatever comes after the mark of a table is the table's.
        let marked = self.marked()?;
        for name in self.db.list_keyspace_names() {
            if marked.as_deref() == Some(&*name) {
                continue;
            }
            let keyspace = self.db.keyspace(&name, Default::default).map_err(self.failure())?;
            let ahead = match (keyspace.tree.get_highest_persisted_seqno(), journal.last) {
                (Some(persisted), Some(last)) => persisted > last,
                // Of a new journal file only the torn first batch is left.
                (Some(_), None) => !torn,
                (None, _) => false,
            };
            if ahead {
                return Err(LogError::Corrupt("its journal lost what had been flushed; check the disk"));
            }
        }
        if !torn {
            tracing::warn!(
                directory = %self.directory.display(),
                "the end of the log's journal was damaged, and is dropped, as after a crash of the machine: PostgreSQL \
                 sends it again, or a new epoch begins if PostgreSQL was told to forget it"
            );
        }
        Ok(())
    }

    /// Whether the engine still works.
    pub(super) fn check(&self) -> Result<(), LogError> {
        self.db.persist(PersistMode::Buffer).map_err(self.failure())
    }

    /// Waits until a keyspace takes `bytes` without making the engine wait in its own way: that does not
    /// end when what it waits for has failed.
    pub(super) fn wait_for_tables(&self, keyspace: &Keyspace, bytes: u64) -> Result<(), LogError> {
        // A batch may fill one memtable of its own, and one more may be about to be sealed.
        let most = if bytes > SPAN_MEMTABLE_BYTES / 2 { SEALED_MEMTABLES - 2 } else { SEALED_MEMTABLES - 1 };
        while keyspace.sealed_memtable_count() >= most || keyspace.l0_table_count() >= HALT_TABLES {
            self.check()?;
            thread::sleep(TABLES_POLL);
        }
        Ok(())
    }

    fn check_format(&self) -> Result<(), LogError> {
        let value = self.required(KEY_FORMAT, "the log's format")?;
        let mut reader = Reader { rest: &value, what: "the log's format" };
        match u32::from_be_bytes(reader.array()?) {
            FORMAT => reader.end(),
            found => Err(LogError::Format { found, expected: FORMAT }),
        }
    }

    pub(super) fn epoch(&self) -> Result<Epoch, LogError> {
        let value = self.required(KEY_EPOCH, "the epoch")?;
        serde_json::from_slice(&value).map_err(|_| LogError::Corrupt("the epoch"))
    }

    pub(super) fn applied(&self) -> Result<Applied, LogError> {
        Applied::decode(&self.required(KEY_WATERMARK, "the watermark")?)
    }

    pub(super) fn put_applied(&self, batch: &mut fjall::OwnedWriteBatch, applied: Applied) {
        batch.insert(&self.meta, KEY_WATERMARK, applied.encode().as_slice());
    }

    pub(super) fn state(&self, name: &str) -> Result<Option<Vec<u8>>, LogError> {
        let value = self.meta.get(state_key(name)).map_err(self.failure())?;
        Ok(value.map(|value| value.to_vec()))
    }

    pub(super) fn states(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, LogError> {
        self.named(&state_key(""), prefix)
    }

    pub(super) fn keep(&self, name: &str, value: Option<&[u8]>) -> Result<(), LogError> {
        self.wait_for_tables(&self.meta, 0)?;
        let kept = match value {
            Some(value) => self.meta.insert(kept_key(name), value),
            None => self.meta.remove(kept_key(name)),
        };
        kept.map_err(self.failure())
    }

    pub(super) fn kept(&self, name: &str) -> Result<Option<Vec<u8>>, LogError> {
        let value = self.meta.get(kept_key(name)).map_err(self.failure())?;
        Ok(value.map(|value| value.to_vec()))
    }

    pub(super) fn kept_under(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, LogError> {
        self.named(&kept_key(""), prefix)
    }

    pub(super) fn kept_page(
        &self,
        prefix: &str,
        after: &str,
        most: usize,
    ) -> Result<Vec<(String, Vec<u8>)>, LogError> {
        let prefix = kept_key(prefix);
        let from =
            if after.is_empty() { Bound::Included(prefix.clone()) } else { Bound::Excluded(kept_key(after)) };
        let kind = kept_key("");
        let mut page = Vec::new();
        for guard in self.meta.range((from, Bound::Unbounded)).take(most) {
            let (key, value) = guard.into_inner().map_err(self.failure())?;
            if !key.starts_with(prefix.as_bytes()) {
                break;
            }
            page.push((name_of(&key, &kind)?, value.to_vec()));
        }
        Ok(page)
    }

    /// Names and values of one kind, whose names begin with `prefix`.
    fn named(&self, kind: &str, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, LogError> {
        let decode = |guard: Guard| {
            let (key, value) = guard.into_inner().map_err(self.failure())?;
            Ok((name_of(&key, kind)?, value.to_vec()))
        };
        self.meta.prefix(format!("{kind}{prefix}")).map(decode).collect()
    }

    pub(super) fn shapes(&self) -> Result<Shapes, LogError> {
        let shapes: Vec<Shape> = self.all("shape/", "a shape")?;
        Ok(shapes.into_iter().map(|shape| (shape.id, Arc::new(shape))).collect())
    }

    pub(super) fn marks(&self) -> Result<Vec<Mark>, LogError> {
        self.all("mark/", "a mark")
    }

    /// From the oldest.
    pub(super) fn spans(&self) -> Result<Vec<SpanInfo>, LogError> {
        self.all("span/", "a span")
    }

    /// The engine does not flush the directory in which a keyspace is an entry.
    pub(super) fn new_span_keyspace(&self, info: &SpanInfo) -> Result<Keyspace, LogError> {
        let keyspace = self.span_keyspace(info)?;
        sync_entry(&keyspace).map_err(self.failure())?;
        Ok(keyspace)
    }

    pub(super) fn span_keyspace(&self, info: &SpanInfo) -> Result<Keyspace, LogError> {
        self.db.keyspace(&info.keyspace_name(), span_options).map_err(self.failure())
    }

    fn required(&self, key: &str, what: &'static str) -> Result<fjall::UserValue, LogError> {
        self.meta.get(key).map_err(self.failure())?.ok_or(LogError::Corrupt(what))
    }

    fn all<T: serde::de::DeserializeOwned>(
        &self,
        prefix: &str,
        what: &'static str,
    ) -> Result<Vec<T>, LogError> {
        let decode = |guard: Guard| {
            let value = guard.value().map_err(self.failure())?;
            serde_json::from_slice(&value).map_err(|_| LogError::Corrupt(what))
        };
        self.meta.prefix(prefix).map(decode).collect()
    }
}

fn name_of(key: &[u8], kind: &str) -> Result<String, LogError> {
    let name = std::str::from_utf8(key).ok().and_then(|key| key.strip_prefix(kind));
    Ok(name.ok_or(LogError::Corrupt("a name"))?.to_owned())
}

pub(super) fn state_key(name: &str) -> String {
    format!("state/{name}")
}

fn kept_key(name: &str) -> String {
    format!("kept/{name}")
}

pub(super) fn shape_key(id: u32) -> String {
    format!("shape/{id:08x}")
}

pub(super) fn mark_key(mark: &Mark) -> String {
    // Neither a table's nor an audience's text holds control characters.
    format!("mark/{}\0{}", mark.table, mark.audience.as_ref().map_or("", |audience| audience.as_str()))
}

pub(super) fn span_key(seq: u64) -> String {
    format!("span/{seq:016x}")
}

/// JSON of a value whose type cannot fail to be written.
pub(super) fn json<T: serde::Serialize>(value: &T) -> Result<Vec<u8>, LogError> {
    serde_json::to_vec(value).map_err(|_| LogError::Corrupt("a value that cannot be written"))
}

/// The log holds everybody's rows, and the secret that signs messages. A directory of another owner (a
/// mounted volume) cannot be closed, and is no reason not to run.
fn close_to_others(directory: &Path) -> io::Result<()> {
    let mode = fs::metadata(directory)?.permissions().mode() & 0o7777;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    match fs::set_permissions(directory, fs::Permissions::from_mode(mode & 0o7700)) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            tracing::warn!(directory = %directory.display(), "other users of this machine may read the log, which holds all rows; close its directory to them");
            Ok(())
        }
        done => done,
    }
}

/// A new log that is whole becomes the directory's, where there is none any more.
fn put_in_place(new: &Path, directory: &Path) -> io::Result<()> {
    fs::rename(new, directory.join("data"))?;
    File::open(directory)?.sync_all()
}

/// A database with nothing but a beginning in it and what outlives its predecessor, all of it on disk,
/// closed again.
fn fill(
    path: &Path,
    beginning: &Beginning,
    now: i64,
    predecessor: &Path,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let db = open_database(path)?;
    let meta = db.keyspace(META, meta_options)?;
    let span = SpanInfo {
        seq: 0,
        first: Position::boundary(beginning.start),
        first_greatest_committed_at: beginning.greatest_committed_at,
        created_at: now,
        bytes: 0,
    };
    sync_entry(&db.keyspace(&span.keyspace_name(), span_options)?)?;
    let greatest_committed_at = beginning.greatest_committed_at;
    let watermark = Watermark { lsn: beginning.start, greatest_committed_at };
    let mut batch = db.batch();
    batch.insert(&meta, KEY_FORMAT, FORMAT.to_be_bytes().as_slice());
    batch.insert(&meta, KEY_EPOCH, json(&beginning.epoch)?);
    batch.insert(&meta, KEY_WATERMARK, Applied { watermark, span_bytes: 0 }.encode().as_slice());
    batch.insert(&meta, span_key(0), json(&span)?);
    for (name, value) in &beginning.state {
        batch.insert(&meta, state_key(name), value.as_slice());
    }
    batch.commit()?;
    if let Err(error) = take_over(predecessor, &meta) {
        // A log that can no longer be read must not keep a new one from beginning.
        tracing::warn!(%error, "what the old log kept beside its changes (the registry of devices) could not be taken over");
    }
    db.persist(PersistMode::SyncAll)?;
    Ok(())
}

/// Copies what outlives an epoch, one value at a time.
fn take_over(predecessor: &Path, to: &Keyspace) -> fjall::Result<()> {
    if !predecessor.try_exists()? {
        return Ok(());
    }
    let db = open_guarded(predecessor)?;
    if !db.keyspace_exists(META) {
        return Ok(());
    }
    for guard in db.keyspace(META, meta_options)?.prefix(kept_key(LASTING)) {
        let (key, value) = guard.into_inner()?;
        to.insert(key, value)?;
    }
    Ok(())
}

fn sync_entry(keyspace: &Keyspace) -> io::Result<()> {
    keyspace.path().parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

/// A process that is ending, or a child between its fork and its exec, holds the lock a moment longer.
const LOCK_PATIENCE: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 5 });

fn lock(directory: &Path) -> Result<File, LogError> {
    let failed = failure_in(directory);
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(directory.join("lock"));
    let file = file.map_err(&failed)?;
    let deadline = Instant::now() + LOCK_PATIENCE;
    while let Err(error) = file.try_lock() {
        match error {
            fs::TryLockError::WouldBlock if Instant::now() < deadline => thread::sleep(LOCK_PATIENCE / 50),
            fs::TryLockError::WouldBlock => {
                return Err(failed(io::Error::other("it is still open, here or in another process")));
            }
            fs::TryLockError::Error(error) => return Err(failed(error)),
        }
    }
    Ok(file)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
