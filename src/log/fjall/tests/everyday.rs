//! What is put in comes out; parts, marks, pages, back-pressure and time.

use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;

use super::super::FjallLog;
use super::support::*;
use crate::change::*;
use crate::log::*;
use crate::lsn::Lsn;
use crate::position::Position;

fn keys(page: &Page) -> Vec<String> {
    let bodies = page.transactions.iter().flat_map(|transaction| &transaction.deliveries);
    let key = |delivery: &Delivery| match &delivery.body {
        Body::Row(row) => String::from_utf8(row.key.to_vec()).unwrap(),
        Body::Truncate(_) => "truncate".to_owned(),
        Body::Broadcast(broadcast) => broadcast.id.to_string(),
    };
    bodies.map(key).collect()
}

fn part(commit: u64, attempt: u32, deliveries: Vec<Delivery>) -> Transaction {
    Transaction { attempt: Some(attempt), ..transaction(commit, deliveries) }
}

fn tag() -> Tag {
    Tag { device: "d1".into(), correlation: Some("c9".into()), user: Some("42".into()) }
}

#[tokio::test]
async fn every_kind_of_delivery_comes_back_as_it_was() {
    let directory = tempfile::tempdir().unwrap();
    let log = create(&options(directory.path()));
    let broadcast = Broadcast {
        audience: audience("user:1"),
        name: "notifications".into(),
        id: "b1".into(),
        event: "new".into(),
        payload: Bytes::from_static(b"{\"a\": 1}"),
    };
    let deliveries = vec![
        row(1, 1, "k1", "{\"id\":1}", &[("user:1", false, true), ("user:2", true, true)]),
        row(2, 1, "k2", "", &[("user:1", true, false)]),
        Delivery { index: 3, body: Body::Truncate(shape(2)) },
        Delivery { index: 5, body: Body::Broadcast(broadcast) },
    ];
    let given = Transaction { tag: Some(tag()), ..transaction(110, deliveries) };
    let mut append = whole(given.clone());
    append.state = vec![("catalog".to_owned(), Some(b"second".to_vec())), ("gone".to_owned(), None)];
    put(&log, append).await;
    let page = read(&log, &[all_of("user:1"), all_of("user:2"), all_of("user:1")]);
    assert_eq!(format!("{:?}", page.transactions), format!("{:?}", [Arc::new(given)]));
    assert_eq!(page.through, Position::boundary(Lsn::new(120)));
    assert!(!page.more && !page.cut);
    assert_eq!(log.state("catalog").unwrap().unwrap(), b"second");
    assert_eq!(log.state("gone").unwrap(), None);
    assert_eq!(keys(&read(&log, &[all_of("user:3")])), ["truncate"]);
    assert_eq!(keys(&read(&log, &[all_of("team:3")])), [""; 0], "not a scope of the table");
    let only = Interest { tables: Tables::Only(vec!["notifications".into()]), ..all_of("user:1") };
    assert_eq!(keys(&read(&log, &[only])), ["b1"]);
    let later = Interest { after: Position::new(Lsn::new(110), 2), ..all_of("user:1") };
    assert_eq!(keys(&read(&log, &[later])), ["truncate", "b1"]);
}

