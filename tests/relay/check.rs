//! `rowcast check`: what is wrong, how a script learns of it, and that the command it names mends it.

use rowcast::embedded::Options;
use serde_json::Value;

use crate::support::cli::{Outcome, rowcast, rowcast_at};
use crate::support::postgres::TestPostgres;
use crate::support::relay::Relay;
use crate::support::stage::{database, relay_on};
use crate::support::wait::{PATIENCE, eventually};

async fn check_as(url: &str) -> (i32, Value) {
    let outcome = rowcast_at(url, &["check", "--json"]).await;
    let json = serde_json::from_str(&outcome.stdout).unwrap_or_else(|_| panic!("no JSON: {outcome:?}"));
    (outcome.code, json)
}

/// The findings of a level, as `area: what | mend`.
fn of_level(json: &Value, level: &str) -> Vec<String> {
    let findings = json["findings"].as_array().unwrap().iter().filter(|finding| finding["level"] == level);
    findings
        .map(|f| {
            let text = |name: &str| f[name].as_str().unwrap_or_default().to_owned();
            format!("{}: {} | {}", text("area"), text("what"), text("mend"))
        })
        .collect()
}

async fn expect_problem(pg: &TestPostgres, words: &[&str]) {
    let (code, json) = check_as(&pg.url_as("rowcast_relay")).await;
    let mut problems = of_level(&json, "problem");
    assert_eq!((code, &json["status"]), (1, &"problems".into()), "{json:#}");
    // A relay that cannot go on leaves the slot, sooner or later.
    if !words.contains(&"nobody streams from it") {
        problems.retain(|problem| !problem.contains("nobody streams from it"));
    }
    assert_eq!(problems.len(), 1, "{problems:#?}");
    assert!(words.iter().all(|word| problems[0].contains(word)), "{words:?} in {problems:#?}");
}

/// Once the relay has gone on, where it had to stop.
async fn expect_fine(pg: &TestPostgres) {
    eventually(PATIENCE, "all is fine", async || {
        let (code, json) = check_as(&pg.url_as("rowcast_relay")).await;
        ((code, &json["status"]) == (0, &"ok".into())).then_some(())
    })
    .await;
}

/// A database with a tracked table and a relay on it.
async fn at_work() -> (TestPostgres, Relay) {
    let pg = database().await;
    pg.sql("CREATE TABLE orders (user_id int, id int, note text, PRIMARY KEY (user_id, id)); SELECT rowcast.track('orders')").await;
    let relay = relay_on(&pg).start().await;
    (pg, relay)
}

#[tokio::test]
async fn what_works_is_fine_for_everyone_who_may_look() {
    let (pg, _relay) = at_work().await;
    expect_fine(&pg).await;
    let (code, json) = check_as(&pg.url()).await;
    assert_eq!(code, 0, "as a superuser: {json:#}");
    let page = rowcast_at(&pg.url_as("rowcast_relay"), &["check"]).await.expect_success().stdout;
    for text in [
        "replication connections work",
        "streaming to process",
        "1 tracked: public.orders",
        "catalog: version",
    ] {
        assert!(page.contains(text), "{text:?} in {page}");
    }
    // Nothing limits what a slot keeps: advice, which counts only when asked for.
    assert!(page.contains("advice   server: max_slot_wal_keep_size is not set"), "{page}");
    let strict = rowcast_at(&pg.url_as("rowcast_relay"), &["check", "--strict"]).await;
    assert_eq!(strict.code, 1, "{strict:?}");
    // Another DBA, with no rights to rowcast: told what is missing, and still what can be seen.
    pg.sql("CREATE ROLE stranger LOGIN").await;
    let (code, json) = check_as(&pg.url_as("stranger")).await;
    assert_eq!((code, &json["status"]), (2, &"unknown".into()), "{json:#}");
    let unknown = of_level(&json, "unknown").join("\n");
    assert!(unknown.contains("GRANT rowcast_relay") && unknown.contains("pg_read_all_stats"), "{unknown}");
}

