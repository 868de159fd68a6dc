//! Moves bytes between a socket and its session: the only place that waits.
//!
//! A session that rests costs little: what it needs only now and then (being let in, reading the log, waiting
//! for a device that takes nothing, the goodbye) is a future of its own, made for the occasion.

use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::{Instant, Sleep};

use super::incoming::{Broken, Heard};
use super::socket::{Ended, Socket};
use super::{Arrival, Proof};
use crate::auth::{AuthError, Identity};
use crate::devices::{Channel, SessionPlace};
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

/// Lets a device in, as who it proves to be; `None` where it is sent away.
pub(super) async fn enter(socket: Socket, arrival: Arrival) -> Option<Box<Visit>> {
    let (device, relay) = (Arc::clone(&arrival.device), Arc::clone(&arrival.relay));
    let mut driver =
        Driver { socket, out: Vec::new(), heard: Instant::now(), address: arrival.address, device, relay };
    match driver.enter(arrival).await {
        Ok((session, place)) => Some(Box::new(Visit { beats: Beats::new(&session), driver, session, place })),
        Err(why) => {
            driver.end(why).await;
            None
        }
    }
}

/// A device that was let in, to its end.
pub(super) struct Visit {
    driver: Driver,
    session: Session,
    place: SessionPlace,
    beats: Beats,
}

struct Driver {
    socket: Socket,
    out: Vec<Frame>,
    /// When the device was last heard of.
    heard: Instant,
    /// Where the device is, for limits and the log.
    address: IpAddr,
    device: Arc<str>,
    relay: Arc<Relay>,
}

/// What a session does by the clock.
struct Beats {
    /// When the device is told next that the session lives,
    frame: Instant,
    /// and asked next whether it does.
    ping: Instant,
    /// When there is something to do at the earliest, the end of the token included.
    due: Instant,
    alarm: Pin<Box<Sleep>>,
    /// When it rings: when something is due, or before it. It is set anew only when it rings.
    rings: Instant,
    /// It will wake the session, and need not be looked at before.
    armed: bool,
}

impl Beats {
    fn new(session: &Session) -> Self {
        let next = Instant::now() + session.relay.limits.heartbeat;
        let alarm = Box::pin(tokio::time::sleep_until(next));
        let mut beats = Beats { frame: next, ping: next, due: next, alarm, rings: next, armed: false };
        beats.set(session);
        beats
    }

    fn set(&mut self, session: &Session) {
        let next = self.frame.min(self.ping);
        self.due = session.expires().map_or(next, |end| next.min(end));
        if self.due < self.rings {
            self.ring_at(self.due);
        }
        self.disarm();
    }

    fn ring_at(&mut self, at: Instant) {
        self.alarm.as_mut().reset(at);
        self.rings = at;
    }

    /// It may have rung while something else was waited for.
    fn disarm(&mut self) {
        self.armed = false;
    }

    fn is_due(&mut self, now: Instant) -> bool {
        // Whoever was woken by it may have found something else first.
        if now >= self.rings {
            self.disarm();
        }
        now >= self.due
    }

    fn poll_alarm(&mut self, context: &mut Context<'_>) -> Poll<()> {
        while self.alarm.as_mut().poll(context).is_ready() {
            if self.rings >= self.due {
                return Poll::Ready(());
            }
            self.ring_at(self.due);
        }
        self.armed = true;
        Poll::Pending
    }
}

/// For what a session at rest wakes up.
enum Woken {
    /// There may be something in the outbox.
    Delivery,
    /// There is more to look at than that.
    Word,
    Heard(Result<Heard, Ended>),
    Alarm,
}

enum Never {}

impl Visit {
    pub(super) async fn run(mut self: Box<Self>) {
        let why = match self.converse().await {
            Ok(never) => match never {},
            Err(why) => why,
        };
        self.leave(why).await;
    }

