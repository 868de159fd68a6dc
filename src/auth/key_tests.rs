//! Public keys and key sets through the verifier, with what RFC 8725 warns of.
#![allow(clippy::unwrap_used)]

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use rcgen::{KeyPair, PKCS_ECDSA_P384_SHA384};
use serde_json::{Value, json};

use super::jwk::{JwkSet, MAX_KEYS};
use super::test_signer::{Signer, base64url};
use super::*;

const SECRET: &str = "0123456789abcdef0123456789abcdef";
const NOW: i64 = 1_800_000_000;

fn fixture(name: &str) -> String {
    let path = format!("{}/tests/fixtures/keys/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(path).unwrap()
}

fn config(keys: &[&str]) -> AuthConfig {
    AuthConfig {
        secret: None,
        public_keys: keys.iter().map(|text| PublicKeySource::parse(text)).collect(),
        jwks: None,
        issuers: Vec::new(),
        audiences: Vec::new(),
        leeway: Duration::from_secs(30),
        require_expiry: true,
        grants: vec![GrantPattern::parse("user:{sub}:*").unwrap()],
        admin: None,
    }
}

fn verifier(keys: &[&str]) -> Verifier {
    Verifier::new(config(keys)).unwrap()
}

fn claims() -> Value {
    json!({"sub": "42", "exp": NOW + 60})
}

fn set(keys: &[Value]) -> JwkSet {
    JwkSet::parse(json!({ "keys": keys }).to_string().as_bytes()).unwrap()
}

fn opens(set: &JwkSet, token: &str) -> Result<(), AuthError> {
    set.keys.open_by_kid(&Sealed::read(token)?).map(drop)
}

/// A token of these two parts, signed by nobody.
fn forged(header: &Value, claims: &Value, signature: &[u8]) -> String {
    let part = |value: &Value| base64url(value.to_string().as_bytes());
    format!("{}.{}.{}", part(header), part(claims), base64url(signature))
}

#[test]
fn each_kind_of_public_key_checks_its_tokens() {
    let signers = Signer::all();
    for signer in &signers {
        let verifier = verifier(&[&signer.public_pem]);
        let token = signer.sign(Some("any name"), &claims());
        assert_eq!(verifier.verify(&token, NOW).unwrap().user.subject, "42", "{:?}", signer.algorithm);
        assert_eq!(verifier.verify(&token, NOW + 90), Err(AuthError::Expired));
        for other in signers.iter().filter(|other| other.algorithm != signer.algorithm) {
            assert_eq!(verifier.verify(&other.sign(None, &claims()), NOW), Err(AuthError::Algorithm));
        }
    }
    // All of them at once, two of one kind, and a secret.
    let second = Signer::p256();
    let together: String = signers.iter().map(|signer| signer.public_pem.as_str()).collect();
    let both = config(&[&together, &second.public_pem]);
    let verifier = Verifier::new(AuthConfig { secret: Some(Secret::new(SECRET)), ..both }).unwrap();
    for signer in signers.iter().chain([&second]) {
        assert!(verifier.verify(&signer.sign(None, &claims()), NOW).is_ok(), "{:?}", signer.algorithm);
    }
    let stranger = Signer::p256().sign(None, &claims());
    assert_eq!(verifier.verify(&stranger, NOW), Err(AuthError::Signature));
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    let token = encode(&Header::new(Algorithm::HS256), &claims(), &key).unwrap();
    assert!(verifier.verify(&token, NOW).is_ok());
}

#[test]
fn keys_stand_in_files_and_in_environment_variables() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("key.pem");
    let signer = Signer::ed25519();
    std::fs::write(&path, format!("made in spring\n{}", signer.public_pem)).unwrap();
    let in_one_line = signer.public_pem.trim().replace('\n', "\\n");
    for text in [path.to_str().unwrap(), &in_one_line, &signer.public_pem.replace('\n', "\r\n")] {
        assert!(verifier(&[text]).verify(&signer.sign(None, &claims()), NOW).is_ok(), "{text}");
    }
}

