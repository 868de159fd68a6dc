//! Applications that write at random, over several connections, to the tables of a generated schema.
//!
//! They survive lost connections, and do not care whether a commit came through: the database is the judge.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::line::{Line, Outcome};
use super::schema::{Now, Schema};
use super::statements::{Reach, some_statement};
use crate::support::dice::Dice;

/// Whoever meets a transaction that stays open goes on with something else; before PostgreSQL looks for
/// deadlocks.
const SETTINGS: &str = "SET lock_timeout = '100ms'; SET deadlock_timeout = '200ms'";
/// At once. Each holds locks until someone ends it.
const MOST_PREPARED: usize = 3;
/// Commits of others that a long transaction waits for, at most, and for how long it does.
const LONG_COMMITS: u64 = 60;
const LONGEST: Duration = Duration::from_millis(700);

pub(super) struct Writers {
    schema: Arc<Schema>,
    url: String,
    /// Transactions that are over, however.
    over: AtomicU64,
    committed: AtomicU64,
    refused: AtomicU64,
    lost: AtomicU64,
    /// Names of prepared transactions that nobody has ended yet.
    prepared: Mutex<Vec<String>>,
    names: AtomicU64,
    /// Connections whose transaction stays open over a quiet point.
    sleeping: Mutex<Vec<Line>>,
}

impl Writers {
    pub(super) fn new(schema: &Arc<Schema>, url: &str) -> Arc<Self> {
        Arc::new(Writers {
            schema: Arc::clone(schema),
            url: url.to_owned(),
            over: AtomicU64::new(0),
            committed: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            prepared: Mutex::default(),
            names: AtomicU64::new(0),
            sleeping: Mutex::default(),
        })
    }

    /// How many transactions were over so far.
    pub(super) fn over(&self) -> u64 {
        self.over.load(Ordering::Relaxed)
    }

    /// Runs so many transactions on each of some connections; some stay open, if they may.
    pub(super) async fn round(
        self: &Arc<Self>,
        dice: &mut Dice,
        connections: usize,
        transactions: usize,
        may_stay_open: bool,
    ) {
        let mut writing = Vec::new();
        for _ in 0..connections {
            let (writers, dice) = (Arc::clone(self), Dice(dice.next()));
            writing.push(tokio::spawn(async move { writers.write(dice, transactions).await }));
        }
        let sleepers = std::mem::take(&mut *self.sleeping.lock().unwrap());
        for line in sleepers {
            let (writers, dice) = (Arc::clone(self), Dice(dice.next()));
            writing.push(tokio::spawn(async move { writers.wake(line, dice).await }));
        }
        for writer in writing {
            writer.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        }
        if may_stay_open {
            self.fall_asleep(Dice(dice.next())).await;
        } else {
            self.end_prepared(dice).await;
        }
    }

    /// What the writers did, for whoever reads a failure.
    pub(super) fn told(&self) -> String {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (committed, refused, lost) = (count(&self.committed), count(&self.refused), count(&self.lost));
        format!("{committed} committed, {refused} refused, {lost} lost")
    }

    /// Whether most of what was tried had an effect: else the oracle proves nothing.
    pub(super) fn assert_effective(&self) {
        assert!(
            self.committed.load(Ordering::Relaxed) * 4 > self.over(),
            "too little came of it: {}",
            self.told()
        );
    }

    async fn write(&self, mut dice: Dice, transactions: usize) {
        let mut line = Line::new(&self.url, SETTINGS);
        for _ in 0..transactions {
            let now = self.schema.now();
            match dice.roll(64) {
                0 | 1 => self.long(&mut line, &now, &mut dice).await,
                2..=5 => self.prepare(&mut line, &now, &mut dice).await,
                6..=9 => self.end_one_prepared(&mut line, &mut dice).await,
                10..=15 => self.guarded(&mut line, &now, &mut dice).await,
                _ => {
                    let transaction = self.transaction(&now, &mut dice);
                    let outcome = line.run(&transaction).await;
                    self.ended(&mut line, outcome).await;
                }
            }
        }
    }

    /// A transaction as one batch.
    fn transaction(&self, now: &Now, dice: &mut Dice) -> String {
        let body = self.body(now, dice.roll(4), Reach::Any, dice).join("; ");
        let one = some_statement(&self.schema, now, Reach::Any, dice);
        let other = some_statement(&self.schema, now, Reach::Any, dice);
        match dice.roll(16) {
            0 => one,
            1 => format!("BEGIN; {body}; ROLLBACK"),
            2 => format!("BEGIN; {one}; SAVEPOINT s; {body}; ROLLBACK TO s; {other}; COMMIT"),
            3 => format!("BEGIN; {one}; SAVEPOINT s; {body}; RELEASE s; SAVEPOINT s; {other}; COMMIT"),
            4 => format!("BEGIN; SELECT rowcast.tag('a', 'c{}'); {body}; COMMIT", dice.roll(100)),
            _ => format!("BEGIN; {body}; COMMIT"),
        }
    }

    fn body(&self, now: &Now, more: u64, reach: Reach, dice: &mut Dice) -> Vec<String> {
        (0..=more).map(|_| some_statement(&self.schema, now, reach, dice)).collect()
    }

