//! Grant patterns: what the operator writes, `user:{sub}:*`, to say what claims grant.
//!
//! Two or three segments as in a topic; scope and table are literal. The middle segment is made of
//! literals and `{claim}` placeholders, and its whole value is encoded at once, so a claim never
//! becomes a separator or a wildcard. Different claims must never give the same segment: that is
//! why two placeholders need a literal between them, and a value that holds the beginning of that
//! literal grants nothing.

use std::fmt;
use std::sync::Arc;

use super::UserId;
use super::claims::{Claims, Values};
use crate::topic::{Audience, Pattern, TopicError, decode_segment};

/// One configured grant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrantPattern {
    text: String,
    /// Decoded.
    scope: String,
    /// Absent for two segments.
    id: Option<Vec<Part>>,
    /// In canonical text; `None` is `*`.
    table: Option<Arc<str>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    /// Decoded.
    Literal(String),
    Claim(String),
}

/// Why a text is no grant pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrantPatternError {
    #[error("a grant has two or three segments, as in user:{{sub}}:* or global:*")]
    Segments,
    #[error("a placeholder may stand only in the middle segment of three, as in user:{{sub}}:*")]
    Place,
    #[error("a placeholder is a claim's name in braces, as in {{sub}} or {{app_metadata.team}}")]
    Placeholder,
    #[error("two placeholders need a literal between them, as in {{iss}}|{{sub}}")]
    Adjacent,
    #[error(transparent)]
    Topic(#[from] TopicError),
}

impl GrantPattern {
    pub fn parse(text: &str) -> Result<Self, GrantPatternError> {
        let segments = split(text)?;
        let (scope, id, table) = match segments[..] {
            [scope, table] => (scope, None, table),
            [scope, id, table] => (scope, Some(parse_id(id)?), table),
            _ => return Err(GrantPatternError::Segments),
        };
        let table = if table == "*" { None } else { Some(literal(table).map(|_| table.into())?) };
        Ok(GrantPattern { text: text.to_owned(), scope: literal(scope)?, id, table })
    }

    pub(super) fn has_placeholder(&self) -> bool {
        self.id.iter().flatten().any(|part| matches!(part, Part::Claim(_)))
    }

    pub(super) fn names(&self, claim: &str) -> bool {
        self.id.iter().flatten().any(|part| matches!(part, Part::Claim(name) if name == claim))
    }

    /// The claim and the value of it that would grant `audience`, where the middle segment is one
    /// placeholder: lets a development token be made for what is to be read.
    pub fn claim_for(&self, audience: &Audience) -> Option<(&str, String)> {
        let [Part::Claim(claim)] = self.id.as_deref()? else { return None };
        let (scope, id) = audience.as_str().split_once(':')?;
        let same = decode_segment(scope).is_ok_and(|scope| scope == self.scope);
        let value = decode_segment(id).ok().filter(|_| same)?;
        Some((claim, value))
    }

    /// Appends what these claims are granted by this pattern: nothing where one is missing.
    pub(super) fn resolve(&self, claims: &Claims, patterns: &mut Vec<Pattern>) {
        let mut add = |id: Option<&str>| {
            if let Ok(audience) = Audience::from_values(&self.scope, id) {
                patterns.push(Pattern { audience, table: self.table.clone() });
            }
        };
        match &self.id {
            None => add(None),
            Some(parts) => ids(parts, |name| claims.values(name)).iter().for_each(|id| add(Some(id))),
        }
    }

    /// Whether this names one topic of each user's own: no wildcard, `{sub}` in it, and beside it only
    /// `{iss}`.
    pub fn is_of_one_user(&self) -> bool {
        let known = |part: &Part| match part {
            Part::Literal(_) => true,
            Part::Claim(name) => name == "sub" || name == "iss",
        };
        self.table.is_some() && self.names("sub") && self.id.iter().flatten().all(known)
    }

    /// The same for a user whose other claims are not at hand.
    pub fn of_user(&self, user: &UserId) -> Option<Pattern> {
        let values = |name: &str| match name {
            "sub" => Some(Values::One(user.subject.clone())),
            "iss" => user.issuer.clone().map(Values::One),
            _ => None,
        };
        let id = ids(self.id.as_deref()?, values).pop()?;
        let audience = Audience::from_values(&self.scope, Some(&id)).ok()?;
        Some(Pattern { audience, table: self.table.clone() })
    }
}