#[test]
fn what_is_no_good_public_key_says_what_to_do() {
    let p384 = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
    let pem = |label: &str, bytes: &[u8]| {
        let text = base64url(bytes).replace('-', "+").replace('_', "/");
        let padding = "=".repeat((4 - text.len() % 4) % 4);
        format!("-----BEGIN {label}-----\n{text}{padding}\n-----END {label}-----\n")
    };
    // Ed25519 of 31 bytes, P-256 with a point that is none, and something after the key.
    let short = [&[0x30, 41, 0x30, 5, 6, 3, 43, 101, 112, 3, 32, 0][..], &[7; 31]].concat();
    let head = [
        0x30, 0x59, 0x30, 0x13, 6, 7, 42, 134, 72, 206, 61, 2, 1, 6, 8, 42, 134, 72, 206, 61, 3, 1, 7, 3, 66,
        0, 4,
    ];
    let nowhere = [&head[..], &[7; 64]].concat();
    let longer = [&nowhere[..], &[0]].concat();
    let cases = [
        (fixture("throw-away-rsa-private.pem"), "private key"),
        (p384.serialize_pem(), "private key"),
        (fixture("certificate.pem"), "openssl x509"),
        (fixture("weak-rsa-public.pem"), "1024 bits"),
        (fixture("secp256k1-public.pem"), "P-256"),
        (p384.public_key_pem(), "P-256"),
        (pem("PUBLIC KEY", &short), "no point"),
        (pem("PUBLIC KEY", &nowhere), "no point"),
        (pem("PUBLIC KEY", &longer), "not a well-formed public key"),
        (pem("PUBLIC KEY", b"hunter2"), "not a well-formed public key"),
        (pem("RSA PUBLIC KEY", b"hunter2"), "-pubout"),
        ("-----BEGIN PUBLIC KEY-----\nhunter2!\n-----END PUBLIC KEY-----".to_owned(), "not well-formed PEM"),
        ("-----BEGIN PUBLIC KEY-----\nhunter2".to_owned(), "not well-formed PEM"),
        ("/nonexistent/key.pem".to_owned(), "/nonexistent/key.pem cannot be read"),
        ("/dev/zero".to_owned(), "larger than"),
    ];
    for (text, expected) in cases {
        let error = Verifier::new(config(&[&text])).unwrap_err().to_string();
        assert!(error.contains(expected) && !error.contains("hunter2"), "{expected}: {error}");
        assert!(!format!("{:?}", config(&[&text])).contains("BEGIN"));
    }
}

#[test]
fn a_public_key_is_never_a_secret() {
    for signer in Signer::all() {
        let verifier = verifier(&[&signer.public_pem]);
        for secret in [signer.public_pem.as_bytes(), signer.public_pem.trim().as_bytes(), b""] {
            let key = EncodingKey::from_secret(secret);
            let token = encode(&Header::new(Algorithm::HS256), &claims(), &key).unwrap();
            assert_eq!(verifier.verify(&token, NOW), Err(AuthError::Algorithm), "{:?}", signer.algorithm);
        }
        // Nor does anyone make it one by a mistake in the configuration.
        let config = AuthConfig { secret: Some(Secret::new(signer.public_pem.clone())), ..config(&[]) };
        assert!(matches!(Verifier::new(config), Err(AuthConfigError::SecretIsKey)));
    }
}

#[test]
fn no_token_chooses_how_it_is_checked() {
    let [rsa, p256, ed25519] = Signer::all();
    let pems = [&rsa, &p256, &ed25519].map(|signer| signer.public_pem.as_str());
    let verifier = verifier(&pems);
    let check = |token: &str| verifier.verify(token, NOW).unwrap_err().code();
    for algorithm in ["none", "None", "NONE", "nOnE", "", "RS1", "HS256", "ES256K", "ES512", "dir"] {
        for signature in [&b""[..], &[0; 64]] {
            let token = forged(&json!({"alg": algorithm, "typ": "JWT"}), &claims(), signature);
            assert_eq!(check(&token), "token_invalid", "{algorithm}");
        }
    }
    // The right key under a wrong name of its algorithm.
    for (signer, algorithm) in [
        (&rsa, "RS384"),
        (&rsa, "RS512"),
        (&rsa, "PS256"),
        (&rsa, "ES256"),
        (&p256, "ES384"),
        (&p256, "EdDSA"),
        (&ed25519, "ES256"),
        (&ed25519, "RS256"),
    ] {
        let token = signer.sign(None, &claims());
        let (_, rest) = token.split_once('.').unwrap();
        let header = base64url(json!({ "alg": algorithm }).to_string().as_bytes());
        assert_eq!(check(&format!("{header}.{rest}")), "token_invalid", "{algorithm}");
    }
    // The key that a token brings with it.
    let stranger = Signer::p256();
    let jwk = serde_json::from_value(stranger.jwk("brought")).unwrap();
    let header = Header {
        jwk: Some(jwk),
        jku: Some("http://127.0.0.1:1/jwks".to_owned()),
        x5u: Some("http://127.0.0.1:1/cert".to_owned()),
        kid: Some("brought".to_owned()),
        ..Header::new(Algorithm::ES256)
    };
    assert_eq!(check(&stranger.sign_with(header.clone(), &claims())), "token_invalid");
    // Of a good token they are simply not looked at.
    assert!(verifier.verify(&p256.sign_with(header, &claims()), NOW).is_ok());
}

