//! One pass: what is due, planned and carried out; and the beacons that say that somebody sweeps.

use std::collections::BTreeMap;
use std::sync::Arc;

use lastbeat_domain::decide::{Command, RefusalCode};
use lastbeat_domain::event::{RunEvent, ServiceEvent};
use lastbeat_domain::hold::{Census, HoldState};
use lastbeat_domain::listening::{BEACON_INTERVAL_MAX, BeaconRole, Promise, beacon_interval, promise_for};
use lastbeat_domain::{Name, Rule, RunId, ServiceRecorded, Span, Timestamp, explain};
use lastbeat_store::{Answer, Clock, CommandError, Filter, Judged, Store, StoreError, ask};

use crate::plan::SweepPlan;
use crate::report::{Deaf, Held, ReapedRun, Released, SweepReport};

/// How many runs are judged and written at a time.
const BATCH_RUNS: usize = 500;
/// How often the silent runs of a lane are counted at the most.
const REVIEW_INTERVAL: Span = Span::from_seconds(1);

/// Somebody who sweeps, and says so with beacons while it does.
pub struct Sweeper {
    name: Name,
    clock: Arc<dyn Clock>,
    promise: Option<Promise>,
    /// Whether it leaves the beacons to another part of its process.
    is_silent: bool,
    /// How often it beacons; follows from the smallest heartbeat window of all policies.
    beacon_interval: Span,
    /// The boottime of its last beacon.
    beaconed_at: Option<Span>,
    /// The lanes whose silent runs it counted: when, in boottime, and what came out.
    reviews: BTreeMap<Name, (Span, Census)>,
}

impl Sweeper {
    /// Makes a sweeper that goes on until it is stopped, and beacons meanwhile.
    pub fn new(name: Name, clock: Arc<dyn Clock>) -> Sweeper {
        let (beacon_interval, reviews) = (BEACON_INTERVAL_MAX, BTreeMap::new());
        Sweeper { name, clock, promise: None, is_silent: false, beacon_interval, beaconed_at: None, reviews }
    }

    /// Makes a sweeper that goes on until it is stopped and leaves the beacons to another part of its process: a server
    /// says that it listens, not that it sweeps.
    pub fn silent(name: Name, clock: Arc<dyn Clock>) -> Sweeper {
        Sweeper { is_silent: true, ..Sweeper::new(name, clock) }
    }

    /// Makes a sweeper for single passes, one each `every`; without it nobody knows when the next one is due, so it
    /// promises nothing that could be broken but by another sweeper.
    pub fn once(name: Name, clock: Arc<dyn Clock>, every: Option<Span>) -> Sweeper {
        let promise = every.map_or(Promise::UntilAnother, |every| Promise::Within(promise_for(every)));
        Sweeper { promise: Some(promise), ..Sweeper::new(name, clock) }
    }

    /// Returns the longest that it may sleep between two passes without breaking its promise.
    pub fn patience(&self) -> Span {
        self.beacon_interval
    }

    /// Beacons if it is time to; then looks at every run that is due, reaps those that have lapsed, and re-arms the
    /// others. What is due only because its lane's policy changed, or its hold ended, is re-armed first.
    ///
    /// # Errors
    /// If the store fails. What was reaped until then stays reaped.
    pub async fn pass(&mut self, store: &dyn Store) -> Result<SweepReport, StoreError> {
        let started = self.clock.boottime();
        let mut deaf = self.beacon(store).await?;
        let mut report = SweepReport::new(store.now().await?, false);
        let held: Vec<Name> = store.service_log().await?.holds().map(|(lane, _)| lane.clone()).collect();
        self.review(store, held.iter(), &mut report).await?;
        finish_rearming(store, &mut report).await?;
        loop {
            let due = store.due(report.at, BATCH_RUNS).await?;
            let full = due.len() == BATCH_RUNS;
            let judged: Vec<Judged> = due.into_iter().map(|due| due.judged).collect();
            let plan = SweepPlan::new(&judged);
            let lapses_at = |judged: &Judged| judged.verdict.lapses_at().map(|at| (judged.run.id, at));
            let lapses_at: BTreeMap<RunId, Timestamp> = judged.iter().filter_map(lapses_at).collect();
            self.review(store, plan.review.iter(), &mut report).await?;
            let done = report.reaped.len() as u64 + report.rearmed;
            self.carry_out(store, &plan, &lapses_at, &mut report).await?;
            // Where others are at work on all of it, there is nothing to do but to come back.
            if !full || report.reaped.len() as u64 + report.rearmed == done {
                break;
            }
            // A long pass must not look like a gap.
            deaf.extend(self.beacon(store).await?);
        }
        report.deaf = deaf;
        for (lane, hold) in store.service_log().await?.holds().filter(|(_, hold)| hold.state.is_held()) {
            let census = self.reviews.get(lane).map_or(hold.census, |(_, census)| *census);
            report.held.push(Held { lane: lane.clone(), lapsed: census.lapsed, beating: census.beating });
        }
        report.duration = self.clock.boottime().minus(started);
        Ok(report)
    }

