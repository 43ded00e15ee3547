//! A schedule as it is carried out: one event after the other, on a clock that stands still in between.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use lastbeat_domain::decide::{ByHand, Claimant, Command, Report, RunSpec};
use lastbeat_domain::event::DeafCause;
use lastbeat_domain::listening::CLOCK_STEP_MIN;
use lastbeat_domain::policy::Mode;
use lastbeat_domain::{Line, Name, RunId, ServiceEvent, Span, Timestamp};
use lastbeat_store::compact::{Bounds, compact_all};
use lastbeat_store::sqlite::SqliteStore;
use lastbeat_store::{Clock, FeedFact, Store, StoreError};
use lastbeat_sweeper::Sweeper;
use lastbeat_testkit::{SimulatedClock, name, run_id};

use crate::between::{Between, Intrusion, Parcel, Process, Said, Seen, pass, send, set_by};
use crate::ledger::{Broken, Ledger, Promise, report_of};
use crate::random::Random;
use crate::schedule::{ExecutorPlan, Fault, Schedule, other_terms};
use crate::tally::Tally;

/// When the schedules begin.
const START: &str = "2026-05-04T06:00:00Z";

/// How many passes a schedule takes at the most; hundreds are usual. More is a sweeper that does not come to rest.
const PASSES_MAX: u64 = 3_000;

/// Something that happens at an instant.
enum Happening {
    /// An executor does what is next.
    Wake { executor: usize, generation: u32 },
    /// An executor that stood still goes on.
    Resume { executor: usize, generation: u32 },
    /// A command arrives.
    Deliver(Parcel),
    /// A sweeper makes a pass.
    Sweep { sweeper: usize, generation: u32 },
    /// A sweeper begins.
    SweeperStart { sweeper: usize },
    /// Something goes wrong.
    Fault(Fault),
    /// The store can be reached again.
    OutageEnds,
}

/// What an executor works on.
struct Work {
    report: Report,
    /// How long after the start it is done.
    until: Span,
    /// What it says then.
    fails: bool,
}

struct Executor {
    name: Name,
    plan: ExecutorPlan,
    /// Goes up when it crashes, so that what its former self had planned comes to nothing.
    generation: u32,
    paused: bool,
    work: Option<Work>,
}

struct Slot {
    generation: u32,
    process: Option<Box<Process>>,
}

/// All that there is.
pub(crate) struct World {
    pub(crate) ledger: Ledger,
    pub(crate) tally: Tally,
    random: Random,
    clock: Arc<SimulatedClock>,
    desk: Arc<SqliteStore>,
    url: String,
    queue: BTreeMap<(Span, u64), Happening>,
    numbers: u64,
    lanes: Vec<Name>,
    executors: Vec<Executor>,
    sweepers: Vec<Slot>,
    faults: Vec<(Span, Fault)>,
    lasting: Span,
    outage: bool,
    /// A step of the clock that waits for the middle of a pass.
    waiting_step: Option<i64>,
    /// How far the clock was set back and not forward again.
    behind: i64,
}

impl World {
    /// Makes the world of a seed in the database at that path, which is there and empty.
    pub(crate) async fn new(seed: u64, path: &Path) -> Result<World, StoreError> {
        let mut random = Random::new(seed);
        let schedule = Schedule::new(&mut random);
        let clock = SimulatedClock::at(START.parse().unwrap());
        let url = format!("sqlite://{}", path.display());
        let desk = Arc::new(SqliteStore::open(&url, true, Arc::<SimulatedClock>::clone(&clock)).await?);
        let executor = |(number, plan): (usize, &ExecutorPlan)| {
            let name = name(&format!("executor-{number}"));
            Executor { name, plan: *plan, generation: 0, paused: false, work: None }
        };
        let mut world = World {
            ledger: Ledger::default(),
            tally: Tally::default(),
            random,
            clock,
            desk,
            url,
            queue: BTreeMap::new(),
            numbers: 0,
            lanes: (0..schedule.lanes.len()).map(|number| name(&format!("lane-{number}"))).collect(),
            executors: schedule.executors.iter().enumerate().map(executor).collect(),
            sweepers: (0..schedule.sweepers).map(|_| Slot { generation: 0, process: None }).collect(),
            faults: schedule.faults,
            lasting: schedule.lasting,
            outage: false,
            waiting_step: None,
            behind: 0,
        };
        for (lane, plan) in world.lanes.clone().into_iter().zip(schedule.lanes) {
            let terms = Box::new(plan.terms);
            let command = Command::SetPolicy { lane, terms, expected_version: None, by: None };
            world.say(command).await.map_err(|broken| StoreError::Unavailable(broken.what))?;
        }
        Ok(world)
    }

