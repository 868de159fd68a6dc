//! Tables that are rewritten, altered, untracked and tracked at bad moments.

use serde_json::json;
use tokio_util::task::AbortOnDropHandle;

use super::super::columns::literal;
use super::World;
use crate::support::dice::Dice;
use crate::support::http::Http;
use crate::support::proxy::Flow;
use crate::support::token;

/// Changes the type of a column that nothing depends on, to one that prints the same.
const ALTER_TYPE: &str = "
SELECT format('ALTER TABLE %s ALTER COLUMN %I TYPE %s', t.relid::regclass, a.attname,
         CASE a.atttypid WHEN 'int4'::regtype THEN 'int8' WHEN 'int8'::regtype THEN 'numeric'
           WHEN 'text'::regtype THEN 'varchar' ELSE 'text' END)
FROM rowcast.tables t JOIN pg_class c ON c.oid = t.relid AND c.relkind = 'r' AND NOT c.relispartition
JOIN pg_attribute a ON a.attrelid = t.relid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
WHERE a.atttypid IN ('int4'::regtype, 'int8'::regtype, 'text'::regtype, 'varchar'::regtype) AND a.atttypmod = -1
  AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = a.attrelid AND a.attnum = ANY (i.indkey::int2[]))
  AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conrelid = a.attrelid AND k.contype = 'f' AND a.attnum = ANY (k.conkey))
  AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_publication_rel'::regclass
    AND (d.refclassid, d.refobjid, d.refobjsubid) = ('pg_class'::regclass, a.attrelid, a.attnum))
  AND NOT EXISTS (SELECT FROM pg_attribute g WHERE g.attrelid = a.attrelid AND g.attgenerated <> '')
  AND a.attname <> ALL (rowcast.topic_columns(t.topics))
ORDER BY 1";

impl World {
    /// VACUUM FULL and ALTER TYPE, while full syncs read the tables.
    pub(super) async fn rewrite_tables(&self, dice: &mut Dice) {
        let _syncing: Vec<_> = ["1", "2", "3"]
            .map(|user| {
                let http = Http::at(self.address()).with_token(&token::user(user));
                AbortOnDropHandle::new(tokio::spawn(sync_in_full_forever(http, user)))
            })
            .into();
        for _ in 0..2 + dice.roll(3) {
            match dice.roll(3) {
                0 => self.vacuum_full(dice).await,
                1 => self.alter_type(dice).await,
                _ => {
                    self.vacuum_full(dice).await;
                    self.alter_type(dice).await;
                }
            }
            self.while_others_write(dice.roll(10)).await;
        }
    }

    /// Not within a transaction; a table that is busy stays as it is.
    async fn vacuum_full(&self, dice: &mut Dice) {
        let table = self.any_table(dice).await;
        let client = self.pg.client().await;
        client.batch_execute("SET lock_timeout = '2s'").await.unwrap();
        let _ = client.batch_execute(&format!("VACUUM (FULL) {table}")).await;
    }

    async fn alter_type(&self, dice: &mut Dice) {
        let statements = self.pg.query_text(ALTER_TYPE).await;
        if statements.is_empty() {
            return;
        }
        let at = dice.roll(statements.len() as u64) as usize;
        let statement = statements[at][0].clone().expect("a statement");
        self.patiently(&statement).await;
    }

    pub(super) async fn any_table(&self, dice: &mut Dice) -> String {
        let tables = self.tables().await;
        tables[dice.roll(tables.len() as u64) as usize].clone()
    }

    /// What tracks a table as it is tracked now.
    pub(super) async fn track_again(&self, table: &str) -> String {
        let as_it_is = format!(
            "SELECT format('SELECT rowcast.track(%L, topics => %L, columns => %L)', relid::regclass, topics, columns)
             FROM rowcast.tables WHERE relid = {}::regclass",
            literal(table)
        );
        self.pg.value(&as_it_is).await
    }

    /// Untracks a table and tracks it as before: in one transaction, or in two with rows between them.
    async fn retrack(&self, table: &str, apart: bool) {
        let untrack = format!("SELECT rowcast.untrack({})", literal(table));
        let track = self.track_again(table).await;
        if apart {
            self.patiently(&untrack).await;
            self.patiently(&touch(table)).await;
            self.patiently(&track).await;
        } else {
            self.patiently(&format!("{untrack}; {}; {track}", touch(table))).await;
        }
    }

    pub(super) async fn track_across_transactions(&self, dice: &mut Dice) {
        let table = self.any_table(dice).await;
        let open = self.pg.client().await;
        open.batch_execute(&format!("BEGIN; {}", touch(&table))).await.unwrap();
        let (more, commits, apart) = (dice.roll(2) == 0, dice.roll(4) > 0, dice.roll(2) == 0);
        let wait = 5 + dice.roll(60);
        let holding = async {
            self.while_others_write(wait).await;
            // A writer and the one who tracks may be in its way, and PostgreSQL may choose it to fail.
            if more {
                let _ = open.batch_execute(&touch(&table)).await;
            }
            let _ = open.batch_execute(if commits { "COMMIT" } else { "ROLLBACK" }).await;
        };
        tokio::join!(holding, self.retrack(&table, apart));
    }

    /// The stream stands still while the catalog and the tables move on; ordinary sessions do not.
    pub(super) async fn lag_behind_catalog(&self, dice: &mut Dice) {
        self.link.set_changes(Flow::Stalled);
        for number in 0..2 + dice.roll(3) {
            let table = self.any_table(dice).await;
            match dice.roll(4) {
                0 => self.retrack(&table, false).await,
                1 => self.retrack(&table, true).await,
                2 => self.alter_type(dice).await,
                _ => {
                    let column = format!("lagged_{number}");
                    self.patiently(&format!("ALTER TABLE {table} ADD COLUMN {column} int DEFAULT 5")).await;
                    self.patiently(&touch(&table)).await;
                    self.patiently(&format!("ALTER TABLE {table} DROP COLUMN {column}")).await;
                }
            }
            self.patiently(&touch(&table)).await;
            self.while_others_write(dice.roll(20)).await;
        }
        self.link.set_changes(Flow::Open);
    }
}

/// Deletes a row and writes another as it is: in any table.
pub(super) fn touch(table: &str) -> String {
    let some = format!("(SELECT ctid FROM {table} LIMIT 1 FOR UPDATE SKIP LOCKED)");
    let (name, escaped) = (literal(table), table.replace('%', "%%"));
    let some_escaped = some.replace('%', "%%");
    let update = literal(format!("UPDATE {escaped} SET %1$I = %1$I WHERE ctid = {some_escaped}"));
    format!(
        "DO $touch$ DECLARE wanted name; BEGIN
           SELECT attname INTO wanted FROM pg_attribute
             WHERE attrelid = {name}::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = '' LIMIT 1;
           DELETE FROM {table} WHERE ctid = {some};
           EXECUTE format({update}, wanted);
         END $touch$"
    )
}

/// Answers that are refused or break off are asked again, as any device does.
async fn sync_in_full_forever(http: Http, user: &str) {
    let body = json!({"device_id": "faults", "topics": [format!("user:{user}:*")], "force_full_sync": true});
    loop {
        if let Ok(answer) = http.request("POST", "/api/realtime/sync").json(&body).try_send().await {
            assert!(
                [200, 401, 409, 429, 503].contains(&answer.status),
                "{} {}",
                answer.status,
                answer.text()
            );
        }
        tokio::task::yield_now().await;
    }
}
