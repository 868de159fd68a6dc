//! After the story: sample writes at a gentle pace, whatever arrives, and how to join in.

use std::time::{Duration, Instant};

use tokio::time::{MissedTickBehavior, interval};

use super::cast::{Cast, LAPTOP, MIA, PHONE, TOMS_PHONE};
use super::device::{Device, Frame};
use super::rest::sync_request;

const PACE: Duration = Duration::from_secs(3);

/// Out of the way of the story's rows, and of those that somebody makes by hand.
const FIRST_ID: i64 = 1_000_000;
/// Rows of the sample writes that are kept; older ones are deleted.
const KEPT: i64 = 20;
const FOODS: [(&str, f64); 5] =
    [("Apple", 52.0), ("Rye bread", 230.5), ("Yoghurt", 98.0), ("Walnuts", 196.4), ("Miso soup", 84.0)];

/// Until it is dropped, or a connection breaks.
pub(super) async fn play(cast: &mut Cast<'_>, from: &str) -> anyhow::Result<()> {
    invite(cast, from)?;
    let mut ticks = interval(PACE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut written = 0;
    loop {
        let [phone, laptop, toms_phone] = &mut cast.devices;
        // Each branch is safe to cancel: a tick and a received frame stay where they are.
        let (which, (at, frame)) = tokio::select! {
            _ = ticks.tick() => {
                cast.stage.run(&sample(written)).await?;
                written += 1;
                continue;
            }
            next = phone.next() => (PHONE, next?),
            next = laptop.next() => (LAPTOP, next?),
            next = toms_phone.next() => (TOMS_PHONE, next?),
        };
        show(cast, which, at, &frame)?;
    }
}

/// The sample write of a number: meals of Mia and Tom that come, are corrected and go again.
fn sample(number: i64) -> String {
    let round = number / 3;
    let id = FIRST_ID + round;
    let user = if round % 2 == 0 { 42 } else { 7 };
    let (food, kcal) = FOODS[usize::try_from(round).unwrap_or_default() % FOODS.len()];
    match number % 3 {
        0 => format!("INSERT INTO food_entries VALUES ({id}, {user}, '{food}', {kcal})"),
        1 => format!("UPDATE food_entries SET kcal = kcal + 10 WHERE id = {id}"),
        _ => format!("DELETE FROM food_entries WHERE id BETWEEN {FIRST_ID} AND {}", id - KEPT),
    }
}

fn show(cast: &Cast<'_>, which: usize, at: Instant, frame: &Frame) -> anyhow::Result<()> {
    let name = cast.devices[which].name;
    if frame.is_data() {
        let topic = frame.topic.as_deref().unwrap_or_default();
        let what = frame.operation.as_deref().or(frame.event.as_deref()).unwrap_or_default();
        let body = frame.new_record.as_ref().or(frame.payload.as_ref()).or(frame.key.as_ref());
        let text = body.map(|body| body.get()).unwrap_or_default();
        cast.screen.event(name, since_commit(at, frame), &format!("{what} {topic}"), text)?;
    } else if !matches!(frame.kind.as_str(), "heartbeat" | "pong") {
        cast.screen.event(name, None, &frame.kind, &frame.text)?;
    }
    Ok(())
}

/// By the clock: who wrote it, and when its commit returned, is not known here.
fn since_commit(at: Instant, frame: &Frame) -> Option<Duration> {
    let committed: jiff::Timestamp = frame.commit_timestamp.as_deref()?.parse().ok()?;
    let now = jiff::Timestamp::now();
    Duration::try_from(now.duration_since(committed)).ok()?.checked_sub(at.elapsed())
}

fn invite(cast: &Cast<'_>, from: &str) -> anyhow::Result<()> {
    let (stage, screen) = (cast.stage, &cast.screen);
    let laptop: &Device = &cast.devices[LAPTOP];
    let program = std::env::current_exe()?;
    let program =
        std::env::current_dir().ok().and_then(|here| program.strip_prefix(here).ok()).unwrap_or(&program);
    let url = format!("http://{}", stage.address());
    let body = sync_request("my-curl", &laptop.topics, from);
    screen.title("It keeps running, with a sample write every 3 seconds. Ctrl-C ends it.")?;
    screen.plain("In another shell, as Mia:")?;
    screen.blank()?;
    screen.plain(&format!("export ROWCAST_URL={url}"))?;
    screen.plain(&format!("export ROWCAST_TOKEN={}", stage.token(MIA)?))?;
    screen.plain(&format!("{} tail 'user:42:*' 'global:*'", program.display()))?;
    screen.plain(&format!(
        "curl -s $ROWCAST_URL/api/realtime/sync -H \"Authorization: Bearer $ROWCAST_TOKEN\" \
         -H 'Content-Type: application/json' -d '{body}'"
    ))?;
    screen.blank()?;
    screen.plain("And to write something yourself:")?;
    screen.blank()?;
    screen.plain(&format!("psql '{}'", stage.database_url()))?;
    screen.plain("INSERT INTO food_entries VALUES (100, 42, 'Mango', 99.0);")?;
    screen.blank()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_writes_leave_few_rows() {
        let mut rows = 0;
        for number in 0..3000 {
            let sql = sample(number);
            rows += i64::from(sql.starts_with("INSERT"));
            if let Some(last) = sql.strip_prefix("DELETE").and_then(|rest| rest.rsplit(' ').next()) {
                let gone = last.parse().map_or(0, |last: i64| (last - FIRST_ID + 1).max(0));
                assert!(rows - gone <= KEPT, "{number}: {sql}");
            }
        }
    }
}
