//! Tokens that an issuer signs: public keys of the configuration, and a key set that is fetched, rotates
//! and fails.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::device::Device;
use crate::support::issuer::{Answering, Issuer, Signer};
use crate::support::postgres::TestPostgres;
use crate::support::relay::{Relay, Setup};
use crate::support::scene::database;
use crate::support::token;
use crate::support::wait::{PATIENCE, eventually};

const ORDERS: &str = "CREATE TABLE orders (id int PRIMARY KEY, user_id int NOT NULL);
    SELECT rowcast.track('orders')";

const ISSUER: &str = "https://issuer.example";
const FAR_FUTURE: i64 = 4_102_444_800;

/// Printed once for each time that fetches begin to fail.
const WARNING: &str = "cannot be fetched";

fn directory() -> TempDir {
    TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// A relay that trusts this issuer alone.
fn trusting(pg: &TestPostgres, issuer: &Issuer, data: &TempDir) -> Setup {
    Relay::on(pg)
        .env("ROWCAST_JWT_SECRET", "")
        .env("ROWCAST_JWKS_URL", &issuer.url())
        .env("ROWCAST_JWT_ISSUER", ISSUER)
        .env("ROWCAST_DATA_DIR", data.path().to_str().unwrap())
        .env("NO_PROXY", "localhost,127.0.0.1")
}

fn claims(sub: &str) -> Value {
    json!({"sub": sub, "iss": ISSUER, "exp": FAR_FUTURE})
}

/// `accepted`, or the code that the token is refused with.
async fn verdict(relay: &Relay, token: &str) -> String {
    let path = "/api/realtime/sync?device_id=d&topics=global:*";
    let answer = relay.http().with_token(token).get(path).await;
    let code = answer.json()["code"].as_str().unwrap_or_default().to_owned();
    match (answer.status, code.as_str()) {
        (401, _) => {
            assert!(answer.headers.get("www-authenticate").is_some());
            code
        }
        (503, "keys_unavailable") => {
            assert!(answer.headers.get("retry-after").is_some());
            code
        }
        _ => "accepted".to_owned(),
    }
}

/// A device that has subscribed to its user's rows.
async fn listening(relay: &Relay, user: &str, token: &str) -> Device {
    let mut device = Device::of(relay, user, "phone").token(token).connect().await;
    device.subscribe(&[&format!("user:{user}:*")], None).await;
    device
}

async fn hears(pg: &TestPostgres, device: &mut Device, user: &str, id: u32) {
    pg.sql(&format!("INSERT INTO orders VALUES ({id}, {user})")).await;
    assert_eq!(device.change().await.record_text(), format!(r#"{{"id":{id},"user_id":{user}}}"#));
}

async fn ready_reason(relay: &Relay) -> Option<String> {
    relay.http().get("/ready").await.json()["reason"].as_str().map(str::to_owned)
}

async fn until_failing(relay: &Relay, failing: bool) {
    let expected = if failing { 1.0 } else { 0.0 };
    eventually(PATIENCE, &format!("rowcast_jwks_failing is {expected}"), async || {
        (relay.metric("rowcast_jwks_failing").await == Some(expected)).then_some(())
    })
    .await;
}

async fn until_fetched(issuer: &Issuer, times: usize) {
    eventually(PATIENCE, "further fetches", async || (issuer.fetches() >= times).then_some(())).await;
}

#[tokio::test]
async fn public_keys_of_the_configuration_check_tokens() {
    let pg = database(ORDERS).await;
    let (rsa, p256, ed25519) = (Signer::rsa(), Signer::p256(), Signer::ed25519());
    let directory = directory();
    let file = directory.path().join("keys.pem");
    std::fs::write(&file, format!("{}{}", rsa.public_pem, p256.public_pem)).unwrap();
    let both = format!("{},{}", file.display(), ed25519.public_pem);
    let relay = Relay::on(&pg).env("ROWCAST_JWT_PUBLIC_KEY", &both).start().await;
    for (id, signer) in (1..).zip([&rsa, &p256, &ed25519]) {
        let user = id.to_string();
        let mut device = listening(&relay, &user, &signer.sign(None, &claims(&user))).await;
        hears(&pg, &mut device, &user, id).await;
    }
    // The secret stays what it was, and no public key becomes one.
    assert_eq!(verdict(&relay, &token::user("1")).await, "accepted");
    for pem in [&rsa.public_pem, &p256.public_pem, &ed25519.public_pem] {
        assert_eq!(verdict(&relay, &token::mint_with(pem, &claims("1"))).await, "token_invalid");
    }
    assert_eq!(verdict(&relay, &Signer::p256().sign(None, &claims("1"))).await, "token_invalid");
}

#[tokio::test]
async fn a_relay_starts_while_the_issuer_is_down_and_works_when_it_is_up() {
    let pg = database(ORDERS).await;
    let issuer = Issuer::start(Answering::HangUp).await;
    let data = directory();
    let relay = trusting(&pg, &issuer, &data).start_listening().await;
    let signer = Signer::p256();
    let token = signer.sign(Some("k"), &claims("1"));
    eventually(PATIENCE, "/ready says why", async || {
        (ready_reason(&relay).await.as_deref() == Some("keys_unavailable")).then_some(())
    })
    .await;
    assert_eq!(verdict(&relay, &token).await, "keys_unavailable");
    // What no key set could hold is refused all the same.
    assert_eq!(verdict(&relay, &token::user("1")).await, "token_invalid");
    let mut device = Device::of(&relay, "1", "phone").token(&token).try_connect().await.unwrap();
    let error = device.expect_error("keys_unavailable").await;
    assert_eq!(error["retryable"], true);
    let pause = error["retry_after_ms"].as_u64().unwrap();
    assert!((2_000..=4_000).contains(&pause), "{error}");
    assert_eq!(device.expect_close().await, (1012, format!("{{\"retry_after_ms\":{pause}}}")));
    until_fetched(&issuer, 3).await;
    assert_eq!(relay.count_lines(WARNING), 1, "one warning for many failures");

    issuer.set(Answering::Keys(vec![signer.jwk("k")]));
    relay.wait_ready().await;
    let mut device = listening(&relay, "1", &token).await;
    hears(&pg, &mut device, "1", 1).await;
    until_failing(&relay, false).await;
    assert_eq!(relay.metric("rowcast_jwks_keys").await, Some(1.0));
    assert!(!relay.output().join("\n").contains(&token));
}

#[tokio::test]
async fn keys_rotate_and_open_sessions_go_on() {
    let pg = database(ORDERS).await;
    let (old, new) = (Signer::p256(), Signer::ed25519());
    let issuer = Issuer::start(Answering::Keys(vec![old.jwk("old")])).await;
    let data = directory();
    let relay = trusting(&pg, &issuer, &data).start().await;
    let (with_old, with_new) = (old.sign(Some("old"), &claims("1")), new.sign(Some("new"), &claims("1")));
    let mut device = listening(&relay, "1", &with_old).await;

    issuer.set(Answering::Keys(vec![new.jwk("new")]));
    assert_eq!(verdict(&relay, &with_old).await, "accepted", "a known key needs no fetch");
    assert_eq!(issuer.fetches(), 1);
    // The first token with the new key brings it, and takes the old one away.
    assert_eq!(verdict(&relay, &with_new).await, "accepted");
    assert_eq!(issuer.fetches(), 2);
    assert_eq!(verdict(&relay, &with_old).await, "token_invalid");
    hears(&pg, &mut device, "1", 1).await;
    device.send(&json!({"type": "auth", "token": with_new})).await;
    device.expect("granted").await;
    hears(&pg, &mut device, "1", 2).await;
    // The right key under a name that is not its own.
    assert_eq!(verdict(&relay, &new.sign(Some("old"), &claims("1"))).await, "token_invalid");
    for request in issuer.requests() {
        assert!(request.starts_with("GET /jwks HTTP/1.1\r\n"), "{request}");
    }
}

#[tokio::test]
async fn a_scheduled_refresh_takes_withdrawn_keys_away() {
    let pg = database(ORDERS).await;
    let (old, new) = (Signer::p256(), Signer::p256());
    let issuer = Issuer::start(Answering::Keys(vec![old.jwk("a"), new.jwk("b")])).await;
    let data = directory();
    let relay = trusting(&pg, &issuer, &data).env("ROWCAST_JWKS_REFRESH", "200ms").start().await;
    let token = old.sign(Some("a"), &claims("1"));
    assert_eq!(verdict(&relay, &token).await, "accepted");
    issuer.set(Answering::Keys(vec![new.jwk("b")]));
    eventually(PATIENCE, "the withdrawn key counts no more", async || {
        (verdict(&relay, &token).await == "token_invalid").then_some(())
    })
    .await;
    // All of them: nothing counts, and it is told.
    let token = new.sign(Some("b"), &claims("1"));
    assert_eq!(verdict(&relay, &token).await, "accepted");
    issuer.set(Answering::Keys(vec![]));
    eventually(PATIENCE, "no key counts", async || {
        (verdict(&relay, &token).await == "keys_unavailable").then_some(())
    })
    .await;
    assert_eq!(ready_reason(&relay).await.as_deref(), Some("keys_unavailable"));
    relay.wait_line("the set holds no key").await;
}

#[tokio::test]
async fn a_flood_of_unknown_keys_causes_one_fetch() {
    let pg = database(ORDERS).await;
    let signer = Signer::p256();
    let issuer = Issuer::start(Answering::Keys(vec![signer.jwk("k")])).await;
    let data = directory();
    let relay = trusting(&pg, &issuer, &data).start().await;
    let good = signer.sign(Some("k"), &claims("1"));
    let stranger = Signer::p256();
    let begun = Instant::now();
    for round in 0..10 {
        let names = ["../../etc/passwd", "http://127.0.0.1:1/", "k\r\nx: y", "k'--", "K", ""];
        let names = names.iter().map(|name| format!("{name}{round}")).chain([format!("n{round}")]);
        let tokens: Vec<String> = names.map(|kid| stranger.sign(Some(&kid), &claims("1"))).collect();
        let verdicts = futures_util::future::join_all(tokens.iter().map(|token| verdict(&relay, token)));
        assert!(verdicts.await.iter().all(|code| code == "token_invalid"));
        // Nor do tokens without a name.
        assert_eq!(verdict(&relay, &stranger.sign(None, &claims("1"))).await, "token_invalid");
        assert_eq!(verdict(&relay, &good).await, "accepted");
    }
    assert!(begun.elapsed() < Duration::from_secs(25), "too slow a machine for this test");
    assert_eq!(issuer.fetches(), 2, "the first at the start");
    assert!(issuer.requests().iter().all(|request| request.starts_with("GET /jwks HTTP/1.1\r\n")));
}

#[tokio::test]
async fn an_endpoint_that_fails_changes_nothing_for_known_keys() {
    let pg = database(ORDERS).await;
    let (signer, stranger) = (Signer::rsa(), Signer::rsa());
    let good_set = Answering::Keys(vec![signer.jwk("k")]);
    let issuer = Issuer::start(good_set.clone()).await;
    let data = directory();
    let relay = trusting(&pg, &issuer, &data).env("ROWCAST_JWKS_REFRESH", "100ms").start().await;
    let good = signer.sign(Some("k"), &claims("1"));
    let unknown = stranger.sign(Some("other"), &claims("1"));
    let mut device = listening(&relay, "1", &good).await;
    let mut huge = json!({ "keys": [stranger.jwk("other")] }).to_string().into_bytes();
    huge.resize(2 << 20, b' ');
    let elsewhere = format!("location: {}\r\n", issuer.url());
    let failures = [
        Answering::HangUp,
        Answering::Raw(500, String::new(), b"{}".to_vec()),
        Answering::Raw(204, String::new(), Vec::new()),
        Answering::Raw(302, elsewhere, Vec::new()),
        Answering::Raw(200, String::new(), huge),
        Answering::Raw(200, String::new(), b"<html>".to_vec()),
        Answering::Raw(200, String::new(), br#"{"keys":"#.to_vec()),
        Answering::Raw(200, "content-encoding: gzip\r\n".to_owned(), b"\x1f\x8b".to_vec()),
    ];
    for (number, failure) in (1..).zip(failures) {
        issuer.set(failure.clone());
        until_failing(&relay, true).await;
        let fetched = issuer.fetches();
        until_fetched(&issuer, fetched + 3).await;
        assert_eq!(relay.count_lines(WARNING), number, "{failure:?}");
        assert_eq!(verdict(&relay, &good).await, "accepted", "{failure:?}");
        // Nobody knows whether the issuer has this key by now.
        assert_eq!(verdict(&relay, &unknown).await, "keys_unavailable", "{failure:?}");
        assert_eq!(ready_reason(&relay).await, None);
        // An open session that is renewed with such a token goes on with its own.
        device.send(&json!({"type": "auth", "ref": number, "token": unknown})).await;
        let error = device.expect_error("keys_unavailable").await;
        assert_eq!((&error["ref"], &error["retryable"]), (&json!(number), &json!(true)));
        hears(&pg, &mut device, "1", number.try_into().unwrap()).await;
        issuer.set(good_set.clone());
        until_failing(&relay, false).await;
        assert_eq!(verdict(&relay, &unknown).await, "token_invalid", "{failure:?}");
    }
}

#[tokio::test]
async fn a_slow_endpoint_holds_up_nobody_whose_key_is_known() {
    let pg = database(ORDERS).await;
    let signer = Signer::p256();
    let issuer = Issuer::start(Answering::Keys(vec![signer.jwk("k")])).await;
    let data = directory();
    let relay = trusting(&pg, &issuer, &data).start().await;
    let good = signer.sign(Some("k"), &claims("1"));
    let unknown = Signer::p256().sign(Some("other"), &claims("1"));
    issuer.set(Answering::Silent);
    let waits = async {
        let begun = Instant::now();
        (verdict(&relay, &unknown).await, begun.elapsed())
    };
    let goes = async {
        until_fetched(&issuer, 2).await;
        let begun = Instant::now();
        for _ in 0..20 {
            assert_eq!(verdict(&relay, &good).await, "accepted");
        }
        begun.elapsed()
    };
    let ((refused, waited), took) = tokio::join!(waits, goes);
    assert_eq!(refused, "keys_unavailable", "nobody knows yet");
    assert!((Duration::from_millis(1_900)..Duration::from_secs(4)).contains(&waited), "{waited:?}");
    assert!(took < waited, "{took:?}");
    relay.wait_line("no answer within 5 s").await;
    // The device that waits on a socket gets its answer there.
    let mut device = Device::of(&relay, "1", "phone").token(&unknown).try_connect().await.unwrap();
    device.expect_error("keys_unavailable").await;
    assert_eq!(device.expect_close().await.0, 1012);
}

#[tokio::test]
async fn kept_keys_carry_a_restart_while_the_issuer_is_down() {
    let pg = database(ORDERS).await;
    let signer = Signer::ed25519();
    let private = signer.jwk_with(&json!({"kid": "k", "d": "planted-private-half"}));
    let issuer = Issuer::start(Answering::Keys(vec![private])).await;
    let data = directory();
    let mut relay = trusting(&pg, &issuer, &data).start().await;
    let token = signer.sign(Some("k"), &claims("1"));
    assert_eq!(verdict(&relay, &token).await, "accepted");
    let file = data.path().join("jwks.json");
    let mode = |file: &Path| std::fs::metadata(file).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&file), 0o600);
    assert!(!std::fs::read_to_string(&file).unwrap().contains("planted"));

    issuer.set(Answering::HangUp);
    relay.restart().await;
    let mut device = listening(&relay, "1", &token).await;
    hears(&pg, &mut device, "1", 1).await;
    until_failing(&relay, true).await;
    assert_eq!(verdict(&relay, &token).await, "accepted");
    drop(device);

    // A file that others may have written is none.
    relay.terminate().await;
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o666)).unwrap();
    relay.start_again().await;
    assert_eq!(verdict(&relay, &token).await, "keys_unavailable");
    relay.wait_line("others than this user").await;
}

