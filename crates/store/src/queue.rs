//! What waits for a writer, and how commands are grouped into transactions.

use std::collections::{HashSet, VecDeque};
use std::pin::Pin;

use foldhash::fast::RandomState;
use lastbeat_domain::decide::{Command, IdempotencyKey};
use lastbeat_domain::{Name, RunId};
use tokio::sync::mpsc::error::{SendError, TrySendError};
use tokio::sync::oneshot::error::RecvError;
use tokio::sync::{mpsc, oneshot};

use crate::error::{CommandError, ImportError, StoreError};
use crate::import::{CheckedImport, ImportReport};
use crate::{Answer, Executing, Heard, Outcome};

/// Something for a writer to do.
#[derive(Debug)]
pub(crate) enum Job {
    /// Carry out a command.
    Execute(Waiting),
    /// Something else, once all that came before it is done.
    Other(Errand),
}

/// What a writer does that is no command.
#[derive(Debug)]
pub(crate) enum Errand {
    /// Import checked histories.
    Import { import: Box<CheckedImport>, reply: oneshot::Sender<Result<ImportReport, ImportError>> },
    /// Close the connection.
    Close { reply: oneshot::Sender<()> },
}

/// Says that nobody is left who could send a job.
#[derive(Debug)]
pub(crate) struct NobodyLeft;

/// What a writer tells of a command. Thousands of heartbeats are on their way at a time, and it matters how much memory
/// they go through: so what is said of one is small.
#[derive(Debug)]
pub(crate) enum Told {
    /// It was a heartbeat that was taken, and nothing else is to be said of it.
    Heard(Heard),
    /// Whatever else became of it.
    Other(Box<Outcome>),
}

impl From<Outcome> for Told {
    fn from(outcome: Outcome) -> Told {
        Told::Other(Box::new(outcome))
    }
}

impl From<Told> for Outcome {
    fn from(told: Told) -> Outcome {
        match told {
            Told::Heard(heard) => Ok(Answer { heard: Some(heard), ..Answer::default() }),
            Told::Other(outcome) => *outcome,
        }
    }
}

/// Sends each command to its writer and returns the outcomes in the order of the commands.
///
/// Most calls bring one heartbeat, and thousands of them wait at a time: so the future of such a call is one of its own,
/// which keeps next to nothing meanwhile.
pub(crate) fn execute<'s>(
    commands: Vec<Command>,
    writer: impl Fn(&Command) -> &'s mpsc::Sender<Job> + Send + Sync + 's,
) -> Executing<'s> {
    if commands.len() > 1 {
        return Box::pin(execute_many(commands, writer));
    }
    Box::pin(async move {
        let Some((answer, room)) = send_only(commands, writer) else { return Vec::new() };
        if let Some(room) = room {
            let _ = room.await;
        }
        vec![outcome(answer.await)]
    })
}

/// Sends the only command, if there is one.
fn send_only<'s>(
    mut commands: Vec<Command>,
    writer: impl Fn(&Command) -> &'s mpsc::Sender<Job>,
) -> Option<(oneshot::Receiver<Told>, Option<Room<'s>>)> {
    commands.pop().map(|command| send(writer(&command), command))
}

async fn execute_many<'s>(commands: Vec<Command>, writer: impl Fn(&Command) -> &'s mpsc::Sender<Job>) -> Vec<Outcome> {
    let mut answers = Vec::with_capacity(commands.len());
    for (answer, room) in commands.into_iter().map(|command| send(writer(&command), command)) {
        if let Some(room) = room {
            let _ = room.await;
        }
        answers.push(answer);
    }
    let (mut outcomes, mut answers) = (Vec::new(), answers.into_iter());
    while let Some(answer) = answers.next() {
        let told = answer.await;
        // Not before: there is much to wait for, and nothing to keep meanwhile.
        outcomes.reserve(1 + answers.len());
        outcomes.push(outcome(told));
    }
    outcomes
}

/// What became of a command, given what its writer told.
fn outcome(told: Result<Told, RecvError>) -> Outcome {
    told.map_or_else(|_| Err(CommandError::Failed(StoreError::Closed)), Outcome::from)
}

