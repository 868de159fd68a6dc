//! What the catalog itself knows to be wrong: publication, slots, roles and tables, by the view
//! `rowcast.status`; and the role that asks.

use rowcast::postgres::catalog::{self, CatalogError};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::report::{Level, Report};

/// What does not stop a relay: full syncs are slower, or refused for a table.
const ADVICE: [&str; 2] = ["no index of ", "it cannot see who holds its slot"];

/// Whether the catalog is there in this release's version.
pub(super) async fn judge_version(client: &Client, report: &mut Report) -> bool {
    const AREA: &str = "catalog";
    match catalog::version(client).await {
        Ok(Some(catalog::VERSION)) => {
            report.ok(AREA, format!("version {}", catalog::VERSION));
            return true;
        }
        Ok(Some(found)) if found < catalog::VERSION => report.problem(
            AREA,
            format!("it has version {found}, and this release needs {}", catalog::VERSION),
            "rowcast init",
        ),
        Ok(Some(found)) => report.problem(
            AREA,
            format!("it has version {found}, and this release knows {}", catalog::VERSION),
            "Use the rowcast release that installed it, or a later one.",
        ),
        Ok(None) => report.problem(AREA, "there is none in this database", "rowcast init, as a role that may create roles and schemas"),
        Err(error) if lacks_rights(&error) => report.unknown(
            AREA,
            "this role may not read it",
            "Use the relay's role, a member of rowcast_owner or a superuser; or GRANT rowcast_relay TO this role",
        ),
        Err(error) => report.unknown(AREA, error.to_string(), ""),
    }
    false
}

fn lacks_rights(error: &CatalogError) -> bool {
    matches!(error, CatalogError::Rights { .. })
}

/// The rows of `rowcast.status`; those of `slot` as far as they name another than the missing one.
pub(super) async fn judge_status(
    client: &Client,
    slot: &str,
    report: &mut Report,
) -> Result<(), tokio_postgres::Error> {
    const QUERY: &str = "SELECT part, name, state, problem, mend FROM rowcast.status WHERE part <> 'server'";
    let rows = match client.query(QUERY, &[]).await {
        Ok(rows) => rows,
        Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
            report.unknown(
                "catalog",
                "this role may not read rowcast.status",
                "GRANT rowcast_relay TO this role",
            );
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let mut tracked = std::collections::BTreeSet::new();
    for row in &rows {
        let (part, name, state): (String, String, String) =
            (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        let (problem, mend): (Option<String>, Option<String>) = (row.try_get(3)?, row.try_get(4)?);
        let area = match part.as_str() {
            "publication" => "publication",
            "slot" => "slot",
            "role" => "role",
            _ => "table",
        };
        if part == "table" {
            tracked.insert(name.clone());
        }
        let Some(problem) = problem else {
            match area {
                "publication" | "role" => report.ok(area, format!("{name}: {state}")),
                _ => {}
            }
            continue;
        };
        // That the configured one is missing is said already.
        if area == "slot" && state == "none" {
            continue;
        }
        let other_slot = area == "slot" && name != slot;
        let advice = other_slot || ADVICE.iter().any(|start| problem.starts_with(start));
        let level = if advice { Level::Advice } else { Level::Problem };
        report.add(level, area, format!("{name}: {problem}"), mend.unwrap_or_default());
    }
    if tracked.is_empty() {
        report.advice(
            "table",
            "none is tracked",
            "rowcast tables shows what could be; rowcast track public.orders",
        );
    } else {
        report.ok(
            "table",
            format!("{} tracked: {}", tracked.len(), tracked.into_iter().collect::<Vec<_>>().join(", ")),
        );
    }
    Ok(())
}
