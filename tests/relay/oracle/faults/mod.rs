//! Faults: what breaks while writers write and devices travel, and ends by itself.
//!
//! [`World`] has all that can break. A [`Fault`] is thrown by [`World::suffer`], which returns when the
//! relay has recovered; where it has to refuse, the fault asserts that it says what to do, and does it.
//! What is thrown, and how, comes from the dice, so that a seed decides it.

mod disks;
mod links;
mod processes;
mod publication;
pub(super) mod run;
mod schemas;
mod slots;
mod tests;
pub(crate) mod world;

use crate::support::dice::Dice;
use links::Link;
use processes::{RelayEnd, ServerEnd};
use world::World;

/// The environment's faults: `none`, `all`, or names with commas between them.
const FAULTS: &str = "ROWCAST_ORACLE_FAULTS";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// kill -9.
    KillRelay,
    /// SIGTERM, and a start.
    RestartRelay,
    /// `pg_ctl stop -m fast`.
    StopPostgres,
    /// `pg_ctl stop -m immediate`.
    StopPostgresNow,
    /// kill -9 of the postmaster.
    KillPostgres,
    EndWalsender,
    CutPostgres,
    StallPostgres,
    SlowPostgres,
    CutDevices,
    StallDevices,
    SlowDevices,
    /// Commit times jump back and forth from now on.
    CommitTimes,
    /// The relay's disk takes nothing more.
    DiskFull,
    /// The relay's disk fails to write or to flush.
    DiskErrors,
    /// VACUUM FULL and ALTER TYPE while tables are synced in full.
    Rewrite,
    /// A table is untracked and tracked again with transactions open across it.
    Track,
    /// The stream stands still while tables are untracked, altered and tracked.
    LagBehindCatalog,
    /// The slot is dropped, and perhaps made again by a foreign hand.
    DropSlot,
    /// The server removes WAL that the slot needs.
    InvalidateSlot,
    /// A table leaves the publication and comes back, behind the catalog's back.
    Unpublish,
    /// The publication's options change and are set right.
    PublicationOptions,
    /// The publication is dropped and made again.
    RemakePublication,
    /// A user's tokens are revoked, and later are not.
    Revoke,
    /// Another relay waits for the slot and takes over.
    SecondRelay,
}

use Fault::*;

impl Fault {
    pub(crate) const ALL: [(&'static str, Fault); 25] = [
        ("kill-relay", KillRelay),
        ("restart-relay", RestartRelay),
        ("stop-postgres", StopPostgres),
        ("stop-postgres-now", StopPostgresNow),
        ("kill-postgres", KillPostgres),
        ("end-walsender", EndWalsender),
        ("cut-postgres", CutPostgres),
        ("stall-postgres", StallPostgres),
        ("slow-postgres", SlowPostgres),
        ("cut-devices", CutDevices),
        ("stall-devices", StallDevices),
        ("slow-devices", SlowDevices),
        ("commit-times", CommitTimes),
        ("disk-full", DiskFull),
        ("disk-errors", DiskErrors),
        ("rewrite", Rewrite),
        ("track", Track),
        ("lag-behind-catalog", LagBehindCatalog),
        ("drop-slot", DropSlot),
        ("invalidate-slot", InvalidateSlot),
        ("unpublish", Unpublish),
        ("publication-options", PublicationOptions),
        ("remake-publication", RemakePublication),
        ("revoke", Revoke),
        ("second-relay", SecondRelay),
    ];

    /// Those that the environment names.
    pub(crate) fn asked() -> (Vec<Fault>, String) {
        let list = std::env::var(FAULTS).unwrap_or_default();
        (Self::named(&list), list)
    }

    pub(crate) fn named(list: &str) -> Vec<Fault> {
        let of = |name: &str| {
            let known = Self::ALL.iter().find(|(known, _)| *known == name);
            let names = || Self::ALL.map(|(name, _)| name).join(",");
            known.unwrap_or_else(|| panic!("{FAULTS}: no fault {name}; none, all, or of {}", names())).1
        };
        match list.trim() {
            "" | "none" => Vec::new(),
            "all" => Self::ALL.map(|(_, fault)| fault).into(),
            some => some.split(',').map(|name| of(name.trim())).collect(),
        }
    }
}

impl World {
    /// Throws a fault, and returns when the relay has recovered from it.
    pub(crate) async fn suffer(&mut self, fault: Fault, dice: &mut Dice) {
        match fault {
            KillRelay => self.end_relay(RelayEnd::Killed, dice).await,
            RestartRelay => self.end_relay(RelayEnd::Terminated, dice).await,
            StopPostgres => self.end_postgres(ServerEnd::Fast, dice).await,
            StopPostgresNow => self.end_postgres(ServerEnd::Immediate, dice).await,
            KillPostgres => self.end_postgres(ServerEnd::Killed, dice).await,
            EndWalsender => self.end_walsender(dice).await,
            CutPostgres => self.cut(Link::Postgres, dice).await,
            StallPostgres => self.stall(Link::Postgres, dice).await,
            SlowPostgres => self.slow(Link::Postgres, dice).await,
            CutDevices => self.cut(Link::Devices, dice).await,
            StallDevices => self.stall(Link::Devices, dice).await,
            SlowDevices => self.slow(Link::Devices, dice).await,
            CommitTimes => self.jump_commit_times(dice).await,
            DiskFull => self.fill_disk(dice).await,
            DiskErrors => self.fail_disk(dice).await,
            Rewrite => self.rewrite_tables(dice).await,
            Track => self.track_across_transactions(dice).await,
            LagBehindCatalog => self.lag_behind_catalog(dice).await,
            DropSlot => self.drop_slot(dice).await,
            InvalidateSlot => self.invalidate_slot().await,
            Unpublish => self.unpublish(dice).await,
            PublicationOptions => self.change_publication_options(dice).await,
            RemakePublication => self.remake_publication(dice).await,
            Revoke => self.revoke(dice).await,
            SecondRelay => self.change_relays(dice).await,
        }
        self.recovered().await;
        if matches!(fault, Rewrite | Track | LagBehindCatalog | Unpublish) {
            self.compared().await;
        }
    }
}
