//! Going on with a log, or beginning a new one: a new epoch.
//!
//! The decision is pure ([`decide`]): it compares what the log remembers with what the server says. A
//! log is opened so that nothing can fall between its beginning and what devices sync: the slot first,
//! then a wait until every transaction that ran then is over, then the catalog, then a fence; the fence
//! is the oldest cursor (DESIGN: a new slot misses what commits while it is made).

use std::fmt;
use std::time::Duration;

use tokio_postgres::Client;

use super::PUBLICATION;
use super::error::IngestError;
use super::history::Identity;
use super::publication::{self, Publishes};
use super::rights;
use crate::lsn::Lsn;
use crate::postgres::catalog::CatalogError;
use crate::postgres::{catalog, tables};
use crate::route::{Router, RouterState, Tracked};

/// Name under which [`Identity`] stands in the log.
pub(super) const STATE_IDENTITY: &str = "identity";

/// What the server says before streaming begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub identity: Identity,
    /// How far the server's history reaches.
    pub server_end: Lsn,
    pub slot: Option<FoundSlot>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundSlot {
    pub confirmed: Option<Lsn>,
    pub lost: Option<Lost>,
    /// Who streams from it.
    pub holder: Option<String>,
    /// Kept in step on standbys; `None` where the server knows no such thing (before 17).
    pub failover: Option<bool>,
    /// Made by someone else for something else.
    pub foreign: Option<String>,
}

/// Why the server no longer streams from a slot, in its own word where it has one (17 and later).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost(pub Option<String>);

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = self.0.as_deref();
        f.write_str("wal_status = lost")?;
        word.map_or(Ok(()), |word| write!(f, ", {word}"))?;
        f.write_str(match word {
            Some("idle_timeout") => {
                "): nobody streamed from it for longer than idle_replication_slot_timeout"
            }
            Some("rows_removed") => {
                "): rows of the system's catalogs that it needed were removed; set hot_standby_feedback on standbys"
            }
            Some("wal_level_insufficient") => "): wal_level was not logical",
            Some("wal_removed") | None => "): the server removed WAL that was still needed",
            Some(_) => ")",
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    Resume,
    Begin(NewEpoch),
    /// Nothing is done until someone has looked.
    Refuse(Refused),
}

/// Why the server is not followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    pub server: u32,
    pub log: u32,
}

/// Why a log cannot be gone on with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NewEpoch {
    #[error("there is no log yet")]
    NoLog,
    #[error("the log belongs to another database or slot")]
    OtherDatabase,
    #[error("the replication slot is gone")]
    SlotGone,
    #[error("the replication slot was invalidated ({0}")]
    SlotLost(Lost),
    #[error(
        "the slot was confirmed up to {confirmed}, beyond the log's end at {end}: the log misses something"
    )]
    Gap { confirmed: Lsn, end: Lsn },
    #[error("the publication was dropped and made again")]
    PublicationChanged,
    #[error("the publication was altered, and nobody knows what it left out meanwhile")]
    PublicationAltered,
    #[error(
        "the server's history ends at {server_end}, before the log's end at {end}: it was restored from a backup or lost commits"
    )]
    HistoryLost { server_end: Lsn, end: Lsn },
    #[error("the server moved to another timeline at {switch_point}, before the log's end at {end}")]
    TimelineSwitched { switch_point: Lsn, end: Lsn },
    #[error(
        "the server moved to another timeline at {switch_point}, and the relay had crashed: devices may have seen more than its log kept"
    )]
    TimelineSwitchedAfterCrash { switch_point: Lsn },
}

/// What a log remembers.
#[derive(Debug, Clone)]
pub struct Known {
    pub identity: Identity,
    /// What readers may have seen.
    pub end: Lsn,
    /// The relay that wrote it last did not end in order, and this one has not streamed yet. Devices may
    /// have seen a little more: where history goes on as it was, the server sends it again.
    pub crashed: bool,
}