#[tokio::test]
async fn it_opens_where_it_was_left() {
    let directory = tempfile::tempdir().unwrap();
    let options = options(directory.path());
    assert!(FjallLog::open(&options).unwrap().is_none());
    let log = create(&options);
    assert!(FjallLog::open(&options).is_err(), "one at a time");
    put(&log, whole(transaction(110, vec![row(1, 1, "k1", "{}", &[("user:1", false, true)])]))).await;
    let mark = Mark {
        table: "t9".into(),
        audience: None,
        scopes: vec!["user".to_owned()],
        upto: Position::boundary(Lsn::new(115)),
        reason: Reason::Retracked,
    };
    submit(&log, Append { marks: vec![mark.clone()], watermark: Some(Lsn::new(130)), ..Append::default() })
        .await;
    assert_eq!(log.marks_version(), 1);
    drop(log);

    let log = FjallLog::open(&options).unwrap().unwrap();
    assert_eq!((log.epoch(), log.oldest()), (beginning(100).epoch, Position::boundary(Lsn::new(100))));
    assert_eq!(*log.durable().borrow(), Lsn::new(130));
    assert_eq!(log.watermark().borrow().greatest_committed_at, 1_000_110);
    assert_eq!(log.marks().as_slice(), [mark]);
    assert_eq!(log.state("catalog").unwrap().unwrap(), b"first");
    assert_eq!(keys(&read(&log, &[all_of("user:1")])), ["k1"]);
    drop(log);

    // A log made anew holds nothing of the old one, and what a crash left half-made is no log.
    let log = create(&options);
    assert_eq!(keys(&read(&log, &[all_of("user:1")])), [""; 0]);
    assert!(log.marks().is_empty());
    drop(log);
    std::fs::rename(directory.path().join("data"), directory.path().join("new")).unwrap();
    assert!(FjallLog::open(&options).unwrap().is_none());
    assert!(!directory.path().join("new").exists());
}

#[tokio::test]
async fn sending_again_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let log = create(&options(directory.path()));
    let first = whole(transaction(110, vec![row(1, 1, "k1", "{}", &[("user:1", false, true)])]));
    put(&log, first.clone()).await;
    let before = format!("{:?}", read(&log, &[all_of("user:1")]));
    put(&log, first).await;
    put(&log, whole(transaction(105, vec![row(1, 1, "k0", "{}", &[("user:1", false, true)])]))).await;
    assert_eq!(format!("{:?}", read(&log, &[all_of("user:1")])), before);
    assert_eq!(log.watermark().borrow().lsn, Lsn::new(120));
    // The next transaction may commit right where the last one ended.
    put(&log, whole(transaction(120, vec![row(1, 1, "k2", "{}", &[("user:1", false, true)])]))).await;
    assert_eq!(keys(&read(&log, &[all_of("user:1")])), ["k1", "k2"]);
}

#[tokio::test]
async fn parts_are_shown_whole_or_not_at_all() {
    let directory = tempfile::tempdir().unwrap();
    let options = options(directory.path());
    let log = create(&options);
    let member = [("user:1", false, true)];
    let only = |transaction| Append { transaction: Some(Arc::new(transaction)), ..Append::default() };
    put(&log, only(part(110, 1, vec![row(1, 1, "old1", "{}", &member), row(9, 1, "old9", "{}", &member)])))
        .await;
    assert_eq!(keys(&read(&log, &[all_of("user:1")])), [""; 0]);
    drop(log);

    let log = FjallLog::open(&options).unwrap().unwrap();
    assert_eq!(log.watermark().borrow().lsn, Lsn::new(100));
    put(&log, only(part(110, 2, vec![row(1, 1, "k1", "{}", &member)]))).await;
    let last = Transaction { tag: Some(tag()), ..part(110, 2, vec![row(2, 1, "k2", "{}", &member)]) };
    put(&log, whole(last)).await;
    let page = read(&log, &[all_of("user:1")]);
    assert_eq!(keys(&page), ["k1", "k2"]);
    assert_eq!((&page.transactions[0].tag, page.transactions[0].attempt), (&Some(tag()), Some(2)));

    // Sent at once after a sending in parts was left incomplete.
    put(&log, only(part(130, 1, vec![row(3, 1, "old", "{}", &member)]))).await;
    put(&log, whole(transaction(130, vec![row(1, 1, "k3", "{}", &member)]))).await;
    assert_eq!(keys(&read(&log, &[all_of("user:1")])), ["k1", "k2", "k3"]);
}

