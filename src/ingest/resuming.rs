//! The log that is there, and what it keeps of the router and of rights, as a feed to go on with.

use std::sync::Arc;

use super::IngestOptions;
use super::driver::{STATE_HORIZON, STATE_ROUTER, STATE_SHAPES};
use super::error::IngestError;
use crate::feed::Feed;
use crate::horizon::Horizon;
use crate::log::{FjallLog, Log};
use crate::route::{Router, RouterState, STATE_GRANT, STATE_REVOKED};

/// The feed of the log that is there.
pub(super) fn open_feed(options: &IngestOptions) -> Result<Option<Arc<Feed>>, IngestError> {
    let log = FjallLog::open(&options.log)?;
    log.map(|log| resumed_feed(log, options.several_issuers)).transpose()
}

fn resumed_feed(log: Arc<FjallLog>, several_issuers: bool) -> Result<Arc<Feed>, IngestError> {
    let start = log.watermark().borrow().lsn;
    // A log that never kept one was written before there was a horizon: all of it is looked at again.
    let at = match log.state(STATE_HORIZON)? {
        Some(at) => serde_json::from_slice(&at)?,
        None => log.oldest(),
    };
    let feed = Feed::new(log, start, Horizon::resumed(at, start));
    let router = restored_router(&feed)?;
    feed.set_directory(router.state());
    feed.rights.set_several_issuers(several_issuers);
    feed.rights.replace(router.all_rights());
    Ok(feed)
}

pub(super) fn restored_router(feed: &Feed) -> Result<Router, IngestError> {
    let state: RouterState = read_state(feed, STATE_ROUTER)?.unwrap_or_default();
    let mut router = Router::new(state);
    let kept = feed.log.states(STATE_GRANT)?.into_iter().chain(feed.log.states(STATE_REVOKED)?);
    router.restore_rights(kept)?;
    router.reserve_shapes(read_state::<u32>(feed, STATE_SHAPES)?.unwrap_or(0));
    Ok(router)
}

pub(super) fn read_state<T: serde::de::DeserializeOwned>(
    feed: &Feed,
    name: &str,
) -> Result<Option<T>, IngestError> {
    let bytes = feed.log.state(name)?;
    Ok(bytes.map(|bytes| serde_json::from_slice(&bytes)).transpose()?)
}
