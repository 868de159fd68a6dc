//! The publication, altered behind the back of the catalog and the relay.

use rowcast::postgres::catalog;

use super::super::columns::literal;
use super::World;
use super::schemas::touch;
use super::world::{ANEW, RECOVERY};
use crate::support::dice::Dice;
use crate::support::wait::eventually;

/// Makes the publication as it is now.
const MAKE: &str = "
SELECT 'CREATE PUBLICATION rowcast FOR TABLE ' || string_agg(
    format('%s%s%s', CASE c.relkind WHEN 'r' THEN 'ONLY ' END, c.oid::regclass,
      (SELECT ' (' || string_agg(quote_ident(a.attname), ', ') || ')' FROM pg_attribute a
       WHERE a.attrelid = c.oid AND a.attnum = ANY (r.prattrs::int2[]))), ', ')
FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid JOIN pg_class c ON c.oid = r.prrelid
WHERE p.pubname = 'rowcast'";

/// Said of a table that the publication lacks, with what to do about it.
const LACKS: [&str; 2] = ["the publication rowcast", "rowcast.track("];
/// Said of options and of the catalog's own tables.
const INIT: [&str; 2] = ["the publication rowcast", "run rowcast init"];

impl World {
    /// A table leaves the publication, and comes back by the same hand or by the remedy that is told.
    pub(super) async fn unpublish(&self, dice: &mut Dice) {
        let table = self.any_table(dice).await;
        let again = self.publish_again(&table).await;
        let (at_once, by_remedy) = (dice.roll(2) == 0, dice.roll(2) == 0);
        let told = self.told(&LACKS);
        self.patiently(&format!("ALTER PUBLICATION rowcast DROP TABLE {table}")).await;
        self.patiently(&touch(&table)).await;
        if !at_once {
            self.hears(&LACKS, told).await;
            self.while_others_write(dice.roll(30)).await;
        }
        let mend = if by_remedy { self.track_again(&table).await } else { again };
        self.patiently(&mend).await;
    }

    /// What adds a table to the publication as it is in it now.
    pub(super) async fn publish_again(&self, table: &str) -> String {
        let add = literal(format!("ALTER PUBLICATION rowcast ADD TABLE {}%s", table.replace('%', "%%")));
        let table = literal(table);
        let as_it_is = format!(
            "SELECT format({add},
                (SELECT ' (' || string_agg(quote_ident(a.attname), ', ') || ')' FROM pg_attribute a
                 WHERE a.attrelid = r.prrelid AND a.attnum = ANY (r.prattrs::int2[])))
             FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
             WHERE p.pubname = 'rowcast' AND r.prrelid = {table}::regclass"
        );
        self.pg.value(&as_it_is).await
    }

    /// Something leaves the stream, unheard of; `rowcast init` sets it right, as the relay says.
    pub(super) async fn change_publication_options(&self, dice: &mut Dice) {
        let statement = match dice.roll(3) {
            0 => "ALTER PUBLICATION rowcast SET (publish = 'insert, truncate')",
            1 => "ALTER PUBLICATION rowcast SET (publish_via_partition_root = true)",
            _ => "ALTER PUBLICATION rowcast DROP TABLE rowcast.tables",
        };
        let at_once = dice.roll(2) == 0;
        let (known, told) = (self.relay.count_lines(ANEW), self.told(&INIT));
        self.patiently(statement).await;
        let table = self.any_table(dice).await;
        self.patiently(&touch(&table)).await;
        if !at_once {
            self.hears(&INIT, told).await;
            self.while_others_write(dice.roll(30)).await;
        }
        catalog::install(&mut self.pg.client().await).await.unwrap();
        self.new_epochs(known + 1).await;
    }

    pub(super) async fn remake_publication(&self, dice: &mut Dice) {
        let known = self.relay.count_lines(ANEW);
        let make = self.pg.value(MAKE).await;
        if dice.roll(2) == 0 {
            self.patiently(&format!("DROP PUBLICATION rowcast; {make}")).await;
        } else {
            self.patiently("DROP PUBLICATION rowcast").await;
            self.while_others_write(dice.roll(30)).await;
            // Tables may have been altered since.
            self.patiently(&make).await;
        }
        self.pg.sql("ALTER PUBLICATION rowcast OWNER TO rowcast_owner").await;
        self.new_epochs(known + 1).await;
    }

    /// How many lines say all of `words`.
    pub(super) fn told(&self, words: &[&str]) -> usize {
        self.relay.output().iter().filter(|line| words.iter().all(|word| line.contains(word))).count()
    }

    pub(super) async fn hears(&self, words: &[&str], before: usize) {
        let what = format!("the relay says {words:?}");
        eventually(RECOVERY, &what, async || (self.told(words) > before).then_some(())).await;
    }
}