#[tokio::test]
async fn keys_come_over_tls_from_whom_the_authority_vouches_for() {
    let pg = database(ORDERS).await;
    let signer = Signer::p256();
    let directory = directory();
    let issuer = Issuer::start_tls(Answering::Keys(vec![signer.jwk("k")]), directory.path()).await;
    let token = signer.sign(Some("k"), &claims("1"));
    let ca = issuer.ca().to_str().unwrap();

    let data = self::directory();
    let relay = trusting(&pg, &issuer, &data).env("ROWCAST_JWKS_CA_FILE", ca).start().await;
    let mut device = listening(&relay, "1", &token).await;
    hears(&pg, &mut device, "1", 1).await;
    drop((device, relay));

    // Down to http, and to someone else's address.
    let plain = Issuer::start(Answering::Keys(vec![signer.jwk("k")])).await;
    for (location, followed) in [(plain.url(), false), (format!("{}?moved", issuer.url()), true)] {
        issuer.set(Answering::Raw(302, format!("location: {location}\r\n"), Vec::new()));
        let data = self::directory();
        let relay = trusting(&pg, &issuer, &data).env("ROWCAST_JWKS_CA_FILE", ca).start_listening().await;
        relay.wait_line(WARNING).await;
        relay.wait_line(if followed { "redirects too often" } else { "an address without TLS" }).await;
        assert_eq!(verdict(&relay, &token).await, "keys_unavailable");
    }
    assert_eq!(plain.fetches(), 0);

    // Without the file the system's authorities count, and none of them knows this one.
    let known = issuer.fetches();
    let (own, data) = (self::directory(), self::directory());
    let other = Issuer::start_tls(Answering::HangUp, own.path()).await;
    let relay = trusting(&pg, &issuer, &data)
        .env("ROWCAST_JWKS_CA_FILE", other.ca().to_str().unwrap())
        .start_listening()
        .await;
    relay.wait_line(WARNING).await;
    relay.wait_line("certificate").await;
    assert_eq!(verdict(&relay, &token).await, "keys_unavailable");
    assert_eq!(issuer.fetches(), known);
}
