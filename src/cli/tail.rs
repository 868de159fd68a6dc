//! `rowcast tail`: show what a device would be sent.
//!
//! A real device of a real user: connects over WebSocket with a token, subscribes, and after a
//! lost connection goes on where it stopped.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use rowcast::auth::ExtraClaims;
use rowcast::config::Config;
use rowcast::topic::Pattern;
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::handshake::client::Request;
use tokio_tungstenite::tungstenite::http::{HeaderValue, header::AUTHORIZATION};
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error as WsError, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async_with_config};

use super::failure::Failure;
use super::frame::{Action, Follow, printable};
use super::token::{SecretArgs, make, raw_text};
use super::{Settings, note, say};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_MOST: Duration = Duration::from_secs(10);
/// A made token is made anew for each connection, so it need not live long.
const TOKEN_TTL: Duration = Duration::from_secs(24 * 3600);
/// The longest wait that a relay can ask for.
const RETRY_AFTER_MOST: Duration = Duration::from_secs(60);

#[derive(clap::Args)]
pub(super) struct Args {
    /// What to watch: user:42:*, user:42:orders, global:exercises
    #[arg(required = true, value_name = "PATTERN", value_parser = pattern)]
    patterns: Vec<String>,
    /// The relay [env: ROWCAST_URL] [default: the configured listen address]
    #[arg(long, env = "ROWCAST_URL", hide_env = true)]
    url: Option<String>,
    /// Token to use [env: ROWCAST_TOKEN] [default: one is made with the relay's secret]
    #[arg(long, env = "ROWCAST_TOKEN", hide_env = true, hide_env_values = true)]
    token: Option<String>,
    /// User to make a token for [default: the one that the patterns name]
    #[arg(long, value_name = "USER", conflicts_with = "token")]
    sub: Option<String>,
    /// Name of this device
    #[arg(long, value_name = "ID", default_value = "rowcast-tail", value_parser = device_id)]
    device: String,
    /// Print every frame as it came
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    secret: SecretArgs,
}

pub(super) async fn run(args: Args, settings: Settings) -> Result<(), Failure> {
    let config = args.secret.load(settings)?;
    let tail = Tail {
        address: address(args.url.as_deref(), &config, &args.device)?,
        token: args.token,
        claims: Claims::of(args.sub, &args.patterns, &config),
        config,
    };
    let mut follow = Follow::new(args.patterns, args.json);
    tokio::select! {
        ended = tail.follow(&mut follow) => ended,
        _ = tokio::signal::ctrl_c() => Ok(()),
    }
}

struct Tail {
    address: String,
    token: Option<String>,
    claims: Result<Claims, Failure>,
    config: Config,
}

/// How one connection ended without ending the tail.
struct Lost {
    why: String,
    /// Whether the relay had begun to answer: then the next try need not wait long.
    worked: bool,
    retry_after: Duration,
}

impl Tail {
    /// One connection after the other.
    async fn follow(self, follow: &mut Follow) -> Result<(), Failure> {
        let claims = match (&self.token, self.claims) {
            (Some(_), _) => Claims::default(),
            (None, claims) => claims?,
        };
        let mut backoff = BACKOFF_FIRST;
        loop {
            let token = match &self.token {
                Some(token) => token.clone(),
                None => make(&self.config, &claims.sub, TOKEN_TTL, claims.extra.clone())?,
            };
            let lost = connect_and_read(&self.address, &token, follow).await?;
            if lost.worked {
                backoff = BACKOFF_FIRST;
            }
            // Full jitter: many clients of a relay that restarts come back spread out.
            let wait = backoff.mul_f64(rand::random_range(0.0..1.0)).max(lost.retry_after);
            note(&format!("{}; trying again in {} ms", lost.why, wait.as_millis()));
            sleep(wait).await;
            backoff = (backoff * 2).min(BACKOFF_MOST);
        }
    }
}

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

