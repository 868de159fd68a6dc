//! What devices are told: the right changes to the right devices, once, in order, and nothing else.

mod messages;
mod moves;
mod refusals;
mod rows;
mod sessions;
mod toast;
mod tokens;
mod topics;
mod truncate;

use crate::support::device::Device;
use crate::support::frame::Frame;
use crate::support::relay::Relay;
use crate::support::scene::replayed;

/// Asserts that a device of the same user that comes with the older cursor is told exactly the same.
async fn assert_replays(relay: &Relay, user: &str, cursor: &str, live: &[Frame]) {
    let mut late = Device::of(relay, user, "late").connect().await;
    let topics = [format!("user:{user}:*"), "global:*".to_owned()];
    let mut frames = replayed(&mut late, &topics.each_ref().map(String::as_str), cursor).await;
    frames.retain(|frame| !frame.text.contains(":mark\""));
    let texts = |frames: &[Frame]| frames.iter().map(|frame| frame.text.clone()).collect::<Vec<_>>();
    assert_eq!(texts(&frames), texts(live), "replayed (left) and live (right)");
}
