//! The stage as a whole, on a log in memory: pages against the states of a random database, and each
//! refusal.

mod answers;
mod log;
mod pages;
mod plans;
mod times;
mod world;

use std::sync::Arc;

use super::{FullOptions, FullSync, SyncRequest};
use crate::auth::{Grants, Identity, UserId};
use crate::change::{Mark, Reason};
use crate::feed::Feed;
use crate::horizon::Horizon;
use crate::log::Log;
use crate::lsn::Lsn;
use crate::position::Position;
use crate::route::{RouterState, Template, Tracked};
use crate::topic::Pattern;

fn identity(grants: &[&str]) -> Identity {
    let patterns = grants.iter().map(|text| Pattern::parse(text).unwrap()).collect();
    Identity {
        user: UserId { issuer: None, subject: "1".to_owned() },
        grants: Grants::new(patterns),
        expires_at: None,
        issued_at: None,
        admin: false,
    }
}

/// A feed in which the world's tables are tracked.
fn feed(log: Arc<dyn Log>) -> Arc<Feed> {
    let feed = Feed::new(log, Lsn::new(1), Horizon::new(Lsn::new(1)));
    let mut state = RouterState::default();
    for (relid, name) in (1..).zip(world::TABLES) {
        let templates = ["user:{user_id}", "team:{team_id}"].map(|audience| format!("{audience}:{name}"));
        state.catalog.put(Tracked {
            relid,
            schema: "public".to_owned(),
            table: name.to_owned(),
            name: name.into(),
            templates: templates.iter().map(|text| Template::parse(text).unwrap()).collect(),
            columns: None,
            generation: 1,
        });
    }
    feed.set_directory(&state);
    feed
}

fn request(fields: serde_json::Value) -> SyncRequest {
    let mut body = serde_json::json!({"device_id": "d"});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    SyncRequest::from_json(body.to_string().as_bytes()).unwrap()
}

fn mark(table: &str, upto: Position, reason: Reason) -> Mark {
    Mark { table: table.into(), audience: None, scopes: vec!["user".to_owned()], upto, reason }
}

/// For requests that do not come to a full answer: it is never connected.
pub(crate) fn full_sync() -> Arc<FullSync> {
    let second = std::time::Duration::from_secs(1);
    FullSync::new(FullOptions {
        target: crate::postgres::Target::parse("postgres://nobody@127.0.0.1:1/none").unwrap(),
        snapshots: 1,
        longest: second,
        queue_wait: second,
        lock_timeout: second,
        fence_wait: second,
        spool_memory: 0,
        spool_disk: 0,
        spool_age: second,
        spool_directory: "/nonexistent".into(),
    })
}
