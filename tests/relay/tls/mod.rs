//! TLS to PostgreSQL: both clients against real servers, next to what `psql` does in the same case.

mod authentication;
mod modes;
mod program;

use std::error::Error;

use rowcast::embedded::Options;
use rowcast::postgres::{ConnectError, Target};
use rowcast::wal::ReplicationConnection;
use tokio::process::Command;

use crate::support::cli::run;
use crate::support::postgres::{DATABASE, TestPostgres};
use crate::support::tls::Files;

/// All may come over TCP, encrypted or not.
const OPEN: &str = "host all all 127.0.0.1/32 trust";

async fn cluster() -> TestPostgres {
    TestPostgres::start_with(Options::scratch().with_tcp()).await
}

/// A connection string for the cluster's TCP port.
async fn words(pg: &TestPostgres, parameters: &str) -> String {
    let port = pg.value("SHOW port").await;
    at_port(port.parse().unwrap(), parameters)
}

fn at_port(port: u16, parameters: &str) -> String {
    let host = if parameters.contains("host=") { "" } else { "host=127.0.0.1" };
    format!("{host} port={port} user=postgres dbname={DATABASE} {parameters}")
}

/// How a session came about: `tls`, `plain`, or why it did not.
type Verdict = Result<&'static str, ConnectError>;

async fn encryption(pg: &TestPostgres, pid: i32) -> &'static str {
    let query = format!("SELECT ssl FROM pg_stat_ssl WHERE pid = {pid}");
    if pg.value(&query).await == "t" { "tls" } else { "plain" }
}

async fn by_sql(pg: &TestPostgres, words: &str) -> Verdict {
    let target = Target::parse(words).unwrap();
    let (client, _driver) = rowcast::postgres::connect(&target).await?;
    let pid = client.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    Ok(encryption(pg, pid).await)
}

async fn by_replication(pg: &TestPostgres, words: &str) -> Verdict {
    let target = Target::parse(words).unwrap();
    let mut connection = ReplicationConnection::connect(&target).await?;
    connection.identify_system().await.unwrap();
    Ok(encryption(pg, connection.backend_pid()).await)
}

/// What `psql` of this machine makes of it: `tls`, `plain` or `refused`.
async fn by_psql(pg: &TestPostgres, words: &str, home: &Files) -> String {
    let mut command = Command::new(pg.program("psql"));
    command.args(["-X", "-w", "-At", "-c", "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"]);
    command.arg("-d").arg(words).env("HOME", home.directory());
    let outcome = run(command).await;
    match (outcome.code, outcome.stdout.trim()) {
        (0, "t") => "tls".to_owned(),
        (0, "f") => "plain".to_owned(),
        _ => "refused".to_owned(),
    }
}

/// The error with its causes, in one line.
fn chain(error: &dyn Error) -> String {
    let cause = error.source().map(|cause| format!(": {}", chain(cause))).unwrap_or_default();
    format!("{error}{cause}")
}

/// Asserts the same verdict of both clients: a word, or what the error says.
async fn assert_verdict(pg: &TestPostgres, words: &str, expected: &str) {
    for client in ["SQL", "replication"] {
        let mut tries = 0;
        let verdict = loop {
            let verdict =
                if client == "SQL" { by_sql(pg, words).await } else { by_replication(pg, words).await };
            // A server that refuses in the handshake closes behind its alert: who is still sending may
            // find the connection broken before reading why.
            let unread = verdict.as_ref().is_err_and(|error| chain(error).contains("broke in the handshake"));
            tries += 1;
            if !unread || tries == 20 {
                break verdict;
            }
        };
        match verdict {
            Ok(found) => assert_eq!(found, expected, "{client}: {words}"),
            Err(error) => {
                let text = chain(&error);
                assert!(text.contains(expected), "{client}: {words}\nexpected: {expected}\nfound: {text}");
                assert!(!error.is_transient(), "{client}: {text}");
            }
        }
    }
}

/// The same, and that `psql` agrees.
async fn assert_as_psql(pg: &TestPostgres, home: &Files, words: &str, expected: &str) {
    assert_verdict(pg, words, expected).await;
    let psql = by_psql(pg, words, home).await;
    let ours = if ["tls", "plain"].contains(&expected) { expected } else { "refused" };
    assert_eq!(psql, ours, "psql: {words}");
}
