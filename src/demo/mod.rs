//! `rowcast demo`: a private PostgreSQL, a relay and three devices, shown and checked.
//!
//! * `stage` sets up and takes down the database and the relay;
//! * `device` is a WebSocket client with a copy of its own, `rest` its requests;
//! * `cast` puts the devices on the stage, `want` is what one of them is to be sent;
//! * `story` is what happens, step by step; `encore` what goes on after it;
//! * `screen` is what one sees of it.
//!
//! Everything goes through the public surface: SQL, WebSocket, REST. Nothing here looks into the relay,
//! so a story that ends well is a proof, and `--check` makes it one for scripts.

mod cast;
mod device;
mod encore;
mod rest;
mod screen;
mod stage;
mod story;
mod wait;
mod want;

use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};

use self::cast::Cast;
use self::screen::Screen;
use self::stage::Stage;
use self::story::Pause;
use crate::config::Config;

/// How the demo is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// For a person: with pauses, and it keeps running until a signal.
    Show,
    /// For a script: without a pause, and it ends with the story.
    Check,
}

const READING_PAUSE: Duration = Duration::from_millis(1500);

/// Runs the demo. Of `config` only `listen` and the limits count: where the port is taken, another one
/// is used. An error says which step failed and why. Whatever the outcome, nothing is left running.
pub async fn run(config: Config, mode: Mode) -> anyhow::Result<()> {
    let mut ended = Box::pin(ended()?);
    let screen = Screen::new();
    screen.title("rowcast demo")?;
    let begun = Instant::now();
    let mut stage = tokio::select! {
        stage = Stage::set(config) => stage?,
        // What was begun goes with its owner.
        () = &mut ended => return Ok(()),
    };
    let mut relay = stage.start_relay().await?;
    let played = tokio::select! {
        played = play(&stage, screen, mode, begun) => played,
        failure = relay.failed() => Err(failure.context("the relay failed")),
        () = &mut ended => Ok(()),
    };
    // A failure of the story counts for more than one of the clean-up.
    let struck = stage.strike(relay).await;
    played.and(struck)?;
    if mode == Mode::Show {
        Screen::new().verdict("Stopped. Nothing is left running, and nothing on disk.")?;
    }
    Ok(())
}

async fn play(stage: &Stage, screen: Screen, mode: Mode, begun: Instant) -> anyhow::Result<()> {
    stage.wait_ready().await?;
    screen
        .fact("database", &format!("PostgreSQL {} in {}", stage.version().await?, stage.home().display()))?;
    let setup = begun.elapsed().as_secs_f64();
    screen.fact("relay", &format!("http://{}, ready after {setup:.1} s", stage.address()))?;
    screen.fact("people", "Mia (user 42) with a phone and a laptop, Tom (user 7) with a phone")?;
    screen.fact("times", "from the commit's return to the frame; 0.00: it came even before")?;
    let mut cast = Cast::assemble(stage, screen).await?;
    let from = cast.devices[cast::LAPTOP].cursor().to_owned();
    let pause = Pause(if mode == Mode::Show { READING_PAUSE } else { Duration::ZERO });
    story::tell(&mut cast, pause).await?;
    cast.screen.verdict("All of it holds.")?;
    cast.screen.plain(&summary(&mut cast.latencies))?;
    if mode == Mode::Show {
        encore::play(&mut cast, &from).await?;
    }
    Ok(())
}

fn summary(latencies: &mut [Duration]) -> String {
    latencies.sort_unstable();
    let milliseconds = |place: usize| latencies.get(place).map_or(0.0, |latency| latency.as_secs_f64() * 1e3);
    format!(
        "{} frames: half of them within {:.2} ms of their commit, all within {:.2} ms.",
        latencies.len(),
        milliseconds(latencies.len() / 2),
        milliseconds(latencies.len().saturating_sub(1)),
    )
}

/// Until somebody wants it to end: Ctrl-C, `kill`, or a terminal that goes away.
fn ended() -> anyhow::Result<impl Future<Output = ()>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_readme_has_the_table_of_settings() {
        let readme = include_str!("../../README.md");
        let table = crate::config::table();
        assert!(readme.contains(&table), "README.md must hold this table:\n\n{table}");
    }
}
