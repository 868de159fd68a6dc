//! Streams of messages through the router: whatever the server sends, rows are routed within their
//! plans or refused, and what the log keeps of the router is read back.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value as Json;

use super::grants::GrantTemplate;
use super::message::MessageBody;
use super::*;
use crate::change::RowChange;
use crate::fuzzing::Source;
use crate::json::object_fields;
use crate::lsn::Lsn;
use crate::postgres::types::{Kind, Type};
use crate::topic::Audience;
use crate::wal::pgoutput::{Message, decode};

/// The body of a message of the catalog's functions: behind the code that proves where it comes from.
pub(crate) fn logical_message(body: &[u8]) {
    if let Ok(body) = serde_json::from_slice::<MessageBody>(body)
        && let Ok(LogicalMessage::Broadcast(broadcast)) = body.checked()
    {
        assert_eq!(Audience::parse(broadcast.audience.as_str()), Ok(broadcast.audience));
        assert!(serde_json::from_slice::<serde::de::IgnoredAny>(&broadcast.payload).is_ok());
        assert!(!broadcast.payload.contains(&b'\n') && !broadcast.payload.contains(&b'\r'));
    }
    for content in [body, b"", &[b'0'; 64]] {
        assert_eq!(Secret::default().open(1, content), Err(Dropped::Forged));
    }
}

/// A grant's template as topic templates are, but for the wildcard at its end.
pub(crate) fn grant_template(text: &str, value: &str) {
    let Ok(template) = GrantTemplate::parse(text) else { return };
    assert_eq!(template.to_string(), text);
    let rule = rule(template);
    let Some(member) = rule.member(Some("42"), Some(value)) else { return };
    let (_, pattern) = rule.grant_of(&member);
    assert_eq!(crate::topic::Pattern::parse(&pattern.to_string()).as_ref(), Ok(&pattern));
    assert_eq!(pattern.table.is_none(), text.ends_with(":*"));
}

fn rule(pattern: GrantTemplate) -> GrantRule {
    GrantRule {
        generation: 1,
        relid: 1,
        schema: String::new(),
        table: String::new(),
        user_column: String::new(),
        pattern,
        issuer: None,
        key_columns: Vec::new(),
        columns: Vec::new(),
        era: 0,
        ended: false,
    }
}

/// The rights that the log kept: an error, or grants that are within their rule and are kept as they were.
pub(crate) fn rights(data: &[u8]) {
    let mut source = Source::new(data);
    let mut kept = Vec::new();
    while !source.is_empty() {
        kept.push((source.text(), source.short().to_vec()));
    }
    let rule = rule(GrantTemplate::parse("team:{id}:*").expect("a template"));
    let mut router = Router::new(RouterState { grants: BTreeMap::from([(1, rule)]), ..<_>::default() });
    if router.restore_rights(kept).is_err() {
        return;
    }
    let all = format!("{:?}", router.all_rights().collect::<Vec<_>>());
    for right in router.all_rights() {
        if let crate::auth::RightsChange::Grant(_, pattern) = right {
            assert_eq!(crate::topic::Pattern::parse(&pattern.to_string()), Ok(pattern));
        }
    }
    let again = router.all_rights_state();
    let mut restored = Router::new(router.state().clone());
    restored.restore_rights(again).expect("as it was kept");
    assert_eq!(format!("{:?}", restored.all_rights().collect::<Vec<_>>()).len(), all.len());
}

/// What the log kept, whatever it is by now.
pub(crate) fn state(data: &[u8]) {
    let Ok(state) = serde_json::from_slice::<RouterState>(data) else { return };
    let router = Router::new(state);
    same_when_kept(&router);
}

fn same_when_kept(router: &Router) {
    let kept = serde_json::to_vec(router.state()).expect("a state can always be kept");
    let again: RouterState = serde_json::from_slice(&kept).expect("as it was kept");
    let json = |state: &RouterState| serde_json::to_value(state).expect("a state can always be kept");
    let (kept, again): (Json, Json) = (json(router.state()), json(&again));
    assert_eq!(kept, again);
}

/// Each message is preceded by its length, in two bytes.
pub(crate) fn stream(data: &[u8]) {
    let mut source = Source::new(data);
    let mut stream = Stream { router: Router::new(RouterState::default()), at: Position::ZERO, xid: 0 };
    while !source.is_empty() {
        if let Ok(message) = decode(Bytes::copy_from_slice(source.long())) {
            stream.take(message);
        }
    }
    same_when_kept(&stream.router);
}

/// What ingest does, without a connection: questions are answered from what the stream has announced.
struct Stream {
    router: Router,
    at: Position,
    xid: u32,
}

impl Stream {
    fn take(&mut self, message: Message) {
        self.at = Position::new(self.at.commit, self.at.index.saturating_add(2));
        match message {
            Message::Begin(begin) => {
                self.at = Position::boundary(begin.final_lsn);
                self.xid = begin.xid;
            }
            Message::Relation(relation) => self.router.relation(relation),
            Message::Insert(insert) => self.put(insert.relid, MemberChange::Insert(&insert.new)),
            Message::Update(update) => {
                let change = MemberChange::Update { old: update.old.as_ref(), new: &update.new };
                self.put(update.relid, change);
            }
            Message::Delete(delete) => self.put(delete.relid, MemberChange::Delete(&delete.old)),
            Message::Truncate(truncate) => {
                for relid in &truncate.relids {
                    self.router.table_truncated(*relid);
                    if let Some(effect) = self.router.truncate_catalog(*relid, self.at) {
                        self.effect(effect);
                    } else if let Some(plan) = self.plan(*relid, Need::New) {
                        let _ = self.router.is_whole(plan.shape.relid, &truncate.relids);
                    }
                }
            }
            Message::Message(message) => {
                let _ = self.router.secret().open(self.xid, &message.content);
            }
            Message::Commit(_) => {
                let _ = self.router.take_changed();
            }
            Message::Origin(_) | Message::Type(_) => {}
        }
    }

