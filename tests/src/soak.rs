//! Many sweepers and many executors on one PostgreSQL, some of them killed, stopped and slowed at random; afterwards the
//! log is held against the promises. A test plays it for seconds, `cargo xtask soak` for minutes.

use std::fmt;
use std::fs::File;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lastbeat_testkit::postgres::Cluster;
use rustix::process::Signal;

use crate::{Numbers, Place, Started, helper, pause, until};

const LANE: &str = "soak";
/// How often executors beat, and the window: wide enough that a busy machine keeps it.
const INTERVAL_MS: u64 = 500;
const WINDOW_MS: u64 = 3_000;
/// Within which time a tenth of the executors, and a quarter of the sweepers, are put out of order. Not within a much
/// shorter one: whoever is stopped in the middle of a write keeps all others waiting until the server ends its
/// session, and nobody is reaped meanwhile.
const ROUND: Duration = Duration::from_secs(20);
/// How long a run is worked on at the most.
const WORK_MS: u64 = 12_000;
/// How long what is dead at the end may take to be reaped, on a busy machine; it is a bound on the wait only.
const PATIENCE: Duration = Duration::from_secs(60);

/// How much to play.
#[derive(Clone, Copy, Debug)]
pub struct Soak {
    /// What the faults are drawn from. The same seed makes the same ones, but real processes are never twice the same.
    pub seed: u64,
    /// For how long.
    pub time: Duration,
    /// How many sweepers there are.
    pub sweepers: usize,
    /// How many executors there are.
    pub executors: usize,
    /// How many runs each of them works on at a time.
    pub runs_each: usize,
}

impl Default for Soak {
    fn default() -> Soak {
        Soak { seed: 1, time: Duration::from_secs(15), sweepers: 8, executors: 50, runs_each: 10 }
    }
}

/// How often processes of a kind were put out of order.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// How often one was killed.
    pub killed: usize,
    /// How often one was stopped for a while.
    pub stopped: usize,
    /// How often one was slowed.
    pub slowed: usize,
}

impl Faults {
    fn all(self) -> usize {
        self.killed + self.stopped + self.slowed
    }
}

/// What was played and what came of it.
#[derive(Debug, Default)]
pub struct Report {
    /// What was done to executors.
    pub executors: Faults,
    /// What was done to sweepers.
    pub sweepers: Faults,
    /// How many runs there were.
    pub runs: usize,
    /// How many attempts were claimed.
    pub attempts: usize,
    /// How many heartbeats are in the log.
    pub heartbeats: usize,
    /// How many attempts were reaped.
    pub reaps: usize,
    /// How many of them were attempts of executors that were never out of order: too slow on a busy machine.
    pub reaps_of_the_undisturbed: usize,
    /// How many completions were taken after a reap.
    pub late_completions: usize,
    /// The half and the whole of the reaps were so late after the end of the window, in seconds of listening time.
    pub lag: (f64, f64),
    /// How much of the time nobody listened, in seconds.
    pub deaf: f64,
    /// The promises that were not kept.
    pub violations: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { runs, attempts, heartbeats, reaps, .. } = self;
        for (who, Faults { killed, stopped, slowed }) in [("executors", self.executors), ("sweepers", self.sweepers)] {
            write!(f, "{who}: {killed} killed, {stopped} stopped, {slowed} slowed; ")?;
        }
        writeln!(f, "deaf for {:.3} s in all", self.deaf)?;
        writeln!(f, "{runs} runs, {attempts} attempts, {heartbeats} heartbeats")?;
        writeln!(
            f,
            "{reaps} reaped, {} of them of executors that were only slow; {} completed late; half of the reaps within \
             {:.3} s after the window, the latest {:.3} s",
            self.reaps_of_the_undisturbed, self.late_completions, self.lag.0, self.lag.1
        )?;
        write!(f, "{} violations", self.violations.len())?;
        self.violations.iter().try_for_each(|violation| write!(f, "\n  {violation}"))
    }
}

/// What a process is up to.
enum Mood {
    Well,
    /// It is stopped, and continued then.
    Stopped(Instant),
    /// It dawdles, and is well again then.
    Slow(Instant),
    /// It was killed, and another one takes its place then.
    Dead(Instant),
}

