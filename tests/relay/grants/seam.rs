//! Nothing is lost of rights when the relay, its log or a `grant_by` begins among writers.

use super::{GRANT, TEAMS, heard, may_sync, member, stage};
use crate::support::postgres::explain;
use crate::support::stage::{database, relay_on};
use crate::support::wait::{PATIENCE, eventually, within};

#[tokio::test]
async fn a_restart_and_a_crash_keep_what_rows_grant() {
    let (pg, mut relay) = stage().await;
    pg.sql("INSERT INTO team_members VALUES (2, '8', 'ann'), (3, '9', 'bob'); SELECT rowcast.revoke('mal', 'infinity')").await;
    eventually(PATIENCE, "bob is granted", async || may_sync(&relay, "bob", "team:9:*").await.then_some(()))
        .await;
    relay.restart().await;
    for team in ["team:7:*", "team:8:*"] {
        assert!(may_sync(&relay, "ann", team).await, "{team}");
    }
    assert!(may_sync(&relay, "bob", "team:9:*").await && !may_sync(&relay, "bob", "team:7:*").await);
    // While it is away, and across a crash that loses what was not flushed.
    relay.kill9().await;
    pg.sql("DELETE FROM team_members WHERE id = 2; INSERT INTO team_members VALUES (4, '7', 'bob')").await;
    relay.start_again().await;
    relay.wait_ready().await;
    eventually(PATIENCE, "bob is granted", async || may_sync(&relay, "bob", "team:7:*").await.then_some(()))
        .await;
    assert!(!may_sync(&relay, "ann", "team:8:*").await && may_sync(&relay, "ann", "team:7:*").await);
    pg.sql("TRUNCATE team_members; INSERT INTO team_members VALUES (1, '9', 'ann')").await;
    relay.kill9().await;
    relay.start_again().await;
    relay.wait_ready().await;
    eventually(PATIENCE, "ann is granted", async || may_sync(&relay, "ann", "team:9:*").await.then_some(()))
        .await;
    for (user, team) in [("ann", "team:7:*"), ("bob", "team:7:*"), ("bob", "team:9:*")] {
        assert!(!may_sync(&relay, user, team).await, "{user} {team}");
    }
    assert_eq!(super::sync(&relay, "mal", "user:mal:*").await, (401, "token_revoked".to_owned()));
    assert_eq!(relay.metric("rowcast_new_epochs_total").await.unwrap_or(0.0), 0.0);
}

#[tokio::test]
async fn a_new_epoch_reads_the_rows_anew() {
    let (pg, mut relay) = stage().await;
    pg.sql("INSERT INTO team_members VALUES (2, '7', 'bob'); SELECT rowcast.revoke('mal', 'infinity')").await;
    eventually(PATIENCE, "bob is granted", async || may_sync(&relay, "bob", "team:7:*").await.then_some(()))
        .await;
    relay.terminate().await;
    pg.sql("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots").await;
    // Nobody follows these, and one transaction is open while the log begins.
    pg.sql("DELETE FROM team_members WHERE id = 2; INSERT INTO team_members VALUES (3, '8', 'ann')").await;
    pg.sql("SELECT rowcast.revoke('eve', 'infinity')").await;
    let writer = pg.client().await;
    writer
        .batch_execute(
            "BEGIN; INSERT INTO team_members VALUES (4, '9', 'ann'); DELETE FROM team_members WHERE id = 1",
        )
        .await
        .unwrap();
    relay.start_again().await;
    eventually(PATIENCE, "the slot is being made", async || {
        (pg.value("SELECT count(*) FROM pg_replication_slots").await == "1").then_some(())
    })
    .await;
    writer.batch_execute("COMMIT").await.unwrap();
    relay.wait_ready().await;
    for (user, team, may) in [
        ("ann", "team:8:*", true),
        ("ann", "team:9:*", true),
        ("ann", "team:7:*", false),
        ("bob", "team:7:*", false),
    ] {
        assert_eq!(may_sync(&relay, user, team).await, may, "{user} {team}");
    }
    for user in ["mal", "eve"] {
        assert_eq!(super::sync(&relay, user, "user:x:*").await, (401, "token_revoked".to_owned()));
    }
    // And follows them from there on.
    let mut ann = member(&relay, "ann", &["team:8:*"]).await;
    pg.sql("DELETE FROM team_members WHERE id = 3").await;
    assert_eq!(heard(&pg, &mut ann, "ann").await, ["revoked team:8:*"]);
}

