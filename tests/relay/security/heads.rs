//! Request heads that are meant to be read differently by different readers.

use serde_json::json;

use super::{ORDERS, SYNC, exchange, statuses};
use crate::support::device::Device;
use crate::support::scene::{scene, scene_with};
use crate::support::token;

/// A second request, hidden in what some reader takes for the body of the first.
const HIDDEN: &str = "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";

#[tokio::test]
async fn one_request_is_one_request() {
    let (_pg, relay) = scene(ORDERS).await;
    let token = token::user("42");
    let post = |lines: &str, body: &str| {
        format!("POST {SYNC} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n{lines}\r\n\r\n{body}")
    };
    let long = HIDDEN.len();
    // Two readers could disagree where the body ends: there must be one answer, and the connection's end.
    let ambiguous = [
        post("Content-Length: 4\r\nTransfer-Encoding: chunked", &format!("0\r\n\r\n{HIDDEN}")),
        post("Transfer-Encoding: chunked\r\nContent-Length: 4", &format!("0\r\n\r\n{HIDDEN}")),
        post(
            &format!("Content-Length: {}\r\nTransfer-Encoding: chunked", long + 5),
            &format!("0\r\n\r\n{HIDDEN}"),
        ),
        post("Transfer-Encoding: identity\r\nContent-Length: 0", HIDDEN),
        post("Transfer-Encoding: chunked, identity", &format!("0\r\n\r\n{HIDDEN}")),
        post("Transfer-Encoding: xchunked", &format!("0\r\n\r\n{HIDDEN}")),
        post("Transfer-Encoding: \u{b}chunked", &format!("0\r\n\r\n{HIDDEN}")),
        post("Transfer-Encoding : chunked", &format!("0\r\n\r\n{HIDDEN}")),
        post("Transfer-Encoding:\r\n chunked", &format!("0\r\n\r\n{HIDDEN}")),
        post("X: y\r\n Transfer-Encoding: chunked", &format!("0\r\n\r\n{HIDDEN}")),
        post(&format!("Content-Length: +0\r\nX: {long}"), HIDDEN),
        post("Content-Length: 0x0", HIDDEN),
        post("Content-Length: 0, 0", HIDDEN),
        post(&format!("Content-Length: 0\r\nContent-Length: {long}"), HIDDEN),
        post("Content-Length: 18446744073709551616", HIDDEN),
        post("Transfer-Encoding: chunked", &format!("-1\r\n{HIDDEN}")),
        post("Transfer-Encoding: chunked", &format!("0x0\r\n\r\n{HIDDEN}")),
        post("Transfer-Encoding: chunked", &format!("FFFFFFFFFFFFFFFFF\r\n{HIDDEN}")),
        post("Transfer-Encoding: chunked", &format!("10000000000000000\r\n\r\n{HIDDEN}")),
        post("Transfer-Encoding: chunked", &format!("0\r\nX: {}\r\n\r\n{HIDDEN}", "x".repeat(100_000))),
        post("Transfer-Encoding: chunked", &format!("1;{}\r\nx\r\n0\r\n\r\n{HIDDEN}", "e".repeat(100_000))),
        format!("GET /health HTTP/1.1\r\nHost: x\r\nX: y\rContent-Length: {long}\r\n\r\n{HIDDEN}"),
        format!("GET /health HTTP/1.1\r\nHost: x\r\nX\0Y: z\r\n\r\n{HIDDEN}"),
        format!("GET /health HTTP/1.1\r\nHost: x\r\nX: a\0b\r\n\r\n{HIDDEN}"),
        format!("GET /health HTTP/1.1 \r\nHost: x\r\n\r\n{HIDDEN}"),
        format!("GET\t/health\tHTTP/1.1\r\nHost: x\r\n\r\n{HIDDEN}"),
        format!("GET /health HTTP/2.0\r\nHost: x\r\n\r\n{HIDDEN}"),
        format!("GET /health\r\n\r\n{HIDDEN}"),
    ];
    for request in &ambiguous {
        let answers = exchange(relay.address(), request.as_bytes()).await;
        assert!(statuses(&answers).len() <= 1, "{request:.300}\n{answers}");
        assert!(!answers.contains("rowcast_build_info"), "{request:.300}");
    }
    // Lines may end without a carriage return (RFC 9112, section 2.2): what is hidden is a body all the same.
    let last = "GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let bare = format!("GET /health HTTP/1.1\nHost: x\nContent-Length: {long}\n\n{HIDDEN}{last}");
    let answers = exchange(relay.address(), bare.as_bytes()).await;
    assert_eq!(statuses(&answers), [200, 404], "{answers}");
    relay.http().get("/health").await.expect_status(200);
}

