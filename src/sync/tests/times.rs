//! By timestamp, on the embedded log: commit times in any order, many of them equal, some before the
//! log or lost with its oldest part, some in the future. What is answered misses nothing.

use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::pages::{GRANTS, Wish, embedded, follow, options, position_of, wish};
use super::world::{Copy, Op, World, copy_of, op};
use super::{feed, identity, request};
use crate::feed::Feed;
use crate::hub::timestamp;
use crate::log::{FjallLog, Log as _, TimeLookup};
use crate::position::Position;
use crate::sync::{SyncError, sync};

/// So small that a history has several spans, and loses the first of them.
const SMALL: u64 = 4_000;
const LARGE: u64 = 1 << 30;

/// Times go on over several slots of the log's index, and back by as much; some stand still.
fn history() -> impl Strategy<Value = Vec<(Vec<Op>, i64)>> {
    let step = prop_oneof![3 => Just(0), 3 => -300_000..400_000_i64, 1 => -3..3_i64, 1 => Just(2_000_000)];
    let transaction = (proptest::collection::vec(op(), 0..9), step);
    proptest::collection::vec(transaction, 1..40).prop_map(|transactions| {
        let mut now = 1_000_000;
        let mut at = |step: i64| {
            now += step;
            now
        };
        transactions.into_iter().map(|(ops, step)| (ops, at(step))).collect()
    })
}

/// A history in a log.
struct Scene {
    world: World,
    /// No commit before the log has a greater time.
    before: i64,
    feed: Arc<Feed>,
    log: Arc<FjallLog>,
    _directory: tempfile::TempDir,
}

impl Scene {
    fn of(history: &[(Vec<Op>, i64)], before: i64, max_size: u64, opened_again: bool) -> Self {
        let mut world = World::of(history);
        for transaction in &mut world.transactions {
            let transaction = Arc::make_mut(transaction);
            transaction.greatest_committed_at = transaction.greatest_committed_at.max(before);
        }
        let directory = tempfile::tempdir().unwrap();
        let options = options(&directory.path().join("log"), max_size);
        let mut log = embedded(&world, &options, before);
        if opened_again {
            drop(log);
            log = FjallLog::open(&options).unwrap().unwrap();
        }
        Scene { world, before, feed: feed(log.clone()), log, _directory: directory }
    }

    /// The greatest time of a commit up to a position, with all before the log.
    fn greatest_at(&self, position: Position) -> i64 {
        let upto = self.world.transactions.iter().take_while(|t| t.commit <= position.commit);
        upto.map(|t| t.committed_at).fold(self.before, i64::max)
    }

    /// The greatest time of what the log no longer has.
    fn greatest_lost(&self) -> i64 {
        let oldest = self.log.oldest().commit;
        let lost = self.world.transactions.iter().take_while(|t| t.commit < oldest);
        lost.map(|t| t.committed_at).fold(self.before, i64::max)
    }

    fn end(&self, wish: &Wish) -> Copy {
        copy_of(self.world.state_at(Position::MAX), &wish.wanted)
    }

    /// Follows from a time if the log answers, else says why not.
    fn sync(
        &self,
        wish: &Wish,
        time: i64,
        limit: usize,
        copy: &mut Copy,
        check: impl FnMut(&Value, &Copy),
    ) -> Result<(), String> {
        let from = json!({ "last_sync_timestamp": timestamp(time) });
        match sync(&self.feed, &identity(&GRANTS), &request(wish.fields(&from, limit))) {
            Ok(_) => {
                follow(&self.feed, wish, from, limit, copy, check);
                Ok(())
            }
            Err(SyncError::FullRequired(tables)) => {
                let reasons: Vec<&str> = tables.values().map(|reason| reason.as_str()).collect();
                assert!(reasons.iter().all(|reason| *reason == reasons[0]));
                Err(reasons[0].to_owned())
            }
            Err(other) => panic!("{other}"),
        }
    }