#[tokio::test]
async fn marks_hide_what_lies_before_them() {
    let directory = tempfile::tempdir().unwrap();
    let log = create(&options(directory.path()));
    for (commit, table) in [(110, 1), (120, 2), (130, 1)] {
        let of = [("user:1", true, true), ("user:2", true, true)];
        put(&log, whole(transaction(commit, vec![row(1, table, &format!("k{commit}"), "{}", &of)]))).await;
    }
    let mark = |audience: Option<&str>, upto| Mark {
        table: "t1".into(),
        audience: audience.map(super::support::audience),
        scopes: vec!["user".to_owned()],
        upto: Position::new(Lsn::new(upto), 1),
        reason: Reason::Toast,
    };
    let version = log.marks_version();
    log.submit(Append { marks: vec![mark(Some("user:1"), 130)], ..Append::default() }).unwrap().unwrap();
    assert_ne!(log.marks_version(), version, "in force at once");
    assert_eq!(keys(&read(&log, &[all_of("user:1")])), ["k120"]);
    assert_eq!(keys(&read(&log, &[all_of("user:2")])), ["k110", "k120", "k130"]);
    log.submit(Append { marks: vec![mark(None, 110)], ..Append::default() }).unwrap().unwrap();
    assert_eq!(keys(&read(&log, &[all_of("user:2")])), ["k120", "k130"]);
    let beyond = |text, after| log.mark_beyond(&audience(text), "t1", Position::new(Lsn::new(after), 1));
    assert_eq!(beyond("user:1", 120), Some(mark(Some("user:1"), 130)));
    assert_eq!(beyond("user:1", 130), None);
    assert_eq!(beyond("user:2", 100), Some(mark(None, 110)));
}

#[tokio::test]
async fn pages_say_whether_they_cut_a_transaction() {
    let directory = tempfile::tempdir().unwrap();
    let log = create(&options(directory.path()));
    let mine = [("user:1", true, true)];
    let theirs = [("user:2", true, true)];
    let first = vec![row(1, 1, "a", "{}", &mine), row(2, 1, "b", "{}", &mine), row(3, 1, "x", "{}", &theirs)];
    put(&log, whole(transaction(110, first))).await;
    put(&log, whole(transaction(120, vec![row(1, 1, "c", "{}", &mine), row(2, 2, "d", "{}", &mine)]))).await;
    let interests = [Interest { tables: Tables::Only(vec!["t1".into()]), ..all_of("user:1") }];
    let page = |after, max_deliveries, max_bytes| {
        let request = ReadRequest { max_deliveries, max_bytes, ..request(&interests, after) };
        let page = log.read(&request).unwrap();
        (keys(&page).concat(), page.through, page.more, page.cut)
    };
    let at = |commit, index| Position::new(Lsn::new(commit), index);
    assert_eq!(page(at(100, 0), 1, usize::MAX), ("a".to_owned(), at(110, 1), true, true));
    assert_eq!(page(at(100, 0), 0, 0), ("a".to_owned(), at(110, 1), true, true));
    assert_eq!(page(at(100, 0), 2, usize::MAX), ("ab".to_owned(), at(110, 2), true, false));
    assert_eq!(page(at(110, 2), 1, usize::MAX), ("c".to_owned(), at(130, 0), false, false));
    assert_eq!(page(at(130, 0), 1, usize::MAX), (String::new(), at(130, 0), false, false));
    let too_old = log.read(&request(&interests, at(99, 9)));
    assert!(matches!(too_old, Err(ReadError::TooOld { oldest }) if oldest == at(100, 0)));
}

