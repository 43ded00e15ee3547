//! The writer: one task that holds the one connection which writes, and groups what waits into the next transaction.
//!
//! Nobody waits for a timer: an idle store commits a single command at once, and while a commit is under way the
//! commands that arrive wait together for the next one. A caller that goes away does not stop the task, so a
//! transaction is never cancelled half-way.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use lastbeat_domain::decide::Command;
use lastbeat_domain::listening::ClockSample;
use sqlx::Connection;
use sqlx::sqlite::SqliteConnection;
use tokio::sync::mpsc;

use super::read::{self, refresh_service_log};
use super::{ground, write};
use crate::Outcome;
use crate::batch::Batch;
use crate::clock::Clock;
use crate::error::StoreError;
use crate::observe::Observed;
use crate::queue::{Errand, Job, QUEUE_MAX, Queue, Waiting, answer_all};
use crate::service::ServiceLog;

/// Starts the writer on a connection.
pub(super) fn start(connection: SqliteConnection, clock: Arc<dyn Clock>, observed: Observed) -> mpsc::Sender<Job> {
    let (sender, receiver) = mpsc::channel(QUEUE_MAX);
    let (service, last_beacon, waiting) = (Arc::default(), None, Queue::default());
    let writer = Writer { connection, clock, observed, service, last_beacon, waiting };
    tokio::spawn(writer.run(receiver));
    sender
}

struct Writer {
    connection: SqliteConnection,
    clock: Arc<dyn Clock>,
    observed: Observed,
    service: Arc<ServiceLog>,
    /// The clocks as they were at this process's last beacon.
    last_beacon: Option<ClockSample>,
    waiting: Queue,
}

impl Writer {
    async fn run(mut self, mut jobs: mpsc::Receiver<Job>) {
        while let Ok(errand) = self.waiting.fill(&mut jobs).await {
            // What came before the errand is carried out before it.
            while !self.waiting.is_empty() {
                let batch = self.waiting.next_batch();
                self.carry_out(batch).await;
                if errand.is_none() {
                    break;
                }
            }
            match errand {
                Some(Errand::Import { import, reply }) => {
                    let result = super::import::import(&mut self.connection, self.clock.as_ref(), &import).await;
                    let _ = reply.send(result);
                }
                Some(Errand::Close { reply }) => {
                    jobs.close();
                    self.hang_up().await;
                    let _ = reply.send(());
                    return;
                }
                None => {}
            }
        }
        self.hang_up().await;
    }

    /// Closes the connection.
    async fn hang_up(self) {
        if let Err(error) = self.connection.close().await {
            tracing::warn!(%error, "the database could not be closed properly");
        }
    }

    /// Carries out a batch. A failure that may lie in one command is sought by halves, so that it fails no other.
    async fn carry_out(&mut self, batch: Vec<Waiting>) {
        let mut batches = VecDeque::from([batch]);
        while let Some(mut batch) = batches.pop_front() {
            let commands: Vec<Command> = batch.iter().map(|waiting| waiting.command.clone()).collect();
            match self.transact(&commands).await {
                Ok(outcomes) => {
                    for (waiting, outcome) in batch.into_iter().zip(outcomes) {
                        let _ = waiting.reply.send(outcome.into());
                    }
                }
                Err(error) if batch.len() > 1 && !error.is_transient() => {
                    let second = batch.split_off(batch.len() / 2);
                    batches.push_front(second);
                    batches.push_front(batch);
                }
                Err(error) => answer_all(batch, error),
            }
        }
    }

    async fn transact(&mut self, commands: &[Command]) -> Result<Vec<Outcome>, StoreError> {
        let started = Instant::now();
        let mut transaction = self.connection.begin_with("BEGIN IMMEDIATE").await?;
        // Log time is read under the lock, so that it is in the order of commits.
        let clocks = (self.clock.boottime(), self.clock.now(), self.clock.boottime());
        self.service = refresh_service_log(&mut transaction, &self.service).await?;
        let head = read::head(&mut transaction).await?;
        let now = clocks.1.max(head.latest_at.next());
        let ground = ground::read(&mut transaction, &self.service, commands, now).await?;
        let service = Arc::clone(&self.service);
        let mut batch = Batch::begin(ground, service, head, clocks, self.last_beacon.as_ref(), commands);
        let outcomes = batch.decide_all(commands)?;
        let decided = batch.finish();
        write::apply(&mut transaction, &decided.writes, &decided.head).await?;
        transaction.commit().await?;
        self.observed.tell(commands.len(), started.elapsed(), &decided.noted);
        if decided.beacon.is_some() {
            self.last_beacon = decided.beacon;
        }
        Ok(outcomes)
    }
}
