//! The relay under attack: what SECURITY.md promises, each promise tried by someone who wants it broken.
//!
//! What other modules prove stays there (`privacy` for grants and values, `edge` for limits and pages, `keys`
//! for issuers, `tickets`, `grants`); here are the inputs that nobody sends by mistake.

mod bodies;
mod database;
mod frames;
mod heads;
mod injection;
mod names;
mod slow;
mod tokens;
mod users;

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::wait::within;

const SYNC: &str = "/api/realtime/sync";
const ORDERS: &str = "CREATE TABLE orders (id int PRIMARY KEY, user_id int NOT NULL);
    SELECT rowcast.track('orders')";

/// Sends bytes as they are, and returns all that comes until the relay closes; nothing where it just cuts.
async fn exchange(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // The relay may have had enough before all is sent.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let what = format!("the relay closes after {}", String::from_utf8_lossy(&bytes[..bytes.len().min(300)]));
    let _ = within(&what, stream.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).into_owned()
}

/// The status of each answer among what was read.
fn statuses(answers: &str) -> Vec<u16> {
    let heads = answers.split("HTTP/1.").skip(1);
    heads.filter_map(|head| head.get(2..5)?.parse().ok()).collect()
}
