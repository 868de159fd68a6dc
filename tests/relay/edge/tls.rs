//! TLS for devices: `https` and `wss`, a certificate that is replaced under open connections, and what is
//! no TLS at all.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::{SinkExt, StreamExt};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::{WebSocketStream, client_async};

use super::{ORDERS, exchange};
use crate::support::cli::rowcast;
use crate::support::postgres::TestPostgres;
use crate::support::relay::Relay;
use crate::support::scene::database;
use crate::support::token;
use crate::support::wait::{PATIENCE, eventually, within};

/// Certificates that are made for the test, and the two files that the relay reads.
struct Files {
    directory: TempDir,
}

struct Pair {
    certificate: CertificateDer<'static>,
    cert: String,
    key: String,
}

fn pair() -> Pair {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    Pair {
        certificate: made.cert.der().clone(),
        cert: made.cert.pem(),
        key: made.signing_key.serialize_pem(),
    }
}

impl Files {
    fn holding(pair: &Pair) -> Self {
        let files = Files { directory: TempDir::new().unwrap() };
        files.write(&pair.cert, &pair.key);
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, cert: &str, key: &str) {
        std::fs::write(self.path("cert.pem"), cert).unwrap();
        std::fs::write(self.path("key.pem"), key).unwrap();
    }

    async fn relay(&self, pg: &TestPostgres) -> Relay {
        let path = |name| self.path(name).to_str().unwrap().to_owned();
        let setup =
            Relay::on(pg).env("ROWCAST_TLS_CERT", &path("cert.pem")).env("ROWCAST_TLS_KEY", &path("key.pem"));
        setup.start_listening().await
    }
}

/// A client that trusts these certificates and nothing else.
fn client(trusted: &[&Pair], protocols: &[&str]) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    trusted.iter().for_each(|pair| roots.add(pair.certificate.clone()).unwrap());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    // A resumed session shows the certificate of its first handshake.
    config.resumption = rustls::client::Resumption::disabled();
    TlsConnector::from(Arc::new(config))
}

async fn connect(address: SocketAddr, client: &TlsConnector) -> std::io::Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(address).await?;
    let name = ServerName::try_from("localhost").unwrap();
    within("the TLS handshake", client.connect(name, tcp)).await
}

fn shows(stream: &TlsStream<TcpStream>, pair: &Pair) -> bool {
    stream.get_ref().1.peer_certificates().unwrap()[0] == pair.certificate
}

async fn get(address: SocketAddr, client: &TlsConnector, path: &str) -> String {
    let mut stream = connect(address, client).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    within("an answer", stream.read_to_string(&mut answer)).await.unwrap();
    answer
}

async fn wait_ready(address: SocketAddr, client: &TlsConnector) {
    eventually(PATIENCE, "GET /ready is 200", async || {
        get(address, client, "/ready").await.starts_with("HTTP/1.1 200").then_some(())
    })
    .await;
}

/// A device of user 42 over `wss`, subscribed to all that is its own.
async fn device(address: SocketAddr, client: &TlsConnector) -> WebSocketStream<TlsStream<TcpStream>> {
    let mut request = "wss://localhost/api/realtime/ws/phone".into_client_request().unwrap();
    let protocols = format!("rowcast.v1, bearer.{}", token::user("42"));
    request.headers_mut().insert("sec-websocket-protocol", protocols.parse().unwrap());
    // A page of the relay's own host.
    request.headers_mut().insert("origin", "https://localhost".parse().unwrap());
    let stream = connect(address, client).await.unwrap();
    let (mut socket, _) = within("the upgrade", client_async(request, stream)).await.unwrap();
    socket
        .send(Message::text(json!({"type": "subscribe", "topics": ["user:42:*"]}).to_string()))
        .await
        .unwrap();
    next(&mut socket, "subscribed").await;
    socket
}

async fn next(socket: &mut WebSocketStream<TlsStream<TcpStream>>, kind: &str) -> Value {
    loop {
        let message = within(kind, socket.next()).await.unwrap().unwrap();
        if let Message::Text(text) = message {
            let frame: Value = serde_json::from_str(&text).unwrap();
            if frame["type"] == kind {
                return frame;
            }
        }
    }
}