/// Waits for room in a writer's queue.
type Room<'w> = Pin<Box<dyn Future<Output = Result<(), SendError<Job>>> + Send + 'w>>;

/// Sends a command. Returns who brings its answer, which never comes if the writer is gone, and, if there is no room for
/// it just now, who waits for room. There mostly is, and thousands of callers wait for their answers at a time; so none of
/// them keeps room for a command meanwhile.
fn send(writer: &mpsc::Sender<Job>, command: Command) -> (oneshot::Receiver<Told>, Option<Room<'_>>) {
    let (reply, answer) = oneshot::channel();
    let room: Option<Room<'_>> = match writer.try_send(Job::Execute(Waiting { command, reply })) {
        Err(TrySendError::Full(job)) => Some(Box::pin(writer.send(job))),
        Ok(()) | Err(TrySendError::Closed(_)) => None,
    };
    (answer, room)
}

/// Has a writer import checked histories.
pub(crate) async fn import(writer: &mpsc::Sender<Job>, import: CheckedImport) -> Result<ImportReport, ImportError> {
    let (reply, answer) = oneshot::channel();
    let import = Box::new(import);
    writer.send(Job::Other(Errand::Import { import, reply })).await.map_err(|_| StoreError::Closed)?;
    answer.await.unwrap_or(Err(ImportError::Store(StoreError::Closed)))
}

/// Has a writer finish what is under way, and waits for it.
pub(crate) async fn close(writer: &mpsc::Sender<Job>) {
    let (reply, done) = oneshot::channel();
    if writer.send(Job::Other(Errand::Close { reply })).await.is_ok() {
        let _ = done.await;
    }
}

/// How many commands one transaction carries at the most.
pub(crate) const BATCH_COMMANDS_MAX: usize = 1_000;
/// How many bytes of payload one transaction carries at the most, one command apart.
const BATCH_BYTES_MAX: usize = 4 * 1024 * 1024;
/// How many commands may wait before callers do.
pub(crate) const QUEUE_MAX: usize = 4_096;

/// A command that waits, and who waits for its outcome.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) command: Command,
    pub(crate) reply: oneshot::Sender<Told>,
}

/// The commands that wait, in the order in which they came.
#[derive(Debug, Default)]
pub(crate) struct Queue(VecDeque<Waiting>);

/// What a batch names already.
#[derive(Default)]
struct Named {
    runs: HashSet<RunId, RandomState>,
    keys: HashSet<Name>,
    idempotency_keys: HashSet<IdempotencyKey>,
}

impl Named {
    fn clashes(&self, command: &Command) -> bool {
        command.run().is_some_and(|run| self.runs.contains(&run))
            || command.unique_key().is_some_and(|key| self.keys.contains(key))
            || command.idempotency_key().is_some_and(|key| self.idempotency_keys.contains(key))
    }

    fn add(&mut self, command: &Command) {
        self.runs.extend(command.run());
        self.keys.extend(command.unique_key().cloned());
        self.idempotency_keys.extend(command.idempotency_key().cloned());
    }
}

impl Queue {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes in the jobs that have arrived, and waits for one if there is nothing to do. Returns what is to be done once
    /// all the commands before it are carried out.
    pub(crate) async fn fill(&mut self, jobs: &mut mpsc::Receiver<Job>) -> Result<Option<Errand>, NobodyLeft> {
        if self.is_empty() {
            match jobs.recv().await {
                Some(Job::Execute(waiting)) => self.0.push_back(waiting),
                Some(Job::Other(errand)) => return Ok(Some(errand)),
                None => return Err(NobodyLeft),
            }
        }
        self.0.reserve(jobs.len().min(BATCH_COMMANDS_MAX));
        while self.0.len() < BATCH_COMMANDS_MAX {
            match jobs.try_recv() {
                Ok(Job::Execute(waiting)) => self.0.push_back(waiting),
                Ok(Job::Other(errand)) => return Ok(Some(errand)),
                Err(_) => break,
            }
        }
        Ok(None)
    }

