//! The embedded log, on fjall: one directory, no server to run.
//!
//! A span of time is a keyspace (`spans`). In it a delivery stands once for each of its audiences, under
//! (audience, position), so that a reader touches only its own (`keys`, `codec`, `reader`, `merge`). One thread
//! writes (`writer`), another flushes (`flusher`).
//!
//! Why a crash leaves a prefix of what was submitted: each wake-up of the writer is one fjall batch over
//! all keyspaces, the watermark among its items. fjall writes a batch to its one journal between a start
//! and an end mark with a checksum, hands it to the kernel before it can be read, and on opening drops a
//! torn batch and everything behind it; so what is recovered is a prefix of the batches, and the
//! watermark in it names exactly what the batches before it hold. A span's tables are written out only
//! from batches that the journal has flushed before, and a journal goes only when all keyspaces' tables
//! hold what is in it. Parts without their end lie above the watermark, and when their transaction is
//! sent again they carry another attempt than the transaction's record. A backlog goes to tables without the
//! journal, and `bulk` says why that leaves a prefix as well.
//!
//! A crash of the machine may leave a hole in what was not flushed yet, and a disk that fails may have
//! kept nothing of it: `journal` says what is still whole before the engine is opened, and puts it on a
//! fresh file. What failed while the log was open, `healing` mends.
//!
//! Must not know: what a change means to anyone.

mod bulk;
mod codec;
mod database;
mod entries;
mod flusher;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod healing;
mod journal;
mod keys;
mod lookup;
mod marks;
mod merge;
mod reader;
mod shared;
mod spans;
mod staged;
mod storage;
#[cfg(test)]
mod tests;
mod trouble;
mod writer;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::{SystemTime, UNIX_EPOCH};

use futures_util::future::BoxFuture;
use tokio::sync::watch;

use self::database::failure_in;
use self::marks::MarkSet;
use self::shared::{Clock, Engine, Queued, Shared, lock};
use self::spans::{Span, SpanInfo, Spans};
use self::storage::{Applied, Storage};
use self::trouble::Troubles;
use self::writer::Writer;
use super::{
    Append, Beginning, ColumnQuery, Log, LogError, LogOptions, LogStats, Marks, Page, ReadError, ReadRequest,
    TimeLookup, Trouble, Watermark,
};
use crate::change::Mark;
use crate::cursor::Epoch;
use crate::lsn::Lsn;
use crate::position::Position;
use crate::topic::Audience;

/// An append's own weight, beside what it carries.
const APPEND_BYTES: usize = 64;

/// The log in one directory. Dropping it applies and flushes what was accepted.
pub struct FjallLog {
    shared: Arc<Shared>,
    epoch: Epoch,
    writer: Option<JoinHandle<()>>,
    flusher: Option<JoinHandle<()>>,
    /// Dropped last, when the storage is closed.
    closed: watch::Sender<()>,
}

impl FjallLog {
    /// `None` if the directory holds no log, or one that was not finished or not wholly removed. Blocks.
    pub fn open(options: &LogOptions) -> Result<Option<Arc<FjallLog>>, LogError> {
        Self::open_at(options, Arc::new(system_time))
    }

    /// Begins a new log in the place of whatever is in the directory. Blocks.
    pub fn create(options: &LogOptions, beginning: Beginning) -> Result<Arc<FjallLog>, LogError> {
        Self::create_at(options, &beginning, Arc::new(system_time))
    }

    /// Whether there is room to begin a log, or to go on with one after its disk was full. Blocks.
    pub fn has_room(options: &LogOptions) -> Result<(), LogError> {
        std::fs::create_dir_all(&options.directory).map_err(failure_in(&options.directory))?;
        Troubles::of(&options.directory).probe()
    }

    /// What an error of opening or beginning a log is called.
    pub fn trouble_with(options: &LogOptions, error: &LogError) -> Trouble {
        Troubles::of(&options.directory).name(error)
    }

    fn open_at(options: &LogOptions, clock: Clock) -> Result<Option<Arc<FjallLog>>, LogError> {
        let storage = Storage::open(&options.directory)?;
        storage.map(|storage| Self::start(storage, options, clock).map(Arc::new)).transpose()
    }

    fn create_at(
        options: &LogOptions,
        beginning: &Beginning,
        clock: Clock,
    ) -> Result<Arc<FjallLog>, LogError> {
        let storage = Storage::create(&options.directory, beginning, clock())?;
        Self::start(storage, options, clock).map(Arc::new)
    }

