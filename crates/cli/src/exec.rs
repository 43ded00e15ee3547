//! `lastbeat exec`: a command as a run.
//!
//! The command gets a process group of its own, so that it can be ended with all its children. It must not outlive
//! `exec`, or nobody would beat for it: on Linux the kernel kills it when the thread that spawned it dies, which is why
//! it is spawned on the main thread; and a guard, a process of its own that reads from a pipe which only `exec` holds
//! open, ends the rest of the group.

use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitCode, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use lastbeat_domain::decide::{Command, Report};
use lastbeat_domain::{Name, RefusalCode, Span};
use lastbeat_store::{Answer, CommandError, Store};
use rustix::process::{Pid, Signal, getppid, kill_process_group, set_parent_process_death_signal};
use tokio::process::Child;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::failure::Failure;
use crate::{args, obtain};

/// What `exec` exits with when its run was taken from it.
const EXIT_FENCED: u8 = 75;
/// How long to wait before a report that could not be written is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// How often the end of a run is tried to be written.
const REPORT_TRIES_MAX: u32 = 20;

/// Why the command has to stop.
#[derive(Debug)]
enum Stop {
    /// The run is no longer ours.
    Fenced(String),
    /// Somebody asked for it to be cancelled.
    Cancelled,
}

pub(crate) async fn exec(store: Arc<dyn Store>, arguments: args::Exec) -> Result<ExitCode, Failure> {
    let executor = match arguments.executor {
        Some(executor) => executor,
        None => host_name()?,
    };
    // Signals are caught before the command exists, so that none is lost in between.
    let mut signals = Signals::catch()?;
    let request = obtain::Request { lane: arguments.lane, goal: arguments.goal, unique_key: arguments.unique_key };
    let obtained = tokio::select! {
        obtained = obtain::obtain(store.as_ref(), &request, &executor) => obtained?,
        caught = signals.next() => return Ok(ExitCode::from(u8::try_from(128 + caught.as_raw()).unwrap_or(1))),
    };
    let obtain::Obtained { report, interval } = obtained;
    beat(store.as_ref(), &report).await.map_err(|stop| match stop {
        Stop::Fenced(why) => Failure::new("stale_attempt", why),
        Stop::Cancelled => Failure::new("cancelled", format!("run {} was asked to be cancelled", report.run)),
    })?;

    let mut child = match spawn(&arguments.command, &report) {
        Ok(child) => child,
        Err(error) => return cannot_start(store.as_ref(), &report, &arguments.command, &error).await,
    };
    let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    let mut guard = group.and_then(start_guard);
    let (sender, mut stops) = mpsc::channel(1);
    let beating = tokio::spawn(keep_beating(Arc::clone(&store), report.clone(), interval, sender));

    let (status, stop) = loop {
        tokio::select! {
            status = child.wait() => break (status?, None),
            Some(stop) = stops.recv() => break (end(&mut child, group, arguments.grace).await?, Some(stop)),
            caught = signals.next() => send(group, caught),
        }
    };
    beating.abort();
    if stop.is_some() {
        send(group, Signal::KILL);
    }
    if let Some(guard) = &mut guard {
        let _ = guard.write_all(b".");
    }
    match stop {
        Some(stop) => Ok(stopped(store.as_ref(), report, stop).await),
        None => ended(store.as_ref(), report, status).await,
    }
}

fn host_name() -> Result<Name, Failure> {
    let system = rustix::system::uname();
    Name::new(system.nodename().to_string_lossy())
        .map_err(|error| Failure::new("invalid", format!("the host's name: {error}; give --executor")))
}

/// Starts the command in a process group of its own, to be killed when this thread dies.
fn spawn(command: &[std::ffi::OsString], report: &Report) -> std::io::Result<Child> {
    let (program, arguments) = command.split_first().ok_or(std::io::ErrorKind::InvalidInput)?;
    let mut command = tokio::process::Command::new(program);
    command.args(arguments).process_group(0);
    command.env("LASTBEAT_RUN", report.run.to_string()).env("LASTBEAT_ATTEMPT", report.attempt.to_string());
    if let Some(claim) = &report.claim {
        command.env("LASTBEAT_CLAIM", claim.as_str());
    }
    let parent = Pid::from_raw(i32::try_from(std::process::id()).unwrap_or_default());
    let dies_with_parent = move || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // The parent may have died before that was set.
        if getppid() == parent { Ok(()) } else { Err(std::io::ErrorKind::NotConnected.into()) }
    };
    // SAFETY: between fork and exec it makes two system calls, and neither allocates nor takes a lock.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(dies_with_parent);
    }
    command.spawn()
}

/// Starts the guard of a process group and returns its pipe.
fn start_guard(group: Pid) -> Option<std::process::ChildStdin> {
    use std::os::unix::process::CommandExt;
    let program = std::env::current_exe().ok()?;
    let mut guard = std::process::Command::new(program);
    guard.arg("guard").arg(group.as_raw_nonzero().to_string()).process_group(0);
    let guard = guard.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    match guard {
        Ok(guard) => guard.stdin,
        Err(error) => {
            tracing::warn!(%error, "no guard: if exec is killed, only the command itself is ended, not its children");
            None
        }
    }
}

/// Waits for `exec` to say that all went well, or to die; then ends what is left of the process group.
pub(crate) fn guard(group: i32) {
    let mut word = [0_u8; 1];
    let said = std::io::stdin().read(&mut word).unwrap_or(0);
    if said == 0 {
        send(Pid::from_raw(group), Signal::KILL);
    }
}

