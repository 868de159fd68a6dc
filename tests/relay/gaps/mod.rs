//! Gaps are declared: whatever cannot be delivered reaches each device that it concerns as a message that
//! says what, from where, up to where, and why; nobody else hears of it; and a device that does what it is
//! told has the database's rows again.
//!
//! [`PROOFS`] is the page of it: which test causes which reason, for real, on which transport. A reason that
//! is new has to be proven here and told in docs/PROTOCOL.md before these tests pass.
//!
//! `marks` are causes that end single topics, `whole` those that end all at once, `rights` what a token, or
//! its request, brings with it. `ear` is a device of any transport.

mod ear;
mod marks;
mod rights;
mod whole;

use std::collections::BTreeSet;

use rowcast::change::Reason;

/// Where a device can be told. A subscription is meant by wildcard and by name.
const PLACES: [&str; 9] = [
    "socket, live",
    "socket, resumed",
    "stream, live",
    "stream, resumed",
    "poll, waiting",
    "poll by cursor",
    "poll by time",
    "sync by cursor",
    "sync by time",
];

/// All of [`PLACES`] at once.
const EVERYWHERE: &[&str] = &PLACES;
const BY_CURSOR: &[&str] = &["socket, resumed", "stream, resumed", "poll by cursor", "sync by cursor"];
const BY_TIME: &[&str] = &["poll by time", "sync by time"];
const SYNCS: &[&str] = &["sync by cursor"];
const LIVE: &[&str] = &["socket, live", "stream, live"];

/// Reason, places, and the test that causes it there. Where a reason is not named for a place, it cannot come
/// about: a backlog needs a reader that has fallen behind; a log that begins anew knows no time before it
/// (`too_old` there); the last three are of what a request says.
const PROOFS: &[(&str, &[&str], &str)] = &[
    ("schema_changed", EVERYWHERE, "gaps::marks::schema_changed"),
    ("schema_changed", EVERYWHERE, "gaps::marks::schema_changed_by_a_partition"),
    ("newly_tracked", EVERYWHERE, "gaps::marks::newly_tracked"),
    ("retracked", EVERYWHERE, "gaps::marks::retracked"),
    ("untracked", EVERYWHERE, "gaps::marks::untracked"),
    ("toast", EVERYWHERE, "gaps::marks::toast"),
    // In a sync the table is `unavailable` until it is mended.
    ("identity", EVERYWHERE, "gaps::marks::identity"),
    ("epoch", LIVE, "gaps::whole::epoch"),
    ("epoch", &["poll, waiting"], "gaps::whole::epoch"),
    ("epoch", BY_CURSOR, "gaps::whole::epoch"),
    ("too_old", BY_CURSOR, "gaps::whole::too_old"),
    ("too_old", BY_TIME, "gaps::whole::too_old"),
    (
        "too_old",
        &["socket, resumed", "sync by cursor"],
        "slow::what_retention_has_passed_is_too_old_and_the_log_stays_small",
    ),
    ("backlog", LIVE, "gaps::whole::backlog"),
    ("backlog", &["socket, live"], "slow::a_slow_device_that_the_log_has_left_behind_is_told_to_sync"),
    ("newly_granted", SYNCS, "gaps::rights::a_grant_that_ends_is_told_on_every_transport"),
    ("newly_granted", SYNCS, "full::what_was_granted_since_comes_in_full_and_what_is_gone_is_told"),
    ("no_cursor", SYNCS, "gaps::rights::a_place_that_the_log_does_not_know_is_answered_in_full"),
    ("timestamp_in_future", BY_TIME, "gaps::rights::a_place_that_the_log_does_not_know_is_answered_in_full"),
];

/// What is not delivered and is told otherwise than by a reason: how, and the test.
const OTHERWISE: &[(&str, &str)] = &[
    ("`revoked`, live and in an answer", "gaps::rights::a_grant_that_ends_is_told_on_every_transport"),
    ("`revoked`, in the middle of a replay", "grants::rows::a_replay_under_way_ends_with_its_grant"),
    ("4401 `token_revoked`", "grants::revoked::a_revocation_closes_sessions_and_refuses_older_tokens"),
    ("4401 `token_expired`", "delivery::tokens::a_token_that_expires_closes_its_session_at_that_moment"),
    ("410 `full_sync_expired`, after its time", "full::pages::an_answer_expires"),
    (
        "410 `full_sync_expired`, tracked otherwise",
        "full::queued::a_full_answer_is_not_served_once_its_tables_are_tracked_otherwise",
    ),
    ("`busy`, a table that is locked", "full::socket::a_snapshot_that_cannot_be_had_says_why"),
    (
        "`busy`, a snapshot of tables tracked otherwise",
        "full::queued::a_snapshot_over_a_socket_is_of_the_tables_as_they_are_tracked_at_its_turn",
    ),
    ("`not_granted` for one topic of many", "privacy::topics::one_pattern_out_of_many_is_refused_alone"),
    (
        "`too_many_subscriptions`, and messages that are too large",
        "edge::limits::messages_subscriptions_and_sessions_are_bounded",
    ),
    ("`rate_limited` on an open socket", "bounds::limits::what_reads_much_takes_from_a_bucket"),
    (
        "`invalid_cursor`, beyond what the database has written",
        "delivery::refusals::a_cursor_beyond_the_servers_wal_is_invalid_and_a_foreign_one_needs_a_sync",
    ),
    (
        "broadcasts that are over are not told: no copy suffers",
        "delivery::messages::a_broadcast_that_is_over_is_not_replayed",
    ),
    (
        "4408, and then the log, for who takes nothing",
        "events::a_reader_that_takes_nothing_is_given_up_and_can_come_back",
    ),
];

/// The names of all reasons, as the type itself knows them.
fn reasons() -> BTreeSet<String> {
    let error = serde_json::from_str::<Reason>("\"no such reason\"").unwrap_err().to_string();
    let names = error.split('`').skip(3).step_by(2);
    names
        .filter(|name| serde_json::from_str::<Reason>(&format!("\"{name}\"")).is_ok())
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_reason_is_proven_and_no_proof_is_of_another() {
    let proven: BTreeSet<String> = PROOFS.iter().map(|(reason, ..)| (*reason).to_owned()).collect();
    assert!(reasons().len() >= 12, "{:?}", reasons());
    assert_eq!(reasons(), proven);
    for (_, places, _) in PROOFS {
        assert!(places.iter().all(|place| PLACES.contains(place)), "{places:?}");
    }
}

#[test]
fn every_reason_has_its_row_in_the_protocol() {
    let protocol = include_str!("../../../docs/PROTOCOL.md");
    let rows = protocol.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` |"));
    let told: BTreeSet<&str> = rows.map(|(name, _)| name).collect();
    for reason in reasons() {
        assert!(told.contains(&*reason), "docs/PROTOCOL.md has no row for the reason `{reason}`");
    }
}

#[test]
fn every_proof_is_a_test() {
    let listed = std::process::Command::new(std::env::current_exe().unwrap()).arg("--list").output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let tests: BTreeSet<&str> = listed.lines().filter_map(|line| line.strip_suffix(": test")).collect();
    let named = PROOFS.iter().map(|(.., test)| test).chain(OTHERWISE.iter().map(|(_, test)| test));
    for test in named {
        assert!(tests.contains(test), "there is no test {test}");
    }
}