/// One of the processes, and those that take its place.
struct Member {
    number: usize,
    generation: usize,
    process: Started,
    mood: Mood,
    /// Whether it, as the process that it is now, was ever out of order.
    disturbed: bool,
}

struct Play<'a> {
    soak: Soak,
    place: &'a Place,
    url: &'a str,
    numbers: Numbers,
    report: Report,
    /// The names of the executors that were ever out of order.
    disturbed: Vec<String>,
}

/// Plays it, and returns what came of it.
pub fn play(soak: Soak) -> Report {
    let cluster = Cluster::start();
    let url = cluster.create_database();
    let place = Place::on(&url);
    let (interval, window) = (format!("{INTERVAL_MS}ms"), format!("{WINDOW_MS}ms"));
    let coarse = format!("{}ms", 2 * WINDOW_MS);
    let policy = [
        ["--heartbeat-interval", &interval],
        ["--heartbeat-window", &window],
        ["--coarse-ttl", &coarse],
        ["--max-attempts", "3"],
        ["--retry-backoff-base", "500ms"],
        // So much is out of order here, and for so short a time, that holds would be all there is to see.
        ["--hold-min", "off"],
    ];
    place.json(&[&["lane", "set", LANE], policy.as_flattened()].concat());
    let numbers = Numbers(soak.seed);
    let mut play = Play { soak, place: &place, url: &url, numbers, report: Report::default(), disturbed: Vec::new() };
    play.disorder();
    play.look();
    play.report
}

