//! Messages that REST hands to devices: from one of a user's devices to the others, and from an admin to
//! everybody.
//!
//! They take the way of every broadcast, through the write-ahead log: so they have a position and an id,
//! stand in order with the data, and are replayed for a while to devices that come back. A message
//! between devices goes to one topic of the user's (`device_topic`), tagged with the device that sent it;
//! sessions of that device leave it out.

#[cfg(any(test, feature = "fuzzing"))]
pub(super) mod fuzzing;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::{HeaderMap, StatusCode};
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::sync::{Mutex, Semaphore};
use tokio::time::{Instant, timeout_at};
use tokio_postgres::Row;
use tokio_postgres::types::{ToSql, Type};

use super::devices::admin_only;
use super::http_auth::Authenticated;
use super::problem_response::ProblemResponse;
use super::relay::Relay;
use super::rest::{invalid, too_large};
use crate::auth::{GrantPattern, UserId};
use crate::devices::{Labels, is_device_id};
use crate::postgres::{Database, Target};
use crate::sync::Problem;
use crate::topic::{Pattern, Topic};

/// How long a message may take to be committed, the wait for those before it included.
const PATIENCE: Duration = Duration::from_secs(5);

/// Messages that wait for those before them, each with its body in memory.
const MAX_WAITING: usize = 256;

/// The longest name of an event and the longest correlation, in bytes, as `rowcast.broadcast` and
/// `rowcast.tag` take them.
const MAX_NAME_BYTES: usize = 256;

/// Topics of one broadcast.
const MAX_TOPICS: usize = 100;

/// Where a broadcast goes that names no topics: what every token is granted by default.
const EVERYBODY: &str = "global:broadcast";

/// Names the sending device where the body does not.
const DEVICE_HEADER: &str = "x-device-id";

/// A standby that does not answer must not hold a message up. The tag holds for the whole transaction.
const SEND: &str = "SELECT pg_catalog.set_config('synchronous_commit', 'local', true), rowcast.tag($1, $2, $3), \
     rowcast.broadcast($4, $5, $6::text::json)::text, \
     (EXTRACT(epoch FROM pg_catalog.clock_timestamp()) * 1000)::int8";

const BROADCAST: &str = "SELECT pg_catalog.set_config('synchronous_commit', 'local', true), \
     rowcast.broadcast(topic, $2, $3::text::json)::text, \
     (EXTRACT(epoch FROM pg_catalog.clock_timestamp()) * 1000)::int8 \
     FROM pg_catalog.unnest($1::text[]) AS t(topic)";

/// The way of messages into the database.
#[derive(Debug)]
pub struct Messages {
    /// One message at a time, in the order in which they came.
    database: Mutex<Database>,
    places: Semaphore,
    device_topic: GrantPattern,
}

impl Messages {
    pub fn new(target: Target, device_topic: GrantPattern) -> Self {
        Messages {
            database: Mutex::new(Database::new(target)),
            places: Semaphore::new(MAX_WAITING),
            device_topic,
        }
    }

    /// The topic through which a user's devices reach each other.
    pub fn topic_of(&self, user: &UserId) -> Option<Pattern> {
        self.device_topic.of_user(user)
    }

    /// Runs one statement in a transaction of its own.
    async fn commit(
        &self,
        statement: &str,
        parameters: &[(&(dyn ToSql + Sync), Type)],
    ) -> Result<Vec<Row>, ProblemResponse> {
        let deadline = Instant::now() + PATIENCE;
        let Ok(_place) = self.places.try_acquire() else { return Err(crowded()) };
        let Ok(mut database) = timeout_at(deadline, self.database.lock()).await else {
            return Err(crowded());
        };
        let client = match timeout_at(deadline, database.client()).await {
            Ok(Ok(client)) => client,
            Ok(Err(error)) => {
                tracing::warn!(%error, "a message could not be sent: the database cannot be reached");
                return Err(unavailable("the database cannot be reached; the message was not sent"));
            }
            Err(_) => return Err(unavailable("the database does not answer; the message was not sent")),
        };
        match timeout_at(deadline, client.query_typed(statement, parameters)).await {
            Ok(Ok(rows)) => Ok(rows),
            Ok(Err(error)) => Err(refused(&error)),
            Err(_) => {
                // Nobody waits for its answer any more.
                database.disconnect();
                Err(unavailable("the database did not answer in time; the message may have been sent"))
            }
        }
    }
}