async fn connect_and_read(address: &str, token: &str, follow: &mut Follow) -> Result<Lost, Failure> {
    let unreachable = |why: String| Lost {
        why: format!("cannot reach {address}: {why}"),
        worked: false,
        retry_after: Duration::ZERO,
    };
    // Frames have no bound but the size of a row.
    let limits = WebSocketConfig::default().max_message_size(None).max_frame_size(None);
    let connecting = connect_async_with_config(request(address, token)?, Some(limits), true);
    match timeout(CONNECT_TIMEOUT, connecting).await {
        Ok(Ok((mut socket, _))) => read(&mut socket, follow).await,
        Ok(Err(WsError::Http(answer))) if answer.status().is_client_error() && answer.status() != 429 => {
            Err(refused(answer.status().as_u16(), answer.body().as_deref().unwrap_or_default()))
        }
        Ok(Err(error)) => Ok(unreachable(error.to_string())),
        Err(_) => Ok(unreachable("no answer in time".to_owned())),
    }
}

async fn read(socket: &mut Socket, follow: &mut Follow) -> Result<Lost, Failure> {
    let mut worked = false;
    let mut retry_after = Duration::ZERO;
    let why = match socket.send(Message::text(follow.subscribe())).await {
        Err(error) => format!("connection lost: {error}"),
        Ok(()) => loop {
            // Two heartbeats may be missed.
            let patience = Duration::from_millis(follow.heartbeat_ms.saturating_mul(3).min(86_400_000));
            match timeout(patience, socket.next()).await {
                Ok(Some(Ok(Message::Text(text)))) => {
                    worked = true;
                    if let Some(error) = act(socket, follow.on_frame(&text)).await? {
                        break format!("connection lost: {error}");
                    }
                }
                Ok(Some(Ok(Message::Close(frame)))) => {
                    retry_after = closed(frame.as_ref())?;
                    let code =
                        frame.map_or_else(|| "no code".to_owned(), |frame| format!("code {}", frame.code));
                    break format!("the relay closed the connection ({code})");
                }
                // The library answers pings.
                Ok(Some(Ok(_))) => {}
                Ok(Some(Err(error))) => break format!("connection lost: {error}"),
                Ok(None) => break "connection lost".to_owned(),
                Err(_) => break "nothing heard from the relay".to_owned(),
            }
        },
    };
    Ok(Lost { why, worked, retry_after })
}

async fn act(socket: &mut Socket, actions: Vec<Action>) -> Result<Option<WsError>, Failure> {
    for action in actions {
        match action {
            Action::Show(line) => say(&line)?,
            Action::Note(line) => note(&line),
            Action::Refused(why) => return Err(Failure::new(why).hint(GRANT_HINT)),
            Action::Send(text) => {
                if let Err(error) = socket.send(Message::text(text)).await {
                    return Ok(Some(error));
                }
            }
        }
    }
    Ok(None)
}

const GRANT_HINT: &str =
    "the token (`grants`, --sub, --token) or a row (rowcast.grant_by) must grant the pattern";
const TOKEN_HINT: &str = "sign with the relay's own secret (ROWCAST_JWT_SECRET), or pass a fresh --token";

/// How long to wait before the next connection; a failure where another would end the same way.
fn closed(frame: Option<&CloseFrame>) -> Result<Duration, Failure> {
    #[derive(Deserialize)]
    struct Reason {
        retry_after_ms: u64,
    }
    let Some(frame) = frame else { return Ok(Duration::ZERO) };
    let failure = || {
        let reason = printable(&frame.reason);
        Failure::new(format!("the relay closed the connection (code {}): {reason}", frame.code))
    };
    match u16::from(frame.code) {
        4400 => Err(failure().hint("client and relay may be of different versions")),
        4401 => Err(failure().hint(TOKEN_HINT)),
        4403 => Err(failure().hint(GRANT_HINT)),
        _ => {
            let reason = serde_json::from_str(&frame.reason);
            let wait = reason
                .map_or(Duration::ZERO, |Reason { retry_after_ms }| Duration::from_millis(retry_after_ms));
            Ok(wait.min(RETRY_AFTER_MOST))
        }
    }
}

