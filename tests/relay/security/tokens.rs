//! Tokens that are made to be read otherwise than they were meant, at every entrance of a running relay.
//!
//! What a verifier does with each algorithm and key is proved beside it (`auth::key_tests`); here the whole
//! way counts: headers, sockets, sessions' timers, the issuer's endpoint and the relay's log.

use jsonwebtoken::{Algorithm, EncodingKey, crypto};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::ORDERS;
use crate::support::device::{Device, Incoming};
use crate::support::issuer::{Answering, Issuer, Signer};
use crate::support::relay::{Relay, Setup};
use crate::support::scene::{database, scene_with};
use crate::support::token;

const FAR_FUTURE: i64 = 4_102_444_800;
/// Needs a token, and nothing else.
const ENTRANCE: &str = "/api/realtime/devices";

fn base64url(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits =
            chunk.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        text.extend(
            (0..=chunk.len()).map(|place| char::from(DIGITS[(bits >> (18 - 6 * place)) as usize & 63])),
        );
    }
    text
}

/// Header and payload to the letter, signed by HS256 with any bytes.
fn signed(header: &str, payload: &str, key: &[u8]) -> String {
    let message = format!("{}.{}", base64url(header.as_bytes()), base64url(payload.as_bytes()));
    let signature =
        crypto::sign(message.as_bytes(), &EncodingKey::from_secret(key), Algorithm::HS256).unwrap();
    format!("{message}.{signature}")
}

fn ours(header: &str, payload: &str) -> String {
    signed(header, payload, token::SECRET.as_bytes())
}

fn claims() -> Value {
    json!({"sub": "42", "exp": FAR_FUTURE})
}

/// 200, or the code with which every entrance refuses.
async fn verdict(relay: &Relay, token: &str) -> String {
    let answer = relay.http().with_token(token).get(ENTRANCE).await;
    if answer.status == 200 {
        return "accepted".to_owned();
    }
    assert_eq!(answer.status, 401, "{}", answer.text());
    let code = answer.json()["code"].as_str().unwrap().to_owned();
    assert!(token.len() < 20 || !answer.text().contains(token), "an answer repeats a token");
    let mut device = Device::of(relay, "42", "phone").without_token().try_connect().await.unwrap();
    if !device.try_send(&json!({"type": "auth", "token": token})).await {
        return code;
    }
    loop {
        match device.incoming().await {
            Incoming::Frame(frame) => assert_eq!(frame.kind, "error", "{}", frame.text),
            Incoming::Closed(close) => {
                // A message beyond the bound is not looked at.
                assert!(close.is_some_and(|(number, _)| number == 4401), "{code}");
                return code;
            }
        }
    }
}

