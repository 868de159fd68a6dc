//! Drives the session of a stream: the only place that waits.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::encode::Events;
use crate::devices::SessionPlace;
use crate::transport::joining::read_mail;
use crate::transport::protocol::{Answer, Closing, spread};
use crate::transport::session::{Frame, Session, Step, Vouched};

/// How long the goodbye may take.
const CLOSE_PATIENCE: Duration = Duration::from_secs(1);

/// After how many milliseconds a reader comes back whose connection broke: spread, so that the devices
/// of a relay that died do not come at once.
const RETRY_MS: (u64, u64) = (1_000, 5_000);

pub(super) struct Stream {
    session: Session,
    /// Up to where the reader can resume.
    vouched: Vouched,
    out: Vec<Frame>,
    events: Events,
    pipe: mpsc::Sender<Bytes>,
    /// When the reader is told next that the session lives.
    progress: Instant,
    heartbeat: Duration,
    place: SessionPlace,
}

enum Never {}

impl Stream {
    pub(super) fn new(
        session: Session,
        place: SessionPlace,
        vouched: Vouched,
        out: Vec<Frame>,
        pipe: mpsc::Sender<Bytes>,
    ) -> Self {
        let heartbeat = session.relay.limits.heartbeat;
        let mut events = Events::default();
        events.retry(Duration::from_millis(spread(RETRY_MS.0, RETRY_MS.1)));
        let progress = Instant::now() + heartbeat;
        Stream { session, vouched, out, events, pipe, progress, heartbeat, place }
    }

    pub(super) async fn run(mut self) {
        let why = match self.serve().await {
            Ok(never) => match never {},
            Err(why) => why,
        };
        let code = why.code();
        tracing::debug!(device = %self.session.device(), code, "a stream ended");
        metrics::counter!("rowcast_sessions_closed_total", "code" => code.to_string()).increment(1);
        // Who takes nothing hears no goodbye either.
        if !matches!(why, Closing::Gone | Closing::Idle) {
            let _ = tokio::time::timeout(CLOSE_PATIENCE, self.goodbye(why)).await;
        }
    }

    async fn serve(&mut self) -> Result<Never, Closing> {
        self.place.announce_to(self.session.seat.bell());
        self.write().await?;
        loop {
            read_mail(&self.place, &mut self.out)?;
            let step = self.session.step(&mut self.out).await?;
            self.write().await?;
            self.session.check_over(&mut self.out)?;
            if Instant::now() >= self.progress {
                self.tell_progress();
                self.write().await?;
            }
            if step == Step::Worked {
                continue;
            }
            // All branches are cancel-safe: a bell that was not looked at stays rung.
            tokio::select! {
                _ = self.session.seat.bell().rung() => {}
                () = tokio::time::sleep_until(self.progress) => {}
                _ = self.session.over() => {}
                () = self.pipe.closed() => return Err(Closing::Gone),
            }
        }
    }

    fn tell_progress(&mut self) {
        if let Some(cursor) = self.session.cursor() {
            self.vouched.advance(&self.session, cursor.position);
        }
        self.out.push(Answer::Progress { cursor: self.vouched.cursor() }.to_json().into());
    }

    /// Hands on what is ready. A reader that takes nothing for two heartbeats is gone; what ends the
    /// session meanwhile ends it there and then.
    async fn write(&mut self) -> Result<(), Closing> {
        if self.out.is_empty() {
            return Ok(());
        }
        self.progress = Instant::now() + self.heartbeat;
        self.encode();
        for chunk in self.events.take() {
            tokio::select! {
                biased;
                sent = self.pipe.send(chunk) => sent.map_err(|_| Closing::Gone)?,
                () = tokio::time::sleep(self.heartbeat * 2) => return Err(Closing::Idle),
                why = self.session.over() => return Err(why),
            }
        }
        Ok(())
    }

    fn encode(&mut self) {
        for frame in self.out.drain(..) {
            if let Some(at) = frame.at {
                self.vouched.advance(&self.session, at.position);
            }
            self.events.push(&frame, self.vouched.cursor());
        }
    }

    /// What was told last (why topics ended, for one), and why the stream ends.
    async fn goodbye(&mut self, why: Closing) {
        let reason = match why {
            Closing::Restart { .. } => "the relay restarts, or its log begins anew".to_owned(),
            why => why.reason(),
        };
        let mut retry_after_ms = None;
        match why {
            Closing::Token(code) => {
                // Nothing more is owed to a token that is over, but to say so.
                self.out.clear();
                let message = "the stream's token is over".to_owned();
                let (r#ref, topic) = (None, None);
                let error = Answer::Error { r#ref, code, message, retryable: false, retry_after_ms, topic };
                self.out.push(error.to_json().into());
            }
            Closing::Restart { retry_after_ms: after } => {
                self.events.retry(Duration::from_millis(after));
                retry_after_ms = Some(after);
            }
            _ => {}
        }
        self.out.push(Answer::Close { code: why.code(), reason: &reason, retry_after_ms }.to_json().into());
        self.encode();
        for chunk in self.events.take() {
            if self.pipe.send(chunk).await.is_err() {
                return;
            }
        }
    }
}
