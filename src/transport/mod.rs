//! How devices reach the relay: HTTP and WebSocket.
//!
//! Last stage of the data flow. It decides nothing about who may see what: `auth` did, on joining and
//! on every change of grants. It turns requests into reads of a [`Feed`](crate::feed::Feed) and
//! deliveries into frames, at each device's own pace.

mod guard;
mod health;
mod http_auth;
mod listener;
mod metrics;
mod problem_response;
mod protocol;
mod relay;
mod rest;
mod router;
mod session;
mod ws;

pub(crate) use listener::FrontDoor;
pub(crate) use metrics::install as install_metrics;
pub use relay::{Limits, Relay, SessionPlace, Sessions};
pub(crate) use router::router;
