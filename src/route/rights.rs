//! What the stream tells of rights: membership rows, and the revocation list.
//!
//! The router follows them in the stream's order, in the middle of transactions too. What that changes
//! is journaled twice until it is taken: for those who decide by it, and for the log to keep, one small
//! value for each row. Whoever takes it says when it is in force.

use std::collections::HashMap;
use std::sync::Arc;

use super::Router;
use super::catalog::{CatalogRow, CatalogRowError};
use super::grants::{
    GrantFault, GrantPlan, GrantRule, GrantTemplate, Member, MemberKey, Members, Seed, key_text,
};
use super::row::Row;
use crate::auth::{NamedUser, RightsChange};
use crate::wal::pgoutput::{OldTuple, Relation, Tuple};

/// Under which names the log keeps them.
pub const STATE_GRANT: &str = "grant/";
pub const STATE_REVOKED: &str = "revoked/";

/// Values of rules that are over are taken out of the log so many at a time.
const SWEPT_AT_ONCE: usize = 1_000;

#[derive(Debug, Default)]
pub(super) struct Rights {
    members: Members,
    revoked: HashMap<NamedUser, i64>,
    by_relation: HashMap<u32, Vec<i64>>,
    plans: HashMap<i64, Arc<GrantPlan>>,
    changes: Vec<RightsChange>,
    /// By name; `None` removes.
    state: Vec<(String, Option<Vec<u8>>)>,
    /// Names of values that are over.
    garbage: Vec<String>,
}

/// What a row's change is to the rows that grant.
#[derive(Debug, Clone, Copy)]
pub enum MemberChange<'a> {
    Insert(&'a Tuple),
    Update { old: Option<&'a OldTuple>, new: &'a Tuple },
    Delete(&'a OldTuple),
}

impl GrantRule {
    fn from_columns<'a>(column: impl Fn(&str) -> Option<&'a str>) -> Result<Self, CatalogRowError> {
        let need = |name| column(name).ok_or(CatalogRowError::Right { table: "grants", column: name });
        let bad = |column| CatalogRowError::Right { table: "grants", column };
        let array = |name| super::catalog::parse_text_array(need(name)?).ok_or_else(|| bad(name));
        let types = array("column_types")?;
        let types = types.iter().map(|oid| oid.parse().map_err(|_| bad("column_types")));
        let types = types.collect::<Result<Vec<u32>, _>>()?;
        Ok(GrantRule {
            generation: need("generation")?.parse().map_err(|_| bad("generation"))?,
            relid: need("relid")?.parse().map_err(|_| bad("relid"))?,
            schema: need("schema_name")?.to_owned(),
            table: need("table_name")?.to_owned(),
            user_column: need("user_column")?.to_owned(),
            pattern: GrantTemplate::parse(need("pattern")?)?,
            issuer: column("issuer").map(Into::into),
            key_columns: array("key_columns")?,
            columns: array("columns")?.into_iter().zip(types).collect(),
            era: 0,
            ended: false,
        })
    }
}

