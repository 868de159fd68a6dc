//! A streaming standby of a test's cluster.
//!
//! It begins as a copy of the primary's data directory, made while that is stopped: the servers of
//! packages bring no `pg_basebackup`, and the copy is the same. Everything that it gets of the primary
//! passes a proxy, so that a test can hold it back.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::time::Duration;

use rowcast::embedded::Options;

use super::postgres::{TestPostgres, copy_data};
use super::proxy::{Proxy, Upstream};
use super::versions;
use super::wait::{PATIENCE, eventually};

/// The standby's physical slot on the primary, which `synchronized_standby_slots` may name.
pub(crate) const STANDBY_SLOT: &str = "standby";
/// From this version on a standby keeps logical slots of its primary.
pub(crate) const SLOT_SYNC_SINCE: u32 = 17;

/// Between two looks at the primary's slots, the standby's process sleeps for up to half a minute.
const SLOT_SYNC_PATIENCE: Duration = Duration::from_secs(90);

/// A hot standby, gone when dropped.
pub(crate) struct Standby {
    postgres: TestPostgres,
    link: Proxy,
}

impl Standby {
    /// A standby that keeps the primary's failover slots where its version knows such.
    pub(crate) async fn of(primary: &mut TestPostgres) -> Self {
        Self::with(primary, true).await
    }

    /// A standby that keeps no logical slots, as before 17.
    pub(crate) async fn without_slots_of(primary: &mut TestPostgres) -> Self {
        Self::with(primary, false).await
    }

    async fn with(primary: &mut TestPostgres, keeps_slots: bool) -> Self {
        primary.stop_fast().await;
        let home = copy_data(&primary.data_directory());
        primary.start_again().await;
        primary.sql(&format!("SELECT pg_create_physical_replication_slot('{STANDBY_SLOT}', true)")).await;
        let data = home.join("data");
        let signal = data.join("standby.signal");
        fs::write(&signal, "").unwrap();
        let owner = fs::metadata(&data).unwrap();
        chown(&signal, Some(owner.uid()), Some(owner.gid())).unwrap();

        let link = Proxy::start(Upstream::Unix(primary.socket())).await;
        let (host, port) = (link.address().ip(), link.address().port());
        let mut options = Options::scratch()
            .setting("primary_conninfo", &format!("host={host} port={port} user=postgres dbname=postgres"))
            .setting("primary_slot_name", STANDBY_SLOT)
            .setting("hot_standby_feedback", "on")
            .setting("wal_retrieve_retry_interval", "100ms");
        if keeps_slots && versions::major() >= SLOT_SYNC_SINCE {
            options = options.setting("sync_replication_slots", "on");
        }
        let postgres = TestPostgres::open(home, options).await;
        let standby = Standby { postgres, link };
        eventually(PATIENCE, "the standby streams", async || {
            let streaming = "SELECT count(*) FROM pg_stat_wal_receiver WHERE status = 'streaming'";
            (standby.postgres.value(streaming).await == "1").then_some(())
        })
        .await;
        standby
    }

    /// The standby as a server.
    pub(crate) fn postgres(&self) -> &TestPostgres {
        &self.postgres
    }

    /// Waits until it has replayed all that the primary has written so far.
    pub(crate) async fn caught_up(&self, primary: &TestPostgres) {
        let end = primary.value("SELECT pg_current_wal_lsn()").await;
        let replayed = format!("SELECT pg_last_wal_replay_lsn() >= '{end}'");
        eventually(PATIENCE, "the standby has replayed what the primary wrote", async || {
            (self.postgres.value(&replayed).await == "t").then_some(())
        })
        .await;
    }

    /// Waits until it has the relay's slot, ready to be gone on with.
    pub(crate) async fn has_slot(&self) {
        let ready = "SELECT count(*) FROM pg_replication_slots
            WHERE slot_name = 'rowcast' AND synced AND NOT temporary AND invalidation_reason IS NULL";
        eventually(SLOT_SYNC_PATIENCE, "the standby has the relay's slot", async || {
            (self.postgres.value(ready).await == "1").then_some(())
        })
        .await;
    }

    /// From now on nothing of the primary reaches it.
    pub(crate) async fn cut_off(&self) {
        self.link.shut_out();
        eventually(PATIENCE, "the standby receives nothing any more", async || {
            (self.postgres.value("SELECT count(*) FROM pg_stat_wal_receiver").await == "0").then_some(())
        })
        .await;
    }

    /// Lets it follow the primary again.
    pub(crate) fn let_follow(&self) {
        self.link.let_in();
    }

    /// Makes it a primary.
    pub(crate) async fn promote(self) -> TestPostgres {
        assert_eq!(self.postgres.value("SELECT pg_promote(true, 60)").await, "t");
        self.postgres
    }
}

/// The URL that a relay is given to find the primary among several servers, in this order.
pub(crate) fn url_of_all(servers: &[&TestPostgres]) -> String {
    let directories: Vec<String> = servers
        .iter()
        .map(|server| server.socket().parent().unwrap().to_str().unwrap().replace('/', "%2F"))
        .collect();
    let ports = vec!["5432"; servers.len()].join(",");
    let hosts = directories.join(",");
    format!("postgresql://postgres@/postgres?host={hosts}&port={ports}&target_session_attrs=read-write")
}
