//! What the overview shows, gathered with a bounded number of questions whose size is bounded too.
//!
//! How many runs a lane has is counted by the task that counts for the metrics. How many of those are alive is a verdict
//! on each, so in a large lane it is told from a sample, and the page says so. What may lapse next stands at the head of
//! the sweeper's index. For those who see everything it is gathered once for all who look, and the longer that takes, the
//! longer it is shown again: looking takes a share of the store that does not grow with the number of those who look.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lastbeat_domain::access::Action;
use lastbeat_domain::listening::{Beacon, DeafSpan};
use lastbeat_domain::{Liveness, Name, RunEvent, Status, Timestamp};
use lastbeat_store::{FeedFact, Filter, Judged, ReapCount, ServiceLog, Stored, ask};
use lastbeat_wire::{HoldDocument, answers};
use tokio::time::Instant;

use crate::app::App;
use crate::caller::Caller;
use crate::gate::place;
use crate::goals::seen_by;
use crate::problem::Problem;

/// How many running runs of a lane are judged to tell how many are alive.
const SAMPLE_RUNS: usize = 300;
/// How many of its newest claimed runs are judged for that.
const CLAIMED_RUNS: usize = 1_000;
/// How many lanes are told of.
pub(super) const LANES_MAX: usize = 50;
/// How many of the runs are looked at that a sweeper looks at next.
pub(super) const SOON_EXAMINED: usize = 1_000;
/// How many of the newest runs are looked at for their goals.
const NEWEST_RUNS: usize = 200;
/// How many runs are looked at for those that the caller may see, at the most.
const NEWEST_EXAMINED: usize = 2_000;
/// How many goals are told of.
const GOALS_MAX: usize = 20;
/// How many of a goal's open runs are counted, of those in flight and of those that wait.
const GOAL_RUNS: usize = 50;
/// How many of a goal's runs are looked at for one that says how it stands, at the most.
const GOAL_EXAMINED: usize = 2_000;
/// How many facts of the feed are read at a time, for the reaps among them.
const FEED_FACTS: usize = 2_000;
/// How many reaps are told of.
const REAPS_MAX: usize = 12;
/// How many of the latest reaps are kept, for those who may see only some of them.
const REAPS_KEPT: usize = 200;
/// How long it is shown again at least.
const FRESH_FOR: Duration = Duration::from_millis(700);
/// Which part of the time is spent on gathering at the most: one in so many.
const SHARE: u32 = 10;

/// How a lane stands now. The numbers of runs in flight, live, quiet, presumed and lapsed may be estimated.
#[derive(Clone, Debug)]
pub(super) struct LaneNow {
    pub(super) lane: Name,
    pub(super) waiting: u64,
    pub(super) in_flight: u64,
    pub(super) verdicts: BTreeMap<Liveness, u64>,
    pub(super) is_estimate: bool,
    pub(super) reaped: u64,
    /// How often its reaps were wrong.
    pub(super) rate: ReapCount,
}

/// How a goal stands now, by those of its runs that the caller may see.
#[derive(Clone, Debug)]
pub(super) struct GoalNow {
    pub(super) goal: Name,
    /// Its open runs by their verdicts.
    pub(super) open: BTreeMap<Liveness, usize>,
    /// Whether it has more open runs than were counted.
    pub(super) more: bool,
    /// Whether it has so many runs that one that was not looked at may make it stand otherwise.
    pub(super) cut_off: bool,
    /// The run that makes the goal stand as it does: one that is believed, else one that waits, else one that lapsed, or
    /// else the latest.
    pub(super) telling: Option<Judged>,
}

/// A reap, as the feed told of it.
#[derive(Clone, Debug)]
pub(super) struct ReapNow {
    pub(super) at: Timestamp,
    pub(super) run: lastbeat_domain::RunId,
    pub(super) rule: lastbeat_domain::Rule,
    pub(super) message: String,
    pub(super) spoke_since: bool,
}

