//! A token secret for development: made at the first start, kept beside the data.
//!
//! So `rowcast token` finds it in another shell, and tokens outlast a restart.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::auth::Secret;

const FILE: &str = "jwt-secret";

/// The development secret can be neither read nor made.
#[derive(Debug, thiserror::Error)]
#[error("the development secret {} cannot be used: {source}; set jwt_secret, or make the directory writable", path.display())]
pub struct DevelopmentSecretError {
    path: PathBuf,
    source: io::Error,
}

/// The secret in `data_dir` and its path; `create` makes one, readable by this user alone, where none is.
pub fn development_secret(
    data_dir: &Path,
    create: bool,
) -> Result<Option<(Secret, PathBuf)>, DevelopmentSecretError> {
    let path = data_dir.join(FILE);
    let failed = |source| DevelopmentSecretError { path: path.clone(), source };
    match fs::read_to_string(&path) {
        Ok(text) => return Ok(Some((Secret::new(text.trim()), path))),
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        Err(_) if !create => return Ok(None),
        Err(_) => {}
    }
    let secret: String = rand::random::<[u8; 32]>().iter().map(|byte| format!("{byte:02x}")).collect();
    fs::create_dir_all(data_dir).map_err(failed)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(failed)?;
    writeln!(file, "{secret}").map_err(failed)?;
    Ok(Some((Secret::new(secret), path)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_secret_is_made_once_and_private() {
        let directory = tempfile::tempdir().unwrap();
        let data_dir = directory.path().join("data");
        assert!(development_secret(&data_dir, false).unwrap().is_none());
        let (made, path) = development_secret(&data_dir, true).unwrap().unwrap();
        assert_eq!(made.expose().len(), 64);
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(development_secret(&data_dir, true).unwrap().unwrap().0, made);
    }
}
