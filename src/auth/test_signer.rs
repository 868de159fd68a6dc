//! An issuer's key pairs, for tests: signs tokens, and tells its public half as PEM and as JWK.
//!
//! Also compiled into the integration tests, by its path.

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519};
use rustls::pki_types::PrivatePkcs1KeyDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};

const RSA_PRIVATE: &str = include_str!("../../tests/fixtures/keys/throw-away-rsa-private.pem");
const RSA_PUBLIC: &str = include_str!("../../tests/fixtures/keys/throw-away-rsa-public.pem");

pub(crate) struct Signer {
    pub(crate) algorithm: Algorithm,
    encoding: EncodingKey,
    pub(crate) public_pem: String,
    /// The public half's own members, without `kid`, `use` and `alg`.
    pub(crate) jwk: Value,
}

impl Signer {
    /// RS256, always the same one.
    pub(crate) fn rsa() -> Self {
        let private = PrivatePkcs1KeyDer::from_pem_slice(RSA_PRIVATE.as_bytes()).unwrap();
        let numbers = der_integers(private.secret_pkcs1_der());
        Signer {
            algorithm: Algorithm::RS256,
            encoding: EncodingKey::from_rsa_der(private.secret_pkcs1_der()),
            public_pem: RSA_PUBLIC.to_owned(),
            jwk: json!({"kty": "RSA", "n": base64url(numbers[1]), "e": base64url(numbers[2])}),
        }
    }

    /// ES256, a new one.
    pub(crate) fn p256() -> Self {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let (x, y) = pair.public_key_raw()[1..].split_at(32);
        Signer {
            algorithm: Algorithm::ES256,
            encoding: EncodingKey::from_ec_der(pair.serialized_der()),
            public_pem: pair.public_key_pem(),
            jwk: json!({"kty": "EC", "crv": "P-256", "x": base64url(x), "y": base64url(y)}),
        }
    }

    /// EdDSA, a new one.
    pub(crate) fn ed25519() -> Self {
        let pair = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let x = base64url(pair.public_key_raw());
        // Version 1 of PKCS #8, without the public half, whose place in version 2 libraries dispute.
        let mut private = vec![48, 46, 2, 1, 0, 48, 5, 6, 3, 43, 101, 112, 4, 34, 4, 32];
        private.extend_from_slice(&pair.serialized_der()[16..48]);
        Signer {
            algorithm: Algorithm::EdDSA,
            encoding: EncodingKey::from_ed_der(&private),
            public_pem: pair.public_key_pem(),
            jwk: json!({"kty": "OKP", "crv": "Ed25519", "x": x}),
        }
    }

    /// One of each kind.
    pub(crate) fn all() -> [Self; 3] {
        [Signer::rsa(), Signer::p256(), Signer::ed25519()]
    }

    /// A token with exactly these claims.
    pub(crate) fn sign(&self, kid: Option<&str>, claims: &Value) -> String {
        self.sign_with(Header { kid: kid.map(str::to_owned), ..Header::new(self.algorithm) }, claims)
    }

    pub(crate) fn sign_with(&self, header: Header, claims: &Value) -> String {
        encode(&header, claims, &self.encoding).unwrap()
    }

    /// As issuers publish it.
    pub(crate) fn jwk(&self, kid: &str) -> Value {
        self.jwk_with(&json!({"kid": kid, "use": "sig", "alg": format!("{:?}", self.algorithm)}))
    }

    /// The public half with further members, or others in their place.
    pub(crate) fn jwk_with(&self, members: &Value) -> Value {
        let mut jwk = self.jwk.clone();
        let more = members.as_object().unwrap().clone();
        jwk.as_object_mut().unwrap().extend(more);
        jwk
    }
}

/// RFC 4648, section 5, without padding.
pub(crate) fn base64url(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits =
            chunk.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for place in 0..=chunk.len() {
            text.push(char::from(ALPHABET[(bits >> (18 - 6 * place)) as usize & 63]));
        }
    }
    text
}

/// The members of a SEQUENCE of INTEGERs, without the zero that keeps them positive.
fn der_integers(der: &[u8]) -> Vec<&[u8]> {
    let (body, _) = der_value(der);
    let (mut rest, mut integers) = (body, Vec::new());
    while !rest.is_empty() {
        let (integer, after) = der_value(rest);
        integers.push(&integer[usize::from(integer[0] == 0 && integer.len() > 1)..]);
        rest = after;
    }
    integers
}

/// The value of the first element, and what follows it.
fn der_value(der: &[u8]) -> (&[u8], &[u8]) {
    let (start, length) = match der[1] {
        short @ 0..128 => (2, usize::from(short)),
        long => {
            let digits = usize::from(long & 0x7f);
            (2 + digits, der[2..2 + digits].iter().fold(0, |length, byte| length << 8 | usize::from(*byte)))
        }
    };
    der[start..].split_at(length)
}
