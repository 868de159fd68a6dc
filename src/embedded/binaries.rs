//! Where the server's programs are.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::EmbeddedError;

/// The oldest PostgreSQL that the relay supports.
pub const MINIMUM_MAJOR: u32 = 15;

/// Where packages put one version beside the other: parent directory, what the version's own
/// directory begins with, and the way from there to the programs.
const VERSIONED: &[(&str, &str, &str)] = &[
    ("/usr/lib/postgresql", "", "bin"),
    ("/usr", "pgsql-", "bin"),
    ("/opt/homebrew/opt", "postgresql@", "bin"),
    ("/usr/local/opt", "postgresql@", "bin"),
];

/// A directory with `initdb` and `postgres` of one version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binaries {
    directory: PathBuf,
    version: String,
    major: u32,
}

impl Binaries {
    /// Finds a server to run: `ROWCAST_PG_BIN`, then `pg_config --bindir`, then the packages'
    /// directories with the newest version first, then `PATH`.
    ///
    /// `major` asks for exactly that version, as an existing data directory must.
    pub fn find(major: Option<u32>) -> Result<Self, EmbeddedError> {
        let fits = |found: &Binaries| match major {
            Some(major) => found.major == major,
            None => found.major >= MINIMUM_MAJOR,
        };
        let mut rejected = Vec::new();
        let named = env::var_os("ROWCAST_PG_BIN").filter(|value| !value.is_empty()).map(PathBuf::from);
        let directories = named.clone().map_or_else(candidate_directories, |named| vec![named]);
        for directory in directories {
            match (Self::in_directory(&directory), &named) {
                (Some(found), _) if fits(&found) => return Ok(found),
                (Some(found), _) => rejected.push(format!("{} in {}", found.version, directory.display())),
                (None, Some(named)) => return Err(EmbeddedError::BadBinaryDirectory(named.clone())),
                (None, None) => {}
            }
        }
        let wanted = major.map_or(format!("{MINIMUM_MAJOR} or newer"), |major| major.to_string());
        let rejected = match rejected.is_empty() {
            true => String::new(),
            false => format!(" (found and not fitting: {})", rejected.join(", ")),
        };
        Err(EmbeddedError::NoBinaries { wanted, rejected })
    }

    /// The programs' directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The version as the server prints it: `15.14`, `18beta1`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The major version, which a data directory belongs to.
    pub fn major(&self) -> u32 {
        self.major
    }

    /// One of the programs, with an environment that cannot change what it does.
    pub(super) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.directory.join(program));
        for (name, _) in env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("PG") || name.starts_with("LC_")) {
                command.env_remove(name);
            }
        }
        // English messages, which `server` looks for; and a directory that every account can enter.
        command.env("LC_ALL", "C").current_dir("/");
        command
    }

    fn in_directory(directory: &Path) -> Option<Self> {
        if !directory.join("initdb").is_file() {
            return None;
        }
        let output = Command::new(directory.join("postgres")).arg("--version").output().ok()?;
        let (version, major) = parse_version(&String::from_utf8_lossy(&output.stdout))?;
        Some(Binaries { directory: directory.to_owned(), version, major })
    }
}

fn candidate_directories() -> Vec<PathBuf> {
    let mut directories = Vec::new();
    if let Ok(output) = Command::new("pg_config").arg("--bindir").output() {
        directories.push(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    }
    directories.extend(VERSIONED.iter().flat_map(|(parent, prefix, bin)| versioned(parent, prefix, bin)));
    directories.extend(env::var_os("PATH").iter().flat_map(env::split_paths));
    directories
}

/// The version directories of `parent`, newest first.
fn versioned(parent: &str, prefix: &str, bin: &str) -> Vec<PathBuf> {
    let mut found: Vec<(u32, PathBuf)> = fs::read_dir(parent)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let major = entry.file_name().to_str()?.strip_prefix(prefix)?.parse().ok()?;
            Some((major, entry.path().join(bin)))
        })
        .collect();
    found.sort_by_key(|(major, _)| std::cmp::Reverse(*major));
    found.into_iter().map(|(_, path)| path).collect()
}

/// `postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)` → `15.14` and 15.
fn parse_version(line: &str) -> Option<(String, u32)> {
    let version = line.split_once("(PostgreSQL)")?.1.split_whitespace().next()?;
    let digits = version.find(|c: char| !c.is_ascii_digit()).unwrap_or(version.len());
    Some((version.to_owned(), version.get(..digits)?.parse().ok()?))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_what_the_server_prints() {
        let parsed = |line| parse_version(line).map(|(version, major)| format!("{version} {major}"));
        assert_eq!(parsed("postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)\n").unwrap(), "15.14 15");
        assert_eq!(parsed("postgres (PostgreSQL) 18beta1\n").unwrap(), "18beta1 18");
        assert_eq!(parsed("postgres (PostgreSQL)"), None);
        assert_eq!(parsed("postgres (PostgreSQL) devel"), None);
        assert_eq!(parsed(""), None);
    }

    #[test]
    fn the_newest_version_comes_first() {
        let parent = tempfile::tempdir().unwrap();
        for name in ["9", "18", "15", "extra", "16.old"] {
            fs::create_dir(parent.path().join(name)).unwrap();
        }
        let found = versioned(parent.path().to_str().unwrap(), "", "bin");
        let expected: Vec<_> = ["18", "15", "9"].map(|name| parent.path().join(name).join("bin")).into();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_version_that_nobody_has_is_named_in_the_error() {
        let error = Binaries::find(Some(7)).unwrap_err().to_string();
        assert!(error.contains("of version 7 were found") && error.contains("apt-get install"), "{error}");
    }
}
