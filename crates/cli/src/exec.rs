//! `lastbeat exec`: a command as a run.
//!
//! The command is what matters, and its record comes after it: on a server that is not there, the command runs all the
//! same, unless its caller wants it otherwise. What is known of the run is the business of [`contact`](crate::contact),
//! what becomes of the processes that of [`group`](crate::group).

use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitCode, ExitStatus};

use lastbeat_client::Stop;
use lastbeat_domain::Name;
use rustix::process::{Pid, Signal};

use crate::args;
use crate::contact::{Contact, Ending};
use crate::failure::Failure;
use crate::group::{Signals, end, send, spawn, start_guard};
use crate::obtain::Request;
use crate::place::Place;

/// What `exec` exits with when its run was taken from it.
const EXIT_FENCED: u8 = 75;

pub(crate) async fn exec(place: &Place, arguments: args::Exec) -> Result<ExitCode, Failure> {
    let executor = match arguments.executor {
        Some(executor) => executor,
        None => host_name()?,
    };
    // Signals are caught before the command exists, so that none is lost in between.
    let mut signals = Signals::catch()?;
    let request = Request::new(arguments.lane, arguments.goal, arguments.unique_key, executor);
    let mut contact = tokio::select! {
        contact = Contact::begin(place, request, arguments.require_server) => contact?,
        caught = signals.next() => return Ok(ExitCode::from(interrupted(caught))),
    };

    let mut child = match spawn(&arguments.command, contact.lease().as_ref()) {
        Ok(child) => child,
        Err(error) => return cannot_start(contact, &arguments.command, &error).await,
    };
    let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    let mut guard = group.and_then(start_guard);

    let (status, stop) = loop {
        tokio::select! {
            status = child.wait() => break (status?, None),
            stop = contact.stopped() => break (end(&mut child, group, arguments.grace).await?, Some(stop)),
            caught = signals.next() => send(group, caught),
        }
    };
    if stop.is_some() {
        send(group, Signal::KILL);
    }
    if let Some(guard) = &mut guard {
        let _ = guard.write_all(b".");
    }
    match stop {
        Some(stop) => Ok(stopped(contact, stop, &mut signals).await),
        None => Ok(ended(contact, status, &mut signals).await),
    }
}

fn host_name() -> Result<Name, Failure> {
    let system = rustix::system::uname();
    Name::new(system.nodename().to_string_lossy())
        .map_err(|error| Failure::new("invalid", format!("the host's name: {error}; give --executor")))
}

/// The shell's code for what was ended by a signal.
fn interrupted(by: Signal) -> u8 {
    u8::try_from(128 + by.as_raw()).unwrap_or(1)
}

/// Reports how the run ended, until somebody has had enough of it.
async fn report(contact: Contact, ending: Ending, signals: &mut Signals) -> Result<(), Failure> {
    tokio::select! {
        reported = contact.end(ending) => reported,
        _ = signals.next() => Err(Failure::new("interrupted", "the report was interrupted by a signal")),
    }
}

async fn stopped(contact: Contact, stop: Stop, signals: &mut Signals) -> ExitCode {
    match stop {
        Stop::Fenced(why) => eprintln!("lastbeat: the command was stopped: {why}"),
        Stop::Cancelled | Stop::LostContact => {
            eprintln!("lastbeat: the command was stopped: {} was asked to be cancelled", contact.name());
            if let Err(error) = report(contact, Ending::Cancelled, signals).await {
                eprintln!("lastbeat: {}", error.message);
            }
        }
    }
    ExitCode::from(EXIT_FENCED)
}

async fn ended(contact: Contact, status: ExitStatus, signals: &mut Signals) -> ExitCode {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    let ending = match (status.success(), status.signal()) {
        (true, _) => Ending::Completed(serde_json::json!({"exit_code": 0})),
        (false, Some(signal)) => Ending::Failed(format!("the command was ended by signal {signal}")),
        (false, None) => Ending::Failed(format!("the command exited with {code}")),
    };
    let code = u8::try_from(code).unwrap_or(1);
    let name = contact.name();
    match report(contact, ending, signals).await {
        Ok(()) => ExitCode::from(code),
        Err(failure) if failure.is_fenced() => {
            eprintln!("lastbeat: the command ended too late: {}", failure.message);
            ExitCode::from(EXIT_FENCED)
        }
        Err(failure) => {
            eprintln!("lastbeat: the end of {name} could not be recorded: {}", failure.message);
            ExitCode::from(code.max(1))
        }
    }
}

/// The shell's codes for a command that is not there, and for one that cannot be run.
async fn cannot_start(
    contact: Contact,
    command: &[std::ffi::OsString],
    error: &std::io::Error,
) -> Result<ExitCode, Failure> {
    let program = command.first().map(|program| program.to_string_lossy().into_owned()).unwrap_or_default();
    let text = format!("cannot start `{program}`: {error}");
    eprintln!("lastbeat: {text}");
    // There is nothing to record of a command that never ran, unless its run is there.
    if contact.lease().is_some() {
        contact.end(Ending::Failed(text)).await?;
    }
    Ok(ExitCode::from(if error.kind() == std::io::ErrorKind::NotFound { 127 } else { 126 }))
}
