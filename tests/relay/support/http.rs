//! A small HTTP/1.1 client: one connection for each request, the body as it came.
//!
//! It asks for no compression unless a test sets the header, and decodes none.

use std::net::SocketAddr;

use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpSocket, TcpStream};

use super::wait::within;

/// Where requests go, and the token that they carry.
#[derive(Debug, Clone)]
pub(crate) struct Http {
    address: SocketAddr,
    token: Option<String>,
}

/// One request, sent by [`Request::send`] or [`Request::open`].
#[derive(Debug)]
pub(crate) struct Request {
    address: SocketAddr,
    head: String,
    body: Vec<u8>,
    receive_buffer: Option<u32>,
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) headers: Headers,
    pub(crate) body: Vec<u8>,
}

/// An answer whose body is still to be read: server-sent events, NDJSON.
pub(crate) struct Open {
    pub(crate) status: u16,
    pub(crate) headers: Headers,
    stream: BufReader<TcpStream>,
    body: Body,
    pending: Vec<u8>,
}

/// Header lines, with names in lower case.
#[derive(Debug)]
pub(crate) struct Headers(Vec<(String, String)>);

/// How the end of the body is known.
enum Body {
    Length(usize),
    Chunked,
    UntilClose,
    Ended,
}

impl Http {
    pub(crate) fn at(address: SocketAddr) -> Self {
        Http { address, token: None }
    }

    /// The same, with `Authorization: Bearer`.
    pub(crate) fn with_token(&self, token: &str) -> Self {
        Http { address: self.address, token: Some(token.to_owned()) }
    }

    pub(crate) async fn get(&self, path: &str) -> Response {
        self.request("GET", path).send().await
    }

    pub(crate) async fn delete(&self, path: &str) -> Response {
        self.request("DELETE", path).send().await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Response {
        self.request("POST", path).json(body).send().await
    }

    pub(crate) fn request(&self, method: &str, path: &str) -> Request {
        let head = format!("{method} {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n", self.address);
        let request = Request { address: self.address, head, body: Vec::new(), receive_buffer: None };
        match &self.token {
            Some(token) => request.header("authorization", &format!("Bearer {token}")),
            None => request,
        }
    }
}

impl Request {
    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.head.push_str(&format!("{name}: {value}\r\n"));
        self
    }

    /// A kernel receive buffer of a few kilobytes: not reading is felt at the other end soon.
    pub(crate) fn small_buffer(mut self) -> Self {
        self.receive_buffer = Some(4096);
        self
    }

    pub(crate) fn json(self, body: &Value) -> Self {
        self.header("content-type", "application/json").body(body.to_string())
    }

    pub(crate) fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// Sends it and reads the whole answer; panics when there is no connection.
    pub(crate) async fn send(self) -> Response {
        let what = self.head.lines().next().unwrap_or_default().to_owned();
        self.try_send().await.unwrap_or_else(|error| panic!("{what}: {error}"))
    }

    /// Like [`Request::send`], where the server may be away.
    pub(crate) async fn try_send(self) -> std::io::Result<Response> {
        let what = self.head.lines().next().unwrap_or_default().to_owned();
        within(&what, self.whole()).await
    }

    /// Like [`Request::try_send`], however long it takes.
    pub(crate) async fn whole(self) -> std::io::Result<Response> {
        let mut open = self.try_open().await?;
        let mut body = Vec::new();
        while let Some(part) = open.part().await? {
            body.extend(part);
        }
        Ok(Response { status: open.status, headers: open.headers, body })
    }

    /// Sends it and reads the head of the answer only.
    pub(crate) async fn open(self) -> Open {
        let what = self.head.lines().next().unwrap_or_default().to_owned();
        within(&what, self.try_open()).await.unwrap_or_else(|error| panic!("{what}: {error}"))
    }

