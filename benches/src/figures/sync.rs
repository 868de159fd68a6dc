//! Incremental sync: a user's 1,000 changes out of a large log.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use hdrhistogram::Histogram;
use memchr::memmem;
use rowcast::bench::fleet::Fleet;
use rowcast::bench::service::Audience;
use rowcast::bench::{Latency, histogram, tables};
use tokio::task::JoinSet;

use crate::Size;
use crate::fleets::{self, stage};
use crate::outcome::{Aim, Line, Outcome};
use crate::relay::Relay;
use crate::world::World;

const CHANGES: u64 = 5_000_000;
/// Of each user: one page.
const OF_A_USER: u64 = 1_000;
const CLIENTS: usize = 4;
const TIME: Duration = Duration::from_secs(5);
const INGEST: Duration = Duration::from_secs(1_800);

pub(super) async fn measure(size: Size, outcome: &mut Outcome) -> anyhow::Result<()> {
    let users = (size.of_log(CHANGES, 10_000) / OF_A_USER).max(1);
    let changes = users * OF_A_USER;
    let (world, relay, cursor) = filled(users, changes).await?;
    let (mut p50, mut p99, mut rate) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..size.runs {
        let (one, _) = run(&relay, users, &cursor, 1).await?;
        p50.push(one.p50);
        p99.push(one.p99);
        rate.push(run(&relay, users, &cursor, CLIENTS).await?.1);
    }
    let what = format!("{OF_A_USER} changes out of {changes}");
    outcome.add(Line::new("sync", format!("{what}, p50"), "ms", p50));
    outcome.add(Line::new("sync", format!("{what}, p99"), "ms", p99).aim(Aim::AtMost(10.0)));
    outcome.add(
        Line::new("sync", format!("the same, {CLIENTS} clients"), "syncs/s", rate).aim(Aim::AtLeast(500.0)),
    );
    relay.stop().await?;
    drop(world);
    Ok(())
}

/// A relay whose log holds so many changes, and the cursor before them.
pub(super) async fn filled(users: u64, changes: u64) -> anyhow::Result<(World, Relay, String)> {
    let (world, relay) = stage().await?;
    let mut fleet = Fleet::new(relay.service(Audience::Own))?;
    fleet.remember_cursors();
    let (fleet, _) = fleets::more(fleet, 1).await?;
    let cursor = fleet.cursor(0).context("a cursor")?.to_owned();
    drop(fleet);
    tables::fill(&world.client, users, 0..changes, 1_000, 1).await?;
    let end = world.end().await?;
    world.mark().await?;
    relay.wait_durable(end, INGEST).await?;
    Ok((world, relay, cursor))
}

/// Syncs of one user after another, by so many clients; latencies and syncs a second.
pub(super) async fn run(
    relay: &Relay,
    users: u64,
    cursor: &str,
    clients: usize,
) -> anyhow::Result<(Latency, f64)> {
    let cursor: Arc<str> = cursor.into();
    let mut running = JoinSet::new();
    let begun = Instant::now();
    for client in 0..clients as u64 {
        // Users who lie far apart in the log's order, and are not asked twice in a row.
        let mut https = Vec::new();
        for place in 0..users.min(8) {
            let user = 1 + (client * 7 + place * 131) % users;
            https.push((user, relay.http_as(user).await?));
        }
        running.spawn(syncs(https, Arc::clone(&cursor), begun));
    }
    let (mut all, mut count): (Histogram<u64>, u64) = (histogram(), 0);
    while let Some(syncs) = running.join_next().await {
        let syncs = syncs.context("a client panicked")??;
        count += syncs.len();
        all.add(&syncs)?;
    }
    Ok((Latency::of(&all), count as f64 / begun.elapsed().as_secs_f64()))
}

async fn syncs(
    mut https: Vec<(u64, crate::http::Http)>,
    cursor: Arc<str>,
    begun: Instant,
) -> anyhow::Result<Histogram<u64>> {
    let mut latencies = histogram();
    let wanted = format!("\"total_changes\":{OF_A_USER}");
    while begun.elapsed() < TIME {
        for (user, http) in &mut https {
            let body =
                format!("{{\"device_id\":\"bench\",\"topics\":[\"user:{user}:*\"],\"cursor\":\"{cursor}\"}}");
            let asked = Instant::now();
            let (status, answer) = http.request("POST", "/api/realtime/sync", body.as_bytes()).await?;
            latencies.saturating_record(u64::try_from(asked.elapsed().as_nanos())?);
            let tail = &answer[answer.len().saturating_sub(400)..];
            let right = status == 200 && memmem::find(&answer, wanted.as_bytes()).is_some();
            ensure!(right, "a sync is answered with {status}: …{}", String::from_utf8_lossy(tail));
        }
    }
    Ok(latencies)
}
