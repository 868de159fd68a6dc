//! Any query string as that of a socket.

use axum::http::Uri;

use super::{labels, wishes};

pub(crate) fn query(uri: &Uri) {
    let query = uri.query().unwrap_or_default();
    let wishes = wishes(query);
    assert!(!wishes.batch || query.contains("batch="));
    assert!(!wishes.numbers_as_strings || query.contains("numbers=string"));
    let _ = labels(uri);
}
