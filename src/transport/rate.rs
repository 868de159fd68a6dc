//! Rate limits: how often a user may ask, and how often an address may fail to say who it is.
//!
//! Four buckets, each with its own setting. *requests*, *polls* and *messages* are kept for each user, once its
//! token has proved it: a user's devices share one. *failures* are kept for each address (an IPv6 subscriber's
//! network), and only refused tokens take from it: an office shares an address, and whoever brings a valid
//! token is never kept waiting for those who do not.
//!
//! A bucket holds `most`, and fills again evenly over the window (GCRA). What it keeps is a keyed hash and a
//! time for each user or address that is not at rest. Invariant: memory is bounded, whatever is sent.

use std::hash::{BuildHasher, Hash, RandomState};
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use axum::extract::MatchedPath;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use governor::clock::{Clock, DefaultClock};
use governor::middleware::StateInformationMiddleware;
use governor::state::keyed::DashMapStateStore;
use governor::{Quota, RateLimiter};
use tokio_util::sync::CancellationToken;

use super::address::neighbourhood;
use crate::auth::UserId;

/// Users or addresses that one kind of bucket is kept for: some 50 MiB at worst. Beyond it they share.
const MAX_KEYS: usize = 1 << 20;

/// How many buckets those share that find no place for one of their own.
const SHARED_KEYS: u64 = 1024;

/// How often buckets that are full again are dropped.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);

/// Whoever is closed for too many messages is told to stay away until a 100th of them is there again: a
/// socket that ends after a message or two helps nobody.
const MESSAGES_WORTH_A_SOCKET: u32 = 100;

/// Header fields of draft-ietf-httpapi-ratelimit-headers-10.
pub(super) const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
pub(super) const REMAINING: HeaderName = HeaderName::from_static("ratelimit");

/// Routes on which devices wait, or come back after an interruption: a bad network must not use up what
/// its user may ask for otherwise.
const WAITING_ROUTES: [&str; 4] =
    ["/api/realtime/ws/{device_id}", "/api/realtime/events", "/api/realtime/ticket", "/api/sync/poll"];

/// What is counted together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bucket {
    Requests,
    /// Polls, streams and sockets that begin or are resumed.
    Polls,
    /// Frames of open sockets, whatever they ask for: each costs a share of a processor.
    Messages,
    Failures,
}

impl Bucket {
    /// Whose bucket an authenticated request of this route takes from.
    pub(crate) fn of(route: Option<&MatchedPath>) -> Self {
        let waits = route.is_some_and(|route| WAITING_ROUTES.contains(&route.as_str()));
        if waits { Bucket::Polls } else { Bucket::Requests }
    }

    fn name(self) -> &'static str {
        match self {
            Bucket::Requests => "requests",
            Bucket::Polls => "polls",
            Bucket::Messages => "messages",
            Bucket::Failures => "failures",
        }
    }
}

/// How much is allowed in `window`; 0 is no limit.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RateSettings {
    pub(crate) requests: usize,
    pub(crate) polls: usize,
    pub(crate) messages: usize,
    pub(crate) failures: usize,
    pub(crate) window: Duration,
}

/// All buckets of the relay. The default limits nothing.
#[derive(Debug, Default)]
pub(crate) struct Rates {
    requests: Option<Buckets>,
    polls: Option<Buckets>,
    messages: Option<Buckets>,
    failures: Option<Buckets>,
}

/// How a bucket stands after it was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Standing {
    bucket: Bucket,
    most: u32,
    window: Duration,
    remaining: u32,
    /// Absent where the request was let through.
    retry_after: Option<Duration>,
}

impl Rates {
    pub(crate) fn new(settings: RateSettings) -> Self {
        let buckets = |bucket, most| Buckets::new(bucket, most, settings.window);
        Rates {
            requests: buckets(Bucket::Requests, settings.requests),
            polls: buckets(Bucket::Polls, settings.polls),
            messages: buckets(Bucket::Messages, settings.messages),
            failures: buckets(Bucket::Failures, settings.failures),
        }
    }

    /// Takes one from a user's bucket; `None` where there is no limit.
    pub(crate) fn spend(&self, bucket: Bucket, user: &UserId) -> Option<Standing> {
        Some(self.of(bucket)?.take(user))
    }