/// Only the code is told: the server's text may hold the message.
fn refused(error: &tokio_postgres::Error) -> ProblemResponse {
    let code = error.code().map_or("", |code| code.code());
    match code.get(..2) {
        Some("22") => invalid("the database does not take the payload or the type for what they should be"),
        Some("54") => ProblemResponse::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "too_large",
            "a message's payload is at most 262144 bytes",
        ),
        _ => {
            tracing::warn!(sqlstate = code, "a message could not be sent: the database refused it");
            unavailable("the database did not take the message; the relay's log says why")
        }
    }
}

fn crowded() -> ProblemResponse {
    let detail = "too many messages are being sent; this one was not";
    ProblemResponse::unavailable("busy", detail, Duration::from_secs(2))
}

fn unavailable(detail: &'static str) -> ProblemResponse {
    ProblemResponse::unavailable("unavailable", detail, Duration::from_secs(2))
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Sent {
    success: bool,
    message_id: String,
    /// Milliseconds since 1970.
    timestamp: i64,
}

/// POST `/api/sync/send`
pub(super) async fn send(
    State(relay): State<Arc<Relay>>,
    Authenticated(identity): Authenticated,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Sent>, ProblemResponse> {
    let body = whole(&relay, body)?;
    let fields = Fields::of(&body)?;
    let (event, payload) = (fields.event()?, fields.payload()?);
    let correlation = fields.name("correlationId")?;
    let device = sender(&fields, &headers)?;
    let topic = relay.messages.topic_of(&identity.user).filter(|topic| identity.grants.covers(topic));
    let Some(topic) = topic else {
        let detail = "the token does not grant the topic through which its user's devices send messages; `device_topic` and `grants` in the relay's configuration do not fit";
        return Err(ProblemResponse::new(StatusCode::FORBIDDEN, "not_granted", detail));
    };
    if let Some(device) = &device {
        relay.devices.seen(&identity.user, device, Labels::default());
    }
    // A sender without a name gets one for this message alone, so that the correlation can travel.
    let device = device.unwrap_or_else(|| format!("rest-{:032x}", rand::random::<u128>()).into());
    let topic = topic.to_string();
    let parameters: [(&(dyn ToSql + Sync), Type); 6] = [
        (&&*device, Type::TEXT),
        (&correlation, Type::TEXT),
        (&identity.user.subject, Type::TEXT),
        (&topic, Type::TEXT),
        (&event, Type::TEXT),
        (&payload, Type::TEXT),
    ];
    let rows = relay.messages.commit(SEND, &parameters).await?;
    let row = rows.first().ok_or_else(|| ProblemResponse::internal(&"a message without a row"))?;
    Ok(Json(Sent { success: true, message_id: row.get(2), timestamp: row.get(3) }))
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Broadcasted {
    success: bool,
    /// In the order of the topics.
    message_ids: Vec<String>,
    timestamp: i64,
}

/// POST `/api/sync/broadcast`
pub(super) async fn broadcast(
    State(relay): State<Arc<Relay>>,
    Authenticated(identity): Authenticated,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Broadcasted>, ProblemResponse> {
    admin_only(&identity)?;
    let body = whole(&relay, body)?;
    let fields = Fields::of(&body)?;
    let (event, payload, topics) = (fields.event()?, fields.payload()?, fields.topics()?);
    let parameters: [(&(dyn ToSql + Sync), Type); 3] =
        [(&topics, Type::TEXT_ARRAY), (&event, Type::TEXT), (&payload, Type::TEXT)];
    let rows = relay.messages.commit(BROADCAST, &parameters).await?;
    let message_ids = rows.iter().map(|row| row.get(1)).collect();
    let timestamp = rows.last().map_or(0, |row| row.get(2));
    Ok(Json(Broadcasted { success: true, message_ids, timestamp }))
}

fn whole(relay: &Relay, body: Result<Bytes, BytesRejection>) -> Result<Bytes, ProblemResponse> {
    body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => too_large(relay.limits.max_message_size),
        _ => invalid("the request's body could not be read"),
    })
}

/// The device that sends: as the body says, else as the header does.
fn sender(fields: &Fields<'_>, headers: &HeaderMap) -> Result<Option<Arc<str>>, ProblemResponse> {
    let device = match fields.text("deviceId")? {
        Some(device) => Some(device),
        None => match headers.get(DEVICE_HEADER).map(|value| value.to_str()) {
            None => None,
            Some(Ok(text)) => Some(text.to_owned()),
            Some(Err(_)) => Some(String::new()),
        },
    };
    match device {
        Some(device) if !is_device_id(&device) => {
            let detail =
                "`deviceId` (or the header X-Device-Id) is 1 to 64 of the characters A-Z a-z 0-9 _ -";
            Err(ProblemResponse::new(StatusCode::BAD_REQUEST, "invalid_device_id", detail))
        }
        device => Ok(device.map(Arc::from)),
    }
}

/// A JSON object's members, with their texts kept; null is none, but as a payload.
struct Fields<'a>(BTreeMap<String, &'a RawValue>);

impl<'a> Fields<'a> {
    fn of(body: &'a [u8]) -> Result<Self, ProblemResponse> {
        let fields = serde_json::from_slice(body).map(Fields);
        fields.map_err(|_| invalid("the body is not a JSON object; send `type` and `payload`"))
    }

    fn text(&self, field: &'static str) -> Result<Option<String>, ProblemResponse> {
        match self.0.get(field).map(|raw| serde_json::from_str::<Option<String>>(raw.get())) {
            None => Ok(None),
            Some(Ok(text)) => Ok(text),
            Some(Err(_)) => Err(mistake(field, "must be a string")),
        }
    }

    /// A short plain text.
    fn name(&self, field: &'static str) -> Result<Option<String>, ProblemResponse> {
        match self.text(field)? {
            Some(text)
                if !(1..=MAX_NAME_BYTES).contains(&text.len()) || text.chars().any(char::is_control) =>
            {
                Err(mistake(field, "must be text of 1 to 256 bytes without control characters"))
            }
            text => Ok(text),
        }
    }

    fn event(&self) -> Result<String, ProblemResponse> {
        self.name("type")?.ok_or_else(|| mistake("type", "is required: the event's name, as in note.opened"))
    }

    /// As it was sent.
    fn payload(&self) -> Result<&'a str, ProblemResponse> {
        let payload = self.0.get("payload").map(|raw| raw.get());
        payload.ok_or_else(|| mistake("payload", "is required: any JSON value"))
    }

    fn topics(&self) -> Result<Vec<String>, ProblemResponse> {
        let topics = self.0.get("topics").map(|raw| serde_json::from_str::<Option<Vec<String>>>(raw.get()));
        let topics = match topics {
            None | Some(Ok(None)) => return Ok(vec![EVERYBODY.to_owned()]),
            Some(Ok(Some(topics))) if (1..=MAX_TOPICS).contains(&topics.len()) => topics,
            Some(_) => return Err(mistake("topics", "must be an array of 1 to 100 topics")),
        };
        match topics.iter().find_map(|topic| Topic::parse(topic).err()) {
            None => Ok(topics),
            Some(error) => {
                let detail = format!("a topic to broadcast to cannot be used: {error}");
                Err(ProblemResponse::new(StatusCode::BAD_REQUEST, "invalid_topic", detail))
            }
        }
    }
}

fn mistake(field: &'static str, expected: &'static str) -> ProblemResponse {
    Problem::new(400, "invalid_request", format!("`{field}` {expected}")).with("field", field).into()
}
