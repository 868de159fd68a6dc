//! Logs in temporary directories, and transactions to put in.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::super::FjallLog;
use crate::change::*;
use crate::cursor::Epoch;
use crate::log::*;
use crate::lsn::Lsn;
use crate::position::Position;
use crate::topic::Audience;

pub(in super::super) fn shape(id: u32) -> Arc<Shape> {
    Arc::new(Shape {
        id,
        relid: id,
        schema: "public".to_owned(),
        table: format!("t{id}"),
        name: format!("t{id}").into(),
        key: vec!["id".to_owned()],
        scopes: vec!["user".to_owned(), "global".to_owned()],
        columns: Vec::new(),
    })
}

pub(in super::super) fn audience(text: &str) -> Audience {
    Audience::parse(text).unwrap()
}

pub(in super::super) fn options(directory: &std::path::Path) -> LogOptions {
    LogOptions {
        directory: directory.to_owned(),
        max_age: Duration::from_secs(72 * 3600),
        max_size: 10 << 30,
        group_commit_interval: Duration::from_millis(50),
        group_commit_size: 1 << 20,
        queue_size: 8 << 20,
        gather_rate: 32 << 20,
    }
}

pub(in super::super) fn beginning(start: u64) -> Beginning {
    Beginning {
        epoch: Epoch::new(7),
        start: Lsn::new(start),
        greatest_committed_at: 1_000,
        state: vec![("catalog".to_owned(), b"first".to_vec())],
    }
}

pub(in super::super) fn create(options: &LogOptions) -> Arc<FjallLog> {
    FjallLog::create(options, beginning(100)).unwrap()
}

pub(in super::super) fn transaction(commit: u64, deliveries: Vec<Delivery>) -> Transaction {
    let committed_at = 1_000_000 + commit.cast_signed();
    Transaction {
        commit: Lsn::new(commit),
        xid: commit as u32,
        committed_at,
        greatest_committed_at: committed_at,
        attempt: None,
        tag: None,
        deliveries,
    }
}

pub(in super::super) fn row(
    index: u32,
    table: u32,
    key: &str,
    json: &str,
    of: &[(&str, bool, bool)],
) -> Delivery {
    let memberships = of
        .iter()
        .map(|&(text, before, after)| Membership { audience: audience(text), before, after })
        .collect();
    let record = of.iter().any(|(_, _, after)| *after).then(|| Record {
        json: Bytes::copy_from_slice(json.as_bytes()),
        unchanged: Vec::new(),
        whole: None,
    });
    let key = Bytes::copy_from_slice(key.as_bytes());
    Delivery { index, body: Body::Row(RowChange { shape: shape(table), key, record, memberships }) }
}

/// A whole transaction that ends ten bytes after it commits.
pub(in super::super) fn whole(transaction: Transaction) -> Append {
    let end = Lsn::new(transaction.commit.get() + 10);
    Append { transaction: Some(Arc::new(transaction)), watermark: Some(end), ..Append::default() }
}

pub(in super::super) async fn submit(log: &FjallLog, append: Append) {
    let mut append = append;
    while let Err(back) = log.submit(append).unwrap() {
        append = back;
        log.room().await.unwrap();
    }
}

pub(in super::super) async fn put(log: &FjallLog, append: Append) {
    submit(log, append).await;
    log.applied().await.unwrap();
}

pub(in super::super) fn all_of(text: &str) -> Interest {
    Interest { audience: audience(text), tables: Tables::All { except: Vec::new() }, after: Position::ZERO }
}

pub(in super::super) fn request(interests: &[Interest], after: Position) -> ReadRequest<'_> {
    ReadRequest {
        interests,
        after,
        upto: Position::MAX,
        max_deliveries: usize::MAX,
        max_bytes: usize::MAX,
        max_visited: usize::MAX,
    }
}

pub(in super::super) fn read(log: &FjallLog, interests: &[Interest]) -> Page {
    log.read(&request(interests, log.oldest())).unwrap()
}
