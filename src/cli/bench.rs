//! `rowcast bench`: how fast a relay delivers, and whether exactly.

use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

use rowcast::bench::service::Audience;
use rowcast::bench::{self, Plan};
use rowcast::config::Config;
use rowcast::postgres::Target;

use super::failure::Failure;
use super::token::{SecretArgs, secret, ttl};
use super::{Settings, say};

const HOW: &str = "\
It opens so many WebSockets, each of a user of its own with a token that it makes, subscribes, writes rows
through SQL at the given rate, and checks that every device gets exactly the rows it should: each once, in
order, and no other's. It makes a schema `rowcast_bench` in the database, tracks its tables, and removes both in
the end; so give it a role that may, as `rowcast track` needs it, and no database that matters. The relay must grant
`user:{sub}:*` and `global:*` (its default), and take so many sockets from one address.

Latencies are measured from the commit's return, and from the time at which a write was due, which counts also
what a late database, or a late generator, adds. CPU and memory are those of the relay, of all processes of
PostgreSQL and of this program, where they run on this machine. Exits with 1 if anything was not as it should.

  rowcast bench --url http://127.0.0.1:4000 --database-url postgres://postgres@localhost/app \\
    --devices 10000 --rate 5000 --duration 10s
  rowcast bench --audience all --devices 1000 --rate 50 --rows 10 --json";

#[derive(clap::Args)]
#[command(after_help = HOW)]
pub(super) struct Args {
    /// The relay [env: ROWCAST_URL] [default: the configured listen address]
    #[arg(long, env = "ROWCAST_URL", hide_env = true)]
    url: Option<String>,
    /// The relay's database, with a role that may make and track tables [env: ROWCAST_DATABASE_URL]
    #[arg(long, value_name = "URL")]
    database_url: Option<String>,
    /// WebSockets; the limit of open files (`ulimit -Hn`) bounds them
    #[arg(long, default_value_t = 1000)]
    devices: usize,
    /// Devices that connect at the same time
    #[arg(long, default_value_t = 64)]
    at_once: usize,
    /// `own`: rows of all devices' users in turn; `all`: every row is for every device
    #[arg(long, default_value = "own", value_parser = audience)]
    audience: Audience,
    /// Transactions a second
    #[arg(long, default_value_t = 1000.0)]
    rate: f64,
    /// How long rows are written
    #[arg(long, default_value = "10s", value_parser = ttl)]
    duration: Duration,
    /// Rows of a transaction, all of one audience
    #[arg(long, default_value_t = 1)]
    rows: u64,
    /// Connections that write
    #[arg(long, default_value_t = 16)]
    connections: usize,
    /// Length of a row's text
    #[arg(long, default_value_t = 200)]
    bytes: usize,
    /// The relay's process, where its address does not tell
    #[arg(long, value_name = "PID")]
    relay_pid: Option<u32>,
    /// Leave the schema `rowcast_bench` in the database
    #[arg(long)]
    keep: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    secret: SecretArgs,
}

pub(super) async fn run(args: Args, settings: Settings) -> Result<(), Failure> {
    let config = args.secret.clone().load_with(settings, ("database_url", args.database_url.clone()))?;
    let json = args.json;
    let report = bench::run(plan(args, &config)?)
        .await
        .map_err(|error| Failure::caused("the benchmark stopped", error.as_ref()))?;
    say(&if json { report.to_json() } else { report.to_string() })?;
    match report.wrong {
        0 => Ok(()),
        wrong => Err(Failure::new(format!("{wrong} times a device did not get what it should"))),
    }
}

fn plan(args: Args, config: &Config) -> Result<Plan, Failure> {
    if args.devices == 0 || args.rows == 0 || args.at_once == 0 || !(args.rate > 0.0 && args.rate.is_finite())
    {
        return Err(Failure::usage("--devices, --rows, --at-once and --rate must be greater than zero"));
    }
    let database = config.database_url.as_ref().ok_or_else(|| {
        Failure::usage("no database is configured").hint("set ROWCAST_DATABASE_URL or --database-url")
    })?;
    let database =
        Target::parse(database.expose()).map_err(|error| Failure::usage(format!("database_url: {error}")))?;
    Ok(Plan {
        relay: relay(args.url.as_deref(), config)?,
        database,
        secret: secret(config)?,
        relay_pid: args.relay_pid,
        devices: args.devices,
        at_once: args.at_once,
        audience: args.audience,
        rate: args.rate,
        duration: args.duration,
        rows_each: args.rows,
        connections: args.connections,
        body_bytes: args.bytes,
        keep: args.keep,
    })
}

fn relay(url: Option<&str>, config: &Config) -> Result<SocketAddr, Failure> {
    let Some(url) = url else { return Ok(config.listen) };
    let bad = || {
        Failure::usage(format!("{url} cannot be used")).hint("as in --url http://127.0.0.1:4000, without TLS")
    };
    let (scheme, host) = url.split_once("://").ok_or_else(bad)?;
    let found = host.trim_end_matches('/').to_socket_addrs().ok().and_then(|mut all| all.next());
    found.filter(|_| matches!(scheme, "http" | "ws")).ok_or_else(bad)
}

fn audience(text: &str) -> Result<Audience, String> {
    match text {
        "own" => Ok(Audience::Own),
        "all" => Ok(Audience::All),
        _ => Err("expected own or all".to_owned()),
    }
}
