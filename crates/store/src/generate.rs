//! Seeded workloads, for sizing and for trials.
//!
//! A [`Workload`] says how many runs and facts there are to be, of which lane, and when the last of them is recorded;
//! [`generate`] makes the facts, run by run. The same workload gives the same facts, byte for byte, on every machine:
//! there is no clock here, no floating-point number, and no order that depends on a hash.
//!
//! Only who acts when is made up. What is recorded of it is decided by [`decide()`], when a run lapses is said by
//! [`judge`], and every fact is folded before the next is made. So a workload holds nothing that a store could not
//! have recorded under the lane's policy, while somebody listened all the time.
//!
//! # Who acts
//!
//! Of every hundred runs, in an order that depends on the seed:
//!
//! | runs | executor | what it does |
//! | --- | --- | --- |
//! | 60 | healthy | beats every `heartbeat_interval`, give or take a tenth, and completes |
//! | 3 | healthy | the same, and fails |
//! | 7 | healthy | the same, and is still at work in the end: its last beat is less than an interval old |
//! | 8 | slow | beats up to 19/20 of the `heartbeat_window` apart, and completes |
//! | 7 | dying | beats, falls silent, and is reaped a moment after it lapsed |
//! | 3 | sleeping | is silent over the window, reaped, speaks again, and completes: late, if the lane adopts |
//! | 2 | sleeping | the same, but after it spoke again nothing is heard of it |
//! | 4 | old | starts, never beats, and completes within `coarse_ttl` |
//! | 2 | old | starts, never beats, and is reaped by `coarse_ttl`, or by `max_runtime` where that is shorter |
//! | 4 | fenced | is reaped, and speaks while another executor works on attempt 2, which completes |
//!
//! A third of the healthy report progress with every tenth beat. Where the lane retries (`max_attempts` above 1) a
//! reaped run is claimed and completed by another executor, unless a late completion was adopted first; where it does
//! not, only the fenced runs are requeued, by an operator. The last run is always a healthy one at work, and its last
//! beat is the last fact of all.
//!
//! Four runs in a row serve a goal. The runs that have ended are spread over ten times as long as a healthy run of
//! average size takes, which is why a tenth of the healthy are at work in the end.

use lastbeat_domain::decide::{Claimant, Report, RunSpec};
use lastbeat_domain::ids::NameError;
use lastbeat_domain::policy::{LateCompletion, Mode, PolicyError};
use lastbeat_domain::{
    ClaimId, Command, Context, Event, LanePolicy, Listening, Name, Recorded, Run, RunEvent, RunId, Span, Status, Terms,
    Timestamp, decide, judge,
};
use serde_json::json;

use crate::Progress;
use crate::error::ImportError;
use crate::import::{CheckedImport, check_facts};

/// The fewest facts for each run on average: so many are in the longest of the stories.
pub const EVENTS_PER_RUN_MIN: u64 = 8;

/// A run of at least so many facts may report its start, too.
const EVENTS_WITH_START_MIN: u64 = 12;
/// The shares are exact in every block of so many runs.
const BLOCK_RUNS: u64 = 100;
/// How many average healthy runs long the time is over which the ended runs are spread.
const SPREAD_RUNS: u64 = 10;
/// The shortest interval or window in which there is room to act, since stamps are whole microseconds.
const WINDOW_MIN: Span = Span::from_millis(1);
/// The longest time between the lapse of a run and its reap.
const REAP_LAG_MAX: Span = Span::from_millis(250);
/// The longest time until an operator requeues a reaped run.
const REQUEUE_MAX: Span = Span::from_seconds(3_600);
/// With every how many beats of a run progress is reported, if it is at all.
const PROGRESS_BEATS: u64 = 10;
/// How many heartbeat windows after its reap a sleeping executor speaks again at the latest.
const SLEEP_WINDOWS_MAX: u64 = 10;

/// Says which facts to make.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    /// How many runs.
    pub runs: u64,
    /// How many facts in all.
    pub events: u64,
    /// The same seed gives the same facts.
    pub seed: u64,
    /// The lane of all the runs.
    pub lane: Name,
    /// The policy of the lane, under which the runs are judged. Its history is not part of the workload.
    pub policy: LanePolicy,
    /// The log time of the last fact. A store takes no fact that lies after its clock.
    pub until: Timestamp,
}

impl Workload {
    fn kind(&self, index: u64) -> Kind {
        if index + 1 == self.runs {
            return Kind::Healthy(Ending::None);
        }
        // 37 has no divisor in common with a hundred, so that every slot comes up once in each block.
        let rotation = SplitMix64::of(self.seed, Purpose::Kinds).nth(index / BLOCK_RUNS) % BLOCK_RUNS;
        Kind::of_slot(index % BLOCK_RUNS * 37 + rotation)
    }

    /// Returns how many facts a run has whose executor never beats; `None` if its executor does.
    fn events_of_old(&self, kind: Kind) -> Option<u64> {
        match kind {
            Kind::Old { reaped: true } if self.policy.terms.max_attempts > 1 => Some(7),
            Kind::Old { .. } => Some(4),
            _ => None,
        }
    }
}

