//! What only some versions of PostgreSQL have.

use std::io::Write;

use rowcast::embedded::Binaries;

/// The major version of the servers that tests run.
pub(crate) fn major() -> u32 {
    Binaries::find(None).unwrap().major()
}

/// Whether the servers are of this version or later. If not, says that the test is skipped, for whoever
/// counts: past the test program, which swallows what a passing test prints.
pub(crate) fn since(wanted: u32, what: &str) -> bool {
    let major = major();
    if major >= wanted {
        return true;
    }
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    let _ = writeln!(std::io::stderr(), "skipped on PostgreSQL {major}: {test} ({what}: {wanted} and later)");
    false
}