#[test]
fn only_the_whole_signature_in_its_one_form_counts() {
    for signer in Signer::all() {
        let verifier = verifier(&[&signer.public_pem]);
        let good = signer.sign(None, &claims());
        let (message, signature) = good.rsplit_once('.').unwrap();
        let mut flipped = signature.to_owned();
        let first = if flipped.starts_with('A') { "B" } else { "A" };
        flipped.replace_range(..1, first);
        let long = format!("{signature}AAAA");
        let variants = ["", &signature[..signature.len() - 4], &signature[..4], &flipped, &long];
        let spellings = [format!("{signature}="), format!("{signature}\n"), format!("{signature} ")];
        for bad in variants.into_iter().chain(spellings.iter().map(String::as_str)) {
            // Base64 has its own say about what was cut.
            let error = verifier.verify(&format!("{message}.{bad}"), NOW).unwrap_err();
            assert_eq!(error.code(), "token_invalid", "{:?}: {bad}", signer.algorithm);
        }
        // Other claims under the same signature.
        let (header, _) = message.split_once('.').unwrap();
        let other = base64url(json!({"sub": "1", "exp": NOW + 60}).to_string().as_bytes());
        let token = format!("{header}.{other}.{signature}");
        assert_eq!(verifier.verify(&token, NOW), Err(AuthError::Signature));
    }
}

#[test]
fn an_es256_signature_is_two_numbers_and_not_der() {
    let signer = Signer::p256();
    let verifier = verifier(&[&signer.public_pem]);
    let header = json!({"alg": "ES256"});
    // r = s = 0 verifies anything where nobody looks (CVE-2022-21449).
    for signature in [vec![0; 64], vec![0xff; 64], [vec![0; 63], vec![1]].concat()] {
        let token = forged(&header, &claims(), &signature);
        assert_eq!(verifier.verify(&token, NOW), Err(AuthError::Signature));
    }
    // The same numbers as X.509 has them.
    let good = signer.sign(None, &claims());
    let (message, signature) = good.rsplit_once('.').unwrap();
    let number = |text: &[u8]| {
        let positive = if text[0] & 0x80 == 0 { text.to_vec() } else { [&[0], text].concat() };
        [&[2, positive.len() as u8], &positive[..]].concat()
    };
    let raw = decode_base64url(signature);
    let body = [number(&raw[..32]), number(&raw[32..])].concat();
    let der = [&[0x30, body.len() as u8], &body[..]].concat();
    let token = format!("{message}.{}", base64url(&der));
    assert_eq!(verifier.verify(&token, NOW), Err(AuthError::Signature));
}

fn decode_base64url(text: &str) -> Vec<u8> {
    let decoded = jsonwebtoken::DecodingKey::from_ed_components(text).unwrap();
    decoded.try_get_as_bytes().unwrap().to_vec()
}

#[test]
fn a_set_is_read_by_kid_and_algorithm() {
    let [rsa, p256, ed25519] = Signer::all();
    let second = Signer::p256();
    let keys = [rsa.jwk("r"), p256.jwk("e1"), second.jwk("e2"), ed25519.jwk("d")];
    let set = set(&keys);
    assert_eq!((set.keys.len(), set.ignored), (4, 0));
    for (signer, kid) in [(&rsa, "r"), (&p256, "e1"), (&second, "e2"), (&ed25519, "d")] {
        assert_eq!(opens(&set, &signer.sign(Some(kid), &claims())), Ok(()), "{kid}");
        assert_eq!(opens(&set, &signer.sign(None, &claims())), Ok(()), "{kid} without its name");
    }
    assert_eq!(opens(&set, &p256.sign(Some("e2"), &claims())), Err(AuthError::Signature));
    assert_eq!(opens(&set, &p256.sign(Some("r"), &claims())), Err(AuthError::Algorithm));
    assert_eq!(opens(&set, &p256.sign(Some("E1"), &claims())), Err(AuthError::Algorithm));
    assert_eq!(opens(&set, &Signer::p256().sign(None, &claims())), Err(AuthError::Signature));
    for kid in ["", "../../etc/passwd", "http://127.0.0.1/", "e1\0", "e1' OR '1'='1", "é", &"x".repeat(4000)]
    {
        assert!(!set.keys.has_kid(kid), "{kid}");
        assert_eq!(opens(&set, &p256.sign(Some(kid), &claims())), Err(AuthError::Algorithm), "{kid}");
    }
    // What is kept on disk is the same set.
    let again = JwkSet::parse(set.to_json().as_bytes()).unwrap();
    assert_eq!((again.keys.len(), again.to_json()), (4, set.to_json()));
}