    /// The session is over, and its place free; then its device is told.
    fn leave(self: Box<Self>, why: Closing) -> BoxFuture<'static, ()> {
        let Visit { mut driver, session, place, .. } = *self;
        drop((session, place));
        if let Closing::Token(code) = why {
            // Nothing more is owed to a token that is over, but to say so.
            driver.out.clear();
            driver.fail(code, "the session's token is over, or its new one is not accepted");
        }
        Box::pin(async move { driver.end(why).await })
    }

    async fn converse(&mut self) -> Result<Never, Closing> {
        let mut word = true;
        loop {
            let now = Instant::now();
            if word {
                read_mail(&self.place, &mut self.driver.out)?;
                self.session.check_over(&mut self.driver.out)?;
            }
            // Before anything is shown: a token may be over at this moment.
            if self.beats.is_due(now) {
                self.beat().await?;
            }
            let step = match self.session.step_at_once(&mut self.driver.out) {
                Some(step) => step?,
                None => {
                    // Meanwhile the alarm may ring unheard.
                    self.beats.disarm();
                    Box::pin(self.session.step(&mut self.driver.out)).await?
                }
            };
            self.write(now).await?;
            if step == Step::Worked {
                // More may be ready; but a device that speaks meanwhile is heard.
                while self.driver.out.len() < MAX_UNWRITTEN
                    && let Some(heard) = poll_fn(|context| Poll::Ready(self.hear_now(context))).await
                {
                    self.take(heard).await?;
                }
                word = true;
                continue;
            }
            word = match self.rest().await {
                Woken::Delivery | Woken::Alarm => false,
                Woken::Word => true,
                Woken::Heard(heard) => {
                    self.take(heard).await?;
                    true
                }
            };
        }
    }

    /// Waits for whatever comes first. Cancel-safe: a bell that was not looked at stays rung, bytes stay in
    /// the socket.
    async fn rest(&mut self) -> Woken {
        let Visit { driver, session, beats, .. } = self;
        let bell = session.seat.bell();
        let mut first = true;
        poll_fn(|context| {
            let first = std::mem::take(&mut first);
            // The device first: it is heard also where the outbox is never empty for long.
            if first && let Poll::Ready(heard) = driver.socket.poll_hear(context) {
                return Poll::Ready(Woken::Heard(heard));
            }
            if let Poll::Ready(rung) = bell.poll_rung(context) {
                return Poll::Ready(if rung.word { Woken::Word } else { Woken::Delivery });
            }
            // Again only when something else has woken it.
            if !first && let Poll::Ready(heard) = driver.socket.poll_hear(context) {
                return Poll::Ready(Woken::Heard(heard));
            }
            if first && beats.armed {
                Poll::Pending
            } else {
                beats.poll_alarm(context).map(|()| Woken::Alarm)
            }
        })
        .await
    }

    fn hear_now(&mut self, context: &mut Context<'_>) -> Option<Result<Heard, Ended>> {
        match self.driver.socket.poll_hear(context) {
            Poll::Ready(heard) => Some(heard),
            Poll::Pending => None,
        }
    }

    /// Writes what is ready. A device that takes nothing for two heartbeats is gone; a token that
    /// expires or is revoked meanwhile ends the session there and then.
    async fn write(&mut self, now: Instant) -> Result<(), Closing> {
        let Driver { socket, out, relay, .. } = &mut self.driver;
        if out.is_empty() && socket.is_empty() {
            return Ok(());
        }
        if !out.is_empty() {
            self.beats.frame = now + relay.limits.heartbeat;
        }
        socket.group(out);
        match poll_fn(|context| Poll::Ready(socket.poll_send(context, out))).await {
            Poll::Ready(sent) => sent?,
            Poll::Pending => {
                self.beats.disarm();
                Box::pin(self.write_patiently()).await?
            }
        }
        // A device at rest keeps nothing.
        self.driver.out = Vec::new();
        Ok(())
    }

    async fn write_patiently(&mut self) -> Result<(), Closing> {
        let Driver { socket, out, relay, .. } = &mut self.driver;
        let patience = relay.limits.heartbeat * 2;
        tokio::select! {
            biased;
            sent = poll_fn(|context| socket.poll_send(context, out)) => sent,
            () = tokio::time::sleep(patience) => Err(Closing::Idle),
            why = self.session.over() => Err(why),
        }
    }

    /// Pings at every heartbeat, whatever else is written: a device that only listens is heard of by its
    /// pongs alone. The heartbeat's frame, with the cursor, comes when nothing else did.
    async fn beat(&mut self) -> Result<(), Closing> {
        self.session.check_over(&mut self.driver.out)?;
        let now = Instant::now();
        let heartbeat = self.driver.relay.limits.heartbeat;
        if now.duration_since(self.driver.heard) > heartbeat * 2 + heartbeat / 2 {
            return Err(Closing::Idle);
        }
        if now >= self.beats.frame {
            self.beats.frame = now + heartbeat;
            self.driver.out.push(Answer::Heartbeat { cursor: self.session.cursor() }.to_json().into());
        }
        if now >= self.beats.ping {
            self.beats.ping = now + heartbeat;
            self.driver.socket.ping();
        }
        self.beats.set(&self.session);
        // A device that takes nothing must not hold up the end of its session.
        self.write(now).await
    }

    async fn take(&mut self, heard: Result<Heard, Ended>) -> Result<(), Closing> {
        let text = self.driver.text(heard)?;
        self.driver.count(&self.session)?;
        if let Some(text) = text {
            Box::pin(self.session.request(&text, &mut self.driver.out)).await?;
            // There may be another token; and the alarm may have rung unheard.
            self.beats.set(&self.session);
        }
        Ok(())
    }
}

