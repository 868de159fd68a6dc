//! All metrics of the relay: their names and meanings in one place, and `/metrics`, which prints them.
//!
//! Counters and histograms are recorded where things happen. Gauges are set when somebody asks, from
//! the same numbers that `/ready` judges by. No label holds a user, a device or a topic.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::extract::{MatchedPath, State};
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use metrics::{Unit, describe_counter, describe_gauge, describe_histogram, gauge};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use super::health;
use super::problem_response::ProblemResponse;
use super::relay::Relay;
use crate::ingest;
use crate::lsn::Lsn;
use crate::timestamp::PgTimestamp;

/// Version 0.0.4 of the text format.
const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Upper bounds of a request's duration, in seconds.
const SECONDS: [f64; 11] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0];

const STATES: [&str; 5] = ["connecting", "opening", "streaming", "waiting", "failed"];

/// The process's recorder, installed at the first call.
pub(crate) fn install() -> PrometheusHandle {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    HANDLE
        .get_or_init(|| {
            let requests = Matcher::Full("rowcast_http_request_seconds".to_owned());
            // Fails only for an empty list of bounds.
            let builder =
                PrometheusBuilder::new().set_buckets_for_metric(requests, &SECONDS).unwrap_or_default();
            let recorder = builder.build_recorder();
            let handle = recorder.handle();
            if metrics::set_global_recorder(recorder).is_err() {
                tracing::warn!("this process records metrics elsewhere; /metrics stays empty");
            }
            describe();
            handle
        })
        .clone()
}

fn describe() {
    describe_gauge!(
        "rowcast_grants_ended",
        "rules of rowcast.grant_by whose grants ended by a change of their table"
    );
    describe_counter!("rowcast_full_syncs_total", "full syncs and snapshots that were begun");
    describe_counter!(
        "rowcast_full_sync_retries_total",
        "full syncs begun again because their tables changed"
    );
    describe_counter!(
        "rowcast_fences_total",
        "messages that joined snapshots to the stream; concurrent full syncs share them"
    );
    describe_gauge!("rowcast_full_syncs_kept", "full answers that are being made or wait for their devices");
    describe_histogram!("rowcast_full_sync_seconds", Unit::Seconds, "time to make a full answer");
    describe_gauge!("rowcast_build_info", "1, labelled with the version that runs");
    describe_gauge!("rowcast_ready", "1 while /ready says yes");
    describe_gauge!("rowcast_ingest_state", "1 for the state that ingest is in");
    describe_gauge!(
        "rowcast_lsn",
        Unit::Bytes,
        "positions in the write-ahead log: server, received, watermark (readable), durable (flushed), confirmed (to PostgreSQL)"
    );
    describe_gauge!(
        "rowcast_lag_bytes",
        Unit::Bytes,
        "write-ahead log that the server has and ingest has not"
    );
    describe_gauge!("rowcast_lag_seconds", Unit::Seconds, "how long ingest has been behind");
    describe_gauge!("rowcast_sessions", "live connections of devices");
    describe_gauge!("rowcast_users", "users with a live connection");
    describe_gauge!(
        "rowcast_tasks",
        "tasks of the runtime: connections, sessions, full syncs, and the relay's own"
    );
    describe_gauge!("rowcast_devices", "devices of users with a live connection");
    describe_gauge!(
        "rowcast_devices_unwritten",
        "reports for the registry of devices that are not in the log yet"
    );
    describe_counter!(
        "rowcast_devices_passed_over_total",
        "reports for the registry of devices that there was no room for"
    );
    describe_gauge!("rowcast_log_bytes", Unit::Bytes, "the log's size on disk");
    describe_gauge!("rowcast_log_spans", "spans of time that the log is kept in");
    describe_gauge!("rowcast_log_queued_bytes", Unit::Bytes, "accepted by the log and not yet readable");
    describe_gauge!(
        "rowcast_slot_wal_held_bytes",
        Unit::Bytes,
        "WAL that the slot keeps PostgreSQL from removing"
    );
    describe_gauge!("rowcast_slot_wal_limit_bytes", Unit::Bytes, "max_slot_wal_keep_size; 0 is no limit");
    describe_gauge!(
        "rowcast_wal_limit_bytes",
        Unit::Bytes,
        "wal_limit: beyond it the relay drops its slot; 0 is never"
    );
    describe_counter!("rowcast_slots_dropped_total", "slots that the relay dropped because of wal_limit");
    describe_gauge!("rowcast_wal_alert", "1 while more WAL is held than wal_alert or half of the limit");
    describe_gauge!(
        "rowcast_synchronous_standby",
        "1 while commits may wait for the relay (synchronous_standby_names)"
    );
    describe_counter!("rowcast_transactions_total", "transactions received");
    describe_counter!("rowcast_changes_total", "changes received that are for anyone");
    describe_counter!("rowcast_deliveries_total", "changes and broadcasts put into frames for sessions");
    describe_counter!("rowcast_sessions_behind_total", "times that a session fell back to reading the log");
    describe_counter!("rowcast_sessions_closed_total", "sessions ended, by close code");
    describe_counter!(
        "rowcast_sync_required_total",
        "topics that sessions were told to sync in full, by reason"
    );
    describe_counter!(
        "rowcast_messages_dropped_total",
        "logical messages dropped: not ours, or not well-formed"
    );
    describe_counter!(
        "rowcast_ingest_failures_total",
        "ends of the replication stream that were not asked for"
    );
    describe_counter!("rowcast_jwks_fetches_total", "fetches of jwks_url, by outcome: ok, failed");
    describe_gauge!("rowcast_jwks_keys", "keys of jwks_url that tokens are checked with");
    describe_gauge!("rowcast_jwks_failing", "1 while fetches of jwks_url fail");
    describe_counter!("rowcast_new_epochs_total", "logs begun anew because history was lost");
    describe_counter!(
        "rowcast_rate_limited_total",
        "requests and sockets refused by a rate limit, by bucket"
    );
    describe_counter!("rowcast_tls_handshake_failures_total", "connections that did not get as far as HTTP");
    describe_gauge!(
        "rowcast_tls_certificate_expiry_seconds",
        Unit::Seconds,
        "when the certificate in force ends, as Unix time"
    );
    describe_counter!("rowcast_http_requests_total", "answered requests by route, method and status");
    describe_histogram!(
        "rowcast_http_request_seconds",
        Unit::Seconds,
        "time to the head of the answer, by route"
    );
}