    /// Counts a refused token against the address that it came from.
    pub(crate) fn fail(&self, address: IpAddr) -> Option<Standing> {
        Some(self.failures.as_ref()?.take(&neighbourhood(address)))
    }

    /// Drops what is at rest, until the relay ends.
    pub(crate) async fn sweep(&self, shutdown: CancellationToken) {
        let mut tick = tokio::time::interval(SWEEP_INTERVAL);
        while shutdown.run_until_cancelled(tick.tick()).await.is_some() {
            self.drop_rested();
        }
    }

    fn drop_rested(&self) {
        for buckets in [&self.requests, &self.polls, &self.messages, &self.failures].into_iter().flatten() {
            buckets.limiter.retain_recent();
            buckets.limiter.shrink_to_fit();
        }
    }

    fn of(&self, bucket: Bucket) -> Option<&Buckets> {
        match bucket {
            Bucket::Requests => self.requests.as_ref(),
            Bucket::Polls => self.polls.as_ref(),
            Bucket::Messages => self.messages.as_ref(),
            Bucket::Failures => self.failures.as_ref(),
        }
    }
}

type Limiter = RateLimiter<u64, DashMapStateStore<u64>, DefaultClock, StateInformationMiddleware>;

/// One kind of bucket, by the hash of whose it is.
#[derive(Debug)]
struct Buckets {
    bucket: Bucket,
    most: NonZeroU32,
    window: Duration,
    limiter: Limiter,
    /// Nobody outside can make two keys meet.
    hasher: RandomState,
}

impl Buckets {
    fn new(bucket: Bucket, most: usize, window: Duration) -> Option<Self> {
        let most = NonZeroU32::new(u32::try_from(most).unwrap_or(u32::MAX))?;
        let one = (window / most.get()).max(Duration::from_nanos(1));
        let quota = Quota::with_period(one)?.allow_burst(most);
        let limiter = RateLimiter::dashmap(quota).with_middleware();
        Some(Buckets { bucket, most, window, limiter, hasher: RandomState::new() })
    }

    fn take(&self, whose: &impl Hash) -> Standing {
        let key = place(self.hasher.hash_one(whose), self.limiter.len());
        let standing = |remaining, retry_after| Standing {
            bucket: self.bucket,
            most: self.most.get(),
            window: self.window,
            remaining,
            retry_after,
        };
        match self.limiter.check_key(&key) {
            Ok(left) => standing(left.remaining_burst_capacity(), None),
            Err(until) => {
                metrics::counter!("rowcast_rate_limited_total", "bucket" => self.bucket.name()).increment(1);
                let wait = until.wait_time_from(self.limiter.clock().now());
                standing(0, Some(wait.max(self.shortest_wait())))
            }
        }
    }

    fn shortest_wait(&self) -> Duration {
        match self.bucket {
            Bucket::Messages => self.window / MESSAGES_WORTH_A_SOCKET,
            Bucket::Requests | Bucket::Polls | Bucket::Failures => Duration::ZERO,
        }
    }
}

/// Where a bucket is kept, when so many are.
fn place(hash: u64, kept: usize) -> u64 {
    if kept < MAX_KEYS { hash } else { hash % SHARED_KEYS }
}

impl Standing {
    /// When one more will be let through, where this one was not.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// What is told to whoever is refused.
    pub(crate) fn detail(&self) -> &'static str {
        match self.bucket {
            Bucket::Requests => "this user's devices ask too often",
            Bucket::Polls => "this user's devices poll or connect too often",
            Bucket::Messages => "this user's devices send too many messages",
            Bucket::Failures => "too many requests without a valid token came from this address",
        }
    }

    /// `RateLimit-Policy` and `RateLimit`: how much in what time, what is left of it, and when all of it is
    /// there again.
    pub(crate) fn write(&self, headers: &mut HeaderMap) {
        let (name, most) = (self.bucket.name(), self.most);
        let used = u64::from(most.saturating_sub(self.remaining));
        let full = whole_seconds(self.window.mul_f64(used as f64 / f64::from(most)));
        let policy = format!("\"{name}\";q={most};w={}", whole_seconds(self.window));
        let left = format!("\"{name}\";r={};t={full}", self.remaining);
        for (field, text) in [(POLICY, policy), (REMAINING, left)] {
            if let Ok(value) = HeaderValue::from_str(&text) {
                headers.insert(field, value);
            }
        }
    }
}