impl Router {
    /// A row of `rowcast.grants`, by its columns' texts. One that is known already stays as it is.
    pub fn put_grant<'a>(&mut self, column: impl Fn(&str) -> Option<&'a str>) -> Result<(), CatalogRowError> {
        let rule = GrantRule::from_columns(column)?;
        if !self.state.grants.contains_key(&rule.generation) {
            self.rights.by_relation.entry(rule.relid).or_default().push(rule.generation);
            self.state.grants.insert(rule.generation, rule);
            self.changed = true;
        }
        Ok(())
    }

    pub(super) fn drop_grant(&mut self, generation: i64) {
        self.forget_members(generation);
        if let Some(rule) = self.state.grants.remove(&generation) {
            if let Some(rules) = self.rights.by_relation.get_mut(&rule.relid) {
                rules.retain(|other| *other != generation);
                if rules.is_empty() {
                    self.rights.by_relation.remove(&rule.relid);
                }
            }
            self.changed = true;
        }
    }

    /// A row of `rowcast.grant_seeds`: rows that were there before the rule.
    pub(super) fn put_seeds(&mut self, row: &CatalogRow) -> Result<(), CatalogRowError> {
        let bad = |column| CatalogRowError::Right { table: "grant_seeds", column };
        let generation = row.get("generation").and_then(|text| text.parse().ok()).ok_or(bad("generation"))?;
        let seeds: Vec<Seed> = row
            .get("memberships")
            .and_then(|text| serde_json::from_str(text).ok())
            .ok_or(bad("memberships"))?;
        for (key, user, value) in &seeds {
            self.put_member(generation, key, user.as_deref(), value.as_deref());
        }
        Ok(())
    }

    /// A row as it was read from its table, by its columns' texts.
    pub fn put_member(&mut self, generation: i64, key: &[String], user: Option<&str>, value: Option<&str>) {
        let Some(rule) = self.state.grants.get(&generation).filter(|rule| !rule.ended) else { return };
        let member = rule.member(user, value);
        self.set_member(generation, key_text(key), member);
    }

    /// A row of `rowcast.revocations`, by its columns' texts.
    pub fn put_revocation<'a>(
        &mut self,
        column: impl Fn(&str) -> Option<&'a str>,
    ) -> Result<(), CatalogRowError> {
        let bad = |column| CatalogRowError::Right { table: "revocations", column };
        let user = named_user(&column).ok_or(bad("user_id"))?;
        let before = column("before_unix_us").and_then(|text| text.parse().ok());
        let before = before.ok_or(bad("before_unix_us"))?;
        if self.rights.revoked.insert(user.clone(), before) != Some(before) {
            self.rights.state.push((revocation_name(&user), Some(before.to_string().into_bytes())));
            self.rights.changes.push(RightsChange::Revoke { user, before });
        }
        Ok(())
    }

    pub(super) fn drop_revocation(&mut self, row: &CatalogRow) {
        if let Some(user) =
            named_user(|name| row.get(name)).filter(|user| self.rights.revoked.remove(user).is_some())
        {
            self.rights.state.push((revocation_name(&user), None));
            self.rights.changes.push(RightsChange::Unrevoke(user));
        }
    }

    /// The rules in force, to read their rows.
    pub fn grant_rules(&self) -> impl Iterator<Item = &GrantRule> {
        self.state.grants.values().filter(|rule| !rule.ended)
    }

    /// Whether rows of this table make grants.
    pub fn grants(&self, relid: u32) -> bool {
        self.rights.by_relation.contains_key(&relid)
    }

    /// A change of a row of a table whose rows make grants.
    pub fn member_changed(&mut self, relid: u32, change: MemberChange<'_>) {
        for generation in self.rights.by_relation.get(&relid).cloned().unwrap_or_default() {
            let Some(plan) = self.grant_plan(generation, relid) else { continue };
            if let Err(fault) = self.follow(generation, &plan, change) {
                self.end_grants(generation, &fault);
            }
        }
    }

    /// All rows of a table are gone. One of the catalog's own counts too.
    pub fn table_truncated(&mut self, relid: u32) {
        for generation in self.rights.by_relation.get(&relid).cloned().unwrap_or_default() {
            self.forget_members(generation);
        }
        match self.catalog_table(relid) {
            Some("grants") => {
                let all: Vec<i64> = self.state.grants.keys().copied().collect();
                all.into_iter().for_each(|generation| self.drop_grant(generation));
            }
            Some("revocations") => {
                for (user, _) in std::mem::take(&mut self.rights.revoked) {
                    self.rights.state.push((revocation_name(&user), None));
                    self.rights.changes.push(RightsChange::Unrevoke(user));
                }
            }
            _ => {}
        }
    }

    /// The rows of a rule's table cannot be relied on any more: it grants nothing from now on, until
    /// another rule takes its place. Whether it still granted until now.
    pub fn end_grants(&mut self, generation: i64, fault: &GrantFault) -> bool {
        let Some(rule) = self.state.grants.get_mut(&generation).filter(|rule| !rule.ended) else {
            return false;
        };
        rule.ended = true;
        tracing::error!(
            table = %rule.full_name(), pattern = %rule.pattern, %fault,
            "the grants that rows of this table made have ended; SELECT rowcast.grant_by again"
        );
        self.forget_members(generation);
        true
    }

    /// Rules that make no grants though nobody ended them.
    pub fn ended_grants(&self) -> usize {
        self.state.grants.values().filter(|rule| rule.ended).count()
    }

    /// What changed since this was last asked, for those who decide by it.
    pub fn take_rights(&mut self) -> Vec<RightsChange> {
        std::mem::take(&mut self.rights.changes)
    }

    /// What changed since this was last asked, for the log to keep; `None` removes.
    pub fn take_rights_state(&mut self) -> Vec<(String, Option<Vec<u8>>)> {
        let mut state = std::mem::take(&mut self.rights.state);
        let left = self.rights.garbage.len().saturating_sub(SWEPT_AT_ONCE);
        state.extend(self.rights.garbage.drain(left..).map(|name| (name, None)));
        state
    }

    /// All rights, for those who decide by them.
    pub fn all_rights(&self) -> impl Iterator<Item = RightsChange> {
        let grants = self.rights.members.iter().filter_map(|(generation, members)| {
            let rule = self.state.grants.get(generation)?;
            Some(members.values().map(|member| {
                let (user, pattern) = rule.grant_of(member);
                RightsChange::Grant(user, pattern)
            }))
        });
        let revoked = self.rights.revoked.iter();
        let revoked =
            revoked.map(|(user, before)| RightsChange::Revoke { user: user.clone(), before: *before });
        grants.flatten().chain(revoked)
    }

    /// All that the log has to keep, where it keeps nothing yet. Nothing is left to be taken.
    pub fn all_rights_state(&mut self) -> Vec<(String, Vec<u8>)> {
        (self.rights.changes, self.rights.state, self.rights.garbage) = Default::default();
        let grants = self.rights.members.iter().filter_map(|(generation, members)| {
            let rule = self.state.grants.get(generation)?;
            Some(members.iter().map(|(key, member)| (member_name(rule, key), member_value(member))))
        });
        let revoked = self.rights.revoked.iter();
        let revoked = revoked.map(|(user, before)| (revocation_name(user), before.to_string().into_bytes()));
        grants.flatten().chain(revoked).collect()
    }

    /// Takes up what the log kept. A value that cannot be read is the log's corruption.
    pub fn restore_rights(
        &mut self,
        kept: impl IntoIterator<Item = (String, Vec<u8>)>,
    ) -> Result<(), serde_json::Error> {
        for rule in self.state.grants.values() {
            self.rights.by_relation.entry(rule.relid).or_default().push(rule.generation);
        }
        for (name, value) in kept {
            if let Some(user) = name.strip_prefix(STATE_REVOKED) {
                let (issuer, subject): (Option<Arc<str>>, Arc<str>) = serde_json::from_str(user)?;
                self.rights.revoked.insert(NamedUser { issuer, subject }, serde_json::from_slice(&value)?);
            } else if let Some((generation, era, key)) = member_of_name(&name) {
                let rule = self.state.grants.get(&generation);
                if rule.is_some_and(|rule| !rule.ended && rule.era == era) {
                    let members = self.rights.members.entry(generation).or_default();
                    members.insert(key.into(), serde_json::from_slice(&value)?);
                } else {
                    self.rights.garbage.push(name);
                }
            }
        }
        Ok(())
    }

    /// How the rows of a table are read for a rule, which ends where they no longer can be.
    fn grant_plan(&mut self, generation: i64, relid: u32) -> Option<Arc<GrantPlan>> {
        let rule = self.state.grants.get(&generation).filter(|rule| !rule.ended)?;
        if let Some(plan) = self.rights.plans.get(&generation) {
            return Some(Arc::clone(plan));
        }
        let relation: &Relation = self.relations.get(&relid)?;
        match GrantPlan::compile(rule, relation) {
            Ok(plan) => {
                let plan = Arc::new(plan);
                self.rights.plans.insert(generation, Arc::clone(&plan));
                Some(plan)
            }
            Err(fault) => {
                self.end_grants(generation, &fault);
                None
            }
        }
    }

    /// The relation was announced anew: what is known of it may hold no more.
    pub(super) fn forget_grant_plans(&mut self, relid: u32) {
        for generation in self.rights.by_relation.get(&relid).into_iter().flatten() {
            self.rights.plans.remove(generation);
        }
    }

    fn follow(
        &mut self,
        generation: i64,
        plan: &GrantPlan,
        change: MemberChange<'_>,
    ) -> Result<(), GrantFault> {
        let Some(rule) = self.state.grants.get(&generation) else { return Ok(()) };
        let (old, new) = match change {
            MemberChange::Insert(new) => (None, Some(new)),
            MemberChange::Update { old, new } => (old, Some(new)),
            MemberChange::Delete(old) => (Some(old), None),
        };
        let (old, whole) = match old {
            Some(OldTuple::Key(tuple)) => (Some(tuple.iter().collect::<Row<'_>>()), false),
            Some(OldTuple::Full(tuple)) => (Some(tuple.iter().collect()), true),
            None => (None, false),
        };
        let new: Option<Row<'_>> = new.map(|tuple| tuple.iter().collect());
        let old_key = old.as_ref().map(|old| plan.key(old, None)).transpose()?;
        let new_key = new.as_ref().map(|new| plan.key(new, old.as_ref())).transpose()?;
        let kept = old_key.as_ref().or(new_key.as_ref());
        let kept = kept.and_then(|key| self.rights.members.get(&generation)?.get(key));
        let member = match &new {
            None => None,
            Some(new) => match plan.member(rule, new, old.as_ref().filter(|_| whole), kept) {
                Ok(member) => member,
                Err(Some(fault)) => return Err(fault),
                Err(None) => {
                    tracing::error!(
                        table = %rule.full_name(),
                        "a row grants nothing, for PostgreSQL did not send a large value that did not change; \
                         write it anew, or set REPLICA IDENTITY FULL"
                    );
                    None
                }
            },
        };
        if let Some(gone) = old_key.filter(|old| Some(old) != new_key.as_ref()) {
            self.set_member(generation, gone, None);
        }
        if let Some(key) = new_key {
            self.set_member(generation, key, member);
        }
        Ok(())
    }

    /// One row grants this from now on, or nothing.
    fn set_member(&mut self, generation: i64, key: MemberKey, member: Option<Member>) {
        let Some(rule) = self.state.grants.get(&generation) else { return };
        let members = self.rights.members.entry(generation).or_default();
        let name = member_name(rule, &key);
        let before = match &member {
            Some(member) => members.insert(key, member.clone()),
            None => members.remove(&key),
        };
        if before == member {
            return;
        }
        self.rights.state.push((name, member.as_ref().map(member_value)));
        // The new one first: what both grant does not end in between.
        if let Some(member) = &member {
            let (user, pattern) = rule.grant_of(member);
            self.rights.changes.push(RightsChange::Grant(user, pattern));
        }
        if let Some(before) = &before {
            let (user, pattern) = rule.grant_of(before);
            self.rights.changes.push(RightsChange::Ungrant(user, pattern));
        }
    }

    /// No row of the rule grants anything. Their values in the log are void at once, by the era, and taken
    /// out bit by bit.
    fn forget_members(&mut self, generation: i64) {
        self.rights.plans.remove(&generation);
        let Some(rule) = self.state.grants.get_mut(&generation) else { return };
        for (key, member) in self.rights.members.remove(&generation).unwrap_or_default() {
            let (user, pattern) = rule.grant_of(&member);
            self.rights.changes.push(RightsChange::Ungrant(user, pattern));
            self.rights.garbage.push(member_name(rule, &key));
        }
        rule.era += 1;
        self.changed = true;
    }
}

fn named_user<'a>(column: impl Fn(&str) -> Option<&'a str>) -> Option<NamedUser> {
    let issuer = column("issuer")?;
    Some(NamedUser {
        issuer: (!issuer.is_empty()).then(|| issuer.into()),
        subject: column("user_id")?.into(),
    })
}

fn revocation_name(user: &NamedUser) -> String {
    // Texts always serialize.
    format!("{STATE_REVOKED}{}", serde_json::to_string(&(&user.issuer, &user.subject)).unwrap_or_default())
}

fn member_name(rule: &GrantRule, key: &str) -> String {
    format!("{STATE_GRANT}{}.{}/{key}", rule.generation, rule.era)
}

fn member_of_name(name: &str) -> Option<(i64, u32, &str)> {
    let (rule, key) = name.strip_prefix(STATE_GRANT)?.split_once('/')?;
    let (generation, era) = rule.split_once('.')?;
    Some((generation.parse().ok()?, era.parse().ok()?, key))
}

fn member_value(member: &Member) -> Vec<u8> {
    // Two texts always serialize.
    serde_json::to_vec(member).unwrap_or_default()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