impl Driver {
    /// Lets the device in, as who it proves to be.
    async fn enter(&mut self, arrival: Arrival) -> Result<(Session, SessionPlace), Closing> {
        let Arrival { device, proof, wishes, labels, .. } = arrival;
        let identity = match proof {
            Ok(Proof::Token(token)) => self.admit(Some(&token)).await?,
            Ok(Proof::Ticket(identity)) => self.let_in(Ok(*identity))?,
            Ok(Proof::Later) if self.relay.gate.anonymous.is_some() => self.admit(None).await?,
            Ok(Proof::Later) => self.await_token().await?,
            Err(error) => return Err(self.let_out(error)),
        };
        let place = self.relay.enter(&identity, &device, labels, Channel::WebSocket);
        let Some(place) = place else { return Err(Closing::TooMany("too many sessions of this user")) };
        let Some(feed) = self.relay.current_feed() else {
            return Err(Closing::Restart { retry_after_ms: spread(1_000, 5_000) });
        };
        let relay = Arc::clone(&self.relay);
        let session = Session::new(relay, feed, identity, device, wishes.numbers_as_strings);
        place.announce_to(session.seat.bell());
        self.out.push(session.established());
        Ok((session, place))
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
    fn text(&mut self, heard: Result<Heard, Ended>) -> Result<Option<String>, Closing> {
        self.heard = Instant::now();
        match heard {
            Ok(Heard::Text(text)) => Ok(Some(text)),
            Ok(Heard::Ping(payload)) => {
                self.socket.pong(payload);
                Ok(None)
            }
            Ok(Heard::Pong) => Ok(None),
            Ok(Heard::Binary) => {
                self.fail("bad_message", "messages are JSON text, not binary");
                Err(Closing::BadMessage("binary message"))
            }
            Ok(Heard::Close(code)) => {
                self.socket.answer_close(code);
                Err(Closing::Gone)
            }
            Err(Ended::Broken(Broken::TooLarge)) => {
                let most = self.relay.limits.max_message_size;
                self.fail("message_too_large", format!("a message is at most {most} bytes"));
                Err(Closing::BadMessage("message too large"))
            }
            Err(Ended::Broken(Broken::Rules(_))) => Err(Closing::BadMessage("not a WebSocket message")),
            Err(Ended::Gone) => Err(Closing::Gone),
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
            let heard = tokio::select! {
                heard = poll_fn(|context| self.socket.poll_hear(context)) => heard,
                () = tokio::time::sleep_until(deadline) => {
                    return Err(self.unproven());
                }
                () = self.relay.shutdown.cancelled() => return Err(restart()),
            };
            let Some(text) = self.text(heard)? else { continue };
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

    /// What there is to say in the end, if the device takes it.
    async fn end(&mut self, why: Closing) {
        tracing::debug!(device = %self.device, address = %self.address, code = why.code(), "a session ended");
        metrics::counter!("rowcast_sessions_closed_total", "code" => why.code().to_string()).increment(1);
        let _ = tokio::time::timeout(CLOSE_PATIENCE, self.say_goodbye(why)).await;
    }

    /// What was told last (why topics ended, for one) still goes out, and the end in good order.
    async fn say_goodbye(&mut self, why: Closing) {
        if why == Closing::Gone {
            // Its own close frame may wait for an answer; nothing else does.
            self.out.clear();
        } else {
            self.socket.group(&mut self.out);
            if poll_fn(|context| self.socket.poll_send(context, &mut self.out)).await.is_err() {
                return;
            }
            self.socket.close(why);
        }
        let sent = poll_fn(|context| self.socket.poll_send(context, &mut self.out)).await;
        if sent.is_ok() && why != Closing::Gone {
            // The device's own close frame ends the connection.
            poll_fn(|context| self.socket.poll_until_closed(context)).await;
        }
    }
}
