//! What most tests begin with: a database with the catalog, and a relay that has no more rights in it
//! than `sql/` grants.

use serde_json::Value;

use super::cli::rowcast;
use super::device::Device;
use super::frame::Frame;
use super::http::Http;
use super::postgres::TestPostgres;
use super::relay::{Relay, Setup};
use super::wait::{PATIENCE, eventually};

/// A cluster with the catalog, whose relay role may log in.
pub(crate) async fn database() -> TestPostgres {
    let pg = TestPostgres::start().await;
    rowcast(&pg, &["init"]).await.expect_success();
    pg.sql("ALTER ROLE rowcast_relay LOGIN").await;
    pg
}

/// A relay that connects as `rowcast_relay` and looks for DDL often.
pub(crate) fn relay_on(postgres: &TestPostgres) -> Setup {
    Relay::on_url(&postgres.url_as("rowcast_relay")).env("ROWCAST_FINGERPRINT_INTERVAL", "100ms")
}

/// All frames up to a broadcast that is sent now to an audience, such as `user:42`, whose topic `mark`
/// the device has subscribed: what was committed before it, and is for the device, is among them. The
/// broadcast itself is left out.
pub(crate) async fn frames_until_now(
    postgres: &TestPostgres,
    device: &mut Device,
    audience: &str,
) -> Vec<Frame> {
    let id = postgres.value(&format!("SELECT rowcast.broadcast('{audience}:mark', 'mark', 'null')")).await;
    let mut frames = Vec::new();
    loop {
        frames.extend(device.until("broadcast").await);
        let last = frames.pop().expect("the broadcast");
        if last.json()["id"] == id.as_str() {
            return frames;
        }
        frames.push(last);
    }
}

/// The answer of a sync once it holds this many changes: the log may be a moment behind what devices
/// were sent already.
pub(crate) async fn synced(http: &Http, body: &Value, changes: usize) -> Value {
    eventually(PATIENCE, &format!("{changes} changes from {body}"), async || {
        let answer = http.post("/api/realtime/sync", body).await.expect_status(200).json();
        (answer["total_changes"] == changes).then_some(answer)
    })
    .await
}
