//! Any fields as a poll: what is asked for is within its bounds.

use std::time::Duration;

use super::{Asked, MAX_LIMIT, MAX_WAIT};
use crate::auth::Identity;
use crate::devices::is_device_id;
use crate::transport::fields::Fields;

pub(crate) fn asked(fields: &Fields, identity: &Identity) {
    let Ok(asked) = Asked::of(fields, identity) else { return };
    assert!(is_device_id(&asked.device) && !asked.topics.is_empty());
    assert!((1..=MAX_LIMIT).contains(&asked.limit));
    assert!(asked.wait <= Duration::from_secs(MAX_WAIT.unsigned_abs()));
}
