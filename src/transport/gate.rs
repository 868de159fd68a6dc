//! What is asked of a request before its handler: which page sent it, from where, by whom, and how often.
//!
//! Who a user is, `auth` has said. Every way to prove it (a token, a ticket) passes [`Gate::admit`], so that
//! the limits hold for all of them.

use std::net::IpAddr;

use axum::http::HeaderMap;

use super::address::TrustedProxies;
use super::line::Caller;
use super::origin::{Origins, asks_by_address};
use super::problem_response::ProblemResponse;
use super::rate::{Bucket, Rates, Standing};
use crate::auth::{AuthError, Identity};

/// The default believes no proxy, knows no other origins, limits nothing and asks everyone for a token.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    pub(crate) proxies: TrustedProxies,
    pub(crate) origins: Origins,
    pub(crate) rates: Rates,
    pub(crate) anonymous: Option<Anonymous>,
}

/// Everyone is let in as this user, without a token.
#[derive(Debug)]
pub(crate) struct Anonymous {
    pub(crate) identity: Identity,
    /// Only who reaches this machine by an address or as `localhost`: what protects it is where it
    /// listens, and a page from elsewhere must not get around that by a name.
    pub(crate) by_address_only: bool,
}

/// Why a request gets no further.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Refusal {
    Token(AuthError),
    TooOften(Standing),
}

impl Gate {
    /// The address of the device itself.
    pub(crate) fn client(&self, caller: &Caller, headers: &HeaderMap) -> IpAddr {
        self.proxies.client(caller.peer(), headers)
    }

    /// Lets a user in whose bucket is not empty. Who did not prove who they are counts against their
    /// address.
    pub(crate) fn admit(
        &self,
        who: Result<Identity, AuthError>,
        bucket: Bucket,
        address: IpAddr,
    ) -> Result<(Identity, Option<Standing>), Refusal> {
        let identity = who.map_err(|error| self.refuse(error, address))?;
        let standing = self.rates.spend(bucket, &identity.user);
        match standing {
            Some(standing) if standing.retry_after().is_some() => Err(Refusal::TooOften(standing)),
            _ => Ok((identity, standing)),
        }
    }

    /// What a refused token is told, which is counted.
    pub(crate) fn refuse(&self, error: AuthError, address: IpAddr) -> Refusal {
        // A token that was valid once is no guess, and its device has to hear that it is over.
        let counts = matches!(error.code(), "token_missing" | "token_invalid");
        let standing = if counts { self.rates.fail(address) } else { None };
        match standing {
            Some(standing) if standing.retry_after().is_some() => {
                tracing::debug!(%address, "too many tokens from this address were refused");
                Refusal::TooOften(standing)
            }
            _ => Refusal::Token(error),
        }
    }

    /// Refuses sockets of pages that are not welcome.
    pub(crate) fn check_origin(&self, caller: &Caller, headers: &HeaderMap) -> Result<(), ProblemResponse> {
        if self.origins.allow(headers, caller.is_tls()) {
            Ok(())
        } else {
            Err(ProblemResponse::foreign_origin())
        }
    }

    /// Where nobody is asked for a token, a browser would send a foreign page's requests like any other:
    /// they are told by their origin.
    pub(crate) fn check_page(
        &self,
        caller: Option<&Caller>,
        headers: &HeaderMap,
    ) -> Result<(), ProblemResponse> {
        let tls = caller.is_some_and(Caller::is_tls);
        if self.anonymous.is_none() || self.origins.allow(headers, tls) {
            Ok(())
        } else {
            Err(ProblemResponse::foreign_origin())
        }
    }

    /// Refuses who comes by a name to a relay that is open to this machine alone.
    pub(crate) fn check_host(&self, headers: &HeaderMap) -> Result<(), ProblemResponse> {
        let strict = self.anonymous.as_ref().is_some_and(|anonymous| anonymous.by_address_only);
        if strict && !asks_by_address(headers) { Err(ProblemResponse::foreign_host()) } else { Ok(()) }
    }
}
