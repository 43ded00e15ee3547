//! `throwaway-postgres -- COMMAND ARGUMENTS…` runs a command beside a PostgreSQL server of its own, whose URL is in
//! `LASTBEAT_TEST_POSTGRES_URL`, and passes on its exit code. So one server is enough for all the tests of a run.

#![allow(clippy::unwrap_used)]

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitCode, ExitStatus};

use lastbeat_testkit::postgres::Cluster;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

fn main() -> ExitCode {
    let mut words: Vec<OsString> = std::env::args_os().skip(1).collect();
    if words.first().is_some_and(|word| word == "--") {
        words.remove(0);
    }
    let Some((program, arguments)) = words.split_first() else {
        eprintln!("usage: throwaway-postgres -- COMMAND [ARGUMENTS…]");
        return ExitCode::from(2);
    };
    let cluster = Cluster::start();
    let mut command = Command::new(program);
    command.args(arguments).env("LASTBEAT_TEST_POSTGRES_URL", cluster.url("postgres"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    match runtime.block_on(run(&mut command)) {
        Ok(status) => ExitCode::from(code(status)),
        Err(error) => {
            eprintln!("throwaway-postgres: failed to run {}: {error}", program.display());
            ExitCode::from(127)
        }
    }
}

/// Runs a command to its end, whatever signals come. Ctrl-C reaches the command by itself: the terminal sends it to the
/// whole process group. The others it gets from here.
async fn run(command: &mut Command) -> std::io::Result<ExitStatus> {
    // Listening comes first: a signal that came in between would end this process.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut child = command.spawn()?;
    loop {
        tokio::select! {
            status = child.wait() => return status,
            _ = interrupt.recv() => {}
            _ = hang_up.recv() => send(&child, Signal::HUP),
            _ = terminate.recv() => send(&child, Signal::TERM),
        }
    }
}

fn send(child: &Child, signal: Signal) {
    let pid = child.id().and_then(|id| Pid::from_raw(id.try_into().ok()?));
    // One that has ended in the meantime is fine.
    let _ = pid.map(|pid| kill_process(pid, signal));
}

/// The exit code that a shell would show.
fn code(status: ExitStatus) -> u8 {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    u8::try_from(code).unwrap_or(1)
}