    /// Takes the commands of the next transaction: at most one for a run, a unique key and an idempotency key, so what
    /// must come after another one waits for the next.
    pub(crate) fn next_batch(&mut self) -> Vec<Waiting> {
        let mut named = Named::default();
        named.runs.reserve(self.0.len().min(BATCH_COMMANDS_MAX));
        let mut bytes = 0;
        let mut fits = |taken: usize, command: &Command| {
            let clashes = named.clashes(command);
            bytes += if clashes { 0 } else { payload_bytes(command) };
            named.add(command);
            let full = taken >= BATCH_COMMANDS_MAX || bytes > BATCH_BYTES_MAX;
            (!clashes && (!full || taken == 0), full)
        };
        // Mostly all of them fit, and then none need be moved.
        let together = self.0.iter().zip(0..).take_while(|(waiting, taken)| fits(*taken, &waiting.command).0).count();
        let mut later = self.0.split_off(together);
        let mut batch = Vec::from(std::mem::take(&mut self.0));
        // The first of those has been asked about: it does not.
        self.0.extend(later.pop_front());
        while let Some(waiting) = later.pop_front() {
            let (fits, full) = fits(batch.len(), &waiting.command);
            if fits {
                batch.push(waiting);
            } else {
                self.0.push_back(waiting);
            }
            if full {
                break;
            }
        }
        self.0.append(&mut later);
        batch
    }
}

/// Answers every command of a batch with the failure of its transaction.
pub(crate) fn answer_all(batch: Vec<Waiting>, error: StoreError) {
    let text = match &error {
        StoreError::Unavailable(why) => why.clone(),
        other => other.to_string(),
    };
    let mut first = Some(error);
    for waiting in batch {
        let error = first.take().unwrap_or_else(|| StoreError::Unavailable(text.clone()));
        let _ = waiting.reply.send(Err(CommandError::Failed(error)).into());
    }
}

