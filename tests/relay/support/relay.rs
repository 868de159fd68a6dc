//! The `rowcast` program as a process.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;

use super::http::Http;
use super::postgres::TestPostgres;
use super::token;
use super::wait::{PATIENCE, eventually, within};

/// What the program prints when it listens; the scheme and the address follow.
const LISTENING: &str = "listening on http";

/// How a relay is started; begins with [`Relay::on`].
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    /// See [`super::disk`].
    pub(super) faulty_disk: bool,
    pub(super) small_disk: Option<u64>,
}

/// A relay with a log directory of its own. Killed when dropped.
pub(crate) struct Relay {
    setup: Setup,
    log: TempDir,
    running: Option<Running>,
    output: Output,
}

struct Running {
    child: Child,
    address: SocketAddr,
}

/// All lines that the program has printed, over its restarts.
#[derive(Debug, Clone, Default)]
struct Output(Arc<Mutex<Vec<String>>>);

impl Setup {
    /// An environment variable for the relay; the last of a name wins.
    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// An argument after `serve`.
    pub(crate) fn arg(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// Starts the relay and waits until it is ready.
    pub(crate) async fn start(self) -> Relay {
        let relay = self.start_listening().await;
        relay.wait_ready().await;
        relay
    }

    /// Starts the relay and waits only until it listens: for tests in which it cannot be ready.
    pub(crate) async fn start_listening(self) -> Relay {
        let log = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let mut relay = Relay { setup: self, log, running: None, output: Output::default() };
        relay.start_again().await;
        relay
    }
}

impl Relay {
    /// A relay on a cluster, with the harness's token secret.
    pub(crate) fn on(postgres: &TestPostgres) -> Setup {
        Self::on_url(&postgres.url())
    }

    /// A relay on any database URL, such as a proxy's.
    pub(crate) fn on_url(url: &str) -> Setup {
        let (arguments, environment) = (Vec::new(), Vec::new());
        Setup { arguments, environment, faulty_disk: false, small_disk: None }
            .env("ROWCAST_DATABASE_URL", url)
            .env("ROWCAST_LISTEN", "127.0.0.1:0")
            .env("ROWCAST_JWT_SECRET", token::SECRET)
            // A test asks more often than a user, unless it is about that.
            .env("ROWCAST_RATE_LIMIT_REQUESTS", "0")
            .env("ROWCAST_RATE_LIMIT_POLLS", "0")
            .env("ROWCAST_RATE_LIMIT_MESSAGES", "0")
            .env("ROWCAST_RATE_LIMIT_FAILURES", "0")
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.running().address
    }

    pub(crate) fn pid(&self) -> u32 {
        self.running().child.id().expect("the relay runs")
    }

    /// The log's directory, which restarts keep.
    pub(crate) fn log_directory(&self) -> &Path {
        self.log.path()
    }

    /// Requests without a token.
    pub(crate) fn http(&self) -> Http {
        Http::at(self.address())
    }

    /// Requests as a user.
    pub(crate) fn http_as(&self, user: &str) -> Http {
        self.http().with_token(&token::user(user))
    }

    /// Waits until GET /ready says 200.
    pub(crate) async fn wait_ready(&self) {
        let http = self.http();
        eventually(PATIENCE, "GET /ready is 200", async || {
            let answer = http.request("GET", "/ready").try_send().await.ok()?;
            (answer.status == 200).then_some(())
        })
        .await;
    }

    /// A crash of the relay.
    pub(crate) async fn kill9(&mut self) {
        let mut running = self.running.take().expect("the relay runs");
        running.child.kill().await.unwrap();
    }

    /// SIGTERM; waits for the end, and asserts that it was orderly.
    pub(crate) async fn terminate(&mut self) {
        let mut running = self.running.take().expect("the relay runs");
        let pid = running.child.id().expect("the relay runs");
        kill(Pid::from_raw(pid.try_into().unwrap()), Signal::SIGTERM).unwrap();
        let status = within("the relay ends after SIGTERM", running.child.wait()).await.unwrap();
        assert_eq!(status.code(), Some(0), "the relay's exit status after SIGTERM");
    }

    /// Stops the process where it stands (SIGSTOP), until [`Relay::thaw`].
    pub(crate) fn freeze(&self) {
        kill(Pid::from_raw(self.pid().try_into().unwrap()), Signal::SIGSTOP).unwrap();
    }