pub fn decide(log: Option<&Known>, found: &Found) -> Decision {
    if let Some(known) = log
        && known.identity.left(&found.identity)
    {
        return Decision::Refuse(Refused { server: found.identity.timeline, log: known.identity.timeline });
    }
    match reason(log, found) {
        None => Decision::Resume,
        Some(reason) => Decision::Begin(reason),
    }
}

fn reason(log: Option<&Known>, found: &Found) -> Option<NewEpoch> {
    let Some(Known { identity: known, end, crashed }) = log else { return Some(NewEpoch::NoLog) };
    let (now, end) = (&found.identity, *end);
    if (known.system_id, &known.database, &known.slot) != (now.system_id, &now.database, &now.slot) {
        return Some(NewEpoch::OtherDatabase);
    }
    match known.parts_from(now) {
        Some(switch_point) if switch_point < end => {
            return Some(NewEpoch::TimelineSwitched { switch_point, end });
        }
        Some(switch_point) if *crashed => {
            return Some(NewEpoch::TimelineSwitchedAfterCrash { switch_point });
        }
        _ => {}
    }
    if found.server_end < end {
        return Some(NewEpoch::HistoryLost { server_end: found.server_end, end });
    }
    if known.publication != now.publication {
        return Some(NewEpoch::PublicationChanged);
    }
    if !known.publishes.goes_on_as(&now.publishes) {
        return Some(NewEpoch::PublicationAltered);
    }
    match &found.slot {
        None => Some(NewEpoch::SlotGone),
        Some(FoundSlot { lost: Some(lost), .. }) => Some(NewEpoch::SlotLost(lost.clone())),
        Some(FoundSlot { confirmed: Some(confirmed), .. }) if *confirmed > end => {
            Some(NewEpoch::Gap { confirmed: *confirmed, end })
        }
        Some(_) => None,
    }
}

/// What [`look`] sees.
pub(super) struct Looked {
    /// The publication's oid.
    pub(super) publication: u32,
    pub(super) publishes: Publishes,
    pub(super) slot: Option<FoundSlot>,
    /// The server, to be compared with the one that streams: with several hosts it may be another.
    pub(super) system_id: u64,
    pub(super) timeline: u32,
}

