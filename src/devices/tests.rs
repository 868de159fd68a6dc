//! The registry over a real log.

use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::*;
use crate::cursor::Epoch;
use crate::feed::Feed;
use crate::horizon::Horizon;
use crate::log::{Beginning, FjallLog, Log, LogOptions};
use crate::lsn::Lsn;
use crate::position::Position;

const EPOCH: Epoch = Epoch::new(7);

struct World {
    _directory: tempfile::TempDir,
    log: Arc<FjallLog>,
    _feed: watch::Sender<Option<Arc<Feed>>>,
    devices: Devices,
}

impl World {
    fn new(per_user: usize, in_all: usize) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let options = LogOptions {
            directory: directory.path().join("log"),
            max_age: Duration::from_secs(3600),
            max_size: 1 << 30,
            group_commit_interval: Duration::from_millis(50),
            group_commit_size: 1 << 20,
            queue_size: 8 << 20,
            gather_rate: 32 << 20,
        };
        let beginning =
            Beginning { epoch: EPOCH, start: Lsn::new(100), greatest_committed_at: 0, state: Vec::new() };
        let log = FjallLog::create(&options, beginning).unwrap();
        let feed = Feed::new(Arc::clone(&log) as Arc<dyn Log>, Lsn::new(100), Horizon::new(Lsn::new(100)));
        let (sender, receiver) = watch::channel(Some(feed));
        let limits = Limits { per_user, in_all, max_age: 1_000_000_000 };
        let devices = Devices::with_limits(receiver, Sessions::default(), limits);
        World { _directory: directory, log, _feed: sender, devices }
    }

    /// Writes all that was noted, as the keeper does at its end.
    async fn write(&self) {
        let shutdown = CancellationToken::new();
        let tasks = TaskTracker::new();
        tasks.close();
        let keeping = tokio::spawn(self.devices.clone().keep(shutdown.clone(), tasks));
        tokio::task::yield_now().await;
        shutdown.cancel();
        keeping.await.unwrap();
        assert_eq!(self.devices.unwritten(), 0);
    }

    fn seen(&self, of: &UserId, id: &str, at: i64) {
        self.devices.note(of, &id.into(), true, Note::at(at));
    }

    fn ids(&self, of: &UserId) -> Vec<String> {
        self.devices.of(&*self.log, of).unwrap().iter().map(|device| device.id.to_string()).collect()
    }

    fn enter(&self, of: &UserId, id: &str) -> SessionPlace {
        self.devices.enter(of, &id.into(), Labels::default(), Channel::WebSocket, 20).unwrap()
    }
}

fn user(subject: &str) -> UserId {
    UserId { issuer: None, subject: subject.to_owned() }
}

fn cursor(commit: u64) -> Cursor {
    Cursor::new(EPOCH, Position::new(Lsn::new(commit), 1))
}

#[tokio::test]
async fn notes_are_seen_before_and_after_they_are_written() {
    let world = World::new(100, 100);
    let (one, phone) = (user("1"), Arc::<str>::from("phone"));
    let place = world.enter(&one, "phone");
    world.devices.acked(&one, &phone, cursor(5));
    let found = || world.devices.find(&*world.log, &one, "phone").unwrap().unwrap();
    assert_eq!((found().record.cursor, found().is_active), (Some(cursor(5)), true));
    world.write().await;
    assert_eq!((found().record.cursor, world.ids(&one)), (Some(cursor(5)), vec!["phone".to_owned()]));
    world.devices.seen(&one, &phone, Labels::new(Some("ios".into()), None));
    world.devices.acked(&one, &phone, cursor(6));
    drop(place);
    let before = found();
    assert_eq!((before.record.device_type.as_deref(), before.is_active), (Some("ios"), false));
    world.write().await;
    assert_eq!(found(), before);
    assert_eq!(world.devices.find(&*world.log, &user("2"), "phone").unwrap(), None);
    // Who is not here acknowledges nothing.
    world.devices.acked(&one, &phone, cursor(7));
    assert_eq!(found().record.cursor, Some(cursor(6)));
}

#[tokio::test]
async fn the_device_unseen_for_longest_makes_room() {
    let world = World::new(3, 100);
    let (one, two, begin) = (user("1"), user("2"), now());
    let old = world.enter(&one, "here");
    world.seen(&two, "other", begin - 10_000_000);
    for (n, id) in ["a", "b", "c", "d"].into_iter().enumerate() {
        world.seen(&one, id, begin - 1_000_000 + n as i64);
        world.write().await;
    }
    assert_eq!(world.ids(&one), ["here", "d", "c"], "the one that is here stays");
    assert_eq!(world.ids(&two), ["other"]);
    drop(old);
}