#[tokio::test]
async fn a_certificate_is_replaced_under_open_connections() {
    let pg = database(ORDERS).await;
    let (first, second) = (pair(), pair());
    let files = Files::holding(&first);
    let mut relay = files.relay(&pg).await;
    let address = relay.address();
    let client = client(&[&first, &second], &["http/1.1"]);
    wait_ready(address, &client).await;
    assert_eq!(relay.count_lines(&format!("listening on https://{address}")), 1);
    let mut phone = device(address, &client).await;
    pg.sql("INSERT INTO orders VALUES (1, 42)").await;
    assert_eq!(next(&mut phone, "database_change").await["key"], json!({"id": 1}));

    // A key without its certificate is not taken.
    std::fs::write(files.path("key.pem"), &second.key).unwrap();
    relay.wait_line("the TLS certificate cannot be replaced").await;
    assert!(shows(&connect(address, &client).await.unwrap(), &first));

    std::fs::write(files.path("cert.pem"), &second.cert).unwrap();
    relay.wait_line("the TLS certificate was replaced").await;
    assert!(shows(&connect(address, &client).await.unwrap(), &second));
    let metrics = get(address, &client, "/metrics").await;
    assert!(metrics.contains("rowcast_tls_certificate_expiry_seconds 6"), "{metrics}");

    // The device noticed nothing.
    pg.sql("INSERT INTO orders VALUES (2, 42)").await;
    assert_eq!(next(&mut phone, "database_change").await["key"], json!({"id": 2}));
    relay.terminate().await;
    let goodbye = within("the goodbye", async {
        loop {
            match phone.next().await {
                Some(Ok(Message::Close(close))) => return close.unwrap(),
                Some(Ok(_)) => {}
                other => panic!("no goodbye but {other:?}"),
            }
        }
    })
    .await;
    assert_eq!(u16::from(goodbye.code), 1012);
    assert!(!relay.output().join("\n").contains("PRIVATE KEY"));
}

#[tokio::test]
async fn what_is_no_tls_ends_alone() {
    let pg = database(ORDERS).await;
    let pair = pair();
    let files = Files::holding(&pair);
    let relay = files.relay(&pg).await;
    let address = relay.address();
    // Connections that say nothing, or stop in the middle of a handshake, keep nobody waiting.
    let mut silent = Vec::new();
    for _ in 0..50 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(&[0x16, 0x03, 0x01, 0x02, 0x00, 0x01]).await.unwrap();
        silent.push(stream);
    }
    let speaks = client(&[&pair], &["h2", "http/1.1"]);
    wait_ready(address, &speaks).await;
    let stream = connect(address, &speaks).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));

    let plain = exchange(address, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    assert!(!plain.contains("HTTP"), "{plain}");
    exchange(address, &[0xff; 70_000]).await;
    exchange(address, &[0x16; 70_000]).await;
    // No protocol in common; a certificate that the client does not trust.
    assert!(connect(address, &client(&[&pair], &["h2"])).await.is_err());
    assert!(connect(address, &client(&[], &["http/1.1"])).await.is_err());
    let failures = "rowcast_tls_handshake_failures_total";
    eventually(PATIENCE, "the failures are counted", async || {
        let metrics = get(address, &speaks, "/metrics").await;
        let line = metrics.lines().find_map(|line| line.strip_prefix(failures)?.strip_prefix(' '))?;
        (line.trim().parse::<u32>().unwrap() >= 5).then_some(())
    })
    .await;
    // In the end they are cut off, long before a connection that is just quiet would be.
    for mut stream in silent {
        let mut answer = Vec::new();
        let _ = within("a handshake that stopped is cut off", stream.read_to_end(&mut answer)).await;
    }
    wait_ready(address, &speaks).await;
}

#[tokio::test]
async fn what_is_wrong_with_the_files_is_said_at_the_start() {
    let pg = TestPostgres::start().await;
    let (one, other) = (pair(), pair());
    let files = Files::holding(&one);
    let serve = async |cert: &str, key: &str| {
        let (cert, key) = (files.path(cert), files.path(key));
        let log = files.path("log");
        let arguments = [
            "serve",
            "--listen=127.0.0.1:0",
            &format!("--jwt-secret={}", token::SECRET),
            &format!("--log-dir={}", log.display()),
            &format!("--tls-cert={}", cert.display()),
            &format!("--tls-key={}", key.display()),
        ];
        let outcome = rowcast(&pg, &arguments).await;
        assert_eq!(outcome.code, 1, "{outcome:?}");
        outcome.stderr
    };
    assert!(serve("none.pem", "key.pem").await.contains("none.pem cannot be read"));
    assert!(serve("key.pem", "key.pem").await.contains("key.pem holds no certificate"));
    assert!(serve("cert.pem", "cert.pem").await.contains("cert.pem holds no private key"));
    files.write(&one.cert, &other.key);
    assert!(serve("cert.pem", "key.pem").await.contains("cannot be used together"));
    let half =
        rowcast(&pg, &["serve", "--tls-cert=cert.pem", &format!("--jwt-secret={}", token::SECRET)]).await;
    assert_eq!(half.code, 2);
    assert!(half.stderr.contains("tls_cert and tls_key go together"), "{}", half.stderr);
}