/// What the overview shows.
#[derive(Clone, Debug)]
pub(super) struct Gathered {
    pub(super) at: Timestamp,
    pub(super) lanes: Vec<LaneNow>,
    pub(super) more_lanes: usize,
    pub(super) goals: Vec<GoalNow>,
    pub(super) soon: ask::Soonest,
    pub(super) reaps: Vec<ReapNow>,
    pub(super) holds: Vec<HoldDocument>,
    pub(super) deaf: Vec<DeafSpan>,
    pub(super) deaf_since: Option<Timestamp>,
    pub(super) beacons: Vec<Beacon>,
    pub(super) last_sweep: Option<Timestamp>,
    pub(super) clock_back: Option<Timestamp>,
}

/// What was gathered for those who see everything, and how far the feed was read for reaps.
#[derive(Default)]
pub(crate) struct Kept {
    memory: Arc<tokio::sync::Mutex<Memory>>,
    /// How often somebody acted on a page of this process.
    acts: AtomicU64,
}

#[derive(Default)]
struct Memory {
    last: Option<Last>,
    through: u64,
    reaps: VecDeque<ReapNow>,
}

impl Kept {
    /// Takes note that somebody acted.
    pub(super) fn acted(&self) {
        self.acts.fetch_add(1, Ordering::Relaxed);
    }
}

/// What was gathered last, and what was known before that began.
struct Last {
    at: Instant,
    took: Duration,
    acts: u64,
    service: Arc<ServiceLog>,
    gathered: Arc<Gathered>,
}

impl Last {
    /// Says whether it may be shown again. Whoever acted looks for what came of it, so that is never kept from anybody; and
    /// nobody waits long to see an alarm or its end, but if many lanes are held and let go, no more than half of the time is
    /// spent on it.
    fn is_fresh(&self, acts: u64, service: &ServiceLog) -> bool {
        let pause = if self.acts != acts {
            Duration::ZERO
        } else if !self.service.holds().eq(service.holds()) {
            self.took
        } else {
            (self.took * SHARE).max(FRESH_FOR)
        };
        self.at.elapsed() < pause
    }
}

/// Gathers what the overview shows a caller.
///
/// # Errors
/// If the store fails, or too much is asked of it.
pub(super) async fn gather(app: &App, caller: &Caller) -> Result<Arc<Gathered>, Problem> {
    let mut memory = Arc::clone(&app.gathered.memory).lock_owned().await;
    if !(caller.may_always(Action::SeeRun) && caller.may_always(Action::SeeLane)) {
        read_reaps(app, &mut memory).await?;
        let reaps = memory.reaps.clone();
        // Those who see everything need not wait until it is gathered for one who does not.
        drop(memory);
        let _place = place(&app.searches).await?;
        return Ok(Arc::new(asked(app, caller, &reaps).await?));
    }
    let acts = app.gathered.acts.load(Ordering::Relaxed);
    // If the store does not answer, it says so below, where it matters.
    let service = app.fresh_service().await.unwrap_or_else(|_| app.service());
    if let Some(last) = &memory.last
        && last.is_fresh(acts, &service)
    {
        return Ok(Arc::clone(&last.gathered));
    }
    let _place = place(&app.searches).await?;
    let started = Instant::now();
    read_reaps(app, &mut memory).await?;
    let gathered = Arc::new(asked(app, caller, &memory.reaps).await?);
    let (at, took) = (Instant::now(), started.elapsed());
    memory.last = Some(Last { at, took, acts, service, gathered: Arc::clone(&gathered) });
    Ok(gathered)
}