/// Says why a workload cannot be made, and what could.
#[derive(Debug, thiserror::Error)]
pub enum WorkloadError {
    /// There are no runs.
    #[error("a workload has at least one run; give --runs 1 or more")]
    NoRuns,
    /// There are too few facts for the runs.
    #[error(
        "{events} events are too few for {runs} runs: a run has {EVENTS_PER_RUN_MIN} or more on average; \
         give --events {needed} or more, or fewer --runs"
    )]
    TooFewEvents {
        /// How many runs were asked for.
        runs: u64,
        /// How many facts were asked for.
        events: u64,
        /// How many facts would do.
        needed: u64,
    },
    /// The lane's policy cannot stand.
    #[error("the policy of the lane cannot stand: {0}")]
    Policy(#[from] PolicyError),
    /// The lane reaps nobody.
    #[error("lane `{0}` is in shadow mode, so nobody is reaped there; give a lane in mode enforce")]
    Shadow(Name),
    /// A window of the policy leaves no time to act.
    #[error("the lane's {field} is {found}, too short to act in; give a lane where it is {WINDOW_MIN} or longer")]
    NoRoom {
        /// The field of the policy, as it is named in JSON without `_seconds`.
        field: &'static str,
        /// How long it is.
        found: Span,
    },
    /// Runs of that size would be reaped for their age while they are well.
    #[error(
        "a run may take {longest} and the lane's max_runtime is {max_runtime}; \
         give fewer --events for the --runs, or a lane with a longer max_runtime or none"
    )]
    MaxRuntime {
        /// The lane's longest runtime.
        max_runtime: Span,
        /// How long an attempt may take.
        longest: Span,
    },
    /// Runs that are well would be reaped for want of progress.
    #[error(
        "runs that are well report progress each {needed} at the longest, and the lane's stall_window is {stall_window}; \
         give a lane with a longer stall_window or none"
    )]
    StallWindow {
        /// The lane's stall window.
        stall_window: Span,
        /// How long a run may go without progress.
        needed: Span,
    },
    /// The first facts would lie before the first instant that a stamp can say.
    #[error("the workload would reach back before year 1; give fewer --events for the --runs, or a later --until")]
    TooLong,
    /// The name of somebody who acts is none.
    #[error("the workload has a bad name: {0}")]
    Name(#[from] NameError),
    /// The facts do not pass the checks of an import.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// Other than the asked number of facts were made, which is a fault of this program.
    #[error("{made} events were made instead of {events}; please report this, with the arguments that were given")]
    Miscounted {
        /// How many facts were asked for.
        events: u64,
        /// How many were made.
        made: u64,
    },
}

/// Makes the facts of a workload, run by run and in the order of each stream; the runs are in no order of time. No more
/// than one run is in memory at a time.
///
/// # Errors
/// If the workload cannot be made. The error says what could.
pub fn generate(workload: &Workload) -> Result<Facts, WorkloadError> {
    check_policy(workload)?;
    let stage = Stage::new(workload)?;
    stage.check_time()?;
    Ok(Facts { stage, runs_made: 0, beating_made: 0, current: Vec::new().into_iter() })
}

/// Makes the facts of a workload and checks them as an import does, so that a store takes them.
///
/// # Errors
/// If the workload cannot be made. The error says what could.
pub fn checked(workload: &Workload, progress: &Progress<'_>) -> Result<CheckedImport, WorkloadError> {
    let facts = generate(workload)?.zip(1..).inspect(|(_, made)| progress(*made, workload.events));
    let import = check_facts(facts.map(|(fact, _)| fact), workload.until)?;
    let (events, made) = (workload.events, import.report.events);
    if made == events { Ok(import) } else { Err(WorkloadError::Miscounted { events, made }) }
}

fn check_policy(workload: &Workload) -> Result<(), WorkloadError> {
    let terms = &workload.policy.terms;
    terms.validate()?;
    if terms.mode == Mode::Shadow {
        return Err(WorkloadError::Shadow(workload.lane.clone()));
    }
    let windows = [
        ("heartbeat_interval", Some(terms.heartbeat_interval)),
        ("coarse_ttl", Some(terms.coarse_ttl)),
        ("claim_window", terms.claim_window),
        ("start_window", terms.start_window),
    ];
    for (field, window) in windows {
        if let Some(found) = window.filter(|window| *window < WINDOW_MIN) {
            return Err(WorkloadError::NoRoom { field, found });
        }
    }
    Ok(())
}

/// The facts of a workload. See [`generate`].
#[derive(Debug)]
pub struct Facts {
    stage: Stage,
    runs_made: u64,
    /// How many of the runs made were of executors that beat: their sizes vary.
    beating_made: u64,
    current: std::vec::IntoIter<Recorded>,
}

impl Iterator for Facts {
    type Item = Recorded;

    fn next(&mut self) -> Option<Recorded> {
        loop {
            if let Some(fact) = self.current.next() {
                return Some(fact);
            }
            if self.runs_made == self.stage.workload.runs {
                return None;
            }
            self.current = self.next_run().into_iter();
        }
    }
}

impl Facts {
    fn next_run(&mut self) -> Vec<Recorded> {
        let (stage, index) = (&self.stage, self.runs_made);
        self.runs_made += 1;
        let kind = stage.workload.kind(index);
        let events = match stage.workload.events_of_old(kind) {
            Some(events) => events,
            None => {
                self.beating_made += 1;
                stage.sizes.of(self.beating_made - 1)
            }
        };
        stage.play(index, kind, events)
    }
}

/// What an executor is like, and how it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Healthy(Ending),
    Slow,
    Dying,
    Sleeping { completes: bool },
    Old { reaped: bool },
    Fenced,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Completes,
    Fails,
    None,
}