#[tokio::test]
async fn grant_by_waits_for_open_transactions_and_misses_no_row() {
    let pg = database().await;
    pg.sql(TEAMS).await;
    let relay = relay_on(&pg).start().await;
    let mut ann = member(&relay, "ann", &[]).await;
    let (writer, granter) = (pg.client().await, pg.client().await);
    writer.batch_execute("BEGIN; INSERT INTO team_members VALUES (2, '8', 'ann')").await.unwrap();
    granter.batch_execute("SET lock_timeout = '30s'").await.unwrap();
    let waiting = "SELECT count(*) FROM pg_locks WHERE relation = 'team_members'::regclass AND NOT granted";
    let write = async {
        eventually(PATIENCE, "grant_by waits for the writer", async || {
            (pg.value(waiting).await == "1").then_some(())
        })
        .await;
        writer.batch_execute("INSERT INTO team_members VALUES (3, '9', 'ann'); DELETE FROM team_members WHERE id = 1; COMMIT").await.unwrap();
    };
    let (granted, ()) = tokio::join!(within("grant_by", granter.batch_execute(GRANT)), write);
    granted.unwrap_or_else(|error| panic!("{}", explain(&error)));
    assert_eq!(heard(&pg, &mut ann, "ann").await, ["granted team:8:* team:9:*"]);
    // Under the short timeout it gives up and says who is in the way; nothing has changed.
    writer.batch_execute("BEGIN; UPDATE team_members SET note = 'x'").await.unwrap();
    let refusal = pg.refusal(GRANT).await;
    assert_eq!(refusal.code().code(), "55P03");
    assert!(refusal.message().contains("rowcast.grant_by"), "{refusal:?}");
    writer.batch_execute("ROLLBACK").await.unwrap();
    // Again: all rows anew, and nobody notices.
    pg.sql(GRANT).await;
    pg.sql("BEGIN; SELECT rowcast.revoke_by('team_members'); ROLLBACK").await;
    assert_eq!(heard(&pg, &mut ann, "ann").await, Vec::<String>::new());
    pg.sql("SELECT rowcast.revoke_by('team_members')").await;
    assert_eq!(heard(&pg, &mut ann, "ann").await, ["revoked team:8:* team:9:*"]);
    pg.sql("INSERT INTO team_members VALUES (9, '5', 'ann')").await;
    assert_eq!(heard(&pg, &mut ann, "ann").await, Vec::<String>::new());
    let published = "SELECT count(*) FROM pg_publication_tables WHERE tablename = 'team_members'";
    assert_eq!(pg.value(published).await, "0");
}

#[tokio::test]
async fn many_rows_at_once_and_keys_of_every_kind() {
    let pg = database().await;
    pg.sql("CREATE TYPE kind AS ENUM ('a''b', 'c d'); SET datestyle = 'German'; SET timezone = 'Asia/Tokyo';
            CREATE TABLE members (flag bool, c char(4), at timestamptz, n numeric, k kind, b bytea, user_id int, team uuid,
              PRIMARY KEY (k, flag, c, at, n, b));
            INSERT INTO members SELECT n % 2 = 0, 'x', '2026-01-01 12:00:00+01'::timestamptz + n * interval '1 s', n / 7.0,
              'a''b', '\\x00ff', n % 1000, ('00000000-0000-0000-0000-00000000' || lpad(to_hex(n % 100), 4, '0'))::uuid
            FROM generate_series(1, 5000) n;")
        .await;
    let relay = relay_on(&pg).start().await;
    let client = pg.client().await;
    client.batch_execute("SET datestyle = 'SQL, DMY'; SET timezone = 'America/New_York'; SET extra_float_digits = 0; SET bytea_output = 'escape';
        SELECT rowcast.grant_by('members', 'user_id', 'doc:{team}:*')").await.unwrap();
    let team = "doc:00000000-0000-0000-0000-000000000007:*";
    eventually(PATIENCE, "the rows grant", async || may_sync(&relay, "7", team).await.then_some(())).await;
    assert!(may_sync(&relay, "907", team).await && !may_sync(&relay, "8", team).await);
    // Each is found again by its key alone.
    pg.sql("DELETE FROM members WHERE user_id <> 907").await;
    eventually(PATIENCE, "the rows are gone", async || (!may_sync(&relay, "7", team).await).then_some(()))
        .await;
    assert!(may_sync(&relay, "907", team).await);
    pg.sql("DELETE FROM members").await;
    eventually(PATIENCE, "all rows are gone", async || (!may_sync(&relay, "907", team).await).then_some(()))
        .await;
    assert_eq!(pg.value("SELECT count(*) FROM rowcast.grant_seeds").await, "0");
}
