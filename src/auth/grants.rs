//! The topics that one token may read.

use crate::topic::{Audience, Pattern};

/// A set of patterns, ordered by audience, so that a question costs a binary search.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Grants {
    patterns: Vec<Pattern>,
    /// What the token alone grants, where there is more.
    own: Option<Vec<Pattern>>,
}

impl Grants {
    pub fn new(patterns: Vec<Pattern>) -> Self {
        Grants { patterns: normalized(patterns), own: None }
    }

    /// What is granted besides the token, in place of what was so before.
    pub fn set_live(&mut self, live: Vec<Pattern>) {
        let own = self.own.take().unwrap_or_else(|| std::mem::take(&mut self.patterns));
        if live.is_empty() {
            self.patterns = own;
        } else {
            self.patterns = normalized(own.iter().cloned().chain(live).collect());
            self.own = Some(own);
        }
    }

    /// Whether everything that `pattern` names is granted. A subscription lies wholly within one
    /// grant, so the grants of single tables never add up to `*`.
    pub fn covers(&self, pattern: &Pattern) -> bool {
        self.of(&pattern.audience).iter().any(|own| own.covers(pattern))
    }

    /// Whether one topic is granted; `table` is the topic's last segment in canonical text.
    pub fn matches(&self, audience: &Audience, table: &str) -> bool {
        self.of(audience).iter().any(|own| own.matches(audience, table))
    }

    pub fn patterns(&self) -> &[Pattern] {
        &self.patterns
    }

    fn of(&self, audience: &Audience) -> &[Pattern] {
        let start = self.patterns.partition_point(|own| own.audience < *audience);
        let tail = &self.patterns[start..];
        &tail[..tail.partition_point(|own| own.audience == *audience)]
    }
}

fn normalized(mut patterns: Vec<Pattern>) -> Vec<Pattern> {
    // Within an audience `*` comes first and makes the single tables after it superfluous.
    patterns.sort_unstable();
    patterns.dedup_by(|later, earlier| earlier.covers(later));
    patterns
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn grants_answer_for_their_audiences_only() {
        let pattern = |text| Pattern::parse(text).unwrap();
        let texts = ["user:42:*", "team:7:notes", "global:*", "team:7:chats", "user:42:orders", "user:42:*"];
        let grants = Grants::new(texts.map(pattern).to_vec());
        let left: Vec<String> = grants.patterns().iter().map(Pattern::to_string).collect();
        assert_eq!(left, ["global:*", "team:7:chats", "team:7:notes", "user:42:*"]);
        for inside in ["user:42:orders", "user:42:*", "team:7:notes", "global:exercises"] {
            assert!(grants.covers(&pattern(inside)), "{inside}");
        }
        for outside in ["user:4:orders", "user:421:*", "team:7:*", "team:7:other", "global:x:y", "user:*"] {
            assert!(!grants.covers(&pattern(outside)), "{outside}");
        }
        let team = Audience::parse("team:7").unwrap();
        assert!(grants.matches(&team, "notes") && !grants.matches(&team, "orders"));
        assert!(!Grants::default().covers(&pattern("global:*")));
    }

    #[test]
    fn live_grants_come_and_go_and_the_tokens_own_stay() {
        let pattern = |text| Pattern::parse(text).unwrap();
        let mut grants = Grants::new(vec![pattern("user:42:*"), pattern("team:7:notes")]);
        let own = grants.clone();
        for live in ["team:7:*", "team:8:*"] {
            grants.set_live(vec![pattern(live), pattern("user:42:orders")]);
            assert!(grants.covers(&pattern(live)) && grants.covers(&pattern("team:7:notes")));
        }
        assert!(!grants.covers(&pattern("team:7:*")));
        grants.set_live(Vec::new());
        assert_eq!(grants, own);
    }
}
