//! Tokens that end, and grant less or more than those before.

use std::time::UNIX_EPOCH;

use serde_json::json;

use super::calls::From;
use super::parts::{Part, covers};
use super::traveller::{Link, Traveller};
use super::weather::Setback;
use crate::support::copy::table_of;
use crate::support::frame::place;
use crate::support::token;

/// What tokens of the oracle grant: teams and rooms are claims of their own, so that they can be taken away.
pub(super) const GRANTS: &str = "user:{sub}:*,team:{teams}:*,room:{rooms}:*,global:*";

const FAR_FUTURE: i64 = 4_102_444_800;

/// A user's token with all that it may grant.
pub(super) fn wide(user: &str) -> String {
    mint(user, false, None)
}

/// A token as an app gets it when the one before counts no more.
pub(super) fn minted_now(user: &str, narrow: bool) -> String {
    let now = UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
    mint(user, narrow, Some(now))
}

fn mint(user: &str, narrow: bool, issued: Option<u64>) -> String {
    let (teams, rooms) = if narrow { (vec![], vec![]) } else { (vec![user], vec!["lobby"]) };
    let mut claims = json!({"sub": user, "teams": teams, "rooms": rooms, "exp": FAR_FUTURE});
    if let Some(issued) = issued {
        claims["iat"] = issued.into();
    }
    token::mint(&claims)
}

impl Traveller {
    /// A new token: as good as the one before, or one that grants less, or more again.
    pub(super) async fn change_token(&mut self) -> Result<(), Setback> {
        match (self.narrow, self.dice.roll(5)) {
            (_, 0) => self.renew_on_socket().await,
            (false, 1 | 2) => {
                self.narrow = true;
                self.renew_on_socket().await
            }
            (false, 3) => self.be_told_of_loss().await,
            (false, _) => {
                // It learns what that is where it asks for it.
                self.leave();
                self.narrow = true;
                self.token = minted_now(&self.user, true);
                Ok(())
            }
            (true, 1 | 2) => {
                (self.narrow, self.token) = (false, minted_now(&self.user, false));
                self.restore(false);
                self.renew_on_socket().await
            }
            (true, _) => self.be_given_more().await,
        }
    }

    pub(super) async fn renew_on_socket(&mut self) -> Result<(), Setback> {
        if !matches!(self.link, Link::Socket(_)) {
            self.open_socket(false).await?;
            self.board().await?;
        }
        self.token = minted_now(&self.user, self.narrow);
        self.done.count("renewed on a socket");
        self.ask_socket("auth", json!({"token": self.token}), &[]).await
    }

    /// A sync with a cursor that vouches for more than is granted now says so.
    async fn be_told_of_loss(&mut self) -> Result<(), Setback> {
        self.leave();
        let is_lost = |topic: &String| topic.starts_with("team:") || topic.starts_with("room:");
        let Some(at) = self.parts.iter().position(|part| part.topics.iter().any(is_lost)) else {
            return Ok(());
        };
        self.sync(at, From::Cursor).await?;
        let (lost, left): (Vec<String>, Vec<String>) =
            self.parts[at].topics.iter().cloned().partition(is_lost);
        self.narrow = true;
        self.token = minted_now(&self.user, true);
        if !left.is_empty() {
            let cursor = self.parts[at].cursor.clone();
            let mut body = json!({"device_id": self.name, "topics": left, "cursor": cursor});
            let pages = self.ask(&mut body).await?;
            if pages[0].revoked.is_empty() {
                // Its claims are not what this relay grants by.
                self.narrow = false;
                return Ok(());
            }
            let told =
                |topic: &String| pages[0].revoked.iter().any(|gone| covers(gone, topic) || gone == topic);
            assert!(
                lost.iter().all(told),
                "{} was not told that {lost:?} is lost, but {:?}",
                self.whereabouts(),
                pages[0].revoked
            );
            self.done.count("revoked over REST");
        }
        self.lose(&lost);
        Ok(())
    }

    /// What is granted anew comes in full, behind a cursor that does not vouch for it.
    async fn be_given_more(&mut self) -> Result<(), Setback> {
        self.leave();
        for at in 0..self.parts.len() {
            self.sync(at, From::Cursor).await?;
        }
        (self.narrow, self.token) = (false, minted_now(&self.user, false));
        self.restore(true);
        for at in 0..self.parts.len() {
            self.sync(at, From::Cursor).await?;
        }
        Ok(())
    }

    /// All is granted again, whatever is open.
    pub(super) fn widen_by_force(&mut self) {
        if self.narrow {
            self.leave();
            (self.narrow, self.token) = (false, minted_now(&self.user, false));
            self.restore(false);
        }
    }

    /// Forgets the rows of topics that are no longer granted. Where other topics of a part may have had some
    /// of them too, the part begins anew.
    pub(super) fn lose(&mut self, topics: &[String]) {
        assert!(self.narrow, "{} lost {topics:?}", self.whereabouts());
        let is_lost = |own: &String| topics.iter().any(|topic| topic == own || covers(topic, own));
        for part in self.parts.iter_mut().filter(|part| part.topics.iter().any(is_lost)) {
            self.copy.forget(|table| part.has_table(table));
            let (lost, left) = part.topics.iter().cloned().partition(is_lost);
            part.topics = left;
            part.forget_place();
            self.lost.extend::<Vec<String>>(lost);
            if let Link::Socket(socket) = &mut self.link {
                socket.leave(&part.topics, 0);
            }
        }
        self.parts.retain(|part| !part.topics.is_empty());
    }

    /// What was lost comes back to the part of its table. A cursor that says what it vouches for may stay.
    fn restore(&mut self, keep_cursors: bool) {
        for topic in std::mem::take(&mut self.lost) {
            let wild = topic.ends_with('*');
            let mut parts = self.parts.iter_mut().filter(|part| !part.aside);
            let home = parts.find(|part| part.is_wild() || (!wild && part.has_table(&table_of(&topic))));
            let Some(part) = home else {
                self.parts.push(Part::new(vec![topic]));
                continue;
            };
            part.topics.push(topic);
            let vouches = part.cursor.as_deref().is_some_and(|cursor| place(cursor) != cursor);
            if !(keep_cursors && vouches) {
                part.forget_place();
            }
            if let Link::Socket(socket) = &mut self.link {
                socket.leave(&part.topics, 0);
            }
        }
    }
}
