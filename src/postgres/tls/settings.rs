//! The keywords of a connection string that concern TLS. Pure: files are read when connecting.

use std::path::{Path, PathBuf};

use rustls::SupportedProtocolVersion;
use rustls::version::{TLS12, TLS13};

use crate::postgres::conninfo::Pairs;
use crate::postgres::target::TargetError;

/// `sslmode`, from the weakest to the strictest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Mode {
    Disable,
    /// Plain text first; TLS where the server refuses that.
    Allow,
    /// TLS where the server offers it.
    Prefer,
    Require,
    /// The certificate must come from a known authority.
    VerifyCa,
    /// And be the named host's.
    VerifyFull,
}

/// `channel_binding`: whether SCRAM must be tied to the TLS session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChannelBinding {
    Disable,
    Prefer,
    Require,
}

/// `sslrootcert`: whom the server's certificate must come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Authorities {
    /// Those that the operating system trusts.
    System,
    /// Of a file named by the user.
    Named(PathBuf),
    /// Of libpq's usual file, where it exists and the mode wants more than encryption by chance.
    Usual(Option<PathBuf>),
}

/// The client's own certificate and key. Of the usual files, what does not exist is not used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) certificate: Source,
    pub(super) key: Source,
}

/// A file, and whether the user named it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Named(PathBuf),
    Usual(Option<PathBuf>),
}

/// All that a connection string says of TLS.
#[derive(Clone, Debug)]
pub(crate) struct TlsSettings {
    pub(super) mode: Mode,
    /// Begin with TLS instead of asking for it (`sslnegotiation=direct`).
    pub(super) direct: bool,
    pub(super) binding: ChannelBinding,
    pub(super) authorities: Authorities,
    /// `None`: the server is shown no certificate.
    pub(super) identity: Option<Identity>,
    pub(super) revoked: Source,
    pub(super) server_name_indication: bool,
    pub(super) versions: Versions,
}

impl TlsSettings {
    /// Takes the keywords that concern TLS out of `pairs`.
    pub(crate) fn take(pairs: &mut Pairs, home: Option<&Path>) -> Result<Self, TargetError> {
        refuse_unsupported(pairs)?;
        let usual = |name: &str| home.map(|home| home.join(".postgresql").join(name));
        let mut source = |keyword: &str, name: &str| match pairs.remove(keyword) {
            Some(path) => Source::Named(path.into()),
            None => Source::Usual(usual(name)),
        };
        let (certificate, key) = (source("sslcert", "postgresql.crt"), source("sslkey", "postgresql.key"));
        let revoked = source("sslcrl", "root.crl");
        let authorities = match source("sslrootcert", "root.crt") {
            Source::Named(path) if path.as_os_str() == "system" => Authorities::System,
            Source::Named(path) => Authorities::Named(path),
            Source::Usual(path) => Authorities::Usual(path),
        };
        let shows_certificate = choose(pairs, "sslcertmode", "disable or allow", |word| match word {
            None | Some("allow") => Some(true),
            Some("disable") => Some(false),
            _ => None,
        })?;
        let mode = mode(pairs, &authorities)?;
        Ok(TlsSettings {
            mode,
            direct: direct(pairs, mode)?,
            binding: binding(pairs)?,
            authorities,
            identity: shows_certificate.then_some(Identity { certificate, key }),
            revoked,
            server_name_indication: choose(pairs, "sslsni", "0 or 1", |word| match word {
                None | Some("1") => Some(true),
                Some("0") => Some(false),
                _ => None,
            })?,
            versions: versions(pairs)?,
        })
    }

    pub(crate) fn binding(&self) -> ChannelBinding {
        self.binding
    }
}

/// What libpq can do and we cannot is refused, never left out in silence.
fn refuse_unsupported(pairs: &mut Pairs) -> Result<(), TargetError> {
    if pairs.remove("sslcrldir").is_some() {
        let why = "is not supported: name one file with sslcrl";
        return Err(TargetError::Tls { what: "sslcrldir", why });
    }
    choose(pairs, "gssencmode", "disable or prefer (encryption by Kerberos is not supported)", |word| {
        matches!(word, None | Some("disable" | "prefer")).then_some(())
    })
}

fn mode(pairs: &mut Pairs, authorities: &Authorities) -> Result<Mode, TargetError> {
    let system = *authorities == Authorities::System;
    const EXPECTED: &str = "disable, allow, prefer, require, verify-ca or verify-full";
    let mode = choose(pairs, "sslmode", EXPECTED, |word| match word {
        None if system => Some(Mode::VerifyFull),
        None | Some("prefer") => Some(Mode::Prefer),
        Some("disable") => Some(Mode::Disable),
        Some("allow") => Some(Mode::Allow),
        Some("require") => Some(Mode::Require),
        Some("verify-ca") => Some(Mode::VerifyCa),
        Some("verify-full") => Some(Mode::VerifyFull),
        Some(_) => None,
    })?;
    if system && mode < Mode::VerifyFull {
        let why = "needs sslmode=verify-full: anyone can have a certificate from a public authority";
        return Err(TargetError::Tls { what: "sslrootcert=system", why });
    }
    Ok(mode)
}

