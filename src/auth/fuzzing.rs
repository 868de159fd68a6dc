//! Any bytes as tokens, claims, keys and grant patterns: nothing is granted that was not signed and named.

use std::sync::LazyLock;
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::claims::Claims;
use super::jwk::{JwkSet, MAX_KEYS};
use super::*;
use crate::fuzzing::Source;
use crate::topic::{MAX_SEGMENT_BYTES, encode_segment};

const SECRET: &str = "a secret of thirty-two bytes, or more";

static VERIFIER: LazyLock<Verifier> = LazyLock::new(|| {
    let grants = ["user:{sub}:*", "team:{team}:*", "org:{iss}|{sub}:news", "global:*"];
    Verifier::new(AuthConfig {
        secret: Some(Secret::new(SECRET)),
        public_keys: Vec::new(),
        jwks: None,
        issuers: Vec::new(),
        audiences: Vec::new(),
        leeway: Duration::ZERO,
        require_expiry: false,
        grants: grants.iter().map(|text| GrantPattern::parse(text).expect("a grant")).collect(),
        admin: AdminClaim::parse("role=admin"),
    })
    .expect("a verifier with a secret")
});

/// A token in any bytes, where requests carry it; and one whose header and claims are any bytes, rightly signed.
pub(crate) fn token(data: &[u8]) {
    let mut source = Source::new(data);
    let (signed, header) = (source.flag(), source.text());
    let payload = source.rest_text();
    if !signed {
        let carriers = bearer::Carriers {
            authorization: Some(&header),
            subprotocols: Some(&payload),
            query: Some(&payload),
        };
        for text in [&header, &payload] {
            // Nobody who has not the secret makes a signature that fits, least of all by chance.
            assert!(VERIFIER.verify(text, 0).is_err(), "{text:?}");
        }
        if let Ok(Some(token)) = bearer::find(carriers) {
            assert!(!token.is_empty() && (header.contains(token) || payload.contains(token)));
        }
        let _ = (bearer::ticket(&payload), bearer::offers_subprotocol(&header));
        return;
    }
    let message = format!("{}.{}", base64url(header.as_bytes()), base64url(payload.as_bytes()));
    let mut mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).expect("a key of any length");
    mac.update(message.as_bytes());
    let token = format!("{message}.{}", base64url(&mac.finalize().into_bytes()));
    let Ok(identity) = VERIFIER.verify(&token, 1_000) else { return };
    assert!((1..=MAX_SEGMENT_BYTES).contains(&identity.user.subject.len()));
    assert!(!identity.has_expired(1_000) && token.len() <= MAX_TOKEN_BYTES);
    for pattern in identity.grants.patterns() {
        assert_eq!(Pattern::parse(&pattern.to_string()).as_ref(), Ok(pattern));
        if pattern.audience.scope() == "user" {
            let mut own = "user:".to_owned();
            encode_segment(&identity.user.subject, &mut own).expect("a subject");
            assert_eq!(pattern.audience.as_str(), own, "another user's");
        }
    }
}

/// RFC 4648, section 5, without padding.
fn base64url(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let mut group = [0; 4];
        group[1..=chunk.len()].copy_from_slice(chunk);
        let bits = u32::from_be_bytes(group);
        for digit in 0..=chunk.len() {
            text.push(char::from(DIGITS[(bits >> (18 - 6 * digit)) as usize & 63]));
        }
    }
    text
}

/// Key sets and PEM texts. What was read of a set is read again as it was.
pub(crate) fn keys(data: &[u8]) {
    if let Ok(set) = JwkSet::parse(data) {
        assert!(set.keys.len() <= MAX_KEYS);
        let again = JwkSet::parse(set.to_json().as_bytes()).expect("a key set");
        assert_eq!((again.keys.len(), again.ignored), (set.keys.len(), 0));
    }
    let text = String::from_utf8_lossy(data);
    if let source @ PublicKeySource::Pem(_) = PublicKeySource::parse(&text) {
        let _ = source.check().map_err(|error| format!("{error} {error:?}"));
    }
    let _ = JwksUrl::parse(&text).map_err(|error| error.to_string());
}

/// Claims become segments of topics, and different claims different ones.
pub(crate) fn grants(data: &[u8]) {
    let mut source = Source::new(data);
    let text = source.text();
    let (one, other) = (claims(&mut source), claims(&mut source));
    let Ok(grant) = GrantPattern::parse(&text) else { return };
    assert_eq!(grant.to_string(), text);
    let resolve = |claims: &Claims| {
        let mut patterns = Vec::new();
        grant.resolve(claims, &mut patterns);
        patterns
    };
    let found = [&one, &other].map(resolve);
    for pattern in found.iter().flatten() {
        assert_eq!(Pattern::parse(&pattern.to_string()).as_ref(), Ok(pattern));
        assert_eq!(pattern.table.is_none(), text.ends_with(":*"));
    }
    let [Some(first), Some(second)] = found.each_ref().map(|patterns| patterns.first()) else { return };
    if first == second {
        for claim in ["sub", "iss"].into_iter().filter(|claim| grant.names(claim)) {
            assert_eq!(one.scalar(claim), other.scalar(claim), "{text:?} gives both {first}");
        }
    }
}

fn claims(source: &mut Source<'_>) -> Claims {
    let (sub, iss) = (source.text(), source.text());
    let claims = serde_json::json!({ "sub": sub, "iss": iss }).to_string();
    serde_json::from_str(&claims).expect("an object")
}
