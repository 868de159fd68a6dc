//! Certificates of the test's own, a cluster that shows them, and someone in between.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, date_time_ymd,
};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, UnixStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::AbortOnDropHandle;

use super::postgres::{TestPostgres, connect};
use super::wait::{PATIENCE, eventually};

/// Who signs certificates.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) certificate: String,
}

/// A certificate and its key, in PEM.
pub(crate) struct Pair {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = named(name, &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().pem();
        Authority { issuer: Issuer::new(params, key), certificate }
    }

    /// For a server with these alternative names.
    pub(crate) fn server(&self, names: &[&str]) -> Pair {
        self.sign(named("database", names))
    }

    /// The same, with a serial number that can be revoked.
    pub(crate) fn numbered_server(&self, serial: u64, names: &[&str]) -> Pair {
        let mut params = named("database", names);
        params.serial_number = Some(serial.into());
        self.sign(params)
    }

    /// A list that revokes one certificate, in force or out of date.
    pub(crate) fn revoke(&self, serial: u64, current: bool) -> String {
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(if current { 2999 } else { 2021 }, 1, 1),
            crl_number: 1.into(),
            issuing_distribution_point: None,
            revoked_certs: vec![RevokedCertParams {
                serial_number: serial.into(),
                revocation_time: date_time_ymd(2020, 1, 1),
                reason_code: None,
                invalidity_date: None,
            }],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).unwrap().pem().unwrap()
    }

    /// For a server whose only name is the common one.
    pub(crate) fn server_without_alternative_names(&self, common: &str) -> Pair {
        self.sign(named(common, &[]))
    }

    /// A server's, out of date.
    pub(crate) fn expired(&self, names: &[&str]) -> Pair {
        let mut params = named("database", names);
        (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1));
        self.sign(params)
    }

    pub(crate) fn client(&self, role: &str) -> Pair {
        let mut params = named(role, &[]);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(params)
    }

    fn sign(&self, params: CertificateParams) -> Pair {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        Pair { certificate, key: key.serialize_pem() }
    }
}

impl Pair {
    /// A server's certificate that is its own authority, as `openssl req -x509` makes it.
    pub(crate) fn own_authority(names: &[&str]) -> Pair {
        let mut params = named("database", names);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Pair { certificate: params.self_signed(&key).unwrap().pem(), key: key.serialize_pem() }
    }
}

fn named(common: &str, names: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name.push(DnType::CommonName, common);
    params
}

/// A directory for files that connection strings name.
pub(crate) struct Files(TempDir);

impl Files {
    pub(crate) fn new() -> Self {
        Files(TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap())
    }

    pub(crate) fn directory(&self) -> &Path {
        self.0.path()
    }

    /// Writes a file that only its owner may read.
    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }
}

/// What a cluster does about TLS, and who comes in.
#[derive(Default)]
pub(crate) struct Door<'a> {
    /// `None`: no TLS.
    pub(crate) certificate: Option<&'a Pair>,
    pub(crate) clients: Option<&'a Authority>,
    /// Lines of `pg_hba.conf` for TCP.
    pub(crate) rules: &'a str,
    /// What the socket asks of others than the superuser; empty: nothing.
    pub(crate) socket: &'a str,
}

impl TestPostgres {
    /// Puts a door in place of the one before; returns when new connections meet it.
    pub(crate) async fn set_door(&self, door: Door<'_>) {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let data = self.data_directory();
        let owner = fs::metadata(&data).unwrap();
        let write = |path: &Path, text: &str| {
            fs::write(path, text).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
            chown(path, Some(owner.uid()), Some(owner.gid())).unwrap();
        };
        if let Some(pair) = door.certificate {
            write(&data.join("server.crt"), &pair.certificate);
            write(&data.join("server.key"), &pair.key);
        }
        if let Some(authority) = door.clients {
            write(&data.join("clients.crt"), &authority.certificate);
        }
        let local = if door.socket.is_empty() { "trust" } else { door.socket };
        let rules = format!(
            "local all postgres trust\nlocal all all {local}\nlocal replication all {local}\n{}\n",
            door.rules
        );
        write(Path::new(&self.value("SHOW hba_file").await), &rules);
        let ssl = if door.certificate.is_some() { "on" } else { "off" };
        let clients = if door.clients.is_some() { "clients.crt" } else { "" };
        // A new session knows this value when the postmaster has read all of it.
        let mark = 2000 + COUNT.fetch_add(1, Ordering::Relaxed);
        for (name, value) in
            [("ssl", ssl), ("ssl_ca_file", clients), ("deadlock_timeout", mark.to_string().as_str())]
        {
            self.sql(&format!("ALTER SYSTEM SET {name} = '{value}'")).await;
        }
        self.sql("SELECT pg_reload_conf()").await;
        let seen =
            format!("SELECT setting FROM pg_settings WHERE name = 'deadlock_timeout' AND setting = '{mark}'");
        eventually(PATIENCE, "the server's new door", async || {
            let session = connect(&self.url()).await;
            (!session.query(&seen, &[]).await.unwrap().is_empty()).then_some(())
        })
        .await;
    }
}

/// Ends TLS in front of a server with a certificate of its own, and speaks plain text behind.
pub(crate) struct Terminator {
    pub(crate) port: u16,
    _task: AbortOnDropHandle<()>,
}

/// How a terminator greets.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Greeting {
    /// Answers the request for TLS.
    Asked,
    /// Expects TLS at once, as PostgreSQL 17 understands it.
    Direct { protocol: &'static [u8] },
    /// Says that there is no TLS, as someone in between would.
    Denies,
}

impl Terminator {
    pub(crate) async fn start(server: PathBuf, pair: &Pair, greeting: Greeting) -> Self {
        let certificate = CertificateDer::from_pem_slice(pair.certificate.as_bytes()).unwrap();
        let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap();
        if let Greeting::Direct { protocol } = greeting {
            config.alpn_protocols = vec![protocol.to_vec()];
        }
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let task = tokio::spawn(async move {
            loop {
                let (mut socket, _) = listener.accept().await.unwrap();
                let (acceptor, server) = (acceptor.clone(), server.clone());
                tokio::spawn(async move {
                    let mut server = UnixStream::connect(server).await.unwrap();
                    if !matches!(greeting, Greeting::Direct { .. }) {
                        let mut request = [0; 8];
                        let _ = socket.read_exact(&mut request).await;
                        let answer = if greeting == Greeting::Denies { b"N" } else { b"S" };
                        let _ = socket.write_all(answer).await;
                    }
                    // Errors end the connection on both sides, which is what the client then sees.
                    if greeting == Greeting::Denies {
                        let _ = copy_bidirectional(&mut socket, &mut server).await;
                    } else if let Ok(mut stream) = acceptor.accept(socket).await {
                        let _ = copy_bidirectional(&mut stream, &mut server).await;
                    }
                });
            }
        });
        Terminator { port, _task: AbortOnDropHandle::new(task) }
    }
}
