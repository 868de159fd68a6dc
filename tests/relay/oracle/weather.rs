//! What may go wrong on the way, and what a client makes of it: it comes back, with the last cursor that it
//! could keep.

use std::fmt;
use std::time::Duration;

use serde_json::Value;

use crate::support::device::Incoming;
use crate::support::http::{Open, Response};
use crate::support::wait::PATIENCE;

/// How long a device may be kept from going on, whatever is broken meanwhile, on a busy machine.
const LONGEST: Duration = Duration::from_secs(60);
/// When a device in rough weather takes silence for a broken link.
const SILENCE: Duration = Duration::from_secs(5);
/// A client waits as long as it is told. The tests' time is short: at most this long.
const LONGEST_PAUSE: Duration = Duration::from_millis(300);
const PAUSE: Duration = Duration::from_millis(20);

/// Codes that tell a client to come back, with nothing broken.
const PUT_OFF: [&str; 6] =
    ["busy", "timeout", "not_caught_up", "unavailable", "full_sync_expired", "full_sync_required"];
/// Codes that tell a client to come back, when something is.
const BROKEN: [&str; 5] =
    ["not_ready", "keys_unavailable", "rate_limited", "too_many_sessions", "token_revoked"];

/// What a traveller has to bear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Weather {
    /// Nothing is broken on purpose: what breaks is a failure.
    Calm,
    /// Relay, database and links fail at any moment.
    Rough,
}

/// Why something has to be tried again.
#[derive(Debug)]
pub(super) struct Setback {
    what: String,
    /// It may happen where nothing is broken.
    documented: bool,
    pub(super) pause: Duration,
    /// The token counts no more.
    pub(super) token: bool,
    /// What the token does not grant.
    pub(super) lost: Option<String>,
    /// The same request may be answered later.
    pub(super) same_again: bool,
}

impl Weather {
    /// How long one answer may take.
    pub(super) fn silence(self) -> Duration {
        if self == Weather::Calm { PATIENCE } else { SILENCE }
    }

    /// How long a device may fail to go on.
    pub(super) fn patience(self) -> Duration {
        LONGEST
    }

    pub(super) fn bears(self, setback: &Setback) -> bool {
        self == Weather::Rough || setback.documented
    }

    /// Waits for an answer; silence is a setback.
    pub(super) async fn in_time<T, E: Into<Setback>>(
        self,
        what: &str,
        future: impl Future<Output = Result<T, E>>,
    ) -> Result<T, Setback> {
        match tokio::time::timeout(self.silence(), future).await {
            Ok(result) => result.map_err(Into::into),
            Err(_) => Err(Setback::broken(format!("nothing within {:?}: {what}", self.silence()))),
        }
    }
}

impl Setback {
    pub(super) fn broken(what: impl Into<String>) -> Self {
        let what = what.into();
        Setback { what, documented: false, pause: PAUSE, token: false, lost: None, same_again: true }
    }

    /// Something that clients meet where nothing is broken.
    pub(super) fn put_off(what: impl Into<String>) -> Self {
        Setback { documented: true, ..Setback::broken(what) }
    }

    fn after(self, millis: Option<u64>) -> Self {
        let pause = millis.map_or(PAUSE, Duration::from_millis).clamp(PAUSE, LONGEST_PAUSE);
        Setback { pause, ..self }
    }

    /// An `error` frame, or a problem. Panics at what no client can get over.
    pub(super) fn of_problem(problem: &Value) -> Self {
        let code = problem["code"].as_str().unwrap_or_default();
        let lost = problem["topic"].as_str().filter(|_| code == "not_granted").map(str::to_owned);
        let known = PUT_OFF.contains(&code) || BROKEN.contains(&code) || lost.is_some();
        assert!(known, "unexpected: {problem}");
        let token = code == "token_revoked";
        let same_again = !token && lost.is_none() && !code.starts_with("full_sync");
        let documented = PUT_OFF.contains(&code) || lost.is_some();
        let setback = Setback { token, lost, same_again, documented, ..Self::broken(problem.to_string()) };
        setback.after(problem["retry_after_ms"].as_u64())
    }

    /// An answer that is none.
    pub(super) fn of_answer(answer: &Response) -> Self {
        let problem: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        let after = answer.headers.get("retry-after").and_then(|after| after.parse::<u64>().ok());
        let comes_back = matches!(answer.status, 429 | 503);
        assert!(!comes_back || after.is_some(), "{} without Retry-After: {problem}", answer.status);
        assert!(problem.is_object(), "{} without a problem: {:?}", answer.status, answer.body);
        Self::of_problem(&problem).after(after.map(|seconds| seconds * 1_000))
    }

    /// The end of a socket. Panics at what no client can get over.
    pub(super) fn of_close(close: Option<(u16, String)>) -> Self {
        let what = format!("the socket was closed: {close:?}");
        let Some((code, reason)) = close else { return Setback::broken(what) };
        let reason: Value = serde_json::from_str(&reason).unwrap_or_default();
        assert!(matches!(code, 1012 | 4401 | 4408 | 4429), "unexpected: {what}");
        Setback { token: code == 4401, ..Setback::broken(what) }.after(reason["retry_after_ms"].as_u64())
    }
}

impl fmt::Display for Setback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl From<std::io::Error> for Setback {
    fn from(error: std::io::Error) -> Self {
        Setback::broken(format!("a broken connection: {error}"))
    }
}

impl From<tokio_tungstenite::tungstenite::Error> for Setback {
    fn from(error: tokio_tungstenite::tungstenite::Error) -> Self {
        Setback::broken(format!("no WebSocket: {error}"))
    }
}

/// The rest of an answer.
pub(super) async fn whole(mut open: Open) -> std::io::Result<Response> {
    let mut body = Vec::new();
    while let Some(part) = open.part().await? {
        body.extend(part);
    }
    Ok(Response { status: open.status, headers: open.headers, body })
}

/// The frame that came, or why the socket ended.
pub(super) fn frame_of(incoming: Incoming) -> Result<crate::support::frame::Frame, Setback> {
    match incoming {
        Incoming::Frame(frame) if frame.kind == "error" => Err(Setback::of_problem(&frame.json())),
        Incoming::Frame(frame) => Ok(frame),
        Incoming::Closed(close) => Err(Setback::of_close(close)),
    }
}