impl Kind {
    /// The table in the module's documentation.
    fn of_slot(slot: u64) -> Kind {
        match slot % BLOCK_RUNS {
            0..60 => Kind::Healthy(Ending::Completes),
            60..63 => Kind::Healthy(Ending::Fails),
            63..70 => Kind::Healthy(Ending::None),
            70..78 => Kind::Slow,
            78..85 => Kind::Dying,
            85..88 => Kind::Sleeping { completes: true },
            88..90 => Kind::Sleeping { completes: false },
            90..94 => Kind::Old { reaped: false },
            94..96 => Kind::Old { reaped: true },
            _ => Kind::Fenced,
        }
    }

    /// Returns the acts of a run in their order. A [`Act::Beat`] stands for any number of them.
    fn outline(self, starts: bool, terms: &Terms) -> Vec<Act> {
        use Attempt::{First, Second};
        let retries = terms.max_attempts > 1;
        let start = |attempt| starts.then_some(Act::Start(attempt));
        let mut acts = vec![Act::Create, Act::Claim(First)];
        acts.extend(start(First));
        if !matches!(self, Kind::Old { .. }) {
            acts.push(Act::beat(First));
        }
        let again = [Act::Requeue, Act::Claim(Second), Act::Complete(Second)];
        match self {
            Kind::Healthy(Ending::None) => {}
            Kind::Healthy(Ending::Fails) => acts.push(Act::Fail(First)),
            Kind::Healthy(Ending::Completes) | Kind::Slow | Kind::Old { reaped: false } => {
                acts.push(Act::Complete(First));
            }
            Kind::Dying | Kind::Old { reaped: true } => {
                acts.push(Act::Reap);
                acts.extend(again.into_iter().filter(|_| retries));
            }
            Kind::Sleeping { completes } => {
                let adopted = completes && terms.late_completion == LateCompletion::Adopt;
                acts.push(Act::Reap);
                acts.extend(retries.then_some(Act::Requeue));
                acts.push(Act::SpeakLate);
                acts.extend(completes.then_some(Act::Complete(First)));
                acts.extend(again.into_iter().skip(1).filter(|_| retries && !adopted));
            }
            Kind::Fenced => {
                acts.extend([Act::Reap, Act::Requeue, Act::Claim(Second)]);
                acts.extend(start(Second));
                acts.extend([Act::SpeakLate, Act::beat(Second), Act::Complete(Second)]);
            }
        }
        acts
    }
}

/// No run of a workload is claimed more than twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attempt {
    First,
    Second,
}

/// Something that somebody does. Each makes one fact: where a reap requeues by itself it makes two, and the
/// [`Act::Requeue`] that follows makes none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    Create,
    Claim(Attempt),
    Start(Attempt),
    Beat {
        attempt: Attempt,
        progress: Option<(u64, u64)>,
    },
    Complete(Attempt),
    Fail(Attempt),
    Reap,
    Requeue,
    /// The executor of the first attempt, which was reaped, says that it still works.
    SpeakLate,
}

impl Act {
    const fn beat(attempt: Attempt) -> Act {
        Act::Beat { attempt, progress: None }
    }
}

/// An act, and how long after the one before it is done; of a reap, how long after the lapse.
#[derive(Clone, Copy, Debug)]
struct Step {
    act: Act,
    after: Span,
}

/// How many facts the runs of the executors that beat have: an exact sum, shared out unevenly.
#[derive(Clone, Debug)]
struct Sizes {
    events: u64,
    runs: u64,
    /// How far a run may be from the average.
    spread: u64,
    random: SplitMix64,
}

impl Sizes {
    fn new(events: u64, runs: u64, random: SplitMix64) -> Sizes {
        let spread = (events / runs.max(1)).saturating_sub(EVENTS_PER_RUN_MIN) / 2;
        Sizes { events, runs, spread, random }
    }

    /// Returns how many facts the run with that number has: never under [`EVENTS_PER_RUN_MIN`].
    fn of(&self, number: u64) -> u64 {
        self.before(number + 1).saturating_sub(self.before(number))
    }

    /// Returns how many facts all the runs before that number have: an even share, pushed on by up to the spread. Both
    /// ends stay where they are, so the sum is exact.
    fn before(&self, number: u64) -> u64 {
        let even = u128::from(self.events) * u128::from(number) / u128::from(self.runs.max(1));
        let pushed = if number == 0 || number >= self.runs { 0 } else { self.random.nth(number) % (self.spread + 1) };
        u64::try_from(even).unwrap_or(u64::MAX).saturating_add(pushed)
    }

    fn average(&self) -> u64 {
        self.events / self.runs.max(1)
    }

    fn longest(&self) -> u64 {
        self.average().saturating_add(self.spread + 1)
    }
}

/// What all the runs have in common.
#[derive(Debug)]
struct Stage {
    workload: Workload,
    listening: Listening,
    executors: Vec<Name>,
    sweeper: Name,
    operator: Name,
    sizes: Sizes,
    /// How long a claim takes at the most. Whoever is prompt lapses under no rule.
    prompt: Span,
}

/// What random numbers are drawn for: each has a sequence of its own.
#[derive(Clone, Copy)]
enum Purpose {
    Kinds = 1,
    Sizes = 2,
    Ids = 3,
    Acts = 4,
}

