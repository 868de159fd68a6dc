//! The server and its settings: whether a relay can stream from it, and what will hurt later.
//!
//! Needs no catalog and no particular right. Facts are read by [`Server::read`] and judged by
//! [`Server::judge`], which is pure.

use tokio_postgres::Client;

use super::report::Report;
use crate::cli::sizes;

const AREA: &str = "server";

/// A walsender gives up on a silent relay after this time; shorter ones end connections that merely stall.
const SHORT_TIMEOUT_MS: i64 = 5_000;

const FACTS: &str = "
SELECT pg_catalog.current_setting('server_version_num')::int4, pg_catalog.current_setting('server_version'),
  pg_catalog.pg_is_in_recovery(), pg_catalog.current_setting('wal_level'),
  pg_catalog.current_setting('max_wal_senders')::int8, (SELECT count(*) FROM pg_catalog.pg_stat_replication),
  pg_catalog.current_setting('max_replication_slots')::int8, (SELECT count(*) FROM pg_catalog.pg_replication_slots),
  (SELECT setting::int8 FROM pg_catalog.pg_settings WHERE name = 'wal_sender_timeout'),
  (SELECT setting::int8 * 1048576 FROM pg_catalog.pg_settings WHERE name = 'max_slot_wal_keep_size'),
  pg_catalog.current_setting('synchronous_standby_names'),
  (SELECT setting::int8 FROM pg_catalog.pg_settings WHERE name = 'idle_replication_slot_timeout'),
  pg_catalog.current_setting('idle_replication_slot_timeout', true),
  EXISTS (SELECT FROM pg_catalog.pg_replication_slots WHERE slot_name = $1),
  pg_catalog.current_setting('synchronized_standby_slots', true),
  (SELECT count(*) FROM pg_catalog.pg_replication_slots WHERE slot_type = 'physical'),
  (SELECT pg_catalog.format('process %s, since %s', pid, xact_start::timestamptz(0)) FROM pg_catalog.pg_stat_activity
   WHERE backend_xid IS NOT NULL AND xact_start < pg_catalog.now() - interval '1 minute' ORDER BY xact_start LIMIT 1)";

#[derive(Debug, Clone)]
pub(super) struct Server {
    pub(super) number: i32,
    pub(super) version: String,
    pub(super) standby: bool,
    wal_level: String,
    senders: (i64, i64),
    slots: (i64, i64),
    sender_timeout_ms: i64,
    /// `max_slot_wal_keep_size`; negative is no limit.
    pub(super) keep_bytes: i64,
    synchronous_names: String,
    idle_slot_timeout: Option<(i64, String)>,
    slot_exists: bool,
    synchronized_slots: Option<String>,
    physical_slots: i64,
    oldest_transaction: Option<String>,
}

impl Server {
    pub(super) async fn read(client: &Client, slot: &str) -> Result<Self, tokio_postgres::Error> {
        let row = client.query_one(FACTS, &[&slot]).await?;
        let idle: (Option<i64>, Option<String>) = (row.try_get(11)?, row.try_get(12)?);
        Ok(Server {
            number: row.try_get(0)?,
            version: row.try_get(1)?,
            standby: row.try_get(2)?,
            wal_level: row.try_get(3)?,
            senders: (row.try_get(5)?, row.try_get(4)?),
            slots: (row.try_get(7)?, row.try_get(6)?),
            sender_timeout_ms: row.try_get(8)?,
            keep_bytes: row.try_get(9)?,
            synchronous_names: row.try_get(10)?,
            idle_slot_timeout: idle.0.zip(idle.1),
            slot_exists: row.try_get(13)?,
            synchronized_slots: row.try_get(14)?,
            physical_slots: row.try_get(15)?,
            oldest_transaction: row.try_get(16)?,
        })
    }