impl Play<'_> {
    /// Lets all of them run, and puts some of them out of order, until the time is over. Then the executors end, and the
    /// sweepers when nothing is in flight any more.
    fn disorder(&mut self) {
        let mut sweepers: Vec<Member> = (0..self.soak.sweepers).map(|number| self.member(number, 0, false)).collect();
        let mut executors: Vec<Member> = (0..self.soak.executors).map(|number| self.member(number, 0, true)).collect();
        // Some are between two runs at any time.
        let most = (self.soak.executors * self.soak.runs_each) as u64 * 3 / 4;
        until("they work", || self.counted("running") >= most);
        let started = Instant::now();
        while started.elapsed() < self.soak.time {
            pause(Duration::from_millis(50));
            self.put_in_order(&mut executors, true);
            self.put_in_order(&mut sweepers, false);
            let rounds = started.elapsed().as_secs_f64() / ROUND.as_secs_f64();
            if (self.report.executors.all() as f64) < rounds * self.soak.executors as f64 / 10.0 {
                self.put_one_out_of_order(&mut executors, true);
            }
            if (self.report.sweepers.all() as f64) < rounds * self.soak.sweepers as f64 / 4.0 {
                self.put_one_out_of_order(&mut sweepers, false);
            }
        }
        end_all(executors);
        self.wait_for_the_dead();
        end_all(sweepers);
    }

    /// Puts those in order whose time has come.
    fn put_in_order(&mut self, members: &mut [Member], executors: bool) {
        let now = Instant::now();
        for member in members {
            match member.mood {
                Mood::Stopped(until) if until <= now => {
                    member.process.signal(Signal::CONT);
                    member.mood = Mood::Well;
                }
                Mood::Slow(until) if until <= now => member.mood = Mood::Well,
                Mood::Dead(until) if until <= now => {
                    *member = self.member(member.number, member.generation + 1, executors);
                }
                _ => {}
            }
        }
    }

    /// Puts one of those that are well out of order; what is done to it goes round.
    fn put_one_out_of_order(&mut self, members: &mut [Member], executor: bool) {
        let mut well: Vec<&mut Member> =
            members.iter_mut().filter(|member| matches!(member.mood, Mood::Well)).collect();
        if well.is_empty() {
            return;
        }
        let index = usize::try_from(self.numbers.below(well.len() as u64)).unwrap();
        let member = &mut *well[index];
        // Some of the stops are shorter than the window, and some longer.
        let until = Instant::now() + Duration::from_millis(300 + self.numbers.below(2 * WINDOW_MS));
        let (faults, kinds) = if executor { (&mut self.report.executors, 3) } else { (&mut self.report.sweepers, 2) };
        let (signal, count, mood) = match faults.all() % kinds {
            0 => (Signal::KILL, &mut faults.killed, Mood::Dead(until)),
            1 => (Signal::STOP, &mut faults.stopped, Mood::Stopped(until)),
            _ => (Signal::USR1, &mut faults.slowed, Mood::Slow(until)),
        };
        *count += 1;
        member.process.signal(signal);
        member.mood = mood;
        if executor && !member.disturbed {
            self.disturbed.push(name_of(member.number, member.generation));
        }
        member.disturbed = true;
    }

    fn member(&mut self, number: usize, generation: usize, executor: bool) -> Member {
        let mut command = if executor { self.executor(&name_of(number, generation)) } else { self.sweeper() };
        let process = Started::new(&mut command);
        Member { number, generation, process, mood: Mood::Well, disturbed: false }
    }

    fn sweeper(&self) -> Command {
        let mut command = self.place.lastbeat(&["sweep"]);
        command.stdout(Stdio::null());
        command
    }

    /// What it was told goes to a file, so that it never waits for a reader.
    fn executor(&mut self, name: &str) -> Command {
        let mut command = Command::new(helper("executor"));
        let (runs, interval, work) = (self.soak.runs_each, INTERVAL_MS, WORK_MS);
        let seed = self.numbers.below(u64::MAX);
        command.args([self.url, name, LANE]);
        command.args([runs as u64, interval, work, seed].map(|number| number.to_string()));
        command.stdout(File::create(self.place.file(name)).unwrap());
        command
    }

    fn counted(&self, status: &str) -> u64 {
        self.place.json(&["lane", "show", LANE])["runs"][status].as_u64().unwrap_or(0)
    }

    /// Waits until all that the dead left behind is reaped.
    fn wait_for_the_dead(&mut self) {
        let end = Instant::now() + PATIENCE;
        loop {
            let in_flight = self.counted("claimed") + self.counted("running");
            if in_flight == 0 {
                return;
            }
            if Instant::now() > end {
                self.report.violations.push(format!("{in_flight} runs of the dead are not reaped"));
                return;
            }
            pause(Duration::from_millis(200));
        }
    }

    /// Holds the log against the promises, and against what the executors were told.
    fn look(&mut self) {
        let verify = self.place.run(&["verify"]);
        if !verify.status.success() {
            self.report.violations.push(format!("verify: {}", String::from_utf8_lossy(&verify.stdout)));
        }
        let audit = self.place.audit();
        let report = &mut self.report;
        report.violations.extend(audit.violations.iter().cloned());
        for (run, attempt, executor) in &audit.open {
            report.violations.push(format!("attempt {attempt} of run {run} by {executor} has no end"));
        }
        let versions = audit.versions();
        for entry in std::fs::read_dir(self.place.file(".")).unwrap() {
            let text = std::fs::read_to_string(entry.unwrap().path()).unwrap_or_default();
            // Who was killed may have written half a line.
            let whole = text.rfind('\n').map_or("", |end| &text[..end]);
            let lost = whole.lines().filter(|line| !versions.contains(*line));
            report.violations.extend(lost.map(|line| format!("{line} was acknowledged and is not there")));
        }
        (report.runs, report.attempts) = (audit.streams.len(), audit.attempts);
        (report.heartbeats, report.reaps) = (audit.heartbeats, audit.reaps.len());
        report.late_completions = audit.late_completions;
        let disturbed = |executor: &str| self.disturbed.iter().any(|name| name == executor);
        report.reaps_of_the_undisturbed = audit.reaps.iter().filter(|reap| !disturbed(reap.executor.as_str())).count();
        let mut lags: Vec<f64> = audit.reaps.iter().map(|reap| reap.over).collect();
        lags.sort_by(f64::total_cmp);
        report.lag = (lags.get(lags.len() / 2).copied().unwrap_or(0.0), lags.last().copied().unwrap_or(0.0));
        report.deaf = audit.deaf_in_all();
    }
}

/// Asks all who live to end, and waits until they have. Who is stopped goes on, and who is dead hears nothing.
fn end_all(members: Vec<Member>) {
    let living: Vec<Member> = members.into_iter().filter(|member| !matches!(member.mood, Mood::Dead(_))).collect();
    for member in &living {
        member.process.signal(Signal::TERM);
        member.process.signal(Signal::CONT);
    }
    for member in living {
        member.process.terminate();
    }
}

fn name_of(number: usize, generation: usize) -> String {
    format!("e{number}-{generation}")
}
