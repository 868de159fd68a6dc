//! The request for TLS against servers that answer in every way.
#![allow(clippy::unwrap_used)]

use tokio::io::{DuplexStream, duplex};

use super::*;
use crate::postgres::conninfo;
use crate::postgres::tls::TlsSettings;

/// What comes of a request with `sslmode` that gets `answer`.
async fn outcome(sslmode: &str, answer: &'static [u8]) -> Result<Channel<DuplexStream>, TlsError> {
    let mut pairs = conninfo::parse(&format!("sslmode={sslmode}")).unwrap();
    let way = TlsSettings::take(&mut pairs, None).unwrap().ways("db").await.unwrap().remove(0);
    let (ours, mut theirs) = duplex(1024);
    let server = tokio::spawn(async move {
        let mut request = [0; 8];
        theirs.read_exact(&mut request).await.unwrap();
        // Its length, and the code that no version of the protocol has.
        assert_eq!(request, [0, 0, 0, 8, 4, 210, 22, 47]);
        theirs.write_all(answer).await.unwrap();
    });
    let outcome = way.secure(ours).await;
    server.await.unwrap();
    outcome
}

#[tokio::test]
async fn no_means_plain_text_only_where_that_is_allowed() {
    assert!(matches!(outcome("prefer", b"N").await, Ok(Channel::Plain(_))));
    assert!(matches!(outcome("require", b"N").await, Err(TlsError::NotOffered)));
}

#[tokio::test]
async fn bytes_behind_the_answer_are_refused() {
    for answer in [&b"SR"[..], b"NR", b"S\0\0\0\x08"] {
        assert!(matches!(outcome("prefer", answer).await, Err(TlsError::Injected)), "{answer:?}");
        assert!(matches!(outcome("require", answer).await, Err(TlsError::Injected)), "{answer:?}");
    }
}

#[tokio::test]
async fn other_answers_are_errors() {
    assert!(matches!(outcome("prefer", b"E").await, Err(TlsError::ServerFailed)));
    assert!(matches!(outcome("prefer", b"Esecret").await, Err(TlsError::ServerFailed)));
    assert!(matches!(outcome("prefer", b"HTTP").await, Err(TlsError::NotPostgres)));
    assert!(matches!(outcome("require", b"").await, Err(TlsError::Socket(_))));
}

#[tokio::test]
async fn each_mode_tries_its_ways_in_order() {
    for (sslmode, expected) in [
        ("disable", "[no TLS]"),
        ("allow", "[no TLS, TLS]"),
        ("prefer", "[TLS if offered, no TLS]"),
        ("require", "[TLS]"),
    ] {
        let mut pairs = conninfo::parse(&format!("sslmode={sslmode}")).unwrap();
        let ways = TlsSettings::take(&mut pairs, None).unwrap().ways("db").await.unwrap();
        assert_eq!(format!("{ways:?}"), expected, "{sslmode}");
    }
    let mut pairs = conninfo::parse("sslmode=verify-ca").unwrap();
    let refused = TlsSettings::take(&mut pairs, None).unwrap().ways("db").await;
    assert!(matches!(refused, Err(TlsError::NoAuthorities)));
}
