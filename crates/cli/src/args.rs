//! The command line, as clap reads it.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use lastbeat_domain::policy::{LateCompletion, Mode};
use lastbeat_domain::{ClaimId, Liveness, Name, Role, RunId, Span, Status, Timestamp};

use lastbeat_wire::backtest::{EXAMPLES, EXAMPLES_MAX};

use crate::serve::Serve;

/// The flight recorder and the judge of runs: who is alive, and why a run was reaped, or why not yet.
#[derive(Debug, Parser)]
#[command(name = "lastbeat", version, propagate_version = true, max_term_width = 100)]
pub(crate) struct Cli {
    /// Where the facts are kept; sqlite://lastbeat.db if not given.
    #[arg(long, global = true, env = "LASTBEAT_DATABASE_URL", hide_env_values = true, value_name = "URL")]
    pub(crate) database: Option<String>,
    /// A server to talk to instead of a database; several, separated by commas, if they are replicas of one service.
    #[arg(long, global = true, env = "LASTBEAT_SERVER", value_delimiter = ',', value_name = "URL")]
    pub(crate) server: Vec<String>,
    /// The token to present to the server. In the environment nobody sees it; on the command line everybody on this
    /// machine does.
    #[arg(
        id = "bearer",
        long = "token",
        global = true,
        env = "LASTBEAT_TOKEN",
        hide_env_values = true,
        value_name = "TOKEN"
    )]
    pub(crate) token: Option<String>,
    /// The form of the answer.
    #[arg(short = 'o', long = "format", global = true, value_enum, default_value_t = Output::Table)]
    pub(crate) format: Output,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Where the facts are kept if nothing is said.
pub(crate) const DATABASE: &str = "sqlite://lastbeat.db";

/// The form of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    Table,
    /// One JSON document on one line.
    Json,
    /// One JSON object a line.
    Jsonl,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a command as a run: claim it, beat while it works, complete or fail it when it ends.
    Exec(Exec),
    /// Make runs, take them through their steps by hand, and look at them.
    #[command(subcommand)]
    Run(Run),
    /// Say why a run was reaped, or why not yet, and when it would be.
    Why(Why),
    /// Show the facts of a run.
    History(History),
    /// Look at lanes and set their policies.
    #[command(subcommand)]
    Lane(Lane),
    /// Serve the HTTP API, and sweep, until stopped.
    Serve(Box<Serve>),
    /// Reap the runs that have lapsed, until stopped.
    Sweep(Sweep),
    /// Look at lanes in which nothing is reaped because too much went silent at once, and let reaping go on.
    #[command(subcommand)]
    Hold(Hold),
    /// Make, list and revoke tokens: who may speak to a server, and what each may do.
    #[command(subcommand)]
    Token(Token),
    /// Import histories into a store without runs; all of the file, or nothing.
    Import {
        /// A file with one event a line.
        file: PathBuf,
    },
    /// Write facts to standard output, one event a line: all of them, or those of some runs.
    Export(Export),
    /// Fill an empty database with a seeded workload, for sizing and trials.
    // Here, since what stands on the arguments gives way to the comment above.
    #[command(long_about = "Fill an empty database with a seeded workload, for sizing and trials.\n\n\
        The histories are those that a fleet of executors would have left: most are healthy and beat about every \
        interval, some are slow, die, sleep through their window and wake again, never beat because they are old, or \
        are fenced by another one that took their run. Every fact is decided as it is in service, by the lane's own \
        policy, so all that can be asked of a real database can be asked of this one. The same arguments give the \
        same facts, on every machine.")]
    Generate(Generate),
    /// Show what the rule said of a run at each instant, from its log alone; or make every run anew from the log and
    /// compare.
    Replay(Replay),
    /// Judge a lane's recorded past under other policies: who would have been reaped earlier, later, no longer or newly,
    /// how many of them wrongly, and how long the windows would have had to be.
    // Here, since what stands on the arguments gives way to the comment above.
    #[command(
        long_about = "Judge a lane's recorded past under other policies: who would have been reaped earlier, later, no longer \
        or newly, how many of them wrongly, and how long the windows would have had to be.\n\n\
        Each window may be a list. Every combination of what is listed is one policy, 64 at the most; what is not listed \
        stays as it was at each time. With nothing listed, heartbeat windows around the one in force are tried.\n\n\
        A reap is wrong if the record has a sign of life of that attempt after it. Of an attempt that was reaped, all \
        that can be heard is its late signals. Holds, reap rates and shadow mode are left out: it is about windows."
    )]
    Backtest(Box<Backtest>),
    /// Check that the projection is what the log says, and look for damage.
    Verify,
    /// Make the projection anew from the log, beside the old one, and swap them.
    Rebuild,
    /// Move old heartbeats out of the rows of their commits, into those of their runs: the same history in a fraction of
    /// the space. No answer changes; others may go on writing.
    Compact {
        /// Only what is older than this; rows that are younger stay.
        #[arg(long, value_name = "D", default_value = "1h")]
        older_than: Span,
    },
    /// Copy the database, as it is at one instant, into a new file; others may go on writing.
    Backup {
        /// The new file.
        file: PathBuf,
    },
    /// Look at what the database stands on, and say what to do about what is not well.
    Doctor,
    /// Make the database, or bring its schema up to date.
    Migrate(Migrate),
    /// Play the whole story with real processes, in under a minute: on a fresh embedded store, or with `--database
    /// postgres://…` in a fresh schema of that database, which goes at the end.
    Demo {
        /// Keep the database in this new file, for looking around.
        #[arg(long, value_name = "FILE")]
        keep: Option<PathBuf>,
        /// Show the story in the dashboard, at this address, 127.0.0.1:7171 if none is given; it stays up until Ctrl-C.
        #[arg(long, value_name = "ADDR", num_args = 0..=1, require_equals = true, default_missing_value = "127.0.0.1:7171")]
        serve: Option<SocketAddr>,
    },
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// End a process group when standard input ends without a word: `exec` starts it to outlive its own death.
    #[command(hide = true)]
    Guard {
        /// The process group.
        group: i32,
    },
}

