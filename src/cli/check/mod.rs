//! `rowcast check`: everything that is wrong with server, roles, catalog, publication, slot, tables and
//! configuration, each with the command that mends it.
//!
//! It changes nothing, and runs with the relay's role or a DBA's. What a role may not see is `unknown`
//! and keeps nothing else from being looked at. Exit codes, for scripts: 0 nothing is wrong, 1 something
//! is, 2 it cannot be told.

mod installed;
mod report;
mod server;
mod slot;

use rowcast::config::{Config, Purpose};
use rowcast::postgres::Target;
use rowcast::wal::ReplicationConnection;
use tokio_postgres::Client;

use super::database::DatabaseArgs;
use super::failure::Failure;
use super::{Settings, say};
use report::{Level, Report};
use server::Server;

#[derive(clap::Args)]
pub(super) struct Args {
    /// The replication slot [default: the configured one]
    #[arg(long, value_name = "NAME")]
    slot: Option<String>,
    /// Take advice for a problem
    #[arg(long)]
    strict: bool,
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    database: DatabaseArgs,
}

pub(super) async fn run(args: Args, settings: Settings) -> Result<(), Failure> {
    let mut report = Report::default();
    let flags = [("database_url", args.database.given()), ("slot", args.slot)];
    let config = settings.clone().load_for_tool(&flags)?;
    judge_serving(&settings, &flags, &mut report);
    match args.database.connect(settings).await {
        Ok(database) => {
            let looked = look(&database.client, &config, &mut report).await;
            database.close().await;
            if let Err(error) = looked {
                let failure = Failure::caused("the database did not answer", &error);
                report.unknown("database", failure.texts().0, "");
            }
        }
        Err(failure) => {
            let (what, hint) = failure.texts();
            report.unknown("database", what, hint.unwrap_or_default());
        }
    }
    conclude(&report, args.strict, args.json)
}

async fn look(client: &Client, config: &Config, report: &mut Report) -> Result<(), tokio_postgres::Error> {
    let target = config.database_url.as_ref().and_then(|url| Target::parse(url.expose()).ok());
    let server = Server::read(client, &config.slot).await?;
    server.judge(target.as_ref().map_or("rowcast", Target::application_name), report);
    if let Some(limit) = config.wal_limit
        && server.keep_bytes >= 0
        && limit >= server.keep_bytes.unsigned_abs()
    {
        report.advice(
            "configuration",
            "wal_limit is not below max_slot_wal_keep_size: the server gives the slot up first",
            "Lower wal_limit, or leave it out",
        );
    }
    judge_database(client, target, report).await?;
    if installed::judge_version(client, report).await {
        slot::judge(client, &config.slot, config.wal_limit, report).await?;
        installed::judge_status(client, &config.slot, report).await?;
    }
    Ok(())
}

/// Who asks, and whether the way to the server carries replication, which a pooler does not.
async fn judge_database(
    client: &Client,
    target: Option<Target>,
    report: &mut Report,
) -> Result<(), tokio_postgres::Error> {
    const WHO: &str = "SELECT pg_catalog.current_database()::text, r.rolname::text, r.rolsuper, r.rolreplication OR r.rolsuper OR EXISTS (
           SELECT FROM pg_catalog.pg_roles g WHERE g.rolname = 'rds_replication' AND pg_catalog.pg_has_role(r.oid, g.oid, 'USAGE')),
         pg_catalog.pg_has_role(r.oid, 'pg_read_all_stats', 'USAGE')
       FROM pg_catalog.pg_roles r WHERE r.rolname = current_user";
    let row = client.query_one(WHO, &[]).await?;
    let (database, role): (String, String) = (row.try_get(0)?, row.try_get(1)?);
    if !row.try_get::<_, bool>(4)? {
        report.unknown(
            "role",
            format!(
                "{role} may not see other sessions: who holds a slot, or what it waits for, is not shown"
            ),
            format!("GRANT pg_read_all_stats TO \"{}\";", role.replace('"', "\"\"")),
        );
    }
    let Some(target) = target.filter(|_| row.get::<_, bool>(3)) else {
        report.ok(
            "database",
            format!("{database}, as {role}, which may not replicate: a replication connection was not tried"),
        );
        return Ok(());
    };
    let tried = async {
        let mut connection =
            ReplicationConnection::connect(&target).await.map_err(rowcast::wal::WalError::from)?;
        connection.identify_system().await
    };
    match tried.await {
        Ok(_) => report.ok("database", format!("{database}, as {role}; replication connections work")),
        Err(error) => {
            let failure = Failure::caused("no replication connection can be opened", &error);
            report.problem(
                "database",
                failure.texts().0,
                "database_url must name the server itself, not a pooler such as PgBouncer; and pg_hba.conf must let the role in",
            );
        }
    }
    Ok(())
}

/// What would keep `rowcast serve` from starting with what is configured here.
fn judge_serving(settings: &Settings, flags: &[(&str, Option<String>)], report: &mut Report) {
    let given = flags.iter().filter_map(|(name, text)| Some((name.to_string(), vec![text.clone()?])));
    match settings.clone().load(Purpose::Serve, given.collect()) {
        Ok(_) => report.ok("configuration", "a relay would start with it"),
        Err(failure) => {
            let what = failure.texts().0.replace('\n', ";");
            report.advice(
                "configuration",
                format!("a relay would not start with what is set here: {what}"),
                "rowcast serve --help lists every setting",
            );
        }
    }
}

fn conclude(report: &Report, strict: bool, json: bool) -> Result<(), Failure> {
    let verdict = report.verdict(strict);
    if json {
        let status = match verdict {
            Level::Ok | Level::Advice => "ok",
            Level::Unknown => "unknown",
            Level::Problem => "problems",
        };
        let mut value = serde_json::to_value(report).map_err(|error| Failure::caused("no report", &error))?;
        value["status"] = status.into();
        say(&serde_json::to_string_pretty(&value).map_err(|error| Failure::caused("no report", &error))?)?;
    } else {
        say(report.page().trim_end())?;
    }
    let counted = |level, one: &str, many: &str| match report.count(level) {
        1 => format!("1 {one}"),
        count => format!("{count} {many}"),
    };
    match verdict {
        Level::Ok | Level::Advice => Ok(()),
        Level::Unknown => {
            Err(Failure::new(counted(Level::Unknown, "thing cannot be told", "things cannot be told"))
                .cannot_tell())
        }
        Level::Problem => {
            let advice = counted(Level::Advice, "piece of advice", "pieces of advice");
            Err(Failure::new(format!("{}, {advice}", counted(Level::Problem, "problem", "problems"))))
        }
    }
}