/// The values of the middle segment. One claim in it may be an array; two would multiply.
fn ids(parts: &[Part], claim: impl Fn(&str) -> Option<Values>) -> Vec<String> {
    let mut ids = vec![String::new()];
    let mut arrays = 0;
    for (index, part) in parts.iter().enumerate() {
        let values = match part {
            Part::Literal(text) => vec![text.clone()],
            Part::Claim(name) => match claim(name) {
                None => return Vec::new(),
                Some(Values::One(value)) => vec![value],
                Some(Values::Many(values)) => {
                    arrays += 1;
                    values
                }
            },
        };
        let separator = separator_after(part, parts.get(index + 1));
        let safe = |value: &&String| separator.is_none_or(|first| !value.contains(first));
        let safe: Vec<&String> = values.iter().filter(safe).collect();
        if arrays > 1 || safe.is_empty() {
            return Vec::new();
        }
        ids = ids.iter().flat_map(|id| safe.iter().map(move |value| format!("{id}{value}"))).collect();
    }
    ids
}

/// The character that ends a claim's value within the segment.
fn separator_after(part: &Part, next: Option<&Part>) -> Option<char> {
    match (part, next) {
        (Part::Claim(_), Some(Part::Literal(text))) => text.chars().next(),
        _ => None,
    }
}