#[tokio::test]
async fn no_public_key_is_a_secret_and_no_header_chooses() {
    let signers = Signer::all();
    let together: String = signers.iter().map(|signer| signer.public_pem.as_str()).collect();
    let with_keys = |setup: Setup| setup.env("ROWCAST_JWT_PUBLIC_KEY", &together);
    let (_pg, relay) = scene_with(ORDERS, with_keys).await;
    let payload = claims().to_string();
    let plain = r#"{"alg":"HS256"}"#;
    assert_eq!(verdict(&relay, &ours(plain, &payload)).await, "accepted");
    let mut forged: Vec<String> = Vec::new();
    for signer in &signers {
        assert_eq!(
            verdict(&relay, &signer.sign(None, &claims())).await,
            "accepted",
            "{:?}",
            signer.algorithm
        );
        // The public key in every form in which somebody has it, as if it were the secret.
        let pem = signer.public_pem.clone();
        let body: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
        let der = <rustls::pki_types::SubjectPublicKeyInfoDer<'_> as rustls::pki_types::pem::PemObject>::from_pem_slice(pem.as_bytes()).unwrap();
        let jwk = signer.jwk.to_string();
        let members = signer.jwk.as_object().unwrap().values().filter_map(Value::as_str).map(str::to_owned);
        let texts = [
            pem.clone(),
            pem.trim_end().to_owned(),
            pem.replace('\n', "\r\n"),
            pem.replace('\n', "\\n"),
            body,
            jwk,
        ];
        forged.extend(texts.into_iter().chain(members).map(|key| signed(plain, &payload, key.as_bytes())));
        forged.push(signed(plain, &payload, &der));
    }
    forged.push(signed(plain, &payload, b""));
    forged.push(signed(plain, &payload, &[0; 32]));
    let message =
        |header: &str| format!("{}.{}", base64url(header.as_bytes()), base64url(payload.as_bytes()));
    for algorithm in [
        "none",
        "None",
        "NONE",
        "nOnE",
        "none ",
        "\\u006eone",
        "",
        "null",
        "HS1",
        "dir",
        "RSA-OAEP",
        "A128KW",
    ] {
        let header = format!(r#"{{"alg":"{algorithm}","typ":"JWT"}}"#);
        forged.extend([format!("{}.", message(&header)), message(&header), ours(&header, &payload)]);
    }
    for header in [
        r#"{"alg":null}"#,
        r#"{"alg":["HS256"]}"#,
        r#"{"alg":{"x":"HS256"}}"#,
        r#"{"ALG":"HS256"}"#,
        r#"{}"#,
        "null",
        "[]",
        "",
        r#"{"alg":"HS256","alg":"none"}"#,
        r#"{"alg":"none","alg":"HS256"}"#,
        r#"{"alg":"HS384"}"#,
        r#"{"alg":"HS512"}"#,
        r#"{"alg":"HS256","crit":["exp"]}"#,
        r#"{"alg":"HS256","crit":[],"b64":false}"#,
        r#"{"alg":"HS256","crit":["b64"],"b64":false}"#,
        r#"{"alg":"HS256"} "x""#,
        "{\"alg\":\"HS256\"}\0",
    ] {
        forged.push(ours(header, &payload));
    }
    let good = ours(plain, &payload);
    let (head, signature) = good.rsplit_once('.').unwrap();
    let (header, body) = head.split_once('.').unwrap();
    forged.extend([
        format!("{head}."),
        format!("{good}."),
        format!(".{good}"),
        format!("{good}.{signature}"),
        format!("{header}..{signature}"),
        format!("{header}.{body}..{signature}"),
        // As long as something encrypted has it.
        format!("{header}.{body}.{signature}.{body}.{signature}"),
        format!("{header}=.{body}.{signature}"),
        format!("{header}.{body}.{signature}="),
        format!("{header}.{body}.{}", signature.replace(['-', '_'], "+")) + "+",
        format!("{header}.{body}%2E{signature}"),
        format!("{header}.{body}.{signature}#"),
        format!("\"{good}\""),
        format!("{{\"payload\":\"{body}\",\"protected\":\"{header}\",\"signature\":\"{signature}\"}}"),
        "..".to_owned(),
        ".".to_owned(),
        "x".repeat(7 * 1024),
        "a.".repeat(3_000),
    ]);
    for token in &forged {
        assert_eq!(verdict(&relay, token).await, "token_invalid", "{token:.200}");
    }
    // What asks to be looked up elsewhere is not looked at, in a good token no more than in a forged one.
    let header = r#"{"alg":"HS256","kid":"../../../../dev/null","jku":"http://127.0.0.1:9/","x5u":"file:///etc/passwd","jwk":{"kty":"oct","k":"AAAA"},"x5c":["AAAA"],"zip":"DEF","cty":"JWT"}"#;
    assert_eq!(verdict(&relay, &ours(header, &payload)).await, "accepted");
    assert_eq!(verdict(&relay, &signed(header, &payload, b"")).await, "token_invalid");
    // Bytes that no token has. A socket's message holds them escaped; a header cannot.
    let mut device = Device::of(&relay, "42", "phone").without_token().try_connect().await.unwrap();
    device.send(&json!({"type": "auth", "token": format!("{good}\0")})).await;
    device.expect_error("token_invalid").await;
    // Too long to be looked at.
    let long = ours(plain, &json!({"sub": "42", "exp": FAR_FUTURE, "x": "x".repeat(40_000)}).to_string());
    let answer = relay.http().with_token(&long).get(ENTRANCE).await;
    assert_eq!(
        (answer.status, answer.json()["code"].as_str().unwrap().to_owned()),
        (401, "token_invalid".to_owned())
    );
}

#[tokio::test]
async fn times_and_names_are_what_the_payload_plainly_says() {
    let strict = |setup: Setup| {
        setup
            .env("ROWCAST_JWT_ISSUER", "https://issuer.test")
            .env("ROWCAST_JWT_AUDIENCE", "rowcast,other")
            .env("ROWCAST_JWT_LEEWAY", "30s")
    };
    let (pg, relay) = scene_with(ORDERS, strict).await;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let base = format!(r#""sub":"42","iss":"https://issuer.test","aud":"rowcast","exp":{}"#, now + 600);
    let without = |name: &str| {
        let members = base.split(',').filter(|member| !member.starts_with(&format!("\"{name}\"")));
        members.collect::<Vec<_>>().join(",")
    };
    let replaced = |name: &str, value: &str| format!(r#"{{{},"{name}":{value}}}"#, without(name));
    let huge = "9".repeat(400);
    let cases = [
        (
            "accepted",
            vec![
                format!("{{{base}}}"),
                replaced("exp", &(now - 20).to_string()),
                replaced("exp", &format!("{}.5", now + 600)),
                replaced("exp", "9223372036854775807"),
                replaced("exp", "18446744073709551616"),
                replaced("exp", "1e300"),
                replaced("exp", &huge[..300]),
                replaced("nbf", &(now + 20).to_string()),
                replaced("nbf", "-9223372036854775808"),
                replaced("nbf", "-1e300"),
                replaced("nbf", "0.1"),
                replaced("iat", "1e300"),
                replaced("iat", "-1"),
                replaced("iat", "\"yesterday\""),
                replaced("iat", "9223372036854775807"),
                replaced("aud", r#"["x","rowcast"]"#),
                replaced("aud", r#"["other"]"#),
                replaced("aud", r#"["\u0072owcast"]"#),
                replaced("sub", "42"),
            ],
        ),
        (
            "token_expired",
            vec![
                replaced("exp", &(now - 60).to_string()),
                replaced("exp", "0"),
                replaced("exp", "-1"),
                replaced("exp", "-9223372036854775808"),
                replaced("exp", "-1e300"),
                replaced("exp", "1e-300"),
                replaced("exp", "-0"),
            ],
        ),
        (
            "token_not_yet_valid",
            vec![
                replaced("nbf", &(now + 120).to_string()),
                replaced("nbf", "1e300"),
                replaced("nbf", "9223372036854775807"),
            ],
        ),
        (
            "token_invalid",
            vec![
                format!("{{{}}}", without("exp")),
                replaced("exp", "null"),
                replaced("exp", &format!("\"{}\"", now + 600)),
                replaced("exp", "true"),
                replaced("exp", "[]"),
                replaced("exp", &huge),
                replaced("exp", "1e999999"),
                replaced("nbf", "null"),
                replaced("nbf", "\"0\""),
                replaced("nbf", "-1e999999"),
                format!("{{{}}}", without("aud")),
                replaced("aud", "\"Rowcast\""),
                replaced("aud", "\"rowcast \""),
                replaced("aud", r#""x,rowcast""#),
                replaced("aud", r#"[["rowcast"]]"#),
                replaced("aud", r#"{"rowcast":true}"#),
                replaced("aud", "[]"),
                replaced("aud", "null"),
                replaced("aud", "true"),
                replaced("aud", "\"*\""),
                format!("{{{}}}", without("iss")),
                replaced("iss", "\"https://issuer.test/\""),
                replaced("iss", "\"HTTPS://issuer.test\""),
                replaced("iss", r#"["https://issuer.test"]"#),
                replaced("iss", "null"),
                replaced("iss", "\"https://issuer.test\\u0000\""),
                replaced("iss", "\"\""),
                format!("{{{}}}", without("sub")),
                replaced("sub", "null"),
                replaced("sub", "\"\""),
                replaced("sub", "4.2"),
                replaced("sub", "[\"42\"]"),
                replaced("sub", "true"),
                replaced("sub", &format!("\"{}\"", "x".repeat(257))),
                "null".to_owned(),
                "[]".to_owned(),
                "\"x\"".to_owned(),
                String::new(),
                format!("{{{base}}}x"),
                format!("[{{{base}}}]"),
            ],
        ),
    ];
    for (expected, payloads) in cases {
        for payload in payloads {
            assert_eq!(
                verdict(&relay, &ours(r#"{"alg":"HS256"}"#, &payload)).await,
                expected,
                "{payload:.200}"
            );
        }
    }
    // Which of two counts would depend on who reads them.
    for name in ["sub", "exp", "iss", "aud", "nbf"] {
        let doubled = format!(r#"{{"{name}":0,{base},"nbf":0}}"#);
        assert_eq!(verdict(&relay, &ours(r#"{"alg":"HS256"}"#, &doubled)).await, "token_invalid", "{name}");
    }
    // A session whose token ends beyond all time lives like any other, and a ticket for it does too.
    for exp in ["9223372036854775807", "1e300"] {
        let token = ours(r#"{"alg":"HS256"}"#, &replaced("exp", exp));
        let mut device = Device::of(&relay, "42", "endless").token(&token).connect().await;
        device.subscribe(&["user:42:*"], None).await;
        pg.sql("TRUNCATE orders; INSERT INTO orders VALUES (1, 42)").await;
        assert_eq!(device.change().await.operation, "TRUNCATE");
        let ticket =
            relay.http().with_token(&token).post("/api/realtime/ticket", &json!({})).await.expect_status(200);
        let ticket = ticket.json()["ticket"].as_str().unwrap().to_owned();
        let stream = relay
            .http()
            .request("GET", &format!("/api/realtime/events?device_id=t&ticket={ticket}"))
            .open()
            .await;
        assert_eq!(stream.status, 200);
    }
}

#[tokio::test]
async fn a_key_is_looked_up_by_comparing_its_name() {
    let pg = database(ORDERS).await;
    let (one, other) = (Signer::p256(), Signer::p256());
    let issuer = Issuer::start(Answering::Keys(vec![one.jwk("one"), other.jwk("other")])).await;
    let data = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let relay = Relay::on(&pg)
        .env("ROWCAST_JWT_SECRET", "")
        .env("ROWCAST_JWKS_URL", &issuer.url())
        .env("ROWCAST_DATA_DIR", data.path().to_str().unwrap())
        .env("ROWCAST_LOG_LEVEL", "trace")
        .env("NO_PROXY", "127.0.0.1")
        .start()
        .await;
    // Without a name each key is tried; with one, that key alone.
    assert_eq!(verdict(&relay, &one.sign(None, &claims())).await, "accepted");
    assert_eq!(verdict(&relay, &one.sign(Some("one"), &claims())).await, "accepted");
    assert_eq!(verdict(&relay, &one.sign(Some("other"), &claims())).await, "token_invalid");
    let long = "k".repeat(4_000);
    let names = [
        "",
        "ONE",
        "one ",
        "one\0",
        "one\u{0}x",
        "o\u{200b}ne",
        "../one",
        "/etc/passwd",
        "file:///dev/null",
        "' OR '1'='1",
        "one' UNION SELECT 'AAAA",
        "one|whoami",
        "$(id)",
        "http://127.0.0.1:9/",
        "%6fne",
        "one\r\nX-Planted: 1",
        "\u{1b}[2J",
        "{\"a\":1}",
        &long,
    ];
    for name in names {
        assert_eq!(verdict(&relay, &one.sign(Some(name), &claims())).await, "token_invalid", "{name:.50}");
    }
    // One fetch at the start, and at most one for all of these; none says anything of a token.
    let requests = issuer.requests();
    assert!(requests.len() <= 2, "{requests:?}");
    assert!(
        requests
            .iter()
            .all(|request| request.starts_with("GET /jwks HTTP/1.1\r\n") && !request.contains("X-Planted")),
        "{requests:?}"
    );
    for text in ["whoami", "X-Planted", "eyJ", "UNION SELECT", "kkkkkkkk"] {
        assert_eq!(relay.count_lines(text), 0, "{text}");
    }
}
