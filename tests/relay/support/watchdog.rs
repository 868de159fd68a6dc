//! No test runs for ever. One that does not end would hold up all others, and nobody would learn its name.

use std::collections::HashMap;
use std::io::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// What the longest test needs on a busy machine, several times over.
const LIMIT: Duration = Duration::from_secs(10 * 60);
/// What tests of the bounds need at full size (`make test-bounds`).
const LIMIT_OF_BOUNDS: Duration = Duration::from_secs(40 * 60);

fn limit() -> Duration {
    if std::env::var_os("ROWCAST_TEST_BOUNDS").is_some() { LIMIT_OF_BOUNDS } else { LIMIT }
}

static WATCHED: LazyLock<Mutex<HashMap<u64, (String, Instant)>>> = LazyLock::new(|| {
    std::thread::Builder::new().name("watchdog".to_owned()).spawn(watch).unwrap();
    Mutex::default()
});

/// A cluster's life in a test, which is bounded.
pub(crate) struct Watched(u64);

impl Watched {
    /// Begins now; the thread that runs a test has its name.
    pub(crate) fn begin() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let test = std::thread::current().name().unwrap_or("a test").to_owned();
        WATCHED.lock().unwrap().insert(id, (test, Instant::now()));
        Watched(id)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        WATCHED.lock().unwrap().remove(&self.0);
    }
}

fn watch() {
    let limit = limit();
    loop {
        std::thread::sleep(Duration::from_secs(1));
        let late = |(test, begun): &(String, Instant)| (begun.elapsed() > limit).then(|| test.clone());
        let late: Vec<String> = WATCHED.lock().unwrap().values().filter_map(late).collect();
        if !late.is_empty() {
            let notice =
                format!("\nnot ended within {limit:?}, so everything ends here: {}\n", late.join(", "));
            // What the print macros print is captured. Clusters end with this process; relays have to be ended.
            let _ = std::io::stderr().write_all(notice.as_bytes());
            for child in children() {
                let _ = kill(child, Signal::SIGKILL);
            }
            std::process::exit(101);
        }
    }
}

fn children() -> impl Iterator<Item = Pid> {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let of_task = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("children")).ok();
    let pids = |text: String| text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>();
    tasks.filter_map(of_task).flat_map(pids).map(Pid::from_raw)
}
