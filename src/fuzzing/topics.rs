//! Topics, patterns and templates against a model that knows nothing but segments.

use super::Source;
use crate::route::Template;
use crate::topic::{Audience, MAX_SEGMENT_BYTES, Pattern, Topic, TopicError, decode_segment, encode_segment};

/// A value becomes one segment, and comes back; different values become different segments.
pub(super) fn values(data: &[u8]) {
    let mut source = Source::new(data);
    let (first, second) = (source.text(), source.rest_text());
    for value in [&first, &second] {
        segment(value);
    }
    let pair = |scope: &str, id: &str| Audience::from_values(scope, Some(id));
    if let (Ok(one), Ok(other)) = (pair(&first, &second), pair(&second, &first)) {
        assert_eq!(one == other, first == second, "values that differ have audiences that differ");
        assert_eq!(one.id().as_deref(), Some(second.as_str()));
        assert_eq!(decode_segment(one.scope()).as_deref(), Ok(first.as_str()));
        assert_eq!(one.as_str().split(':').count(), 2, "a value is no separator");
        assert_eq!(Audience::parse(one.as_str()).as_ref(), Ok(&one));
    }
}

fn segment(value: &str) {
    let mut text = String::new();
    let expected = match value.len() {
        0 => Err(TopicError::Empty),
        1..=MAX_SEGMENT_BYTES => Ok(()),
        _ => Err(TopicError::TooLong),
    };
    assert_eq!(encode_segment(value, &mut text), expected);
    if expected.is_ok() {
        assert!(!text.contains([':', '*']) && !text.chars().any(char::is_control), "{text:?}");
        assert_eq!(decode_segment(&text).as_deref(), Ok(value));
    }
    // Any text is one spelling of its value, or none.
    if let Ok(decoded) = decode_segment(value) {
        let mut again = String::new();
        assert_eq!(encode_segment(&decoded, &mut again), Ok(()));
        assert_eq!(again, value);
    }
}

/// What parses prints as it was, and covers what its segments say.
pub(super) fn patterns(data: &[u8]) {
    let mut source = Source::new(data);
    let (one, other) = (source.text(), source.rest_text());
    for text in [&one, &other] {
        let pattern = Pattern::parse(text);
        match Topic::parse(text) {
            Ok(topic) => {
                assert_eq!(&topic.to_string(), text);
                assert!(Pattern::parse(text).is_ok_and(|pattern| pattern.table.is_some()));
            }
            Err(error) => {
                assert!(pattern.as_ref().map_or(true, |_| error == TopicError::Wildcard), "{error}");
            }
        }
        if let Ok(pattern) = pattern {
            assert_eq!(&pattern.to_string(), text);
            assert!((2..=3).contains(&text.split(':').count()));
        }
    }
    if let (Ok(pattern), Ok(within)) = (Pattern::parse(&one), Pattern::parse(&other)) {
        assert_eq!(pattern.covers(&within), covers(&one, &other), "{one:?} {other:?}");
        if let Ok(topic) = Topic::parse(&other) {
            assert_eq!(pattern.matches(&topic.audience, topic.table()), covers(&one, &other));
        }
    }
}

/// Segment by segment; a last `*` stands for every last segment.
fn covers(pattern: &str, within: &str) -> bool {
    let (pattern, within): (Vec<_>, Vec<_>) = (pattern.split(':').collect(), within.split(':').collect());
    let last = pattern.len() - 1;
    pattern.len() == within.len()
        && pattern[..last] == within[..last]
        && (pattern[last] == "*" || pattern[last] == within[last])
}

/// A template gives each value an audience of its own, that its readers are known by.
pub(super) fn template(data: &[u8]) {
    let mut source = Source::new(data);
    let (text, value) = (source.text(), source.rest_text());
    crate::route::fuzzing::grant_template(&text, &value);
    let Ok(template) = Template::parse(&text) else { return };
    let kept = serde_json::to_string(&template).expect("a text");
    assert_eq!(serde_json::from_str::<Template>(&kept).expect("as it was written"), template);

    let segments: Vec<&str> = text.split(':').collect();
    assert_eq!((template.scope(), &**template.table()), (segments[0], segments[segments.len() - 1]));
    let mut encoded = String::new();
    let expected = match template.column() {
        None => Some(segments[..segments.len() - 1].join(":")),
        Some(column) => {
            assert_eq!(format!("{{{column}}}"), segments[1]);
            encode_segment(&value, &mut encoded).ok().map(|()| format!("{}:{encoded}", segments[0]))
        }
    };
    let audience = template.audience(Some(&value));
    assert_eq!(audience.as_ref().map(Audience::as_str), expected.as_deref());
    let Some(audience) = audience else { return };
    assert_eq!(Audience::parse(audience.as_str()).as_ref(), Ok(&audience));
    assert!(template.may_give(&audience));
    let whole = Pattern::all_of(audience.clone());
    let one = Pattern { audience, table: Some(template.table().clone()) };
    assert!(template.may_match(&whole) && template.may_match(&one) && whole.covers(&one));
}
