//! A device that comes back after every break, with the cursor it has, and keeps its copy.

use std::net::SocketAddr;

use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::copy::Copy;
use super::device::{Connect, Incoming};

/// A follower at work.
pub(crate) struct Follower {
    task: JoinHandle<Followed>,
    subscribed: watch::Receiver<u32>,
}

/// What a follower came to.
#[derive(Debug, Default)]
pub(crate) struct Followed {
    pub(crate) copy: Copy,
    pub(crate) connections: u32,
    /// Closes with 1012.
    pub(crate) restarts: u32,
}

impl Follower {
    /// Follows one pattern, wherever the relay listens now, until a row whose record contains `last`.
    ///
    /// Panics when it is told to sync, and when a change comes twice or out of order.
    pub(crate) async fn start(
        connect: Connect,
        topic: &str,
        address: watch::Receiver<SocketAddr>,
        last: &str,
    ) -> Self {
        let (tell, mut subscribed) = watch::channel(0);
        let task = tokio::spawn(follow(connect, topic.to_owned(), address, last.to_owned(), tell));
        subscribed.wait_for(|count| *count > 0).await.unwrap();
        Follower { task, subscribed }
    }

    /// How often it was subscribed.
    pub(crate) fn subscribed(&self) -> u32 {
        *self.subscribed.borrow()
    }

    /// Waits for the last row.
    pub(crate) async fn finish(self) -> Followed {
        let deadline = std::time::Duration::from_secs(60);
        tokio::time::timeout(deadline, self.task)
            .await
            .expect("a follower's last row within a minute")
            .unwrap()
    }
}

async fn follow(
    connect: Connect,
    topic: String,
    address: watch::Receiver<SocketAddr>,
    last: String,
    subscribed: watch::Sender<u32>,
) -> Followed {
    let mut followed = Followed::default();
    let mut cursor: Option<String> = None;
    loop {
        let at = *address.borrow();
        let Ok(mut device) = connect.clone().via(at).try_connect().await else {
            // The relay is away. A pause between two tries, as any client has it.
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            continue;
        };
        followed.connections += 1;
        let mut request = json!({"type": "subscribe", "topics": [topic]});
        if let Some(cursor) = &cursor {
            request["cursor"] = cursor.as_str().into();
        }
        if !device.try_send(&request).await {
            continue;
        }
        loop {
            let frame = match device.next_incoming().await {
                Incoming::Frame(frame) => frame,
                Incoming::Closed(why) => {
                    followed.restarts += u32::from(why.is_some_and(|(code, _)| code == 1012));
                    break;
                }
            };
            match frame.kind.as_str() {
                "subscribed" => subscribed.send_modify(|count| *count += 1),
                "error" | "sync_required" | "revoked" => panic!("unexpected: {}", frame.text),
                _ => {}
            }
            // One pattern: every cursor is for it. It never goes back.
            if let Some(new) = frame.cursor() {
                cursor = cursor.filter(|known| *known > new).or(Some(new));
            }
            let Some(change) = frame.change() else { continue };
            followed.copy.apply(&change);
            if change.new_record.is_some_and(|record| record.get().contains(&last)) {
                return followed;
            }
        }
    }
}
