//! The configured slot: whether it is there, ours, in use by whom, and kept on standbys.
//!
//! What the slot makes the server keep is judged in the database (`rowcast.slot_problems`), as the
//! view `rowcast.status` shows it.

use tokio_postgres::Client;

use super::report::Report;
use crate::cli::sizes;

const AREA: &str = "slot";

const FACTS: &str = "
SELECT coalesce(s.plugin = 'pgoutput', false), s.plugin::text, s.database = pg_catalog.current_database(), s.database::text,
  s.active, s.wal_status::text,
  CASE WHEN pg_catalog.pg_is_in_recovery() THEN NULL ELSE pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), s.restart_lsn)::int8 END,
  CASE WHEN pg_catalog.pg_is_in_recovery() THEN NULL ELSE pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), s.confirmed_flush_lsn)::int8 END,
  (pg_catalog.to_jsonb(s) ->> 'failover')::bool,
  pg_catalog.concat_ws(' ', 'process ' || s.active_pid, a.usename, 'at ' || pg_catalog.host(a.client_addr)),
  coalesce((SELECT rolsuper FROM pg_catalog.pg_roles r WHERE r.oid = a.usesysid), false),
  pg_catalog.to_jsonb(s) ->> 'invalidation_reason'
FROM pg_catalog.pg_replication_slots s LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = s.active_pid
WHERE s.slot_name = $1";

pub(super) async fn judge(
    client: &Client,
    slot: &str,
    wal_limit: Option<u64>,
    report: &mut Report,
) -> Result<(), tokio_postgres::Error> {
    let Some(row) = client.query_opt(FACTS, &[&slot]).await? else {
        report.problem(
            AREA,
            format!("there is no replication slot {slot}: no relay has streamed yet, or it was dropped"),
            "Start the relay: rowcast serve (with another slot, name it here too: --slot)",
        );
        return Ok(());
    };
    let (plugin_fits, database_fits): (bool, Option<bool>) = (row.try_get(0)?, row.try_get(2)?);
    if !plugin_fits || database_fits != Some(true) {
        let (plugin, database): (Option<String>, Option<String>) = (row.try_get(1)?, row.try_get(3)?);
        let (plugin, database) =
            (plugin.unwrap_or_else(|| "none".into()), database.unwrap_or_else(|| "none".into()));
        report.problem(
            AREA,
            format!("the slot {slot} belongs to something else (plugin {plugin}, database {database})"),
            "Give the relay another name: slot = \"rowcast_2\", or --slot",
        );
        return Ok(());
    }
    let held = row.try_get::<_, Option<i64>>(6)?.and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(0);
    let lag = row.try_get::<_, Option<i64>>(7)?.and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(0);
    let (active, holder): (bool, String) = (row.try_get(4)?, row.try_get(9)?);
    if row.try_get(10)? {
        report.advice(
            AREA,
            format!("the relay streams as a superuser ({holder})"),
            "ALTER ROLE rowcast_relay LOGIN PASSWORD '…'; and let database_url name it",
        );
    }
    if row.try_get::<_, Option<bool>>(8)? == Some(false) {
        report.advice(
            AREA,
            "the slot is not kept on standbys (failover is off)",
            "Restart the relay: it turns it on when it takes the slot up",
        );
    }
    if let Some(limit) = wal_limit.filter(|limit| held > *limit) {
        report.problem(
            AREA,
            format!(
                "it keeps {}, more than wal_limit ({}): a relay that runs drops it",
                sizes::bytes(held),
                sizes::bytes(limit)
            ),
            "See why the relay lags, or raise wal_limit before it starts",
        );
    }
    let reason = row.try_get::<_, Option<String>>(11)?.map(|reason| format!(", invalidated: {reason}"));
    let status: Option<String> = row.try_get(5)?;
    report.ok(
        AREA,
        format!(
            "{slot}: {}, {} behind, keeps {} of WAL ({}{})",
            if active { format!("streaming to {holder}") } else { "not streaming".to_owned() },
            sizes::bytes(lag),
            sizes::bytes(held),
            status.as_deref().unwrap_or("unknown"),
            reason.unwrap_or_default(),
        ),
    );
    Ok(())
}
