//! How devices reach the relay: HTTP, Server-Sent Events and WebSocket.
//!
//! Last stage of the data flow. It decides nothing about who may see what: `auth` did, on joining and
//! on every change of grants. It turns requests into reads of a [`Feed`](crate::feed::Feed) and
//! deliveries into frames, at each device's own pace.

mod address;
mod devices;
mod events;
mod fields;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod gate;
mod guard;
mod health;
mod http_auth;
mod joining;
mod line;
mod listener;
mod messages;
mod metrics;
mod openapi;
mod origin;
mod poll;
mod problem_response;
mod protocol;
mod rate;
mod relay;
mod rest;
mod router;
mod session;
mod tickets;
mod tls;
mod ws;

pub(crate) use address::TrustedProxies;
pub(crate) use gate::{Anonymous, Gate};
pub(crate) use line::Caller;
pub(crate) use listener::FrontDoor;
pub use messages::Messages;
pub(crate) use metrics::install as install_metrics;
pub(crate) use origin::{Origins, is_origin};
pub(crate) use rate::{RateSettings, Rates};
pub use relay::{Limits, Relay};
pub(crate) use router::{operation_router, router};
pub use tickets::Tickets;
pub(crate) use tls::Tls;
