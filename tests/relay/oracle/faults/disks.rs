//! The disk beneath the relay's log: full, or failing.

use super::super::columns::pick;
use super::World;
use super::processes::RelayEnd;
use super::world::RECOVERY;
use crate::support::dice::Dice;
use crate::support::disk::DiskFault;
use crate::support::wait::eventually;

/// Said once for each time that the log goes on by itself.
const GOES_ON: &str = "the log goes on";

impl World {
    pub(super) async fn fill_disk(&mut self, dice: &mut Dice) {
        self.relay.break_disk(DiskFault::Full);
        self.held_up("disk_full").await;
        self.while_others_write(dice.roll(60)).await;
        if dice.roll(3) == 0 {
            // Opening its log anew, it waits for room as well.
            self.stop_relay(RelayEnd::Killed).await;
            self.start_relay().await;
            self.held_up("disk_full").await;
        }
        self.relay.mend_disk();
    }

    pub(super) async fn fail_disk(&mut self, dice: &mut Dice) {
        let went_on = self.relay.count_lines(GOES_ON);
        match pick(&[DiskFault::Fsync, DiskFault::Write, DiskFault::FsyncOnce], dice) {
            // What it was to flush may be gone, and nothing fails any more.
            DiskFault::FsyncOnce => {
                self.relay.break_disk(DiskFault::FsyncOnce);
                self.write_something().await;
            }
            fault => {
                self.relay.break_disk(*fault);
                self.held_up("disk_fails").await;
                self.while_others_write(dice.roll(60)).await;
                if dice.roll(3) == 0 {
                    // What devices saw, and no disk has, comes again.
                    self.stop_relay(RelayEnd::Killed).await;
                    self.relay.mend_disk();
                    return self.start_relay().await;
                }
                self.relay.mend_disk();
            }
        }
        eventually(RECOVERY, GOES_ON, async || (self.relay.count_lines(GOES_ON) > went_on).then_some(()))
            .await;
    }

    /// Waits until the relay has noticed, and says why it is not ready.
    async fn held_up(&self, reason: &str) {
        self.write_something().await;
        eventually(RECOVERY, &format!("not ready: {reason}"), async || {
            let answer = self.relay.http().request("GET", "/ready").try_send().await.ok()?;
            (answer.status == 503 && answer.json()["reason"] == reason).then_some(())
        })
        .await;
    }

    /// A disk that nothing is written to does not fail.
    async fn write_something(&self) {
        self.pg.sql("SELECT rowcast.broadcast('global:disk', 'disk', 'null')").await;
    }
}