    /// Carries out the schedule, then the quiet time after it, and checks what is left.
    pub(crate) async fn play(&mut self) -> Result<(), Broken> {
        for sweeper in 0..self.sweepers.len() {
            let after = self.random.seconds(0, 3);
            self.later(after, Happening::SweeperStart { sweeper });
        }
        for executor in 0..self.executors.len() {
            let after = self.random.seconds(0, 10);
            self.later(after, Happening::Wake { executor, generation: 0 });
        }
        for (after, fault) in std::mem::take(&mut self.faults) {
            self.later(after, Happening::Fault(fault));
        }
        let end = self.elapsed().plus(self.lasting);
        while let Some(((at, _), happening)) = self.queue.pop_first() {
            if at > end {
                break;
            }
            // A pass in which time went by may have been in the way.
            self.clock.advance(at.minus(self.elapsed()));
            self.happen(happening).await?;
        }
        self.queue.clear();
        self.quiet_time().await?;
        self.tally.simulated = self.elapsed();
        self.check_end().await
    }

    async fn happen(&mut self, happening: Happening) -> Result<(), Broken> {
        match happening {
            Happening::Wake { executor, generation } => self.wake(executor, generation).await,
            Happening::Resume { executor, generation } => self.resume(executor, generation).await,
            Happening::Deliver(parcel) => self.deliver(parcel).await,
            Happening::Sweep { sweeper, generation } => self.sweep(sweeper, generation).await,
            Happening::SweeperStart { sweeper } => self.start_sweeper(sweeper).await,
            Happening::Fault(fault) => self.go_wrong(fault).await,
            Happening::OutageEnds => {
                self.outage = false;
                Ok(())
            }
        }
    }

    /// How much true time went by.
    fn elapsed(&self) -> Span {
        self.clock.boottime()
    }

    fn later(&mut self, after: Span, happening: Happening) {
        self.numbers += 1;
        self.queue.insert((self.elapsed().plus(after), self.numbers), happening);
    }