/// At the colons outside braces: claim names such as `https://example.com/team` hold colons.
fn split(text: &str) -> Result<Vec<&str>, GrantPatternError> {
    let mut segments = Vec::new();
    let mut start = 0;
    let mut inside = false;
    for (at, c) in text.char_indices() {
        match c {
            '{' if inside => return Err(GrantPatternError::Placeholder),
            '}' if !inside => return Err(GrantPatternError::Placeholder),
            '{' => inside = true,
            '}' => inside = false,
            ':' if !inside => {
                segments.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    if inside {
        return Err(GrantPatternError::Placeholder);
    }
    segments.push(&text[start..]);
    Ok(segments)
}

fn parse_id(segment: &str) -> Result<Vec<Part>, GrantPatternError> {
    let mut parts = Vec::new();
    let mut rest = segment;
    while !rest.is_empty() {
        let (before, after) = rest.split_once('{').map_or((rest, None), |(b, a)| (b, Some(a)));
        if !before.is_empty() {
            parts.push(Part::Literal(decode_segment(before)?));
        } else if matches!(parts.last(), Some(Part::Claim(_))) {
            return Err(GrantPatternError::Adjacent);
        }
        let Some(after) = after else { break };
        let (name, tail) = after.split_once('}').ok_or(GrantPatternError::Placeholder)?;
        if name.is_empty() || name.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(GrantPatternError::Placeholder);
        }
        parts.push(Part::Claim(name.to_owned()));
        rest = tail;
    }
    if parts.is_empty() { Err(TopicError::Empty.into()) } else { Ok(parts) }
}

fn literal(segment: &str) -> Result<String, GrantPatternError> {
    if segment.contains(['{', '}']) {
        return Err(GrantPatternError::Place);
    }
    Ok(decode_segment(segment)?)
}

impl fmt::Display for GrantPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn granted(pattern: &str, claims: &str) -> Vec<String> {
        let mut patterns = Vec::new();
        let claims = serde_json::from_str(claims).unwrap();
        GrantPattern::parse(pattern).unwrap().resolve(&claims, &mut patterns);
        patterns.iter().map(Pattern::to_string).collect()
    }

    #[test]
    fn claims_fill_the_middle_segment() {
        let cases: &[(&str, &str, &[&str])] = &[
            ("user:{sub}:*", r#"{"sub":"42"}"#, &["user:42:*"]),
            ("user:{sub}:*", r#"{"sub":9007199254740993}"#, &["user:9007199254740993:*"]),
            ("user:{sub}:*", r#"{"sub":"*"}"#, &["user:%2A:*"]),
            ("user:{sub}:*", r#"{"sub":"1:orders"}"#, &["user:1%3Aorders:*"]),
            ("user:{sub}:*", r#"{"sub":"{iss}"}"#, &["user:{iss}:*"]),
            ("user:{sub}:*", "{}", &[]),
            ("user:{sub}:*", r#"{"sub":null}"#, &[]),
            ("user:{sub}:*", r#"{"sub":""}"#, &[]),
            ("user:{sub}:*", r#"{"sub":1.0}"#, &[]),
            ("global:*", "{}", &["global:*"]),
            ("global:exercises", "{}", &["global:exercises"]),
            ("user:{sub}:orders", r#"{"sub":7}"#, &["user:7:orders"]),
            ("team:{team_ids}:*", r#"{"team_ids":[1,"b",null,{},2]}"#, &["team:1:*", "team:b:*", "team:2:*"]),
            ("team:{team_ids}:*", r#"{"team_ids":[]}"#, &[]),
            ("team:{m.t}:notes", r#"{"m":{"t":[5]}}"#, &["team:5:notes"]),
            ("org:{https://e.x/org}:*", r#"{"https://e.x/org":"o"}"#, &["org:o:*"]),
            ("user:u-{sub}:*", r#"{"sub":"7"}"#, &["user:u-7:*"]),
            ("user:{iss}|{sub}:*", r#"{"iss":"https://a","sub":"7"}"#, &["user:https%3A//a|7:*"]),
            ("user:{iss}|{sub}:*", r#"{"sub":"7"}"#, &[]),
            ("team:{iss}|{t}:*", r#"{"iss":"a","t":[1,2]}"#, &["team:a|1:*", "team:a|2:*"]),
            ("team:{a}|{b}:*", r#"{"a":[1,2],"b":[1,2]}"#, &[]),
        ];
        for (pattern, claims, expected) in cases {
            assert_eq!(granted(pattern, claims), *expected, "{pattern} over {claims}");
        }
    }

    #[test]
    fn different_claims_never_give_the_same_segment() {
        let of = |iss, sub| granted("user:{iss}|{sub}:*", &format!(r#"{{"iss":"{iss}","sub":"{sub}"}}"#));
        assert_eq!(of("a", "b|c"), ["user:a|b|c:*"]);
        assert!(of("a|b", "c").is_empty());
        // Together too long, each within bounds.
        assert!(of("a".repeat(200).as_str(), "b".repeat(200).as_str()).is_empty());
    }

    #[test]
    fn a_topic_of_one_user_needs_no_other_claims() {
        let pattern = |text| GrantPattern::parse(text).unwrap();
        let user = |issuer: Option<&str>, subject: &str| UserId {
            issuer: issuer.map(str::to_owned),
            subject: subject.to_owned(),
        };
        let of = |text, user: &UserId| pattern(text).of_user(user).map(|pattern| pattern.to_string());
        let plain = "user:{sub}:devices";
        assert_eq!(of(plain, &user(None, "4:2")), Some("user:4%3A2:devices".to_owned()));
        let both = "user:{iss}|{sub}:devices";
        assert_eq!(of(both, &user(Some("a"), "b|c")), Some("user:a|b|c:devices".to_owned()));
        assert_eq!(of(both, &user(Some("a|b"), "c")), None);
        assert_eq!(of(both, &user(None, "c")), None);
        for (text, good) in [(plain, true), (both, true), ("user:{sub}:*", false), ("user:{iss}:x", false)] {
            assert_eq!(pattern(text).is_of_one_user(), good, "{text}");
        }
        assert!(!pattern("user:{team}-{sub}:x").is_of_one_user() && !pattern("global:x").is_of_one_user());
    }

    #[test]
    fn what_is_no_pattern_says_why() {
        use GrantPatternError::*;
        let cases = [
            ("user", Segments),
            ("a:b:c:d", Segments),
            ("", Segments),
            ("{scope}:1:*", Place),
            ("{scope}:*", Place),
            ("user:1:{table}", Place),
            ("user:{}:*", Placeholder),
            ("user:{a b}:*", Placeholder),
            ("user:{sub:*", Placeholder),
            ("user:sub}:*", Placeholder),
            ("user:{{sub}}:*", Placeholder),
            ("user:{a}{b}:*", Adjacent),
            ("user::*", Topic(TopicError::Empty)),
            (":{sub}:*", Topic(TopicError::Empty)),
            ("user:*:*", Topic(TopicError::Wildcard)),
            ("user:{sub}*:*", Topic(TopicError::Wildcard)),
            ("user:{sub}:o*", Topic(TopicError::Wildcard)),
            ("user:%41:*", Topic(TopicError::Escape)),
        ];
        for (text, expected) in cases {
            assert_eq!(GrantPattern::parse(text), Err(expected), "{text}");
        }
    }

    #[test]
    fn the_claim_behind_an_audience_is_found_back() {
        let audience = |text| Audience::parse(text).unwrap();
        let pattern = GrantPattern::parse("user:{sub}:*").unwrap();
        assert_eq!(pattern.claim_for(&audience("user:a%3Ab")), Some(("sub", "a:b".to_owned())));
        assert_eq!(pattern.claim_for(&audience("team:1")), None);
        assert_eq!(pattern.claim_for(&audience("user")), None);
        assert_eq!(GrantPattern::parse("user:u{sub}:*").unwrap().claim_for(&audience("user:u1")), None);
    }
}