#[tokio::test]
async fn each_fault_is_found_and_its_command_mends_it() {
    let (pg, mut relay) = at_work().await;
    for (breaking, words, mend) in [
        (
            "ALTER TABLE orders REPLICA IDENTITY NOTHING",
            vec!["table", "replica identity", "rowcast.track"],
            None,
        ),
        ("REVOKE SELECT ON orders FROM rowcast_relay", vec!["may not read it"], None),
        ("ALTER PUBLICATION rowcast DROP TABLE orders", vec!["the publication lacks it"], None),
        (
            "ALTER PUBLICATION rowcast SET (publish = 'insert')",
            vec!["publication", "options were changed", "rowcast init"],
            Some("init"),
        ),
        (
            "CREATE TABLE leaked (id int PRIMARY KEY); ALTER PUBLICATION rowcast ADD TABLE leaked",
            vec!["leaked", "not in the catalog", "DROP TABLE leaked"],
            None,
        ),
        (
            "ALTER TABLE orders ENABLE ROW LEVEL SECURITY; ALTER ROLE rowcast_relay BYPASSRLS; ALTER ROLE rowcast_relay NOREPLICATION",
            vec!["role", "may not replicate", "ALTER ROLE rowcast_relay REPLICATION"],
            None,
        ),
    ] {
        pg.sql(breaking).await;
        expect_problem(&pg, &words).await;
        let (_, json) = check_as(&pg.url()).await;
        let mends: Vec<String> =
            of_level(&json, "problem").iter().map(|p| p.rsplit_once(" | ").unwrap().1.to_owned()).collect();
        match mend {
            Some(command) => drop::<Outcome>(rowcast(&pg, &[command]).await.expect_success()),
            None => pg.sql(&mends[0]).await,
        }
        expect_fine(&pg).await;
    }
    relay.terminate().await;
    expect_problem(&pg, &["slot", "nobody streams from it", "pg_drop_replication_slot('rowcast')"]).await;
    pg.sql("SELECT pg_drop_replication_slot('rowcast')").await;
    expect_problem(&pg, &["slot", "there is no replication slot rowcast", "rowcast serve"]).await;
    pg.sql("SELECT pg_create_logical_replication_slot('rowcast', 'test_decoding')").await;
    expect_problem(&pg, &["belongs to something else", "test_decoding", "--slot"]).await;
}

#[tokio::test]
async fn a_server_that_cannot_stream_says_so_before_anything_is_installed() {
    let pg = TestPostgres::start_with(
        Options::scratch()
            .setting("wal_level", "replica")
            .setting("synchronous_standby_names", "")
            .setting("max_slot_wal_keep_size", "1GB"),
    )
    .await;
    let (code, json) = check_as(&pg.url()).await;
    assert_eq!(code, 1);
    let problems = of_level(&json, "problem").join("\n");
    assert!(problems.contains("wal_level is replica") && problems.contains("rowcast init"), "{problems}");
}

#[tokio::test]
async fn a_relay_that_commits_wait_for_is_found() {
    let (pg, _relay) = at_work().await;
    pg.sql("ALTER SYSTEM SET synchronous_standby_names = '*'").await;
    pg.sql("SELECT pg_reload_conf()").await;
    eventually(PATIENCE, "the check finds it", async || {
        let (code, json) = check_as(&pg.url_as("rowcast_relay")).await;
        let problems = of_level(&json, "problem").join("\n");
        (code == 1 && problems.contains("commits wait for it") && problems.contains("synchronous standby"))
            .then_some(())
    })
    .await;
    pg.sql("ALTER SYSTEM RESET synchronous_standby_names").await;
    pg.sql("SELECT pg_reload_conf()").await;
    eventually(PATIENCE, "it is fine again", async || {
        (check_as(&pg.url_as("rowcast_relay")).await.0 == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_cannot_be_reached_cannot_be_told() {
    let (code, json) = check_as("postgres://nobody@127.0.0.1:1/nothing").await;
    assert_eq!((code, &json["status"]), (2, &"unknown".into()), "{json:#}");
    assert!(of_level(&json, "unknown")[0].contains("cannot connect"), "{json:#}");
}
