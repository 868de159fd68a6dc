//! Where an answer waits for its device: pages in memory, and in a file beyond that.
//!
//! Written once, at the database's speed, read at the device's. A page is what one request gets, about
//! 1 MiB. All spools share a budget; one that cannot be held is refused before the database is kept
//! waiting for it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

/// A page is closed when it holds so many bytes.
const PAGE_BYTES: usize = 1024 * 1024;
/// One answer holds no more than this in memory, so that a few large ones leave room for many small.
const MEMORY_OF_ONE: u64 = 8 * 1024 * 1024;

/// With this begin the names of temporary files, where they have one.
const TEMPORARY: &[u8] = b".tmp";

/// What all spools together may hold.
#[derive(Debug)]
pub(super) struct Budget {
    memory: AtomicU64,
    disk: AtomicU64,
    directory: PathBuf,
}

impl Budget {
    /// Removes what a crash may have left in the directory.
    pub(super) fn new(memory: u64, disk: u64, directory: PathBuf) -> Self {
        remove_left_over(&directory);
        Budget { memory: AtomicU64::new(memory), disk: AtomicU64::new(disk), directory }
    }
}

/// Where files without a name are unknown they have one for a moment; a crash may leave it.
fn remove_left_over(directory: &Path) {
    // Nothing was spooled here yet, or nothing can be: then that is told when it is tried.
    let Ok(entries) = fs::read_dir(directory) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        let ours = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(TEMPORARY));
        if ours && let Err(error) = fs::remove_file(&path) {
            tracing::warn!(path = %path.display(), %error, "a file that a crash left in the spool could not be removed");
        }
    }
}

fn take(left: &AtomicU64, bytes: u64) -> bool {
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes)).is_ok()
}

#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    #[error("the answers that wait for their devices fill the space that they may take")]
    Full,
    #[error("an answer could not be written to a file in {directory}: {source}")]
    Write { directory: PathBuf, source: io::Error },
    #[error("an answer could not be read back: {0}")]
    Read(io::Error),
}

/// What was put in, as it is read back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry<'a> {
    /// Number of its table in the answer.
    pub(super) table: u16,
    /// The members of a JSON object.
    pub(super) members: &'a str,
    /// The record alone.
    pub(super) record: &'a str,
}

/// Finished pages, and what they hold of the budget.
#[derive(Debug)]
pub(super) struct Spool {
    budget: Arc<Budget>,
    pages: Vec<Page>,
    file: Option<File>,
    memory: u64,
    disk: u64,
    entries: u64,
}

#[derive(Debug)]
enum Page {
    Memory(Bytes),
    File { offset: u64, length: usize },
}

impl Spool {
    pub(super) fn new(budget: Arc<Budget>) -> Self {
        Spool { budget, pages: Vec::new(), file: None, memory: 0, disk: 0, entries: 0 }
    }

    pub(super) fn pages(&self) -> usize {
        self.pages.len()
    }

    pub(super) fn entries(&self) -> u64 {
        self.entries
    }

    /// Blocks on the disk. `None`: there is no such page.
    pub(super) fn page(&self, number: usize) -> Result<Option<Bytes>, SpoolError> {
        match (self.pages.get(number), &self.file) {
            (Some(Page::Memory(bytes)), _) => Ok(Some(bytes.clone())),
            (Some(Page::File { offset, length }), Some(file)) => {
                let mut bytes = vec![0; *length];
                file.read_exact_at(&mut bytes, *offset).map_err(SpoolError::Read)?;
                Ok(Some(bytes.into()))
            }
            _ => Ok(None),
        }
    }

    /// Adds a page. Blocks on the disk.
    pub(super) fn add(&mut self, page: PageBuilder) -> Result<(), SpoolError> {
        if page.bytes.is_empty() {
            return Ok(());
        }
        self.entries += page.entries;
        let bytes = page.bytes;
        let size = bytes.len() as u64;
        if self.memory + size <= MEMORY_OF_ONE && take(&self.budget.memory, size) {
            self.memory += size;
            self.pages.push(Page::Memory(bytes.into()));
            return Ok(());
        }
        if !take(&self.budget.disk, size) {
            return Err(SpoolError::Full);
        }
        let offset = self.disk;
        if let Err(source) = self.write(&bytes, offset) {
            self.budget.disk.fetch_add(size, Ordering::Relaxed);
            return Err(SpoolError::Write { directory: self.budget.directory.clone(), source });
        }
        self.disk += size;
        self.pages.push(Page::File { offset, length: bytes.len() });
        Ok(())
    }

    fn write(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let directory = &self.budget.directory;
        let file = match &mut self.file {
            Some(file) => file,
            empty => {
                // Without a name: it is gone with the process, however that ends.
                fs::create_dir_all(directory)?;
                empty.insert(tempfile::tempfile_in(directory)?)
            }
        };
        file.write_all_at(bytes, offset)
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        self.budget.memory.fetch_add(self.memory, Ordering::Relaxed);
        self.budget.disk.fetch_add(self.disk, Ordering::Relaxed);
    }
}