impl Stage {
    fn new(workload: &Workload) -> Result<Stage, WorkloadError> {
        let (runs, events) = (workload.runs, workload.events);
        if runs == 0 {
            return Err(WorkloadError::NoRuns);
        }
        if events / EVENTS_PER_RUN_MIN < runs {
            let needed = runs.saturating_mul(EVENTS_PER_RUN_MIN);
            return Err(WorkloadError::TooFewEvents { runs, events, needed });
        }
        let old = (0..runs).filter_map(|index| workload.events_of_old(workload.kind(index)));
        let (old_runs, old_events) = old.fold((0, 0), |(runs, sum), events| (runs + 1, sum + events));
        let random = SplitMix64::of(workload.seed, Purpose::Sizes);
        let count = runs.div_ceil(20).clamp(2, 200);
        let executors = (1..=count).map(|number| Name::new(format!("executor-{number}")));
        let terms = &workload.policy.terms;
        let windows = [Some(terms.coarse_ttl), terms.start_window, terms.claim_window];
        let shortest = windows.into_iter().flatten().fold(terms.heartbeat_interval, Ord::min);
        Ok(Stage {
            workload: workload.clone(),
            listening: Listening::default(),
            executors: executors.collect::<Result<_, _>>()?,
            sweeper: Name::new("sweeper-1")?,
            operator: Name::new("operator")?,
            sizes: Sizes::new(events - old_events, runs - old_runs, random),
            prompt: portion(shortest, 1, 2),
        })
    }

    /// Checks that there is time for the longest run.
    fn check_time(&self) -> Result<(), WorkloadError> {
        let terms = self.terms();
        // Nobody beats further apart than the window, and the reap follows after one more.
        let longest = terms.heartbeat_window.times(self.sizes.longest().saturating_add(1));
        // This asks whether a workload fits the policy, not whether a run has lapsed.
        let allowed = terms.max_runtime;
        if let Some(most) = allowed.filter(|allowed| *allowed <= longest) {
            return Err(WorkloadError::MaxRuntime { max_runtime: most, longest });
        }
        // They do with every tenth beat, and after the last of these they may beat ten times more.
        let needed = terms.heartbeat_window.times(2 * PROGRESS_BEATS);
        let allowed = terms.stall_window;
        if let Some(most) = allowed.filter(|allowed| *allowed <= needed) {
            return Err(WorkloadError::StallWindow { stall_window: most, needed });
        }
        let aside = terms.heartbeat_window.times(SLEEP_WINDOWS_MAX + 2).plus(terms.coarse_ttl.times(3));
        let aside = aside.plus(REQUEUE_MAX).plus(terms.retry_backoff(1)).plus(Span::from_seconds(60));
        let needed = longest.plus(aside).plus(self.spread());
        if needed > self.workload.until.since(Timestamp::MIN) { Err(WorkloadError::TooLong) } else { Ok(()) }
    }

    fn terms(&self) -> &Terms {
        &self.workload.policy.terms
    }

    /// Returns the time over which the ended runs are spread.
    fn spread(&self) -> Span {
        self.terms().heartbeat_interval.times(self.sizes.average()).times(SPREAD_RUNS)
    }

    /// Lets the run with that index happen.
    fn play(&self, index: u64, kind: Kind, events: u64) -> Vec<Recorded> {
        let mut random = SplitMix64 { state: SplitMix64::of(self.workload.seed, Purpose::Acts).nth(index) };
        let steps = self.plan(kind, events, &mut random);
        let created_at = self.created_at(index, kind, &steps, &mut random);
        let id = self.run_id(index, created_at);
        let goal = Name::new(format!("goal-{}", index / 4 + 1)).ok();
        let spec = RunSpec { goal, ..RunSpec::of_lane(self.workload.lane.clone()) };
        let count = self.executors.len() as u64;
        let first = random.below(count);
        let second = (first + 1 + random.below(count - 1)) % count;
        let holders = [(1, first), (2, second)].map(|(attempt, executor)| {
            let executor = self.executors[usize::try_from(executor).unwrap_or(0)].clone();
            Report { run: id, attempt, claim: Some(random.claim_id()), executor: Some(executor) }
        });
        let mut play = Play { stage: self, spec, holders, run: None, facts: Vec::new(), id, at: created_at };
        for step in &steps {
            play.step(step);
        }
        play.facts
    }

    /// Returns what happens in a run, and when.
    fn plan(&self, kind: Kind, events: u64, random: &mut SplitMix64) -> Vec<Step> {
        let old = matches!(kind, Kind::Old { .. });
        let starts = old || (events >= EVENTS_WITH_START_MIN && random.below(2) == 0);
        let with_progress = matches!(kind, Kind::Healthy(_)) && random.below(3) == 0;
        let outline = kind.outline(starts, self.terms());
        let stretches = outline.iter().filter(|act| matches!(act, Act::Beat { .. })).count() as u64;
        let beats = events.saturating_sub(outline.len() as u64 - stretches);
        let mut steps = Vec::new();
        for act in outline {
            let Act::Beat { attempt, .. } = act else {
                steps.push(Step { act, after: random.span(self.longest_wait(kind, act)) });
                continue;
            };
            // The first attempt beats at least as often as the second, and at least once: who was never heard cannot
            // fall silent.
            let count = match attempt {
                Attempt::First => beats - beats / 2 * (stretches - 1),
                Attempt::Second => beats / 2,
            };
            for number in 1..=count {
                let progress = (with_progress && number % PROGRESS_BEATS == 0).then_some((number, count));
                let after = self.beat_after(kind, number, random);
                steps.push(Step { act: Act::Beat { attempt, progress }, after });
            }
        }
        steps
    }

