//! Bytes as they are, where no client would send them.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::wait::within;

/// Sends bytes, and returns all that comes until the relay closes; nothing where it just cuts.
pub(crate) async fn exchange(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // The relay may have had enough before all is sent.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let what = format!("the relay closes after {}", String::from_utf8_lossy(&bytes[..bytes.len().min(300)]));
    let _ = within(&what, stream.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).into_owned()
}
