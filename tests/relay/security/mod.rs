//! The relay under attack: what SECURITY.md promises, each promise tried by someone who wants it broken.
//!
//! What other modules prove stays there (`privacy` for grants and values, `edge` for limits and pages, `keys`
//! for issuers, `tickets`, `grants`); here are the inputs that nobody sends by mistake.

mod bodies;
mod database;
mod frames;
mod heads;
mod injection;
mod names;
mod secrets;
mod slow;
mod tokens;
mod users;

use crate::laws::exists;
use crate::support::raw::exchange;
use crate::support::scene::ORDERS;

const SYNC: &str = "/api/realtime/sync";

/// The status of each answer among what was read.
fn statuses(answers: &str) -> Vec<u16> {
    let heads = answers.split("HTTP/1.").skip(1);
    heads.filter_map(|head| head.get(2..5)?.parse().ok()).collect()
}

#[test]
fn the_tests_that_hold_the_promises_exist() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join("SECURITY.md")).unwrap();
    let (_, promises) = page.split_once("## What is promised").unwrap();
    let (promises, _) = promises.split_once("\n## ").unwrap();
    let rows = promises.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| promise"));
    let mut named = 0;
    for row in rows {
        let tests = row.rsplit('|').nth(1).unwrap();
        for name in tests.split('`').skip(1).step_by(2) {
            assert!(
                exists(&root.join("tests/relay"), name),
                "{name} is no test, and a promise says so: {row}"
            );
            named += 1;
        }
    }
    assert!(named > 30, "{named} names: is the table still where it was?");
}
