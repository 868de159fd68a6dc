//! Who sends a request: the bearer token of an HTTP request, verified.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::header::{AUTHORIZATION, HeaderMap};
use axum::http::request::Parts;

use super::problem_response::ProblemResponse;
use super::relay::Relay;
use crate::auth::bearer::{self, Carriers};
use crate::auth::{AuthError, Identity};
use crate::timestamp::PgTimestamp;

/// The identity that the request's token proves; without one the handler is not called.
#[derive(Debug)]
pub(super) struct Authenticated(pub(super) Identity);

impl FromRequestParts<Arc<Relay>> for Authenticated {
    type Rejection = ProblemResponse;

    async fn from_request_parts(parts: &mut Parts, relay: &Arc<Relay>) -> Result<Self, ProblemResponse> {
        let query = parts.uri.query().filter(|_| relay.limits.url_token);
        let token = token(&parts.headers, query)?.ok_or(AuthError::Missing)?;
        let now = PgTimestamp::now().unix_micros().div_euclid(1_000_000);
        Ok(Authenticated(relay.verifier.verify_refreshing(token, now).await?))
    }
}

fn token<'a>(headers: &'a HeaderMap, query: Option<&'a str>) -> Result<Option<&'a str>, AuthError> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let first = values.next();
    // Which of several counts would depend on who reads the request.
    if values.next().is_some() {
        return Err(AuthError::Several);
    }
    let authorization = match first.map(|value| value.to_str()) {
        Some(Err(_)) => return Err(AuthError::Malformed),
        Some(Ok(text)) => Some(text),
        None => None,
    };
    bearer::find(Carriers { authorization, query, ..Carriers::default() })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn one_token_in_one_header() {
        let mut headers = HeaderMap::new();
        assert_eq!(token(&headers, None), Ok(None));
        headers.append(AUTHORIZATION, "Bearer a".parse().unwrap());
        assert_eq!(token(&headers, None), Ok(Some("a")));
        assert_eq!(token(&headers, Some("token=b")), Err(AuthError::Several));
        headers.append(AUTHORIZATION, "Bearer a".parse().unwrap());
        assert_eq!(token(&headers, None), Err(AuthError::Several));
        assert_eq!(token(&HeaderMap::new(), Some("x=1&token=b")), Ok(Some("b")));
    }
}
