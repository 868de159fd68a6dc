//! The engine: how it is set up and opened, and what its errors mean.
//!
//! Must not know: what is kept in it.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use fjall::compaction::Leveled;
use fjall::config::{BlockSizePolicy, CompressionPolicy, FilterPolicy};
use fjall::{CompressionType, Database, KeyspaceCreateOptions};

use super::journal::{self, Prepared};
use crate::log::LogError;

/// A full one is written out as one table; fjall holds writing back when four wait for it, so that a slow
/// disk costs about 80 MiB of memory. Smaller ones would cost more tables and more fsyncs.
pub(super) const SPAN_MEMTABLE_BYTES: u64 = 16 << 20;

const META_MEMTABLE_BYTES: u64 = 2 << 20;

/// Blocks read lately, shared by all readers.
const BLOCK_CACHE_BYTES: u64 = 16 << 20;

/// The least that fjall allows. A span that no longer grows gives back its memory once the journal has
/// moved on by so much.
const JOURNAL_BYTES: u64 = 64 << 20;

/// Few entries of one audience stand together, so a block is read for few of them; larger ones compress
/// better.
const BLOCK_BYTES: u32 = 16 << 10;

/// Tables in the top level before they are merged: more than a span comes to have, but for many small ones
/// after restarts. Spans are dropped whole, so merging would serve only readers, whom each table more costs one
/// block, and it costs as much as writing. fjall stops all writing at 30.
const TOP_LEVEL_TABLES: u8 = 24;

/// One writes tables, one merges them. The third takes what is then still asked to be merged: fjall's
/// first thread hands that on, and with nobody else to take it spins until the merge is over.
const STORAGE_THREADS: usize = 3;

/// Where a damaged journal is tried out.
pub(super) const SCRATCH: &str = "check";

/// Opens the database behind a journal that is whole.
pub(super) fn recover(directory: &Path, data: &Path) -> Result<(Database, Prepared), LogError> {
    let prepared = journal::prepare(data).map_err(failure_in(directory))?;
    match open_guarded(data) {
        Err(fjall::Error::JournalRecovery(_)) => {
            let left = journal::salvage(data, &directory.join(SCRATCH)).map_err(failure_in(directory))?;
            Ok((open_guarded(data).map_err(failure_in(directory))?, left))
        }
        opened => Ok((opened.map_err(failure_in(directory))?, prepared)),
    }
}

/// The engine does not expect every damage that a file can have.
pub(super) fn open_guarded(path: &Path) -> fjall::Result<Database> {
    catch_unwind(AssertUnwindSafe(|| open_database(path))).unwrap_or(Err(fjall::Error::Unrecoverable))
}

pub(super) fn open_database(path: &Path) -> fjall::Result<Database> {
    Database::builder(path)
        .cache_size(BLOCK_CACHE_BYTES)
        .max_journaling_size(JOURNAL_BYTES)
        .worker_threads(STORAGE_THREADS)
        .open()
}

pub(super) fn meta_options() -> KeyspaceCreateOptions {
    KeyspaceCreateOptions::default().max_memtable_size(META_MEMTABLE_BYTES)
}

pub(super) fn span_options() -> KeyspaceCreateOptions {
    KeyspaceCreateOptions::default()
        .max_memtable_size(SPAN_MEMTABLE_BYTES)
        .data_block_size_policy(BlockSizePolicy::all(BLOCK_BYTES))
        .data_block_compression_policy(CompressionPolicy::all(CompressionType::Lz4))
        // Ranges are read, single keys hardly ever.
        .filter_policy(FilterPolicy::disabled())
        .compaction_strategy(Arc::new(Leveled::default().with_l0_threshold(TOP_LEVEL_TABLES)))
}

pub(super) fn failure_in<E>(directory: &Path) -> impl Fn(E) -> LogError + '_
where
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    |source| {
        let (source, directory) = (source.into(), directory.to_owned());
        match source.downcast_ref::<fjall::Error>().is_some_and(is_damage) {
            true => LogError::Damaged { directory, source },
            false => LogError::Storage { directory, source },
        }
    }
}

/// Whether trying again leads to the same: bytes that are not what was written.
fn is_damage(error: &fjall::Error) -> bool {
    use fjall::{Error, LsmError};
    match error {
        Error::Storage(LsmError::Io(error)) | Error::Io(error) => {
            matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
        }
        Error::Poisoned | Error::Locked | Error::KeyspaceDeleted => false,
        _ => true,
    }
}
