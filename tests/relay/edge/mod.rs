//! The device side of connections: TLS, web pages, limits, slow and broken senders, and a relay without
//! authentication.

mod limits;
mod open;
mod pages;
mod slow;
mod tls;

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::wait::within;

const SYNC: &str = "/api/realtime/sync";
const ORDERS: &str = "CREATE TABLE orders (id int PRIMARY KEY, user_id int NOT NULL);
    SELECT rowcast.track('orders')";

/// Sends bytes as they are, and returns all that comes until the relay closes; nothing where it just cuts.
async fn raw(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // The relay may have had enough before all is sent.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let _ = within("the relay closes", stream.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).into_owned()
}

/// The head of a request for a WebSocket, without its end.
fn handshake(host: &str) -> String {
    format!(
        "GET /api/realtime/ws/page HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    )
}

/// The status of the answer to a request head, which is ended here.
async fn status(address: SocketAddr, head: &str) -> u16 {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(format!("{head}\r\n").as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    within("an answer", stream.read_exact(&mut answer)).await.unwrap();
    std::str::from_utf8(&answer[9..]).unwrap().parse().unwrap()
}
