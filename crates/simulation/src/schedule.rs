//! What a seed makes: lanes, executors, sweepers, and what goes wrong when.
//!
//! The world is only as bad as the promises allow. An executor is on time if it beats each `interval` while the store
//! can be reached; its silence is then at most two intervals, one before and one after an outage, and an outage that
//! nobody notices, which is at most a promise (12.5 s) long. The windows here are at least four intervals of at least
//! 10 s, so there is room for that, but not for two such outages in one silence: faults of the environment keep a
//! distance ([`CALM`]). They also happen only while somebody listens, because where there is no counted beacon nothing
//! is deaf: what happens between the clean stop of the last sweeper and the start of the next one is charged.

use lastbeat_domain::policy::{LateCompletion, Mode};
use lastbeat_domain::{Span, Terms};

use crate::random::Random;

/// How many seconds the environment leaves everybody in peace after a fault: longer than it takes an executor on time
/// to be heard of again.
const CALM: u64 = 45;

/// A kind of work and its executors.
#[derive(Clone, Debug)]
pub(crate) struct LanePlan {
    /// The policy to begin with.
    pub(crate) terms: Terms,
}

/// An executor to be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ExecutorPlan {
    /// The index of its lane.
    pub(crate) lane: usize,
    /// Whether it beats; an old client does not.
    pub(crate) beats: bool,
    /// Whether its reports may be on the way for long.
    pub(crate) laggard: bool,
    /// Whether it goes on after it was told to stop.
    pub(crate) stubborn: bool,
    /// Whether it quotes its claim id.
    pub(crate) quotes_claim: bool,
}

/// Something that goes wrong, or that somebody does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// An executor loses all that it knew and comes back after a while.
    Crash { executor: usize, back_after: Span },
    /// An executor stands still for a while, and then goes on as if nothing had been.
    Pause { executor: usize, lasting: Span },
    /// A sweeper ends without a word; another one takes its place after a while.
    SweeperCrash { sweeper: usize, back_after: Span },
    /// A sweeper stops cleanly; another one takes its place after a while.
    SweeperStop { sweeper: usize, back_after: Span },
    /// Nobody reaches the store.
    Outage { lasting: Span },
    /// The clock is set by so many microseconds; perhaps while a sweeper is in the middle of a pass.
    Step { micros: i64, in_pass: bool },
    /// The clock is set right again after a step back.
    Repair,
    /// A lane gets another policy.
    Policy { lane: usize },
    /// Somebody asks for a run to be cancelled.
    Cancel,
    /// Somebody requeues a run that ended.
    Requeue,
    /// Somebody asks for a run to be reaped by hand.
    ReapByHand,
    /// Somebody submits a run.
    Submit { lane: usize },
    /// Somebody reports under the claim of an earlier attempt, or of none.
    ForgedReport,
    /// Somebody releases a hold.
    ReleaseHold { lane: usize },
    /// Somebody compacts what is older than that.
    Compact { older_than: Span },
}

impl Fault {
    /// Returns a name for the summary.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Fault::Crash { .. } => "executor crashes",
            Fault::Pause { .. } => "executor pauses",
            Fault::SweeperCrash { .. } => "sweeper crashes",
            Fault::SweeperStop { .. } => "sweeper stops",
            Fault::Outage { .. } => "outages",
            Fault::Step { micros: 0.., .. } => "clock steps forward",
            Fault::Step { .. } => "clock steps back",
            Fault::Repair => "clock repairs",
            Fault::Policy { .. } => "policy changes",
            Fault::Cancel => "cancel requests",
            Fault::Requeue => "requeues by hand",
            Fault::ReapByHand => "reaps by hand",
            Fault::Submit { .. } => "submitted runs",
            Fault::ForgedReport => "forged reports",
            Fault::ReleaseHold { .. } => "releases by hand",
            Fault::Compact { .. } => "compactions",
        }
    }
}

/// All that is known of a schedule before it begins.
#[derive(Clone, Debug)]
pub(crate) struct Schedule {
    /// The lanes.
    pub(crate) lanes: Vec<LanePlan>,
    /// The executors.
    pub(crate) executors: Vec<ExecutorPlan>,
    /// How many sweepers there are.
    pub(crate) sweepers: usize,
    /// What goes wrong, and how long after the start.
    pub(crate) faults: Vec<(Span, Fault)>,
    /// When everybody goes home.
    pub(crate) lasting: Span,
}

impl Schedule {
    /// Makes the schedule of a seed.
    pub(crate) fn new(random: &mut Random) -> Schedule {
        let long = random.chance(1);
        let lasting = if long { random.seconds(600, 1_200) } else { random.seconds(150, 200) };
        let lanes: Vec<LanePlan> =
            (0..random.pick(&[1, 1, 2])).map(|_| LanePlan { terms: first_terms(random) }).collect();
        let executors =
            (0..random.pick(&[3, 3, 4, 4, 5, 6, 8])).map(|_| executor(random, lanes.len())).collect::<Vec<_>>();
        let sweepers = random.pick(&[1, 1, 1, 1, 1, 1, 2, 3]);
        let mut faults = Vec::new();
        weather(random, lasting, &mut faults);
        for _ in 0..lasting.as_micros() / 15_000_000 {
            let at = Span::from_micros(random.between(1_000_000, lasting.as_micros()));
            faults.push((at, mishap(random, executors.len(), lanes.len(), sweepers)));
        }
        for _ in 0..random.between(1, 3) {
            let (at, older_than) = (random.between(1_000_000, lasting.as_micros()), random.pick(&[0, 0, 20, 60]));
            faults.push((Span::from_micros(at), Fault::Compact { older_than: Span::from_seconds(older_than) }));
        }
        Schedule { lanes, executors, sweepers, faults, lasting }
    }
}

