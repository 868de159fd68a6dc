//! HTTP/1.1 as far as the benchmark needs it: one connection, one request after another.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail};
use memchr::memmem;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const PATIENCE: Duration = Duration::from_secs(120);
const READ: usize = 256 * 1024;

/// A connection that is kept.
pub(crate) struct Http {
    stream: TcpStream,
    host: String,
    token: Option<String>,
    /// What was read and not yet used.
    buffer: Vec<u8>,
}

impl Http {
    pub(crate) async fn connect(address: SocketAddr, token: Option<String>) -> anyhow::Result<Http> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Http { stream, host: address.to_string(), token, buffer: Vec::new() })
    }

    /// Sends a request without waiting for its answer.
    pub(crate) async fn send(
        &mut self,
        method: &str,
        path: &str,
        headers: &str,
        body: &[u8],
    ) -> anyhow::Result<()> {
        let bearer =
            self.token.iter().map(|token| format!("Authorization: Bearer {token}\r\n")).collect::<String>();
        let mut request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\n{bearer}{headers}Content-Length: {}\r\n\r\n",
            self.host,
            body.len()
        )
        .into_bytes();
        request.extend_from_slice(body);
        tokio::time::timeout(PATIENCE, self.stream.write_all(&request)).await??;
        Ok(())
    }

    pub(crate) async fn request(
        &mut self,
        method: &str,
        path: &str,
        body: &[u8],
    ) -> anyhow::Result<(u16, Vec<u8>)> {
        self.send(method, path, "Content-Type: application/json\r\n", body).await?;
        self.answer().await
    }

    /// The next answer, whole.
    pub(crate) async fn answer(&mut self) -> anyhow::Result<(u16, Vec<u8>)> {
        let mut body = Vec::new();
        let status = self.answer_to(|bytes| body.extend_from_slice(bytes)).await?;
        Ok((status, body))
    }

    /// The next answer's body goes to `sink` as it comes.
    pub(crate) async fn answer_to(&mut self, mut sink: impl FnMut(&[u8])) -> anyhow::Result<u16> {
        let head = self.until(b"\r\n\r\n").await?;
        let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
        let status = head.get(9..12).and_then(|code| code.parse().ok()).context("no status")?;
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
        if let Some(length) = length {
            self.pass(length, &mut sink).await?;
        } else if head.contains("transfer-encoding: chunked") {
            loop {
                let line = self.until(b"\r\n").await?;
                let line = String::from_utf8_lossy(&line);
                let length =
                    usize::from_str_radix(line.trim(), 16).with_context(|| format!("a chunk {line:?}"))?;
                self.pass(length, &mut sink).await?;
                self.until(b"\r\n").await?;
                if length == 0 {
                    break;
                }
            }
        } else if status != 204 {
            bail!("an answer without a length");
        }
        Ok(status)
    }

    async fn until(&mut self, mark: &[u8]) -> anyhow::Result<Vec<u8>> {
        loop {
            if let Some(at) = memmem::find(&self.buffer, mark) {
                return Ok(self.buffer.drain(..at + mark.len()).collect());
            }
            self.fill().await?;
        }
    }

    async fn pass(&mut self, mut length: usize, sink: &mut impl FnMut(&[u8])) -> anyhow::Result<()> {
        while length > 0 {
            if self.buffer.is_empty() {
                self.fill().await?;
            }
            let now = length.min(self.buffer.len());
            sink(&self.buffer[..now]);
            self.buffer.drain(..now);
            length -= now;
        }
        Ok(())
    }

    async fn fill(&mut self) -> anyhow::Result<()> {
        self.buffer.reserve(READ);
        let read = tokio::time::timeout(PATIENCE, self.stream.read_buf(&mut self.buffer)).await??;
        if read == 0 { bail!("the connection ended") } else { Ok(()) }
    }
}
