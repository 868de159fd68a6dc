//! How a request becomes a session that names its topics once: a stream's or a poll's.

use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;

use super::problem_response::ProblemResponse;
use super::protocol::{Answer, Closing};
use super::relay::Relay;
use super::session::{Frame, Refusal, Session};
use crate::auth::Identity;
use crate::devices::{Channel, Labels, SessionPlace};
use crate::hub::timestamp;
use crate::sync::problem::Problem;

/// When a device should come back that came before the first log was open.
const NO_LOG_RETRY: Duration = Duration::from_secs(2);
/// When a user's next session may find a place.
const TOO_MANY_RETRY: Duration = Duration::from_secs(5);

/// A place among the user's sessions, and a session in it.
pub(super) fn enter(
    relay: &Arc<Relay>,
    identity: Identity,
    device: Arc<str>,
    labels: Labels,
    numbers_as_strings: bool,
) -> Result<(SessionPlace, Session), ProblemResponse> {
    let Some(feed) = relay.current_feed() else {
        let detail = "the relay has no log yet; /ready says why";
        return Err(ProblemResponse::unavailable("not_ready", detail, NO_LOG_RETRY));
    };
    let Some(place) = relay.enter(&identity, &device, labels, Channel::Http) else {
        let most = relay.limits.max_sessions_per_user;
        let detail = format!("a user has at most {most} sessions at a time");
        return Err(ProblemResponse::too_many("too_many_sessions", detail, TOO_MANY_RETRY));
    };
    Ok((place, Session::new(Arc::clone(relay), feed, identity, device, numbers_as_strings)))
}

/// What a session is told from elsewhere.
pub(super) fn read_mail(place: &SessionPlace, out: &mut Vec<Frame>) -> Result<(), Closing> {
    let mail = place.take_mail();
    if mail.removed {
        return Err(Closing::Removed);
    }
    if let Some((device_id, at)) = &mail.synced {
        let answer = Answer::OtherDeviceSynced { device_id, timestamp: timestamp(*at) };
        out.push(answer.to_json().into());
    }
    Ok(())
}

impl From<Refusal> for ProblemResponse {
    fn from(refusal: Refusal) -> Self {
        let status = match refusal.code {
            "not_granted" => StatusCode::FORBIDDEN,
            _ => StatusCode::BAD_REQUEST,
        };
        let problem = Problem::new(status.as_u16(), refusal.code, refusal.message);
        match refusal.topic {
            Some(topic) => problem.with("topic", topic).into(),
            None => problem.into(),
        }
    }
}

/// A session that ended before there was an answer.
impl From<Closing> for ProblemResponse {
    fn from(why: Closing) -> Self {
        match why {
            Closing::Token(code) => {
                ProblemResponse::new(StatusCode::UNAUTHORIZED, code, "the token counts no more; renew it")
            }
            Closing::Restart { retry_after_ms } => {
                let detail = "the relay restarts, or its log begins anew; come back";
                ProblemResponse::unavailable("unavailable", detail, Duration::from_millis(retry_after_ms))
            }
            _ => ProblemResponse::internal(&format_args!("a session closed with {}", why.code())),
        }
    }
}
