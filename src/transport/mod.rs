//! How devices reach the relay: HTTP, Server-Sent Events and WebSocket.
//!
//! Last stage of the data flow. It decides nothing about who may see what: `auth` did, on joining and
//! on every change of grants. It turns requests into reads of a [`Feed`](crate::feed::Feed) and
//! deliveries into frames, at each device's own pace.

mod events;
mod fields;
mod guard;
mod health;
mod http_auth;
mod joining;
mod listener;
mod metrics;
mod poll;
mod problem_response;
mod protocol;
mod relay;
mod rest;
mod router;
mod session;
mod tickets;
mod ws;

pub(crate) use listener::FrontDoor;
pub(crate) use metrics::install as install_metrics;
pub use relay::{Limits, Relay, SessionPlace, Sessions};
pub(crate) use router::router;
pub use tickets::Tickets;
