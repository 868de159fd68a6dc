//! Who everyone is where nobody is asked for a token.

use super::claims::Claims;
use super::pattern::GrantPattern;
use super::{Grants, Identity, UserId};

/// The one user of a relay without authentication.
const SUBJECT: &str = "anonymous";

impl Identity {
    /// What the configured patterns grant to a user without any claims but this name: those without a
    /// placeholder as they stand, `user:{sub}:*` as `user:anonymous:*`, all others nothing.
    pub fn anonymous(grants: &[GrantPattern]) -> Self {
        let claims = Claims::of_subject(SUBJECT);
        let mut patterns = Vec::new();
        grants.iter().for_each(|grant| grant.resolve(&claims, &mut patterns));
        Identity {
            user: UserId { issuer: None, subject: SUBJECT.to_owned() },
            grants: Grants::new(patterns),
            expires_at: None,
            issued_at: None,
            admin: false,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn patterns_over_claims_grant_nothing_to_nobody() {
        let texts = ["user:{sub}:*", "global:*", "user:42:orders", "team:{team_ids}:*", "org:{iss}:*"];
        let grants = texts.map(|text| GrantPattern::parse(text).unwrap());
        let anonymous = Identity::anonymous(&grants);
        let granted: Vec<String> = anonymous.grants.patterns().iter().map(ToString::to_string).collect();
        assert_eq!(granted, ["global:*", "user:42:orders", "user:anonymous:*"]);
        assert!(!anonymous.admin && anonymous.expires_at.is_none());
    }
}