fn send(group: Option<Pid>, signal: Signal) {
    if let Some(group) = group {
        // The group may be gone already, which is what was wanted.
        let _ = kill_process_group(group, signal);
    }
}

/// The signals that are passed on.
struct Signals {
    caught: mpsc::Receiver<Signal>,
}

impl Signals {
    fn catch() -> std::io::Result<Signals> {
        let (sender, caught) = mpsc::channel(16);
        for passed in [Signal::INT, Signal::TERM, Signal::HUP, Signal::QUIT, Signal::USR1, Signal::USR2] {
            let mut stream = signal(SignalKind::from_raw(passed.as_raw()))?;
            let sender = sender.clone();
            tokio::spawn(async move { while stream.recv().await.is_some() && sender.send(passed).await.is_ok() {} });
        }
        Ok(Signals { caught })
    }

    async fn next(&mut self) -> Signal {
        match self.caught.recv().await {
            Some(signal) => signal,
            None => std::future::pending().await,
        }
    }
}

/// Beats once. A store that cannot be written to is not a reason to stop: the next beat may get through.
async fn beat(store: &dyn Store, report: &Report) -> Result<(), Stop> {
    let command = Command::Heartbeat { report: report.clone(), progress: None };
    match store.execute(vec![command]).await.pop() {
        Some(Ok(answer)) if wants_cancel(&answer) => Err(Stop::Cancelled),
        Some(Err(CommandError::Refused(refusal))) => Err(Stop::Fenced(refusal.message)),
        Some(Err(CommandError::Failed(error))) => {
            tracing::warn!(%error, "a heartbeat was lost");
            Ok(())
        }
        _ => Ok(()),
    }
}

fn wants_cancel(answer: &Answer) -> bool {
    answer.heard.as_ref().is_some_and(|heard| heard.cancel_requested)
}

async fn keep_beating(store: Arc<dyn Store>, report: Report, interval: Span, stops: mpsc::Sender<Stop>) {
    let mut ticks = tokio::time::interval(interval.to_std());
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks.tick().await;
    loop {
        ticks.tick().await;
        if let Err(stop) = beat(store.as_ref(), &report).await {
            let _ = stops.send(stop).await;
            return;
        }
    }
}

/// Ends the process group: asks, waits for the grace period, then kills.
async fn end(child: &mut Child, group: Option<Pid>, grace: Span) -> std::io::Result<ExitStatus> {
    send(group, Signal::TERM);
    // A stopped process acts on nothing but SIGKILL and this.
    send(group, Signal::CONT);
    match tokio::time::timeout(grace.to_std(), child.wait()).await {
        Ok(status) => status,
        Err(_) => {
            send(group, Signal::KILL);
            child.wait().await
        }
    }
}

async fn stopped(store: &dyn Store, report: Report, stop: Stop) -> ExitCode {
    match stop {
        Stop::Fenced(why) => eprintln!("lastbeat: the command was stopped: {why}"),
        Stop::Cancelled => {
            eprintln!("lastbeat: the command was stopped: run {} was asked to be cancelled", report.run);
            if let Err(error) = finish(store, Command::AcknowledgeCancel(report)).await {
                eprintln!("lastbeat: {}", error.message);
            }
        }
    }
    ExitCode::from(EXIT_FENCED)
}

async fn ended(store: &dyn Store, report: Report, status: ExitStatus) -> Result<ExitCode, Failure> {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    let command = if status.success() {
        Command::Complete { report: report.clone(), output: Some(serde_json::json!({"exit_code": 0})) }
    } else {
        let error = match status.signal() {
            Some(signal) => format!("the command was ended by signal {signal}"),
            None => format!("the command exited with {code}"),
        };
        Command::Fail { report: report.clone(), error }
    };
    let code = u8::try_from(code).unwrap_or(1);
    match finish(store, command).await {
        Ok(()) => Ok(ExitCode::from(code)),
        Err(failure) if failure.code == RefusalCode::StaleAttempt.as_str() || failure.code == "settled" => {
            eprintln!("lastbeat: the command ended too late: {}", failure.message);
            Ok(ExitCode::from(EXIT_FENCED))
        }
        Err(failure) => {
            eprintln!("lastbeat: the end of run {} could not be recorded: {}", report.run, failure.message);
            Ok(ExitCode::from(code.max(1)))
        }
    }
}

/// Reports the end of the run, again and again while the store is away.
async fn finish(store: &dyn Store, command: Command) -> Result<(), Failure> {
    let mut tries = 0;
    loop {
        tries += 1;
        match store.execute(vec![command.clone()]).await.pop() {
            Some(Err(CommandError::Failed(error))) if error.is_transient() && tries < REPORT_TRIES_MAX => {
                tokio::time::sleep(RETRY_PAUSE).await;
            }
            Some(Err(error)) => return Err(error.into()),
            _ => return Ok(()),
        }
    }
}

/// The shell's codes for a command that is not there, and for one that cannot be run.
async fn cannot_start(
    store: &dyn Store,
    report: &Report,
    command: &[std::ffi::OsString],
    error: &std::io::Error,
) -> Result<ExitCode, Failure> {
    let program = command.first().map(|program| program.to_string_lossy().into_owned()).unwrap_or_default();
    let text = format!("cannot start `{program}`: {error}");
    eprintln!("lastbeat: {text}");
    finish(store, Command::Fail { report: report.clone(), error: text }).await?;
    Ok(ExitCode::from(if error.kind() == std::io::ErrorKind::NotFound { 127 } else { 126 }))
}