fn refused(status: u16, body: &[u8]) -> Failure {
    #[derive(Deserialize)]
    struct Problem {
        detail: Option<String>,
        title: Option<String>,
    }
    let problem: Option<Problem> = serde_json::from_slice(body).ok();
    let detail = problem.and_then(|problem| problem.detail.or(problem.title));
    let detail = detail.map_or_else(|| format!("HTTP {status}"), |detail| printable(&detail));
    let hint = if status == 401 { TOKEN_HINT } else { "is --url that of a rowcast relay?" };
    Failure::new(format!("the relay refused the connection: {detail}")).hint(hint)
}

fn request(address: &str, token: &str) -> Result<Request, Failure> {
    let bad_url = |_| Failure::usage(format!("{address} is no URL")).hint("as in --url ws://127.0.0.1:4000");
    let mut request = address.into_client_request().map_err(bad_url)?;
    let value = HeaderValue::from_str(&format!("Bearer {token}"));
    let mut value =
        value.map_err(|_| Failure::usage("the token is not a JSON Web Token").hint(TOKEN_HINT))?;
    value.set_sensitive(true);
    request.headers_mut().insert(AUTHORIZATION, value);
    Ok(request)
}

fn address(url: Option<&str>, config: &Config, device: &str) -> Result<String, Failure> {
    let base = match url.map(|url| url.trim_end_matches('/')) {
        Some(url) => match url.split_once("://") {
            Some(("ws" | "http", host)) => format!("ws://{host}"),
            _ => {
                return Err(Failure::usage(format!("{url} cannot be used"))
                    .hint("this command speaks plain WebSocket: --url ws://127.0.0.1:4000"));
            }
        },
        None => {
            let mut listen = config.listen;
            if listen.ip().is_unspecified() {
                listen.set_ip(match listen {
                    std::net::SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
                    std::net::SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
                });
            }
            format!("ws://{listen}")
        }
    };
    Ok(format!("{base}/api/realtime/ws/{device}"))
}

/// What a token must say to be granted the patterns.
#[derive(Debug, Default, PartialEq, Eq)]
struct Needed {
    sub: Option<String>,
    others: Vec<(String, String)>,
}

#[derive(Default)]
struct Claims {
    sub: String,
    extra: ExtraClaims,
}

impl Claims {
    fn of(sub: Option<String>, patterns: &[String], config: &Config) -> Result<Self, Failure> {
        let needed = Needed::by(patterns, config)?;
        let mut values = std::collections::BTreeMap::<String, Vec<String>>::new();
        for (claim, value) in needed.others {
            values.entry(claim).or_default().push(value);
        }
        let extra = values.into_iter().map(|(claim, values)| {
            let json = serde_json::value::to_raw_value(&values).unwrap_or_else(|_| raw_text(""));
            (claim, json)
        });
        let sub = sub.or(needed.sub).unwrap_or_else(|| "rowcast-tail".to_owned());
        Ok(Claims { sub, extra: extra.collect() })
    }
}

impl Needed {
    fn by(patterns: &[String], config: &Config) -> Result<Self, Failure> {
        let mut needed = Needed::default();
        for pattern in patterns.iter().filter_map(|text| Pattern::parse(text).ok()) {
            let found = config.grants.iter().find_map(|grant| grant.claim_for(&pattern.audience));
            match found {
                Some(("sub", value)) if needed.sub.as_ref().is_some_and(|sub| *sub != value) => {
                    return Err(Failure::usage("the patterns are of different users")
                        .hint("watch one user at a time"));
                }
                Some(("sub", value)) => needed.sub = Some(value),
                Some((claim, value)) => needed.others.push((claim.to_owned(), value)),
                None => {}
            }
        }
        Ok(needed)
    }
}

fn pattern(text: &str) -> Result<String, String> {
    Pattern::parse(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

fn device_id(text: &str) -> Result<String, String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if (1..=64).contains(&text.len()) && text.bytes().all(allowed) {
        Ok(text.to_owned())
    } else {
        Err("expected 1 to 64 letters, digits, `_` or `-`".to_owned())
    }
}

#[cfg(test)]
mod tests;
