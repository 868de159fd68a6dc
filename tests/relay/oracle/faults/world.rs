//! Postgres, the relay, and what lies between them and devices, all of which can fail.
//!
//! Devices have one address for all relays that come and go behind it ([`World::address`]); writers
//! reach Postgres itself ([`World::url`]), and so do the harness's own statements.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rowcast::embedded::Options;
use rowcast::postgres::catalog;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::support::postgres::{DATABASE, TestPostgres, explain};
use crate::support::proxy::{Proxy, Upstream};
use crate::support::relay::{Relay, Setup};
use crate::support::wait::eventually;

/// Long enough to recover from anything on a busy machine.
pub(crate) const RECOVERY: Duration = Duration::from_secs(60);
/// How long the server waits for a silent relay; the relay gives a silent server twice that.
pub(crate) const WAL_SENDER_TIMEOUT: Duration = Duration::from_secs(2);
/// How often devices hear from the relay; a silent one is closed after two more.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(2);
/// Said by the relay, as an error, whenever a log begins that is not the first.
pub(crate) const ANEW: &str = "a new epoch begins";
/// What another session's lock may cost a statement of a DBA, who then tries again.
const BUSY: [SqlState; 3] = [
    SqlState::LOCK_NOT_AVAILABLE,
    SqlState::T_R_DEADLOCK_DETECTED,
    // A row that is touched was moved to another partition.
    SqlState::T_R_SERIALIZATION_FAILURE,
];

pub(crate) struct World {
    pub(crate) pg: TestPostgres,
    pub(crate) relay: Relay,
    /// The other of two, with a log of its own; it is down.
    pub(super) other: Option<Relay>,
    /// Between the relay and Postgres.
    pub(super) link: Proxy,
    /// Between devices and the relay.
    pub(super) door: Proxy,
    pub(super) setup: Setup,
    /// Those that have devices.
    pub(super) users: Vec<&'static str>,
}

impl World {
    /// A database with the catalog and `sql`, and a relay on it, for these users.
    pub(crate) async fn start(sql: &str, users: &[&'static str], setup: impl FnOnce(Setup) -> Setup) -> Self {
        // A crash of Postgres keeps what was committed.
        let options = Options::scratch()
            .setting("fsync", "on")
            .setting("full_page_writes", "on")
            .setting("wal_sender_timeout", &format!("{}ms", WAL_SENDER_TIMEOUT.as_millis()))
            .setting("max_prepared_transactions", "20");
        let pg = TestPostgres::start_with(options).await;
        catalog::install(&mut pg.client().await).await.unwrap();
        pg.sql(sql).await;
        let link = Proxy::start_before_postgres(Upstream::Unix(pg.socket())).await;
        let setup = setup(
            Relay::on_url(&link.postgres_url(DATABASE))
                .faulty_disk()
                .env("ROWCAST_FINGERPRINT_INTERVAL", "200ms")
                .env("ROWCAST_HEARTBEAT", &format!("{}ms", HEARTBEAT.as_millis()))
                .env("ROWCAST_SHUTDOWN_GRACE", "3s")
                // A path that is gone while rows come is left then.
                .env("ROWCAST_SNAPSHOT_TIMEOUT", "20s"),
        );
        let relay = setup.clone().start().await;
        let door = Proxy::start(Upstream::Tcp(relay.address())).await;
        World { pg, relay, other: None, link, door, setup, users: users.to_vec() }
    }

    /// Where devices find the relay.
    pub(crate) fn address(&self) -> SocketAddr {
        self.door.address()
    }

    /// Where writers find Postgres.
    pub(crate) fn url(&self) -> String {
        self.pg.url()
    }

    /// Waits until the relay streams again and is not behind.
    pub(crate) async fn recovered(&self) {
        let http = self.relay.http();
        eventually(RECOVERY, "the relay is ready again", async || {
            let answer = http.request("GET", "/ready").try_send().await.ok()?;
            (answer.status == 200).then_some(())
        })
        .await;
    }

    /// Waits until new logs have begun `count` times, over all starts of this relay.
    pub(super) async fn new_epochs(&self, count: usize) {
        let what = format!("new epoch number {count}");
        eventually(RECOVERY, &what, async || (self.relay.count_lines(ANEW) >= count).then_some(())).await;
    }

    /// Waits until the relay has compared the tables that it knows with the database as it is now: DDL
    /// shows in no other way.
    pub(super) async fn compared(&self) {
        const LOOKED: &str = "SELECT coalesce(max(query_start)::text, '') FROM pg_stat_activity
            WHERE application_name = 'rowcast' AND query LIKE '%rowcast.grant_problems%'";
        let mut seen = self.pg.value(LOOKED).await;
        // The first had begun before; the third is asked for when the second was taken.
        for _ in 0..3 {
            seen = eventually(RECOVERY, "the relay looks at the database", async || {
                Some(self.pg.value(LOOKED).await).filter(|now| *now != seen && !now.is_empty())
            })
            .await;
        }
    }

    /// The relay runs again; devices find it.
    pub(super) async fn start_relay(&mut self) {
        self.relay.start_again().await;
        self.lead_devices();
    }

    pub(super) fn lead_devices(&self) {
        self.door.lead_to(Upstream::Tcp(self.relay.address()));
    }

    /// Lets the others go on for a while: returns after some more transactions, or a second without them.
    pub(super) async fn while_others_write(&self, transactions: u64) {
        const XMAX: &str = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text";
        let until = Instant::now() + Duration::from_secs(1);
        let xmax = async || self.pg.value(XMAX).await.parse::<u64>().unwrap();
        let begun = xmax().await;
        while xmax().await < begun + transactions && Instant::now() < until {
            // A poll of a counter that nobody has to reach.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Runs statements, all of them or none, until the locks of writers let them pass.
    pub(super) async fn patiently(&self, statements: &str) {
        let client = self.pg.client().await;
        eventually(RECOVERY, statements, async || run_or_busy(&client, statements).await).await;
    }

    /// The tracked tables with rows, as SQL names them.
    pub(super) async fn tables(&self) -> Vec<String> {
        let known = "SELECT relid::regclass::text FROM rowcast.tables
                     WHERE EXISTS (SELECT FROM pg_class c WHERE c.oid = relid) ORDER BY 1";
        self.pg.query_text(known).await.into_iter().filter_map(|row| row.into_iter().next()?).collect()
    }
}

/// Whether statements were run; `None` where someone else was in the way.
async fn run_or_busy(client: &Client, statements: &str) -> Option<()> {
    let Err(error) =
        client.batch_execute(&format!("BEGIN; SET LOCAL lock_timeout = '2s'; {statements}; COMMIT")).await
    else {
        return Some(());
    };
    let busy = error.code().is_some_and(|code| BUSY.contains(code));
    assert!(busy, "{}\nin: {statements}", explain(&error));
    client.batch_execute("ROLLBACK").await.unwrap();
    None
}