/// A page being filled.
#[derive(Debug, Default)]
pub(super) struct PageBuilder {
    bytes: Vec<u8>,
    entries: u64,
}

/// Table, length of the members, beginning and length of the record in them.
const HEAD: usize = 2 + 3 * 8;

impl PageBuilder {
    pub(super) fn is_full(&self) -> bool {
        self.bytes.len() >= PAGE_BYTES
    }

    /// `write` appends the members, and gives the record's place among the bytes that it appended.
    pub(super) fn push(&mut self, table: u16, write: impl FnOnce(&mut Vec<u8>) -> std::ops::Range<usize>) {
        let head = self.bytes.len();
        self.bytes.extend_from_slice(&[0; HEAD]);
        let start = self.bytes.len();
        let record = write(&mut self.bytes);
        let length = self.bytes.len() - start;
        self.bytes[head..head + 2].copy_from_slice(&table.to_be_bytes());
        for (place, value) in [length, record.start - start, record.len()].into_iter().enumerate() {
            let at = head + 2 + place * 8;
            self.bytes[at..at + 8].copy_from_slice(&(value as u64).to_be_bytes());
        }
        self.entries += 1;
    }
}

/// The entries of a page, in order.
pub(super) fn entries(page: &[u8]) -> impl Iterator<Item = Entry<'_>> {
    let mut rest = page;
    std::iter::from_fn(move || {
        let (table, tail) = rest.split_first_chunk::<2>()?;
        let mut tail = tail;
        let mut number = || {
            let (number, after) = tail.split_first_chunk::<8>()?;
            tail = after;
            usize::try_from(u64::from_be_bytes(*number)).ok()
        };
        let (length, start, record) = (number()?, number()?, number()?);
        let (members, after) = tail.split_at_checked(length)?;
        rest = after;
        let members = std::str::from_utf8(members).ok()?;
        let record = members.get(start..start.checked_add(record)?)?;
        Some(Entry { table: u16::from_be_bytes(*table), members, record })
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn filled(count: usize, text: &str) -> PageBuilder {
        let mut page = PageBuilder::default();
        for table in 0..count {
            page.push(u16::try_from(table).unwrap(), |out| {
                out.extend_from_slice(b"\"record\":");
                let start = out.len();
                out.extend_from_slice(text.as_bytes());
                start..out.len()
            });
        }
        page
    }

    #[test]
    fn pages_come_back_from_memory_and_from_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let budget = Arc::new(Budget::new(100, 150, directory.path().join("spool")));
        let mut spool = Spool::new(Arc::clone(&budget));
        spool.add(filled(2, "{}")).unwrap();
        spool.add(filled(2, "{\"a\":1}")).unwrap();
        spool.add(filled(1, "{\"b\":2}")).unwrap();
        assert_eq!((spool.pages(), spool.entries()), (3, 5));
        assert!(matches!(spool.pages[..], [Page::Memory(_), Page::File { .. }, Page::File { .. }]));
        let records = |number| {
            let page = spool.page(number).unwrap().unwrap();
            entries(&page).map(|entry| (entry.table, entry.record.to_owned())).collect::<Vec<_>>()
        };
        assert_eq!(records(0), [(0, "{}".to_owned()), (1, "{}".to_owned())]);
        assert_eq!(records(1), [(0, "{\"a\":1}".to_owned()), (1, "{\"a\":1}".to_owned())]);
        assert_eq!(records(2), [(0, "{\"b\":2}".to_owned())]);
        assert!(spool.page(3).unwrap().is_none());
        assert_eq!(std::fs::read_dir(directory.path().join("spool")).unwrap().count(), 0, "it has no name");
        drop(spool);
        let left = (budget.memory.load(Ordering::Relaxed), budget.disk.load(Ordering::Relaxed));
        assert_eq!(left, (100, 150));
    }

    #[test]
    fn what_has_no_room_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let mut spool = Spool::new(Arc::new(Budget::new(0, 60, directory.path().to_owned())));
        spool.add(filled(1, "{}")).unwrap();
        assert!(matches!(spool.add(filled(3, "{}")), Err(SpoolError::Full)));
        let missing = Arc::new(Budget::new(0, 60, "/proc/nowhere".into()));
        let mut failed = Spool::new(Arc::clone(&missing));
        assert!(matches!(failed.add(filled(1, "{}")), Err(SpoolError::Write { .. })));
        assert_eq!(missing.disk.load(Ordering::Relaxed), 60, "what could not be written takes nothing");
    }

    #[test]
    fn what_a_crash_left_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        for name in [".tmpAbCdEf", "notes.txt"] {
            fs::write(directory.path().join(name), "x").unwrap();
        }
        drop(Budget::new(0, 0, directory.path().to_owned()));
        let left: Vec<_> = fs::read_dir(directory.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["notes.txt"]);
    }

    #[test]
    fn damaged_pages_end_early() {
        let page = filled(2, "{}").bytes;
        for end in 0..page.len() {
            assert!(entries(&page[..end]).count() < 2);
        }
    }
}