    pub(super) fn judge(&self, application: &str, report: &mut Report) {
        if self.number < 150_000 {
            report.problem(
                AREA,
                format!("PostgreSQL {} is older than 15", self.version),
                "Upgrade to PostgreSQL 15 or later.",
            );
        }
        if self.standby {
            report.problem(AREA, "this server is a standby", "Connect to the primary: several hosts in database_url with target_session_attrs=read-write find it.");
        }
        if self.wal_level != "logical" {
            report.problem(
                AREA,
                format!("wal_level is {}: nothing can be streamed", self.wal_level),
                "ALTER SYSTEM SET wal_level = 'logical'; then restart PostgreSQL (Amazon RDS: rds.logical_replication = 1; Cloud SQL: cloudsql.logical_decoding = on)",
            );
        }
        self.judge_places(report);
        self.judge_limits(report);
        self.judge_standbys(application, report);
        if report.is_clean(AREA) {
            report.ok(AREA, format!("PostgreSQL {}, wal_level logical", self.version));
        }
    }

    /// Places for one more walsender and one more slot, where the relay has none yet.
    fn judge_places(&self, report: &mut Report) {
        let ((senders, most_senders), (slots, most_slots)) = (self.senders, self.slots);
        if !self.slot_exists && slots >= most_slots {
            report.problem(
                AREA,
                format!("all {most_slots} replication slots are taken"),
                format!("SELECT slot_name, active FROM pg_replication_slots; and drop one that nobody uses, or ALTER SYSTEM SET max_replication_slots = {}; then restart PostgreSQL", most_slots + 5),
            );
        }
        if senders >= most_senders {
            report.problem(
                AREA,
                format!(
                    "all {most_senders} walsenders are in use: a relay that reconnects or waits finds none"
                ),
                format!("ALTER SYSTEM SET max_wal_senders = {}; then restart PostgreSQL", most_senders + 5),
            );
        }
        if let Some(transaction) = self.oldest_transaction.as_ref().filter(|_| !self.slot_exists) {
            report.advice(
                AREA,
                format!(
                    "a transaction is open for long ({transaction}): the relay's first start waits for it"
                ),
                "End it, or wait for it.",
            );
        }
    }

    fn judge_limits(&self, report: &mut Report) {
        if self.keep_bytes < 0 {
            report.advice(
                AREA,
                "max_slot_wal_keep_size is not set: while no relay runs, its slot keeps WAL until the disk is full",
                "ALTER SYSTEM SET max_slot_wal_keep_size = '20GB'; SELECT pg_reload_conf(); with a size that the disk can spare; beyond it the slot is lost and devices sync in full",
            );
        } else {
            let keep = sizes::bytes(self.keep_bytes.unsigned_abs());
            report.ok(AREA, format!("a slot keeps {keep} of WAL at most"));
        }
        match self.sender_timeout_ms {
            0 => report.advice(
                AREA,
                "wal_sender_timeout is 0: the server does not notice a relay that is gone, and keeps its slot taken",
                "ALTER SYSTEM RESET wal_sender_timeout; SELECT pg_reload_conf();",
            ),
            timeout if timeout < SHORT_TIMEOUT_MS => report.advice(
                AREA,
                format!("wal_sender_timeout is {timeout} ms: a connection that merely stalls is ended"),
                "ALTER SYSTEM RESET wal_sender_timeout; SELECT pg_reload_conf();",
            ),
            _ => {}
        }
        if let Some((timeout, text)) = &self.idle_slot_timeout
            && *timeout > 0
        {
            report.advice(
                AREA,
                format!("idle_replication_slot_timeout is {text}: a relay that is away for longer loses its slot, and devices sync in full"),
                "ALTER SYSTEM SET idle_replication_slot_timeout = 0; SELECT pg_reload_conf(); and let max_slot_wal_keep_size bound what a slot keeps",
            );
        }
    }