fn first_terms(random: &mut Random) -> Terms {
    let interval = random.pick(&[10, 15, 20]);
    let (window, held) = (interval * random.pick(&[4, 4, 5]), random.chance(25));
    Terms {
        heartbeat_interval: Span::from_seconds(interval),
        heartbeat_window: Span::from_seconds(window),
        coarse_ttl: Span::from_seconds(window + random.pick(&[20, 50, 100])),
        max_attempts: u32::try_from(random.between(1, 3)).unwrap(),
        retry_backoff_base: random.seconds(1, 6),
        late_completion: random.pick(&[LateCompletion::Adopt, LateCompletion::Adopt, LateCompletion::Refuse]),
        hold_min: held.then(|| random.pick(&[2, 3])),
        hold_max: random.seconds(20, 60),
        reap_rate: random.pick(&[1, 10]),
        stall_window: random.chance(40).then(|| Span::from_seconds(window + random.between(0, 20))),
        ..Terms::default()
    }
}

/// Changes a policy. Its windows stay at least four intervals long, and the interval as the executors know it.
pub(crate) fn other_terms(random: &mut Random, terms: &Terms) -> Terms {
    Terms {
        heartbeat_window: terms.heartbeat_interval.times(random.between(4, 5)),
        coarse_ttl: terms.heartbeat_interval.times(5).plus(random.seconds(10, 100)),
        mode: if random.chance(25) { Mode::Shadow } else { Mode::Enforce },
        max_attempts: u32::try_from(random.between(1, 3)).unwrap(),
        ..terms.clone()
    }
}

fn executor(random: &mut Random, lanes: usize) -> ExecutorPlan {
    let beats = random.chance(70);
    ExecutorPlan {
        lane: random.index(lanes),
        beats,
        laggard: random.chance(15),
        stubborn: random.chance(20),
        quotes_claim: beats || random.chance(70),
    }
}

/// The faults of the environment, one after the other.
fn weather(random: &mut Random, lasting: Span, faults: &mut Vec<(Span, Fault)>) {
    let mut at = random.seconds(20, 60);
    while at < lasting {
        let takes = match random.between(0, 9) {
            0..=2 => outage(random, at, random_outage, faults),
            3..=5 => {
                let micros = i64::try_from(step_size(random).as_micros()).unwrap();
                faults.push((at, Fault::Step { micros, in_pass: random.chance(40) }));
                Span::from_seconds(6)
            }
            6..=7 => {
                let size = step_size(random);
                let micros = -i64::try_from(size.as_micros()).unwrap();
                faults.push((at, Fault::Step { micros, in_pass: random.chance(20) }));
                let repaired = size > Span::from_seconds(40) || random.chance(50);
                let frozen = random.seconds(5, 60);
                if repaired {
                    faults.push((at.plus(frozen), Fault::Repair));
                }
                frozen
            }
            _ => Span::ZERO,
        };
        at = at.plus(takes).plus(random.seconds(CALM, 2 * CALM));
    }
}

fn outage(
    random: &mut Random,
    at: Span,
    length: impl Fn(&mut Random) -> Span,
    faults: &mut Vec<(Span, Fault)>,
) -> Span {
    let lasting = length(random);
    faults.push((at, Fault::Outage { lasting }));
    lasting
}

fn random_outage(random: &mut Random) -> Span {
    match random.between(0, 2) {
        0 => random.seconds(2, 14),
        1 => random.seconds(15, 60),
        _ => random.seconds(60, 150),
    }
}

/// From a slip that is no step up to an hour.
fn step_size(random: &mut Random) -> Span {
    match random.between(0, 5) {
        0 => random.seconds(1, 3),
        1 => random.seconds(3, 12),
        2 => random.seconds(12, 60),
        3 => random.seconds(60, 300),
        4 => random.seconds(300, 1_200),
        _ => random.seconds(1_200, 3_600),
    }
}

/// A fault of somebody, or something that somebody wants.
fn mishap(random: &mut Random, executors: usize, lanes: usize, sweepers: usize) -> Fault {
    let (executor, lane, sweeper) = (random.index(executors), random.index(lanes), random.index(sweepers));
    match random.between(0, 99) {
        0..=19 => Fault::Crash { executor, back_after: random.seconds(1, 90) },
        20..=29 => Fault::Pause { executor, lasting: random.seconds(1, 40) },
        30..=44 => Fault::Pause { executor, lasting: random.seconds(40, 160) },
        45..=50 => Fault::SweeperCrash { sweeper, back_after: random.seconds(1, 60) },
        51..=56 => Fault::SweeperStop { sweeper, back_after: random.seconds(1, 60) },
        57..=67 => Fault::Policy { lane },
        68..=73 => Fault::Cancel,
        74..=81 => Fault::Requeue,
        82..=85 => Fault::ReapByHand,
        86..=91 => Fault::Submit { lane },
        92..=96 => Fault::ForgedReport,
        _ => Fault::ReleaseHold { lane },
    }
}
