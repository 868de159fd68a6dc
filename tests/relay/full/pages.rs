//! Answers of many pages: memory, resumption, and whose they are.

use serde_json::{Value, json};

use crate::support::copy::{Copy, SyncPage};
use crate::support::http::Http;
use crate::support::relay::Relay;
use crate::support::scene::scene_with;

const TABLE: &str = "
    CREATE TABLE rows (id bigint PRIMARY KEY, user_id int NOT NULL, body text);
    SELECT rowcast.track('rows');";

fn filled(rows: u64) -> String {
    format!("{TABLE} INSERT INTO rows SELECT n, 1, repeat('x', 200) || n FROM generate_series(1, {rows}) n")
}

/// Rows for the test of memory; a million by hand.
fn many() -> u64 {
    std::env::var("ROWCAST_TEST_FULL_ROWS").ok().and_then(|text| text.parse().ok()).unwrap_or(100_000)
}

async fn ask(http: &Http, cursor: Option<&str>) -> SyncPage {
    let body = json!({"device_id": "phone", "topics": ["user:1:*"], "cursor": cursor});
    http.post("/api/realtime/sync", &body).await.expect_status(200).parse()
}

#[tokio::test]
async fn pages_can_be_asked_for_again_and_by_nobody_else() {
    let (pg, relay) = scene_with(&filled(20_000), |setup| setup.env("ROWCAST_SPOOL_MEMORY", "1MiB")).await;
    let http = relay.http_as("1");
    let first = ask(&http, None).await;
    assert!(first.has_more && !first.consistent && first.cursor.starts_with("full."), "{}", first.cursor);
    assert!(std::fs::metadata("/proc/self").is_ok());
    pg.sql("UPDATE rows SET body = 'later' WHERE id <= 100").await;
    let mut pages = vec![first];
    while pages[pages.len() - 1].has_more {
        let token = pages[pages.len() - 1].cursor.clone();
        // What was lost on the way comes again, the same.
        let lost = ask(&http, Some(&token)).await;
        let again = ask(&http, Some(&token)).await;
        assert_eq!(format!("{:?}", lost.changes), format!("{:?}", again.changes));
        pages.push(again);
    }
    assert!(pages.len() > 3);
    let token = pages[0].cursor.clone();
    let other = json!({"device_id": "phone", "cursor": token});
    let refused = relay.http_as("2").post("/api/realtime/sync", &other).await.expect_status(410);
    assert_eq!(refused.json()["code"], "full_sync_expired");
    let beyond = token.rsplit_once('.').unwrap().0.to_owned() + ".0000ffff";
    let beyond = json!({"device_id": "phone", "cursor": beyond});
    http.post("/api/realtime/sync", &beyond).await.expect_status(410);

    let last = pages[pages.len() - 1].cursor.clone();
    assert!(!last.starts_with("full."));
    let mut copy = Copy::default();
    copy.apply_sync(&pages);
    assert_eq!(copy.len(), 20_000);
    // What changed since is behind the cursor.
    copy.sync(&http, &json!({"device_id": "phone", "topics": ["user:1:*"], "cursor": last})).await;
    copy.assert_equals(&pg, "rows", "SELECT * FROM rows").await;
}

#[tokio::test]
async fn an_answer_expires() {
    let (_pg, relay) = scene_with(&filled(10_000), |setup| setup.env("ROWCAST_SPOOL_MAX_AGE", "300ms")).await;
    let http = relay.http_as("1");
    let token = ask(&http, None).await.cursor;
    let body = json!({"device_id": "phone", "cursor": token});
    // Each question keeps it a little longer, so wait without asking.
    let spooled = async || relay.metric("rowcast_full_syncs_kept").await == Some(0.0);
    crate::support::wait::eventually(crate::support::wait::PATIENCE, "it is forgotten", async || {
        spooled().await.then_some(())
    })
    .await;
    let gone = http.post("/api/realtime/sync", &body).await.expect_status(410);
    assert_eq!(gone.json()["code"], "full_sync_expired");
}

async fn lines(relay: &Relay, query: &str) -> Vec<Value> {
    let path = format!("/api/realtime/sync?device_id=phone&{query}");
    let request = relay.http_as("1").request("GET", &path).header("accept", "application/x-ndjson");
    let mut open = request.open().await;
    assert_eq!(open.status, 200);
    let mut lines = Vec::new();
    while let Some(line) = open.line().await {
        lines.push(serde_json::from_str(&line).unwrap());
    }
    lines
}

#[tokio::test]
async fn ndjson_streams_it_and_goes_on_where_it_broke() {
    let (_pg, relay) = scene_with(&filled(20_000), |setup| setup).await;
    let all = lines(&relay, "topics=user:1:*").await;
    let of = |kind: &str| all.iter().filter(|line| line["type"] == kind).cloned().collect::<Vec<_>>();
    assert_eq!((&all[0]["type"], &all[0]["total_rows"]), (&json!("begin"), &json!(20_000)));
    assert_eq!(all[0]["tables"]["rows"]["full"], true);
    assert_eq!(of("change").len(), 20_000);
    let end = &all[all.len() - 1];
    assert_eq!(
        (&end["type"], &end["has_more"], &end["consistent"]),
        (&json!("end"), &json!(false), &json!(true))
    );
    // From the last but one place on: the rest, and the same cursor.
    let progress = of("progress");
    let place = &progress[progress.len() - 2]["cursor"];
    let rest = lines(&relay, &format!("cursor={}", place.as_str().unwrap())).await;
    let begins = all.iter().position(|line| line["cursor"] == *place).unwrap() + 1;
    let changes =
        |lines: &[Value]| lines.iter().filter(|line| line["type"] == "change").cloned().collect::<Vec<_>>();
    assert_eq!(changes(&rest), changes(&all[begins..]));
    assert_eq!(rest[rest.len() - 1]["cursor"], end["cursor"]);
}

/// A large table, read by a device that takes its time: neither costs memory.
#[tokio::test]
async fn memory_does_not_grow_with_the_table() {
    let (_pg, relay) = scene_with(&filled(many()), |setup| setup).await;
    let http = relay.http_as("1");
    // What the first answer of any size brings with it.
    http.post("/api/realtime/sync", &json!({"device_id": "d", "topics": ["global:*"]}))
        .await
        .expect_status(200);
    let before = relay.memory_kib("VmRSS");
    let mut page = ask(&http, None).await;
    let mut rows = page.changes["rows"].len() as u64;
    while page.has_more {
        page = ask(&http, Some(&page.cursor)).await;
        rows += page.changes.get("rows").map_or(0, Vec::len) as u64;
    }
    assert_eq!(rows, many());
    let grown = relay.memory_kib("VmHWM").saturating_sub(before) / 1024;
    println!("{rows} rows: peak {grown} MiB more");
    assert!(grown < 64, "{grown} MiB more at the peak");
}
