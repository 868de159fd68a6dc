//! Disks that fail: by demand, through a library that is loaded into the relay, or truly, as a small
//! file system in memory.
//!
//! ```ignore
//! let relay = Relay::on(&pg).faulty_disk().start().await;
//! relay.break_disk(DiskFault::Full);
//! …
//! relay.mend_disk();
//! ```
//!
//! Faults reach what the relay keeps: its log's directory, and the spool in it ([`Setup::faulty_disk`]).

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use super::relay::{Relay, Setup};

/// What the disk does, until it is mended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DiskFault {
    /// Nothing that takes space: ENOSPC. Every other write is cut short first.
    Full,
    /// Nothing reaches the disk: EIO.
    Fsync,
    /// One flush fails, and the next is said to have worked, as Linux does it.
    FsyncOnce,
    /// Nothing is written: EIO.
    Write,
}

impl DiskFault {
    fn words(self) -> &'static str {
        match self {
            DiskFault::Full => "full",
            DiskFault::Fsync => "fsync",
            DiskFault::FsyncOnce => "fsync once",
            DiskFault::Write => "write",
        }
    }
}

/// Beneath the log's directory: what else the relay keeps.
const HOME: &str = "home";
/// Beside the log's directory.
const CONTROL: &str = "faults";

impl Setup {
    /// The relay's disk can be broken and mended while it runs.
    pub(crate) fn faulty_disk(mut self) -> Self {
        self.faulty_disk = true;
        self
    }

    /// The relay's files are on a disk of so many bytes of their own, empty at each start. Needs root, or
    /// the right to make namespaces.
    pub(crate) fn small_disk(mut self, bytes: u64) -> Self {
        self.small_disk = Some(bytes);
        self
    }

    /// Program and arguments, and environment, of a relay that keeps its files here.
    pub(super) fn disk_command(&self, program: &str, directory: &Path) -> tokio::process::Command {
        let mut command = match self.small_disk {
            None => tokio::process::Command::new(program),
            Some(bytes) => {
                let mut command = tokio::process::Command::new("unshare");
                if !nix::unistd::geteuid().is_root() {
                    command.args(["--user", "--map-root-user"]);
                }
                // Each step becomes the next: the process stays the child that is waited for.
                let script = format!(r#"mount -t tmpfs -o size={bytes},mode=700 none "$0" && exec "$@""#);
                command.args(["--mount", "sh", "-c", &script]).arg(directory).arg(program);
                command
            }
        };
        if self.faulty_disk {
            command
                .env("LD_PRELOAD", library())
                .env("FAULTS_DIRECTORY", directory)
                .env("FAULTS_CONTROL", control(directory));
        }
        command
    }

    /// The data directory of a relay whose disk may fail.
    pub(super) fn home(&self, directory: &Path) -> Option<PathBuf> {
        (self.faulty_disk || self.small_disk.is_some()).then(|| directory.join(HOME))
    }
}

impl Relay {
    /// Of a relay with [`Setup::faulty_disk`]: from now on, also over restarts.
    pub(crate) fn break_disk(&self, fault: DiskFault) {
        let control = control(self.log_directory());
        // Whole at once, for the relay reads it at every turn.
        let next = control.with_extension("next");
        fs::write(&next, fault.words()).unwrap();
        fs::rename(next, control).unwrap();
    }

    /// The disk works again.
    pub(crate) fn mend_disk(&self) {
        let _ = fs::remove_file(control(self.log_directory()));
    }

    /// Of a relay with [`Setup::small_disk`]: takes all space but so many bytes.
    pub(crate) fn fill_disk(&self, leave: u64) {
        let free = self.free_on_disk().saturating_sub(leave);
        let mut ballast = File::create(self.on_disk("ballast")).unwrap();
        let block = vec![1; 64 * 1024];
        let mut left = usize::try_from(free).unwrap();
        while left > 0 {
            let part = left.min(block.len());
            // The relay takes space meanwhile: full is full.
            if ballast.write_all(&block[..part]).is_err() {
                return;
            }
            left -= part;
        }
    }

    /// Gives back what [`Relay::fill_disk`] took.
    pub(crate) fn free_disk(&self) {
        fs::remove_file(self.on_disk("ballast")).unwrap();
    }

    /// Bytes that the small disk has left.
    pub(crate) fn free_on_disk(&self) -> u64 {
        let found = nix::sys::statvfs::statvfs(&self.on_disk("")).unwrap();
        found.blocks_available() as u64 * found.fragment_size() as u64
    }

    /// A path in the log's directory as the relay sees it.
    pub(crate) fn on_disk(&self, name: &str) -> PathBuf {
        let directory = self.log_directory().strip_prefix("/").unwrap();
        Path::new("/proc").join(self.pid().to_string()).join("root").join(directory).join(name)
    }
}

/// The file whose words say what fails.
fn control(directory: &Path) -> PathBuf {
    let mut name = directory.file_name().unwrap().to_owned();
    name.push(".");
    name.push(CONTROL);
    directory.with_file_name(name)
}

/// The library, built when its source has changed.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        const SOURCE: &str = include_str!("faults.c");
        let mut hasher = DefaultHasher::new();
        SOURCE.hash(&mut hasher);
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let library = directory.join(format!("faults-{:016x}.so", hasher.finish()));
        if library.exists() {
            return library;
        }
        // Other tests may be building it as well.
        let building = tempfile::tempdir_in(directory).unwrap();
        let (source, built) = (building.path().join("faults.c"), building.path().join("faults.so"));
        fs::write(&source, SOURCE).unwrap();
        let compiled = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-Wall", "-o"])
            .args([&built, &source])
            .arg("-ldl")
            .output()
            .expect("a C compiler, which linking needs as well");
        assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
        fs::rename(built, &library).unwrap();
        library
    })
}
