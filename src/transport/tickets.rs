//! Tickets: what stands for a token in the URL of a stream or a socket, once and for a moment.
//!
//! A browser's `EventSource` can send nothing but a URL, and URLs end up in logs; a ticket found there
//! is worth nothing any more. Kept in memory and hashed, so that nobody who reads it has tickets.
//!
//! Invariants: a ticket is redeemed at most once, within [`LIFETIME`], and never beyond the end of the
//! token for which it was given. However fast they are asked for, a user has no more than
//! [`MOST_OF_USER`] within a lifetime, and all users no more than [`MOST`].

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::Relay;
use super::http_auth::Authenticated;
use super::problem_response::ProblemResponse;
use crate::auth::{AuthError, Identity, UserId};
use crate::hub::timestamp;
use crate::timestamp::PgTimestamp;

pub(super) const LIFETIME: Duration = Duration::from_secs(30);
/// As many devices of a user as may come back at once, and some that try again.
const MOST_OF_USER: usize = 64;
/// A herd of devices that comes back within a lifetime. Each ticket takes about half a kilobyte.
const MOST: usize = 65_536;

const BYTES: usize = 32;
type Hash = [u8; 32];

/// The tickets that were given and may still be redeemed.
#[derive(Default)]
pub struct Tickets {
    inner: Mutex<Given>,
}

#[derive(Default)]
struct Given {
    waiting: HashMap<Hash, Identity>,
    /// All that were given within a lifetime, also those that were redeemed; the oldest first.
    order: VecDeque<(Instant, Hash, UserId)>,
    of_user: HashMap<UserId, usize>,
}

/// Too many were asked for within a lifetime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooMany;

impl Tickets {
    pub(super) fn issue(&self, identity: Identity, now: Instant) -> Result<String, TooMany> {
        let ticket: String = rand::random::<[u8; BYTES]>().iter().map(|byte| format!("{byte:02x}")).collect();
        let mut given = self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        given.forget_old(now);
        let of_user = given.of_user.get(&identity.user).copied().unwrap_or_default();
        if of_user >= MOST_OF_USER || given.order.len() >= MOST {
            return Err(TooMany);
        }
        given.of_user.insert(identity.user.clone(), of_user + 1);
        given.order.push_back((now, hash(&ticket), identity.user.clone()));
        given.waiting.insert(hash(&ticket), identity);
        Ok(ticket)
    }

    /// Uses a ticket up.
    pub(super) fn redeem(&self, ticket: &str, now: Instant) -> Result<Identity, AuthError> {
        let mut given = self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        given.forget_old(now);
        let identity = given.waiting.remove(&hash(ticket)).ok_or(AuthError::Ticket)?;
        let unix = PgTimestamp::now().unix_micros().div_euclid(1_000_000);
        if identity.expires_at.is_some_and(|end| unix >= end) {
            Err(AuthError::Expired)
        } else {
            Ok(identity)
        }
    }
}

impl Given {
    fn forget_old(&mut self, now: Instant) {
        while self.order.front().is_some_and(|(at, ..)| now.saturating_duration_since(*at) >= LIFETIME) {
            let Some((_, hash, user)) = self.order.pop_front() else { return };
            self.waiting.remove(&hash);
            if let Some(count) = self.of_user.get_mut(&user) {
                *count -= 1;
                if *count == 0 {
                    self.of_user.remove(&user);
                }
            }
        }
    }
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tickets").finish_non_exhaustive()
    }
}

/// A ticket is random in all its bits, so its plain hash cannot be guessed back.
fn hash(ticket: &str) -> Hash {
    Sha256::digest(ticket.as_bytes()).into()
}

#[derive(Serialize)]
pub(super) struct TicketAnswer {
    ticket: String,
    expires_at: String,
}

/// POST `/api/realtime/ticket`
pub(super) async fn ticket(
    State(relay): State<Arc<Relay>>,
    Authenticated(identity): Authenticated,
) -> Result<Json<TicketAnswer>, ProblemResponse> {
    let lifetime = i64::try_from(LIFETIME.as_micros()).unwrap_or(i64::MAX);
    let token_end = identity.expires_at.map_or(i64::MAX, |end| end.saturating_mul(1_000_000));
    let expires_at = PgTimestamp::now().unix_micros().saturating_add(lifetime).min(token_end);
    let ticket = relay.tickets.issue(identity, Instant::now()).map_err(|TooMany| {
        ProblemResponse::too_many("too_many_tickets", "too many tickets were asked for just now", LIFETIME)
    })?;
    Ok(Json(TicketAnswer { ticket, expires_at: timestamp(expires_at) }))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::auth::Grants;

    fn identity(subject: &str, expires_at: Option<i64>) -> Identity {
        Identity {
            user: UserId { issuer: None, subject: subject.into() },
            grants: Grants::default(),
            expires_at,
            issued_at: None,
            admin: false,
        }
    }

    #[test]
    fn a_ticket_counts_once_and_for_a_moment() {
        let (tickets, now) = (Tickets::default(), Instant::now());
        let [one, other] = [(); 2].map(|()| tickets.issue(identity("1", None), now).unwrap());
        assert!(one != other && one.len() == 2 * BYTES);
        assert_eq!(tickets.redeem("", now), Err(AuthError::Ticket));
        assert_eq!(tickets.redeem(&one[1..], now), Err(AuthError::Ticket));
        assert_eq!(tickets.redeem(&one, now).unwrap().user.subject, "1");
        assert_eq!(tickets.redeem(&one, now), Err(AuthError::Ticket));
        assert_eq!(tickets.redeem(&other, now + LIFETIME), Err(AuthError::Ticket));
        let late = tickets.issue(identity("1", None), now).unwrap();
        assert!(tickets.redeem(&late, now + LIFETIME - Duration::from_millis(1)).is_ok());
        let over = tickets.issue(identity("1", Some(1)), now).unwrap();
        assert_eq!(tickets.redeem(&over, now), Err(AuthError::Expired));
    }

    #[test]
    fn tickets_are_bounded_and_forgotten() {
        let (tickets, now) = (Tickets::default(), Instant::now());
        for _ in 0..MOST_OF_USER {
            let ticket = tickets.issue(identity("1", None), now).unwrap();
            // Using them up makes no room.
            assert!(tickets.redeem(&ticket, now).is_ok());
        }
        assert_eq!(tickets.issue(identity("1", None), now), Err(TooMany));
        assert!(tickets.issue(identity("2", None), now).is_ok());
        assert!(tickets.issue(identity("1", None), now + LIFETIME).is_ok());
        let given = tickets.inner.lock().unwrap();
        assert_eq!((given.order.len(), given.waiting.len(), given.of_user.len()), (1, 1, 1));
    }
}