/// GET `/metrics`
pub(super) async fn metrics(State(relay): State<Arc<Relay>>) -> Response {
    // The log's numbers may come from the disk.
    let text = tokio::task::spawn_blocking(move || {
        set_gauges(&relay);
        relay.metrics.render()
    });
    match text.await {
        Ok(text) => ([(header::CONTENT_TYPE, MEDIA_TYPE)], text).into_response(),
        Err(error) => ProblemResponse::internal(&error).into_response(),
    }
}

/// One answer. Unknown paths and methods share a label: they are the client's to choose.
pub(super) fn count_request(
    method: &Method,
    route: Option<&MatchedPath>,
    status: StatusCode,
    took: Duration,
) {
    let route = route.map_or_else(|| "unknown".to_owned(), |route| route.as_str().to_owned());
    let method = match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    };
    let status = status.as_u16().to_string();
    metrics::histogram!("rowcast_http_request_seconds", "route" => route.clone()).record(took.as_secs_f64());
    metrics::counter!("rowcast_http_requests_total", "route" => route, "method" => method, "status" => status)
        .increment(1);
}

#[expect(clippy::cast_precision_loss, reason = "exact up to 8 PiB")]
fn set_gauges(relay: &Relay) {
    let progress = &relay.progress;
    gauge!("rowcast_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1);
    gauge!("rowcast_ready").set(if health::is_ready(relay) { 1 } else { 0 });
    let state: ingest::State = progress.state();
    for name in STATES {
        gauge!("rowcast_ingest_state", "state" => name).set(if state.name() == name { 1 } else { 0 });
    }
    gauge!("rowcast_lag_bytes").set(progress.lag_bytes() as f64);
    let lag = progress.lag_micros(PgTimestamp::now().unix_micros());
    gauge!("rowcast_lag_seconds").set(lag as f64 / 1e6);
    gauge!("rowcast_slot_wal_held_bytes").set(progress.wal_held() as f64);
    gauge!("rowcast_slot_wal_limit_bytes").set(progress.wal_limit().unwrap_or(0) as f64);
    gauge!("rowcast_synchronous_standby").set(if progress.is_synchronous() { 1 } else { 0 });
    let (sessions, users) = relay.sessions.count();
    gauge!("rowcast_sessions").set(sessions as f64);
    gauge!("rowcast_users").set(users as f64);
    gauge!("rowcast_devices").set(relay.sessions.devices() as f64);
    // Ingest has a runtime of its own, with one task.
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        gauge!("rowcast_tasks").set(runtime.metrics().num_alive_tasks() as f64);
    }
    gauge!("rowcast_devices_unwritten").set(relay.devices.unwritten() as f64);
    let set_lsn =
        |stage: &'static str, lsn: Lsn| gauge!("rowcast_lsn", "stage" => stage).set(lsn.get() as f64);
    set_lsn("server", progress.server_end());
    set_lsn("received", progress.received());
    set_lsn("confirmed", progress.confirmed());
    if let Some(feed) = relay.current_feed() {
        set_lsn("watermark", feed.watermark().lsn);
        set_lsn("durable", *feed.log.durable().borrow());
        let stats = feed.log.stats();
        gauge!("rowcast_log_bytes").set(stats.bytes_on_disk as f64);
        gauge!("rowcast_log_spans").set(stats.spans as f64);
        gauge!("rowcast_log_queued_bytes").set(stats.queued_bytes as f64);
    }
}
