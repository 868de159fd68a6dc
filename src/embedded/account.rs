//! As whom the server runs. PostgreSQL refuses root, so root drops to an account without rights.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use nix::unistd::{Uid, User};

use super::{EmbeddedError, IoContext};

/// The account of the server and of everything that touches its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    name: String,
    /// `None`: this process's own, nothing to change.
    ids: Option<(u32, u32)>,
}

impl Account {
    /// This process's own account or, for root, `postgres` if it exists, else `nobody`.
    pub fn choose() -> Result<Self, EmbeddedError> {
        if !Uid::effective().is_root() {
            return Ok(Account { name: Uid::effective().to_string(), ids: None });
        }
        let known = |name: &str| User::from_name(name).ok().flatten();
        let user = known("postgres").or_else(|| known("nobody")).ok_or(EmbeddedError::NoAccount)?;
        Ok(Account { name: user.name, ids: Some((user.uid.as_raw(), user.gid.as_raw())) })
    }

    /// The account's name; the number where it is this process's own.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether the account can pass through `directory` and everything above it.
    pub fn can_enter(&self, directory: &Path) -> bool {
        let Some((uid, gid)) = self.ids else { return true };
        directory.ancestors().all(|step| {
            fs::metadata(step).is_ok_and(|meta| {
                let class = match (meta.uid() == uid, meta.gid() == gid) {
                    (true, _) => 0o100,
                    (false, true) => 0o010,
                    (false, false) => 0o001,
                };
                meta.mode() & class != 0
            })
        })
    }

    /// Makes the command run as this account, in a process group of its own: a Ctrl-C at the
    /// terminal is for rowcast, which then stops the server in its own order.
    pub(super) fn apply(&self, command: &mut Command) {
        if let Some((uid, gid)) = self.ids {
            command.uid(uid).gid(gid);
        }
        command.process_group(0);
    }

    /// Makes `directory` if need be, the account's own and closed to all others but root.
    pub(super) fn private_directory(&self, directory: &Path) -> Result<(), EmbeddedError> {
        fs::create_dir_all(directory).at(directory)?;
        self.own(directory)?;
        fs::set_permissions(directory, fs::Permissions::from_mode(0o700)).at(directory)
    }

    /// Gives a file or directory to the account.
    pub(super) fn own(&self, path: &Path) -> Result<(), EmbeddedError> {
        match self.ids {
            Some((uid, gid)) => std::os::unix::fs::chown(path, Some(uid), Some(gid)).at(path),
            None => Ok(()),
        }
    }
}