    /// Statements that each may fail alone.
    async fn guarded(&self, line: &mut Line, now: &Now, dice: &mut Dice) {
        let mut outcome = line.run("BEGIN").await;
        for statement in self.body(now, dice.roll(5), Reach::Any, dice) {
            outcome = guard(line, &statement, outcome).await;
        }
        self.end(line, outcome, dice).await;
    }

    /// Stays open while others commit, and comes to an end late.
    async fn long(&self, line: &mut Line, now: &Now, dice: &mut Dice) {
        let mut outcome = line.run("BEGIN").await;
        for _ in 0..2 {
            for statement in self.body(now, 2, Reach::Few, dice) {
                outcome = guard(line, &statement, outcome).await;
            }
            let (until, begun) = (self.over() + dice.roll(LONG_COMMITS), Instant::now());
            while self.over() < until && begun.elapsed() < LONGEST {
                // Not to wait for something that is to come, but to be slow.
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
        self.end(line, outcome, dice).await;
    }

    async fn prepare(&self, line: &mut Line, now: &Now, dice: &mut Dice) {
        if self.prepared.lock().unwrap().len() >= MOST_PREPARED {
            return self.end_one_prepared(line, dice).await;
        }
        let mut outcome = line.run("BEGIN").await;
        for statement in self.body(now, dice.roll(3), Reach::Few, dice) {
            outcome = guard(line, &statement, outcome).await;
        }
        if outcome == Outcome::Lost {
            return self.ended(line, outcome).await;
        }
        let name = format!("p{}", self.names.fetch_add(1, Ordering::Relaxed));
        let outcome = line.run(&format!("PREPARE TRANSACTION '{name}'")).await;
        // If nobody knows, it may be there.
        if outcome != Outcome::Refused {
            self.prepared.lock().unwrap().push(name);
        }
        if outcome != Outcome::Done {
            self.ended(line, outcome).await;
        }
    }

    /// Ends one of those that any connection has prepared.
    async fn end_one_prepared(&self, line: &mut Line, dice: &mut Dice) {
        let name = {
            let mut prepared = self.prepared.lock().unwrap();
            if prepared.is_empty() {
                return;
            }
            let at = dice.roll(prepared.len() as u64) as usize;
            prepared.swap_remove(at)
        };
        let verb = if dice.roll(4) == 0 { "ROLLBACK" } else { "COMMIT" };
        let outcome = line.run(&format!("{verb} PREPARED '{name}'")).await;
        if outcome == Outcome::Lost {
            // Whoever comes next will be told that it is gone, or end it.
            self.prepared.lock().unwrap().push(name);
        }
        self.ended(line, outcome).await;
    }

    async fn end_prepared(&self, dice: &mut Dice) {
        let mut line = Line::new(&self.url, SETTINGS);
        while !self.prepared.lock().unwrap().is_empty() {
            self.end_one_prepared(&mut line, dice).await;
        }
    }

    /// Leaves a transaction open.
    async fn fall_asleep(&self, mut dice: Dice) {
        let mut line = Line::new(&self.url, SETTINGS);
        let now = self.schema.now();
        let mut outcome = line.run("BEGIN").await;
        for statement in self.body(&now, 2, Reach::Few, &mut dice) {
            outcome = guard(&mut line, &statement, outcome).await;
        }
        if outcome != Outcome::Lost {
            self.sleeping.lock().unwrap().push(line);
        }
    }

    /// Goes on with a transaction that was left open, among the others, and ends it.
    async fn wake(&self, mut line: Line, mut dice: Dice) {
        let mut outcome = Outcome::Done;
        let now = self.schema.now();
        for statement in self.body(&now, 2, Reach::Few, &mut dice) {
            outcome = guard(&mut line, &statement, outcome).await;
        }
        self.end(&mut line, outcome, &mut dice).await;
    }

    async fn end(&self, line: &mut Line, outcome: Outcome, dice: &mut Dice) {
        let outcome = match outcome {
            Outcome::Lost => outcome,
            _ if dice.roll(6) == 0 => line.run("ROLLBACK").await,
            _ => line.run("COMMIT").await,
        };
        self.ended(line, outcome).await;
    }

    /// Counts a transaction, and leaves the line without one.
    async fn ended(&self, line: &mut Line, outcome: Outcome) {
        let counter = match outcome {
            Outcome::Done => &self.committed,
            Outcome::Refused => &self.refused,
            Outcome::Lost => &self.lost,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        self.over.fetch_add(1, Ordering::Relaxed);
        if outcome == Outcome::Refused {
            line.run("ROLLBACK").await;
        }
    }
}

/// One statement within a transaction, which may fail alone. After a lost connection there is none.
async fn guard(line: &mut Line, statement: &str, before: Outcome) -> Outcome {
    if before == Outcome::Lost {
        return before;
    }
    match line.run(&format!("SAVEPOINT g; {statement}; RELEASE g")).await {
        Outcome::Refused => match line.run("ROLLBACK TO g").await {
            // There was no transaction, or the savepoint itself was refused.
            Outcome::Refused => Outcome::Done,
            outcome => outcome,
        },
        outcome => outcome,
    }
}
