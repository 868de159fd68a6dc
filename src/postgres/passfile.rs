//! The password file: `host:port:database:user:password`, one entry a line.
//!
//! PostgreSQL documentation, "The Password File". Any of the first four may be `*`; `\` escapes `:`
//! and `\`. The first matching line wins.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// What a line has to match.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'a> {
    /// A host name, or the directory of a Unix socket.
    pub host: &'a str,
    pub port: u16,
    pub dbname: &'a str,
    pub user: &'a str,
}

/// The file's text; `None` where there is none, or where others can read it.
pub(super) fn read(path: &Path) -> Option<String> {
    let metadata = fs::metadata(path).ok()?;
    if !metadata.is_file() {
        tracing::warn!(path = %path.display(), "password file ignored: it is not a plain file");
        return None;
    }
    if metadata.permissions().mode() & 0o077 != 0 {
        tracing::warn!(path = %path.display(), "password file ignored: others may read it; chmod 600");
        return None;
    }
    fs::read_to_string(path)
        .inspect_err(|error| tracing::warn!(path = %path.display(), %error, "password file ignored"))
        .ok()
}

pub(super) fn lookup(text: &str, wanted: Wanted<'_>) -> Option<String> {
    let port = wanted.port.to_string();
    let keys = [wanted.host, port.as_str(), wanted.dbname, wanted.user];
    // The server's usual socket directories stand in the file as `localhost`.
    let local = matches!(wanted.host, "/tmp" | "/var/run/postgresql" | "/run/postgresql");
    let matches = |line: &str| {
        let (fields, password) = split(line)?;
        let all = fields.iter().zip(keys).enumerate().all(|(index, (field, key))| {
            field == "*" || field == key || (index == 0 && local && field == "localhost")
        });
        all.then_some(password)
    };
    text.lines().filter(|line| !line.starts_with('#')).find_map(matches)
}

/// The four keys and the password of a line.
fn split(line: &str) -> Option<([String; 4], String)> {
    let mut fields = vec![String::new()];
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        if c == ':' && fields.len() < 5 {
            fields.push(String::new());
            continue;
        }
        let c = if c == '\\' { chars.next()? } else { c };
        fields.last_mut()?.push(c);
    }
    let password = fields.pop()?;
    Some((fields.try_into().ok()?, password))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# host:port:db:user:password\n\
        db.example:5432:shop:relay:one\n\
        localhost:*:*:relay:socket\n\
        *:*:*:odd\\:user:with\\:colon\\\\and:more\n\
        too:few\n";

    fn find(host: &str, port: u16, dbname: &str, user: &str) -> Option<String> {
        lookup(FILE, Wanted { host, port, dbname, user })
    }

    #[test]
    fn the_first_matching_line_wins() {
        assert_eq!(find("db.example", 5432, "shop", "relay").as_deref(), Some("one"));
        assert_eq!(find("db.example", 5433, "shop", "relay"), None);
        assert_eq!(find("/tmp", 1, "x", "relay").as_deref(), Some("socket"));
        assert_eq!(find("any", 1, "x", "odd:user").as_deref(), Some("with:colon\\and:more"));
        assert_eq!(find("too", 1, "x", "nobody"), None);
    }
}