/// The bytes of the parts of a command that may be large.
fn payload_bytes(command: &Command) -> usize {
    let value = match command.inner() {
        Command::Create { spec, .. } => spec.input.as_ref(),
        Command::Heartbeat { progress, .. } => progress.as_ref(),
        Command::Complete { output, .. } => output.as_ref(),
        Command::Fail { error, .. } => return error.len(),
        _ => None,
    };
    value.map_or(0, |value| value.to_string().len())
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll, Waker};

    use lastbeat_domain::decide::{Report, RunSpec};
    use lastbeat_domain::{Span, Timestamp};
    use uuid::Uuid;

    use super::*;

    fn waiting(run: u128, progress: Option<usize>) -> Waiting {
        let run = RunId::from_uuid(Uuid::from_u128(run));
        let progress = progress.map(|bytes| serde_json::Value::String("x".repeat(bytes)));
        let report = Report { run, attempt: 1, claim: None, executor: None };
        Waiting { command: Command::Heartbeat { report, progress }, reply: oneshot::channel().0 }
    }

    fn creating(run: u128, key: Option<&str>) -> Waiting {
        let unique_key = key.map(|key| Name::new(key).unwrap());
        let spec = Box::new(RunSpec { unique_key, ..RunSpec::of_lane(Name::new("watcher").unwrap()) });
        let run = RunId::from_uuid(Uuid::from_u128(run));
        Waiting { command: Command::Create { run, spec, claim: None }, reply: oneshot::channel().0 }
    }

    fn batches(commands: impl IntoIterator<Item = (u128, Option<usize>)>) -> Vec<Vec<u128>> {
        batches_of(commands.into_iter().map(|(run, bytes)| waiting(run, bytes)))
    }

    /// The runs of each batch, in the order in which they are taken.
    fn batches_of(commands: impl IntoIterator<Item = Waiting>) -> Vec<Vec<u128>> {
        let mut queue = Queue(commands.into_iter().collect());
        let mut batches = Vec::new();
        while !queue.is_empty() {
            let run = |waiting: Waiting| waiting.command.run().unwrap().as_uuid().as_u128();
            batches.push(queue.next_batch().into_iter().map(run).collect());
        }
        batches
    }

    /// Takes the next command, answers it as a heartbeat of its run that was taken, and returns the run.
    fn take(jobs: &mut mpsc::Receiver<Job>) -> RunId {
        let Ok(Job::Execute(Waiting { command, reply })) = jobs.try_recv() else { panic!("no command came") };
        let run = command.run().unwrap();
        let (at, interval) = (Timestamp::from_micros(1), Span::from_seconds(1));
        let heard = Heard { run, attempt: 1, version: 4, at, cancel_requested: false, interval, lapses_at: None };
        let _ = reply.send(Told::Heard(heard));
        run
    }

    #[test]
    fn a_call_with_one_command_keeps_little_while_it_waits() {
        let (writer, _jobs) = mpsc::channel(1);
        let writer = &writer;
        let call = execute(vec![waiting(1, None).command], |_| writer);
        assert!(size_of_val(&*call) <= 96, "{} bytes", size_of_val(&*call));
    }

    #[test]
    fn each_command_of_a_call_waits_for_room_and_for_its_own_answer() {
        for count in [0, 1, 2, 5] {
            let (writer, mut jobs) = mpsc::channel(1);
            let writer = &writer;
            writer.try_send(Job::Execute(waiting(99, None))).unwrap();
            let mut call = execute((0..count).map(|run| waiting(run, None).command).collect(), |_| writer);
            let mut poll = || call.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            let runs: Vec<RunId> = (0..count).map(|run| RunId::from_uuid(Uuid::from_u128(run))).collect();
            // Who has the only place goes first, then one after the other.
            let queued = [99].into_iter().chain(0..count).filter(|_| count > 0);
            for run in queued {
                assert!(poll().is_pending());
                assert_eq!(take(&mut jobs), RunId::from_uuid(Uuid::from_u128(run)));
            }
            let Poll::Ready(outcomes) = poll() else { panic!("not all was answered") };
            let heard = |outcome: Outcome| outcome.unwrap().heard.unwrap().run;
            assert_eq!(outcomes.into_iter().map(heard).collect::<Vec<_>>(), runs);
        }
    }

    #[test]
    fn a_call_to_a_writer_that_is_gone_says_so() {
        for count in [1, 2] {
            let (writer, jobs) = mpsc::channel(1);
            drop(jobs);
            let writer = &writer;
            let mut call = execute((0..count).map(|run| waiting(run, None).command).collect(), |_| writer);
            let outcomes = call.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            let Poll::Ready(outcomes) = outcomes else { panic!("it waits for nobody") };
            let closed = |outcome: &Outcome| matches!(outcome, Err(CommandError::Failed(StoreError::Closed)));
            assert!(outcomes.len() as u128 == count && outcomes.iter().all(closed), "{outcomes:?}");
        }
    }

    #[test]
    fn a_batch_has_a_run_once_and_nothing_overtakes_what_it_must_follow() {
        let of = |runs: &[u128]| batches(runs.iter().map(|run| (*run, None)));
        assert_eq!(of(&[1, 2, 3]), [[1, 2, 3]]);
        assert_eq!(of(&[1, 2, 1, 3, 1, 2]), [vec![1, 2, 3], vec![1, 2], vec![1]]);
        // The second waits for the first, and has come for the key before the third.
        let keyed = [creating(1, None), creating(1, Some("k")), creating(2, Some("k")), creating(3, None)];
        assert_eq!(batches_of(keyed), [vec![1, 3], vec![1], vec![2]]);
    }

    #[test]
    fn a_batch_is_bounded_in_commands_and_in_bytes_but_for_one() {
        let many = batches((0..2_500).map(|run| (run, None)));
        assert_eq!(many.iter().map(Vec::len).collect::<Vec<_>>(), [1_000, 1_000, 500]);
        assert!(many.concat().is_sorted());
        let (big, half) = (BATCH_BYTES_MAX + 1, BATCH_BYTES_MAX / 2);
        let large = batches([(1, Some(big)), (2, None), (3, Some(half)), (4, Some(half)), (5, None)]);
        assert_eq!(large, [vec![1], vec![2, 3], vec![4, 5]]);
    }
}