#[tokio::test]
async fn what_stands_in_a_path_is_a_device_or_nothing() {
    let (_pg, relay) = scene(ORDERS).await;
    let address = relay.address();
    let token = token::user("42");
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let long = "d".repeat(65);
    let endless = "d".repeat(50_000);
    let devices: [&str; 22] = [
        "%00",
        "a%00",
        "..",
        "%2e%2e",
        "..%2f..%2fmetrics",
        "%2e%2e%2fdevices",
        "a%2Fb",
        "a%252Fb",
        "%25",
        "a%20b",
        "%0d%0aX-Injected:%201",
        "%ff",
        "%c3%28",
        "%F0%9F%98%80",
        "\u{e4}",
        "a;b",
        "a:b",
        "{device_id}",
        "*",
        "'--",
        &long,
        &endless,
    ];
    for device in devices {
        let socket = format!(
            "GET /api/realtime/ws/{device} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n{upgrade}\r\n"
        );
        // An upgrade would leave the connection open; a request behind it ends it otherwise.
        let answers = exchange(address, format!("{socket}{HIDDEN}").as_bytes()).await;
        assert!(
            [400, 404, 414].contains(statuses(&answers).first().unwrap_or(&400)),
            "{device:.80}: {answers:.200}"
        );
        let removal = format!(
            "DELETE /api/realtime/devices/{device} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n"
        );
        let answers = exchange(address, removal.as_bytes()).await;
        assert!(
            [400, 404, 414].contains(statuses(&answers).first().unwrap_or(&400)),
            "{device:.80}: {answers:.200}"
        );
        assert!(!answers.contains("X-Injected"), "{answers}");
        for path in [SYNC, "/api/sync/poll", "/api/realtime/events", "/api/realtime/sync-status"] {
            if device == "*" || device == "\u{e4}" {
                continue;
            }
            let query = format!(
                "GET {path}?wait=0&device_id={device} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n"
            );
            let answers = exchange(address, query.as_bytes()).await;
            assert!(
                [400, 414].contains(statuses(&answers).first().unwrap_or(&400)),
                "{path} {device:.80}: {answers:.300}"
            );
            assert!(!answers.contains("X-Injected:"), "{answers}");
        }
    }
    // Nothing of it was entered anywhere.
    let known = relay.http_as("42").get("/api/realtime/devices").await.expect_status(200).json();
    assert_eq!(known, json!({"devices": []}));
}

#[tokio::test]
async fn no_spelling_of_a_path_or_method_opens_another_door() {
    let apart = |setup: crate::support::relay::Setup| setup.env("ROWCAST_METRICS_LISTEN", "127.0.0.1:0");
    let (_pg, relay) = scene_with(ORDERS, apart).await;
    let address = relay.address();
    for target in [
        "/metrics",
        "//metrics",
        "/./metrics",
        "/api/../metrics",
        "/%6detrics",
        "/metrics/",
        "/METRICS",
        "/metrics%00",
        "/metrics?x",
        "/metrics;x",
        "http://x/metrics",
        "http://x:1@y/metrics",
        "https://x//metrics",
        "/api/realtime/..%2f..%2fmetrics",
    ] {
        let request = format!("GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        let answers = exchange(address, request.as_bytes()).await;
        assert!(statuses(&answers).iter().all(|status| *status >= 400), "{target}: {answers}");
    }
    // One way in is one way in: no token, no answer, however the target is written.
    for target in [
        SYNC,
        "http://x/api/realtime/sync",
        "//api/realtime/sync",
        "/api/realtime//sync",
        "/api/realtime/sync/",
        "/api/realtime/sync;v=1",
    ] {
        for version in ["HTTP/1.0", "HTTP/1.1"] {
            let request = format!(
                "GET {target}?device_id=d {version}\r\nHost: x\r\nX-Original-URL: /health\r\nX-Rewrite-URL: /health\r\nConnection: close\r\n\r\n"
            );
            let answers = exchange(address, request.as_bytes()).await;
            let first = statuses(&answers)[0];
            assert!(first == 401 || first == 404, "{target}: {answers}");
        }
    }
    // Methods are what the request line says.
    Device::of(&relay, "42", "phone").connect().await.close().await;
    let path = "/api/realtime/devices/phone";
    for name in ["x-http-method-override", "x-method-override", "x-http-method"] {
        for method in ["GET", "POST"] {
            let answer = relay
                .http_as("42")
                .request(method, &format!("{path}?_method=DELETE"))
                .header(name, "DELETE")
                .send()
                .await;
            assert_eq!(answer.status, 405, "{name}");
        }
    }
    for method in ["TRACE", "CONNECT", "PUT", "PATCH", "get", "DELETEX", "PROPFIND"] {
        let answer = relay.http_as("42").request(method, SYNC).header("x-planted", "echo-me").send().await;
        assert!(answer.status >= 400, "{method}: {}", answer.status);
        assert!(!answer.text().contains("echo-me"), "{method}");
    }
    let known = relay.http_as("42").get("/api/realtime/devices").await.expect_status(200);
    assert!(known.text().contains("phone"));
}

#[tokio::test]
async fn every_answer_is_what_it_says_and_nobody_keeps_it() {
    let (_pg, relay) = scene(ORDERS).await;
    let http = relay.http_as("42");
    let markup = "%3Cscript%3Ealert(1)%3C/script%3E";
    for path in [
        "/health".to_owned(),
        "/metrics".to_owned(),
        "/api/openapi.json".to_owned(),
        format!("/{markup}"),
        format!("{SYNC}?device_id=d&topics={markup}&callback=alert&jsonp=alert"),
        format!("{SYNC}?device_id={markup}"),
        "/api/sync/poll?device_id=d&wait=0&callback=alert".to_owned(),
        format!("/api/realtime/devices/{markup}"),
    ] {
        let answer = http.request("GET", &path).header("origin", "https://evil.test").send().await;
        let header = |name: &str| answer.headers.get(name).map(str::to_owned);
        assert_eq!(header("x-content-type-options").as_deref(), Some("nosniff"), "{path}");
        assert_eq!(header("cache-control").as_deref(), Some("no-store"), "{path}");
        assert_eq!(header("access-control-allow-origin"), None, "{path}");
        assert_eq!(header("server"), None, "{path}");
        assert_eq!(header("set-cookie"), None, "{path}");
        let kind = header("content-type").unwrap();
        assert!(!kind.contains("html") && !kind.contains("javascript"), "{path}: {kind}");
        assert!(!answer.text().starts_with("alert"), "{path}");
    }
    // A page of this name gets nothing out of an address with many.
    let cookie = relay
        .http()
        .request("GET", SYNC)
        .header("cookie", &format!("token={0}; jwt={0}; Authorization={0}", token::user("42")));
    cookie.send().await.expect_status(401);
}
