//! The slot: dropped, made again by a foreign hand, given up by the server.

use tokio_postgres::error::SqlState;

use super::World;
use super::processes::RelayEnd;
use super::world::{ANEW, RECOVERY};
use crate::support::dice::Dice;
use crate::support::postgres::explain;
use crate::support::wait::eventually;

impl World {
    pub(super) async fn drop_slot(&mut self, dice: &mut Dice) {
        let known = self.relay.count_lines(ANEW);
        let (down, foreign) = (dice.roll(2) == 0, dice.roll(2) == 0);
        if down {
            let end = if dice.roll(2) == 0 { RelayEnd::Killed } else { RelayEnd::Terminated };
            self.stop_relay(end).await;
        }
        self.take_slot_away().await;
        // Changes that no slot keeps.
        self.while_others_write(dice.roll(30)).await;
        if foreign {
            self.make_slot().await;
            self.while_others_write(dice.roll(30)).await;
        }
        if down {
            self.start_relay().await;
        }
        self.new_epochs(known + 1).await;
    }

    /// Ends whoever streams from it, and is quicker than they come back.
    pub(super) async fn take_slot_away(&self) {
        let client = self.pg.client().await;
        eventually(RECOVERY, "the slot to be free for a moment", async || {
            const END: &str =
                "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active";
            client.batch_execute(END).await.unwrap();
            match client.batch_execute("SELECT pg_drop_replication_slot('rowcast')").await {
                Ok(()) => Some(()),
                Err(error) => {
                    assert_eq!(error.code(), Some(&SqlState::OBJECT_IN_USE), "{}", explain(&error));
                    None
                }
            }
        })
        .await;
    }

    /// By a foreign hand; unless the relay was quicker, and made its own.
    pub(super) async fn make_slot(&self) {
        let client = self.pg.client().await;
        let made =
            client.batch_execute("SELECT pg_create_logical_replication_slot('rowcast', 'pgoutput')").await;
        if let Err(error) = made {
            assert_eq!(error.code(), Some(&SqlState::DUPLICATE_OBJECT), "{}", explain(&error));
        }
    }

    /// The relay stands still until the server has given its slot up.
    pub(super) async fn invalidate_slot(&self) {
        const SETTING: &str = "max_slot_wal_keep_size";
        let known = self.relay.count_lines(ANEW);
        self.relay.freeze();
        self.pg.sql(&format!("ALTER SYSTEM SET {SETTING} = '1MB'")).await;
        self.pg.sql("SELECT pg_reload_conf()").await;
        eventually(RECOVERY, "the server gives the slot up", async || {
            self.pg.sql("SELECT pg_logical_emit_message(false, 'faults', ''); SELECT pg_switch_wal()").await;
            self.pg.sql("CHECKPOINT").await;
            (self.pg.value("SELECT wal_status FROM pg_replication_slots").await == "lost").then_some(())
        })
        .await;
        self.pg.sql(&format!("ALTER SYSTEM RESET {SETTING}")).await;
        self.pg.sql("SELECT pg_reload_conf()").await;
        self.relay.thaw();
        self.new_epochs(known + 1).await;
    }
}