#[tokio::test]
async fn a_page_looks_at_a_bounded_number_of_entries() {
    let directory = tempfile::tempdir().unwrap();
    let log = create(&options(directory.path()));
    let noise = |index| row(index, 2, "x", "{}", &[("user:1", true, true)]);
    let wanted = |index, key| row(index, 1, key, "{}", &[("user:1", true, true)]);
    for n in 0..10 {
        put(&log, whole(transaction(110 + n * 10, vec![noise(1), noise(2)]))).await;
    }
    put(&log, whole(transaction(210, vec![noise(1), wanted(2, "a"), noise(3), noise(4), noise(5)]))).await;
    put(&log, whole(transaction(220, vec![noise(1), noise(2), wanted(3, "b")]))).await;
    let interests = [Interest { tables: Tables::Only(vec!["t1".into()]), ..all_of("user:1") }];
    let at = |commit, index| Position::new(Lsn::new(commit), index);
    let page = |after, max_visited| {
        let request = ReadRequest { max_visited, ..request(&interests, after) };
        let page = log.read(&request).unwrap();
        assert!(!page.cut);
        (keys(&page).concat(), page.through, page.more, page.paused_at.is_some())
    };
    assert_eq!(page(at(100, 0), 5), (String::new(), at(130, 1), true, true));
    assert_eq!(page(at(100, 0), 0), (String::new(), at(110, 1), true, true), "there is always progress");
    // What the page holds something of is gone through, so that its end is known.
    assert_eq!(page(at(200, 2), 2), ("a".to_owned(), at(220, 1), true, true));
    assert_eq!(page(at(220, 1), 2), ("b".to_owned(), at(230, 0), false, false));
    assert_eq!(page(at(100, 0), usize::MAX), ("ab".to_owned(), at(230, 0), false, false));
}

#[tokio::test]
async fn the_queue_is_bounded_and_everything_accepted_is_applied() {
    let directory = tempfile::tempdir().unwrap();
    let log = create(&LogOptions { queue_size: 2_000, ..options(directory.path()) });
    let (mut refused, count) = (0, 300);
    for n in 1..=count {
        let json = "x".repeat(1_000);
        let mut append =
            whole(transaction(100 + n * 10, vec![row(1, 1, "k", &json, &[("user:1", true, true)])]));
        while let Err(back) = log.submit(append).unwrap() {
            refused += 1;
            append = back;
            log.room().await.unwrap();
        }
        assert!(log.stats().queued_bytes < 2_000 + 3_000);
    }
    assert!(refused > 0);
    log.applied().await.unwrap();
    assert_eq!(log.stats().queued_bytes, 0);
    assert_eq!(keys(&read(&log, &[all_of("user:1")])).len(), count as usize);
    log.flush().await.unwrap();
    assert_eq!(*log.durable().borrow(), log.watermark().borrow().lsn);
}

#[tokio::test]
async fn what_is_applied_becomes_durable_by_itself() {
    let directory = tempfile::tempdir().unwrap();
    let log = create(&options(directory.path()));
    let mut durable = log.durable();
    put(&log, Append { watermark: Some(Lsn::new(500)), ..Append::default() }).await;
    durable.wait_for(|lsn| *lsn == Lsn::new(500)).await.unwrap();
}

