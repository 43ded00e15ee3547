//! The writer: one task that holds the one connection which writes, and groups what waits into the next transaction.
//!
//! Nobody waits for a timer: an idle store commits a single command at once, and while a commit is under way the
//! commands that arrive wait together for the next one. A caller that goes away does not stop the task, so a
//! transaction is never cancelled half-way.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use lastbeat_domain::decide::Command;
use lastbeat_domain::listening::ClockSample;
use lastbeat_domain::{Name, RunId};
use sqlx::Connection;
use sqlx::sqlite::SqliteConnection;
use tokio::sync::{mpsc, oneshot};

use super::read::refresh_service_log;
use super::transaction::Batch;
use crate::clock::Clock;
use crate::error::{CommandError, StoreError};
use crate::import::{CheckedImport, ImportReport};
use crate::service::ServiceLog;
use crate::{ImportError, Outcome};

/// How many commands one transaction carries at the most.
const BATCH_COMMANDS_MAX: usize = 1_000;
/// How many bytes of payload one transaction carries at the most, one command apart.
const BATCH_BYTES_MAX: usize = 4 * 1024 * 1024;
/// How many commands may wait before callers do.
const QUEUE_MAX: usize = 4_096;

/// Something for the writer to do.
pub(super) enum Job {
    /// Carry out a command.
    Execute { command: Command, reply: oneshot::Sender<Outcome> },
    /// Import checked histories.
    Import { import: Box<CheckedImport>, reply: oneshot::Sender<Result<ImportReport, ImportError>> },
    /// Close the connection.
    Close { reply: oneshot::Sender<()> },
}

/// Starts the writer on a connection.
pub(super) fn start(connection: SqliteConnection, clock: Arc<dyn Clock>) -> mpsc::Sender<Job> {
    let (sender, receiver) = mpsc::channel(QUEUE_MAX);
    let writer = Writer { connection, clock, service: Arc::default(), last_beacon: None, waiting: VecDeque::new() };
    tokio::spawn(writer.run(receiver));
    sender
}

struct Waiting {
    command: Command,
    reply: oneshot::Sender<Outcome>,
}

struct Writer {
    connection: SqliteConnection,
    clock: Arc<dyn Clock>,
    service: Arc<ServiceLog>,
    /// The clocks as they were at this process's last beacon.
    last_beacon: Option<ClockSample>,
    waiting: VecDeque<Waiting>,
}

impl Writer {
    async fn run(mut self, mut jobs: mpsc::Receiver<Job>) {
        loop {
            let mut other = None;
            if self.waiting.is_empty() {
                match jobs.recv().await {
                    Some(Job::Execute { command, reply }) => {
                        self.waiting.push_back(Waiting { command, reply });
                    }
                    Some(job) => other = Some(job),
                    None => break,
                }
            }
            while other.is_none() && self.waiting.len() < BATCH_COMMANDS_MAX {
                match jobs.try_recv() {
                    Ok(Job::Execute { command, reply }) => self.waiting.push_back(Waiting { command, reply }),
                    Ok(job) => other = Some(job),
                    Err(_) => break,
                }
            }
            // What came before the import or the close is carried out before it.
            while !self.waiting.is_empty() {
                let batch = self.next_batch();
                self.carry_out(batch).await;
                if other.is_none() {
                    break;
                }
            }
            match other {
                Some(Job::Import { import, reply }) => {
                    let result = super::import::import(&mut self.connection, self.clock.as_ref(), &import).await;
                    let _ = reply.send(result);
                }
                Some(Job::Close { reply }) => {
                    jobs.close();
                    if let Err(error) = self.connection.close().await {
                        tracing::warn!(%error, "the database could not be closed properly");
                    }
                    let _ = reply.send(());
                    return;
                }
                Some(Job::Execute { .. }) | None => {}
            }
        }
        let _ = self.connection.close().await;
    }

    /// Takes the commands of the next transaction: at most one for a run and one for a unique key, so what must come
    /// after another one waits for the next.
    fn next_batch(&mut self) -> Vec<Waiting> {
        let (mut batch, mut later) = (Vec::new(), VecDeque::new());
        let (mut runs, mut keys): (HashSet<RunId>, HashSet<Name>) = (HashSet::new(), HashSet::new());
        let mut bytes = 0;
        while let Some(waiting) = self.waiting.pop_front() {
            let run = waiting.command.run();
            let key = waiting.command.unique_key();
            let clashes = run.is_some_and(|run| runs.contains(&run)) || key.is_some_and(|key| keys.contains(key));
            let size = payload_bytes(&waiting.command);
            let full = batch.len() >= BATCH_COMMANDS_MAX || bytes + size > BATCH_BYTES_MAX;
            if clashes || (full && !batch.is_empty()) {
                runs.extend(run);
                keys.extend(key.cloned());
                later.push_back(waiting);
                if full {
                    break;
                }
                continue;
            }
            runs.extend(run);
            keys.extend(key.cloned());
            bytes += size;
            batch.push(waiting);
        }
        later.append(&mut self.waiting);
        self.waiting = later;
        batch
    }

    /// Carries out a batch. A failure that may lie in one command is sought by halves, so that it fails no other.
    async fn carry_out(&mut self, batch: Vec<Waiting>) {
        let mut batches = VecDeque::from([batch]);
        while let Some(mut batch) = batches.pop_front() {
            let commands: Vec<Command> = batch.iter().map(|waiting| waiting.command.clone()).collect();
            match self.transact(&commands).await {
                Ok(outcomes) => {
                    for (waiting, outcome) in batch.into_iter().zip(outcomes) {
                        let _ = waiting.reply.send(outcome);
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
        let mut transaction = self.connection.begin_with("BEGIN IMMEDIATE").await?;
        // Log time is read under the lock, so that it is in the order of commits.
        let clocks = (self.clock.boottime(), self.clock.now(), self.clock.boottime());
        self.service = refresh_service_log(&mut transaction, &self.service).await?;
        let service = Arc::clone(&self.service);
        let last_beacon = self.last_beacon.as_ref();
        let mut batch = Batch::begin(&mut transaction, service, clocks, last_beacon, commands).await?;
        let mut outcomes = Vec::with_capacity(commands.len());
        for command in commands {
            outcomes.push(batch.apply(command).await?);
        }
        let beacon = batch.finish().await?;
        transaction.commit().await?;
        if beacon.is_some() {
            self.last_beacon = beacon;
        }
        Ok(outcomes)
    }
}

fn answer_all(batch: Vec<Waiting>, error: StoreError) {
    let text = match &error {
        StoreError::Unavailable(why) => why.clone(),
        other => other.to_string(),
    };
    let mut first = Some(error);
    for waiting in batch {
        let error = first.take().unwrap_or_else(|| StoreError::Unavailable(text.clone()));
        let _ = waiting.reply.send(Err(CommandError::Failed(error)));
    }
}

/// The bytes of the parts of a command that may be large.
fn payload_bytes(command: &Command) -> usize {
    let value = match command {
        Command::Create { spec, .. } => spec.input.as_ref(),
        Command::Heartbeat { progress, .. } => progress.as_ref(),
        Command::Complete { output, .. } => output.as_ref(),
        Command::Fail { error, .. } => return error.len(),
        _ => None,
    };
    value.map_or(0, |value| value.to_string().len())
}
