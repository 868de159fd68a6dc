//! The session settings that make values read the same from every connection.
//!
//! Live changes, snapshots and owed values must agree byte for byte, so none of these may depend on
//! a role's or a database's defaults. They travel in the startup packet: no round trip, and no
//! moment at which the session has others.

/// `SET LOCAL` for all pinned settings, as one simple query to run first in a transaction. Needed
/// where a connection reports [`PinScope::Transaction`]; harmless elsewhere.
pub const SET_LOCAL: &str = "SET LOCAL client_encoding = 'UTF8'; SET LOCAL datestyle = 'ISO'; \
     SET LOCAL intervalstyle = 'postgres'; SET LOCAL extra_float_digits = 1; \
     SET LOCAL bytea_output = 'hex'; SET LOCAL timezone = 'UTC'; SET LOCAL lc_monetary = 'C'; \
     SET LOCAL search_path = ''";

/// The same as server options. `client_encoding` is a startup parameter of its own, sent by both clients.
const PINS: &str = "-c datestyle=ISO -c intervalstyle=postgres -c extra_float_digits=1 \
     -c bytea_output=hex -c timezone=UTC -c lc_monetary=C -c search_path=";

/// What the replication session pins besides: a role's time limits must not end the wait for open
/// transactions while a slot is made, and warnings in the stream must arrive.
pub(crate) const REPLICATION_PINS: &str =
    "-c statement_timeout=0 -c lock_timeout=0 -c client_min_messages=warning";

/// How long the pinned settings hold on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PinScope {
    /// For the whole session.
    Session,
    /// A pooler refused them or left them out: run [`SET_LOCAL`] first in each transaction.
    Transaction,
}

/// The server options of a session: the user's own first, so that the pinned ones win.
pub(crate) fn session_options(own: Option<&str>, more: Option<&str>) -> String {
    let parts = [own, Some(PINS), more];
    parts.into_iter().flatten().collect::<Vec<_>>().join(" ")
}

/// Judges by the settings that a server reports at startup, as far as those tell.
pub(super) fn pin_scope<'a>(reported: impl Fn(&str) -> Option<&'a str>) -> PinScope {
    let holds = |name, wanted: &str| {
        reported(name).is_none_or(|value| value.split(',').next().is_some_and(|head| head.trim() == wanted))
    };
    let all = holds("DateStyle", "ISO") && holds("IntervalStyle", "postgres") && holds("TimeZone", "UTC");
    if all { PinScope::Session } else { PinScope::Transaction }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pinned_options_come_after_the_users_own() {
        let options = session_options(Some("-c timezone=CET"), Some(REPLICATION_PINS));
        assert!(options.find("timezone=CET") < options.find("timezone=UTC"));
        assert!(options.ends_with(REPLICATION_PINS));
    }

    #[test]
    fn every_pin_is_in_both_forms() {
        for pin in PINS.split("-c ").skip(1) {
            let name = pin.split('=').next().unwrap_or_default();
            assert!(SET_LOCAL.contains(&format!("SET LOCAL {name} = ")), "{name}");
        }
    }

    #[test]
    fn a_pooler_that_drops_options_is_noticed() {
        let report = |style: &'static str| move |name: &str| (name == "DateStyle").then_some(style);
        assert_eq!(pin_scope(report("ISO, MDY")), PinScope::Session);
        assert_eq!(pin_scope(report("German, DMY")), PinScope::Transaction);
    }
}