    fn longest_wait(&self, kind: Kind, act: Act) -> Span {
        let terms = self.terms();
        match act {
            Act::Create => Span::ZERO,
            Act::Claim(_) => self.prompt,
            Act::Complete(_) if matches!(kind, Kind::Old { .. }) => portion(terms.coarse_ttl, 2, 5),
            Act::Complete(_) | Act::Fail(_) => portion(terms.heartbeat_interval, 9, 10),
            Act::Reap => REAP_LAG_MAX,
            Act::Requeue => REQUEUE_MAX,
            Act::SpeakLate if matches!(kind, Kind::Sleeping { .. }) => terms.heartbeat_window.times(SLEEP_WINDOWS_MAX),
            Act::Start(_) | Act::Beat { .. } | Act::SpeakLate => portion(self.prompt, 1, 4),
        }
    }

    /// Returns how long after the act before it a beat comes. The first of an attempt comes at once.
    fn beat_after(&self, kind: Kind, number: u64, random: &mut SplitMix64) -> Span {
        let (interval, window) = (self.terms().heartbeat_interval, self.terms().heartbeat_window);
        let (shortest, longest) = match kind {
            _ if number == 1 => (Span::ZERO, portion(self.prompt, 1, 2)),
            Kind::Slow => (portion(window, 1, 2), portion(window, 19, 20)),
            _ => (portion(interval, 9, 10), portion(interval, 11, 10)),
        };
        shortest.plus(random.span(longest.minus(shortest)))
    }

    /// Returns when a run must be created so that its last fact comes when it should.
    fn created_at(&self, index: u64, kind: Kind, steps: &[Step], random: &mut SplitMix64) -> Timestamp {
        let terms = self.terms();
        let planned = steps.iter().fold(Span::ZERO, |sum, step| sum.plus(step.after));
        let before_until = if index + 1 == self.workload.runs {
            Span::ZERO
        } else if kind == Kind::Healthy(Ending::None) {
            random.span(portion(terms.heartbeat_interval, 9, 10))
        } else {
            // A reap comes after a window that is not planned, and what follows it may come after a backoff.
            let reaped = steps.iter().any(|step| step.act == Act::Reap);
            let window = if matches!(kind, Kind::Old { .. }) { terms.coarse_ttl } else { terms.heartbeat_window };
            let waits = if reaped { window.plus(terms.retry_backoff(1)) } else { Span::ZERO };
            waits.plus(random.span(self.spread()))
        };
        self.workload.until.minus(before_until).minus(planned)
    }

    /// Makes a UUID v7, which says 1970 for all that is older. Sixty-four of its random bits are a bijection of the
    /// index, so no two runs share one.
    fn run_id(&self, index: u64, created_at: Timestamp) -> RunId {
        let bits = SplitMix64::of(self.workload.seed, Purpose::Ids).nth(index).to_be_bytes();
        // Version and variant take the upper bits of the first and of the third byte, where none of the 64 stands.
        let [b0, b1, b2, b3, b4, b5, b6, b7] = bits;
        let random = [b1, b0, b2, b1, b2, b3, b4, b5, b6, b7];
        let millis = u64::try_from(created_at.as_micros() / 1_000).unwrap_or(0);
        RunId::from_uuid(uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid())
    }
}

fn portion(span: Span, numerator: u64, denominator: u64) -> Span {
    let micros = u128::from(span.as_micros()) * u128::from(numerator) / u128::from(denominator);
    Span::from_micros(u64::try_from(micros).unwrap_or(u64::MAX))
}

/// A run while it happens.
struct Play<'a> {
    stage: &'a Stage,
    spec: RunSpec,
    /// How the executors of the two attempts report.
    holders: [Report; 2],
    id: RunId,
    /// The log time of the last act.
    at: Timestamp,
    run: Option<Run>,
    facts: Vec<Recorded>,
}

impl Play<'_> {
    fn step(&mut self, step: &Step) {
        if step.act == Act::Requeue && self.run.as_ref().is_some_and(|run| run.status == Status::Pending) {
            // The reap has done it.
            return;
        }
        self.at = self.time_of(step);
        let Some(command) = self.command(step.act) else { return };
        let policy = &self.stage.workload.policy;
        let context = Context::plain(policy, &self.stage.listening);
        // What is refused may be recorded all the same: a late signal.
        let events = decide(self.run.as_ref(), &command, &context, self.at).unwrap_or_else(|refusal| refusal.events);
        for event in events {
            if let Event::Run(event) = event {
                self.append(event);
            }
        }
    }

    /// Returns when an act is done: a reap after the lapse, all else before it.
    fn time_of(&self, step: &Step) -> Timestamp {
        let Some(run) = &self.run else { return self.at };
        // A run that waits for its retry has no deadline before it is due.
        let due_at = self.at.max(run.waiting.due_at);
        let lapses_at = judge(run, &self.stage.workload.policy, &self.stage.listening, due_at).lapses_at();
        let at = match step.act {
            Act::Reap => return lapses_at.unwrap_or(self.at).max(self.at).plus(step.after),
            Act::Claim(_) => due_at.plus(step.after),
            _ => self.at.plus(step.after),
        };
        let latest = lapses_at.map_or(Timestamp::MAX, |lapses_at| match step.act {
            Act::Beat { .. } | Act::Claim(_) => lapses_at,
            // Nothing starts anew by these, so they leave time for what follows.
            _ => self.at.plus(portion(lapses_at.since(self.at), 1, 2)),
        });
        at.min(latest).max(self.at.next())
    }

    fn command(&self, act: Act) -> Option<Command> {
        let run = self.id;
        let report = |attempt: Attempt| match attempt {
            Attempt::First => self.holders[0].clone(),
            Attempt::Second => self.holders[1].clone(),
        };
        Some(match act {
            Act::Create => Command::Create { run, spec: Box::new(self.spec.clone()), claim: None },
            Act::Claim(attempt) => {
                let Report { claim, executor, .. } = report(attempt);
                let claimant = Claimant { executor: executor?, device: None, claim: claim? };
                Command::Claim { lanes: vec![self.spec.lane.clone()], claimant }
            }
            Act::Start(attempt) => Command::Start(report(attempt)),
            Act::Beat { attempt, progress } => {
                let progress = progress.map(|(done, total)| json!({"done": done, "total": total}));
                Command::Heartbeat { report: report(attempt), progress }
            }
            Act::SpeakLate => Command::Heartbeat { report: report(Attempt::First), progress: None },
            Act::Complete(attempt) => Command::Complete { report: report(attempt), output: None },
            Act::Fail(attempt) => Command::Fail { report: report(attempt), error: "exit status 1".to_owned() },
            Act::Reap => Command::Reap { run, by: self.stage.sweeper.clone(), by_hand: None },
            Act::Requeue => Command::Requeue { run, by: self.stage.operator.clone(), reason: None },
        })
    }

    /// Appends what was decided. A fact that the fold does not take would be left out, and missed by [`checked`].
    fn append(&mut self, event: RunEvent) {
        let version = self.run.as_ref().map_or(0, |run| run.version) + 1;
        // Two facts of one decision are a microsecond apart, as a store stamps them.
        let after = self.run.as_ref().map_or(Timestamp::MIN, |run| run.updated_at.next());
        let recorded = Recorded { run: self.id, version, recorded_at: self.at.max(after), event };
        let taken = match &mut self.run {
            Some(run) => run.evolve(&recorded).is_ok(),
            None => {
                self.run = Run::begin(&recorded).ok();
                self.run.is_some()
            }
        };
        if taken {
            self.at = recorded.recorded_at;
            self.facts.push(recorded);
        }
    }
}

