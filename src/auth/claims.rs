//! The payload of a token, with the text of every value kept.
//!
//! A claim becomes part of a topic, where only the bytes count: a number that went through a
//! floating-point type would name another user. So values stay JSON text until they are asked for,
//! and what is not plainly a text or an integer is no value.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::error::AuthError;
use crate::topic::MAX_SEGMENT_BYTES;

#[derive(Deserialize)]
#[serde(transparent)]
pub(super) struct Claims(BTreeMap<String, Box<RawValue>>);

/// What a claim holds, as far as it can stand in a topic.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Values {
    One(String),
    /// The usable elements of an array, in their order.
    Many(Vec<String>),
}

impl Claims {
    /// Nothing but a name.
    pub(super) fn of_subject(subject: &str) -> Self {
        let sub = serde_json::value::to_raw_value(subject).map(|raw| ("sub".to_owned(), raw));
        Claims(sub.into_iter().collect())
    }

    /// A claim that is a text or an integer, not empty and not too long.
    pub(super) fn scalar(&self, path: &str) -> Option<String> {
        scalar(self.find(path)?)
    }

    /// A claim's value, or its values where it is an array.
    pub(super) fn values(&self, path: &str) -> Option<Values> {
        let raw = self.find(path)?;
        match serde_json::from_str::<Vec<&RawValue>>(raw.get()) {
            Ok(elements) => Some(Values::Many(elements.into_iter().filter_map(scalar).collect())),
            Err(_) => scalar(raw).map(Values::One),
        }
    }

    /// Whether a claim is `expected`, or an array with `expected` in it. `true` is a value here.
    pub(super) fn holds(&self, path: &str, expected: &str) -> bool {
        let Some(raw) = self.find(path) else { return false };
        let is = |raw: &RawValue| match raw.get() {
            "true" => expected == "true",
            _ => scalar(raw).is_some_and(|value| value == expected),
        };
        match serde_json::from_str::<Vec<&RawValue>>(raw.get()) {
            Ok(elements) => elements.into_iter().any(is),
            Err(_) => is(raw),
        }
    }

    /// A NumericDate (RFC 7519, section 2) in whole seconds; fractions are cut off.
    pub(super) fn time(&self, name: &'static str) -> Result<Option<i64>, AuthError> {
        let Some(raw) = self.0.get(name) else { return Ok(None) };
        let text = raw.get();
        if let Ok(seconds) = text.parse::<i64>() {
            return Ok(Some(seconds));
        }
        // Only JSON numbers: Rust would also read `"inf"`, but a JSON text begins with a quote.
        match text.parse::<f64>() {
            Ok(seconds) if seconds.is_finite() => Ok(Some(seconds.floor() as i64)),
            _ => Err(AuthError::Time(name)),
        }
    }

    /// By its whole name first (names such as `https://example.com/team` hold dots), else by path.
    fn find(&self, path: &str) -> Option<&RawValue> {
        if let Some(raw) = self.0.get(path) {
            return Some(raw);
        }
        let (first, rest) = path.split_once('.')?;
        let mut raw: &RawValue = self.0.get(first)?;
        for name in rest.split('.') {
            raw = serde_json::from_str::<BTreeMap<String, &RawValue>>(raw.get()).ok()?.remove(name)?;
        }
        Some(raw)
    }
}

fn scalar(raw: &RawValue) -> Option<String> {
    let text = raw.get();
    let value = if text.starts_with('"') {
        serde_json::from_str(text).ok()?
    } else {
        let digits = text.strip_prefix('-').unwrap_or(text);
        // An integer as written: 1.0 and 1e3 are other texts for what another token writes as 1.
        let integer = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        integer.then(|| text.to_owned())?
    };
    (1..=MAX_SEGMENT_BYTES).contains(&value.len()).then_some(value)
}