    fn fresh(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    /// Says something at once on nobody's behalf.
    async fn say(&mut self, command: Command) -> Result<Seen, Broken> {
        self.post(Parcel { from: None, command }).await
    }

    async fn post(&mut self, parcel: Parcel) -> Result<Seen, Broken> {
        let seen = send(&self.desk, parcel).await.map_err(|error| Broken::store(error.to_string()))?;
        self.note(&seen)?;
        Ok(seen)
    }

    fn note(&mut self, seen: &Seen) -> Result<(), Broken> {
        self.tally.commands += 1;
        self.ledger.take(seen)
    }

    /// The instant that the log has reached.
    fn log_now(&self) -> Timestamp {
        self.clock.now().max(self.ledger.latest_at())
    }

    // Executors -------------------------------------------------------------------------------------------------------

    async fn wake(&mut self, executor: usize, generation: u32) -> Result<(), Broken> {
        let own = &self.executors[executor];
        if own.generation != generation || own.paused {
            return Ok(());
        }
        match self.next_report(executor) {
            Some(command) => self.report(executor, command).await?,
            None if self.executors[executor].work.is_none() => self.claim(executor).await?,
            None => {}
        }
        let after = self.until_next(executor);
        self.later(after, Happening::Wake { executor, generation });
        Ok(())
    }

    /// How long an executor sleeps: one that beats at most the interval, one that does not until its work is done.
    fn until_next(&mut self, executor: usize) -> Span {
        let own = &self.executors[executor];
        let interval = self.interval(executor);
        let earliest = interval.as_micros() * 9 / 10;
        let cadence = Span::from_micros(self.random.between(earliest, interval.as_micros()));
        match &own.work {
            Some(work) if !own.plan.beats => work.until.minus(self.elapsed()).max(cadence),
            _ => cadence,
        }
    }

    fn interval(&self, executor: usize) -> Span {
        let lane = &self.lanes[self.executors[executor].plan.lane];
        self.ledger.terms(lane, Timestamp::MAX).heartbeat_interval
    }

    /// What an executor has to say of its work.
    fn next_report(&mut self, executor: usize) -> Option<Command> {
        let (now, own) = (self.clock.boottime(), &self.executors[executor]);
        let work = own.work.as_ref()?;
        let report = work.report.clone();
        if now >= work.until {
            return Some(if work.fails {
                Command::Fail { report, error: "no disk".to_owned() }
            } else {
                Command::Complete { report, output: None }
            });
        }
        let progress = self.random.chance(20).then(|| serde_json::json!({"done": self.random.between(1, 2)}));
        match own.plan.beats {
            true if self.random.chance(3) => Some(Command::Start(report)),
            true => Some(Command::Heartbeat { report, progress }),
            false => self.random.chance(30).then_some(Command::Start(report)),
        }
    }

    /// Sends a report, which may come late, or twice.
    async fn report(&mut self, executor: usize, command: Command) -> Result<(), Broken> {
        let own = &self.executors[executor];
        let parcel = Parcel { from: Some((executor, own.generation)), command };
        if self.random.chance(4) {
            self.tally.count("duplicated reports");
            let after = self.random.seconds(0, 40);
            self.later(after, Happening::Deliver(Parcel { from: None, ..parcel.clone() }));
        }
        if self.executors[executor].plan.laggard && self.random.chance(15) {
            self.tally.count("delayed reports");
            self.excuse(executor);
            let after = self.random.seconds(1, 70);
            self.later(after, Happening::Deliver(parcel));
            return Ok(());
        }
        if self.random.chance(10) {
            let after = Span::from_micros(self.random.between(1, 1_000_000));
            self.later(after, Happening::Deliver(parcel));
            return Ok(());
        }
        // `Start` is no heartbeat, so that an executor on time sends one too.
        let started = if let Command::Start(report) = &parcel.command { Some(report.clone()) } else { None };
        let from = parcel.from;
        self.deliver(parcel).await?;
        match started.filter(|_| self.executors[executor].plan.beats) {
            Some(report) => self.deliver(Parcel { from, command: Command::Heartbeat { report, progress: None } }).await,
            None => Ok(()),
        }
    }

    /// Hands a command over, unless nobody is there to take it.
    async fn deliver(&mut self, parcel: Parcel) -> Result<(), Broken> {
        if self.outage {
            self.tally.count("lost reports");
            return Ok(());
        }
        let seen = self.post(parcel).await?;
        self.react(&seen);
        if let (Some((executor, generation)), Said::Done { cancel: Some(run), .. }) = (seen.parcel.from, &seen.said) {
            let own = &self.executors[executor];
            let work = own.work.as_ref().filter(|work| own.generation == generation && work.report.run == *run);
            if let Some(report) = work.map(|work| work.report.clone())
                && self.random.chance(60)
            {
                let command = Command::AcknowledgeCancel(report);
                let seen = self.post(Parcel { from: Some((executor, generation)), command }).await?;
                self.react(&seen);
            }
        }
        Ok(())
    }

    /// Lets an executor learn what became of its report.
    fn react(&mut self, seen: &Seen) {
        let Some((executor, generation)) = seen.parcel.from else { return };
        let own = &mut self.executors[executor];
        let current = own.work.as_ref().map(|work| &work.report);
        if own.generation != generation || own.paused || current.is_none() || current != report_of(&seen.parcel.command)
        {
            return;
        }
        let over = match (&seen.said, &seen.parcel.command) {
            (Said::Done { .. }, Command::Heartbeat { .. } | Command::Start(_)) => false,
            (Said::Done { .. }, _) => true,
            // A stubborn one goes on until its work is done.
            (_, Command::Heartbeat { .. } | Command::Start(_)) => !own.plan.stubborn,
            _ => true,
        };
        if over {
            own.work = None;
        }
    }

    async fn claim(&mut self, executor: usize) -> Result<(), Broken> {
        if self.outage {
            return Ok(());
        }
        let lane = self.lanes[self.executors[executor].plan.lane].clone();
        let claim = format!("c{}", self.fresh());
        let claimant =
            Claimant { executor: self.executors[executor].name.clone(), device: None, claim: claim.parse().unwrap() };
        let take = Command::Claim { lanes: vec![lane.clone()], claimant: claimant.clone() };
        let (run, spec) = (run_id(u128::from(self.fresh())), Box::new(RunSpec::of_lane(lane)));
        let create = Command::Create { run, spec, claim: Some(claimant.clone()) };
        let command = if self.random.chance(60) { take } else { create };
        let seen = self.say(command).await?;
        let Said::Done { run: Some(run), .. } = seen.said else { return Ok(()) };
        let plan = self.executors[executor].plan;
        let takes = if plan.beats { self.random.seconds(20, 320) } else { self.random.seconds(5, 220) };
        let claim = plan.quotes_claim.then_some(claimant.claim);
        let report = Report { run: run.id, attempt: run.attempt, claim, executor: None };
        if !plan.beats {
            self.ledger.excuse(&report);
        }
        let (until, fails) = (self.elapsed().plus(takes), self.random.chance(15));
        self.executors[executor].work = Some(Work { report, until, fails });
        if plan.beats && self.random.chance(50) {
            let command = self.next_report(executor);
            if let Some(command) = command {
                self.report(executor, command).await?;
            }
        }
        Ok(())
    }

    /// Notes that an executor is no longer on time.
    fn excuse(&mut self, executor: usize) {
        if let Some(work) = &self.executors[executor].work {
            self.ledger.excuse(&work.report);
        }
    }

    async fn resume(&mut self, executor: usize, generation: u32) -> Result<(), Broken> {
        if self.executors[executor].generation == generation {
            self.executors[executor].paused = false;
            self.wake(executor, generation).await?;
        }
        Ok(())
    }

    // Sweepers --------------------------------------------------------------------------------------------------------

    async fn start_sweeper(&mut self, sweeper: usize) -> Result<(), Broken> {
        if self.sweepers[sweeper].process.is_some() {
            return Ok(());
        }
        if self.outage {
            self.later(Span::from_seconds(1), Happening::SweeperStart { sweeper });
            return Ok(());
        }
        let clock = Arc::<SimulatedClock>::clone(&self.clock);
        let inner =
            SqliteStore::open(&self.url, false, clock).await.map_err(|error| Broken::store(error.to_string()))?;
        let clock = Arc::<SimulatedClock>::clone(&self.clock);
        let store = Arc::new(Between::new(inner, Arc::clone(&self.desk), Arc::clone(&clock)));
        let name = name(&format!("sweeper-{}", self.fresh()));
        let sweeper_itself = Sweeper::new(name.clone(), clock);
        let process = Process {
            name,
            sweeper: sweeper_itself,
            store,
            stepped: false,
            skipped: Span::ZERO,
            beaconed_at: Span::ZERO,
        };
        self.sweepers[sweeper].process = Some(Box::new(process));
        let generation = self.sweepers[sweeper].generation;
        self.sweep(sweeper, generation).await
    }

    async fn sweep(&mut self, sweeper: usize, generation: u32) -> Result<(), Broken> {
        if self.sweepers[sweeper].generation != generation {
            return Ok(());
        }
        let after = match self.outage {
            true => Span::from_seconds(1),
            false => {
                self.make_pass(sweeper).await?;
                self.until_next_pass(sweeper).await?
            }
        };
        self.later(after, Happening::Sweep { sweeper, generation });
        Ok(())
    }

    /// A pass, what happens in the middle of it, and whether it did what it should.
    async fn make_pass(&mut self, sweeper: usize) -> Result<(), Broken> {
        let Some(mut process) = self.sweepers[sweeper].process.take() else { return Ok(()) };
        let held: BTreeSet<Name> = self.lanes.iter().filter(|lane| self.ledger.is_held(lane)).cloned().collect();
        let (intrusions, rival) = self.intrusions(sweeper);
        process.store.prepare(intrusions);
        let passed = pass(&mut process).await;
        let report = passed.map_err(|error| Broken::store(format!("a pass failed: {error}")))?;
        self.tally.passes += 1;
        if self.tally.passes > PASSES_MAX {
            let what = format!("more than {PASSES_MAX} passes in {}", self.elapsed());
            return Err(Broken { promise: Promise::DeadAreReaped, run: None, what });
        }
        self.tally.lost_races += report.lost_races;
        let (all_seen, now) = (process.store.seen(), self.log_now());
        for seen in &all_seen {
            self.note(seen)?;
            self.react(seen);
            if let (Command::Reap { run, .. }, Said::Refused { code, .. }) = (&seen.parcel.command, &seen.said) {
                self.ledger.note_put_off(*run, *code, now.max(self.ledger.latest_at()));
            }
        }
        if let Some(rival) = rival {
            self.sweepers[rival].process = process.store.back();
        }
        let mut stepped_in_pass = self.waiting_step.is_some();
        for intrusion in process.store.unused() {
            stepped_in_pass = false;
            self.late_intrusion(intrusion, rival).await?;
        }
        self.sweepers[sweeper].process = Some(process);
        for seen in &all_seen {
            if let Command::Beacon { process, .. } = &seen.parcel.command {
                self.note_beacon(process, seen)?;
            }
        }
        let sees_all = self.sweepers[sweeper].process.as_ref().is_some_and(|process| !process.stepped);
        if let Some(micros) = self.waiting_step.take() {
            self.stepped(micros, Some(sweeper));
        }
        if sees_all && !stepped_in_pass { self.ledger.check_pass(report.at, &held) } else { Ok(()) }
    }

    /// What is to happen in the middle of the next pass, if it reaps; and which other sweeper takes part.
    fn intrusions(&mut self, sweeper: usize) -> (Vec<Intrusion>, Option<usize>) {
        let mut intrusions = Vec::new();
        if self.random.chance(50) {
            intrusions.push(Intrusion::Advance(Span::from_micros(self.random.between(1, 1_000_000))));
        }
        if let Some(micros) = self.waiting_step {
            intrusions.push(Intrusion::Step(micros));
        }
        let over: BTreeSet<RunId> = self.ledger.over(self.log_now()).into_iter().map(|(run, ..)| run).collect();
        for executor in 0..self.executors.len() {
            let own = &self.executors[executor];
            let silent = own.work.as_ref().is_some_and(|work| over.contains(&work.report.run));
            // One whose time has come is heard of at the last moment.
            if self.random.chance(if silent { 40 } else { 3 })
                && let Some(command) = self.next_report(executor)
            {
                let from = Some((executor, self.executors[executor].generation));
                intrusions.push(Intrusion::Command(Parcel { from, command }));
            }
        }
        let rival = self.random.index(self.sweepers.len());
        let meets = rival != sweeper && !over.is_empty() && self.random.chance(40);
        let process = if meets { self.sweepers[rival].process.take() } else { None };
        let rival = process.is_some().then_some(rival);
        intrusions.extend(process.map(Intrusion::Pass));
        (intrusions, rival)
    }

    /// What should have come in the middle of a pass that reaped nothing comes after it, or not at all.
    async fn late_intrusion(&mut self, intrusion: Intrusion, rival: Option<usize>) -> Result<(), Broken> {
        match intrusion {
            Intrusion::Step(micros) => set_by(&self.clock, micros),
            Intrusion::Command(parcel) => self.deliver(parcel).await?,
            Intrusion::Pass(process) => {
                if let Some(rival) = rival {
                    self.sweepers[rival].process = Some(process);
                }
            }
            Intrusion::Advance(_) => {}
        }
        Ok(())
    }

    /// As [`lastbeat_sweeper::sweep_until`] has it, but at times at the very instant at which a run is due; and on a
    /// busy host, which wakes it as late as its promise allows: that is two and a half times its patience.
    async fn until_next_pass(&mut self, sweeper: usize) -> Result<Span, Broken> {
        let Some(process) = &self.sweepers[sweeper].process else { return Ok(Span::from_seconds(1)) };
        let patience = process.sweeper.patience();
        let promised = Span::from_micros(patience.as_micros() * 24 / 10);
        let left = promised.minus(self.elapsed().minus(process.beaconed_at));
        let due = process.store.next_due().await.map_err(|error| Broken::store(error.to_string()))?;
        let busy = Span::from_micros(self.random.between(patience.as_micros(), 3 * patience.as_micros()));
        let latest = busy.min(left);
        let Some(due) = due else { return Ok(latest) };
        let until_due = due.since(self.clock.now());
        if until_due > Span::ZERO && until_due < latest && self.random.chance(40) {
            return Ok(until_due);
        }
        Ok(until_due.plus(Span::from_millis(1)).min(latest).max(Span::from_millis(5)))
    }

    /// Notes that a process beaconed, and so recorded what it noticed: a step of the clock to the millisecond.
    fn note_beacon(&mut self, name: &Name, seen: &Seen) -> Result<(), Broken> {
        let elapsed = self.elapsed();
        let process = self.sweepers.iter_mut().filter_map(|slot| slot.process.as_mut()).find(|own| own.name == *name);
        let Some(process) = process else { return Ok(()) };
        let skipped = std::mem::take(&mut process.skipped);
        (process.stepped, process.beaconed_at) = (false, elapsed);
        let recorded = match &seen.said {
            Said::Done { service, .. } => service.iter().find_map(|fact| match fact.event {
                ServiceEvent::Deaf { from, to, cause: DeafCause::ClockStep, .. } => Some(to.since(from)),
                _ => None,
            }),
            _ => None,
        };
        let off = |found: Span| found.minus(skipped).max(skipped.minus(found)) > Span::from_millis(1);
        if skipped > CLOCK_STEP_MIN && recorded.is_none_or(off) {
            return Err(Broken::store(format!("{name} recorded {recorded:?} of a step of the clock by {skipped}")));
        }
        Ok(())
    }

    /// Notes that the clock was set, and to whom: in the middle of a pass the others may have recorded it already.
    fn stepped(&mut self, micros: i64, in_pass_of: Option<usize>) {
        // While log time stands still it is not known how far a step takes it.
        let forward = Span::from_micros(u64::try_from(micros).unwrap_or(0));
        let plain = self.behind == 0 && micros > 0;
        self.behind = (self.behind - micros).max(0);
        for (index, slot) in self.sweepers.iter_mut().enumerate() {
            let Some(process) = &mut slot.process else { continue };
            let tells = plain && process.beaconed_at > Span::ZERO && in_pass_of.is_none_or(|own| own == index);
            process.skipped = if tells { process.skipped.plus(forward) } else { Span::ZERO };
            process.stepped |= forward > CLOCK_STEP_MIN;
        }
    }

    // Faults ----------------------------------------------------------------------------------------------------------

    /// Whether a process that listens would notice what happens to the store or to the clock.
    fn is_listened(&self) -> bool {
        self.sweepers.iter().any(|slot| slot.process.is_some())
    }

    async fn go_wrong(&mut self, fault: Fault) -> Result<(), Broken> {
        let environment = matches!(fault, Fault::Outage { .. } | Fault::Step { .. } | Fault::Repair);
        let own = matches!(fault, Fault::Crash { .. } | Fault::Pause { .. } | Fault::SweeperCrash { .. });
        let own = own || matches!(fault, Fault::SweeperStop { .. });
        if (self.outage && !own) || (environment && !self.is_listened()) {
            return Ok(());
        }
        self.tally.count(fault.kind());
        match fault {
            Fault::Crash { executor, back_after } => {
                self.excuse(executor);
                let own = &mut self.executors[executor];
                (own.generation, own.paused, own.work) = (own.generation + 1, false, None);
                let generation = own.generation;
                self.later(back_after, Happening::Wake { executor, generation });
            }
            Fault::Pause { executor, lasting } => {
                self.excuse(executor);
                let own = &mut self.executors[executor];
                (own.generation, own.paused) = (own.generation + 1, true);
                let generation = own.generation;
                self.later(lasting, Happening::Resume { executor, generation });
            }
            Fault::SweeperCrash { sweeper, back_after } => self.end_sweeper(sweeper, false, back_after).await?,
            Fault::SweeperStop { sweeper, back_after } => self.end_sweeper(sweeper, true, back_after).await?,
            Fault::Outage { lasting } => {
                self.outage = true;
                self.later(lasting, Happening::OutageEnds);
            }
            Fault::Step { micros, in_pass: true } => self.waiting_step = Some(micros),
            Fault::Step { micros, in_pass: false } => {
                set_by(&self.clock, micros);
                self.stepped(micros, None);
            }
            Fault::Repair => self.repair(),
            Fault::Compact { older_than } => self.compact(older_than).await?,
            _ => self.meddle(fault).await?,
        }
        Ok(())
    }

    fn repair(&mut self) {
        let micros = self.behind;
        set_by(&self.clock, micros);
        self.stepped(micros, None);
    }

    /// Compacts, and tells the ledger of the events that this left behind: nothing else may be another one.
    async fn compact(&mut self, older_than: Span) -> Result<(), Broken> {
        let failed = |error: StoreError| Broken::store(format!("a compaction failed: {error}"));
        let end = self.desk.log_end().await.map_err(failed)?;
        let bounds = Bounds::older_than(self.desk.as_ref(), older_than, 0).await.map_err(failed)?;
        compact_all(self.desk.as_ref(), bounds, |_| true).await.map_err(failed)?;
        for entry in self.desk.feed(end, 100).await.map_err(failed)? {
            match entry.fact {
                FeedFact::Service(line) => match Line::parse(&line) {
                    Ok(Line::Service(recorded)) => self.ledger.note_service(recorded),
                    other => return Err(Broken::store(format!("a compaction left {other:?} behind"))),
                },
                FeedFact::Run(fact) => return Err(Broken::store(format!("a compaction left {fact:?} behind"))),
            }
        }
        Ok(())
    }

    async fn end_sweeper(&mut self, sweeper: usize, cleanly: bool, back_after: Span) -> Result<(), Broken> {
        let slot = &mut self.sweepers[sweeper];
        let Some(mut process) = slot.process.take() else { return Ok(()) };
        slot.generation += 1;
        if cleanly && !self.outage {
            let stopped = process.sweeper.stop(process.store.as_ref()).await;
            stopped.map_err(|error| Broken::store(format!("a sweeper could not stop: {error}")))?;
            for seen in process.store.seen() {
                self.note(&seen)?;
            }
        }
        process.store.close().await;
        self.later(back_after, Happening::SweeperStart { sweeper });
        Ok(())
    }

    /// What people do.
    async fn meddle(&mut self, fault: Fault) -> Result<(), Broken> {
        let (by, reason) = (name("somebody"), None);
        let in_flight: Vec<RunId> = self.ledger.in_flight().map(|(run, _)| run).collect();
        let any = |random: &mut Random, runs: &[RunId]| (!runs.is_empty()).then(|| runs[random.index(runs.len())]);
        let command = match fault {
            Fault::Policy { lane } => {
                let lane = self.lanes[lane].clone();
                let terms = Box::new(other_terms(&mut self.random, &self.ledger.terms(&lane, Timestamp::MAX)));
                Some(Command::SetPolicy { lane, terms, expected_version: None, by: None })
            }
            Fault::Cancel => {
                any(&mut self.random, self.ledger.runs()).map(|run| Command::RequestCancel { run, by, reason })
            }
            Fault::Requeue => {
                any(&mut self.random, &self.ledger.requeueable()).map(|run| Command::Requeue { run, by, reason })
            }
            Fault::ReapByHand => {
                // Whoever does that looks for one that is shown as lapsed, whatever keeps the sweepers from it.
                let over: Vec<RunId> = self.ledger.over(self.log_now()).into_iter().map(|(run, ..)| run).collect();
                let runs = if over.is_empty() { &in_flight } else { &over };
                any(&mut self.random, runs).map(|run| Command::Reap { run, by, by_hand: Some(ByHand { reason }) })
            }
            Fault::Submit { lane } => {
                let (run, lane) = (run_id(u128::from(self.fresh())), self.lanes[lane].clone());
                Some(Command::Create { run, spec: Box::new(RunSpec::of_lane(lane)), claim: None })
            }
            Fault::ReleaseHold { lane } => Some(Command::ReleaseHold { lane: self.lanes[lane].clone(), by, reason }),
            Fault::ForgedReport => any(&mut self.random, self.ledger.runs()).map(|run| self.forge(run)),
            _ => None,
        };
        if let Some(command) = command {
            let seen = self.say(command).await?;
            if let (Command::Reap { run, .. }, Said::Refused { code, .. }) = (&seen.parcel.command, &seen.said) {
                let now = self.log_now();
                self.ledger.note_put_off(*run, *code, now);
            }
        }
        Ok(())
    }

    /// A report that nobody who holds the run would send.
    fn forge(&mut self, run: RunId) -> Command {
        let holder = self.ledger.holder(run);
        let attempt = holder.as_ref().map_or(1, |holder| holder.attempt);
        let (claim, earlier) = ("forged".parse().unwrap(), self.random.chance(50) && attempt > 1);
        let report = match (earlier, holder) {
            (true, Some(_)) => Report { run, attempt: attempt - 1, claim: None, executor: None },
            _ => Report { run, attempt, claim: Some(claim), executor: None },
        };
        match self.random.between(0, 2) {
            0 => Command::Heartbeat { report, progress: None },
            1 => Command::Complete { report, output: None },
            _ => Command::Start(report),
        }
    }

    // The end ---------------------------------------------------------------------------------------------------------

    /// Everybody who is alive finishes, the others stay silent for good; then a sweeper has all the time it needs.
    async fn quiet_time(&mut self) -> Result<(), Broken> {
        (self.outage, self.waiting_step) = (false, None);
        for executor in 0..self.executors.len() {
            let own = &mut self.executors[executor];
            let (alive, from) = (!own.paused, Some((executor, own.generation)));
            let Some(report) = own.work.take().map(|work| work.report) else { continue };
            if alive && self.random.chance(70) {
                self.deliver(Parcel { from, command: Command::Complete { report, output: None } }).await?;
            } else {
                self.ledger.excuse(&report);
            }
        }
        self.repair();
        for lane in self.lanes.clone() {
            let mut terms = Box::new(self.ledger.terms(&lane, Timestamp::MAX));
            if terms.mode == Mode::Shadow {
                terms.mode = Mode::Enforce;
                self.say(Command::SetPolicy { lane, terms, expected_version: None, by: None }).await?;
            }
        }
        let sweeper = self.random.index(self.sweepers.len());
        if self.sweepers[sweeper].process.is_none() {
            self.start_sweeper(sweeper).await?;
        }
        // One that has not passed since the clock was set would excuse everybody once more when it does.
        for other in (0..self.sweepers.len()).filter(|other| *other != sweeper) {
            self.end_sweeper(other, false, Span::ZERO).await?;
        }
        let limit = self.log_now().plus(self.patience_at_the_end());
        while self.ledger.in_flight().next().is_some() {
            if self.log_now() > limit {
                let (run, _) = self.ledger.in_flight().next().unwrap();
                return Err(Broken::new(Promise::DeadAreReaped, run, "it is still in flight long after the end"));
            }
            let after = self.until_next_pass(sweeper).await?;
            self.clock.advance(after);
            self.make_pass(sweeper).await?;
        }
        Ok(())
    }

    /// By when every run must have been reaped: the longest window, a hold in which it may have to wait, the minute
    /// for which a run may be put off at the most, and a few turns of a drain.
    fn patience_at_the_end(&self) -> Span {
        let terms = self.lanes.iter().map(|lane| self.ledger.terms(lane, Timestamp::MAX));
        let longest = terms.map(|terms| terms.coarse_ttl.max(terms.heartbeat_window).plus(terms.hold_max)).max();
        longest.unwrap_or(Span::ZERO).plus(Span::from_seconds(90))
    }

    async fn check_end(&mut self) -> Result<(), Broken> {
        let verified = self.desk.verify(&|_, _| ()).await.map_err(|error| Broken::store(error.to_string()))?;
        if let Some(damage) = verified.damage.first() {
            return Err(Broken { promise: Promise::SoundStore, run: damage.run, what: format!("damage: {damage}") });
        }
        let (log, told) = (self.exported().await?, self.ledger.lines());
        let differs = log.iter().zip(&told).find(|(log, told)| log != told);
        if let Some((log, told)) = differs {
            return Err(Broken::store(format!("the log says {log}, the answer was {told}")));
        }
        if log.len() != told.len() {
            return Err(Broken::store(format!("the log has {} facts, {} were answered", log.len(), told.len())));
        }
        Ok(())
    }

    /// Returns the lines of the log.
    pub(crate) async fn exported(&self) -> Result<Vec<String>, Broken> {
        let mut lines = Vec::new();
        let mut sink = |line: &str| {
            lines.push(line.to_owned());
            Ok(())
        };
        self.desk.export(&mut sink).await.map_err(|error| Broken::store(error.to_string()))?;
        Ok(lines)
    }

    /// Closes every store.
    pub(crate) async fn close(&mut self) {
        for slot in &mut self.sweepers {
            if let Some(process) = slot.process.take() {
                process.store.close().await;
            }
        }
        self.desk.close().await;
    }
}
