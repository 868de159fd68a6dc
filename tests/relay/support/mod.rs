//! The harness. A test reads like this:
//!
//! ```ignore
//! let pg = TestPostgres::start().await;
//! pg.sql("CREATE TABLE …").await;
//! let relay = Relay::on(&pg).start().await;
//! let mut device = Device::of(&relay, "42", "phone").connect().await;
//! device.subscribe(&["user:42:orders"], None).await;
//! pg.sql("INSERT …").await;
//! let change = device.change().await;
//! ```
//!
//! * [`postgres`]: a private cluster, copied from a template in a fraction of a second.
//! * [`relay`]: the `rowcast` program as a process: start, kill -9, terminate, restart on its log.
//! * [`http`]: a small HTTP/1.1 client. [`token`]: JWTs with any claims.
//! * [`issuer`]: a token issuer's endpoint for its keys, which can fail in many ways.
//! * [`device`]: a WebSocket device, and one that stops reading.
//! * [`events`]: a reader of Server-Sent Events.
//! * [`poll`]: the answer of a poll. [`raw`]: bytes that no client would send.
//! * [`copy`]: the local copy that a device keeps, compared byte for byte with the database.
//! * [`cli`]: one command of the program. [`stage`]: a database with the catalog, and a relay with the
//!   relay's rights.
//! * [`proxy`]: a TCP proxy that cuts, stalls and slows.
//! * [`tls`]: certificates, a cluster that shows them, and someone in between.
//! * [`standby`]: a streaming standby of a cluster, and its promotion. [`versions`]: what only some servers have.
//! * [`orders`]: the catalog and a small tracked table. [`follower`]: a device that comes back after every break.
//! * [`scene`]: a database with the catalog, a relay on it, and what a device was told, in lines.
//! * [`dice`]: chance that can be repeated, by its seed.
//! * [`writers`]: applications that write at random.
//! * [`disk`]: disks that are full or fail, while the relay runs.
//! * [`wait`]: `eventually`, the only way to wait for something that is not a message.
//! * [`watchdog`]: ends the run when a test does not.
//!
//! Rules: no sleep to synchronise, every wait has a deadline and says what it waited for, ports come
//! from the system, and what a test starts ends with it.
// Each test uses its part of the harness.
#![allow(dead_code)]

pub(crate) mod cli;
pub(crate) mod copy;
pub(crate) mod device;
pub(crate) mod dice;
pub(crate) mod disk;
pub(crate) mod events;
pub(crate) mod follower;
pub(crate) mod frame;
pub(crate) mod http;
pub(crate) mod issuer;
pub(crate) mod orders;
pub(crate) mod poll;
pub(crate) mod postgres;
pub(crate) mod proxy;
pub(crate) mod raw;
pub(crate) mod relay;
pub(crate) mod scene;
pub(crate) mod stage;
pub(crate) mod standby;
pub(crate) mod tls;
pub(crate) mod token;
pub(crate) mod versions;
pub(crate) mod wait;
pub(crate) mod watchdog;
pub(crate) mod writers;
