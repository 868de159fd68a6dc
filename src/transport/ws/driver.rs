//! Moves bytes between a socket and its session: the only place that waits.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::{Message, WebSocket};
use futures_util::stream::SplitStream;
use futures_util::{FutureExt, StreamExt};
use tokio::time::Instant;

use super::outgoing::Outgoing;
use super::{Proof, Wishes};
use crate::auth::{AuthError, Identity};
use crate::devices::{Channel, Labels, SessionPlace};
use crate::transport::Relay;
use crate::transport::gate::Refusal;
use crate::transport::joining::read_mail;
use crate::transport::protocol::{Answer, Closing, Request, spread, spread_after};
use crate::transport::rate::Bucket;
use crate::transport::session::{Frame, Session, Step, restart};

/// A device that has not said who it is may send this much.
const MAX_UNAUTHENTICATED_BYTES: usize = 8 * 1024;
/// Frames that wait for being written while a device speaks: what it is owed must not grow with what it
/// sends. One message can add some hundreds.
const MAX_UNWRITTEN: usize = 64;
/// How long the goodbye may take.
const CLOSE_PATIENCE: Duration = Duration::from_secs(1);

/// One socket, from its upgrade to its end.
pub(super) async fn run(
    relay: Arc<Relay>,
    socket: WebSocket,
    device: Arc<str>,
    address: IpAddr,
    proof: Result<Proof, AuthError>,
    wishes: Wishes,
    labels: Labels,
) {
    let (sink, incoming) = socket.split();
    let mut driver = Driver {
        outgoing: Outgoing::new(sink, wishes.batch),
        incoming,
        out: Vec::new(),
        heard: Instant::now(),
        address,
        relay: Arc::clone(&relay),
    };
    let why = match driver.serve(&device, proof, wishes, labels).await {
        Ok(never) => match never {},
        Err(why) => why,
    };
    tracing::debug!(%device, %address, code = why.code(), "a session ended");
    metrics::counter!("rowcast_sessions_closed_total", "code" => why.code().to_string()).increment(1);
    if why != Closing::Gone {
        let goodbye = async {
            // What was told last (why topics ended, for one) still goes out.
            let _ = driver.outgoing.send(&mut driver.out).await;
            driver.outgoing.close(why).await;
            // The device's own close frame ends the connection in good order.
            while let Some(Ok(message)) = driver.incoming.next().await {
                if matches!(message, Message::Close(_)) {
                    break;
                }
            }
        };
        let _ = tokio::time::timeout(CLOSE_PATIENCE, goodbye).await;
    }
}

struct Driver {
    outgoing: Outgoing,
    incoming: SplitStream<WebSocket>,
    out: Vec<Frame>,
    /// When the device was last heard of.
    heard: Instant,
    /// Where the device is, for limits and the log.
    address: IpAddr,
    relay: Arc<Relay>,
}

/// When the device is told next that the session lives, and asked next whether it does.
struct Beats {
    frame: Instant,
    ping: Instant,
}

enum Never {}

impl Driver {
    async fn serve(
        &mut self,
        device: &Arc<str>,
        proof: Result<Proof, AuthError>,
        wishes: Wishes,
        labels: Labels,
    ) -> Result<Never, Closing> {
        let identity = match proof {
            Ok(Proof::Token(token)) => self.admit(Some(&token)).await?,
            Ok(Proof::Ticket(identity)) => self.let_in(Ok(*identity))?,
            Ok(Proof::Later) if self.relay.gate.anonymous.is_some() => self.admit(None).await?,
            Ok(Proof::Later) => self.await_token().await?,
            Err(error) => return Err(self.let_out(error)),
        };
        let place = self.relay.enter(&identity, device, labels, Channel::WebSocket);
        let Some(place) = place else { return Err(Closing::TooMany("too many sessions of this user")) };
        let Some(feed) = self.relay.current_feed() else {
            return Err(Closing::Restart { retry_after_ms: spread(1_000, 5_000) });
        };
        let relay = Arc::clone(&self.relay);
        let mut session = Session::new(relay, feed, identity, Arc::clone(device), wishes.numbers_as_strings);
        self.out.push(session.established());
        let why = match self.converse(&mut session, &place).await {
            Ok(never) => match never {},
            Err(why) => why,
        };
        if let Closing::Token(code) = why {
            // Nothing more is owed to a token that is over, but to say so.
            self.out.clear();
            self.fail(code, "the session's token is over, or its new one is not accepted");
        }
        Err(why)
    }

