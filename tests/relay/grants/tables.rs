//! Tables whose rows make grants: with and without track, and what DDL does to them.

use serde_json::json;

use super::{GRANT, grant_problems, heard, may_sync, member, stage};
use crate::support::device::Device;
use crate::support::wait::{PATIENCE, eventually};

#[tokio::test]
async fn rows_of_a_table_that_only_grants_reach_no_device() {
    let (pg, relay) = stage().await;
    let mut ann = member(&relay, "ann", &["team:7:*"]).await;
    pg.sql(
        "UPDATE team_members SET note = 'secret'; INSERT INTO team_members VALUES (2, '7', 'bob', 'secret')",
    )
    .await;
    assert_eq!(heard(&pg, &mut ann, "ann").await, Vec::<String>::new());
    // Only what the relay needs leaves the database.
    let columns = "SELECT attnames::text FROM pg_publication_tables WHERE tablename = 'team_members'";
    assert_eq!(pg.value(columns).await, "{id,team_id,user_id}");
    let refusal =
        pg.refusal("ALTER TABLE team_members ALTER team_id TYPE varchar USING team_id || '1'").await;
    assert!(refusal.detail().is_some_and(|detail| detail.contains("publication rowcast")), "{refusal:?}");
    // Tracked as well, with a column less than the grants need: devices see what was tracked.
    pg.sql("SELECT rowcast.track('team_members', topics => ARRAY['user:{user_id}:memberships'], columns => '{id,user_id}')").await;
    assert_eq!(heard(&pg, &mut ann, "ann").await, ["sync_required user:ann:memberships"]);
    assert_eq!(grant_problems(&pg).await, Vec::<String>::new());
    let mut second = Device::of(&relay, "ann", "tablet").connect().await;
    second.subscribe(&["user:ann:*"], None).await;
    pg.sql("UPDATE team_members SET team_id = '8' WHERE id = 1").await;
    let frames = second.until("granted").await;
    assert_eq!(frames.last().unwrap().json()["topics"], json!(["team:8:*"]));
    pg.sql("INSERT INTO team_members VALUES (3, '9', 'ann')").await;
    assert_eq!(second.expect("granted").await.json()["topics"], json!(["team:9:*"]));
    assert_eq!(second.change().await.record_text(), r#"{"id":3,"user_id":"ann"}"#);
    // Untracked it still grants, and gives back what only devices needed.
    pg.sql("SELECT rowcast.untrack('team_members')").await;
    second.expect("sync_required").await;
    pg.sql("DELETE FROM team_members WHERE id = 3").await;
    assert_eq!(second.expect("revoked").await.json()["topics"], json!(["team:9:*"]));
    assert_eq!(
        (pg.value(columns).await, grant_problems(&pg).await),
        ("{id,team_id,user_id}".to_owned(), Vec::new())
    );
    pg.sql("SELECT rowcast.track('team_members', topics => ARRAY['user:{user_id}:memberships']); SELECT rowcast.revoke_by('team_members')").await;
    assert_eq!(second.expect("revoked").await.json()["topics"], json!(["team:8:*"]));
    pg.sql("UPDATE team_members SET note = 'told' WHERE id = 1").await;
    assert_eq!(
        pg.value("SELECT count(*) FROM rowcast.status WHERE problem IS NOT NULL AND part <> 'table'").await,
        "0"
    );
}

#[tokio::test]
async fn ddl_ends_the_grants_of_a_table_until_it_is_granted_again() {
    let (pg, relay) = stage().await;
    // Whole rows are published: PostgreSQL itself refuses to alter the columns of a list.
    pg.sql("SELECT rowcast.track('team_members', topics => ARRAY['global:members'])").await;
    let mut ann = member(&relay, "ann", &["team:7:*"]).await;
    for (ddl, mend, because) in [
        // The stream tells nothing of the first.
        (
            "ALTER TABLE team_members ALTER team_id TYPE text USING team_id || '1'",
            "UPDATE team_members SET team_id = '7'",
            "altered",
        ),
        ("ALTER PUBLICATION rowcast DROP TABLE team_members", "SELECT", "publication lacks"),
        (
            "ALTER TABLE team_members RENAME TO members; UPDATE members SET note = 'x'",
            "ALTER TABLE members RENAME TO team_members",
            "renamed",
        ),
        (
            "ALTER TABLE team_members RENAME team_id TO team; UPDATE team_members SET note = 'x'",
            "ALTER TABLE team_members RENAME team TO team_id",
            "no such column|cannot make grants",
        ),
        (
            "ALTER TABLE team_members DROP CONSTRAINT team_members_pkey; INSERT INTO team_members VALUES (5, '7', 'eve')",
            "ALTER TABLE team_members ADD PRIMARY KEY (id)",
            "primary key",
        ),
    ] {
        pg.sql(ddl).await;
        let told = ann.expect("revoked").await.json();
        assert_eq!(told["topics"], json!(["team:7:*"]), "{ddl}");
        assert!(
            !may_sync(&relay, "ann", "team:7:*").await && !may_sync(&relay, "eve", "team:7:*").await,
            "{ddl}"
        );
        let problems = grant_problems(&pg).await;
        assert!(
            problems.len() == 1 && because.split('|').any(|text| problems[0].contains(text)),
            "{ddl}: {problems:?}"
        );
        // Mended alone it does not grant again: what was missed meanwhile nobody knows.
        pg.sql(mend).await;
        pg.sql("INSERT INTO tasks SELECT '7', coalesce(max(id), 0) + 1, 'x' FROM tasks").await;
        assert_eq!(heard(&pg, &mut ann, "ann").await, Vec::<String>::new(), "{ddl}");
        pg.sql(GRANT).await;
        assert_eq!(ann.expect("granted").await.json()["topics"], json!(["team:7:*"]), "{ddl}");
        assert_eq!(grant_problems(&pg).await, Vec::<String>::new());
        ann.subscribe(&["team:7:*"], None).await;
    }
    eventually(PATIENCE, "the metric says that all is well", async || {
        (relay.metric("rowcast_grants_ended").await == Some(0.0)).then_some(())
    })
    .await;
    assert!(relay.count_lines("have ended") >= 5);
    // Columns that it does not depend on are no concern of it; a table that is gone grants nothing.
    pg.sql("ALTER TABLE team_members ADD more int DEFAULT 5, DROP COLUMN note").await;
    pg.sql("INSERT INTO team_members (id, team_id, user_id) VALUES (6, '8', 'ann')").await;
    assert_eq!(ann.expect("granted").await.json()["topics"], json!(["team:8:*"]));
    pg.sql("DROP TABLE team_members").await;
    assert_eq!(ann.expect("revoked").await.json()["topics"], json!(["team:7:*", "team:8:*"]));
    assert!(grant_problems(&pg).await[0].contains("gone"));
    pg.sql("SELECT rowcast.revoke_by(relid::regclass) FROM rowcast.grants").await;
    assert_eq!(grant_problems(&pg).await, Vec::<String>::new());
}

#[tokio::test]
async fn what_cannot_make_grants_is_refused_and_leaves_no_trace() {
    let (pg, _relay) = stage().await;
    pg.sql("CREATE TABLE loose (id int, user_id text, team_id int); CREATE VIEW seen AS SELECT * FROM team_members;
            CREATE TABLE parts (id int PRIMARY KEY, user_id text) PARTITION BY RANGE (id);
            CREATE TABLE odd (id int PRIMARY KEY, user_id float8, t timestamptz, g text GENERATED ALWAYS AS ('x') STORED);
            CREATE TABLE own (id int PRIMARY KEY, user_id text); CREATE ROLE app LOGIN").await;
    for (call, state, said) in [
        ("'loose', 'user_id', 'team:{team_id}:*'", "55000", "no primary key"),
        ("'seen', 'user_id', 'team:{team_id}:*'", "0A000", "view"),
        ("'parts', 'user_id', 'team:{id}:*'", "0A000", "partition"),
        ("'odd', 'user_id', 'team:{id}:*'", "0A000", "double precision"),
        ("'odd', 'id', 'team:{t}:*'", "0A000", "timestamp"),
        ("'odd', 'id', 'team:{g}:*'", "0A000", "generated"),
        ("'own', 'nobody', 'team:{id}:*'", "42703", "no such column"),
        ("'own', 'user_id', 'team:{nothing}:*'", "42703", "no such column"),
        ("'own', 'user_id', '{id}:x:*'", "22023", "pattern"),
        ("'own', 'user_id', 'team:*:*'", "22023", "pattern"),
        ("'own', 'user_id', 'team:{id}'", "22023", "pattern"),
        ("'own', 'user_id', NULL", "22023", "pattern"),
        ("'own', NULL, 'team:{id}:*'", "42703", "cannot make grants"),
        ("'rowcast.settings', 'name', 'team:{value}:*'", "0A000", "catalog"),
    ] {
        let refusal = pg.refusal(&format!("SELECT rowcast.grant_by({call})")).await;
        let text = format!("{} {}", refusal.message(), refusal.detail().unwrap_or_default());
        assert!(refusal.code().code() == state && text.contains(said), "{call}: {refusal:?}");
        assert!(refusal.hint().is_some(), "{call}");
    }
    for call in ["grant_by('own', 'user_id', 'team:{id}:*')", "revoke_by('team_members')"] {
        let refusal = pg.refusal(&format!("SET ROLE app; SELECT rowcast.{call}")).await;
        assert!(refusal.message().contains("rowcast_owner"), "{refusal:?}");
    }
    assert_eq!(pg.value("SELECT count(*) FROM rowcast.grants").await, "1");
}
