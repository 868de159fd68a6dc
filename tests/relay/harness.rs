//! The harness and the embedded server themselves: clusters that start, crash and recover, proxies
//! that cut and stall, and servers that do not outlive their process.

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::kill;
use nix::unistd::Pid;
use rowcast::embedded::{Cluster, EmbeddedError, Options, StopMode};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::support::copy::rows_as_json;
use crate::support::http::Http;
use crate::support::postgres::{TestPostgres, connect};
use crate::support::proxy::{Direction, Flow, Proxy, Upstream};
use crate::support::wait::{PATIENCE, eventually, within};

/// Set for the process that [`a_server_does_not_outlive_a_killed_process`] starts and kills.
const CHILD: &str = "ROWCAST_TEST_CHILD";

fn alive(pid: u32) -> bool {
    kill(Pid::from_raw(pid.try_into().unwrap()), None).is_ok()
}

#[tokio::test]
async fn a_cluster_decodes_and_is_its_tests_own() {
    let (one, two) = tokio::join!(TestPostgres::start(), TestPostgres::start());
    assert_ne!(one.url(), two.url());
    one.sql("CREATE TABLE t (id int)").await;
    two.sql("CREATE TABLE t (id int)").await;
    let slot = "SELECT slot_name FROM pg_create_logical_replication_slot('s', 'pgoutput')";
    assert_eq!(one.value(slot).await, "s");
    assert_eq!(two.value("SELECT count(*) FROM pg_replication_slots").await, "0");
    assert_eq!(one.query_text("SELECT 1, NULL").await, [[Some("1".to_owned()), None]]);
}

