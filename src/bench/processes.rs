//! What processes cost, as the kernel counts it in `/proc`: only where they run on this machine.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

/// The unit of the CPU times in `/proc` (`USER_HZ`): the same on every Linux.
const TICKS_IN_SECOND: u64 = 100;

/// What a process, or all of a server's, took up to now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    pub cpu: Duration,
    /// Resident; of several processes each one's share (PSS) of what they have together.
    pub memory_kib: u64,
}

impl Usage {
    /// What was taken since then.
    pub fn cpu_since(&self, earlier: &Usage) -> Duration {
        self.cpu.saturating_sub(earlier.cpu)
    }
}

/// Whose costs are told apart.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Parties {
    pub relay: Option<u32>,
    /// The postmaster.
    pub postgres: Option<u32>,
}

/// What each of them took up to now.
#[derive(Debug, Clone, Copy, Default)]
pub struct Costs {
    pub relay: Option<Usage>,
    pub postgres: Option<Usage>,
    pub generator: Option<Usage>,
}

impl Parties {
    pub fn costs(&self) -> Costs {
        Costs {
            relay: self.relay.and_then(process),
            postgres: self.postgres.and_then(server),
            generator: process(std::process::id()),
        }
    }
}

/// One process.
pub fn process(pid: u32) -> Option<Usage> {
    let stat = Stat::of(pid)?;
    Some(Usage { cpu: ticks(stat.own), memory_kib: status(pid, "VmRSS")? })
}

/// A server with its processes, also those that have ended.
pub fn server(pid: u32) -> Option<Usage> {
    let root = Stat::of(pid)?;
    let mut time = root.own + root.ended;
    let mut memory_kib = share_kib(pid);
    for child in children().remove(&pid).unwrap_or_default() {
        let Some(stat) = Stat::of(child) else { continue };
        time += stat.own + stat.ended;
        memory_kib += share_kib(child);
    }
    Some(Usage { cpu: ticks(time), memory_kib })
}

/// The processes that a process has started and that still run.
pub fn children_of(pid: u32) -> Vec<u32> {
    children().remove(&pid).unwrap_or_default()
}

/// A field of `/proc/PID/status` in KiB, as `VmRSS` or `VmHWM`.
pub fn status(pid: u32, field: &str) -> Option<u64> {
    kib(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?, field)
}

/// `VmHWM` is counted anew from here on.
pub fn forget_peak(pid: u32) -> std::io::Result<()> {
    fs::write(format!("/proc/{pid}/clear_refs"), "5")
}

/// Whether there is a process of this number and name.
pub fn is_named(pid: u32, name: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim_end() == name)
}

/// The process whose child a process is.
pub fn parent(pid: u32) -> Option<u32> {
    Stat::of(pid).map(|stat| stat.parent)
}

/// The process on this machine that listens on an address, where it can be found out.
pub fn listener(address: SocketAddr) -> Option<u32> {
    let port = format!(":{:04X}", address.port());
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| fs::read_to_string(path).unwrap_or_default());
    // Local address, remote address, state (0A: listens), …, inode.
    let inode = tables.iter().flat_map(|table| table.lines()).find_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let local = fields.nth(1)?;
        let state = fields.nth(1)?;
        (local.ends_with(&port) && state == "0A").then(|| fields.nth(5).map(str::to_owned))?
    })?;
    let wanted = format!("socket:[{inode}]");
    pids().find(|pid| {
        let Ok(files) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
        files
            .flatten()
            .any(|file| fs::read_link(file.path()).is_ok_and(|link| link.as_os_str() == wanted.as_str()))
    })
}

/// What `/proc/PID/stat` says.
struct Stat {
    parent: u32,
    /// In ticks.
    own: u64,
    /// Of children that have ended and were waited for.
    ended: u64,
}

impl Stat {
    fn of(pid: u32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// Behind the name, which may hold anything: state, parent, and the times as 12th to 15th field.
    fn parse(text: &str) -> Option<Self> {
        let fields: Vec<&str> = text.get(text.rfind(')')? + 1..)?.split_ascii_whitespace().collect();
        let number = |place: usize| fields.get(place)?.parse::<u64>().ok();
        Some(Stat {
            parent: fields.get(1)?.parse().ok()?,
            own: number(11)? + number(12)?,
            ended: number(13)? + number(14)?,
        })
    }
}

fn ticks(count: u64) -> Duration {
    Duration::from_millis(count * 1000 / TICKS_IN_SECOND)
}

fn share_kib(pid: u32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok();
    rollup.and_then(|text| kib(&text, "Pss")).unwrap_or(0)
}

fn kib(text: &str, field: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    line.trim().strip_suffix(" kB")?.trim().parse().ok()
}

fn children() -> BTreeMap<u32, Vec<u32>> {
    let mut children = BTreeMap::<u32, Vec<u32>>::new();
    for pid in pids() {
        if let Some(stat) = Stat::of(pid) {
            children.entry(stat.parent).or_default().push(pid);
        }
    }
    children
}

fn pids() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_with_spaces_and_brackets_are_no_fields() {
        let stat = Stat::parse("7 (a) b (c) S 3 7 7 0 -1 4194560 1 2 3 4 100 20 30 4 20 0 1 0 5").unwrap();
        assert_eq!((stat.parent, stat.own, stat.ended), (3, 120, 34));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_has_costs_and_listens() {
        let listening = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let own = std::process::id();
        assert_eq!(listener(listening.local_addr().unwrap()), Some(own));
        assert!(process(own).unwrap().memory_kib > 0);
        assert!(children_of(parent(own).unwrap()).contains(&own));
    }
}