impl Command {
    /// Returns the word for it on the command line.
    pub(crate) fn name(&self) -> String {
        let debug = format!("{self:?}");
        debug.chars().take_while(char::is_ascii_alphabetic).collect::<String>().to_lowercase()
    }
}

#[derive(Debug, Args)]
pub(crate) struct Exec {
    /// The lane of the run.
    #[arg(long)]
    pub(crate) lane: Name,
    /// The goal that the run serves.
    #[arg(long)]
    pub(crate) goal: Option<Name>,
    /// At most one run with this key is open at a time. If one is: when it has lapsed, it is reaped first; when it
    /// waits, it is claimed as its next attempt; when it is in flight, the command is not run. While no server answers
    /// nobody knows whether the key is taken: give --require-server with it.
    #[arg(long, value_name = "KEY")]
    pub(crate) unique_key: Option<Name>,
    /// Who does the work; the host's name if not given.
    #[arg(long, env = "LASTBEAT_EXECUTOR")]
    pub(crate) executor: Option<Name>,
    /// How long the command may take to stop when told to, before it is killed.
    #[arg(long, default_value = "5s")]
    pub(crate) grace: Span,
    /// With --server: do not run the command unless a server has recorded the run. Without this the command is run
    /// even if no server answers; its run is recorded as soon as one does.
    #[arg(long)]
    pub(crate) require_server: bool,
    /// With --server: for how long the end of the run is reported again while no server answers.
    #[arg(long, value_name = "D", default_value = "1h")]
    pub(crate) report_for: Span,
    /// The command and its arguments.
    #[arg(required = true, trailing_var_arg = true, value_name = "CMD")]
    pub(crate) command: Vec<std::ffi::OsString>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Run {
    /// Make a run.
    Create(Create),
    /// Take the run that waits longest in a lane.
    Claim(Claim),
    /// Report that an attempt began.
    Start(Report),
    /// Report that an attempt is still worked on.
    Beat {
        #[command(flatten)]
        report: Report,
        /// How far it is, as JSON.
        #[arg(long, value_parser = json)]
        progress: Option<serde_json::Value>,
    },
    /// Report that an attempt is done.
    Complete {
        #[command(flatten)]
        report: Report,
        /// What came out, as JSON.
        #[arg(long, value_parser = json, value_name = "JSON")]
        output: Option<serde_json::Value>,
    },
    /// Report that an attempt failed.
    Fail {
        #[command(flatten)]
        report: Report,
        /// Why.
        #[arg(long)]
        error: String,
    },
    /// Ask the executor to stop; a run that nobody holds is cancelled at once.
    Cancel(Act),
    /// Let an ended run wait for another attempt.
    Requeue(Act),
    /// Reap a run by hand, if it has lapsed.
    Reap(Act),
    /// List runs, newest first, judged now.
    List(List),
    /// Show a run, judged now.
    Show {
        /// The run.
        run: RunId,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    /// The kind of the run.
    #[arg(long)]
    pub(crate) lane: Name,
    /// The goal that it serves.
    #[arg(long)]
    pub(crate) goal: Option<Name>,
    /// The only device that may claim it.
    #[arg(long)]
    pub(crate) device: Option<Name>,
    /// The instant before which it may not be claimed.
    #[arg(long, value_name = "INSTANT")]
    pub(crate) not_before: Option<Timestamp>,
    /// At most one run with this key is open at a time.
    #[arg(long, value_name = "KEY")]
    pub(crate) unique_key: Option<Name>,
    /// A label; may be given several times.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    pub(crate) labels: Vec<(Name, String)>,
    /// What the executor works on, as JSON.
    #[arg(long, value_parser = json, value_name = "JSON")]
    pub(crate) input: Option<serde_json::Value>,
    /// Claim it at once for this executor.
    #[arg(long, value_name = "EXECUTOR")]
    pub(crate) claim: Option<Name>,
}

#[derive(Debug, Args)]
pub(crate) struct Claim {
    /// The lane to take from; may be given several times.
    #[arg(long = "lane", required = true)]
    pub(crate) lanes: Vec<Name>,
    /// Who takes it.
    #[arg(long)]
    pub(crate) executor: Name,
    /// The device that the executor presents.
    #[arg(long)]
    pub(crate) device: Option<Name>,
}

#[derive(Debug, Args)]
pub(crate) struct Report {
    /// The run.
    pub(crate) run: RunId,
    /// The attempt that is spoken of.
    #[arg(long)]
    pub(crate) attempt: u32,
    /// Its claim id.
    #[arg(long)]
    pub(crate) claim: Option<ClaimId>,
}

#[derive(Debug, Args)]
pub(crate) struct Act {
    /// The run.
    pub(crate) run: RunId,
    /// Why.
    #[arg(long)]
    pub(crate) reason: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct List {
    /// Only runs of this lane.
    #[arg(long)]
    pub(crate) lane: Option<Name>,
    /// Only runs of this goal.
    #[arg(long)]
    pub(crate) goal: Option<Name>,
    /// Only runs of this status.
    #[arg(long, value_parser = status)]
    pub(crate) status: Option<Status>,
    /// Only runs with this verdict.
    #[arg(long, value_parser = liveness)]
    pub(crate) verdict: Option<Liveness>,
    /// How many runs at the most.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) limit: u32,
    /// Begin after this run: `next` of the page before.
    #[arg(long, value_name = "NEXT")]
    pub(crate) after: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Why {
    /// The run.
    pub(crate) run: RunId,
    /// The instant that is asked about, past or future; now if not given.
    #[arg(long, value_name = "INSTANT")]
    pub(crate) at: Option<Timestamp>,
    /// The reap of this attempt.
    #[arg(long, value_name = "N")]
    pub(crate) attempt: Option<u32>,
}

#[derive(Debug, Args)]
pub(crate) struct History {
    /// The run.
    pub(crate) run: RunId,
    /// Go on with new facts as they come, until stopped.
    #[arg(long)]
    pub(crate) follow: bool,
    /// Begin after this version.
    #[arg(long, default_value_t = 0, value_name = "VERSION")]
    pub(crate) after: u64,
}

#[derive(Debug, Args)]
#[command(after_long_help = "\
What takes part, of every hundred runs:\n\
\n  healthy   70  beats about every heartbeat interval; 60 complete, 3 fail, 7 are still at work at the end\
\n  slow       8  beats late, up to nearly the heartbeat window apart, and is never reaped\
\n  dying      7  beats, goes silent, and is reaped for it; retried if the policy has max-attempts above 1\
\n  sleeping   5  is silent for longer than the window, is reaped, wakes and speaks; 3 complete late\
\n  old        6  never beats; 4 end in time, 2 are reaped when the coarse window is over\
\n  fenced     4  is reaped, loses its run to another executor, and speaks again\n\
\nHow to size a machine with it. Count your own load: an executor that beats every 30 s makes 120 events an hour, \
so a thousand of them around the clock make 2.9 million a day. Generate a day of it, or a tenth, and measure what \
you care about:\n\
\n  lastbeat --database sqlite://trial.db lane set watcher --heartbeat-interval 30s\
\n  lastbeat --database sqlite://trial.db generate --runs 1200 --events 290000 --seed 1\
\n  ls -l trial.db                      # bytes on disk: divide by the events\
\n  time lastbeat --database sqlite://trial.db verify\
\n  time lastbeat --database sqlite://trial.db export > trial.jsonl\
\n  lastbeat --database sqlite://trial.db sweep --once\n\
\nTo try a policy before it is in force, ask `backtest`; or set another one, and ask `sweep --dry-run`, or `why` at \
any instant. With --until in the past the whole workload lies there, and whoever was still at work has lapsed by now.")]
pub(crate) struct Generate {
    /// How many runs.
    #[arg(long, value_name = "N")]
    pub(crate) runs: u64,
    /// How many events they have in all, at least 8 a run; the more, the longer the runs.
    #[arg(long, value_name = "M")]
    pub(crate) events: u64,
    /// What everything is drawn from: another seed gives another workload of the same kind.
    #[arg(long, value_name = "S")]
    pub(crate) seed: u64,
    /// The lane of the runs; its policy, as it is set, is the one that they lived under.
    #[arg(long, default_value = "watcher")]
    pub(crate) lane: Name,
    /// When the last event was recorded; now if not given.
    #[arg(long, value_name = "T")]
    pub(crate) until: Option<Timestamp>,
}

#[derive(Debug, Args)]
pub(crate) struct Replay {
    /// The run.
    #[arg(required_unless_present = "all")]
    pub(crate) run: Option<RunId>,
    /// The instant up to which it is replayed, past or future; now if not given.
    #[arg(long, value_name = "INSTANT", conflicts_with = "all")]
    pub(crate) at: Option<Timestamp>,
    /// Make every run anew from the log alone, and name those whose projection is another; exit 1 if there are any.
    #[arg(long, conflicts_with = "run")]
    pub(crate) all: bool,
}

#[derive(Debug, Args)]
#[command(after_long_help = "\
How to read the table:\n\
\n  as it was    the policies that were in force; what differs from the record is due to holds, shadow mode or pauses\
\n  same         reaped at the same instant as in the record, by the rule\
\n  newly        reaped though the record has no reap\
\n  no longer    reaped in the record; something was heard before the window would have been over\
\n  not yet      reaped in the record; the window would not have been over by the end of it\
\n  wrong        of all reaps: something was heard afterwards that contradicts the rule\
\n  newly wrong  of these: not wrong in the record as well\
\n  undecided    of all reaps: still under way when the record ends\
\n  sooner by    on average, of the right ones that come earlier\n\
\nWith -o json some of the wrong reaps are named; ask `lastbeat why RUN --at INSTANT` about them.")]
pub(crate) struct Backtest {
    /// The lane.
    #[arg(long)]
    pub(crate) lane: Name,
    /// Heartbeat windows to try.
    #[arg(long, value_delimiter = ',', value_name = "D,D,…")]
    pub(crate) heartbeat_window: Vec<Span>,
    /// Coarse windows to try.
    #[arg(long, value_delimiter = ',', value_name = "D,D,…")]
    pub(crate) coarse_ttl: Vec<Span>,
    /// Claim windows to try; one may be `off`.
    #[arg(long, value_delimiter = ',', value_name = "D,D,…")]
    pub(crate) claim_window: Vec<OrOff<Span>>,
    /// Start windows to try; one may be `off`.
    #[arg(long, value_delimiter = ',', value_name = "D,D,…")]
    pub(crate) start_window: Vec<OrOff<Span>>,
    /// Longest runtimes to try; one may be `off`.
    #[arg(long, value_delimiter = ',', value_name = "D,D,…")]
    pub(crate) max_runtime: Vec<OrOff<Span>>,
    /// Only runs that were created then or later.
    #[arg(long, value_name = "INSTANT")]
    pub(crate) since: Option<Timestamp>,
    /// How many wrong reaps -o json names for each policy.
    #[arg(long, value_name = "N", default_value_t = EXAMPLES, value_parser = clap::value_parser!(u32).range(0..=EXAMPLES_MAX as i64))]
    pub(crate) examples: u32,
}

#[derive(Debug, Args)]
#[command(
    group = clap::ArgGroup::new("selection").multiple(true),
    after_long_help = "An incident in one file: `lastbeat export --run RUN --with-policy --with-deaf > incident.jsonl`, and \
        `lastbeat --database sqlite://incident.db import incident.jsonl` makes a database of it that answers every `why` \
        about these runs the same, of any instant. No token is in it. The whole log, tokens' digests and all, is what comes \
        without a selection; with `--with-deaf` also the beacons, which are no facts, but tell of a gap that nobody has recorded \
        yet. `--as-case` writes one run as a case for a regression \
        test instead."
)]
pub(crate) struct Export {
    /// Only the facts of this run; may be given several times.
    #[arg(long = "run", value_name = "RUN", group = "selection")]
    pub(crate) runs: Vec<RunId>,
    /// Only the facts of this goal's runs.
    #[arg(long, group = "selection", conflicts_with = "runs")]
    pub(crate) goal: Option<Name>,
    /// Only of runs of which something was recorded at this instant or later; of these, everything.
    #[arg(long, value_name = "INSTANT", group = "selection", conflicts_with = "runs")]
    pub(crate) since: Option<Timestamp>,
    /// And the policies of their lanes.
    #[arg(long, requires = "selection")]
    pub(crate) with_policy: bool,
    /// And when nobody listened and nothing was reaped: deaf spans, steps of the clock, holds, beacons. Of the whole log, the
    /// beacons: the rest is in it.
    #[arg(long)]
    pub(crate) with_deaf: bool,
    /// Write the one run as a case: its history, an instant, and the verdict then. Policies and deaf time are in it.
    #[arg(long, requires = "runs", conflicts_with_all = ["with_policy", "with_deaf"])]
    pub(crate) as_case: bool,
    /// The instant of the case; the one just before the run ended if not given, or now while it is open.
    #[arg(long, value_name = "INSTANT", requires = "as_case")]
    pub(crate) at: Option<Timestamp>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Lane {
    /// List the lanes.
    List,
    /// Show a lane's policy.
    Show {
        /// The lane.
        lane: Name,
    },
    /// Change what is named of a lane's policy, and nothing else.
    Set(Box<SetLane>),
}

#[derive(Debug, Args)]
pub(crate) struct SetLane {
    /// The lane.
    pub(crate) lane: Name,
    /// How often executors are asked to beat.
    #[arg(long)]
    pub(crate) heartbeat_interval: Option<Span>,
    /// How long a run that beats may be silent.
    #[arg(long)]
    pub(crate) heartbeat_window: Option<Span>,
    /// How long after its claim a run that never beats is believed.
    #[arg(long)]
    pub(crate) coarse_ttl: Option<Span>,
    /// How long a due run may wait to be claimed, or `off`.
    #[arg(long)]
    pub(crate) claim_window: Option<OrOff<Span>>,
    /// How long a claimed run may take to start, or `off`.
    #[arg(long)]
    pub(crate) start_window: Option<OrOff<Span>>,
    /// How long an attempt may take at all, or `off`.
    #[arg(long)]
    pub(crate) max_runtime: Option<OrOff<Span>>,
    /// How long a run that beats, and has reported progress, may go on without any, or `off`.
    #[arg(long)]
    pub(crate) stall_window: Option<OrOff<Span>>,
    /// How many times a run may be reaped before it stays so.
    #[arg(long)]
    pub(crate) max_attempts: Option<u32>,
    /// How long a requeued run waits at first.
    #[arg(long)]
    pub(crate) retry_backoff_base: Option<Span>,
    /// How long a requeued run waits at the most.
    #[arg(long)]
    pub(crate) retry_backoff_max: Option<Span>,
    /// What becomes of a completion after the reap: `adopt` or `refuse`.
    #[arg(long, value_parser = word::<LateCompletion>)]
    pub(crate) late_completion: Option<LateCompletion>,
    /// `enforce`, or `shadow`: judged and reported, never reaped.
    #[arg(long, value_parser = word::<Mode>)]
    pub(crate) mode: Option<Mode>,
    /// How many beating runs must be silent at once for the lane to be held, or `off`.
    #[arg(long, value_name = "RUNS")]
    pub(crate) hold_min: Option<OrOff<u32>>,
    /// Which share of the beating runs must be silent at once for the lane to be held, above 0 and up to 1.
    #[arg(long, value_name = "SHARE")]
    pub(crate) hold_share: Option<f64>,
    /// How long the lane is held at the most.
    #[arg(long)]
    pub(crate) hold_max: Option<Span>,
    /// How many runs a second are reaped for silence after a hold was released or ran out.
    #[arg(long, value_name = "RUNS")]
    pub(crate) reap_rate: Option<u32>,
    /// Set it even if open runs would lapse at once.
    #[arg(long)]
    pub(crate) force: bool,
}

/// A term that may be off.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OrOff<T>(pub(crate) Option<T>);

impl<T: std::str::FromStr> std::str::FromStr for OrOff<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<OrOff<T>, Self::Err> {
        if text == "off" { Ok(OrOff(None)) } else { text.parse().map(|term| OrOff(Some(term))) }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Hold {
    /// List the lanes that are held, or drained after a hold.
    List,
    /// Let reaping by silence go on in a lane, at its reap rate.
    Release {
        /// The lane.
        lane: Name,
        /// Why.
        #[arg(long)]
        reason: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Token {
    /// Make a token and print its secret, this once.
    Create(Box<CreateToken>),
    /// List the tokens that were ever made; never their secrets.
    List,
    /// Let a token admit nobody any more.
    Revoke {
        /// Its name or id.
        token: Name,
    },
}

#[derive(Debug, Args)]
pub(crate) struct CreateToken {
    /// What it may do: `executor` takes runs and reports on them, `submitter` makes, cancels and requeues them,
    /// `auditor` sees all and does nothing, `operator` also reaps, releases holds and sets policies, `admin` does all.
    #[arg(long)]
    pub(crate) role: Role,
    /// What it is called; what it does is recorded under this name.
    #[arg(long)]
    pub(crate) name: Name,
    /// The executor that it speaks for; needed for the role `executor`.
    #[arg(long)]
    pub(crate) executor: Option<Name>,
    /// A lane that it is for, all if none is given; may be given several times.
    #[arg(long = "lane", value_name = "LANE")]
    pub(crate) lanes: Vec<Name>,
    /// The device that its executor presents.
    #[arg(long)]
    pub(crate) device: Option<Name>,
    /// After which time it admits nobody any more, for example 90d; never if not given.
    #[arg(long, value_name = "SPAN")]
    pub(crate) expires: Option<Span>,
}

#[derive(Debug, Args)]
pub(crate) struct Sweep {
    /// Make one pass and say what it did.
    #[arg(long)]
    pub(crate) once: bool,
    /// How often --once is run, by cron for example: a pass that fails to come is then known to be a gap of ours, and
    /// its time is not charged to anybody.
    #[arg(long, value_name = "D", requires = "once", conflicts_with = "dry_run")]
    pub(crate) every: Option<Span>,
    /// Sweep although a server listened here before and is gone for good: it retires, and this process counts.
    #[arg(long, conflicts_with = "dry_run")]
    pub(crate) local: bool,
    /// Write nothing: judge every open run and say what would be reaped.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// The instant to judge at, with --dry-run.
    #[arg(long, value_name = "INSTANT", requires = "dry_run")]
    pub(crate) at: Option<Timestamp>,
    /// How long to sleep between passes at the most.
    #[arg(long, default_value = "1s", env = "LASTBEAT_SWEEP_INTERVAL")]
    pub(crate) interval: Span,
}

fn json(text: &str) -> Result<serde_json::Value, String> {
    serde_json::from_str(text).map_err(|error| format!("it is not JSON: {error}"))
}

fn label(text: &str) -> Result<(Name, String), String> {
    let (key, value) = text.split_once('=').ok_or("write it as KEY=VALUE")?;
    Ok((Name::new(key).map_err(|error| error.to_string())?, value.to_owned()))
}

fn status(text: &str) -> Result<Status, String> {
    one_of(text, &Status::ALL, |status| status.as_str())
}

fn liveness(text: &str) -> Result<Liveness, String> {
    one_of(text, &Liveness::ALL, |liveness| liveness.as_str())
}

fn one_of<T: Copy>(text: &str, all: &[T], name: impl Fn(&T) -> &'static str) -> Result<T, String> {
    let names: Vec<&str> = all.iter().map(&name).collect();
    all.iter().copied().find(|item| name(item) == text).ok_or_else(|| format!("it is one of {}", names.join(", ")))
}

fn word<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_value(serde_json::Value::String(text.to_owned())).map_err(|error| error.to_string())
}

/// `lastbeat migrate`.
#[derive(Debug, clap::Args)]
pub(crate) struct Migrate {
    /// PostgreSQL: print the statements that make the role under which servers run, which can append to the log and read
    /// it and no more; or apply them, as the role that migrates.
    #[arg(long, value_name = "WHAT")]
    pub(crate) role_setup: Option<RoleSetup>,
    /// The name of that role.
    #[arg(long, value_name = "NAME", default_value = "lastbeat_app")]
    pub(crate) role: String,
}

/// What to do about the application's role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum RoleSetup {
    /// Print the statements.
    Print,
    /// Carry them out.
    Apply,
}