    /// What must come of a time, and that it does.
    fn check(&self, wish: &Wish, start: Position, time: i64, limit: usize) {
        let mut copy = copy_of(self.world.state_at(start), &wish.wanted);
        let mut last = String::new();
        let mut pages = Vec::new();
        let synced = self.sync(wish, time, limit, &mut copy, |answer, copy| {
            let said = answer["sync_timestamp"].as_str().unwrap();
            assert!(said >= last.as_str(), "a page's time goes back");
            assert!(said <= timestamp(self.greatest_at(position_of(answer))).as_str());
            last = said.to_owned();
            pages.push((said.to_owned(), copy.clone()));
        });
        let expected = if wish.wanted.is_empty() {
            // No table to be told of in full.
            Ok(())
        } else if time > self.greatest_at(Position::MAX) {
            Err("timestamp_in_future".to_owned())
        } else if time <= self.greatest_lost() {
            Err("too_old".to_owned())
        } else {
            Ok(())
        };
        assert_eq!(synced, expected, "{time}, {} lost", self.greatest_lost());
        if synced.is_err() {
            return;
        }
        assert_eq!(copy, self.end(wish), "from {time}");
        if !wish.wanted.is_empty() {
            assert_eq!(last, timestamp(self.greatest_at(Position::MAX)));
        }
        // A device that breaks off and comes back by a page's time misses nothing either.
        for (said, mut copy) in pages {
            let from = json!({ "last_sync_timestamp": said });
            if sync(&self.feed, &identity(&GRANTS), &request(wish.fields(&from, limit))).is_ok() {
                follow(&self.feed, wish, from, limit, &mut copy, |_, _| {});
                assert_eq!(copy, self.end(wish), "from a page's {said}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn a_time_is_answered_without_a_gap_or_in_full(
        history in history(),
        before in 0..1_800_000_i64,
        small in any::<bool>(),
        opened_again in any::<bool>(),
        wish in wish(),
        limit in 1usize..12,
        starts in proptest::collection::vec((any::<prop::sample::Index>(), 0..3_i64, 0..500_000_i64), 6),
        future in 1..1_000_000_i64,
    ) {
        let scene = Scene::of(&history, before, if small { SMALL } else { LARGE }, opened_again);
        for (start, way, less) in starts {
            // A copy of any place, by the time of its place, or by an earlier one that still is for it.
            let start = scene.world.states[start.index(scene.world.states.len())].0;
            let time = scene.greatest_at(start) - [0, 1, less][way as usize];
            scene.check(&wish, start, time, limit);
        }
        scene.check(&wish, Position::MAX, scene.greatest_at(Position::MAX) + future, limit);
    }

    /// The log begins no later than the first commit that has the time.
    #[test]
    fn a_time_begins_at_its_first_commit(history in history(), before in 0..1_800_000_i64, small in any::<bool>()) {
        let scene = Scene::of(&history, before, if small { SMALL } else { LARGE }, false);
        for time in history.iter().flat_map(|(_, time)| [time - 1, *time, time + 1]) {
            let first = scene.world.transactions.iter().find(|t| t.committed_at >= time);
            match scene.log.lookup_time(time).unwrap() {
                TimeLookup::From(from) => {
                    let first = first.expect("a commit that has it");
                    prop_assert!(from <= Position::boundary(first.commit) && from >= scene.log.oldest());
                }
                TimeLookup::TooOld => prop_assert!(time <= scene.greatest_lost()),
                TimeLookup::InFuture => prop_assert!(first.is_none() && time > before),
            }
        }
    }
}

/// What the small log of the properties above is for: it has lost its beginning.
#[test]
fn a_time_that_the_log_lost_is_too_old() {
    let put = |key| Op::Put { table: 0, key, audiences: 0b111, a: key, big: Some(key) };
    let history: Vec<_> = (0..60).map(|n| (vec![put(n); 4], 1_000_000 + i64::from(n) * 60_000)).collect();
    let scene = Scene::of(&history, 0, SMALL, false);
    let lost = scene.greatest_lost();
    assert!(lost > 1_000_000 && scene.log.stats().spans > 2, "{lost} {:?}", scene.log.stats());
    let wish = Wish::everything();
    for (time, expected) in [(lost, Err("too_old".to_owned())), (lost + 1, Ok(()))] {
        assert_eq!(scene.sync(&wish, time, 10, &mut scene.end(&wish), |_, _| {}), expected);
    }
}

/// A hundred commits of one time, over a page and over the end of a span: all of them come again.
#[test]
fn a_time_of_many_commits_begins_with_the_first() {
    let put = |key| Op::Put { table: 0, key, audiences: 0b111, a: key, big: Some(key) };
    let mut history: Vec<(Vec<Op>, i64)> = vec![(vec![put(200)], 1_000_000)];
    history.extend((0..100).map(|key| (vec![put(key)], 2_000_000)));
    history.push((vec![put(201)], 1_500_000));
    let scene = Scene::of(&history, 0, LARGE, false);
    let wish = Wish::everything();
    let mut copy = copy_of(scene.world.state_at(scene.world.states[1].0), &wish.wanted);
    let mut pages = 0;
    scene.sync(&wish, 2_000_000, 7, &mut copy, |_, _| pages += 1).unwrap();
    assert_eq!((copy, pages), (scene.end(&wish), 101_usize.div_ceil(7)));
}

/// A log that begins anew must not answer for times that devices have from the one before.
#[test]
fn the_latest_commit_that_was_told_may_not_be_in_the_log_yet() {
    let scene = Scene::of(&[(Vec::new(), 2_000_000)], 1_000_000, LARGE, false);
    assert_eq!(scene.feed.greatest_told(), scene.feed.watermark().greatest_committed_at);
    scene.feed.publishes(9_000_000);
    assert_eq!(scene.feed.greatest_told(), 9_000_000);
}
