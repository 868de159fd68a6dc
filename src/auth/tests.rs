//! Whole tokens through the verifier.
#![allow(clippy::unwrap_used)]

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};

use super::*;

const SECRET: &str = "0123456789abcdef0123456789abcdef";
const NOW: i64 = 1_800_000_000;

fn config() -> AuthConfig {
    AuthConfig {
        secret: Some(Secret::new(SECRET)),
        public_keys: Vec::new(),
        jwks: None,
        issuers: Vec::new(),
        audiences: Vec::new(),
        leeway: Duration::from_secs(30),
        require_expiry: true,
        grants: ["user:{sub}:*", "global:*"].map(|text| GrantPattern::parse(text).unwrap()).to_vec(),
        admin: None,
    }
}

fn sign(header: &Header, secret: &str, claims: &str) -> String {
    let claims: ExtraClaims = serde_json::from_str(claims).unwrap();
    encode(header, &claims, &EncodingKey::from_secret(secret.as_bytes())).unwrap()
}

fn token(claims: &str) -> String {
    sign(&Header::new(Algorithm::HS256), SECRET, claims)
}

fn verify(config: AuthConfig, claims: &str) -> Result<Identity, AuthError> {
    Verifier::new(config).unwrap().verify(&token(claims), NOW)
}

#[test]
fn a_good_token_names_its_user_and_grants() {
    let identity = verify(config(), r#"{"sub":"42","exp":1800000060,"iat":1799999990}"#).unwrap();
    assert_eq!(identity.user, UserId { issuer: None, subject: "42".to_owned() });
    let grants: Vec<String> = identity.grants.patterns().iter().map(Pattern::to_string).collect();
    assert_eq!(grants, ["global:*", "user:42:*"]);
    assert_eq!((identity.expires_at, identity.issued_at), (Some(1_800_000_090), Some(1_799_999_990)));
    assert!(!identity.admin);
}

#[test]
fn claims_decide() {
    let cases: &[(&str, Result<&str, AuthError>)] = &[
        (r#"{"sub":42,"exp":1800000001}"#, Ok("42")),
        (r#"{"sub":9007199254740993,"exp":1800000001}"#, Ok("9007199254740993")),
        (r#"{"sub":"42","exp":1799999971}"#, Ok("42")),
        (r#"{"sub":"42","exp":1799999970}"#, Err(AuthError::Expired)),
        (r#"{"sub":"42","exp":-1}"#, Err(AuthError::Expired)),
        (r#"{"sub":"42","exp":9223372036854775807}"#, Ok("42")),
        (r#"{"sub":"42","exp":"1800000001"}"#, Err(AuthError::Time("exp"))),
        (r#"{"sub":"42","exp":null}"#, Err(AuthError::Time("exp"))),
        (r#"{"sub":"42"}"#, Err(AuthError::NoExpiry)),
        (r#"{"sub":"42","exp":1800000001,"nbf":1800000030}"#, Ok("42")),
        (r#"{"sub":"42","exp":1800000001,"nbf":1800000031}"#, Err(AuthError::NotYetValid)),
        (r#"{"sub":"42","exp":1800000001,"nbf":"x"}"#, Err(AuthError::Time("nbf"))),
        (r#"{"exp":1800000001}"#, Err(AuthError::Subject)),
        (r#"{"sub":"","exp":1800000001}"#, Err(AuthError::Subject)),
        (r#"{"sub":null,"exp":1800000001}"#, Err(AuthError::Subject)),
        (r#"{"sub":["42"],"exp":1800000001}"#, Err(AuthError::Malformed)),
        (r#"{"sub":4.2,"exp":1800000001}"#, Err(AuthError::Subject)),
        (r#"{"sub":true,"exp":1800000001}"#, Err(AuthError::Subject)),
    ];
    for (claims, expected) in cases {
        let found = verify(config(), claims).map(|identity| identity.user.subject);
        assert_eq!(found.as_deref(), expected.as_deref(), "{claims}");
    }
}

#[test]
fn expiry_is_optional_only_if_configured() {
    let identity = verify(AuthConfig { require_expiry: false, ..config() }, r#"{"sub":"42"}"#).unwrap();
    assert_eq!(identity.expires_at, None);
}

#[test]
fn issuer_and_audience_are_checked_if_configured() {
    let config = || AuthConfig { issuers: vec!["a".into()], audiences: vec!["x".into()], ..config() };
    let check = |rest: &str| verify(config(), &format!(r#"{{"sub":"1","exp":1800000001{rest}}}"#));
    let identity = check(r#","iss":"a","aud":"x""#).unwrap();
    assert_eq!(identity.user.issuer.as_deref(), Some("a"));
    assert!(check(r#","iss":"a","aud":["y","x"]"#).is_ok());
    assert_eq!(check(r#","iss":"b","aud":"x""#), Err(AuthError::Issuer));
    assert_eq!(check(r#","aud":"x""#), Err(AuthError::Issuer));
    assert_eq!(check(r#","iss":["a"],"aud":"x""#), Err(AuthError::Issuer));
    assert_eq!(check(r#","iss":"a""#), Err(AuthError::Audience));
    assert_eq!(check(r#","iss":"a","aud":["y"]"#), Err(AuthError::Audience));
}

#[test]
fn users_of_several_issuers_are_kept_apart() {
    let issuers = || vec!["a".to_owned(), "b".to_owned()];
    let refused = Verifier::new(AuthConfig { issuers: issuers(), ..config() }).unwrap_err();
    assert!(matches!(refused, AuthConfigError::IssuerNotInPattern { pattern } if pattern == "user:{sub}:*"));
    let grants = ["user:{iss}|{sub}:*", "global:*"].map(|text| GrantPattern::parse(text).unwrap()).to_vec();
    let config = AuthConfig { issuers: issuers(), grants, ..config() };
    let identity = verify(config, r#"{"sub":"42","iss":"b","exp":1800000001}"#).unwrap();
    assert!(identity.grants.covers(&Pattern::parse("user:b|42:orders").unwrap()));
    assert!(!identity.grants.covers(&Pattern::parse("user:a|42:orders").unwrap()));
}

#[test]
fn only_the_configured_claim_makes_an_admin() {
    let admin = AdminClaim::parse("app_metadata.role=admin");
    let config = || AuthConfig { admin: admin.clone(), ..config() };
    let is_admin =
        |rest: &str| verify(config(), &format!(r#"{{"sub":"1","exp":1800000001{rest}}}"#)).unwrap().admin;
    assert!(is_admin(r#","app_metadata":{"role":"admin"}"#));
    assert!(is_admin(r#","app_metadata":{"role":["user","admin"]}"#));
    assert!(!is_admin(r#","role":"admin""#));
    assert!(!is_admin(""));
    for bad in ["", "role", "=admin", "role="] {
        assert_eq!(AdminClaim::parse(bad), None, "{bad}");
    }
}

#[test]
fn only_our_signature_under_our_algorithm_counts() {
    let verifier = Verifier::new(config()).unwrap();
    let claims = r#"{"sub":"42","exp":1800000001}"#;
    let good = token(claims);
    let check = |token: &str| verifier.verify(token, NOW).unwrap_err();
    let other = sign(&Header::new(Algorithm::HS256), "another secret that is long enough to be", claims);
    assert_eq!(check(&other), AuthError::Signature);
    for algorithm in [Algorithm::HS384, Algorithm::HS512] {
        assert_eq!(check(&sign(&Header::new(algorithm), SECRET, claims)), AuthError::Algorithm);
    }
    let crit = Header { crit: Some(vec!["b64".to_owned()]), ..Header::new(Algorithm::HS256) };
    assert_eq!(check(&sign(&crit, SECRET, claims)), AuthError::Malformed);
    let (_, rest) = good.split_once('.').unwrap();
    // {"alg":"none"} and {"alg":"RS256"}
    assert_eq!(check(&format!("eyJhbGciOiJub25lIn0.{rest}")), AuthError::Malformed);
    assert_eq!(check(&format!("eyJhbGciOiJSUzI1NiJ9.{rest}")), AuthError::Algorithm);
    let (unsigned, _) = good.rsplit_once('.').unwrap();
    assert_eq!(check(&format!("{unsigned}.")), AuthError::Signature);
    for bad in ["a", "a.b", "a.b.c", "..", "....", "é.é.é", unsigned, &format!("{good}.x")] {
        assert_eq!(check(bad), AuthError::Malformed, "{bad}");
    }
    assert_eq!(check(""), AuthError::Missing);
    assert_eq!(check(&"a".repeat(MAX_TOKEN_BYTES + 1)), AuthError::TooLong);
}

#[test]
fn a_short_secret_is_a_configuration_error() {
    let refused = |secret: Option<Secret>| Verifier::new(AuthConfig { secret, ..config() }).unwrap_err();
    let short = refused(Some(Secret::new("x".repeat(31))));
    assert!(matches!(short, AuthConfigError::ShortSecret { length: 31 }));
    assert!(matches!(refused(None), AuthConfigError::NoKey));
}

#[test]
fn nothing_secret_is_printed() {
    let verifier = Verifier::new(config()).unwrap();
    let text = format!("{verifier:?} {:?}", config());
    assert!(!text.contains(SECRET), "{text}");
    assert!(text.contains("[redacted]"), "{text}");
}

#[test]
fn minted_tokens_verify_and_extra_claims_win() {
    let now = jiff::Timestamp::now().as_second();
    let verifier = Verifier::new(config()).unwrap();
    let hour = Duration::from_secs(3600);
    let plain = mint(&Secret::new(SECRET), "42", hour, ExtraClaims::new()).unwrap();
    let identity = verifier.verify(&plain, now).unwrap();
    assert_eq!(identity.user.subject, "42");
    assert!(verifier.verify(&plain, now + 3700).is_err());
    let extra = serde_json::from_str(r#"{"exp":1}"#).unwrap();
    let expired = mint(&Secret::new(SECRET), "42", hour, extra).unwrap();
    assert_eq!(verifier.verify(&expired, now), Err(AuthError::Expired));
}

#[test]
fn codes_are_those_of_the_wire() {
    let code = |error: AuthError| error.code();
    assert_eq!(code(AuthError::Missing), "token_missing");
    assert_eq!(code(AuthError::Expired), "token_expired");
    assert_eq!(code(AuthError::NotYetValid), "token_not_yet_valid");
    assert_eq!(code(AuthError::Issuer), "token_invalid");
}
