//! What the log's handle, its writer, its flusher and its readers share.
//!
//! Locks are held for moments and never one inside another, but for the marks' inside the queue's.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::flusher::Unflushed;
use super::marks::{MarkChange, MarkSet};
use super::spans::Spans;
use super::storage::Storage;
use super::trouble::Troubles;
use crate::change::{Mark, Shape};
use crate::log::{Append, LogError, LogOptions, Watermark};
use crate::lsn::Lsn;
use crate::position::Position;

/// The time, microseconds since 1970.
pub(super) type Clock = Arc<dyn Fn() -> i64 + Send + Sync>;

/// Looked into for each entry that is read: few, so an ordered map is quicker than to hash.
pub(super) type Shapes = BTreeMap<u32, Arc<Shape>>;

/// How long a reader waits while the storage is opened anew.
const REOPENING: Duration = Duration::from_secs(5);

pub(super) struct Shared {
    /// `None` while it is opened anew.
    engine: Mutex<Option<Arc<Engine>>>,
    engine_wake: Condvar,
    pub(super) troubles: Troubles,
    pub(super) options: LogOptions,
    pub(super) clock: Clock,
    pub(super) queue: Mutex<Queue>,
    pub(super) queue_wake: Condvar,
    pub(super) unflushed: Mutex<Unflushed>,
    pub(super) flush_wake: Condvar,
    /// With `unflushed`: there is less of it.
    pub(super) flushed_wake: Condvar,
    pub(super) watermark: watch::Sender<Watermark>,
    pub(super) durable: watch::Sender<Lsn>,
    pub(super) progress: watch::Sender<Progress>,
    /// Once it has failed. Whoever watches over the log is not woken by its progress.
    pub(super) dead: CancellationToken,
    pub(super) marks_version: AtomicU64,
    marks: RwLock<Arc<MarkSet>>,
    /// Of the spans; known also while there is no engine.
    oldest: RwLock<Position>,
    shapes: RwLock<Arc<Shapes>>,
}

/// An open storage with its spans. Whoever reads or writes holds it for as long as that takes; nobody
/// holds it when the storage is opened anew.
pub(super) struct Engine {
    spans: RwLock<Arc<Spans>>,
    pub(super) storage: Storage,
}

impl Engine {
    pub(super) fn new(storage: Storage, spans: Spans) -> Self {
        Engine { storage, spans: RwLock::new(Arc::new(spans)) }
    }

