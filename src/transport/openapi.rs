//! The HTTP interface as an OpenAPI document, for generators of clients and for people.
//!
//! `openapi.json` is written by hand, like docs/PROTOCOL.md, and holds nothing of an installation: it is
//! the same for everyone and open to everyone. A test against the running relay holds it to what is
//! routed and answered (`tests/relay/openapi`).

use axum::http::{HeaderValue, header};
use axum::response::IntoResponse;

const DOCUMENT: &str = include_str!("openapi.json");

/// GET `/api/openapi.json`
pub(super) async fn document() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], DOCUMENT)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn the_document_is_of_this_version() {
        let document: Value = serde_json::from_str(DOCUMENT).unwrap();
        assert_eq!(document["openapi"], "3.1.0");
        assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
    }
}