    fn start(storage: Storage, options: &LogOptions, clock: Clock) -> Result<Self, LogError> {
        let epoch = storage.epoch()?;
        let applied = storage.applied()?;
        let marks = MarkSet::new(storage.marks()?);
        let shapes = storage.shapes()?;
        let spans = open_spans(&storage, applied)?;
        let engine = Engine::new(storage, spans);
        let shared = Arc::new(Shared::new(engine, options.clone(), clock, applied.watermark, marks, shapes));
        let writer = Writer::new(shared.clone(), applied, epoch)?;
        // Dropped on any way out from here, so that no thread is left behind.
        let mut log =
            FjallLog { shared, epoch, writer: None, flusher: None, closed: watch::Sender::default() };
        log.writer = Some(log.spawn("rowcast-log", move |_| writer.run())?);
        log.flusher = Some(log.spawn("rowcast-flush", |shared| flusher::run(&shared))?);
        Ok(log)
    }

    fn spawn(
        &self,
        name: &str,
        body: impl FnOnce(Arc<Shared>) -> Result<(), LogError> + Send + 'static,
    ) -> Result<JoinHandle<()>, LogError> {
        let shared = self.shared.clone();
        let thread = move || {
            let mut guard = Guard { shared: shared.clone(), ended: false };
            if let Err(error) = body(shared) {
                guard.shared.fail(&error);
            }
            guard.ended = true;
        };
        thread::Builder::new()
            .name(name.to_owned())
            .spawn(thread)
            .map_err(failure_in(&self.shared.options.directory))
    }
}

/// Makes a thread's panic the end of the log, as an error is.
struct Guard {
    shared: Arc<Shared>,
    ended: bool,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if !self.ended {
            self.shared.fail(&LogError::Stopped("a thread of the log panicked".into()));
        }
    }
}

/// The spans of the list; keyspaces that it does not name are left from a crash and go.
fn open_spans(storage: &Storage, applied: Applied) -> Result<Spans, LogError> {
    let mut infos = storage.spans()?;
    infos.sort_by_key(|info| info.seq);
    if let Some(newest) = infos.last_mut() {
        newest.bytes = applied.span_bytes;
    }
    for name in storage.db.list_keyspace_names() {
        let listed = infos.iter().any(|info| info.keyspace_name() == *name);
        if name.starts_with("span-") && !listed {
            let keyspace = storage.db.keyspace(&name, Default::default).map_err(storage.failure())?;
            storage.db.delete_keyspace(keyspace).map_err(storage.failure())?;
        }
    }
    let open = |info: SpanInfo| {
        if !storage.db.keyspace_exists(&info.keyspace_name()) {
            return Err(LogError::Corrupt("the list of spans"));
        }
        let keyspace = storage.span_keyspace(&info)?;
        Ok(Span::new(info, keyspace))
    };
    infos.into_iter().map(open).collect::<Result<_, _>>().map(Spans)
}

fn system_time() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

fn size(append: &Append) -> usize {
    let state: usize =
        append.state.iter().map(|(name, value)| name.len() + value.as_ref().map_or(0, Vec::len)).sum();
    let marks = append.marks.len() * size_of::<Mark>();
    APPEND_BYTES + state + marks + append.transaction.as_ref().map_or(0, |transaction| transaction.size())
}

impl Log for FjallLog {
    fn epoch(&self) -> Epoch {
        self.epoch
    }

    fn oldest(&self) -> Position {
        self.shared.oldest()
    }

    fn watermark(&self) -> watch::Receiver<Watermark> {
        self.shared.watermark.subscribe()
    }

    fn durable(&self) -> watch::Receiver<Lsn> {
        self.shared.durable.subscribe()
    }

    fn submit(&self, append: Append) -> Result<Result<(), Append>, LogError> {
        if let Some(error) = self.shared.failure() {
            return Err(error);
        }
        let mut queue = lock(&self.shared.queue);
        if !has_room(queue.bytes, &self.shared.options) {
            return Ok(Err(append));
        }
        let marks = self.shared.add_marks(&append.marks);
        let bytes = size(&append);
        queue.bytes += bytes;
        queue.accepted += 1;
        queue.items.push_back(Queued { append, marks, bytes });
        let awaited = queue.awaited.is_some_and(|awaited| queue.bytes >= awaited);
        drop(queue);
        if awaited {
            self.shared.queue_wake.notify_one();
        }
        Ok(Ok(()))
    }

