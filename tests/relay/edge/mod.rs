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

use crate::support::raw::exchange;
use crate::support::scene::ORDERS;
use crate::support::wait::within;

const SYNC: &str = "/api/realtime/sync";

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