/// Checks what has to be right on the server, and reads what [`decide`] needs of it.
pub(super) async fn look(client: &Client, slot: &str) -> Result<Looked, IngestError> {
    let row = client
        .query_one(
            "SELECT pg_catalog.current_setting('server_version_num')::int4, pg_catalog.current_setting('wal_level'),
                    pg_catalog.pg_is_in_recovery(), pg_catalog.current_user()::text,
                    (SELECT r.rolreplication OR r.rolsuper OR EXISTS (SELECT FROM pg_catalog.pg_roles g
                        WHERE g.rolname = 'rds_replication' AND pg_catalog.pg_has_role(r.oid, g.oid, 'USAGE'))
                     FROM pg_catalog.pg_roles r WHERE r.rolname = current_user),
                    pg_catalog.to_regclass('rowcast.tables') IS NOT NULL,
                    pg_catalog.current_database()::text,
                    (SELECT system_identifier FROM pg_catalog.pg_control_system()),
                    -- The control file's timeline is that of the last checkpoint.
                    CASE WHEN NOT pg_catalog.pg_is_in_recovery() THEN
                      ('x' || pg_catalog.left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 8))::bit(32)::int4 END",
            &[],
        )
        .await?;
    if row.get::<_, i32>(0) < 150_000 {
        return Err(IngestError::setup(
            "the server is older than PostgreSQL 15",
            "rowcast needs PostgreSQL 15 or later",
        ));
    }
    if row.get::<_, String>(1) != "logical" {
        return Err(IngestError::setup(
            format!("wal_level is {}", row.get::<_, String>(1)),
            "run ALTER SYSTEM SET wal_level = 'logical' and restart PostgreSQL",
        ));
    }
    if row.get::<_, bool>(2) {
        return Err(IngestError::setup("the server is a standby", "connect rowcast to the primary"));
    }
    let user: String = row.get(3);
    if !row.get::<_, bool>(4) {
        return Err(IngestError::setup(
            format!("the role {user} may not replicate"),
            format!("run ALTER ROLE {user} REPLICATION, or connect as a role that has it"),
        ));
    }
    let database: String = row.get(6);
    let schema = row.get::<_, bool>(5);
    let (system_id, timeline) = (row.get::<_, i64>(7).cast_unsigned(), row.get::<_, i32>(8).cast_unsigned());
    // What it publishes can only be asked where the catalog is.
    let there = "SELECT FROM pg_catalog.pg_publication WHERE pubname = $1";
    if client.query_opt(there, &[&PUBLICATION]).await?.is_none() {
        return Err(IngestError::setup(
            format!("the publication {PUBLICATION} is missing in the database {database}"),
            "run rowcast init on this database as a role that may create schemas and roles, then track its tables",
        ));
    }
    if !schema {
        return Err(IngestError::setup(
            format!(
                "the schema rowcast is missing in the database {database}, or the role {user} may not use it"
            ),
            "run rowcast init, and GRANT rowcast_relay to the relay's role",
        ));
    }
    let version = catalog::version(client).await.map_err(|error| match error {
        CatalogError::Rights { .. } => IngestError::setup(
            format!("the role {user} may not read the catalog of rowcast in the database {database}"),
            format!("run GRANT rowcast_relay TO {user}"),
        ),
        error => error.into(),
    })?;
    check_catalog(version, &database)?;
    let Some(publication) = publication::look(client).await? else {
        return Err(IngestError::PublicationChanged);
    };
    if let Some(fault) = publication.fault {
        return Err(IngestError::setup(
            format!("the publication {PUBLICATION} in the database {database} {fault}"),
            "run rowcast init on this database, which sets it right; every device then syncs in full",
        ));
    }
    let row = client
        .query_opt(
            "SELECT s.confirmed_flush_lsn::text,
                    s.wal_status = 'lost' OR coalesce((pg_catalog.to_jsonb(s) ->> 'conflicting')::bool, false), s.plugin::text, s.database::text,
                    pg_catalog.format('process %s', s.active_pid)
                      || coalesce(pg_catalog.format(' (%s)', pg_catalog.concat_ws(' ',
                           nullif(a.application_name, ''), 'at ' || pg_catalog.host(a.client_addr), 'as ' || a.usename)), ''),
                    s.active_pid IS NOT NULL,
                    (pg_catalog.to_jsonb(s) ->> 'failover')::bool,
                    pg_catalog.to_jsonb(s) ->> 'invalidation_reason'
             FROM pg_catalog.pg_replication_slots s
             LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = s.active_pid
             WHERE s.slot_name = $1",
            &[&slot],
        )
        .await?;
    let slot = row.map(|row| {
        let (plugin, of): (Option<String>, Option<String>) = (row.get(2), row.get(3));
        let ours = plugin.as_deref() == Some("pgoutput") && of.as_deref() == Some(&database);
        FoundSlot {
            confirmed: row.get::<_, Option<&str>>(0).and_then(|lsn| lsn.parse().ok()),
            lost: row.get::<_, Option<bool>>(1).unwrap_or(false).then(|| Lost(row.get(7))),
            holder: row.get::<_, bool>(5).then(|| row.get(4)),
            failover: row.get(6),
            foreign: (!ours).then(|| format!("plugin {plugin:?}, database {of:?}")),
        }
    });
    let (publication, publishes) = (publication.oid, publication.publishes);
    Ok(Looked { publication, publishes, slot, system_id, timeline })
}