    fn room(&self) -> BoxFuture<'_, Result<(), LogError>> {
        // Counts change after the bytes have, so a wait that began too early is woken again.
        let room = |_: &_| has_room(lock(&self.shared.queue).bytes, &self.shared.options);
        Box::pin(async move { self.shared.wait_for(room).await })
    }

    fn applied(&self) -> BoxFuture<'_, Result<(), LogError>> {
        let mut queue = lock(&self.shared.queue);
        let target = queue.accepted;
        queue.urgent = !queue.items.is_empty();
        let urgent = queue.urgent && queue.awaited.is_some();
        drop(queue);
        if urgent {
            self.shared.queue_wake.notify_one();
        }
        Box::pin(async move { self.shared.wait_for(|progress| progress.applied >= target).await })
    }

    fn flush(&self) -> BoxFuture<'_, Result<(), LogError>> {
        let mut unflushed = lock(&self.shared.unflushed);
        let target = unflushed.applied;
        unflushed.urgent |= target > unflushed.flushed;
        drop(unflushed);
        self.shared.flush_wake.notify_all();
        Box::pin(async move { self.shared.wait_for(|progress| progress.flushed >= target).await })
    }

    fn failed(&self) -> BoxFuture<'_, LogError> {
        Box::pin(async move {
            self.shared.dead.cancelled().await;
            self.shared.failure().unwrap_or_else(|| LogError::Stopped("for no reason that is known".into()))
        })
    }

    fn closed(&self) -> BoxFuture<'static, ()> {
        let mut closed = self.closed.subscribe();
        Box::pin(async move { while closed.changed().await.is_ok() {} })
    }

    fn read(&self, request: &ReadRequest<'_>) -> Result<Page, ReadError> {
        reader::read(&self.shared, request)
    }

    fn lookup_time(&self, time: i64) -> Result<TimeLookup, LogError> {
        lookup::time(&self.shared, time)
    }

    fn commits(&self, after: Position, max: usize) -> Result<Vec<(u32, Lsn)>, LogError> {
        lookup::commits(&self.shared, after, max)
    }

    fn column_value(&self, query: &ColumnQuery<'_>) -> Result<Option<String>, LogError> {
        lookup::column_value(&self.shared, query)
    }

    fn marks(&self) -> Marks {
        self.shared.marks().list()
    }

    fn marks_version(&self) -> u64 {
        self.shared.marks_version.load(Ordering::Acquire)
    }

    fn mark_beyond(&self, audience: &Audience, table: &str, after: Position) -> Option<Mark> {
        self.shared.marks().furthest(audience, table).filter(|mark| mark.upto > after).cloned()
    }

    fn state(&self, name: &str) -> Result<Option<Vec<u8>>, LogError> {
        self.shared.engine()?.storage.state(name)
    }

    fn states(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, LogError> {
        self.shared.engine()?.storage.states(prefix)
    }

    fn keep(&self, name: &str, value: Option<&[u8]>) -> Result<(), LogError> {
        if let Some(error) = self.shared.failure() {
            return Err(error);
        }
        if self.shared.troubles.now().is_some() {
            return Err(self.shared.troubles.stalled());
        }
        self.shared.engine()?.storage.keep(name, value).map_err(|error| {
            self.shared.report(error);
            self.shared.troubles.stalled()
        })
    }

    fn kept(&self, name: &str) -> Result<Option<Vec<u8>>, LogError> {
        self.shared.engine()?.storage.kept(name)
    }

    fn kept_under(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, LogError> {
        self.shared.engine()?.storage.kept_under(prefix)
    }

    fn kept_page(&self, prefix: &str, after: &str, most: usize) -> Result<Vec<(String, Vec<u8>)>, LogError> {
        self.shared.engine()?.storage.kept_page(prefix, after, most)
    }

    fn stats(&self) -> LogStats {
        let engine = self.shared.engine_now();
        let engine = engine.as_ref();
        LogStats {
            bytes_on_disk: engine.and_then(|engine| engine.storage.db.disk_space().ok()).unwrap_or_default(),
            spans: engine.map_or(0, |engine| engine.spans().0.len()),
            queued_bytes: lock(&self.shared.queue).bytes,
            free_bytes: self.shared.troubles.free().unwrap_or_default(),
        }
    }

    fn trouble(&self) -> Option<Trouble> {
        self.shared.troubles.now()
    }
}

/// An append is taken whole as soon as there is any room: the queue goes over its size by at most one.
fn has_room(queued: usize, options: &LogOptions) -> bool {
    queued == 0 || queued < options.queue_size
}

impl Drop for FjallLog {
    fn drop(&mut self) {
        lock(&self.shared.queue).closed = true;
        self.shared.queue_wake.notify_all();
        let joined = self.writer.take().map(JoinHandle::join);
        lock(&self.shared.unflushed).stop = true;
        self.shared.flush_wake.notify_all();
        let flushed = self.flusher.take().map(JoinHandle::join);
        // A panic has been reported as the log's failure by the thread's guard.
        drop((joined, flushed));
    }
}

impl fmt::Debug for FjallLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FjallLog")
            .field("directory", &self.shared.options.directory)
            .field("epoch", &self.epoch)
            .finish_non_exhaustive()
    }
}
