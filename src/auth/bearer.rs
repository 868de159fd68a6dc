//! Where a request may carry its token. Pure: header texts in, the token's text out.
//!
//! `Authorization: Bearer …`, the WebSocket subprotocols `rowcast.v1, bearer.<jwt>`, and, only
//! where the configuration allows it, `token` in the URL. Cookies are never read.

use super::error::AuthError;

/// The subprotocol that the relay answers; `bearer.…` is never echoed.
pub const SUBPROTOCOL: &str = "rowcast.v1";

const SUBPROTOCOL_BEARER: &str = "bearer.";

/// The places of one request that may carry a token.
#[derive(Clone, Copy, Default)]
#[allow(missing_debug_implementations, reason = "it holds tokens")]
pub struct Carriers<'a> {
    /// The `Authorization` header.
    pub authorization: Option<&'a str>,
    /// The `Sec-WebSocket-Protocol` header.
    pub subprotocols: Option<&'a str>,
    /// The URL's query, without `?`; leave it out where the configuration forbids tokens in URLs.
    pub query: Option<&'a str>,
}

/// The token of a request, if it has one. Two that differ are refused: which of them counts would
/// depend on who reads the request.
pub fn find<'a>(carriers: Carriers<'a>) -> Result<Option<&'a str>, AuthError> {
    let found = [
        carriers.authorization.and_then(from_authorization),
        carriers.subprotocols.and_then(from_subprotocols),
        carriers.query.and_then(from_query),
    ];
    let mut tokens = found.into_iter().flatten();
    let first = tokens.next();
    if tokens.any(|token| Some(token) != first) { Err(AuthError::Several) } else { Ok(first) }
}

/// From `Bearer <token>`; the scheme's case does not count (RFC 9110, section 11.1).
pub fn from_authorization(header: &str) -> Option<&str> {
    let (scheme, token) = header.trim().split_once(' ')?;
    Some(token.trim()).filter(|token| scheme.eq_ignore_ascii_case("bearer") && !token.is_empty())
}

/// From `rowcast.v1, bearer.<token>`.
pub fn from_subprotocols(header: &str) -> Option<&str> {
    let mut tokens = header.split(',').filter_map(|item| item.trim().strip_prefix(SUBPROTOCOL_BEARER));
    tokens.next().filter(|token| !token.is_empty())
}

/// Whether the client offered [`SUBPROTOCOL`], and so expects it in the answer.
pub fn offers_subprotocol(header: &str) -> bool {
    header.split(',').any(|item| item.trim() == SUBPROTOCOL)
}

/// From `token=<token>` in a query. A token has no character that a URL would encode.
pub fn from_query(query: &str) -> Option<&str> {
    let mut tokens = query.split('&').filter_map(|pair| pair.strip_prefix("token="));
    tokens.next().filter(|token| !token.is_empty())
}

/// A ticket from `ticket=<ticket>` in a query: what stands for a token once, where a browser can send
/// nothing but a URL.
pub fn ticket(query: &str) -> Option<&str> {
    query.split('&').find_map(|pair| pair.strip_prefix("ticket="))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_found_where_it_may_be() {
        assert_eq!(from_authorization("Bearer a.b.c"), Some("a.b.c"));
        assert_eq!(from_authorization("bearer  a.b.c "), Some("a.b.c"));
        for other in ["", "Bearer", "Bearer ", "Basic a.b.c", "a.b.c"] {
            assert_eq!(from_authorization(other), None, "{other:?}");
        }
        assert_eq!(from_subprotocols("rowcast.v1, bearer.a.b.c"), Some("a.b.c"));
        assert_eq!(from_subprotocols("bearer.a.b.c,rowcast.v1"), Some("a.b.c"));
        for other in ["", "rowcast.v1", "bearer.", "bearer"] {
            assert_eq!(from_subprotocols(other), None, "{other:?}");
        }
        assert!(offers_subprotocol("bearer.x, rowcast.v1") && !offers_subprotocol("rowcast.v10"));
        assert_eq!(from_query("batch=1&token=a.b.c"), Some("a.b.c"));
        assert_eq!(from_query("xtoken=a&token="), None);
        assert_eq!((ticket("a=1&ticket=t"), ticket("token=t")), (Some("t"), None));
    }

    #[test]
    fn two_different_tokens_are_refused() {
        let carriers = |authorization, subprotocols| Carriers { authorization, subprotocols, query: None };
        assert_eq!(find(carriers(None, None)), Ok(None));
        assert_eq!(find(carriers(Some("Bearer a"), Some("rowcast.v1"))), Ok(Some("a")));
        assert_eq!(find(carriers(Some("Bearer a"), Some("bearer.a"))), Ok(Some("a")));
        assert_eq!(find(carriers(Some("Bearer a"), Some("bearer.b"))), Err(AuthError::Several));
        let query = Carriers { query: Some("token=t"), ..Carriers::default() };
        assert_eq!(find(query), Ok(Some("t")));
    }
}