    /// SIGCONT.
    pub(crate) fn thaw(&self) {
        kill(Pid::from_raw(self.pid().try_into().unwrap()), Signal::SIGCONT).unwrap();
    }

    /// A field of `/proc/PID/status` in KiB, as `VmRSS` or `VmHWM`.
    pub(crate) fn memory_kib(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok()).unwrap()
    }

    /// Waits until a printed line contains a text.
    pub(crate) async fn wait_line(&self, text: &str) {
        eventually(PATIENCE, &format!("the relay prints {text:?}"), async || {
            (self.count_lines(text) > 0).then_some(())
        })
        .await;
    }

    /// Waits until the program ends by itself, and returns its exit code.
    pub(crate) async fn wait_exit(&mut self) -> Option<i32> {
        let mut running = self.running.take().expect("the relay runs");
        within("the relay ends by itself", running.child.wait()).await.unwrap().code()
    }

    /// SIGTERM, and a start on the same log.
    pub(crate) async fn restart(&mut self) {
        self.terminate().await;
        self.start_again().await;
        self.wait_ready().await;
    }

    /// Starts it again on the same log, at a new port; returns when it listens.
    pub(crate) async fn start_again(&mut self) {
        assert!(self.running.is_none(), "the relay already runs");
        let mut child = self.command().spawn().unwrap();
        let (found, mut address) = watch::channel(None);
        let found = Arc::new(found);
        // Both tasks end with the program, which closes its ends of the pipes.
        tokio::spawn(read_lines(child.stdout.take().unwrap(), self.output.clone(), Arc::clone(&found)));
        tokio::spawn(read_lines(child.stderr.take().unwrap(), self.output.clone(), found));
        let listening = within("the relay says where it listens", address.wait_for(Option::is_some)).await;
        let address = listening.ok().and_then(|address| *address);
        let Some(address) = address else {
            let status = child.wait().await.unwrap();
            panic!("the relay ended ({status}) before it listened");
        };
        self.running = Some(Running { child, address });
    }

    /// The lines that the program has printed so far, over its restarts.
    pub(crate) fn output(&self) -> Vec<String> {
        self.output.0.lock().unwrap().clone()
    }

    /// The number of printed lines that contain a text.
    pub(crate) fn count_lines(&self, text: &str) -> usize {
        self.output().iter().filter(|line| line.contains(text)).count()
    }

    /// The value of a metric's line, as `/metrics` prints it: name, labels and all.
    pub(crate) async fn metric(&self, series: &str) -> Option<f64> {
        let answer = self.http().get("/metrics").await.expect_status(200);
        let line = answer.text().lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))?;
        line.trim().parse().ok()
    }

    fn running(&self) -> &Running {
        self.running.as_ref().expect("the relay runs")
    }

    fn command(&self) -> Command {
        let mut command = self.setup.disk_command(env!("CARGO_BIN_EXE_rowcast"), self.log.path());
        command.arg("serve").args(&self.setup.arguments);
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("ROWCAST_")) {
                command.env_remove(name);
            }
        }
        command
            .env("ROWCAST_LOG_DIR", self.log.path())
            .envs(self.setup.home(self.log.path()).map(|home| ("ROWCAST_DATA_DIR", home)))
            .env("NO_COLOR", "1")
            .envs(self.setup.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.mend_disk();
        let output = self.output();
        if std::thread::panicking() {
            eprintln!("--- relay output, end ---\n{}", output[output.len().saturating_sub(60)..].join("\n"));
        } else {
            let panics: Vec<_> = output.iter().filter(|line| line.contains("panicked at")).collect();
            assert!(panics.is_empty(), "the relay panicked: {panics:?}");
        }
    }
}

async fn read_lines(
    pipe: impl AsyncRead + Unpin,
    output: Output,
    found: Arc<watch::Sender<Option<SocketAddr>>>,
) {
    let mut lines = BufReader::new(pipe).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let listening = line.split_once(LISTENING).and_then(|(_, rest)| rest.split_once("://"));
        if let Some((_, rest)) = listening {
            let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.' && c != ':').unwrap_or(rest.len());
            if let Ok(address) = rest[..end].parse() {
                found.send_replace(Some(address));
            }
        }
        output.0.lock().unwrap().push(line);
    }
}
