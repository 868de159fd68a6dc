//! Web pages: whose sockets are taken, and whose requests may be read.

use super::{ORDERS, SYNC, handshake, status};
use crate::support::relay::Setup;
use crate::support::scene::{scene, scene_with};

const APP: &str = "https://app.example.com";

#[tokio::test]
async fn sockets_are_for_pages_of_this_host_and_of_those_named() {
    let (_pg, relay) = scene_with(ORDERS, |setup: Setup| setup.env("ROWCAST_ALLOWED_ORIGINS", APP)).await;
    let address = relay.address();
    let own = format!("http://{address}");
    let cases = [
        (None, 101),
        (Some(APP), 101),
        (Some(own.as_str()), 101),
        (Some("http://app.example.com"), 403),
        (Some("https://app.example.com:444"), 403),
        (Some("https://app.example.com.evil.test"), 403),
        (Some("https://evil.test"), 403),
        (Some("http://127.0.0.1"), 403),
        (Some("null"), 403),
        (Some(""), 403),
    ];
    for (origin, expected) in cases {
        let origin = origin.map(|origin| format!("Origin: {origin}\r\n")).unwrap_or_default();
        let head = format!("{}{origin}", handshake(&address.to_string()));
        assert_eq!(status(address, &head).await, expected, "{origin}");
    }
    let twice = format!("{}Origin: {APP}\r\nOrigin: https://evil.test\r\n", handshake(&address.to_string()));
    assert_eq!(status(address, &twice).await, 403);
    let upgrade = relay.http().request("GET", "/api/realtime/ws/page").header("upgrade", "websocket");
    let upgrade =
        upgrade.header("sec-websocket-version", "13").header("sec-websocket-key", "AAAAAAAAAAAAAAAAAAAAAA==");
    assert_eq!(
        upgrade.header("origin", "https://evil.test").send().await.status,
        400,
        "without `Connection`"
    );
}

#[tokio::test]
async fn every_page_may_come_where_that_is_said() {
    let (_pg, relay) = scene_with(ORDERS, |setup: Setup| setup.env("ROWCAST_ALLOWED_ORIGINS", "*")).await;
    let address = relay.address();
    let head = format!("{}Origin: https://evil.test\r\n", handshake(&address.to_string()));
    assert_eq!(status(address, &head).await, 101);
    let answer = relay.http_as("42").request("GET", SYNC).header("origin", "https://evil.test").send().await;
    assert_eq!(answer.headers.get("access-control-allow-origin"), Some("*"));
    assert_eq!(answer.headers.get("access-control-allow-credentials"), None);
}

#[tokio::test]
async fn pages_of_named_origins_may_ask_and_read() {
    let limited =
        |setup: Setup| setup.env("ROWCAST_ALLOWED_ORIGINS", APP).env("ROWCAST_RATE_LIMIT_REQUESTS", "1");
    let (_pg, relay) = scene_with(ORDERS, limited).await;
    let preflight = async |origin: &str| {
        let request = relay.http().request("OPTIONS", SYNC).header("origin", origin);
        let request = request.header("access-control-request-method", "POST");
        request.header("access-control-request-headers", "authorization,content-type").send().await
    };
    let allowed = preflight(APP).await.expect_status(200);
    let header = |name: &str| allowed.headers.get(name).unwrap_or_default().to_ascii_lowercase();
    assert_eq!(header("access-control-allow-origin"), APP);
    assert_eq!(header("access-control-max-age"), "7200");
    for part in ["authorization", "content-type"] {
        assert!(header("access-control-allow-headers").contains(part), "{allowed:?}");
    }
    for part in ["get", "post", "delete"] {
        assert!(header("access-control-allow-methods").contains(part), "{allowed:?}");
    }
    assert_eq!(header("access-control-allow-credentials"), "");
    assert!(header("vary").contains("origin"));
    assert_eq!(preflight("https://evil.test").await.headers.get("access-control-allow-origin"), None);

    // Also what is refused can be read, and when to come back.
    let user = relay.http_as("42");
    let ask = async |origin| user.request("GET", SYNC).header("origin", origin).send().await;
    for expected in [400, 429] {
        let answer = ask(APP).await.expect_status(expected);
        assert_eq!(answer.headers.get("access-control-allow-origin"), Some(APP));
        let exposed = answer.headers.get("access-control-expose-headers").unwrap();
        assert!(["retry-after", "ratelimit", "ratelimit-policy"].iter().all(|name| exposed.contains(name)));
    }
    assert_eq!(ask("https://evil.test").await.headers.get("access-control-allow-origin"), None);
}

#[tokio::test]
async fn no_other_page_reads_anything_by_default() {
    let (_pg, relay) = scene(ORDERS).await;
    let answer = relay.http_as("42").request("GET", SYNC).header("origin", APP).send().await;
    assert_eq!(answer.headers.get("access-control-allow-origin"), None);
    let request = relay.http().request("OPTIONS", SYNC).header("origin", APP);
    assert_eq!(request.header("access-control-request-method", "POST").send().await.status, 405);
    let address = relay.address();
    let head = format!("{}Origin: {APP}\r\n", handshake(&address.to_string()));
    assert_eq!(status(address, &head).await, 403);
}