/// Never earlier than meant.
fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const QUARTER: Duration = Duration::from_secs(900);

    fn rates() -> Rates {
        Rates::new(RateSettings { requests: 3, polls: 2, messages: 1000, failures: 2, window: QUARTER })
    }

    fn user(subject: &str) -> UserId {
        UserId { issuer: None, subject: subject.to_owned() }
    }

    #[test]
    fn a_user_gets_exactly_as_much_as_is_allowed() {
        let rates = rates();
        for remaining in [2, 1, 0] {
            let standing = rates.spend(Bucket::Requests, &user("42")).unwrap();
            assert_eq!((standing.remaining, standing.retry_after), (remaining, None));
        }
        let refused = rates.spend(Bucket::Requests, &user("42")).unwrap();
        let wait = refused.retry_after().unwrap();
        assert!(wait > Duration::from_secs(295) && wait <= Duration::from_secs(300), "{wait:?}");
        // Neither other users nor other buckets notice.
        assert_eq!(rates.spend(Bucket::Requests, &user("7")).unwrap().remaining, 2);
        assert_eq!(rates.spend(Bucket::Polls, &user("42")).unwrap().remaining, 1);
        let issuer = UserId { issuer: Some("i".into()), subject: "42".into() };
        assert_eq!(rates.spend(Bucket::Requests, &issuer).unwrap().remaining, 2);
    }

    /// A thousandth of the window would bring it back for one message.
    #[test]
    fn whoever_sent_too_many_messages_waits_for_a_hundredth_of_them() {
        let rates = rates();
        let refused = (0..=1000).find_map(|_| rates.spend(Bucket::Messages, &user("42"))?.retry_after());
        assert_eq!(refused, Some(Duration::from_secs(9)));
    }

    #[test]
    fn failures_count_for_a_subscriber() {
        let rates = rates();
        let fail = |text: &str| rates.fail(text.parse().unwrap()).unwrap().retry_after().is_some();
        assert!(!fail("2001:db8::1") && !fail("2001:db8::2:2") && fail("2001:db8::3"));
        assert!(!fail("2001:db8:0:1::1"));
        assert!(!fail("192.0.2.1") && !fail("::ffff:192.0.2.1") && fail("192.0.2.1"));
        assert!(!fail("192.0.2.2"));
    }

    #[test]
    fn zero_is_no_limit() {
        let rates =
            Rates::new(RateSettings { requests: 0, polls: 0, messages: 0, failures: 0, window: QUARTER });
        assert_eq!(rates.spend(Bucket::Requests, &user("42")), None);
        assert_eq!(rates.fail("192.0.2.1".parse().unwrap()), None);
    }

    #[test]
    fn headers_are_those_of_the_draft() {
        let rates = rates();
        let mut headers = HeaderMap::new();
        rates.spend(Bucket::Requests, &user("42")).unwrap().write(&mut headers);
        assert_eq!(headers["ratelimit-policy"], "\"requests\";q=3;w=900");
        assert_eq!(headers["ratelimit"], "\"requests\";r=2;t=300");
    }

    #[test]
    fn every_limit_is_possible() {
        for most in [1, 999, 1_000_000_000, usize::MAX] {
            for window in [Duration::from_millis(1), Duration::from_secs(315_360_000)] {
                let buckets = Buckets::new(Bucket::Polls, most, window).unwrap();
                assert_eq!(buckets.take(&1).retry_after, None, "{most} in {window:?}");
            }
        }
    }

    #[test]
    fn what_is_at_rest_is_dropped_and_the_rest_is_bounded() {
        let window = Duration::from_millis(1);
        let rates = Rates::new(RateSettings { requests: 1, polls: 0, messages: 0, failures: 0, window });
        let buckets = rates.requests.as_ref().unwrap();
        for number in 0..1000 {
            buckets.take(&number);
        }
        assert!(buckets.limiter.len() > 500);
        std::thread::sleep(Duration::from_millis(2));
        rates.drop_rested();
        assert_eq!(buckets.limiter.len(), 0);
        assert_eq!(place(u64::MAX, MAX_KEYS - 1), u64::MAX);
        assert!((0..100_000).all(|number| place(number << 40 | number, MAX_KEYS) < SHARED_KEYS));
    }
}
