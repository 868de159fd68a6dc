//! `rowcast serve` as an operator meets it: start and stop, health, readiness and metrics, and clear words
//! for whatever is wrong on the way.

use std::net::SocketAddr;
use std::process::Stdio;

use rowcast::embedded::Options;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::process::Command;

use crate::support::http::Response;
use crate::support::postgres::TestPostgres;
use crate::support::relay::Relay;
use crate::support::token;
use crate::support::wait::{PATIENCE, eventually, within};

const SYNC: &str = "/api/realtime/sync";

/// A cluster with the catalog and one tracked table.
async fn database() -> TestPostgres {
    database_with(Options::scratch()).await
}

async fn database_with(options: Options) -> TestPostgres {
    let pg = TestPostgres::start_with(options).await;
    rowcast_ok(&["init", "--database-url", &pg.url()]).await;
    pg.sql("CREATE TABLE orders (id int PRIMARY KEY, user_id int NOT NULL, total numeric)").await;
    pg.sql("CREATE INDEX ON orders (user_id); SELECT rowcast.track('public.orders')").await;
    pg
}

async fn rowcast(arguments: &[&str], environment: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rowcast"));
    command.args(arguments).envs(environment.iter().copied()).stdin(Stdio::null()).kill_on_drop(true);
    let output = within("rowcast ends", command.output()).await.unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

async fn rowcast_ok(arguments: &[&str]) {
    let (code, text) = rowcast(arguments, &[]).await;
    assert_eq!(code, Some(0), "{text}");
}

/// Starts a relay that must end by itself with code 1, and returns its last words.
async fn refused(url: &str) -> String {
    let log = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let environment = [
        ("ROWCAST_DATABASE_URL", url),
        ("ROWCAST_LISTEN", "127.0.0.1:0"),
        ("ROWCAST_JWT_SECRET", token::SECRET),
        ("ROWCAST_LOG_DIR", log.path().to_str().unwrap()),
    ];
    let (code, text) = rowcast(&["serve"], &environment).await;
    assert_eq!(code, Some(1), "{text}");
    let words = text.lines().find(|line| line.starts_with("rowcast: the relay stopped"));
    words.unwrap_or_else(|| panic!("no last words in\n{text}")).to_owned()
}

fn assert_says(words: &str, parts: &[&str]) {
    parts.iter().for_each(|part| assert!(words.contains(part), "{part:?} is missing in: {words}"));
}

/// An answer that is a problem document with these words.
fn assert_problem(answer: &Response, status: u16, code: &str) {
    let body = String::from_utf8_lossy(&answer.body);
    assert_eq!(answer.status, status, "{body}");
    assert_eq!(answer.headers.get("content-type"), Some("application/problem+json"), "{body}");
    assert_eq!(answer.headers.get("cache-control"), Some("no-store"));
    let problem = answer.json();
    assert_eq!((&problem["code"], &problem["status"]), (&json!(code), &json!(status)), "{body}");
    assert!(problem["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{body}");
}

#[tokio::test]
async fn health_readiness_and_metrics_tell_the_state() {
    let pg = database().await;
    let mut relay = Relay::on(&pg).start().await;
    let http = relay.http();
    for path in ["/health", "/api/realtime/health"] {
        let health = http.get(path).await.expect_status(200).json();
        assert_eq!((&health["status"], &health["service"]), (&json!("healthy"), &json!("rowcast")));
        assert_eq!(health["active_connections"], json!(0));
        assert!(health["features"].is_array() && health["timestamp"].as_str().unwrap().ends_with('Z'));
    }
    let ready = http.get("/ready").await.expect_status(200).json();
    assert_eq!((&ready["status"], &ready["state"]), (&json!("ready"), &json!("streaming")));
    assert_eq!(ready["epoch"].as_str().unwrap().len(), 16);
    assert_eq!(relay.metric("rowcast_ready").await, Some(1.0));
    assert_eq!(relay.metric(r#"rowcast_ingest_state{state="streaming"}"#).await, Some(1.0));
    pg.sql("INSERT INTO orders VALUES (1, 42, 9.50)").await;
    eventually(PATIENCE, "the change is counted", async || {
        (relay.metric("rowcast_changes_total").await? >= 1.0).then_some(())
    })
    .await;
    let metrics = http.get("/metrics").await.expect_status(200);
    assert!(metrics.headers.get("content-type").unwrap().starts_with("text/plain; version=0.0.4"));
    for line in metrics.text().lines().filter(|line| line.starts_with("rowcast_")) {
        let name = line.split(['{', ' ']).next().unwrap();
        let family =
            ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
        assert!(metrics.text().contains(&format!("# HELP {family} ")), "{family} is not described");
    }
    relay.terminate().await;
    assert_eq!(relay.count_lines("listening on http://"), 1);
}

#[tokio::test]
async fn a_relay_without_its_database_is_alive_and_not_ready() {
    let mut pg = database().await;
    let relay = Relay::on(&pg).start().await;
    pg.stop_fast().await;
    let http = relay.http();
    let not_ready = eventually(PATIENCE, "GET /ready is 503", async || {
        let answer = http.get("/ready").await;
        (answer.status == 503).then(|| answer.json())
    })
    .await;
    assert_eq!((&not_ready["status"], &not_ready["reason"]), (&json!("not_ready"), &json!("not_streaming")));
    http.get("/health").await.expect_status(200);
    // What the log holds is still served.
    let user = relay.http_as("42");
    let answer = user.post(SYNC, &json!({"device_id": "d", "topics": ["user:42:*"]})).await;
    assert_problem(&answer, 503, "unavailable");
    pg.start_again().await;
    relay.wait_ready().await;
}

#[tokio::test]
async fn sync_waits_for_the_first_log() {
    // A port where nobody listens, so that the relay keeps trying.
    let nobody =
        TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap().local_addr().unwrap();
    let url = format!("postgres://postgres@127.0.0.1:{}/postgres?connect_timeout=2", nobody.port());
    let mut relay = Relay::on_url(&url).start_listening().await;
    let answer = relay.http_as("42").get(&format!("{SYNC}?device_id=d&topics=user:42:*")).await;
    assert_problem(&answer, 503, "not_ready");
    assert_eq!(answer.headers.get("retry-after"), Some("2"));
    relay.terminate().await;
}

#[tokio::test]
async fn a_device_syncs_from_its_cursor_as_json_and_ndjson() {
    let pg = database().await;
    let relay = Relay::on(&pg).start().await;
    let ready = relay.http().get("/ready").await.json();
    let (epoch, watermark) = (ready["epoch"].as_str().unwrap(), ready["watermark"].as_str().unwrap());
    let (high, low) = watermark.split_once('/').unwrap();
    let cursor = format!("{epoch}.{high:0>8}{low:0>8}.00000000").to_lowercase();
    pg.sql("INSERT INTO orders VALUES (1, 42, 9.50), (2, 7, 1)").await;
    let user = relay.http_as("42");
    let body = json!({"device_id": "d", "topics": ["user:42:*"], "cursor": cursor});
    let answer = eventually(PATIENCE, "the change is in the log", async || {
        let answer = user.post(SYNC, &body).await.expect_status(200).json();
        (answer["total_changes"] != json!(0)).then_some(answer)
    })
    .await;
    let changes: &Value = &answer["changes"]["orders"];
    assert_eq!(changes.as_array().unwrap().len(), 1, "{answer}");
    assert_eq!(changes[0]["record"], json!({"id": 1, "user_id": 42, "total": 9.50}));
    let path = format!("{SYNC}?device_id=d&topics=user:42:*&cursor={cursor}");
    let mut lines = user.request("GET", &path).header("accept", "application/x-ndjson").open().await;
    assert_eq!((lines.status, lines.headers.get("content-type")), (200, Some("application/x-ndjson")));
    let mut kinds = Vec::new();
    while let Some(line) = lines.line().await {
        let line: Value = serde_json::from_str(&line).unwrap();
        kinds.push(line["type"].as_str().unwrap().to_owned());
    }
    assert_eq!(kinds, ["begin", "change", "end"]);
    for encoding in ["gzip", "zstd"] {
        let answer = user.request("GET", &path).header("accept-encoding", encoding).send().await;
        assert_eq!(answer.headers.get("content-encoding"), Some(encoding));
    }
}

#[tokio::test]
async fn http_errors_are_problem_documents() {
    let pg = database().await;
    let relay = Relay::on(&pg).start().await;
    let (http, user) = (relay.http(), relay.http_as("42"));
    assert_problem(&http.get("/nothing/here").await, 404, "not_found");
    let wrong_method = http.delete("/health").await;
    assert_problem(&wrong_method, 405, "method_not_allowed");
    assert!(wrong_method.headers.get("allow").unwrap().contains("GET"));

    let missing = http.post(SYNC, &json!({})).await;
    assert_problem(&missing, 401, "token_missing");
    assert_eq!(missing.headers.get("www-authenticate"), Some("Bearer"));
    let expired = http.with_token(&token::user_until("42", 1_000_000_000)).post(SYNC, &json!({})).await;
    assert_problem(&expired, 401, "token_expired");
    assert!(expired.headers.get("www-authenticate").unwrap().starts_with("Bearer error=\"invalid_token\""));
    let forged = http.with_token(&token::mint_with(&"x".repeat(32), &json!({"sub": "42"}))).get(SYNC).await;
    assert_problem(&forged, 401, "token_invalid");
    // Tokens in the URL are off.
    assert_problem(&http.get(&format!("{SYNC}?token={}", token::user("42"))).await, 401, "token_missing");

    let json_body =
        |body: &str| user.request("POST", SYNC).header("content-type", "application/json").body(body);
    assert_problem(&json_body("{\"device_id\":").send().await, 400, "invalid_request");
    assert_problem(&json_body("[]").send().await, 400, "invalid_request");
    let large = json!({"device_id": "d", "topics": ["x".repeat(70_000)]});
    assert_problem(&user.post(SYNC, &large).await, 413, "too_large");
    let others = user.get(&format!("{SYNC}?device_id=d&topics=user:43:*")).await;
    assert_problem(&others, 403, "not_granted");
    assert_problem(&user.get("/api/realtime/ws/phone").await, 400, "invalid_request");

    let output = relay.output().join("\n");
    assert!(!output.contains("eyJ"), "a token is in the relay's own output:\n{output}");
}

#[tokio::test]
async fn a_wrong_url_says_what_is_wrong() {
    let pg = TestPostgres::start().await;
    let words = refused(&pg.url_of("nowhere")).await;
    assert_says(&words, &["\"nowhere\" does not exist", "correct the name in database_url"]);
    let words = refused(&pg.url().replace("postgres@", "nobody_here@")).await;
    assert_says(&words, &["nobody_here", "check user and password"]);
}

#[tokio::test]
async fn what_is_missing_in_the_database_is_named_with_the_remedy() {
    let pg = TestPostgres::start().await;
    assert_says(&refused(&pg.url()).await, &["publication rowcast is missing", "rowcast init"]);
    rowcast_ok(&["init", "--database-url", &pg.url()]).await;
    pg.sql("CREATE ROLE plain LOGIN").await;
    let words = refused(&pg.url().replace("postgres@", "plain@")).await;
    assert_says(&words, &["plain may not replicate", "ALTER ROLE plain REPLICATION"]);
    pg.sql("ALTER ROLE plain REPLICATION").await;
    assert_says(&refused(&pg.url().replace("postgres@", "plain@")).await, &["GRANT rowcast_relay"]);
}

#[tokio::test]
async fn a_server_that_cannot_decode_is_named_with_the_remedy() {
    let pg = TestPostgres::start_with(Options::scratch().setting("wal_level", "replica")).await;
    rowcast_ok(&["init", "--database-url", &pg.url()]).await;
    assert_says(
        &refused(&pg.url()).await,
        &["wal_level is replica", "ALTER SYSTEM SET wal_level = 'logical'"],
    );

    let pg = database_with(Options::scratch().setting("max_replication_slots", "1")).await;
    pg.sql("SELECT pg_create_logical_replication_slot('other', 'pgoutput')").await;
    assert_says(
        &refused(&pg.url()).await,
        &["all replication slots are in use", "raise max_replication_slots"],
    );
}

#[tokio::test]
async fn a_second_relay_waits_for_the_slot_and_takes_over() {
    let pg = database().await;
    let mut first = Relay::on(&pg).start().await;
    let second = Relay::on(&pg).start_listening().await;
    eventually(PATIENCE, "the second says who has the slot", async || {
        (second.count_lines("is in use by process") > 0).then_some(())
    })
    .await;
    assert_eq!(second.http().get("/ready").await.status, 503);
    first.terminate().await;
    second.wait_ready().await;
}

#[tokio::test]
async fn being_a_synchronous_standby_raises_an_alarm() {
    let pg = database().await;
    let relay = Relay::on(&pg).env("ROWCAST_FINGERPRINT_INTERVAL", "100ms").start().await;
    assert_eq!(relay.metric("rowcast_synchronous_standby").await, Some(0.0));
    pg.sql("ALTER SYSTEM SET synchronous_standby_names = '*'").await;
    pg.sql("SELECT pg_reload_conf()").await;
    eventually(PATIENCE, "the alarm rings", async || {
        (relay.metric("rowcast_synchronous_standby").await? > 0.0).then_some(())
    })
    .await;
    assert_eq!(relay.count_lines("counts this relay as a synchronous standby"), 1);
}

#[tokio::test]
async fn wal_held_beyond_the_threshold_raises_an_alarm() {
    let pg = database().await;
    let relay = Relay::on(&pg)
        .env("ROWCAST_FINGERPRINT_INTERVAL", "100ms")
        .env("ROWCAST_WAL_ALERT", "1")
        .start()
        .await;
    eventually(PATIENCE, "the alarm rings", async || {
        (relay.metric("rowcast_wal_alert").await? > 0.0).then_some(())
    })
    .await;
    assert_eq!(relay.count_lines("PostgreSQL keeps much WAL"), 1);
}

#[tokio::test]
async fn a_restart_goes_on_in_the_same_epoch() {
    let pg = database().await;
    let mut relay = Relay::on(&pg).start().await;
    let epoch = relay.http().get("/ready").await.json()["epoch"].clone();
    pg.sql("INSERT INTO orders VALUES (1, 42, 1)").await;
    relay.restart().await;
    assert_eq!(relay.http().get("/ready").await.json()["epoch"], epoch);
    relay.kill9().await;
    relay.start_again().await;
    relay.wait_ready().await;
    assert_eq!(relay.http().get("/ready").await.json()["epoch"], epoch);
}