#[tokio::test]
async fn a_column_is_found_in_an_earlier_entry() {
    let directory = tempfile::tempdir().unwrap();
    let log = create(&options(directory.path()));
    let mine = [("user:1", true, true)];
    let unchanged = |index, key: &str| {
        let mut delivery = row(index, 1, key, "{\"id\":1}", &mine);
        let Body::Row(change) = &mut delivery.body else { unreachable!() };
        change.record.as_mut().unwrap().unchanged = vec!["big".into()];
        delivery
    };
    let find = |key: &str, column: &str, before, attempt, max_entries| {
        let (audience, key) = (audience("user:1"), key.as_bytes());
        let before = Position::new(Lsn::new(before), 5);
        let query =
            ColumnQuery { audience: &audience, table: "t1", key, column, before, attempt, max_entries };
        log.column_value(&query).unwrap()
    };
    put(
        &log,
        whole(transaction(
            110,
            vec![row(1, 1, "a", "{\"id\":1,\"big\":\"x y\"}", &[("user:1", false, true)])],
        )),
    )
    .await;
    put(&log, whole(transaction(120, vec![unchanged(1, "a"), row(2, 1, "b", "{\"big\":7}", &mine)]))).await;
    put(&log, whole(transaction(130, vec![row(1, 1, "b", "", &[("user:1", true, false)])]))).await;
    let found = Some("\"x y\"".to_owned());
    assert_eq!(find("a", "big", 140, None, 100), found);
    assert_eq!(find("a", "big", 110, None, 100), found, "in the same transaction");
    assert_eq!(find("a", "big", 140, None, 3), None, "too many entries back");
    assert_eq!(find("a", "other", 140, None, 100), None);
    assert_eq!(find("b", "big", 120, None, 100), Some("7".to_owned()));
    assert_eq!(find("b", "big", 140, None, 100), None, "deleted in between");

    // Of parts only this sending's count, and they do so before their end is known.
    let only = |transaction| Append { transaction: Some(Arc::new(transaction)), ..Append::default() };
    put(&log, only(part(140, 1, vec![row(1, 1, "a", "{\"big\":1}", &mine)]))).await;
    assert_eq!(find("a", "big", 140, Some(1), 100), Some("1".to_owned()));
    assert_eq!(find("a", "big", 140, Some(2), 100), found);
    let mark = Mark {
        table: "t1".into(),
        audience: None,
        scopes: Vec::new(),
        upto: Position::boundary(Lsn::new(115)),
        reason: Reason::SchemaChanged,
    };
    log.submit(Append { marks: vec![mark], ..Append::default() }).unwrap().unwrap();
    assert_eq!(find("a", "big", 130, None, 100), None, "behind a mark");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// A time begins where no earlier commit has that time or a later one.
    #[test]
    fn a_time_begins_before_the_first_commit_that_has_it(
        steps in prop::collection::vec(-400_000..600_000i64, 1..40),
        asked in prop::collection::vec(-1_000_000..12_000_000i64, 20),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let log = create(&options(directory.path()));
        let (mut now, mut greatest) = (1_000, 1_000);
        let mut commits = Vec::new();
        for (n, step) in steps.into_iter().enumerate() {
            now += step;
            greatest = greatest.max(now);
            let commit = 110 + n as u64 * 20;
            commits.push((Position::boundary(Lsn::new(commit)), now, greatest));
            let transaction =
                Transaction { committed_at: now, greatest_committed_at: greatest, ..transaction(commit, vec![]) };
            runtime.block_on(put(&log, whole(transaction)));
        }
        for time in asked.into_iter().chain(commits.iter().map(|(_, time, _)| *time)) {
            match log.lookup_time(time).unwrap() {
                TimeLookup::InFuture => prop_assert!(time > greatest),
                TimeLookup::TooOld => prop_assert!(time <= 1_000),
                TimeLookup::From(from) => {
                    let first = commits.iter().find(|(_, at, _)| *at >= time).unwrap();
                    prop_assert!(from <= first.0);
                    // And no earlier than the index is fine.
                    let begins = commits.iter().find(|(at, ..)| *at == from).unwrap();
                    prop_assert!(begins.2 > time - 100_000);
                }
            }
        }
    }
}