    fn judge_standbys(&self, application: &str, report: &mut Report) {
        if counts(&self.synchronous_names, application) {
            report.problem(
                AREA,
                format!("synchronous_standby_names = '{}' counts the relay as a standby: commits wait for it", self.synchronous_names),
                "ALTER SYSTEM SET synchronous_standby_names = 'names of your standbys'; SELECT pg_reload_conf();",
            );
        }
        if self.physical_slots > 0 && self.synchronized_slots.as_deref() == Some("") {
            report.advice(
                AREA,
                "synchronized_standby_slots is empty: the relay may be ahead of the standby that takes over, and then a new epoch begins",
                "ALTER SYSTEM SET synchronized_standby_slots = 'slots of the standbys that may take over'; SELECT pg_reload_conf();",
            );
        }
    }
}

/// Whether `synchronous_standby_names` takes an application of this name for a standby.
fn counts(names: &str, application: &str) -> bool {
    let names = names.split(|c: char| matches!(c, ',' | '(' | ')') || c.is_whitespace());
    let mut names = names.map(|name| name.trim_matches('"'));
    names.any(|name| name == "*" || name.eq_ignore_ascii_case(application))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::check::report::Level;

    fn server() -> Server {
        Server {
            number: 150_006,
            version: "15.6".to_owned(),
            standby: false,
            wal_level: "logical".to_owned(),
            senders: (1, 10),
            slots: (1, 10),
            sender_timeout_ms: 60_000,
            keep_bytes: 1 << 34,
            synchronous_names: String::new(),
            idle_slot_timeout: None,
            slot_exists: false,
            synchronized_slots: None,
            physical_slots: 0,
            oldest_transaction: None,
        }
    }

    type Change = fn(&mut Server);

    fn judged(change: impl FnOnce(&mut Server)) -> (Level, String) {
        let mut server = server();
        change(&mut server);
        let mut report = Report::default();
        server.judge("rowcast", &mut report);
        (report.verdict(true), report.page())
    }

    #[test]
    fn each_fault_is_told_with_what_mends_it() {
        assert_eq!(judged(|_| {}).0, Level::Ok);
        let faults: [(Change, &str, &str); 11] = [
            (|s| s.number = 140_000, "older than 15", "Upgrade"),
            (|s| s.standby = true, "standby", "primary"),
            (|s| s.wal_level = "replica".to_owned(), "wal_level is replica", "'logical'"),
            (|s| s.slots = (10, 10), "all 10 replication slots", "max_replication_slots = 15"),
            (|s| s.senders = (10, 10), "all 10 walsenders", "max_wal_senders = 15"),
            (|s| s.keep_bytes = -1, "max_slot_wal_keep_size is not set", "pg_reload_conf"),
            (|s| s.sender_timeout_ms = 0, "wal_sender_timeout is 0", "RESET"),
            (|s| s.sender_timeout_ms = 900, "900 ms", "RESET"),
            (|s| s.idle_slot_timeout = Some((60, "1min".to_owned())), "is 1min", "= 0"),
            (|s| s.synchronous_names = "ANY 1 (\"*\")".to_owned(), "commits wait", "names of your standbys"),
            (
                |s| (s.physical_slots, s.synchronized_slots) = (1, Some(String::new())),
                "new epoch",
                "synchronized_standby_slots",
            ),
        ];
        for (change, what, mend) in faults {
            let (level, page) = judged(change);
            assert_eq!(level, Level::Problem, "{page}");
            assert!(page.contains(what) && page.contains(mend), "{what}: {page}");
        }
        // A slot that is there needs no other place.
        assert_eq!(judged(|s| (s.slots, s.slot_exists) = ((10, 10), true)).0, Level::Ok);
    }

    #[test]
    fn standbys_are_told_from_the_relay() {
        for names in ["*", "ANY 1 (a, *)", "FIRST 2 (a, rowcast)", "\"Rowcast\""] {
            assert!(counts(names, "rowcast"), "{names}");
        }
        for names in ["", "a, b", "rowcast2", "ANY 1 (not_rowcast)"] {
            assert!(!counts(names, "rowcast"), "{names}");
        }
    }
}