    async fn converse(&mut self, session: &mut Session, place: &SessionPlace) -> Result<Never, Closing> {
        let heartbeat = self.relay.limits.heartbeat;
        let mut beats = Beats { frame: Instant::now() + heartbeat, ping: Instant::now() + heartbeat };
        loop {
            read_mail(place, &mut self.out)?;
            let step = session.step(&mut self.out).await?;
            self.write(session, &mut beats).await?;
            if step == Step::Worked {
                // More may be ready; but a device that speaks meanwhile is heard.
                while self.out.len() < MAX_UNWRITTEN
                    && let Some(message) = self.incoming.next().now_or_never()
                {
                    self.take_message(session, message).await?;
                }
                session.check_over(&mut self.out)?;
                self.beat(session, &mut beats).await?;
                continue;
            }
            // All branches are cancel-safe: the outbox's bell stays rung, messages stay in the socket.
            tokio::select! {
                () = session.seat.ready() => {}
                () = place.mail_came() => {}
                () = session.rights_changed() => {}
                () = session.snapshot_ready() => {}
                message = self.incoming.next() => self.take_message(session, message).await?,
                () = tokio::time::sleep_until(beats.frame.min(beats.ping)) => self.beat(session, &mut beats).await?,
                _ = session.over() => {}
            }
            session.check_over(&mut self.out)?;
        }
    }

    /// Writes what is ready. A device that takes nothing for two heartbeats is gone; a token that
    /// expires or is revoked meanwhile ends the session there and then.
    async fn write(&mut self, session: &mut Session, beats: &mut Beats) -> Result<(), Closing> {
        if self.out.is_empty() {
            return Ok(());
        }
        let patience = self.relay.limits.heartbeat * 2;
        beats.frame = Instant::now() + self.relay.limits.heartbeat;
        tokio::select! {
            biased;
            sent = self.outgoing.send(&mut self.out) => sent,
            () = tokio::time::sleep(patience) => Err(Closing::Idle),
            why = session.over() => Err(why),
        }
    }

    /// Pings at every heartbeat, whatever else is written: a device that only listens is heard of by its
    /// pongs alone. The heartbeat's frame, with the cursor, comes when nothing else did.
    async fn beat(&mut self, session: &Session, beats: &mut Beats) -> Result<(), Closing> {
        let now = Instant::now();
        let heartbeat = self.relay.limits.heartbeat;
        if now.duration_since(self.heard) > heartbeat * 2 + heartbeat / 2 {
            return Err(Closing::Idle);
        }
        if now >= beats.frame {
            beats.frame = now + heartbeat;
            self.out.push(Answer::Heartbeat { cursor: session.cursor() }.to_json().into());
        }
        if now < beats.ping {
            return Ok(());
        }
        beats.ping = now + heartbeat;
        // A device that takes nothing must not hold up the end of its session.
        tokio::time::timeout(heartbeat * 2, self.outgoing.ping()).await.unwrap_or(Err(Closing::Idle))
    }

    async fn take_message(
        &mut self,
        session: &mut Session,
        message: Option<Result<Message, axum::Error>>,
    ) -> Result<(), Closing> {
        let text = self.text(message)?;
        self.count(session)?;
        match text {
            Some(text) => session.request(&text, &mut self.out).await,
            None => Ok(()),
        }
    }

    /// Every frame takes from its user's bucket, also one that is ignored. Who goes beyond it is closed: to
    /// answer each would cost as much as what was asked.
    fn count(&mut self, session: &Session) -> Result<(), Closing> {
        match self.relay.gate.rates.spend(Bucket::Messages, session.user()) {
            Some(standing) if standing.retry_after().is_some() => {
                Err(self.refuse(Refusal::TooOften(standing)))
            }
            _ => Ok(()),
        }
    }