#[tokio::test]
async fn there_are_never_more_than_are_remembered_in_all() {
    let world = World::new(100, 20);
    let begin = now();
    for n in 0..50 {
        world.seen(&user(&n.to_string()), "phone", begin - 1_000_000 + n);
        world.write().await;
    }
    let left: Vec<i64> = (0..50).filter(|n| !world.ids(&user(&n.to_string())).is_empty()).collect();
    assert!((15..=20).contains(&left.len()), "{left:?}");
    assert_eq!(left, (50 - left.len() as i64..50).collect::<Vec<_>>(), "the newest");
}

#[tokio::test]
async fn a_device_unseen_for_too_long_is_forgotten() {
    let world = World::new(100, 100);
    let (one, begin) = (user("1"), now());
    world.seen(&one, "old", begin - 1_000_000_001);
    world.seen(&one, "new", begin);
    world.write().await;
    assert_eq!(world.ids(&one), ["new"]);
    assert_eq!(world.devices.find(&*world.log, &one, "old").unwrap(), None);
    assert!(!world.devices.forget(&*world.log, &one, "old").unwrap());
    world.seen(&one, "older", begin - 2_000_000_000);
    world.write().await;
    world.log.keep(&format!("{}{}", record::of_user(&one).unwrap(), "odd"), Some(b"{")).unwrap();
    world.devices.sweep_all(&*world.log).unwrap();
    assert_eq!(world.log.kept_under(&record::all()).unwrap().len(), 1);
}

#[tokio::test]
async fn a_device_that_was_removed_does_not_come_back_by_its_going() {
    let world = World::new(100, 100);
    let one = user("1");
    let (place, other) = (world.enter(&one, "phone"), world.enter(&one, "tablet"));
    world.write().await;
    assert!(world.devices.forget(&*world.log, &one, "phone").unwrap());
    assert!(!world.devices.forget(&*world.log, &one, "phone").unwrap());
    assert!(place.take_mail().removed && !other.take_mail().removed);
    world.devices.acked(&one, &"phone".into(), cursor(5));
    drop(place);
    world.write().await;
    assert_eq!(world.ids(&one), ["tablet"]);
    // The token stays valid: it may come back.
    let _again = world.enter(&one, "phone");
    assert_eq!(world.ids(&one).len(), 2);
}

#[tokio::test]
async fn the_other_devices_are_told_of_a_sync_once_a_minute() {
    let world = World::new(100, 100);
    let one = user("1");
    let places = ["phone", "phone", "tablet"].map(|id| world.enter(&one, id));
    let stranger = world.enter(&user("2"), "tablet");
    let told =
        || places.each_ref().map(|place| place.take_mail().synced.map(|(device, _)| device.to_string()));
    world.devices.synced(&one, "phone");
    assert_eq!(told(), [None, None, Some("phone".to_owned())]);
    world.devices.synced(&one, "tablet");
    assert_eq!(told(), [None, None, None], "not twice a minute");
    world.devices.inner.sessions.tell_synced(&one, "tablet", now() + 60_000_000, SYNCED_INTERVAL);
    assert_eq!(told(), [Some("tablet".to_owned()), Some("tablet".to_owned()), None]);
    assert_eq!(stranger.take_mail(), Mail::default());
}

#[test]
fn active_users_come_in_pages() {
    let sessions = Sessions::default();
    let enter = |of: &str, id: &str| sessions.enter(&user(of), &id.into(), Channel::WebSocket, 20).unwrap();
    let _places = [enter("b", "1"), enter("a", "1"), enter("c", "1"), enter("a", "2"), enter("a", "2")];
    let (first, more) = sessions.active_users("", 2);
    let names = |users: &[ActiveUser]| users.iter().map(|u| u.user.subject.clone()).collect::<Vec<_>>();
    assert_eq!((names(&first), more), (vec!["a".to_owned(), "b".to_owned()], true));
    assert_eq!((first[0].sessions, first[0].devices), (3, 2));
    let (rest, more) = sessions.active_users(&first[1].place, 2);
    assert_eq!((names(&rest), more), (vec!["c".to_owned()], false));
    assert_eq!(sessions.present(Channel::WebSocket), Present { sessions: 5, users: 3, devices: 4 });
    assert_eq!(sessions.present(Channel::Http), Present::default());
}
