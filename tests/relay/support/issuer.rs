//! A token issuer's endpoint for its key set: a little HTTP server, which can fail in many ways.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

// The same key pairs as in the unit tests.
#[path = "../../../src/auth/test_signer.rs"]
mod signer;
pub(crate) use signer::Signer;

/// What the endpoint does with a request.
#[derive(Debug, Clone)]
pub(crate) enum Answering {
    Keys(Vec<Value>),
    /// An answer with this status, these header lines and this body.
    Raw(u16, String, Vec<u8>),
    /// The connection is closed without a word.
    HangUp,
    /// The request is read, and never answered.
    Silent,
}

/// Stops when dropped.
pub(crate) struct Issuer {
    address: SocketAddr,
    ca: Option<PathBuf>,
    shared: Arc<Mutex<Shared>>,
    server: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    answering: Answering,
    /// The heads of all requests.
    requests: Vec<String>,
}

impl Issuer {
    pub(crate) async fn start(answering: Answering) -> Self {
        Self::serve(answering, None, None).await
    }

    /// With a certificate for `localhost` by a private authority, whose own is kept in `directory`.
    pub(crate) async fn start_tls(answering: Answering, directory: &Path) -> Self {
        let mut authority = CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let certificate = certificate.signed_by(&key, &authority).unwrap();
        let ca = directory.join("ca.pem");
        std::fs::write(&ca, authority.pem()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], private)
            .unwrap();
        Self::serve(answering, Some(TlsAcceptor::from(Arc::new(config))), Some(ca)).await
    }

    async fn serve(answering: Answering, tls: Option<TlsAcceptor>, ca: Option<PathBuf>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Mutex::new(Shared { answering, requests: Vec::new() }));
        let server = tokio::spawn(accept(listener, tls, Arc::clone(&shared)));
        Issuer { address, ca, shared, server }
    }

    pub(crate) fn url(&self) -> String {
        match self.ca {
            // Certificates name hosts.
            Some(_) => format!("https://localhost:{}/jwks", self.address.port()),
            None => format!("http://{}/jwks", self.address),
        }
    }

    /// The authority's certificate.
    pub(crate) fn ca(&self) -> &Path {
        self.ca.as_deref().expect("an issuer with TLS")
    }

    pub(crate) fn set(&self, answering: Answering) {
        self.shared.lock().unwrap().answering = answering;
    }

    pub(crate) fn requests(&self) -> Vec<String> {
        self.shared.lock().unwrap().requests.clone()
    }

    pub(crate) fn fetches(&self) -> usize {
        self.shared.lock().unwrap().requests.len()
    }
}

impl Drop for Issuer {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, shared: Arc<Mutex<Shared>>) {
    while let Ok((socket, _)) = listener.accept().await {
        let (tls, shared) = (tls.clone(), Arc::clone(&shared));
        tokio::spawn(async move {
            match tls {
                None => answer(socket, &shared).await,
                // A client that does not trust the certificate goes away.
                Some(tls) => match tls.accept(socket).await {
                    Ok(socket) => answer(socket, &shared).await,
                    Err(_) => Ok(()),
                },
            }
        });
    }
}

async fn answer(
    mut socket: impl AsyncRead + AsyncWrite + Unpin,
    shared: &Mutex<Shared>,
) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await?);
    }
    let answering = {
        let mut shared = shared.lock().unwrap();
        shared.requests.push(String::from_utf8_lossy(&head).into_owned());
        shared.answering.clone()
    };
    let (status, headers, body) = match answering {
        Answering::Keys(keys) => (200, String::new(), json!({ "keys": keys }).to_string().into_bytes()),
        Answering::Raw(status, headers, body) => (status, headers, body),
        Answering::HangUp => return Ok(()),
        Answering::Silent => {
            // Until the client goes away.
            let _ = socket.read_u8().await;
            return Ok(());
        }
    };
    let length = body.len();
    let head =
        format!("HTTP/1.1 {status} X\r\n{headers}content-length: {length}\r\nconnection: close\r\n\r\n");
    socket.write_all(head.as_bytes()).await?;
    socket.write_all(&body).await?;
    socket.shutdown().await
}
