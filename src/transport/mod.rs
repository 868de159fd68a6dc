//! How devices reach the relay: HTTP and WebSocket.
//!
//! Last stage of the data flow. It decides nothing about who may see what: `auth` did, on joining and
//! on every change of grants. It turns requests into reads of a [`Feed`](crate::feed::Feed) and
//! deliveries into frames, at each device's own pace.

mod devices;
mod guard;
mod health;
mod http_auth;
mod listener;
mod messages;
mod metrics;
mod problem_response;
mod relay;
mod rest;
mod router;
mod ws;

pub(crate) use listener::FrontDoor;
pub use messages::Messages;
pub(crate) use metrics::install as install_metrics;
pub use relay::{Limits, Relay};
pub(crate) use router::router;
