//! How far a long piece of work is, on standard error: a bar on a terminal, a line now and then elsewhere.

use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// How often a line is written where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// Shows how far one piece of work is.
pub(crate) struct Progress {
    what: &'static str,
    bar: Option<ProgressBar>,
    told: Mutex<Instant>,
}

impl Progress {
    /// Begins to show it; `unit` is what is counted.
    pub(crate) fn of(what: &'static str, unit: &'static str) -> Progress {
        let template = format!("{what} {{bar:30}} {{human_pos}} of {{human_len}} {unit}, {{per_sec}}, {{eta}} left");
        let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = std::io::stderr().is_terminal().then(|| ProgressBar::new(0).with_style(style));
        Progress { what, bar, told: Mutex::new(Instant::now()) }
    }

    /// Shows that so much is done, of so much.
    pub(crate) fn at(&self, done: u64, all: u64) {
        if let Some(bar) = &self.bar {
            bar.set_length(all);
            return bar.set_position(done);
        }
        let mut told = self.told.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if told.elapsed() >= LINE_INTERVAL {
            *told = Instant::now();
            // Progress that cannot be shown is no reason to stop.
            let _ = writeln!(anstream::stderr(), "{}: {done} of {all}", self.what);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Tells how much of a file was read.
pub(crate) struct Counting<R> {
    file: R,
    read: u64,
    size: u64,
    progress: Progress,
}

impl<R> Counting<R> {
    pub(crate) fn new(file: R, size: u64, progress: Progress) -> Counting<R> {
        Counting { file, read: 0, size, progress }
    }
}

impl<R: std::io::Read> std::io::Read for Counting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let bytes = self.file.read(buffer)?;
        self.read += bytes as u64;
        self.progress.at(self.read, self.size.max(self.read));
        Ok(bytes)
    }
}