#[tokio::test]
async fn a_cluster_keeps_what_was_committed_over_a_crash_and_a_restart() {
    let mut pg = TestPostgres::start().await;
    let url = pg.url();
    pg.sql("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a')").await;
    pg.kill9();
    pg.start_again().await;
    assert!(pg.log().contains("was not properly shut down"), "this was no crash");
    pg.sql("INSERT INTO t VALUES (2, NULL)").await;
    pg.restart().await;
    assert_eq!(pg.url(), url);
    let rows = rows_as_json(&pg, "SELECT * FROM t").await;
    assert_eq!(rows, [r#"{"id":1,"v":"a"}"#, r#"{"id":2,"v":null}"#]);
}

#[tokio::test]
async fn settings_reach_the_server_and_alter_system_wins() {
    let options =
        Options::scratch().setting("wal_sender_timeout", "1234ms").setting("application_name", "it's");
    let pg = TestPostgres::start_with(options.with_tcp()).await;
    assert_eq!(pg.value("SHOW wal_sender_timeout").await, "1234ms");
    assert_eq!(pg.value("SHOW wal_level").await, "logical");
    assert_eq!(pg.value("SHOW listen_addresses").await, "127.0.0.1");
    pg.sql("ALTER SYSTEM SET wal_sender_timeout = '7s'").await;
    pg.sql("SELECT pg_reload_conf()").await;
    eventually(PATIENCE, "the setting is reloaded", async || {
        (pg.value("SHOW wal_sender_timeout").await == "7s").then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_home_belongs_to_one_cluster_at_a_time_and_is_removed_when_scratch() {
    let mut cluster = Cluster::create_temporary(Options::scratch()).await.unwrap();
    let home = cluster.home().to_owned();
    assert!(matches!(Cluster::open(&home, Options::durable()), Err(EmbeddedError::InUse(_))));
    assert!(matches!(Cluster::create(&home, Options::scratch()).await, Err(EmbeddedError::DataExists(_))));
    cluster.start().await.unwrap();
    let pid = cluster.pid().unwrap();
    assert!(matches!(cluster.start().await, Err(EmbeddedError::Running)));
    drop(cluster);
    assert!(!alive(pid) && !home.exists());
}

#[tokio::test]
async fn a_durable_cluster_stays() {
    let parent = Cluster::create_temporary(Options::scratch()).await.unwrap();
    // A path too long for a socket, too.
    let home = parent.home().join("x".repeat(100));
    let mut cluster = Cluster::open_or_create(&home, Options::durable()).await.unwrap();
    cluster.start().await.unwrap();
    let client = connect(&cluster.url("postgres")).await;
    client.batch_execute("CREATE TABLE t (id int)").await.unwrap();
    let fsync = client.query_one("SHOW fsync", &[]).await.unwrap();
    assert_eq!(fsync.get::<_, &str>(0), "on");
    drop(client);
    cluster.stop(StopMode::Fast).await.unwrap();
    drop(cluster);
    let mut cluster = Cluster::open_or_create(&home, Options::durable()).await.unwrap();
    cluster.start().await.unwrap();
    connect(&cluster.url("postgres")).await.batch_execute("SELECT id FROM t").await.unwrap();
    drop(cluster);
    std::fs::remove_dir_all(&home).unwrap();
}

#[tokio::test]
async fn a_server_that_cannot_start_says_why() {
    let options = Options::scratch().setting("wal_level", "wrong");
    let mut cluster = Cluster::create_temporary(options).await.unwrap();
    let error = cluster.start().await.unwrap_err().to_string();
    assert!(error.contains(r#"invalid value for parameter "wal_level""#), "{error}");
}

/// Runs this very test in a process of its own, which prints its server's pid and is then killed.
#[tokio::test]
async fn a_server_does_not_outlive_a_killed_process() {
    if std::env::var_os(CHILD).is_some() {
        let mut cluster = Cluster::create_temporary(Options::scratch()).await.unwrap();
        cluster.start().await.unwrap();
        println!("\nserver {} {}", cluster.pid().unwrap(), cluster.home().display());
        return std::future::pending().await;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "harness::a_server_does_not_outlive_a_killed_process", "--nocapture"]);
    command.env(CHILD, "1").stdout(Stdio::piped()).process_group(0);
    let mut child = tokio::process::Command::from(command).kill_on_drop(true).spawn().unwrap();
    let mut output = tokio::io::BufReader::new(child.stdout.take().unwrap());
    let (pid, home) = within("the child's server starts", async {
        loop {
            let mut line = String::new();
            let length = tokio::io::AsyncBufReadExt::read_line(&mut output, &mut line).await.unwrap();
            assert_ne!(length, 0, "the child ended");
            if let Some((pid, home)) =
                line.strip_prefix("server ").and_then(|rest| rest.trim().split_once(' '))
            {
                return (pid.parse().unwrap(), std::path::PathBuf::from(home));
            }
        }
    })
    .await;
    assert!(alive(pid));
    child.kill().await.unwrap();
    eventually(PATIENCE, "the orphaned server and its files are gone", async || {
        (!alive(pid) && !home.exists()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_proxy_stalls_cuts_and_shuts_out() {
    let pg = TestPostgres::start().await;
    let proxy = Proxy::start(Upstream::Unix(pg.socket())).await;
    let client = connect(&proxy.postgres_url("postgres")).await;
    client.batch_execute("SELECT 1").await.unwrap();

    proxy.set(Direction::ToClient, Flow::Stalled);
    let mut query = Box::pin(client.batch_execute("SELECT 2"));
    let early = tokio::time::timeout(Duration::from_millis(100), &mut query).await;
    assert!(early.is_err(), "an answer passed a stalled proxy");
    proxy.set(Direction::ToClient, Flow::BytesPerSecond(100_000));
    within("the stalled answer", query).await.unwrap();
    proxy.set(Direction::ToClient, Flow::Open);

    proxy.shut_out();
    within("the connection is cut", async { client.batch_execute("SELECT 3").await.unwrap_err() }).await;
    let refused = tokio_postgres::connect(&proxy.postgres_url("postgres"), tokio_postgres::NoTls).await;
    assert!(refused.is_err());
    proxy.let_in();
    connect(&proxy.postgres_url("postgres")).await.batch_execute("SELECT 4").await.unwrap();
}

/// Answers one connection with fixed bytes, and returns what was asked.
async fn toy_server(answer: &'static str) -> (Http, tokio::task::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let http = Http::at(listener.local_addr().unwrap());
    let asked = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        while !request.windows(4).any(|end| end == b"\r\n\r\n") {
            assert_ne!(stream.read_buf(&mut request).await.unwrap(), 0);
        }
        stream.write_all(answer.as_bytes()).await.unwrap();
        String::from_utf8_lossy(&request).into_owned()
    });
    (http, asked)
}

#[tokio::test]
async fn the_http_client_reads_all_kinds_of_bodies() {
    let (http, asked) =
        toy_server("HTTP/1.1 201 Created\r\nContent-Length: 7\r\nX-A: b\r\n\r\n{\"a\":1}").await;
    let answer = http.with_token("T").post("/p", &json!({"b": 2})).await.expect_status(201);
    assert_eq!((answer.json(), answer.headers.get("x-a")), (json!({"a": 1}), Some("b")));
    let asked = asked.await.unwrap();
    assert!(
        asked.starts_with("POST /p HTTP/1.1\r\n") && asked.contains("authorization: Bearer T\r\n"),
        "{asked}"
    );

    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\none\n\r\n6;x=y\r\ntwo\n\n3\r\n1\r\n3\r\n0\r\n\r\n";
    let (http, _) = toy_server(chunked).await;
    let mut open = http.request("GET", "/events").open().await;
    let mut lines = Vec::new();
    while let Some(line) = open.line().await {
        lines.push(line);
    }
    assert_eq!(lines, ["one", "two", "", "33"]);

    let (http, _) = toy_server("HTTP/1.0 200 OK\r\n\r\nuntil the end").await;
    assert_eq!(http.get("/").await.text(), "until the end");
}
