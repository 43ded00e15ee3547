//! The process group of a command: started, signalled, ended with all that is in it.
//!
//! The command gets a process group of its own, so that it can be ended with all its children. It must not outlive
//! `exec`, or nobody would beat for it: on Linux the kernel kills it when the thread that spawned it dies, which is why
//! it is spawned on the main thread; and a guard, a process of its own that reads from a pipe which only `exec` holds
//! open, ends the rest of the group.

use std::ffi::OsString;
use std::io::Read;
use std::process::{ExitStatus, Stdio};

use lastbeat_client::Lease;
use lastbeat_domain::Span;
use rustix::process::{Pid, Signal, getppid, kill_process_group, set_parent_process_death_signal};
use tokio::process::Child;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// Starts the command in a process group of its own, to be killed when this thread dies. It is told of the lease, if
/// there is one by now.
pub(crate) fn spawn(command: &[OsString], lease: Option<&Lease>) -> std::io::Result<Child> {
    let (program, arguments) = command.split_first().ok_or(std::io::ErrorKind::InvalidInput)?;
    let mut command = tokio::process::Command::new(program);
    command.args(arguments).process_group(0);
    // What the environment of `exec` says of a run is about another one.
    command.env_remove("LASTBEAT_RUN").env_remove("LASTBEAT_ATTEMPT").env_remove("LASTBEAT_CLAIM");
    if let Some(lease) = lease {
        command.env("LASTBEAT_RUN", lease.run.to_string()).env("LASTBEAT_ATTEMPT", lease.attempt.to_string());
        if let Some(claim) = &lease.claim {
            command.env("LASTBEAT_CLAIM", claim.to_string());
        }
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
pub(crate) fn start_guard(group: Pid) -> Option<std::process::ChildStdin> {
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

pub(crate) fn send(group: Option<Pid>, signal: Signal) {
    if let Some(group) = group {
        // The group may be gone already, which is what was wanted.
        let _ = kill_process_group(group, signal);
    }
}

/// The signals that are passed on.
pub(crate) struct Signals {
    caught: mpsc::Receiver<Signal>,
}

impl Signals {
    pub(crate) fn catch() -> std::io::Result<Signals> {
        let (sender, caught) = mpsc::channel(16);
        for passed in [Signal::INT, Signal::TERM, Signal::HUP, Signal::QUIT, Signal::USR1, Signal::USR2] {
            let mut stream = signal(SignalKind::from_raw(passed.as_raw()))?;
            let sender = sender.clone();
            tokio::spawn(async move { while stream.recv().await.is_some() && sender.send(passed).await.is_ok() {} });
        }
        Ok(Signals { caught })
    }

    pub(crate) async fn next(&mut self) -> Signal {
        match self.caught.recv().await {
            Some(signal) => signal,
            None => std::future::pending().await,
        }
    }
}

/// Ends the process group: asks, waits for the grace period, then kills.
pub(crate) async fn end(child: &mut Child, group: Option<Pid>, grace: Span) -> std::io::Result<ExitStatus> {
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