async fn asked(app: &App, caller: &Caller, reaps: &VecDeque<ReapNow>) -> Result<Gathered, Problem> {
    let store = app.store();
    let counted = app.metrics.counts(store).await?;
    let seen = |lane: &Name| caller.check_lane(Action::SeeLane, lane).is_ok();
    let tally = store.reap_tally().await?;
    let mut soon = ask::soonest(store, SOON_EXAMINED).await?;
    let mut lanes = Vec::new();
    for (lane, counts) in counted.lanes.iter().filter(|(lane, _)| seen(lane)).take(LANES_MAX) {
        let mut now = lane_now(app, lane, counts, &soon.runs).await?;
        now.rate = tally.of_lane(lane).fold(ReapCount::default(), |sum, (_, count)| sum.plus(count));
        lanes.push(now);
    }
    let more_lanes = counted.lanes.keys().filter(|lane| seen(lane)).count().saturating_sub(lanes.len());
    soon.runs.retain(|judged| caller.sees(&judged.run));
    let mut named: BTreeSet<Name> = BTreeSet::new();
    let mut goals = Vec::new();
    let sees = |judged: &Judged| caller.sees(&judged.run);
    let newest = ask::list_where(store, &seen_by(caller), sees, None, NEWEST_RUNS, NEWEST_EXAMINED).await?;
    for judged in soon.runs.iter().take(NEWEST_RUNS).chain(&newest.runs) {
        if let Some(goal) = &judged.run.goal
            && goals.len() < GOALS_MAX
            && named.insert(goal.clone())
        {
            goals.push(goal_now(app, caller, goal).await?);
        }
    }
    let (service, at) = (store.service_log().await?, store.now().await?);
    let mut holds = answers::holds(store).await?.holds;
    holds.retain(|hold| seen(&hold.lane));
    let mut shown = Vec::new();
    for reap in reaps {
        if shown.len() == REAPS_MAX {
            break;
        }
        if caller.may_always(Action::SeeRun) || store.run(reap.run).await?.is_some_and(|run| caller.sees(&run)) {
            shown.push(reap.clone());
        }
    }
    Ok(Gathered {
        at,
        lanes,
        more_lanes,
        goals,
        soon,
        reaps: shown,
        holds,
        deaf: service.deaf_spans().iter().rev().take(5).copied().collect(),
        deaf_since: service.listening(at).deaf_since(),
        beacons: service.beacons.clone(),
        last_sweep: app.metrics.last_sweep(),
        clock_back: service.clock_back.as_ref().map(|back| back.recorded_at),
    })
}

/// Tells how a lane stands; `soon` are the runs of all lanes that may lapse next, or have lapsed.
async fn lane_now(app: &App, lane: &Name, counts: &BTreeMap<Status, u64>, soon: &[Judged]) -> Result<LaneNow, Problem> {
    let of = |status: Status| counts.get(&status).copied().unwrap_or(0);
    let (claimed, running) = (of(Status::Claimed), of(Status::Running));
    let mut now = LaneNow {
        lane: lane.clone(),
        waiting: of(Status::Pending),
        in_flight: 0,
        verdicts: BTreeMap::new(),
        is_estimate: false,
        reaped: of(Status::TimedOut),
        rate: ReapCount::default(),
    };
    if running > 0 {
        let (sample, of) = ask::running(app.store(), lane, SAMPLE_RUNS).await?;
        now.add(tallied(&sample), of);
    }
    if claimed > 0 {
        now.add_claimed(app, claimed, soon).await?;
    }
    Ok(now)
}

/// How many runs have which verdict.
fn tallied(runs: &[Judged]) -> BTreeMap<Liveness, u64> {
    let mut found = BTreeMap::new();
    runs.iter().for_each(|judged| *found.entry(judged.verdict.liveness).or_default() += 1);
    found
}

/// How many of `of` are like `count` in a sample of `drawn`: at least one if one was drawn.
fn share(count: u64, of: u64, drawn: u64) -> u64 {
    let share = u128::from(count) * u128::from(of) / u128::from(drawn.max(1));
    u64::try_from(share).unwrap_or(u64::MAX).max(count.min(1))
}

impl LaneNow {
    /// Adds the verdicts on the claimed runs, of which about so many were counted.
    async fn add_claimed(&mut self, app: &App, counted: u64, soon: &[Judged]) -> Result<(), Problem> {
        let filter = Filter { lane: Some(self.lane.clone()), statuses: vec![Status::Claimed], ..Filter::default() };
        let sample = ask::newest(app.store(), &filter, CLAIMED_RUNS).await?;
        let (mut found, drawn) = (tallied(&sample), sample.len() as u64);
        if sample.len() < CLAIMED_RUNS {
            self.add(found, drawn);
            return Ok(());
        }
        self.is_estimate = true;
        let of = counted.max(drawn);
        // The newest are those that have not lapsed yet; those that have stand at the head of what is due.
        let is_lapsed = |judged: &&Judged| {
            judged.run.lane == self.lane && judged.run.status == Status::Claimed && judged.verdict.is_lapsed()
        };
        let lapsed = soon.iter().filter(is_lapsed).count() as u64;
        if lapsed > share(found.get(&Liveness::Lapsed).copied().unwrap_or(0), of, drawn) {
            found.insert(Liveness::Lapsed, 0);
            self.add(BTreeMap::from([(Liveness::Lapsed, lapsed)]), lapsed);
            self.add(found, of.saturating_sub(lapsed));
        } else {
            self.add(found, of);
        }
        Ok(())
    }

