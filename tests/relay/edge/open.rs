//! A relay without authentication, and an address for the operator alone.

use serde_json::json;

use super::{ORDERS, SYNC, handshake, status};
use crate::support::cli::rowcast;
use crate::support::device::Device;
use crate::support::http::Http;
use crate::support::postgres::TestPostgres;
use crate::support::relay::Setup;
use crate::support::scene::{scene_with, told};

fn without_auth(setup: Setup) -> Setup {
    setup
        .env("ROWCAST_AUTH", "none")
        .env("ROWCAST_JWT_SECRET", "")
        .env("ROWCAST_GRANTS", "global:*,user:42:*,user:{sub}:*")
}

#[tokio::test]
async fn it_does_not_start_where_others_reach_it_unless_told_so() {
    let pg = TestPostgres::start().await;
    for listen in ["0.0.0.0:0", "[::]:0", "192.0.2.1:4000", "[::ffff:192.0.2.1]:4000"] {
        let outcome = rowcast(&pg, &["serve", "--auth=none", &format!("--listen={listen}")]).await;
        assert_eq!(outcome.code, 2, "{outcome:?}");
        assert!(outcome.stderr.contains("allow_unauthenticated"), "{}", outcome.stderr);
    }
    // Without saying anything, a way to check tokens is asked for.
    let outcome = rowcast(&pg, &["serve"]).await;
    assert_eq!(outcome.code, 2);
    assert!(outcome.stderr.contains("jwt_secret (ROWCAST_JWT_SECRET): is not set"), "{}", outcome.stderr);
    let outcome = rowcast(&pg, &["serve", "--auth=off"]).await;
    assert!(outcome.stderr.contains("expected jwt or none"), "{}", outcome.stderr);
}

#[tokio::test]
async fn everyone_is_the_same_user_with_what_is_granted() {
    let (pg, relay) = scene_with(ORDERS, without_auth).await;
    assert_eq!(relay.count_lines("authentication is off"), 1);
    let mut device = Device::of(&relay, "42", "phone").without_token().try_connect().await.unwrap();
    let established = device.expect("connection_established").await.json();
    assert_eq!(established["user_id"], json!("anonymous"));
    device.subscribe(&["user:42:*"], None).await;
    pg.sql("INSERT INTO orders VALUES (1, 42), (2, 7)").await;
    assert_eq!(told(&[device.change().await]), [r#"INSERT user:42:orders {"id":1,"user_id":42} last"#]);
    device.send(&json!({"type": "subscribe", "topics": ["user:7:*"]})).await;
    device.expect_error("not_granted").await;
    // A token is neither asked for nor looked at.
    device.send(&json!({"type": "auth", "token": "x"})).await;
    assert_eq!(
        device.expect("granted").await.json()["topics"],
        json!(["global:*", "user:42:*", "user:anonymous:*"])
    );
    let path = format!("{SYNC}?device_id=d&topics=user:42:*");
    let answer = relay.http().get(&path).await;
    assert!(answer.text().contains(r#"{"id":1,"user_id":42}"#), "{}", answer.text());
    assert_eq!(relay.http().with_token("nonsense").get(&path).await.status, answer.status);
    let others = relay.http().get(&format!("{SYNC}?device_id=d&topics=user:7:*")).await;
    assert_eq!(others.status, 403);
}

#[tokio::test]
async fn a_page_does_not_get_in_by_a_name_of_its_own() {
    let (_pg, relay) = scene_with(ORDERS, without_auth).await;
    let (address, port) = (relay.address(), relay.address().port());
    for host in [format!("localhost:{port}"), format!("127.0.0.1:{port}"), format!("[::1]:{port}")] {
        assert_eq!(status(address, &handshake(&host)).await, 101, "{host}");
    }
    for host in [format!("evil.test:{port}"), format!("localhost.evil.test:{port}"), "evil.test".to_owned()] {
        assert_eq!(status(address, &handshake(&host)).await, 421, "{host}");
        let page = format!("{}Origin: http://{host}\r\n", handshake(&host));
        assert_eq!(status(address, &page).await, 421, "{host}");
        let request = format!("GET {SYNC}?device_id=d&topics=global:* HTTP/1.1\r\nHost: {host}\r\n");
        assert_eq!(status(address, &request).await, 421, "{host}");
    }
    let foreign = format!("{}Origin: https://evil.test\r\n", handshake(&address.to_string()));
    assert_eq!(status(address, &foreign).await, 403);
}

#[tokio::test]
async fn told_by_name_it_listens_for_everyone() {
    let anyone =
        |setup: Setup| without_auth(setup).env("ROWCAST_LISTEN", "0.0.0.0:0").arg("--allow-unauthenticated");
    let (_pg, relay) = scene_with(ORDERS, anyone).await;
    assert_eq!(status(relay.address(), &handshake("relay.test")).await, 101);
}

#[tokio::test]
async fn metrics_may_have_an_address_of_their_own() {
    let apart = |setup: Setup| setup.env("ROWCAST_METRICS_LISTEN", "127.0.0.1:0");
    let (_pg, mut relay) = scene_with(ORDERS, apart).await;
    let line =
        relay.output().iter().find_map(|line| Some(line.split_once("metrics at http://")?.1.to_owned()));
    let operator = Http::at(line.unwrap().trim_end_matches("/metrics").parse().unwrap());
    assert!(operator.get("/metrics").await.expect_status(200).text().contains("rowcast_ready 1"));
    operator.get("/ready").await.expect_status(200);
    operator.get("/health").await.expect_status(200);
    // And nothing else.
    assert_eq!(operator.get(SYNC).await.expect_status(404).json()["code"], json!("not_found"));
    let main = relay.http();
    main.get("/metrics").await.expect_status(404);
    main.get("/ready").await.expect_status(200);
    main.get("/health").await.expect_status(200);
    relay.terminate().await;
}

#[tokio::test]
async fn an_address_that_is_taken_is_named() {
    let (pg, relay) = scene_with(ORDERS, |setup| setup).await;
    let taken = relay.address().to_string();
    for (setting, flag) in [("listen", "--listen"), ("metrics_listen", "--metrics-listen")] {
        let mut arguments = vec!["serve".to_owned(), "--auth=none".to_owned(), format!("{flag}={taken}")];
        if setting != "listen" {
            arguments.push("--listen=127.0.0.1:0".to_owned());
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let outcome = rowcast(&pg, &arguments).await;
        assert_eq!(outcome.code, 1);
        let words = format!("cannot listen on {taken}; choose another address in {setting}");
        assert!(outcome.stderr.contains(&words), "{}", outcome.stderr);
    }
}