    /// Like [`Request::open`], where the server may be away, however long it takes.
    pub(crate) async fn try_open(self) -> std::io::Result<Open> {
        let socket = TcpSocket::new_v4()?;
        if let Some(bytes) = self.receive_buffer {
            socket.set_recv_buffer_size(bytes)?;
        }
        let mut stream = socket.connect(self.address).await?;
        let length = match self.body.len() {
            0 => String::new(),
            length => format!("content-length: {length}\r\n"),
        };
        stream.write_all(format!("{}{length}\r\n", self.head).as_bytes()).await?;
        match stream.write_all(&self.body).await {
            // A body that is too large is refused before all of it was taken.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
            written => written?,
        }
        let mut stream = BufReader::new(stream);
        let status_line = line(&mut stream).await?;
        let status = status_line.split(' ').nth(1).and_then(|code| code.parse().ok());
        let status = status.ok_or_else(|| invalid(&format!("status line {status_line:?}")))?;
        let mut headers = Headers(Vec::new());
        loop {
            let line = line(&mut stream).await?;
            let Some((name, value)) = line.split_once(':') else { break };
            headers.0.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let body = match (headers.get("transfer-encoding"), headers.get("content-length")) {
            (Some(_), _) => Body::Chunked,
            (None, Some(length)) => Body::Length(length.parse().map_err(|_| invalid("content-length"))?),
            (None, None) if status == 204 || status == 304 => Body::Ended,
            (None, None) => Body::UntilClose,
        };
        Ok(Open { status, headers, stream, body, pending: Vec::new() })
    }
}

impl Open {
    /// The next line of the body without its end; `None` after the last.
    pub(crate) async fn line(&mut self) -> Option<String> {
        within("a line of a streamed answer", self.try_line()).await.unwrap()
    }

    /// Like [`Open::line`], where the connection may break, however long it takes.
    pub(crate) async fn try_line(&mut self) -> std::io::Result<Option<String>> {
        loop {
            if let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=end).collect();
                let line = String::from_utf8(line).unwrap();
                return Ok(Some(line.trim_end_matches(['\r', '\n']).to_owned()));
            }
            match self.part().await? {
                Some(part) => self.pending.extend(part),
                None if self.pending.is_empty() => return Ok(None),
                None => self.pending.push(b'\n'),
            }
        }
    }

    /// The next piece of the body; `None` at its end.
    pub(crate) async fn part(&mut self) -> std::io::Result<Option<Vec<u8>>> {
        match self.body {
            Body::Ended => Ok(None),
            Body::Length(left) => {
                let part = self.exactly(left).await?;
                self.body = Body::Ended;
                Ok(Some(part))
            }
            Body::Chunked => {
                let size = line(&mut self.stream).await?;
                let size = size.split(';').next().unwrap_or_default().trim();
                let size = usize::from_str_radix(size, 16).map_err(|_| invalid("chunk size"))?;
                let part = self.exactly(size).await?;
                line(&mut self.stream).await?;
                if size == 0 {
                    self.body = Body::Ended;
                    return Ok(None);
                }
                Ok(Some(part))
            }
            Body::UntilClose => {
                let mut part = vec![0; 16 * 1024];
                let length = self.stream.read(&mut part).await?;
                part.truncate(length);
                Ok((length > 0).then_some(part))
            }
        }
    }

    async fn exactly(&mut self, length: usize) -> std::io::Result<Vec<u8>> {
        let mut part = vec![0; length];
        self.stream.read_exact(&mut part).await?;
        Ok(part)
    }
}

impl Response {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        self.parse()
    }

    /// The body as a type, which may hold raw JSON.
    pub(crate) fn parse<T: DeserializeOwned>(&self) -> T {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| {
            panic!("{error} in {}: {}", self.status, String::from_utf8_lossy(&self.body))
        })
    }

    /// Why a sync has a table in full; `None` where it comes from the log, or is not there.
    pub(crate) fn full_reason(&self, table: &str) -> Option<String> {
        let answer = self.json();
        let about = &answer["tables"][table];
        (about["full"] == true).then(|| about["reason"].as_str().unwrap_or_default().to_owned())
    }

    /// The same answer; panics with the body when the status is another.
    pub(crate) fn expect_status(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", String::from_utf8_lossy(&self.body));
        self
    }
}

impl Headers {
    /// The first value of a header; `name` in lower case.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

async fn line(stream: &mut BufReader<TcpStream>) -> std::io::Result<String> {
    let mut line = String::new();
    if stream.read_line(&mut line).await? == 0 {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

fn invalid(what: &str) -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::InvalidData, format!("no HTTP answer: {what}"))
}