/// A sequence of random numbers: SplitMix64, by Guy L. Steele Jr., Doug Lea and Christine H. Flood, "Fast Splittable
/// Pseudorandom Number Generators" (OOPSLA 2014), in the form that Sebastiano Vigna put into the public domain
/// (<https://prng.di.unimi.it/splitmix64.c>). Any number of a sequence can be had without those before it.
#[derive(Clone, Debug)]
struct SplitMix64 {
    state: u64,
}

impl SplitMix64 {
    const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

    fn of(seed: u64, purpose: Purpose) -> SplitMix64 {
        SplitMix64 { state: SplitMix64 { state: seed }.nth(purpose as u64) }
    }

    /// Returns the number that would be drawn after `count` others. No two counts give the same.
    fn nth(&self, count: u64) -> u64 {
        let z = self.state.wrapping_add(count.wrapping_add(1).wrapping_mul(Self::GAMMA));
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn draw(&mut self) -> u64 {
        let drawn = self.nth(0);
        self.state = self.state.wrapping_add(Self::GAMMA);
        drawn
    }

    /// Draws a number below `bound`, as even as sizes and times need it; 0 if the bound is 0.
    fn below(&mut self, bound: u64) -> u64 {
        u64::try_from((u128::from(self.draw()) * u128::from(bound)) >> 64).unwrap_or(0)
    }

    /// Draws a span from 1 µs up to `longest`; none if that is none.
    fn span(&mut self, longest: Span) -> Span {
        let micros = longest.as_micros();
        Span::from_micros(if micros == 0 { 0 } else { 1 + self.below(micros) })
    }

    fn claim_id(&mut self) -> ClaimId {
        let bytes = (u128::from(self.draw()) << 64 | u128::from(self.draw())).to_be_bytes();
        ClaimId::from_uuid(uuid::Builder::from_random_bytes(bytes).into_uuid())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use lastbeat_domain::Rule;
    use lastbeat_domain::event::Signal;
    use lastbeat_domain::verdict::Liveness;

    use super::*;

    fn workload(runs: u64, events: u64) -> Workload {
        let until = "2026-05-04T02:37:00.123456Z".parse().unwrap();
        let lane = Name::new("watcher").unwrap();
        Workload { runs, events, seed: 7, lane, policy: LanePolicy::default(), until }
    }

    fn under(change: impl FnOnce(&mut Terms)) -> Workload {
        let mut workload = workload(200, 6_000);
        change(&mut workload.policy.terms);
        workload
    }

    /// Policies with every part that changes what happens.
    fn workloads() -> Vec<Workload> {
        let second = Span::from_seconds(1);
        vec![
            workload(200, 10_000),
            workload(200, 1_600),
            workload(1, 8),
            workload(2, 999),
            workload(137, 20_011),
            under(|terms| terms.max_attempts = 3),
            under(|terms| terms.late_completion = LateCompletion::Refuse),
            under(|terms| {
                terms.max_attempts = 2;
                terms.late_completion = LateCompletion::Refuse;
                terms.claim_window = Some(second);
                terms.start_window = Some(second);
            }),
            under(|terms| terms.max_runtime = Some(Span::from_seconds(4 * 3_600))),
            under(|terms| {
                terms.heartbeat_interval = Span::from_millis(1);
                terms.heartbeat_window = Span::from_millis(3);
                terms.coarse_ttl = Span::from_millis(1);
                terms.start_window = Some(Span::from_millis(1));
                terms.claim_window = Some(Span::from_millis(1));
                terms.retry_backoff_base = Span::ZERO;
                terms.max_attempts = 2;
            }),
        ]
    }

    fn streams(workload: &Workload) -> Vec<(Kind, Vec<Recorded>)> {
        let mut streams: Vec<Vec<Recorded>> = Vec::new();
        for fact in generate(workload).unwrap() {
            match streams.last_mut() {
                Some(stream) if stream[0].run == fact.run => stream.push(fact),
                _ => streams.push(vec![fact]),
            }
        }
        streams.into_iter().zip(0..).map(|(stream, index)| (workload.kind(index), stream)).collect()
    }

    fn lines(workload: &Workload) -> Vec<String> {
        generate(workload).unwrap().map(|fact| serde_json::to_string(&fact).unwrap()).collect()
    }

    fn is_reap(fact: &Recorded) -> bool {
        matches!(fact.event, RunEvent::TimedOut { .. })
    }

    fn late_signals(run: &Run) -> usize {
        run.reaped.iter().map(|reaped| reaped.signals.len()).sum()
    }

    #[test]
    fn there_are_exactly_as_many_runs_and_facts_as_asked_and_the_last_comes_when_asked() {
        for workload in workloads() {
            let streams = streams(&workload);
            let ids: BTreeSet<RunId> = streams.iter().map(|(_, stream)| stream[0].run).collect();
            assert_eq!((streams.len() as u64, ids.len() as u64), (workload.runs, workload.runs));
            let facts: Vec<&Recorded> = streams.iter().flat_map(|(_, stream)| stream).collect();
            assert_eq!(facts.len() as u64, workload.events);
            let latest = facts.iter().map(|fact| fact.recorded_at).max();
            assert_eq!(latest, Some(workload.until));
            assert_eq!(facts.iter().filter(|fact| fact.recorded_at == workload.until).count(), 1);
        }
    }

    #[test]
    fn every_stream_folds_and_passes_the_checks_of_an_import() {
        for workload in workloads() {
            for (_, stream) in streams(&workload) {
                Run::fold(&stream).unwrap().unwrap();
            }
            let report = checked(&workload, &|_, _| ()).unwrap().report;
            assert_eq!((report.runs, report.events), (workload.runs, workload.events));
        }
    }

    #[test]
    fn the_same_workload_is_the_same_to_the_byte_and_another_seed_gives_another() {
        let workload = workload(50, 1_000);
        let first = lines(&workload);
        assert_eq!(first, lines(&workload));
        assert_ne!(first, lines(&Workload { seed: 8, ..workload }));
    }

    /// What was once generated must not change with the program: sizes that were measured stay comparable.
    #[test]
    fn the_facts_are_those_of_every_other_machine() {
        let lines = lines(&workload(1, 8));
        let run = r#"{"run":"019df0d6-47b4-79ae-b1c9-71331f50717c","#;
        let rest = [&lines[0], &lines[1], &lines[7]].map(|line| line.strip_prefix(run).unwrap());
        let expected = [
            concat!(
                r#""version":1,"recorded_at":"2026-05-04T02:34:28.148915Z","#,
                r#""type":"created","lane":"watcher","goal":"goal-1","labels":{}}"#
            ),
            concat!(
                r#""version":2,"recorded_at":"2026-05-04T02:34:31.425659Z","type":"claimed","attempt":1,"#,
                r#""claim":"09d9a38e-4272-46b5-a9af-b5289ad8b40c","executor":"executor-2"}"#
            ),
            r#""version":8,"recorded_at":"2026-05-04T02:37:00.123456Z","type":"heartbeat","attempt":1}"#,
        ];
        assert_eq!(rest, expected);
    }

    #[test]
    fn random_numbers_are_those_of_the_published_generator() {
        // The first outputs of splitmix64.c for the seed 1234567.
        let mut random = SplitMix64 { state: 1_234_567 };
        assert_eq!(random.nth(1), 3_203_168_211_198_807_973);
        assert_eq!([random.draw(), random.draw()], [6_457_827_717_110_365_317, 3_203_168_211_198_807_973]);
    }

    #[test]
    fn every_kind_occurs_and_ends_as_it_should() {
        let workload = workload(200, 10_000);
        let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
        for (kind, stream) in streams(&workload) {
            let run = Run::fold(&stream).unwrap().unwrap();
            let late = matches!(&run.outcome, Some(outcome)
                if matches!(outcome.event, RunEvent::Completed { late: true, .. }));
            let seen = (run.status, run.attempt, run.beats > 0, late_signals(&run), late);
            let (what, expected) = match kind {
                Kind::Healthy(Ending::Completes) => ("completes", (Status::Completed, 1, true, 0, false)),
                Kind::Healthy(Ending::Fails) => ("fails", (Status::Failed, 1, true, 0, false)),
                Kind::Healthy(Ending::None) => ("at work", (Status::Running, 1, true, 0, false)),
                Kind::Slow => ("slow", (Status::Completed, 1, true, 0, false)),
                Kind::Dying => ("dying", (Status::TimedOut, 1, true, 0, false)),
                Kind::Sleeping { completes: true } => ("adopted", (Status::Completed, 1, true, 1, true)),
                Kind::Sleeping { completes: false } => ("sleeping", (Status::TimedOut, 1, true, 1, false)),
                Kind::Old { reaped: true } => ("old, reaped", (Status::TimedOut, 1, false, 0, false)),
                Kind::Old { reaped: false } => ("old", (Status::Completed, 1, false, 0, false)),
                Kind::Fenced => ("fenced", (Status::Completed, 2, true, 1, false)),
            };
            assert_eq!(seen, expected, "{what}: {stream:?}");
            *counts.entry(what).or_default() += 1;
        }
        // The last run of the second hundred is at work whatever its slot says.
        let shares = [
            ("adopted", 6),
            ("at work", 14),
            ("completes", 120),
            ("dying", 14),
            ("fails", 6),
            ("fenced", 8),
            ("old", 8),
            ("old, reaped", 4),
            ("slow", 16),
            ("sleeping", 4),
        ];
        for (what, share) in shares {
            let count = counts[what];
            assert!(
                count == share || count + 1 == share || (what == "at work" && count == share + 1),
                "{what} {count}"
            );
        }
    }

    #[test]
    fn every_reap_is_of_a_lapsed_run_a_moment_after_it_lapsed() {
        for workload in workloads() {
            let mut reaps = 0;
            for (kind, stream) in streams(&workload) {
                for (index, fact) in stream.iter().enumerate().filter(|(_, fact)| is_reap(fact)) {
                    let before = Run::fold(&stream[..index]).unwrap().unwrap();
                    let (policy, listening) = (&workload.policy, Listening::default());
                    let verdict = judge(&before, policy, &listening, fact.recorded_at);
                    assert!(verdict.is_lapsed(), "{kind:?} {fact:?}");
                    assert!(fact.recorded_at.since(verdict.lapses_at().unwrap()) <= REAP_LAG_MAX);
                    let rule = if matches!(kind, Kind::Old { .. }) { Rule::CoarseTtl } else { Rule::HeartbeatSilence };
                    assert_eq!(verdict.rule(), Some(rule));
                    reaps += 1;
                }
            }
            assert!(reaps > 10 || workload.runs < 100);
        }
    }

    #[test]
    fn nobody_is_believed_longer_than_the_policy_allows() {
        for workload in workloads() {
            for (kind, stream) in streams(&workload) {
                let mut run = Run::begin(&stream[0]).unwrap();
                for fact in &stream[1..] {
                    let verdict = judge(&run, &workload.policy, &Listening::default(), fact.recorded_at);
                    assert_eq!(verdict.is_lapsed(), is_reap(fact), "{kind:?} {fact:?}");
                    run.evolve(fact).unwrap();
                }
            }
        }
    }

    #[test]
    fn nobody_healthy_or_slow_is_reaped_and_who_is_at_work_is_live() {
        for workload in workloads() {
            for (kind, stream) in streams(&workload) {
                if matches!(kind, Kind::Healthy(_) | Kind::Slow) {
                    assert!(!stream.iter().any(is_reap));
                }
                if kind == Kind::Healthy(Ending::None) {
                    let run = Run::fold(&stream).unwrap().unwrap();
                    let verdict = judge(&run, &workload.policy, &Listening::default(), workload.until);
                    assert_eq!(verdict.liveness, Liveness::Live);
                }
            }
        }
    }

    #[test]
    fn who_speaks_after_a_reap_is_recorded_as_the_lane_says() {
        let workload = under(|terms| terms.late_completion = LateCompletion::Refuse);
        for (kind, stream) in streams(&workload) {
            let run = Run::fold(&stream).unwrap().unwrap();
            let said: Vec<Signal> = run.reaped.iter().flat_map(|reaped| reaped.signals.clone()).collect();
            match kind {
                Kind::Sleeping { completes: true } => assert_eq!(said, [Signal::Heartbeat, Signal::Completed]),
                Kind::Sleeping { completes: false } | Kind::Fenced => assert_eq!(said, [Signal::Heartbeat]),
                _ => assert_eq!(said, []),
            }
        }
    }

    #[test]
    fn where_the_lane_retries_no_reaped_run_is_left() {
        for (_, stream) in streams(&under(|terms| terms.max_attempts = 3)) {
            let run = Run::fold(&stream).unwrap().unwrap();
            assert!(run.reaped.is_empty() || run.status == Status::Completed, "{stream:?}");
        }
    }

    #[test]
    fn a_run_id_is_a_uuid_of_version_7_that_says_when_the_run_was_created() {
        for (_, stream) in streams(&workload(100, 1_000)) {
            let uuid = stream[0].run.as_uuid();
            assert_eq!((uuid.get_version_num(), uuid.get_variant()), (7, uuid::Variant::RFC4122));
            let (seconds, nanos) = uuid.get_timestamp().unwrap().to_unix();
            let millis = seconds * 1_000 + u64::from(nanos / 1_000_000);
            assert_eq!(Ok(millis), u64::try_from(stream[0].recorded_at.as_micros() / 1_000));
        }
    }

    #[test]
    fn what_cannot_be_made_says_what_can() {
        let refused = |workload: &Workload| generate(workload).map(|_| ()).unwrap_err().to_string();
        assert!(refused(&workload(0, 8)).contains("--runs 1"));
        assert!(refused(&workload(10, 79)).contains("--events 80"));
        assert!(refused(&workload(u64::MAX, u64::MAX)).contains("fewer --runs"));
        assert!(refused(&Workload { until: Timestamp::MIN, ..workload(1, 8) }).contains("later --until"));
        assert!(refused(&workload(1, u64::MAX)).contains("fewer --events"));
        assert!(refused(&under(|terms| terms.mode = Mode::Shadow)).contains("mode enforce"));
        assert!(refused(&under(|terms| terms.heartbeat_window = Span::from_seconds(1))).contains("heartbeat_window"));
        assert!(refused(&under(|terms| terms.start_window = Some(Span::from_micros(9)))).contains("start_window"));
        let max_runtime = Some(Span::from_seconds(600));
        assert!(refused(&under(|terms| terms.max_runtime = max_runtime)).contains("longer max_runtime"));
        let stall_window = Some(Span::from_seconds(600));
        assert!(refused(&under(|terms| terms.stall_window = stall_window)).contains("longer stall_window"));
    }
}
