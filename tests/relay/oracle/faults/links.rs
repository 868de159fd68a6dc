//! The links between the relay and Postgres, and between devices and the relay; and the clock.

use std::time::Duration;

use super::World;
use super::world::{HEARTBEAT, RECOVERY, WAL_SENDER_TIMEOUT};
use crate::support::dice::Dice;
use crate::support::proxy::{Direction, Flow, Proxy};
use crate::support::wait::eventually;

/// Longer than either side waits for the other.
const LONG_STALL: Duration = HEARTBEAT.saturating_mul(4);
/// Bytes a second of a link that is slow: much less than writers write.
const SLOW: [usize; 3] = [20_000, 60_000, 200_000];
/// How far commit times jump: about as far as commits lie apart, and further than anything is kept.
const JUMPS: [Duration; 3] =
    [Duration::from_millis(300), Duration::from_secs(3600), Duration::from_secs(200 * 3600)];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Link {
    Postgres,
    Devices,
}

impl World {
    fn link(&self, link: Link) -> &Proxy {
        match link {
            Link::Postgres => &self.link,
            Link::Devices => &self.door,
        }
    }

    pub(super) async fn cut(&self, link: Link, dice: &mut Dice) {
        let proxy = self.link(link);
        for _ in 0..=dice.roll(3) {
            if dice.roll(2) == 0 {
                proxy.cut();
            } else {
                proxy.shut_out();
                self.while_others_write(dice.roll(40)).await;
                proxy.let_in();
            }
            self.while_others_write(dice.roll(20)).await;
        }
    }

    pub(super) async fn stall(&self, link: Link, dice: &mut Dice) {
        let proxy = self.link(link);
        match dice.roll(4) {
            // Open connections for good; who notices by time-outs connects again.
            0 => {
                proxy.silence();
                if link == Link::Postgres {
                    self.walsender_changes(async || {}).await;
                }
            }
            1 => {
                let directions = directions(dice);
                set(proxy, directions, Flow::Stalled);
                match link {
                    Link::Postgres if directions == [Direction::ToServer; 2] => {
                        self.walsender_changes(async || {}).await;
                    }
                    Link::Postgres => tokio::time::sleep(WAL_SENDER_TIMEOUT * 3).await,
                    // Some of the relay's sessions are closed meanwhile, and their devices hear of it later.
                    Link::Devices => tokio::time::sleep(LONG_STALL).await,
                }
                set(proxy, directions, Flow::Open);
            }
            _ => {
                let directions = directions(dice);
                set(proxy, directions, Flow::Stalled);
                self.while_others_write(dice.roll(60)).await;
                set(proxy, directions, Flow::Open);
            }
        }
    }

    pub(super) async fn slow(&self, link: Link, dice: &mut Dice) {
        let (proxy, directions) = (self.link(link), directions(dice));
        set(proxy, directions, Flow::BytesPerSecond(SLOW[dice.roll(3) as usize]));
        self.while_others_write(50 + dice.roll(100)).await;
        set(proxy, directions, Flow::Open);
    }

    pub(super) async fn jump_commit_times(&self, dice: &mut Dice) {
        let most = JUMPS[dice.roll(3) as usize];
        self.link.jump_commit_times(dice.next(), most);
        self.while_others_write(30 + dice.roll(60)).await;
        if dice.roll(2) == 0 {
            self.link.jump_commit_times(0, Duration::ZERO);
        }
    }

    /// Waits until the server has given the present walsender up.
    pub(super) async fn walsender_changes(&self, mut meanwhile: impl AsyncFnMut()) {
        const PID: &str = "SELECT coalesce((SELECT max(pid) FROM pg_stat_replication), 0)";
        let before = self.pg.value(PID).await;
        eventually(RECOVERY, "the server gives the walsender up", async || {
            meanwhile().await;
            (self.pg.value(PID).await != before).then_some(())
        })
        .await;
    }
}

/// One or both.
fn directions(dice: &mut Dice) -> [Direction; 2] {
    match dice.roll(3) {
        0 => [Direction::ToServer; 2],
        1 => [Direction::ToClient; 2],
        _ => [Direction::ToServer, Direction::ToClient],
    }
}

fn set(proxy: &Proxy, directions: [Direction; 2], flow: Flow) {
    directions.into_iter().for_each(|direction| proxy.set(direction, flow));
}
