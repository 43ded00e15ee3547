//! Sees to it that nothing is left behind, even of a process that is killed.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

/// What the shell runs. Each line that it reads names the process that runs now, and the signal that ends it (0 is
/// none: then it ends by itself); an empty line says that nothing runs. The lines end when the process that writes them
/// does, in whatever way: the kernel closes its end of the pipe.
///
/// A server that a test has stopped acts on the signal only when it goes on. One that is a zombie, because nobody waits
/// for it, still takes signals; but it has taken its `postmaster.pid` away before.
const SCRIPT: &str = r#"
    trap '' HUP INT QUIT TERM
    signal= process=
    while read -r signal_now process_now; do
        signal=$signal_now process=$process_now
    done
    runs() {
        { [ "$signal" = 0 ] || [ -e "$1/data/postmaster.pid" ]; } && kill -s 0 -- "$process"
    }
    if [ -n "$process" ] && kill -s "$signal" -- "$process"; then
        kill -s CONT -- "$process"
        left=200
        while [ "$left" -gt 0 ] && runs "$1"; do
            sleep 0.05
            left=$((left - 1))
        done
        [ "$left" -gt 0 ] || kill -s KILL -- "$process"
    fi
    left=100
    until rm -rf -- "$1" || [ "$left" -eq 0 ]; do
        sleep 0.05
        left=$((left - 1))
    done
"#;

/// A shell that waits until this process ends, or the watcher is dropped; then it ends what runs in a folder, and
/// removes the folder.
///
/// It is a process of its own because a destructor doesn't run in a process that is killed, nor for a static.
pub(super) struct Watcher {
    shell: Child,
    /// Closed by taking it.
    orders: Option<ChildStdin>,
}

impl Watcher {
    /// Starts to watch. The shell is in a process group of its own, so that Ctrl-C ends the tests and not the shell.
    pub(super) fn of(folder: &Path) -> Watcher {
        let mut command = Command::new("sh");
        command.args(["-c", SCRIPT, "sh"]).arg(folder).current_dir("/").process_group(0);
        // Whoever reads our output to its end shall not wait for the shell.
        let mut shell = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let orders = shell.stdin.take();
        Watcher { shell, orders }
    }

    /// Says that a server runs, which ends its own children when it is told to quit.
    pub(super) fn server(&self, server: &Child) {
        self.order(&format!("QUIT {}", server.id()));
    }

    /// Says that a program runs, in a process group of its own, and ends soon. It is not killed: `initdb` would leave
    /// shared memory behind.
    pub(super) fn program(&self, program: &Child) {
        self.order(&format!("0 -{}", program.id()));
    }

    /// Says that nothing runs. From now on its process id may be another's.
    pub(super) fn nothing(&self) {
        self.order("");
    }

    fn order(&self, line: &str) {
        // The standard library makes its end of the pipe so that other children don't inherit it.
        let mut orders = self.orders.as_ref().unwrap();
        orders.write_all(format!("{line}\n").as_bytes()).unwrap();
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        drop(self.orders.take());
        let _ = self.shell.wait();
    }
}
