//! Who sends a request: the bearer token of an HTTP request, verified, and within its user's rate limit.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{ConnectInfo, FromRequestParts, MatchedPath};
use axum::http::header::{AUTHORIZATION, HeaderMap};
use axum::http::request::Parts;

use super::gate::Refusal;
use super::guard::Tally;
use super::line::Caller;
use super::problem_response::ProblemResponse;
use super::rate::Bucket;
use super::relay::Relay;
use crate::auth::bearer::{self, Carriers};
use crate::auth::{AuthError, Identity};

/// The identity that the request's token proves. Without one, or beyond the user's rate limit, the handler
/// is not called. Which bucket a request takes from follows from its route ([`Bucket::of`]).
#[derive(Debug)]
pub(super) struct Authenticated(pub(super) Identity);

impl FromRequestParts<Arc<Relay>> for Authenticated {
    type Rejection = ProblemResponse;

    async fn from_request_parts(parts: &mut Parts, relay: &Arc<Relay>) -> Result<Self, ProblemResponse> {
        let query = parts.uri.query().filter(|_| relay.limits.url_token);
        let who = match token(&parts.headers, query) {
            Ok(token) => relay.identify(token).await,
            Err(error) => Err(error),
        };
        admit(parts, relay, who).map(Authenticated)
    }
}

/// The identity that the request's token proves, or the ticket in its URL, which is used up by that.
#[derive(Debug)]
pub(super) struct Admitted(pub(super) Identity);

impl FromRequestParts<Arc<Relay>> for Admitted {
    type Rejection = ProblemResponse;

    async fn from_request_parts(parts: &mut Parts, relay: &Arc<Relay>) -> Result<Self, ProblemResponse> {
        let query = parts.uri.query().unwrap_or_default();
        let Some(ticket) = bearer::ticket(query) else {
            let Authenticated(identity) = Authenticated::from_request_parts(parts, relay).await?;
            return Ok(Admitted(identity));
        };
        if parts.headers.contains_key(AUTHORIZATION) || bearer::from_query(query).is_some() {
            return Err(AuthError::Several.into());
        }
        let who = relay.tickets.redeem(ticket, Instant::now());
        admit(parts, relay, who).map(Admitted)
    }
}

/// Lets a request in whose sender has proved who they are, by a token or in another way: the last check
/// of every extractor that authenticates.
pub(super) fn admit(
    parts: &Parts,
    relay: &Relay,
    who: Result<Identity, AuthError>,
) -> Result<Identity, ProblemResponse> {
    let caller = parts.extensions.get::<ConnectInfo<Caller>>().map(|ConnectInfo(caller)| caller);
    relay.gate.check_host(&parts.headers)?;
    relay.gate.check_page(caller, &parts.headers)?;
    let bucket = Bucket::of(parts.extensions.get::<MatchedPath>());
    // Every connection has a caller; where none is told, all share one address.
    let address =
        caller.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |caller| relay.gate.client(caller, &parts.headers));
    let admitted = relay.gate.admit(who, bucket, address);
    let standing = match &admitted {
        Ok((_, standing)) => *standing,
        Err(Refusal::TooOften(standing)) => Some(*standing),
        Err(Refusal::Token(_)) => None,
    };
    if let (Some(standing), Some(tally)) = (standing, parts.extensions.get::<Tally>()) {
        tally.set(standing);
    }
    Ok(admitted?.0)
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
