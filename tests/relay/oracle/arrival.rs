//! How a traveller comes to a quiet point: it catches up with what is committed, by whatever it travels.

use std::time::{Duration, Instant};

use serde_json::json;

use super::calls::From;
use super::parts::Part;
use super::traveller::{Link, Traveller};
use super::weather::Setback;
use crate::support::postgres::TestPostgres;

impl Traveller {
    /// Catches up with what is committed now, by whatever it travels. In rough weather, once it is over:
    /// the database is there.
    pub(super) async fn arrive(&mut self, pg: &TestPostgres) {
        self.kept_since = None;
        self.widen_by_force();
        let goal = pg.value("SELECT (pg_current_wal_insert_lsn() - '0/0')::text").await;
        let goal: u64 = goal.parse().expect("a place in the WAL");
        let goal = format!("{goal:016x}");
        let begun = Instant::now();
        while !self.has_arrived(&goal) {
            // So that there is something behind all that counts, for each part.
            let mark = self.wish.mark();
            let mark_of = |part: &Part| if part.covers(&mark) { mark.clone() } else { part.mark() };
            for mark in self.parts.iter().map(mark_of).collect::<Vec<_>>() {
                let mark = mark.replace('\'', "''");
                pg.sql(&format!("SELECT rowcast.broadcast('{mark}', 'mark', 'null')")).await;
            }
            if let Err(setback) = self.catch_up(&goal).await {
                self.bear(setback).await;
            }
            let patience = self.weather.patience();
            assert!(
                begun.elapsed() < patience,
                "{} did not come to {goal} within {patience:?}",
                self.whereabouts()
            );
        }
        self.kept_since = None;
    }

    fn has_arrived(&self, goal: &str) -> bool {
        self.parts.iter().all(|part| part.has_reached(goal) && !part.blocked)
    }

    async fn catch_up(&mut self, goal: &str) -> Result<(), Setback> {
        if let Link::Stream(stream) = &self.link {
            let at = self.parts.iter().position(|part| part.topics == stream.topics);
            return match at {
                Some(at) if !self.parts[at].has_reached(goal) => self.read_stream_to(at, goal).await,
                _ => {
                    self.leave();
                    Ok(())
                }
            };
        }
        if matches!(self.link, Link::Socket(_)) && !self.parts.iter().any(|part| part.blocked) {
            self.board().await?;
            return self.read_socket_to(goal).await;
        }
        self.leave();
        let missing = |part: &Part| !part.has_reached(goal) || part.blocked;
        let Some(at) = self.parts.iter().position(missing) else { return Ok(()) };
        match self.dice.roll(4) {
            0 if !self.parts[at].blocked => self.board().await,
            1 if !self.parts[at].blocked => self.open_stream(at).await,
            2 if !self.parts[at].blocked => self.poll(at).await.map(drop),
            _ => {
                self.sync(at, From::Cursor).await?;
                // The marks are on their way: to ask again at once would only commit more of them.
                tokio::time::sleep(Duration::from_millis(10)).await;
                Ok(())
            }
        }
    }

    async fn read_socket_to(&mut self, goal: &str) -> Result<(), Setback> {
        self.send(&json!({"type": "ping"})).await?;
        while !self.has_arrived(goal) && matches!(self.link, Link::Socket(_)) {
            let mut pong = false;
            if !self
                .take_until(|frame| {
                    pong = frame.kind == "pong";
                    true
                })
                .await?
                || pong
            {
                // What is not here yet comes as its mark.
                return Ok(());
            }
        }
        Ok(())
    }
}