impl fmt::Debug for Claims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.keys()).finish()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn claims(json: &str) -> Claims {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn only_texts_and_integers_are_values_and_keep_their_text() {
        let long = "x".repeat(256);
        let too_long = "x".repeat(257);
        let quoted = |text: &str| format!("\"{text}\"");
        let cases: &[(&str, Option<&str>)] = &[
            (r#""42""#, Some("42")),
            ("42", Some("42")),
            ("-7", Some("-7")),
            ("0", Some("0")),
            ("9007199254740993", Some("9007199254740993")),
            ("123456789012345678901234567890", Some("123456789012345678901234567890")),
            (r#""a:b*c""#, Some("a:b*c")),
            (r#""\u00e9\n""#, Some("é\n")),
            (&quoted(&long), Some(&long)),
            (&quoted(&too_long), None),
            (&"9".repeat(257), None),
            (r#""""#, None),
            (r#""\ud800""#, None),
            ("null", None),
            ("true", None),
            ("false", None),
            ("1.0", None),
            ("1.5", None),
            ("1e3", None),
            ("1E3", None),
            ("{}", None),
            (r#"{"sub":"42"}"#, None),
            ("[]", None),
            (r#"["42"]"#, None),
        ];
        for (json, expected) in cases {
            let claims = claims(&format!(r#"{{"c": {json} }}"#));
            assert_eq!(claims.scalar("c").as_deref(), *expected, "{json}");
        }
        assert_eq!(claims("{}").scalar("c"), None);
    }

    #[test]
    fn an_array_gives_each_usable_element() {
        let found = claims(r#"{"t":[1,"b",null,"",2.5,[3],{"x":4},true,9007199254740993]}"#).values("t");
        let expected = ["1", "b", "9007199254740993"].map(str::to_owned).to_vec();
        assert_eq!(found, Some(Values::Many(expected)));
    }

    #[test]
    fn a_path_reaches_into_objects_after_the_whole_name() {
        let claims = claims(r#"{"app":{"team":{"id":7}},"app.team.id":"whole","https://e.x/t":"u","n":3}"#);
        assert_eq!(claims.scalar("app.team.id").as_deref(), Some("whole"));
        assert_eq!(claims.scalar("https://e.x/t").as_deref(), Some("u"));
        for absent in ["app.team", "app.team.none", "n.x", "app..id", ".", "", "none.x"] {
            assert_eq!(claims.scalar(absent), None, "{absent}");
        }
        let claims = self::claims(r#"{"app":{"team":{"id":7}}}"#);
        assert_eq!(claims.scalar("app.team.id").as_deref(), Some("7"));
    }

    #[test]
    fn a_claim_holds_a_value_or_has_it_in_its_array() {
        let claims = claims(r#"{"a":"admin","b":["x","admin"],"c":true,"d":1,"e":false,"f":{"admin":true}}"#);
        for (path, value) in [("a", "admin"), ("b", "admin"), ("c", "true"), ("d", "1"), ("f.admin", "true")]
        {
            assert!(claims.holds(path, value), "{path}");
        }
        for (path, value) in
            [("a", "Admin"), ("b", "y"), ("e", "false"), ("f", "admin"), ("g", ""), ("g", "x")]
        {
            assert!(!claims.holds(path, value), "{path}");
        }
    }

    #[test]
    fn times_are_numbers() {
        for (json, expected) in [("12", 12), ("12.9", 12), ("-0.5", -1), ("1e3", 1000), ("1e300", i64::MAX)] {
            assert_eq!(claims(&format!(r#"{{"exp":{json}}}"#)).time("exp"), Ok(Some(expected)), "{json}");
        }
        for json in [r#""12""#, "null", "true", "[]", "{}"] {
            assert_eq!(
                claims(&format!(r#"{{"exp":{json}}}"#)).time("exp"),
                Err(AuthError::Time("exp")),
                "{json}"
            );
        }
        assert_eq!(claims("{}").time("exp"), Ok(None));
    }
}
