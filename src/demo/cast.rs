//! Who plays: three devices of two users, what is done to them, and what must come of it.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use super::device::Device;
use super::rest::Synced;
use super::screen::Screen;
use super::stage::{Stage, TABLES, Table};
use super::want::Want;

pub(super) const MIA: &str = "42";
pub(super) const TOM: &str = "7";

/// Which device, by its place in [`Cast::devices`].
pub(super) const PHONE: usize = 0;
pub(super) const LAPTOP: usize = 1;
pub(super) const TOMS_PHONE: usize = 2;

pub(super) struct Cast<'a> {
    pub(super) stage: &'a Stage,
    pub(super) screen: Screen,
    pub(super) devices: [Device; 3],
    /// From a commit's return to a frame's arrival, for every delivery so far.
    pub(super) latencies: Vec<Duration>,
    /// Texts that no frame may hold.
    forbidden: Vec<&'static str>,
}

impl<'a> Cast<'a> {
    /// Everybody connected and subscribed.
    pub(super) async fn assemble(stage: &'a Stage, screen: Screen) -> anyhow::Result<Cast<'a>> {
        let (mia, tom) = (stage.token(MIA)?, stage.token(TOM)?);
        let address = stage.address();
        let mut devices = [
            Device::new("Mia's phone", "mia-phone", MIA, address, mia.clone()),
            Device::new("Mia's laptop", "mia-laptop", MIA, address, mia),
            Device::new("Tom's phone", "tom-phone", TOM, address, tom),
        ];
        for device in &mut devices {
            device.go_online().await?;
        }
        Ok(Cast { stage, screen, devices, latencies: Vec::new(), forbidden: Vec::new() })
    }

    pub(super) fn device(&mut self, which: usize) -> &mut Device {
        &mut self.devices[which]
    }

    /// From here on, no frame may hold this text.
    pub(super) fn never(&mut self, text: &'static str) -> &mut Self {
        self.forbidden.push(text);
        self
    }

    /// Shows and runs SQL; the moment of its return.
    pub(super) async fn write(&mut self, sql: &str) -> anyhow::Result<Instant> {
        self.screen.code(sql)?;
        self.stage.run(sql).await
    }

    /// A change of a row that is as Postgres has it now.
    pub(super) async fn row(&self, operation: &'static str, topic: &str, key: i64) -> anyhow::Result<Want> {
        let name = topic.rsplit(':').next().unwrap_or_default();
        let table = table(name)?;
        let record = self.stage.record(table, key).await?;
        Ok(Want::row(operation, topic, table.key, key, record))
    }

    /// Waits until each device has been sent exactly this, and the others nothing, since `written`.
    pub(super) async fn arrives(
        &mut self,
        written: Instant,
        expected: &[(usize, &[Want])],
    ) -> anyhow::Result<()> {
        let mut passed = String::new();
        let mut shown: Vec<&str> = Vec::new();
        for (which, wants) in expected {
            for (place, want) in wants.iter().enumerate() {
                let device = &mut self.devices[*which];
                let (at, frame) = device.data(&want.what()).await?;
                want.check(&frame, place + 1 == wants.len())
                    .with_context(|| format!("on {}", device.name))?;
                if let Some(text) = self.forbidden.iter().find(|text| frame.text.contains(**text)) {
                    bail!("{} was sent {text:?}: {}", device.name, frame.text);
                }
                // The relay may well be faster than the answer of the commit.
                let after = at.saturating_duration_since(written);
                self.latencies.push(after);
                self.screen.device(device.name, Some(after), &want.what())?;
                if !shown.contains(&want.shown()) {
                    self.screen.record(want.shown())?;
                    shown.push(want.shown());
                }
                passed = passed.max(frame.cursor.unwrap_or_default());
            }
        }
        self.nothing_else(expected, &passed).await
    }

    async fn nothing_else(&mut self, expected: &[(usize, &[Want])], cursor: &str) -> anyhow::Result<()> {
        for (which, device) in self.devices.iter_mut().enumerate() {
            if !device.is_online() {
                self.screen.device(device.name, None, "offline")?;
                continue;
            }
            device.expect_nothing_up_to(cursor).await?;
            if expected.iter().all(|(other, _)| *other != which) {
                self.screen.device(device.name, None, "nothing")?;
            }
        }
        Ok(())
    }

    /// The answer of a sync holds exactly this, whatever its order among tables.
    pub(super) fn synced(&self, which: usize, synced: &Synced, expected: &[Want]) -> anyhow::Result<()> {
        let name = self.devices[which].name;
        let changes: Vec<_> = synced.changes.values().flatten().collect();
        let complete = !synced.has_more && synced.total_changes == expected.len() as u64;
        let exact = expected.iter().all(|want| changes.iter().filter(|change| want.is(change)).count() == 1);
        ensure!(
            complete && exact && changes.len() == expected.len(),
            "{name} expected {expected:?} of its sync, and got {synced:?}"
        );
        for want in expected {
            let what = if want.is_delete() { "tombstone" } else { "upsert" };
            self.screen.device(name, None, &format!("{what} {}", want.topic()))?;
            self.screen.record(want.shown())?;
        }
        Ok(())
    }
}

fn table(name: &str) -> anyhow::Result<&'static Table> {
    TABLES.iter().find(|table| table.name == name).with_context(|| format!("there is no table {name}"))
}