#[test]
fn keys_that_are_not_for_this_are_ignored_one_by_one() {
    let [rsa, p256, ed25519] = Signer::all();
    let members = |members: Value| p256.jwk_with(&members);
    let nothing = "A".repeat(43);
    let ignored = [
        members(json!({"use": "enc"})),
        members(json!({"use": ""})),
        members(json!({"key_ops": ["sign"]})),
        members(json!({"key_ops": []})),
        members(json!({"alg": "ES384"})),
        members(json!({"alg": "HS256"})),
        members(json!({"alg": "ECDH-ES"})),
        members(json!({"alg": 7})),
        members(json!({"kty": "RSA"})),
        members(json!({"kty": "OKP"})),
        members(json!({"kty": "ec"})),
        members(json!({"crv": "P-384"})),
        members(json!({"crv": "secp256k1"})),
        members(json!({"crv": "Ed25519"})),
        members(json!({"kid": 7})),
        members(json!({"kid": "x".repeat(513)})),
        members(json!({"x": nothing, "y": nothing})),
        members(json!({"x": "AAAA"})),
        members(json!({"y": "!".repeat(43)})),
        members(json!({"y": null})),
        // 31 and 33 bytes make 64 as well.
        members(json!({"x": "A".repeat(42), "y": "A".repeat(44)})),
        rsa.jwk_with(&json!({"alg": "PS256"})),
        rsa.jwk_with(&json!({"alg": "RS512"})),
        rsa.jwk_with(&json!({"use": "enc"})),
        rsa.jwk_with(&json!({"e": "AQ"})),
        rsa.jwk_with(&json!({"e": ""})),
        rsa.jwk_with(&json!({"e": "AQAA"})),
        rsa.jwk_with(&json!({"e": "AQAAAAAB"})),
        rsa.jwk_with(&json!({"n": base64url(&[0xff; 255])})),
        rsa.jwk_with(&json!({"n": base64url(&[&[0; 200][..], &[0xff; 100]].concat())})),
        rsa.jwk_with(&json!({"n": base64url(&[0xff; 513])})),
        rsa.jwk_with(&json!({"n": ""})),
        ed25519.jwk_with(&json!({"crv": "X25519"})),
        ed25519.jwk_with(&json!({"crv": "Ed448"})),
        ed25519.jwk_with(&json!({"x": "AAAA"})),
        ed25519.jwk_with(&json!({"x": ""})),
        ed25519.jwk_with(&json!({"x": "A".repeat(86)})),
        json!({"kty": "oct", "k": base64url(SECRET.as_bytes()), "alg": "HS256", "kid": "s"}),
        json!({"kty": "AKP", "alg": "ML-DSA-44", "pub": "AAAA"}),
        json!({}),
        json!(null),
        json!("key"),
        json!([]),
        json!(7),
    ];
    for key in &ignored {
        let set = set(&[key.clone(), p256.jwk("good")]);
        assert_eq!((set.keys.len(), set.ignored), (1, 1), "{key}");
        assert_eq!(opens(&set, &p256.sign(Some("good"), &claims())), Ok(()));
    }
    // What issuers also write.
    for key in [
        members(json!({"x5c": ["AAAA"], "x5t": "AAAA", "issuer": "x", "key_ops": ["verify"]})),
        ed25519.jwk_with(&json!({"alg": "Ed25519"})),
        p256.jwk.clone(),
    ] {
        assert_eq!(set(std::slice::from_ref(&key)).ignored, 0, "{key}");
    }
}

#[test]
fn a_symmetric_key_in_a_set_signs_nothing() {
    let p256 = Signer::p256();
    let oct = json!({"kty": "oct", "k": base64url(SECRET.as_bytes()), "kid": "s"});
    let set = set(&[oct, p256.jwk("e")]);
    for (secret, kid) in [(SECRET, "s"), (SECRET, "e"), (&p256.public_pem, "e")] {
        let header = Header { kid: Some(kid.to_owned()), ..Header::new(Algorithm::HS256) };
        let token = encode(&header, &claims(), &EncodingKey::from_secret(secret.as_bytes())).unwrap();
        assert_eq!(opens(&set, &token), Err(AuthError::Algorithm), "{kid}");
    }
}