#[tokio::test]
async fn what_is_kept_beside_the_log_outlasts_it() {
    let directory = tempfile::tempdir().unwrap();
    let options = options(directory.path());
    let log = create(&options);
    let kept = |log: &FjallLog, prefix| {
        let kept = log.kept_under(prefix).unwrap();
        kept.into_iter().map(|(name, value)| (name, String::from_utf8(value).unwrap())).collect::<Vec<_>>()
    };
    for (name, value) in [("device/b", Some("2")), ("device/a", Some("0")), ("other", Some("x"))] {
        log.keep(name, value.map(str::as_bytes)).unwrap();
    }
    log.keep("device/a", Some(b"1")).unwrap();
    log.keep("other", None).unwrap();
    let devices = [("device/a".to_owned(), "1".to_owned()), ("device/b".to_owned(), "2".to_owned())];
    assert_eq!(kept(&log, ""), devices);
    drop(log);
    let log = FjallLog::open(&options).unwrap().unwrap();
    assert_eq!(kept(&log, "device/"), devices);
    assert_eq!((log.kept("device/b").unwrap(), log.kept("other").unwrap()), (Some(b"2".to_vec()), None));
    assert_eq!(log.states("device/").unwrap(), []);
    let page = |after: &str, most| {
        let page = log.kept_page("device/", after, most).unwrap();
        page.into_iter().map(|(name, _)| name).collect::<Vec<_>>().concat()
    };
    log.keep("devices", Some(b"3")).unwrap();
    assert_eq!((page("", 1).as_str(), page("device/a", 9).as_str()), ("device/a", "device/b"));
    assert_eq!((page("", 9).as_str(), page("device/b", 9).as_str()), ("device/adevice/b", ""));
}

#[tokio::test]
async fn a_log_is_closed_once_nobody_holds_it_and_its_place_is_free() {
    let directory = tempfile::tempdir().unwrap();
    let options = options(directory.path());
    let log = create(&options);
    let (reader, mut closed) = (log.clone(), log.closed());
    drop(log);
    assert!(futures_util::poll!(&mut closed).is_pending());
    std::thread::spawn(move || drop(reader));
    tokio::time::timeout(Duration::from_secs(30), closed).await.unwrap();
    let lock = std::fs::File::open(directory.path().join("lock")).unwrap();
    lock.try_lock().unwrap();
}

/// A relay that is killed there would forget what outlives the epoch: devices, and how late commits have been.
#[tokio::test]
async fn a_replacement_that_was_cut_short_between_its_renames_is_finished() {
    let directory = tempfile::tempdir().unwrap();
    let options = options(directory.path());
    let [data, new, old] = ["data", "new", "old"].map(|name| directory.path().join(name));
    let log = create(&options);
    let lasting = format!("{LASTING}a");
    log.keep(&lasting, Some(b"1")).unwrap();
    drop(log);
    let kept = directory.path().join("kept");
    let copied = std::process::Command::new("cp").arg("-r").args([&data, &kept]).status().unwrap();
    assert!(copied.success());
    let later = Beginning { epoch: Epoch::new(8), greatest_committed_at: 9_000, ..beginning(200) };
    drop(FjallLog::create(&options, later).unwrap());
    std::fs::rename(&data, &new).unwrap();
    std::fs::rename(&kept, &old).unwrap();
    let log = FjallLog::open(&options).unwrap().unwrap();
    assert_eq!((log.epoch(), log.watermark().borrow().greatest_committed_at), (Epoch::new(8), 9_000));
    assert_eq!(log.kept(&lasting).unwrap(), Some(b"1".to_vec()));
    assert!(!new.exists() && !old.exists());
}

#[tokio::test]
async fn what_is_lasting_outlives_the_epoch() {
    let directory = tempfile::tempdir().unwrap();
    let options = options(directory.path());
    let log = create(&options);
    let lasting = format!("{LASTING}a");
    log.keep(&lasting, Some(b"1")).unwrap();
    log.keep("brief", Some(b"2")).unwrap();
    drop(log);
    for _ in 0..2 {
        let log = create(&options);
        assert_eq!(log.kept(&lasting).unwrap(), Some(b"1".to_vec()));
        assert_eq!(log.kept("brief").unwrap(), None);
    }
    // What cannot be read must not keep a new log from beginning.
    for file in std::fs::read_dir(options.directory.join("data")).unwrap().map(Result::unwrap) {
        if file.file_type().unwrap().is_file() {
            std::fs::write(file.path(), b"no such thing").unwrap();
        }
    }
    assert_eq!(create(&options).kept_under("").unwrap(), []);
}
