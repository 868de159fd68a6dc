//! Processes that end and come back: the relay, Postgres, and the walsender alone.

use super::super::columns::{literal, pick};
use super::World;
use super::world::RECOVERY;
use crate::support::dice::Dice;
use crate::support::relay::Relay;
use crate::support::wait::eventually;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RelayEnd {
    Killed,
    Terminated,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum ServerEnd {
    Fast,
    Immediate,
    Killed,
}

impl World {
    pub(super) async fn end_relay(&mut self, end: RelayEnd, dice: &mut Dice) {
        self.stop_relay(end).await;
        self.while_others_write(dice.roll(40)).await;
        self.start_relay().await;
    }

    pub(super) async fn stop_relay(&mut self, end: RelayEnd) {
        match end {
            RelayEnd::Killed => self.relay.kill9().await,
            RelayEnd::Terminated => self.relay.terminate().await,
        }
    }

    pub(super) async fn end_postgres(&mut self, end: ServerEnd, dice: &mut Dice) {
        match end {
            ServerEnd::Fast => self.pg.stop_fast().await,
            ServerEnd::Immediate => self.pg.stop_immediate().await,
            ServerEnd::Killed => self.pg.kill9(),
        }
        // Also one that is not there at once when the relay looks.
        if dice.roll(2) == 0 {
            let failures = "rowcast_ingest_failures_total";
            let before = self.relay.metric(failures).await.unwrap_or(0.0);
            eventually(RECOVERY, "the relay finds no server", async || {
                (self.relay.metric(failures).await.unwrap_or(0.0) > before).then_some(())
            })
            .await;
        }
        self.pg.start_again().await;
    }

    pub(super) async fn end_walsender(&self, dice: &mut Dice) {
        const END: &str =
            "SELECT count(pg_terminate_backend(active_pid)) FROM pg_replication_slots WHERE active";
        for _ in 0..=dice.roll(3) {
            eventually(RECOVERY, "a walsender to end", async || {
                (self.pg.value(END).await != "0").then_some(())
            })
            .await;
            self.while_others_write(dice.roll(20)).await;
        }
    }

    /// Another relay on the same slot waits until the first goes, and begins anew with its own log.
    pub(super) async fn change_relays(&mut self, dice: &mut Dice) {
        const WAITS: &str = "this relay waits, and takes over when the slot is free";
        let second = match self.other.take() {
            Some(mut again) => {
                again.start_again().await;
                again
            }
            None => self.setup.clone().start_listening().await,
        };
        let known = second.count_lines(super::world::ANEW);
        eventually(RECOVERY, "the second relay waits", async || {
            (second.metric(r#"rowcast_ingest_state{state="waiting"}"#).await == Some(1.0)).then_some(())
        })
        .await;
        eventually(RECOVERY, "the second relay says so", async || {
            (second.count_lines(WAITS) > 0).then_some(())
        })
        .await;
        self.while_others_write(dice.roll(20)).await;
        let end = if dice.roll(2) == 0 { RelayEnd::Killed } else { RelayEnd::Terminated };
        self.stop_relay(end).await;
        let first: Relay = std::mem::replace(&mut self.relay, second);
        self.other = Some(first);
        self.lead_devices();
        self.new_epochs(known + 1).await;
    }

    pub(super) async fn revoke(&self, dice: &mut Dice) {
        let user = literal(pick::<&str>(&self.users, dice));
        self.pg.sql(&format!("SELECT rowcast.revoke({user})")).await;
        self.while_others_write(dice.roll(40)).await;
        self.pg.sql(&format!("SELECT rowcast.unrevoke({user})")).await;
    }
}