fn direct(pairs: &mut Pairs, mode: Mode) -> Result<bool, TargetError> {
    let direct = choose(pairs, "sslnegotiation", "postgres or direct", |word| match word {
        None | Some("postgres") => Some(false),
        Some("direct") => Some(true),
        _ => None,
    })?;
    if direct && mode < Mode::Require {
        let why = "needs sslmode=require, verify-ca or verify-full: it leaves no way to go on without TLS";
        return Err(TargetError::Tls { what: "sslnegotiation=direct", why });
    }
    Ok(direct)
}

fn binding(pairs: &mut Pairs) -> Result<ChannelBinding, TargetError> {
    choose(pairs, "channel_binding", "disable, prefer or require", |word| match word {
        None | Some("prefer") => Some(ChannelBinding::Prefer),
        Some("disable") => Some(ChannelBinding::Disable),
        Some("require") => Some(ChannelBinding::Require),
        Some(_) => None,
    })
}

type Versions = &'static [&'static SupportedProtocolVersion];
static ONLY_12: Versions = &[&TLS12];
static ONLY_13: Versions = &[&TLS13];
static BOTH: Versions = &[&TLS13, &TLS12];

/// Older versions than 1.2 are never spoken, so that as a lower limit they mean 1.2.
fn versions(pairs: &mut Pairs) -> Result<Versions, TargetError> {
    let lowest = choose(pairs, "ssl_min_protocol_version", "TLSv1.2 or TLSv1.3", |word| match word {
        None | Some("TLSv1" | "TLSv1.1" | "TLSv1.2") => Some(2),
        Some("TLSv1.3") => Some(3),
        Some(_) => None,
    })?;
    let highest = choose(pairs, "ssl_max_protocol_version", "TLSv1.2 or TLSv1.3", |word| match word {
        Some("TLSv1.2") => Some(2),
        None | Some("TLSv1.3") => Some(3),
        Some(_) => None,
    })?;
    match (lowest, highest) {
        (2, 2) => Ok(ONLY_12),
        (2, _) => Ok(BOTH),
        (_, 3) => Ok(ONLY_13),
        _ => {
            let why = "is higher than ssl_max_protocol_version";
            Err(TargetError::Tls { what: "ssl_min_protocol_version", why })
        }
    }
}

/// Takes a keyword's value and reads it.
fn choose<T>(
    pairs: &mut Pairs,
    keyword: &'static str,
    expected: &'static str,
    read: impl FnOnce(Option<&str>) -> Option<T>,
) -> Result<T, TargetError> {
    read(pairs.remove(keyword).as_deref()).ok_or(TargetError::Value { keyword, expected })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::postgres::conninfo;

    fn settings(text: &str) -> Result<TlsSettings, TargetError> {
        let mut pairs = conninfo::parse(text).unwrap();
        let settings = TlsSettings::take(&mut pairs, Some(Path::new("/home/u")));
        assert!(settings.is_err() || pairs.is_empty(), "{pairs:?}");
        settings
    }

    #[test]
    fn libpqs_defaults() {
        let plain = settings("").unwrap();
        assert_eq!((plain.mode, plain.binding, plain.direct), (Mode::Prefer, ChannelBinding::Prefer, false));
        assert_eq!(plain.authorities, Authorities::Usual(Some("/home/u/.postgresql/root.crt".into())));
        assert_eq!(plain.versions, [&TLS13, &TLS12]);
        assert!(plain.server_name_indication);
        assert_eq!(settings("sslrootcert=system").unwrap().mode, Mode::VerifyFull);
        assert_eq!(settings("sslcertmode=disable sslcert=/c").unwrap().identity, None);
    }

    #[test]
    fn every_keyword_is_taken() {
        let all = settings(
            "sslmode=verify-ca sslnegotiation=direct channel_binding=require sslrootcert=/r sslcert=/c sslkey=/k \
             sslcrl=/l sslsni=0 ssl_min_protocol_version=TLSv1.3 ssl_max_protocol_version=TLSv1.3 gssencmode=prefer",
        )
        .unwrap();
        assert_eq!((all.mode, all.binding, all.direct), (Mode::VerifyCa, ChannelBinding::Require, true));
        assert_eq!(all.authorities, Authorities::Named("/r".into()));
        assert_eq!(all.identity.unwrap().key, Source::Named("/k".into()));
        assert_eq!(all.revoked, Source::Named("/l".into()));
        assert_eq!(all.versions, [&TLS13]);
        assert!(!all.server_name_indication);
    }

    #[test]
    fn what_cannot_be_or_would_be_weak_is_refused() {
        for bad in [
            "sslmode=on",
            "sslmode=require sslrootcert=system",
            "sslnegotiation=direct",
            "sslnegotiation=direct sslmode=prefer",
            "sslcrldir=/d",
            "sslcertmode=require",
            "gssencmode=require",
            "channel_binding=yes",
            "ssl_min_protocol_version=TLSv1.3 ssl_max_protocol_version=TLSv1.2",
            "ssl_max_protocol_version=TLSv1.1",
        ] {
            assert!(settings(bad).is_err(), "{bad}");
        }
    }
}