    /// Adds the verdicts on a sample of `of` runs.
    fn add(&mut self, found: BTreeMap<Liveness, u64>, of: u64) {
        let drawn = found.values().sum();
        self.is_estimate |= of > drawn;
        self.in_flight += of;
        for (liveness, count) in found {
            *self.verdicts.entry(liveness).or_default() += share(count, of, drawn);
        }
    }
}

/// Tells how a goal stands, as the API does; `telling` is `None` if the caller may see none of its runs.
pub(super) async fn goal_now(app: &App, caller: &Caller, goal: &Name) -> Result<GoalNow, Problem> {
    let all = Filter { goal: Some(goal.clone()), ..seen_by(caller) };
    let sees = |judged: &Judged| caller.sees(&judged.run);
    let mut now = GoalNow { goal: goal.clone(), open: BTreeMap::new(), more: false, cut_off: false, telling: None };
    // Those in flight first: one that is believed says how the goal stands, however many newer ones wait.
    for statuses in [vec![Status::Claimed, Status::Running], vec![Status::Pending]] {
        let filter = Filter { statuses, ..all.clone() };
        let page = ask::list_where(app.store(), &filter, sees, None, GOAL_RUNS, GOAL_EXAMINED).await?;
        page.runs.iter().for_each(|judged| *now.open.entry(judged.verdict.liveness).or_default() += 1);
        now.more |= page.next.is_some();
        let mut next = page.next;
        now.hear(page.runs);
        // Of so many the first may all have lapsed, and one that says more comes after them.
        if next.is_some() && now.rank() > 1 {
            let says_more = |judged: &Judged| sees(judged) && rank(judged) < 2;
            let rest = ask::list_where(app.store(), &filter, says_more, next, 1, GOAL_EXAMINED).await?;
            next = rest.next.filter(|_| rest.runs.is_empty());
            now.hear(rest.runs);
            now.cut_off |= next.is_some();
        }
    }
    now.cut_off &= now.rank() > 0;
    if now.rank() > 2 {
        let latest = ask::list_where(app.store(), &all, sees, None, 1, GOAL_EXAMINED).await?;
        now.telling = latest.runs.into_iter().next().or(now.telling);
    }
    Ok(now)
}

impl GoalNow {
    /// Takes note of open runs, the newest first.
    fn hear(&mut self, runs: Vec<Judged>) {
        self.telling = self.telling.take().into_iter().chain(runs).min_by_key(rank);
    }

    fn rank(&self) -> u8 {
        self.telling.as_ref().map_or(u8::MAX, rank)
    }
}

/// How much a run says of how its goal stands: the least number says the most.
fn rank(judged: &Judged) -> u8 {
    match judged.verdict.liveness {
        liveness if liveness.counts_as_running() => 0,
        Liveness::Waiting => 1,
        Liveness::Lapsed => 2,
        _ => 3,
    }
}

/// Reads what came to the feed since the last time, at most its last facts, for the reaps among it.
async fn read_reaps(app: &App, memory: &mut Memory) -> Result<(), Problem> {
    let end = app.store().log_end().await?;
    let after = memory.through.max(end.saturating_sub(FEED_FACTS as u64));
    for entry in app.store().feed(after, FEED_FACTS).await? {
        memory.through = entry.position;
        let FeedFact::Run(Stored::Known(fact)) = entry.fact else { continue };
        match fact.event {
            RunEvent::TimedOut { rule, message, .. } => {
                let (at, run) = (fact.recorded_at, fact.run);
                memory.reaps.push_front(ReapNow { at, run, rule, message, spoke_since: false });
                memory.reaps.truncate(REAPS_KEPT);
            }
            RunEvent::LateSignal { .. } => {
                memory.reaps.iter_mut().filter(|reap| reap.run == fact.run).for_each(|reap| reap.spoke_since = true);
            }
            _ => {}
        }
    }
    Ok(())
}