    /// The text of a message; `None` for those that only show that the device lives.
    fn text(
        &mut self,
        message: Option<Result<Message, axum::Error>>,
    ) -> Result<Option<axum::extract::ws::Utf8Bytes>, Closing> {
        self.heard = Instant::now();
        match message {
            Some(Ok(Message::Text(text))) => Ok(Some(text)),
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => Ok(None),
            Some(Ok(Message::Binary(_))) => {
                self.fail("bad_message", "messages are JSON text, not binary");
                Err(Closing::BadMessage("binary message"))
            }
            Some(Ok(Message::Close(_))) | None => Err(Closing::Gone),
            Some(Err(error)) => {
                use tokio_tungstenite::tungstenite::Error;
                match error.into_inner().downcast_ref::<Error>() {
                    Some(Error::Capacity(_)) => {
                        let most = self.relay.limits.max_message_size;
                        self.fail("message_too_large", format!("a message is at most {most} bytes"));
                        Err(Closing::BadMessage("message too large"))
                    }
                    Some(Error::Utf8(_) | Error::Protocol(_)) => {
                        Err(Closing::BadMessage("not a WebSocket message"))
                    }
                    _ => Err(Closing::Gone),
                }
            }
        }
    }

    fn fail(&mut self, code: &'static str, message: impl Into<String>) {
        let answer = Answer::Error {
            r#ref: None,
            code,
            message: message.into(),
            retryable: false,
            retry_after_ms: None,
            topic: None,
        };
        self.out.push(answer.to_json().into());
    }

    /// Lets in whom a token speaks for; a socket takes from the bucket of polls.
    async fn admit(&mut self, token: Option<&str>) -> Result<Identity, Closing> {
        let who = self.relay.identify(token).await;
        self.let_in(who)
    }

    fn let_in(&mut self, who: Result<Identity, AuthError>) -> Result<Identity, Closing> {
        match self.relay.gate.admit(who, Bucket::Polls, self.address) {
            Ok((identity, _)) => Ok(identity),
            Err(refusal) => Err(self.refuse(refusal)),
        }
    }

    fn let_out(&mut self, error: AuthError) -> Closing {
        let refusal = self.relay.gate.refuse(error, self.address);
        self.refuse(refusal)
    }

    /// A browser cannot see the status of a refused upgrade, so both are told on the socket.
    fn refuse(&mut self, refusal: Refusal) -> Closing {
        match refusal {
            Refusal::Token(error) => {
                let Some(retry_after) = error.retry_after() else {
                    self.fail(error.code(), error.to_string());
                    return Closing::Token(error.code());
                };
                // Nothing is known to be wrong with the token: the device comes back with the same one.
                let retry_after_ms = spread_after(retry_after);
                let answer = Answer::not_now(None, error.code(), error.to_string(), retry_after_ms);
                self.out.push(answer.to_json().into());
                Closing::Restart { retry_after_ms }
            }
            Refusal::TooOften(standing) => {
                let wait = standing.retry_after().unwrap_or_default().as_millis();
                let wait = u64::try_from(wait).unwrap_or(u64::MAX);
                let answer = Answer::not_now(None, "rate_limited", standing.detail().to_owned(), wait);
                self.out.push(answer.to_json().into());
                Closing::TooMany("rate_limited")
            }
        }
    }

    /// A socket without a token has a little time to send one, and nothing else.
    async fn await_token(&mut self) -> Result<Identity, Closing> {
        let deadline = Instant::now() + self.relay.limits.auth_timeout;
        let mut received = 0;
        loop {
            let message = tokio::select! {
                message = self.incoming.next() => message,
                () = tokio::time::sleep_until(deadline) => {
                    return Err(self.unproven());
                }
                () = self.relay.shutdown.cancelled() => return Err(restart()),
            };
            let Some(text) = self.text(message)? else { continue };
            received += text.len();
            if received > MAX_UNAUTHENTICATED_BYTES {
                return Err(self.unproven());
            }
            match serde_json::from_str(&text) {
                Ok(Request::Auth { token }) => return self.admit(Some(&token)).await,
                _ => return Err(self.unproven()),
            }
        }
    }

    /// The time for a token is over, or something else came first.
    fn unproven(&mut self) -> Closing {
        match self.relay.gate.refuse(AuthError::Missing, self.address) {
            Refusal::Token(error) => {
                self.fail(error.code(), "send {\"type\":\"auth\",\"token\":…} first");
                Closing::Token(error.code())
            }
            often @ Refusal::TooOften(_) => self.refuse(often),
        }
    }
}
