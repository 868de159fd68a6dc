//! How an error is told over HTTP: `application/problem+json` (RFC 9457) with the protocol's codes.
//!
//! Invariant: a text that reaches the client was written for the client. What is not foreseen is a
//! bare 500 with its cause in the log alone.

use std::fmt;
use std::time::Duration;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::gate::Refusal;
use crate::auth::AuthError;
use crate::sync::SyncError;
use crate::sync::problem::{CONTENT_TYPE, Problem};

/// An error as the client is told it.
#[derive(Debug)]
pub(crate) struct ProblemResponse {
    problem: Problem,
    /// `WWW-Authenticate`.
    challenge: Option<HeaderValue>,
}

impl ProblemResponse {
    pub(crate) fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Problem::new(status.as_u16(), code, detail).into()
    }

    /// Nothing was wrong with the request; it may succeed after so long.
    pub(crate) fn unavailable(code: &'static str, detail: impl Into<String>, retry_after: Duration) -> Self {
        Problem::new(503, code, detail).retry_after(whole_seconds(retry_after)).into()
    }

    /// A page of this origin may not open sockets.
    pub(super) fn foreign_origin() -> Self {
        let detail = "pages of this origin may not connect; name it in the relay's setting allowed_origins";
        ProblemResponse::new(StatusCode::FORBIDDEN, "origin_not_allowed", detail)
    }

    /// A relay without authentication was asked by a name.
    pub(super) fn foreign_host() -> Self {
        let detail =
            "without authentication the relay answers to localhost and addresses alone, not to names";
        ProblemResponse::new(StatusCode::MISDIRECTED_REQUEST, "host_not_allowed", detail)
    }

    /// One user asks for more than is given to one; there may be room after so long.
    pub(crate) fn too_many(code: &'static str, detail: impl Into<String>, retry_after: Duration) -> Self {
        let seconds = u32::try_from(retry_after.as_secs()).unwrap_or(u32::MAX);
        Problem::new(429, code, detail).retry_after(seconds).into()
    }

    /// What nobody foresaw. `cause` goes to the log and nowhere else.
    pub(crate) fn internal(cause: &dyn fmt::Display) -> Self {
        tracing::error!(%cause, "a request failed");
        ProblemResponse::bare(StatusCode::INTERNAL_SERVER_ERROR)
    }

    /// A status that says all there is to say.
    pub(super) fn bare(status: StatusCode) -> Self {
        let (code, detail) = match status {
            StatusCode::NOT_FOUND => ("not_found", "there is nothing at this path"),
            StatusCode::METHOD_NOT_ALLOWED => {
                ("method_not_allowed", "this path takes other methods; `Allow` names them")
            }
            StatusCode::PAYLOAD_TOO_LARGE => {
                ("too_large", "the request's body is larger than is accepted here")
            }
            status if status.is_client_error() => ("invalid_request", "the request cannot be understood"),
            _ => ("internal", "the relay failed to answer; its log says why"),
        };
        ProblemResponse::new(status, code, detail)
    }
}

impl From<Problem> for ProblemResponse {
    fn from(problem: Problem) -> Self {
        ProblemResponse { problem, challenge: None }
    }
}

impl From<SyncError> for ProblemResponse {
    fn from(error: SyncError) -> Self {
        if let SyncError::Token(error) = error {
            return error.into();
        }
        if error.is_internal() {
            tracing::error!(%error, "a sync failed");
        }
        error.problem().into()
    }
}

impl From<AuthError> for ProblemResponse {
    fn from(error: AuthError) -> Self {
        let detail = error.to_string();
        if let Some(retry_after) = error.retry_after() {
            return ProblemResponse::unavailable(error.code(), detail, retry_after);
        }
        // RFC 6750, section 3.1: no error where the request carried no token at all. None of the texts
        // holds a quote.
        let challenge = match error {
            AuthError::Missing => Ok(HeaderValue::from_static("Bearer")),
            _ => HeaderValue::from_str(&format!(
                "Bearer error=\"invalid_token\", error_description=\"{detail}\""
            )),
        };
        let challenge = challenge.unwrap_or(HeaderValue::from_static("Bearer"));
        ProblemResponse { problem: Problem::new(401, error.code(), detail), challenge: Some(challenge) }
    }
}

impl From<Refusal> for ProblemResponse {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Token(error) => error.into(),
            Refusal::TooOften(standing) => {
                let problem = Problem::new(429, "rate_limited", standing.detail());
                problem.retry_after(whole_seconds(standing.retry_after().unwrap_or_default())).into()
            }
        }
    }
}

/// Never earlier than meant.
fn whole_seconds(duration: Duration) -> u32 {
    let seconds = duration.as_secs() + u64::from(duration.subsec_nanos() > 0);
    u32::try_from(seconds).unwrap_or(u32::MAX)
}

impl IntoResponse for ProblemResponse {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(&self.problem)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
        if let Some(challenge) = self.challenge {
            headers.insert(header::WWW_AUTHENTICATE, challenge);
        }
        if let Some(seconds) = self.problem.retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_token_is_challenged_without_quoting_it() {
        let response = ProblemResponse::from(AuthError::Expired).into_response();
        assert_eq!(response.status(), 401);
        let challenge = response.headers()["www-authenticate"].to_str().unwrap();
        assert!(challenge.starts_with("Bearer error=\"invalid_token\", error_description=\"the token"));
        let missing = ProblemResponse::from(AuthError::Missing).into_response();
        assert_eq!(missing.headers()["www-authenticate"], "Bearer");
        assert_eq!(missing.headers()["content-type"], "application/problem+json");
    }

    #[test]
    fn a_token_that_could_not_be_checked_is_not_refused() {
        let response = ProblemResponse::from(AuthError::KeysUnavailable).into_response();
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()["retry-after"], "2");
        assert!(!response.headers().contains_key("www-authenticate"));
    }

    #[test]
    fn retry_after_is_rounded_up() {
        let problem = ProblemResponse::unavailable("opening", "not yet", Duration::from_millis(1200));
        assert_eq!(problem.into_response().headers()["retry-after"], "2");
    }
}