    /// Says that it sweeps no more, so that nobody waits for it. One that made a single pass has promised to be back.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn stop(&mut self, store: &dyn Store) -> Result<(), StoreError> {
        if self.promise.is_none() && self.beaconed_at.take().is_some() {
            tell(store, Command::RemoveBeacon { process: self.name.clone() }).await?;
        }
        Ok(())
    }

    async fn beacon(&mut self, store: &dyn Store) -> Result<Vec<Deaf>, StoreError> {
        let now = self.clock.boottime();
        if self.is_silent || self.beaconed_at.is_some_and(|before| now.minus(before) < self.beacon_interval) {
            return Ok(Vec::new());
        }
        self.beacon_interval = beacon_interval(store.service_log().await?.smallest_window());
        let promise = self.promise.unwrap_or(Promise::Within(promise_for(self.beacon_interval)));
        let beacon = Command::Beacon { process: self.name.clone(), role: BeaconRole::Local, promise };
        let recorded = tell(store, beacon).await?;
        self.beaconed_at = Some(now);
        let deaf = |recorded: ServiceRecorded| match recorded.event {
            ServiceEvent::Deaf { from, to, cause, .. } => Some(Deaf { from, to, cause }),
            _ => None,
        };
        Ok(recorded.into_iter().filter_map(deaf).collect())
    }

    /// Counts how much of the lanes is silent, and lets the store begin or end a hold.
    async fn review<'a>(
        &mut self,
        store: &dyn Store,
        lanes: impl Iterator<Item = &'a Name>,
        report: &mut SweepReport,
    ) -> Result<(), StoreError> {
        let service = store.service_log().await?;
        for lane in lanes {
            // Nothing can come of it.
            let free = service.hold(lane) == HoldState::Free;
            if free && service.policy(lane, report.at).terms.hold_min.is_none() {
                continue;
            }
            let now = self.clock.boottime();
            if self.reviews.get(lane).is_some_and(|(before, _)| now.minus(*before) < REVIEW_INTERVAL) {
                continue;
            }
            let census = ask::census(store, lane).await?;
            self.reviews.insert(lane.clone(), (now, census));
            for recorded in tell(store, Command::ReviewHold { lane: lane.clone(), census }).await? {
                match recorded.event {
                    ServiceEvent::ReapingHeld { lane, .. } => report.newly_held.push(lane),
                    ServiceEvent::ReapingReleased { lane, cause, .. } => report.released.push(Released { lane, cause }),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    async fn carry_out(
        &self,
        store: &dyn Store,
        plan: &SweepPlan,
        lapses_at: &BTreeMap<RunId, Timestamp>,
        report: &mut SweepReport,
    ) -> Result<(), StoreError> {
        let reap = plan.reap.iter().map(|run| Command::Reap { run: *run, by: self.name.clone(), by_hand: None });
        let rearm = plan.rearm.iter().map(|run| Command::Rearm { run: *run });
        let outcomes = store.execute(reap.chain(rearm).collect()).await;
        for (index, outcome) in outcomes.into_iter().enumerate() {
            report.examined += 1;
            let reaping = index < plan.reap.len();
            match outcome {
                Ok(answer) if reaping => report.reaped.extend(reaped(&answer, lapses_at)),
                Ok(_) => report.rearmed += 1,
                Err(CommandError::Failed(error)) => return Err(error),
                Err(CommandError::Refused(refusal)) => match refusal.code {
                    RefusalCode::NotLapsed | RefusalCode::Busy => report.lost_races += 1,
                    _ => report.rearmed += 1,
                },
            }
        }
        Ok(())
    }
}

/// Carries out one command about the service and returns what was recorded.
async fn tell(store: &dyn Store, command: Command) -> Result<Vec<ServiceRecorded>, StoreError> {
    match store.execute(vec![command]).await.pop() {
        Some(Ok(answer)) => Ok(answer.service),
        Some(Err(CommandError::Failed(error))) => Err(error),
        // Another sweeper was first.
        Some(Err(CommandError::Refused(_))) | None => Ok(Vec::new()),
    }
}

/// Judges every run that is open at log time `at` and says what a pass would reap then. Writes nothing.
///
/// # Errors
/// If the store fails.
pub async fn dry_run(store: &dyn Store, at: Option<Timestamp>) -> Result<SweepReport, StoreError> {
    let started = store.clock().boottime();
    let now = store.now().await?;
    let mut report = SweepReport::new(at.unwrap_or(now), true);
    let mut lanes: BTreeMap<Name, (Census, bool)> = BTreeMap::new();
    let service = store.service_log().await?;
    let mut after = None;
    loop {
        let page = ask::list(store, &Filter::default(), None, after, BATCH_RUNS).await?;
        for judged in page.runs {
            let judged = match at {
                Some(at) => ask::run_at(store, judged.run.id, at).await?,
                None => Some(judged),
            };
            let Some(judged) = judged.filter(|judged| !judged.run.status.is_terminal()) else { continue };
            foresee(&judged, &mut report);
            if judged.run.is_beating() {
                let (census, held) = lanes.entry(judged.run.lane.clone()).or_default();
                census.add(&judged.verdict);
                let state = service.hold(&judged.run.lane);
                let free = state == HoldState::Free;
                *held = (at.is_none() && state.is_held()) || (free && census.calls_for_hold(&judged.policy.terms));
            }
        }
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    for (lane, (census, _)) in lanes.into_iter().filter(|(_, (_, held))| *held) {
        report.reaped.retain(|reaped| reaped.lane != lane || reaped.rule != Rule::HeartbeatSilence);
        report.held.push(Held { lane, lapsed: census.lapsed, beating: census.beating });
    }
    report.duration = store.clock().boottime().minus(started);
    Ok(report)
}

fn foresee(judged: &Judged, report: &mut SweepReport) {
    report.examined += 1;
    let may_be_reaped =
        judged.policy.terms.mode == lastbeat_domain::policy::Mode::Enforce && judged.listening.deaf_since().is_none();
    if let Some(charge) = judged.verdict.charge.filter(|_| judged.verdict.is_lapsed() && may_be_reaped) {
        let (run, lane) = (judged.run.id, judged.run.lane.clone());
        let message = explain::reap_message(&judged.run, &charge);
        let (lapses_at, reaped_at) = (judged.verdict.lapses_at(), None);
        report.reaped.push(ReapedRun { run, lane, rule: charge.rule, message, lapses_at, reaped_at });
    }
}

async fn finish_rearming(store: &dyn Store, report: &mut SweepReport) -> Result<(), StoreError> {
    for lane in store.lanes_to_rearm().await? {
        loop {
            let command = Command::RearmLane { lane: lane.clone(), limit: 500 };
            let mut rearmed = 0;
            for outcome in store.execute(vec![command]).await {
                match outcome {
                    Ok(answer) => rearmed = answer.rearmed,
                    Err(CommandError::Failed(error)) => return Err(error),
                    Err(CommandError::Refused(_)) => {}
                }
            }
            report.rearmed += rearmed;
            if rearmed < 500 {
                break;
            }
        }
    }
    Ok(())
}

fn reaped(answer: &Answer, lapses_at: &BTreeMap<RunId, Timestamp>) -> Option<ReapedRun> {
    let run = &answer.judged.as_ref()?.run;
    answer.appended.iter().find_map(|recorded| match &recorded.event {
        RunEvent::TimedOut { rule, message, .. } => {
            let (lane, message) = (run.lane.clone(), message.clone());
            let (lapses_at, reaped_at) = (lapses_at.get(&run.id).copied(), Some(recorded.recorded_at));
            Some(ReapedRun { run: run.id, lane, rule: *rule, message, lapses_at, reaped_at })
        }
        _ => None,
    })
}