#[test]
fn private_members_are_not_remembered() {
    let set = set(&[Signer::p256().jwk_with(&json!({"d": "hunter2", "kid": "e"}))]);
    assert_eq!(set.keys.len(), 1);
    assert!(!set.to_json().contains("hunter2") && !format!("{set:?}").contains("hunter2"));
}

#[test]
fn a_set_is_bounded_and_a_document_of_another_kind_is_none() {
    let keys: Vec<Value> = (0..MAX_KEYS + 3).map(|kid| Signer::p256().jwk(&kid.to_string())).collect();
    let set = set(&keys);
    assert_eq!((set.keys.len(), set.ignored), (MAX_KEYS, 3));
    for bad in ["", "null", "[]", "{}", r#"{"keys":{}}"#, r#"{"keys":[}"#, "<html>", r#"{"keys":[]} x"#] {
        assert!(JwkSet::parse(bad.as_bytes()).is_err(), "{bad}");
    }
    assert!(JwkSet::parse(b"{\"keys\":[\"\xff\"]}").is_err());
}

#[test]
fn claims_are_checked_alike_whatever_signed_them() {
    let signer = Signer::ed25519();
    let pem = signer.public_pem.as_str();
    let config = || AuthConfig { issuers: vec!["i".into()], audiences: vec!["a".into()], ..config(&[pem]) };
    let verifier = Verifier::new(config()).unwrap();
    let check = |more: Value| {
        let mut claims = json!({"sub": "42", "exp": NOW + 60, "iss": "i", "aud": "a"});
        claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        verifier.verify(&signer.sign(None, &claims), NOW).map(drop)
    };
    assert_eq!(check(json!({})), Ok(()));
    assert_eq!(check(json!({"aud": ["x", "a"]})), Ok(()));
    assert_eq!(check(json!({"exp": NOW - 29})), Ok(()));
    assert_eq!(check(json!({"nbf": NOW + 30})), Ok(()));
    for (more, expected) in [
        (json!({"exp": NOW - 30}), AuthError::Expired),
        (json!({"exp": null}), AuthError::Time("exp")),
        (json!({"nbf": NOW + 31}), AuthError::NotYetValid),
        (json!({"iss": "j"}), AuthError::Issuer),
        (json!({"iss": null}), AuthError::Issuer),
        (json!({"iss": ["i"]}), AuthError::Issuer),
        (json!({"aud": "b"}), AuthError::Audience),
        (json!({"aud": []}), AuthError::Audience),
        (json!({"aud": {"a": "a"}}), AuthError::Audience),
        (json!({"aud": [["a"]]}), AuthError::Audience),
        (json!({"sub": ""}), AuthError::Subject),
    ] {
        assert_eq!(check(more.clone()), Err(expected), "{more}");
    }
}

#[test]
fn arrays_of_claims_grant_each_element_wherever_they_stand() {
    let signer = Signer::p256();
    let patterns =
        ["user:{sub}:*", "team:{app.teams}:*", "org:{https://e.x/orgs}:notes", "site:{a.b.c}|{sub}:*"];
    let grants = patterns.map(|text| GrantPattern::parse(text).unwrap()).to_vec();
    let verifier = Verifier::new(AuthConfig { grants, ..config(&[&signer.public_pem]) }).unwrap();
    let granted = |more: Value| -> Vec<String> {
        let mut claims = claims();
        claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let identity = verifier.verify(&signer.sign(None, &claims), NOW).unwrap();
        identity.grants.patterns().iter().map(ToString::to_string).collect()
    };
    assert_eq!(granted(json!({})), ["user:42:*"]);
    assert_eq!(
        granted(
            json!({"app": {"teams": [9007199254740993_i64, "b", "b", null, true, 1.5, "", {}, [1], "*", "x:y"]}})
        ),
        ["team:%2A:*", "team:9007199254740993:*", "team:b:*", "team:x%3Ay:*", "user:42:*"]
    );
    assert_eq!(granted(json!({"https://e.x/orgs": ["o"]})), ["org:o:notes", "user:42:*"]);
    assert_eq!(granted(json!({"a": {"b": {"c": ["s", "t"]}}})), ["site:s|42:*", "site:t|42:*", "user:42:*"]);
    for nothing in [
        json!({"app": []}),
        json!({"app": {"teams": []}}),
        json!({"app": {"teams": {"id": 1}}}),
        json!({"app": [{"teams": [1]}]}),
        json!({"app": "teams"}),
        json!({"app": {"teams": [[1], {"id": 2}, null]}}),
        json!({"a": {"b": ["c"]}}),
    ] {
        assert_eq!(granted(nothing.clone()), ["user:42:*"], "{nothing}");
    }
}
