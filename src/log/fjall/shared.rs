//! What the log's handle, its writer, its flusher and its readers share.
//!
//! Locks are held for moments and never one inside another, but for the marks' inside the queue's.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Instant;

use tokio::sync::watch;

use super::flusher::Unflushed;
use super::marks::{MarkChange, MarkSet};
use super::spans::Spans;
use super::storage::Storage;
use crate::change::{Mark, Shape};
use crate::log::{Append, LogError, LogOptions, Watermark};
use crate::lsn::Lsn;

/// The time, microseconds since 1970.
pub(super) type Clock = Arc<dyn Fn() -> i64 + Send + Sync>;

pub(super) type Shapes = HashMap<u32, Arc<Shape>>;

pub(super) struct Shared {
    pub(super) storage: Storage,
    pub(super) options: LogOptions,
    pub(super) clock: Clock,
    pub(super) queue: Mutex<Queue>,
    pub(super) queue_wake: Condvar,
    pub(super) unflushed: Mutex<Unflushed>,
    pub(super) flush_wake: Condvar,
    pub(super) watermark: watch::Sender<Watermark>,
    pub(super) durable: watch::Sender<Lsn>,
    pub(super) progress: watch::Sender<Progress>,
    pub(super) marks_version: AtomicU64,
    marks: RwLock<Arc<MarkSet>>,
    spans: RwLock<Arc<Spans>>,
    shapes: RwLock<Arc<Shapes>>,
}

/// What is accepted and not yet applied.
#[derive(Debug, Default)]
pub(super) struct Queue {
    pub(super) items: VecDeque<Queued>,
    /// Of the items and of what the writer is applying right now.
    pub(super) bytes: usize,
    pub(super) accepted: u64,
    pub(super) closed: bool,
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
        storage: Storage,
        options: LogOptions,
        clock: Clock,
        watermark: Watermark,
        known: (MarkSet, Spans, Shapes),
    ) -> Self {
        let (marks, spans, shapes) = known;
        Shared {
            storage,
            options,
            clock,
            queue: Mutex::default(),
            queue_wake: Condvar::new(),
            unflushed: Mutex::default(),
            flush_wake: Condvar::new(),
            watermark: watch::Sender::new(watermark),
            durable: watch::Sender::new(watermark.lsn),
            progress: watch::Sender::new(Progress::default()),
            marks_version: AtomicU64::new(0),
            marks: RwLock::new(Arc::new(marks)),
            spans: RwLock::new(Arc::new(spans)),
            shapes: RwLock::new(Arc::new(shapes)),
        }
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

    pub(super) fn spans(&self) -> Arc<Spans> {
        self.spans.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_spans(&self, spans: Spans) {
        *self.spans.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(spans);
    }

    pub(super) fn shapes(&self) -> Arc<Shapes> {
        self.shapes.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn add_shape(&self, shape: Arc<Shape>) {
        let mut current = self.shapes.write().unwrap_or_else(PoisonError::into_inner);
        Arc::make_mut(&mut current).insert(shape.id, shape);
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
        lock(&self.unflushed).stop = true;
        self.flush_wake.notify_all();
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

fn describe(error: &LogError) -> String {
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
