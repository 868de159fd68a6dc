//! The running server process: start until ready, stop, and what its log says when it will not.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::leash::Leash;
use super::{EmbeddedError, IoContext};

/// How often the pid file and the process are looked at.
const POLL: Duration = Duration::from_millis(5);
/// How long the processes of a server that was killed, or whose owner was, may take to go.
const PREDECESSOR: Duration = Duration::from_secs(10);
/// How long a destructor waits for an orderly end.
const DROP_WAIT: Duration = Duration::from_secs(5);
/// How much of the log an error shows.
const LOG_LINES: usize = 20;
const LOG_BYTES: u64 = 64 * 1024;

/// How a server is asked to stop, in the words of `pg_ctl stop -m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopMode {
    /// Waits for the clients to go.
    Smart,
    /// Ends the clients' sessions, sends replication to its end, and shuts down cleanly.
    Fast,
    /// At once, with crash recovery at the next start.
    Immediate,
}

impl StopMode {
    pub(super) fn signal(self) -> Signal {
        match self {
            StopMode::Smart => Signal::SIGTERM,
            StopMode::Fast => Signal::SIGINT,
            StopMode::Immediate => Signal::SIGQUIT,
        }
    }

    fn hint(self) -> &'static str {
        match self {
            StopMode::Smart => "a smart stop waits for every client to disconnect",
            StopMode::Fast => "a replication client may not have confirmed the last of the log",
            StopMode::Immediate => "its log may say why",
        }
    }
}

/// How one server is started.
pub(super) struct Launch<'a> {
    /// Makes the command; asked again for each try.
    pub(super) command: &'a dyn Fn() -> Command,
    pub(super) home: &'a Path,
    pub(super) log: &'a Path,
    pub(super) timeout: Duration,
    /// How the server ends when this process does, and what is removed then.
    pub(super) orphan_mode: StopMode,
    pub(super) orphan_removes: &'a [PathBuf],
}

/// A server that was started here and has not been seen to end.
#[derive(Debug)]
pub(super) struct Server {
    child: Child,
    drop_mode: StopMode,
    // Last: fields drop in this order, and the leash outlives the process.
    _leash: Leash,
}

impl Server {
    /// Starts a server and waits until it accepts connections. Where a predecessor's processes are
    /// still on their way out, tries again until they have gone.
    pub(super) async fn start(launch: Launch<'_>) -> Result<Self, EmbeddedError> {
        let begun = Instant::now();
        loop {
            let log_start = fs::metadata(launch.log).map_or(0, |meta| meta.len());
            let mut server = Self::spawn(&launch)?;
            let Err(status) = server.until_ready(&launch, begun).await else { return Ok(server) };
            let log = log_tail(launch.log, log_start);
            let Some(status) = status else {
                return Err(EmbeddedError::NotReady { waited: launch.timeout, log });
            };
            if !occupied(&log) {
                return Err(EmbeddedError::Ended { status, log });
            }
            if begun.elapsed() >= PREDECESSOR {
                return Err(EmbeddedError::Occupied { data: launch.home.join("data"), log });
            }
            tokio::time::sleep(POLL * 10).await;
        }
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Asks the server to stop and waits for its end. On time-out it is still there, and stopping.
    pub(super) async fn stop(&mut self, mode: StopMode, timeout: Duration) -> Result<(), EmbeddedError> {
        self.signal(mode.signal());
        let begun = Instant::now();
        while self.is_running() {
            if begun.elapsed() >= timeout {
                return Err(EmbeddedError::NotStopped { waited: timeout, hint: mode.hint() });
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// SIGKILL to the postmaster, as the kernel's out-of-memory killer would. Its other processes
    /// notice and go by themselves; the next start waits for that.
    pub(super) fn kill9(&mut self) {
        self.signal(Signal::SIGKILL);
        // Cannot block for long, and cannot fail but for a child that was reaped already.
        let _ = self.child.wait();
    }

    fn spawn(launch: &Launch<'_>) -> Result<Self, EmbeddedError> {
        let log = OpenOptions::new().create(true).append(true).open(launch.log).at(launch.log)?;
        let mut command = (launch.command)();
        command.stdin(Stdio::null()).stdout(log.try_clone().at(launch.log)?).stderr(log);
        let mut child = command.spawn().at(Path::new(command.get_program()))?;
        match Leash::tie(child.id(), launch.home, launch.orphan_mode, launch.orphan_removes) {
            Ok(leash) => Ok(Server { child, drop_mode: launch.orphan_mode, _leash: leash }),
            Err(source) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(EmbeddedError::Io { path: "/bin/sh".into(), source })
            }
        }
    }

    /// `Err(Some)`: it ended; `Err(None)`: it took too long.
    async fn until_ready(&mut self, launch: &Launch<'_>, begun: Instant) -> Result<(), Option<ExitStatus>> {
        let pid_file = launch.home.join("data/postmaster.pid");
        // One that is told to follow a primary is open for queries as a standby.
        let statuses: &[&str] = match launch.home.join("data/standby.signal").exists() {
            true => &["ready", "standby"],
            false => &["ready"],
        };
        loop {
            // The process first: the file of one that has ended says nothing.
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(Some(status));
            }
            if fs::read_to_string(&pid_file).is_ok_and(|text| says_ready(&text, self.pid(), statuses)) {
                return Ok(());
            }
            if begun.elapsed() >= launch.timeout {
                return Err(None);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    fn signal(&mut self, signal: Signal) {
        // Only while it is not reaped, so that the pid is certainly this child's.
        if self.is_running()
            && let Ok(pid) = i32::try_from(self.child.id())
        {
            // Fails only for a process that has just ended.
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for mode in [self.drop_mode, StopMode::Immediate] {
            self.signal(mode.signal());
            let begun = Instant::now();
            while self.is_running() && begun.elapsed() < DROP_WAIT {
                std::thread::sleep(POLL);
            }
        }
        self.kill9();
    }
}

/// Whether the pid file says that this server accepts connections (its eighth line, as `pg_ctl` reads it).
fn says_ready(pid_file: &str, pid: u32, statuses: &[&str]) -> bool {
    let mut lines = pid_file.lines();
    let ours = lines.next().is_some_and(|line| line.trim() == pid.to_string());
    ours && lines.nth(6).is_some_and(|status| statuses.contains(&status.trim()))
}

/// Whether the server refused because another one, or what is left of it, has the data directory.
fn occupied(log: &str) -> bool {
    log.contains("lock file \"postmaster.pid\" already exists")
        || log.contains("pre-existing shared memory block")
}

/// The last lines of what the log has gained since `start`.
fn log_tail(path: &Path, start: u64) -> String {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|mut file| {
        let end = file.metadata()?.len();
        file.seek(SeekFrom::Start(start.max(end.saturating_sub(LOG_BYTES))))?;
        file.take(LOG_BYTES).read_to_end(&mut bytes)
    });
    if let Err(error) = read {
        return format!("(not readable: {error})");
    }
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_ready_when_its_own_pid_file_says_so() {
        let file = |pid: u32, status: &str| format!("{pid}\n/data\n17\n5432\n/socket\n\n  1 2\n{status}\n");
        let ready = |text: &str| says_ready(text, 7, &["ready"]);
        assert!(ready(&file(7, "ready   ")));
        assert!(!ready(&file(8, "ready   ")));
        assert!(!ready(&file(7, "starting")));
        assert!(!ready(&file(7, "standby ")));
        assert!(says_ready(&file(7, "standby "), 7, &["ready", "standby"]));
        assert!(!ready("7\n/data\n"));
        assert!(!ready(""));
    }
}
