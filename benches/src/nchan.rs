//! nchan on nginx with one worker: the reference for sockets, fan-out and connecting.
//!
//! Debian's `nginx` and `libnginx-mod-nchan` (`sh scripts/install-deps.sh bench`); where they are missing, its
//! columns stay empty.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rowcast::bench::processes;
use rowcast::bench::service::{Kind, Service};
use tokio::process::{Child, Command};

use crate::http::Http;

const PROGRAMS: [&str; 3] = ["/usr/sbin/nginx", "/usr/local/sbin/nginx", "/usr/bin/nginx"];
const MODULE: &str = "/usr/lib/nginx/modules/ngx_nchan_module.so";
pub(crate) const MISSING: &str =
    "nchan is not installed, so there is no reference for sockets: `sh scripts/install-deps.sh bench`";
const PATIENCE: Duration = Duration::from_secs(20);

/// A running nginx; ended when dropped.
pub(crate) struct Nchan {
    master: Child,
    /// The process that does everything.
    pub(crate) worker: u32,
    pub(crate) address: SocketAddr,
}

/// Starts one in a directory of its own; `None` where it is not installed.
pub(crate) async fn start(directory: &Path) -> anyhow::Result<Option<Nchan>> {
    let Some(program) = PROGRAMS.iter().map(PathBuf::from).find(|path| path.is_file()) else {
        return Ok(None);
    };
    if !Path::new(MODULE).is_file() {
        return Ok(None);
    }
    let home = directory.join("nchan");
    fs::create_dir_all(&home)?;
    let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
    let file = home.join("nginx.conf");
    fs::write(&file, configuration(&home, address))?;
    let mut command = Command::new(program);
    command.arg("-p").arg(&home).arg("-c").arg(&file).arg("-e").arg(home.join("error.log"));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let master = command.spawn().context("nginx")?;
    let pid = master.id().context("nginx ended")?;
    let begun = Instant::now();
    loop {
        let worker = processes::children_of(pid).first().copied();
        let answers = Http::connect(address, None).await.is_ok();
        if let (Some(worker), true) = (worker, answers) {
            return Ok(Some(Nchan { master, worker, address }));
        }
        if begun.elapsed() > PATIENCE {
            bail!("nginx does not start: {}", fs::read_to_string(home.join("error.log")).unwrap_or_default());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

impl Nchan {
    pub(crate) fn service(&self) -> Service {
        Service { address: self.address, kind: Kind::Nchan { path: "/sub".to_owned() } }
    }

    /// A publisher of messages that look as the relay's do, with rows numbered from 1.
    pub(crate) async fn publisher(&self, message_bytes: usize) -> anyhow::Result<Publisher> {
        Ok(Publisher { http: Http::connect(self.address, None).await?, message_bytes, next: 1 })
    }

    /// Ends it: the worker with the master, which tells it to.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        if let Some(pid) = self.master.id() {
            nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(pid.try_into()?),
                nix::sys::signal::Signal::SIGTERM,
            )?;
        }
        tokio::time::timeout(PATIENCE, self.master.wait()).await.context("nginx does not end")??;
        Ok(())
    }
}

pub(crate) struct Publisher {
    http: Http,
    message_bytes: usize,
    next: u64,
}

impl Publisher {
    /// Publishes so many messages, one right behind the other, and waits until all are taken.
    pub(crate) async fn publish(&mut self, count: u64) -> anyhow::Result<()> {
        for _ in 0..count {
            let message = self.message();
            self.http.send("POST", "/pub", "Content-Type: text/plain\r\n", message.as_bytes()).await?;
        }
        for _ in 0..count {
            let (status, _) = self.http.answer().await?;
            anyhow::ensure!(matches!(status, 200..=202), "nchan answers {status}");
        }
        Ok(())
    }

    fn message(&mut self) -> String {
        let n = self.next;
        self.next += 1;
        let head = format!(
            "{{\"type\":\"database_change\",\"topic\":\"global:bench_all\",\"new_record\":{{\"id\":{n},\"user_id\":0,\"n\":{n},\"body\":\""
        );
        let rest = self.message_bytes.saturating_sub(head.len() + 3);
        head + &"x".repeat(rest) + "\"}}"
    }
}

fn configuration(home: &Path, address: SocketAddr) -> String {
    let home = home.display();
    format!(
        "load_module {MODULE};
user root;
worker_processes 1;
worker_rlimit_nofile 20000;
daemon off;
pid {home}/nginx.pid;
error_log {home}/error.log warn;
events {{ worker_connections 19900; }}
http {{
  access_log off;
  client_body_temp_path {home}/body;
  proxy_temp_path {home}/proxy;
  fastcgi_temp_path {home}/fastcgi;
  uwsgi_temp_path {home}/uwsgi;
  scgi_temp_path {home}/scgi;
  keepalive_requests 100000000;
  nchan_shared_memory_size 256M;
  server {{
    listen {address} backlog=4096;
    location = /pub {{ nchan_publisher; nchan_channel_id bench; nchan_message_buffer_length 100; }}
    location = /sub {{ nchan_subscriber websocket; nchan_channel_id bench; nchan_subscriber_first_message newest; }}
  }}
}}
"
    )
}