    fn put(&mut self, relid: u32, change: MemberChange<'_>) {
        let (deleted, tuple) = match change {
            MemberChange::Insert(new) | MemberChange::Update { new, .. } => (false, new),
            MemberChange::Delete(OldTuple::Key(old) | OldTuple::Full(old)) => (true, old),
        };
        if let Some(row) = self.router.catalog_row(relid, tuple) {
            let effect = if deleted {
                self.router.delete_row(&row, self.at)
            } else {
                self.router.put_row(&row, self.at).unwrap_or_default()
            };
            return self.effect(effect);
        }
        if self.router.grants(relid) {
            self.router.member_changed(relid, change);
        }
        let need = if matches!(change, MemberChange::Insert(_)) { Need::New } else { Need::Old };
        if let Some(plan) = self.plan(relid, need) {
            route(&plan, change);
        }
    }

    fn effect(&mut self, effect: CatalogEffect) {
        if let Some(relid) = effect.ask {
            self.answer(relid);
        }
    }

    fn plan(&mut self, relid: u32, need: Need) -> Option<Arc<Plan>> {
        // Once for the question, and once for what the answer gives rise to.
        for _ in 0..3 {
            match self.router.reading(relid, self.at, need) {
                Reading::Plan(plan) => return Some(plan),
                Reading::Skip => return None,
                Reading::Mark(_) => {}
                Reading::Ask => self.answer(relid),
            }
        }
        None
    }

    /// A table is what its relation says, with types that nobody knows as texts.
    fn answer(&mut self, relid: u32) {
        let info = self.router.announced(relid).map(|relation| TableInfo {
            schema: relation.namespace.clone(),
            name: relation.name.clone(),
            primary_key: relation.columns.iter().filter(|c| c.key).map(|c| c.name.clone()).collect(),
            types: relation.columns.iter().map(|column| (column.type_oid, of_oid(column.type_oid))).collect(),
            fingerprint: format!("{relation:?}"),
            partitions: None,
        });
        let fetch = TableFetch { info, joined_without_rows: false, unpublished: None, insert_lsn: Lsn::ZERO };
        let _ = self.router.learn(relid, fetch, self.at);
    }
}

fn of_oid(oid: u32) -> Arc<Type> {
    let text = || Arc::new(Type { oid, name: "public.made".to_owned(), kind: Kind::Text });
    Type::builtin(oid).unwrap_or_else(text)
}

/// One row as ingest routes it, with owed values supplied and without.
fn route(plan: &Plan, change: MemberChange<'_>) {
    match change {
        MemberChange::Insert(new) => {
            let new: Row<'_> = new.iter().collect();
            if let Ok(Some(change)) = plan.insert(&new) {
                check(plan, &change);
            }
        }
        MemberChange::Delete(old) => {
            if let Ok(Some(change)) = plan.delete(&old_row(old)) {
                assert!(change.record.is_none());
                check(plan, &change);
            }
        }
        MemberChange::Update { old, new } => {
            let (old, new) = (old.map(old_row), new.iter().collect::<Row<'_>>());
            let owed = update(plan, old.as_ref(), &new, &Debt::Open);
            let _ = plan.newly(old.as_ref(), &new);
            let Some(owed) = owed else { return };
            let supplied = owed.columns.iter().map(|(index, _)| (*index, "null".to_owned())).collect();
            for debt in [Debt::Supplied(supplied), Debt::Unpayable] {
                assert!(
                    update(plan, old.as_ref(), &new, &debt).is_none(),
                    "a debt that was settled is asked for"
                );
            }
        }
    }
}

fn update<'a>(plan: &Plan, old: Option<&OldRow<'a>>, new: &Row<'a>, debt: &Debt) -> Option<Owed> {
    match plan.update(old, new, debt) {
        Ok(Update::Changed(change)) => check(plan, &change),
        Ok(Update::Rekeyed { delete, insert }) => {
            delete.iter().chain(&insert).for_each(|one| check(plan, one))
        }
        Ok(Update::Owed(owed)) => return Some(owed),
        Ok(Update::Nothing) | Err(_) => {}
    }
    None
}

fn old_row(old: &OldTuple) -> OldRow<'_> {
    match old {
        OldTuple::Key(tuple) => OldRow::Key(tuple.iter().collect()),
        OldTuple::Full(tuple) => OldRow::Full(tuple.iter().collect()),
    }
}

/// Nothing but what is published, for those whom it concerns.
fn check(plan: &Plan, change: &RowChange) {
    let names = |json: &Bytes| -> Vec<String> {
        let text = std::str::from_utf8(json).expect("text");
        object_fields(text).map(|field| field.expect("a record").0.into_owned()).collect()
    };
    assert_eq!(names(&change.key), plan.shape.key);
    let published: Vec<&str> = plan.shape.columns.iter().map(|(name, _)| name.as_str()).collect();
    if let Some(record) = &change.record {
        for json in std::iter::once(&record.json).chain(&record.whole) {
            assert!(names(json).iter().all(|name| published.contains(&name.as_str())));
        }
        assert_eq!(names(&record.json).len() + record.unchanged.len(), published.len());
    }
    assert!(!change.memberships.is_empty());
    assert!(change.memberships.is_sorted_by(|one, other| one.audience < other.audience));
    for member in &change.memberships {
        assert!(member.before || member.after);
        assert_eq!(Audience::parse(member.audience.as_str()).as_ref(), Ok(&member.audience));
    }
}
