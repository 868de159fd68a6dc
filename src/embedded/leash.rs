//! Ends the server when this process ends in a way that runs no destructor.
//!
//! A shell waits for the end of a pipe whose other end only this process holds. The kernel closes
//! that end however the process goes, and the shell then stops the server and, for a scratch
//! cluster, removes its files. (The parent-death signal of Linux would not do: it follows the
//! *thread* that started the child, and an idle thread of the runtime may go at any time.)

use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::StopMode;

/// Arguments: the server's pid, the cluster's home, the signal, and what to remove once it is gone;
/// then the home as well, if nothing is left in it.
/// The pid file must still name that pid: an ended server's pid may by then be someone else's.
const SCRIPT: &str = r#"
read -r _
pid=$1 home=$2 signal=$3
shift 3
read -r named 2>/dev/null <"$home/data/postmaster.pid" && [ "$named" = "$pid" ] && kill -s "$signal" "$pid"
[ $# -eq 0 ] && exit
tries=0
while kill -0 "$pid" 2>/dev/null && [ $tries -lt 100 ]; do
    sleep 0.1
    tries=$((tries + 1))
done
rm -rf -- "$@"
rmdir -- "$home" 2>/dev/null
"#;

/// Held for as long as the server runs; dropping it lets the server be.
#[derive(Debug)]
pub(super) struct Leash {
    shell: Child,
}

impl Leash {
    pub(super) fn tie(pid: u32, home: &Path, mode: StopMode, remove: &[PathBuf]) -> io::Result<Self> {
        let shell = Command::new("/bin/sh")
            .args(["-c", SCRIPT, "rowcast-leash"])
            .arg(pid.to_string())
            .arg(home)
            .arg(mode.signal().as_str().trim_start_matches("SIG"))
            .args(remove)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        Ok(Leash { shell })
    }
}

impl Drop for Leash {
    fn drop(&mut self) {
        // Killed before the pipe closes, so that the script never runs on. Neither call can fail
        // in a way that matters: a shell that has gone already does nothing any more.
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}