    pub(super) fn spans(&self) -> Arc<Spans> {
        self.spans.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What is accepted and not yet applied.
#[derive(Debug, Default)]
pub(super) struct Queue {
    pub(super) items: VecDeque<Queued>,
    /// Of the items and of what the writer is applying right now.
    pub(super) bytes: usize,
    pub(super) accepted: u64,
    /// The writer waits until there are so many bytes: only then is it woken, which is a system call.
    pub(super) awaited: Option<usize>,
    /// Somebody waits for what is queued: it is not let gather.
    pub(super) urgent: bool,
    pub(super) closed: bool,
    /// What the storage failed with, for the writer to mend.
    pub(super) broken: Option<LogError>,
}

#[derive(Debug)]
pub(super) struct Queued {
    pub(super) append: Append,
    pub(super) marks: Vec<MarkChange>,
    pub(super) bytes: usize,
}

/// Counts of appends, for those who wait.
#[derive(Debug, Clone, Default)]
pub(super) struct Progress {
    pub(super) applied: u64,
    pub(super) flushed: u64,
    pub(super) failed: Option<Arc<str>>,
}

impl Shared {
    pub(super) fn new(
        engine: Engine,
        options: LogOptions,
        clock: Clock,
        watermark: Watermark,
        marks: MarkSet,
        shapes: Shapes,
    ) -> Self {
        let oldest = engine.spans().oldest();
        Shared {
            engine: Mutex::new(Some(Arc::new(engine))),
            engine_wake: Condvar::new(),
            troubles: Troubles::of(&options.directory),
            options,
            clock,
            queue: Mutex::default(),
            queue_wake: Condvar::new(),
            unflushed: Mutex::default(),
            flush_wake: Condvar::new(),
            flushed_wake: Condvar::new(),
            watermark: watch::Sender::new(watermark),
            durable: watch::Sender::new(watermark.lsn),
            progress: watch::Sender::new(Progress::default()),
            dead: CancellationToken::new(),
            marks_version: AtomicU64::new(0),
            marks: RwLock::new(Arc::new(marks)),
            oldest: RwLock::new(oldest),
            shapes: RwLock::new(Arc::new(shapes)),
        }
    }

    /// The storage; waits a moment for one that is opened anew.
    pub(super) fn engine(&self) -> Result<Arc<Engine>, LogError> {
        let deadline = Instant::now() + REOPENING;
        let mut engine = lock(&self.engine);
        loop {
            match &*engine {
                Some(engine) => return Ok(engine.clone()),
                None if deadline <= Instant::now() => return Err(self.troubles.stalled()),
                None => engine = wait_until(&self.engine_wake, engine, deadline),
            }
        }
    }

    /// The same, at once or not at all.
    pub(super) fn engine_now(&self) -> Option<Arc<Engine>> {
        lock(&self.engine).clone()
    }

    /// Takes the storage from new readers; the last of the old ones closes it.
    pub(super) fn take_engine(&self) -> Option<Arc<Engine>> {
        lock(&self.engine).take()
    }

    pub(super) fn put_engine(&self, engine: Engine) {
        self.set_oldest(engine.spans().oldest());
        *lock(&self.engine) = Some(Arc::new(engine));
        self.engine_wake.notify_all();
    }

    /// Tells the writer that the storage has failed.
    pub(super) fn report(&self, error: LogError) {
        lock(&self.queue).broken.get_or_insert(error);
        self.queue_wake.notify_all();
    }

    pub(super) fn marks(&self) -> Arc<MarkSet> {
        self.marks.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts marks in force and says what has to be written. Called in the order of appends.
    pub(super) fn add_marks(&self, marks: &[Mark]) -> Vec<MarkChange> {
        self.change_marks(|set| set.with(marks))
    }

    pub(super) fn change_marks(
        &self,
        change: impl FnOnce(&MarkSet) -> Option<(MarkSet, Vec<MarkChange>)>,
    ) -> Vec<MarkChange> {
        let mut current = self.marks.write().unwrap_or_else(PoisonError::into_inner);
        let Some((set, changes)) = change(&current) else { return Vec::new() };
        *current = Arc::new(set);
        self.marks_version.fetch_add(1, Ordering::AcqRel);
        changes
    }

    pub(super) fn replace_marks(&self, marks: MarkSet) {
        *self.marks.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(marks);
        self.marks_version.fetch_add(1, Ordering::AcqRel);
    }

    pub(super) fn oldest(&self) -> Position {
        *self.oldest.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_oldest(&self, oldest: Position) {
        *self.oldest.write().unwrap_or_else(PoisonError::into_inner) = oldest;
    }

    pub(super) fn set_spans(&self, engine: &Engine, spans: Spans) {
        self.set_oldest(spans.oldest());
        *engine.spans.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(spans);
    }

    pub(super) fn shapes(&self) -> Arc<Shapes> {
        self.shapes.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn add_shape(&self, shape: Arc<Shape>) {
        let mut current = self.shapes.write().unwrap_or_else(PoisonError::into_inner);
        Arc::make_mut(&mut current).insert(shape.id, shape);
    }

    pub(super) fn replace_shapes(&self, shapes: Shapes) {
        *self.shapes.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(shapes);
    }

    pub(super) fn failure(&self) -> Option<LogError> {
        self.progress.borrow().failed.clone().map(LogError::Stopped)
    }

    /// The first failure stands; everybody who waits learns of it.
    pub(super) fn fail(&self, error: &LogError) {
        self.progress.send_if_modified(|progress| {
            let first = progress.failed.is_none();
            if first {
                progress.failed = Some(describe(error).into());
            }
            first
        });
        self.dead.cancel();
        lock(&self.unflushed).stop = true;
        self.flush_wake.notify_all();
        self.flushed_wake.notify_all();
        lock(&self.queue).closed = true;
        self.queue_wake.notify_all();
    }

    /// Waits until `reached` is true of the counts, or the log has failed.
    pub(super) async fn wait_for(&self, reached: impl Fn(&Progress) -> bool) -> Result<(), LogError> {
        let mut progress = self.progress.subscribe();
        let done = progress.wait_for(|progress| reached(progress) || progress.failed.is_some()).await;
        match done {
            Ok(progress) if reached(&progress) => Ok(()),
            Ok(progress) => Err(LogError::Stopped(progress.failed.clone().unwrap_or_default())),
            Err(_) => Err(LogError::Stopped("the log was closed".into())),
        }
    }
}

/// The error with its causes.
pub(super) fn describe(error: &LogError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// What these locks guard is whole between any two statements, so a panic elsewhere does not spoil it.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn wait<'a, T>(condvar: &Condvar, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
    condvar.wait(guard).unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn wait_until<'a, T>(
    condvar: &Condvar,
    guard: MutexGuard<'a, T>,
    deadline: Instant,
) -> MutexGuard<'a, T> {
    let timeout = deadline.saturating_duration_since(Instant::now());
    condvar.wait_timeout(guard, timeout).unwrap_or_else(PoisonError::into_inner).0
}