/// The relay reads the catalog of its own release only: an older one may lack what it asks for, and what a
/// newer one means by its rows it cannot know.
fn check_catalog(found: Option<i32>, database: &str) -> Result<(), IngestError> {
    const KNOWN: i32 = catalog::VERSION;
    let found = found.unwrap_or(0);
    match found.cmp(&KNOWN) {
        std::cmp::Ordering::Equal => Ok(()),
        std::cmp::Ordering::Less => Err(IngestError::setup(
            format!(
                "the catalog in the database {database} has version {found} and this release needs {KNOWN}"
            ),
            "run rowcast init on this database with this release; tracked tables stay as they are",
        )),
        std::cmp::Ordering::Greater => Err(IngestError::setup(
            format!(
                "the catalog in the database {database} has version {found} and this release knows {KNOWN}"
            ),
            "run the rowcast release that installed the catalog, or a later one",
        )),
    }
}

/// Waits until every transaction that runs now is over, also those that have committed and are not yet
/// visible because a synchronous standby has not answered.
///
/// A snapshot's xmax does not tell which these are: it is the end of what has *completed*, and a
/// transaction that runs may lie beyond it. So one of our own takes the next id.
pub(super) async fn settle(client: &mut Client) -> Result<(), IngestError> {
    let transaction = client.transaction().await?;
    transaction.batch_execute("SET LOCAL synchronous_commit = local").await?;
    let next = transaction.query_one("SELECT pg_catalog.pg_current_xact_id()::text::int8", &[]).await?;
    let next: i64 = next.get(0);
    transaction.rollback().await?;
    let mut told = false;
    loop {
        let xmin = "SELECT pg_catalog.pg_snapshot_xmin(pg_catalog.pg_current_snapshot())::text::int8";
        if client.query_one(xmin, &[]).await?.get::<_, i64>(0) > next {
            return Ok(());
        }
        if !std::mem::replace(&mut told, true) {
            tracing::info!(
                "waiting for transactions that were open when the slot was made; long ones hold this up"
            );
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The catalog as it is, with what the database says of its tables.
pub(super) async fn read_catalog(client: &mut Client) -> Result<Router, IngestError> {
    let mut state = RouterState::default();
    let rows = client
        .query(
            "SELECT relid::text, schema_name, table_name, topics::text, columns::text, generation::text FROM rowcast.tables",
            &[],
        )
        .await?;
    const NAMES: [&str; 6] = ["relid", "schema_name", "table_name", "topics", "columns", "generation"];
    for row in &rows {
        let tracked = Tracked::from_columns(|name| {
            let place = NAMES.iter().position(|known| *known == name)?;
            row.get::<_, Option<&str>>(place)
        })?;
        state.catalog.put(tracked);
    }
    for row in client.query("SELECT name, value FROM rowcast.settings", &[]).await? {
        state.secret.setting(row.get(0), row.get(1));
    }
    let mut router = Router::new(state);
    let relids: Vec<u32> = router.catalog().tables().map(|tracked| tracked.relid).collect();
    for relid in relids {
        let fetch = tables::fetch(client, PUBLICATION, relid).await?;
        // Its readers have to be told: the first comparison finds that it is not known.
        if fetch.unpublished.is_some() {
            continue;
        }
        // Copies cannot be older than the log that is about to begin.
        router.learn(relid, fetch, crate::position::Position::ZERO);
    }
    rights::read(client, &mut router).await?;
    Ok(router)
}

/// Commits a fence, and gives a time that no commit before it is later than.
pub(super) async fn fence(client: &mut Client, id: &str) -> Result<i64, IngestError> {
    let transaction = client.transaction().await?;
    // A standby that does not answer must not hold this up.
    transaction.batch_execute("SET LOCAL synchronous_commit = local").await?;
    transaction.query_one("SELECT rowcast.fence($1)", &[&id]).await?;
    transaction.commit().await?;
    let row = client
        .query_one("SELECT (EXTRACT(epoch FROM pg_catalog.clock_timestamp()) * 1000000)::int8", &[])
        .await?;
    Ok(row.get(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::history::tests::on;

    fn found() -> Found {
        let slot = FoundSlot {
            confirmed: Some(Lsn::new(90)),
            lost: None,
            holder: None,
            failover: None,
            foreign: None,
        };
        Found { identity: on(&[], 1), server_end: Lsn::new(200), slot: Some(slot) }
    }

    fn known() -> Known {
        Known { identity: on(&[], 1), end: Lsn::new(100), crashed: false }
    }

    fn decided(change: impl FnOnce(&mut Found)) -> Decision {
        let mut found = found();
        change(&mut found);
        decide(Some(&known()), &found)
    }

    #[test]
    fn an_unbroken_history_goes_on() {
        assert_eq!(decided(|_| {}), Decision::Resume);
        assert_eq!(decided(|found| found.server_end = Lsn::new(100)), Decision::Resume);
        let confirmed = |lsn| {
            move |found: &mut Found| {
                found.slot.as_mut().unwrap_or_else(|| panic!()).confirmed = Some(Lsn::new(lsn))
            }
        };
        assert_eq!(decided(confirmed(100)), Decision::Resume);
        let gap = NewEpoch::Gap { confirmed: Lsn::new(101), end: Lsn::new(100) };
        assert_eq!(decided(confirmed(101)), Decision::Begin(gap));
    }

    #[test]
    fn a_broken_history_begins_anew() {
        let begins = |change: fn(&mut Found)| match decided(change) {
            Decision::Begin(why) => why,
            other => panic!("{other:?}"),
        };
        assert_eq!(decide(None, &found()), Decision::Begin(NewEpoch::NoLog));
        assert_eq!(begins(|found| found.identity.system_id = 8), NewEpoch::OtherDatabase);
        assert_eq!(begins(|found| found.slot = None), NewEpoch::SlotGone);
        let lost = begins(|found| {
            found.slot.as_mut().unwrap_or_else(|| panic!()).lost = Some(Lost(Some("idle_timeout".into())))
        });
        assert!(matches!(lost, NewEpoch::SlotLost(_)));
        let said = lost.to_string();
        assert!(said.contains("(wal_status = lost, idle_timeout): nobody streamed"), "{said}");
        assert_eq!(begins(|found| found.identity.publication = 4), NewEpoch::PublicationChanged);
        assert!(matches!(begins(|found| found.server_end = Lsn::new(99)), NewEpoch::HistoryLost { .. }));
    }

    fn promoted(at: u64) -> impl FnOnce(&mut Found) {
        move |found: &mut Found| {
            found.identity = on(&[(1, at)], 2);
        }
    }

    #[test]
    fn a_timeline_counts_by_its_switch_point() {
        assert_eq!(decided(promoted(100)), Decision::Resume);
        assert!(matches!(decided(promoted(99)), Decision::Begin(NewEpoch::TimelineSwitched { .. })));
        assert!(matches!(
            decided(|found| found.identity.timeline = 2),
            Decision::Begin(NewEpoch::TimelineSwitched { .. })
        ));
    }

    #[test]
    fn after_a_crash_nobody_knows_what_devices_saw_beyond_the_switch() {
        let crashed = Known { crashed: true, ..known() };
        assert_eq!(decide(Some(&crashed), &found()), Decision::Resume);
        let mut found = found();
        promoted(150)(&mut found);
        let why = NewEpoch::TimelineSwitchedAfterCrash { switch_point: Lsn::new(150) };
        assert_eq!(decide(Some(&crashed), &found), Decision::Begin(why));
        assert_eq!(decide(Some(&known()), &found), Decision::Resume);
    }

    #[test]
    fn a_former_primary_is_not_followed() {
        let mut new = found();
        promoted(100)(&mut new);
        let log = Known { identity: new.identity, ..known() };
        assert_eq!(decide(Some(&log), &found()), Decision::Refuse(Refused { server: 1, log: 2 }));
    }
}
