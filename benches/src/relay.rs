//! The release build of the relay, as a process.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rowcast::auth::{ExtraClaims, Secret, mint};
use rowcast::bench::service::{Audience, Kind, Service};
use rowcast::lsn::Lsn;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

use crate::http::Http;
use crate::world::World;

const SECRET: &str = "a secret of at least thirty-two bytes, for benchmarks";
const LISTENING: &str = "listening on http://";
const PATIENCE: Duration = Duration::from_secs(120);
/// How often the relay is asked how far it is: each question costs it some 100 µs.
const LOOK: Duration = Duration::from_millis(20);
const ENDS: Duration = Duration::from_secs(30);

/// A running relay; killed when dropped.
pub(crate) struct Relay {
    child: Child,
    pub(crate) pid: u32,
    pub(crate) address: SocketAddr,
    /// When the process was started.
    pub(crate) begun: Instant,
}

/// Starts one on this data directory, and returns when it listens.
pub(crate) async fn listening(world: &World, data: &Path) -> anyhow::Result<Relay> {
    let program = program()?;
    let mut command = Command::new(&program);
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("ROWCAST_")) {
            command.env_remove(name);
        }
    }
    command
        .arg("serve")
        .env("ROWCAST_DATABASE_URL", &world.url)
        .env("ROWCAST_DATA_DIR", data)
        .env("ROWCAST_LISTEN", "127.0.0.1:0")
        .env("ROWCAST_JWT_SECRET", SECRET)
        .env("ROWCAST_RATE_LIMIT_REQUESTS", "0")
        .env("ROWCAST_RATE_LIMIT_POLLS", "0")
        .env("ROWCAST_RATE_LIMIT_FAILURES", "0")
        .env("ROWCAST_LOG_MAX_SIZE", "100GiB")
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let begun = Instant::now();
    let mut child = command.spawn().with_context(|| program.display().to_string())?;
    let (found, mut addresses) = mpsc::unbounded_channel();
    tokio::spawn(read(child.stdout.take(), found.clone()));
    tokio::spawn(read(child.stderr.take(), found));
    let address = tokio::time::timeout(PATIENCE, addresses.recv()).await.ok().flatten();
    let address = address.context("the relay does not listen; see what it says above")?;
    let pid = child.id().context("the relay ended")?;
    Ok(Relay { child, pid, address, begun })
}

/// The same, and waits until it is ready.
pub(crate) async fn ready(world: &World, data: &Path) -> anyhow::Result<Relay> {
    let relay = listening(world, data).await?;
    relay.wait_ready().await?;
    Ok(relay)
}

impl Relay {
    pub(crate) async fn wait_ready(&self) -> anyhow::Result<()> {
        loop {
            let mut http = Http::connect(self.address, None).await?;
            let (status, body) = http.request("GET", "/ready", b"").await?;
            if status == 200 {
                return Ok(());
            }
            if self.begun.elapsed() > PATIENCE {
                bail!("the relay is not ready: {}", String::from_utf8_lossy(&body));
            }
            tokio::time::sleep(LOOK / 4).await;
        }
    }

    pub(crate) fn service(&self, audience: Audience) -> Service {
        Service { address: self.address, kind: Kind::Relay { secret: Secret::new(SECRET), audience } }
    }

    /// A connection as a user.
    pub(crate) async fn http_as(&self, user: u64) -> anyhow::Result<Http> {
        let day = Duration::from_secs(24 * 3600);
        let token = mint(&Secret::new(SECRET), &user.to_string(), day, ExtraClaims::new())?;
        Http::connect(self.address, Some(token)).await
    }

    /// Waits until the log is durable up to there.
    pub(crate) async fn wait_durable(&self, lsn: Lsn, patience: Duration) -> anyhow::Result<()> {
        let mut http = Http::connect(self.address, None).await?;
        let begun = Instant::now();
        let mut next = Instant::now();
        loop {
            let durable = metric(&mut http, "rowcast_lsn{stage=\"durable\"}").await?;
            if durable.is_some_and(|durable| durable >= lsn.get() as f64) {
                return Ok(());
            }
            if begun.elapsed() > patience {
                bail!("the relay's log does not reach {lsn} in {patience:?}: {durable:?}");
            }
            next += LOOK;
            tokio::time::sleep_until(next.into()).await;
        }
    }

    pub(crate) async fn metric(&self, series: &str) -> anyhow::Result<f64> {
        let mut http = Http::connect(self.address, None).await?;
        metric(&mut http, series).await?.with_context(|| format!("no metric {series}"))
    }

    /// SIGTERM, and waits for the end.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        kill(Pid::from_raw(self.pid.try_into()?), Signal::SIGTERM)?;
        tokio::time::timeout(ENDS, self.child.wait()).await.context("the relay does not end")??;
        Ok(())
    }

    /// SIGKILL.
    pub(crate) async fn kill9(mut self) -> anyhow::Result<()> {
        Ok(self.child.kill().await?)
    }
}

async fn metric(http: &mut Http, series: &str) -> anyhow::Result<Option<f64>> {
    let (_, text) = http.request("GET", "/metrics", b"").await?;
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    Ok(line.and_then(|value| value.trim().parse().ok()))
}

/// The relay's program, which was built beside this one.
fn program() -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe()?.with_file_name("rowcast");
    anyhow::ensure!(program.is_file(), "{} is not there: use `make bench`", program.display());
    Ok(program)
}

/// What it says of itself goes on only where it is a warning.
async fn read(pipe: Option<impl AsyncRead + Unpin>, found: mpsc::UnboundedSender<SocketAddr>) {
    let Some(pipe) = pipe else { return };
    let mut lines = BufReader::new(pipe).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if let Some((_, address)) = line.split_once(LISTENING) {
            let end =
                address.find(|c: char| !c.is_ascii_digit() && c != '.' && c != ':').unwrap_or(address.len());
            if let Ok(address) = address[..end].parse() {
                let _ = found.send(address);
            }
        } else if !line.contains(" INFO ") {
            println!("  relay: {line}");
        }
    }
}
