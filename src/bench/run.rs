//! One run: devices join, rows are written, everything is checked and counted.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use super::board::Board;
use super::fleet::{Fleet, allow_files};
use super::processes::{self, Parties};
use super::report::Report;
use super::service::{Audience, Kind, Service};
use super::writers::{self, Load};
use super::{ready, tables};
use crate::auth::Secret;
use crate::postgres::{Target, connect};

/// How long devices may take to join, and what was written to arrive after the last commit.
const PATIENCE: Duration = Duration::from_secs(120);
/// Nothing may come behind the last row.
const AFTERWARDS: Duration = Duration::from_millis(200);

/// What to run, against which relay and database.
#[derive(Debug, Clone)]
pub struct Plan {
    pub relay: SocketAddr,
    /// The database that the relay reads, with a role that may make and track tables.
    pub database: Target,
    pub secret: Secret,
    /// The relay's process, where it cannot be found by its address.
    pub relay_pid: Option<u32>,
    pub devices: usize,
    /// Devices that connect at once.
    pub at_once: usize,
    pub audience: Audience,
    /// Transactions a second.
    pub rate: f64,
    pub duration: Duration,
    pub rows_each: u64,
    pub connections: usize,
    pub body_bytes: usize,
    /// Leave the tables where they are.
    pub keep: bool,
}

/// Runs it. An error means that there is no result; what was wrong with the deliveries is in the report.
pub async fn run(plan: Plan) -> anyhow::Result<Report> {
    let most = allow_files().context("the limit of open files cannot be raised")?;
    ensure!(plan.devices <= most, "{} devices are too many: this process may hold {most}", plan.devices);
    let (client, driver) = connect(&plan.database).await.context("cannot connect to the database")?;
    tables::create(&client, plan.body_bytes).await.context("the tables cannot be made and tracked")?;
    let parties = parties(&plan, &client).await;
    let kind = Kind::Relay { secret: plan.secret.clone(), audience: plan.audience };
    let service = Service { address: plan.relay, kind };
    let measured = devices_and_writers(&plan, service, parties, &client).await;
    if !plan.keep {
        tables::remove(&client).await.context("the tables cannot be removed")?;
    }
    drop((client, driver));
    measured
}

async fn devices_and_writers(
    plan: &Plan,
    service: Service,
    parties: Parties,
    client: &tokio_postgres::Client,
) -> anyhow::Result<Report> {
    ready::caught_up(client, &service).await?;
    let plan = plan.clone();
    let measured = tokio::task::spawn_blocking(move || measure(&plan, service, parties)).await;
    measured.context("the devices' thread panicked")?
}

fn measure(plan: &Plan, service: Service, parties: Parties) -> anyhow::Result<Report> {
    let mut fleet = Fleet::new(service)?;
    let before = parties.costs();
    let joining = fleet.connect(plan.devices, plan.at_once, PATIENCE)?;
    let idle = parties.costs();
    let count = (plan.rate * plan.duration.as_secs_f64()).max(1.0) as u64;
    let load = Load {
        database: plan.database.clone(),
        audience: plan.audience,
        users: plan.devices as u64,
        connections: plan.connections,
        rate: plan.rate,
        count,
        rows_each: plan.rows_each,
        first: 1,
        n_from: 1,
        body_bytes: plan.body_bytes,
    }
    .ordered();
    let expected = match plan.audience {
        Audience::Own => load.rows(),
        Audience::All => load.rows() * plan.devices as u64,
    };
    let board = Arc::new(Board::new(load.first, load.rows()));
    let begun = Instant::now();
    let writing = writers::start(load.clone(), Arc::clone(&board))?;
    let complete = fleet.receive(expected, Some(&board), plan.duration + PATIENCE)?;
    let took = begun.elapsed();
    let after = parties.costs();
    let written = writing.finish()?;
    if complete {
        fleet.linger(Some(&board), AFTERWARDS)?;
    }
    fleet.check(|user| load.rows_of(user));
    let tally = fleet.take_tally();
    Ok(Report::new(plan, &load, joining, took, &written, &tally, [before, idle, after]))
}

/// Who can be told apart: processes of this machine.
async fn parties(plan: &Plan, client: &tokio_postgres::Client) -> Parties {
    let backend = client.query_one("SELECT pg_backend_pid()", &[]).await.ok();
    let backend = backend.and_then(|row| u32::try_from(row.try_get::<_, i32>(0).ok()?).ok());
    // A process of this number may be another one, if the server is on another machine.
    let here = backend.filter(|pid| processes::is_named(*pid, "postgres"));
    let relay =
        plan.relay_pid.or_else(|| processes::listener(plan.relay).filter(|_| plan.relay.ip().is_loopback()));
    Parties { relay, postgres: here.and_then(processes::parent) }
}
