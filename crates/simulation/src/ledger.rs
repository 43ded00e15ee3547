//! The promises, held against what the store says.
//!
//! The ledger writes down every fact that an answer brought and reads it naively: it scans streams from the end, adds
//! up deaf spans one by one, and shares no code with the rule, the listening record or the decisions. Who beat on
//! time it is told by the schedule. At the end the exported log must be what was written down, and nothing else.

use std::collections::{BTreeMap, BTreeSet};

use lastbeat_domain::decide::{Command, Report};
use lastbeat_domain::event::{DeafCause, Evidence, ReleaseCause};
use lastbeat_domain::policy::{LateCompletion, Mode};
use lastbeat_domain::{
    ClaimId, Name, Recorded, RefusalCode, Rule, RunEvent, RunId, ServiceEvent, ServiceRecorded, Span, Terms, Timestamp,
};

use crate::between::{Said, Seen};

/// A promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    /// Nobody is reaped without a charged silence over the window in force, by the rule that the gate names.
    NoReapWithoutCharge,
    /// Nobody who beats on time while the store can be reached is reaped for silence.
    NoReapOnTime,
    /// Nobody is reaped while nobody listens, nor after a step of the clock by who noticed it, until it is recorded.
    NoReapWhileDeaf,
    /// An attempt ends once, a late completion aside, and nothing is taken from anybody but who holds the run.
    OneHolder,
    /// The first pass that begins after a run lapsed reaps it.
    DeadAreReaped,
    /// Projection, index and log agree; answers are what is in the log; no command fails.
    SoundStore,
}

/// A promise that was not kept.
#[derive(Clone, Debug)]
pub struct Broken {
    /// The promise.
    pub promise: Promise,
    /// The run that it was about.
    pub run: Option<RunId>,
    /// What happened.
    pub what: String,
}

impl Broken {
    pub(crate) fn new(promise: Promise, run: RunId, what: impl Into<String>) -> Broken {
        Broken { promise, run: Some(run), what: what.into() }
    }

    pub(crate) fn store(what: impl Into<String>) -> Broken {
        Broken { promise: Promise::SoundStore, run: None, what: what.into() }
    }
}

/// Who holds a run, or held it last.
#[derive(Clone, Debug)]
pub(crate) struct Holder {
    pub(crate) attempt: u32,
    pub(crate) claim: Option<ClaimId>,
    /// Whether the attempt has not ended.
    pub(crate) in_flight: bool,
    /// What ended it, if anything did.
    ended_by: Option<&'static str>,
    claimed_at: Timestamp,
    claimed_version: u64,
    /// The last heartbeat of the attempt: instant and version.
    heard: Option<(Timestamp, u64)>,
    /// The heartbeat of the attempt that last told of other progress than the one before it that told of any.
    progressed: Option<(Timestamp, u64)>,
}

impl Holder {
    fn quoted_by(&self, report: &Report) -> bool {
        report.attempt == self.attempt && (report.claim.is_none() || report.claim == self.claim)
    }
}

/// What is held against a run.
struct Charge {
    rule: Rule,
    /// The version of the fact from which it is charged.
    version: u64,
    window: Span,
    charged: Span,
}

impl Charge {
    /// The microseconds that are left, less than none once it is over.
    fn left(&self) -> i128 {
        i128::from(self.window.as_micros()) - i128::from(self.charged.as_micros())
    }
}

struct History {
    lane: Name,
    facts: Vec<Recorded>,
}

/// How often a lapsed run was put off, and until when.
#[derive(Clone, Copy, Default)]
struct PutOff {
    delay: Span,
    until: Option<Timestamp>,
}

/// All facts, and what the schedule knows of them.
#[derive(Default)]
pub(crate) struct Ledger {
    service: Vec<ServiceRecorded>,
    order: Vec<RunId>,
    runs: BTreeMap<RunId, History>,
    /// The attempts whose executors beat too late, or stopped, or never beat.
    late: BTreeSet<(RunId, u32)>,
    put_off: BTreeMap<RunId, PutOff>,
    latest_at: Option<Timestamp>,
    pub(crate) reaps: BTreeMap<Rule, u64>,
    pub(crate) late_completions: u64,
    pub(crate) late_signals: u64,
}

impl Ledger {
    /// Notes that the executor of an attempt does not beat on time.
    pub(crate) fn excuse(&mut self, report: &Report) {
        self.late.insert((report.run, report.attempt));
    }

    /// Returns the latest instant that any answer brought.
    pub(crate) fn latest_at(&self) -> Timestamp {
        self.latest_at.unwrap_or(Timestamp::MIN)
    }

    /// Writes down an answer, and checks what it says.
    pub(crate) fn take(&mut self, seen: &Seen) -> Result<(), Broken> {
        let command = &seen.parcel.command;
        match &seen.said {
            Said::Failed(error) => {
                let what = format!("{command:?} failed: {error}");
                Err(Broken { promise: Promise::SoundStore, run: command.run(), what })
            }
            Said::Refused { code, left_behind } => {
                self.check_refusal(command, *code)?;
                for fact in left_behind {
                    let known = self.runs.get(&fact.run).map_or(0, |history| history.facts.len() as u64);
                    if fact.version > known {
                        self.append(fact)?;
                    }
                }
                Ok(())
            }
            Said::Done { appended, service, .. } => {
                self.check_acceptance(command, appended)?;
                for fact in appended {
                    self.append(fact)?;
                }
                for fact in service {
                    self.check_deaf(command, fact)?;
                    self.note_service(fact.clone());
                }
                Ok(())
            }
        }
    }

    /// Who holds a run: found by going back to the last claim.
    pub(crate) fn holder(&self, run: RunId) -> Option<Holder> {
        let history = self.runs.get(&run)?;
        let (mut heard, mut ended_by, mut waits) = (None, None, false);
        // The progress that was told of, the latest first.
        let mut told = Vec::new();
        for fact in history.facts.iter().rev() {
            match &fact.event {
                RunEvent::Claimed { attempt, claim, .. } => {
                    let changed = |pair: &&[(&serde_json::Value, Timestamp, u64)]| pair[0].0 != pair[1].0;
                    let change = told.windows(2).find(changed).map(|pair| pair[0]).or(told.last().copied());
                    return Some(Holder {
                        progressed: change.map(|(_, at, version)| (at, version)),
                        attempt: *attempt,
                        claim: claim.clone(),
                        in_flight: ended_by.is_none() && !waits,
                        ended_by,
                        claimed_at: fact.recorded_at,
                        claimed_version: fact.version,
                        heard,
                    });
                }
                RunEvent::Heartbeat { progress, .. } => {
                    heard = heard.or(Some((fact.recorded_at, fact.version)));
                    told.extend(progress.iter().map(|progress| (progress, fact.recorded_at, fact.version)));
                }
                RunEvent::Requeued { .. } => waits = true,
                event if is_ending(event) => ended_by = ended_by.or(Some(event.type_name())),
                _ => {}
            }
        }
        None
    }

    /// Returns the runs that somebody holds, with their holders.
    pub(crate) fn in_flight(&self) -> impl Iterator<Item = (RunId, Holder)> + '_ {
        self.order.iter().filter_map(|run| Some((*run, self.holder(*run).filter(|holder| holder.in_flight)?)))
    }

    /// Returns the runs that ended by a failure or a reap and wait for nothing.
    pub(crate) fn requeueable(&self) -> Vec<RunId> {
        let last = |run: &&RunId| {
            let facts = self.runs[*run].facts.iter().rev();
            let last = facts.map(|fact| fact.event.type_name()).find(|name| *name != "late_signal");
            matches!(last, Some("timed_out" | "failed"))
        };
        self.order.iter().filter(last).copied().collect()
    }

    /// Returns all runs in the order of their creation.
    pub(crate) fn runs(&self) -> &[RunId] {
        &self.order
    }

    /// Returns the terms of a lane that were in force at an instant.
    pub(crate) fn terms(&self, lane: &Name, at: Timestamp) -> Terms {
        let set = self.service.iter().rev().find_map(|recorded| match &recorded.event {
            ServiceEvent::PolicySet { lane: named, policy, .. } if named == lane && recorded.recorded_at <= at => {
                Some(policy.clone())
            }
            _ => None,
        });
        set.unwrap_or_default()
    }

    /// Says whether a lane is held or drained.
    pub(crate) fn is_held(&self, lane: &Name) -> bool {
        let state = self.service.iter().rev().find_map(|recorded| match &recorded.event {
            ServiceEvent::ReapingHeld { lane: named, .. } if named == lane => Some(true),
            ServiceEvent::ReapingReleased { lane: named, cause, .. } if named == lane => {
                Some(*cause != ReleaseCause::Recovered)
            }
            _ => None,
        });
        state.unwrap_or(false)
    }

    /// Returns the runs that are over their window at an instant, by all that is known by now.
    pub(crate) fn over(&self, at: Timestamp) -> Vec<(RunId, Holder, Rule)> {
        let over = |(run, holder): (RunId, Holder)| {
            let Charge { rule, window, charged, .. } = self.charge(run, &holder, at, Timestamp::MAX);
            (charged > window).then_some((run, holder, rule))
        };
        self.in_flight().filter_map(over).collect()
    }

    /// Returns the lane of a run.
    pub(crate) fn lane(&self, run: RunId) -> &Name {
        &self.runs[&run].lane
    }

    /// After a pass that began at `at`: nobody is in flight who was over the window then. Lanes in `held` may be put
    /// off.
    ///
    /// So a dead run is reaped within its window, in listening time, and the time until the next pass. The
    /// sweeper wakes a millisecond after the run lapses, and if it doesn't, the interval later (five seconds; ten on
    /// the busy hosts here). No promise of a beacon comes into it, since the beacon that ends a gap is part of the
    /// pass; the time until a crashed sweeper is replaced is no listening time.
    pub(crate) fn check_pass(&self, at: Timestamp, held: &BTreeSet<Name>) -> Result<(), Broken> {
        for (run, holder, rule) in self.over(at) {
            let lane = self.lane(run);
            let shadow = self.terms(lane, at).mode == Mode::Shadow;
            let waits = rule == Rule::HeartbeatSilence && (held.contains(lane) || self.is_held(lane));
            let put_off = self.put_off.get(&run).and_then(|put_off| put_off.until).is_some_and(|until| at < until);
            if !(shadow || waits || put_off) {
                let Charge { window, charged, .. } = self.charge(run, &holder, at, Timestamp::MAX);
                let what =
                    format!("a pass began at {at}, when it was charged {charged} of {window}, and left it alone");
                return Err(Broken::new(Promise::DeadAreReaped, run, what));
            }
        }
        Ok(())
    }

    /// Notes that a sweeper was not allowed to reap a run, so that it comes back to it later: after a second at first,
    /// then after twice as long each time, up to a minute.
    pub(crate) fn note_put_off(&mut self, run: RunId, code: RefusalCode, now: Timestamp) {
        if matches!(code, RefusalCode::Deaf | RefusalCode::Held | RefusalCode::Shadow) {
            let put_off = self.put_off.entry(run).or_default();
            put_off.delay = put_off.delay.times(2).clamp(Span::from_seconds(1), Span::from_seconds(60));
            // The others are re-armed when the lane gets a new policy or is released.
            if code == RefusalCode::Deaf {
                put_off.until = Some(now.plus(put_off.delay));
            }
        }
    }

    /// Returns the lines of the log, as they were answered.
    pub(crate) fn lines(&self) -> Vec<String> {
        let service = self.service.iter().map(|recorded| serde_json::to_string(recorded).unwrap());
        let facts = self.order.iter().flat_map(|run| &self.runs[run].facts);
        service.chain(facts.map(|fact| serde_json::to_string(fact).unwrap())).collect()
    }

    /// Returns what there is to know of a run, for people: its facts between those of the service.
    pub(crate) fn history(&self, run: RunId) -> Vec<String> {
        let mut lines: Vec<(Timestamp, String)> =
            self.service.iter().map(|fact| (fact.recorded_at, serde_json::to_string(fact).unwrap())).collect();
        let facts = self.runs.get(&run).map_or(&[][..], |history| &history.facts);
        lines.extend(facts.iter().map(|fact| (fact.recorded_at, serde_json::to_string(fact).unwrap())));
        lines.sort_by_key(|(at, _)| *at);
        lines.into_iter().map(|(_, line)| line).collect()
    }

    /// What may be charged at an instant by what was known at another: by the rule that the gate names, or for want of
    /// progress if that leaves less time.
    fn charge(&self, run: RunId, holder: &Holder, at: Timestamp, known_at: Timestamp) -> Charge {
        let terms = self.terms(self.lane(run), at);
        let charge = |rule, (basis, version): (Timestamp, u64), window| {
            let charged = at.since(basis).minus(self.deaf(basis, at, known_at));
            Charge { rule, version, window, charged }
        };
        let main = match holder.heard {
            Some(heard) => charge(Rule::HeartbeatSilence, heard, terms.heartbeat_window),
            None => charge(Rule::CoarseTtl, (holder.claimed_at, holder.claimed_version), terms.coarse_ttl),
        };
        let stall = terms.stall_window.zip(holder.progressed);
        match stall.map(|(window, progressed)| charge(Rule::NoProgress, progressed, window)) {
            // Time is charged to both alike, so which has less of it left does not depend on when they are asked.
            Some(stall) if stall.left() < main.left() => stall,
            _ => main,
        }
    }

    /// How much of the time between two instants lies in spans that were recorded as deaf by a third one.
    fn deaf(&self, from: Timestamp, to: Timestamp, known_at: Timestamp) -> Span {
        let spans = self.service.iter().filter(|recorded| recorded.recorded_at <= known_at);
        let mut spans: Vec<(Timestamp, Timestamp)> = spans
            .filter_map(|recorded| match recorded.event {
                ServiceEvent::Deaf { from, to, .. } => Some((from, to)),
                _ => None,
            })
            .collect();
        spans.sort_unstable();
        let (mut counted_to, mut sum) = (from, Span::ZERO);
        for (start, end) in spans {
            let (start, end) = (start.max(counted_to), end.min(to));
            if start < end {
                sum = sum.plus(end.since(start));
                counted_to = end;
            }
        }
        sum
    }

    /// Writes down a service event.
    pub(crate) fn note_service(&mut self, recorded: ServiceRecorded) {
        self.note_latest(recorded.recorded_at);
        self.service.push(recorded);
    }

    fn note_latest(&mut self, at: Timestamp) {
        self.latest_at = Some(self.latest_at().max(at));
    }

    fn append(&mut self, fact: &Recorded) -> Result<(), Broken> {
        let run = fact.run;
        if let RunEvent::Created { lane, .. } = &fact.event {
            self.order.push(run);
            self.runs.insert(run, History { lane: lane.clone(), facts: Vec::new() });
        }
        let Some(history) = self.runs.get(&run) else {
            return Err(Broken::new(Promise::SoundStore, run, "it was not created"));
        };
        let (version, last) = (history.facts.len() as u64 + 1, history.facts.last().map(|fact| fact.recorded_at));
        if fact.version != version || last.is_some_and(|last| fact.recorded_at <= last) {
            return Err(Broken::new(Promise::SoundStore, run, format!("{fact:?} follows on version {}", version - 1)));
        }
        self.check_fact(fact)?;
        match &fact.event {
            RunEvent::TimedOut { rule, .. } => *self.reaps.entry(*rule).or_default() += 1,
            RunEvent::Completed { late: true, .. } => self.late_completions += 1,
            RunEvent::LateSignal { .. } => self.late_signals += 1,
            _ => {}
        }
        if let Some(history) = self.runs.get_mut(&run) {
            history.facts.push(fact.clone());
        }
        self.note_latest(fact.recorded_at);
        Ok(())
    }

    fn check_fact(&self, fact: &Recorded) -> Result<(), Broken> {
        let holder = self.holder(fact.run);
        let held = holder.as_ref().filter(|holder| holder.in_flight);
        let last_attempt = holder.as_ref().map_or(0, |holder| holder.attempt);
        let broken = |what: &str| Err(Broken::new(Promise::OneHolder, fact.run, format!("{what}: {fact:?}")));
        match &fact.event {
            RunEvent::Claimed { attempt, .. } if held.is_some() || *attempt != last_attempt + 1 => {
                broken("claimed while somebody holds it, or as a wrong attempt")
            }
            RunEvent::Completed { attempt, late: true, .. } => {
                let last =
                    holder.as_ref().filter(|last| last.attempt == *attempt && last.ended_by == Some("timed_out"));
                if last.is_none() { broken("a late completion of what was not reaped last") } else { Ok(()) }
            }
            RunEvent::TimedOut { rule, evidence, .. } => {
                let Some(held) = held else { return broken("reaped while nobody holds it") };
                self.check_reap(fact, held, *rule, evidence.as_deref())
            }
            RunEvent::Completed { attempt, .. }
            | RunEvent::Failed { attempt, .. }
            | RunEvent::Heartbeat { attempt, .. }
            | RunEvent::Started { attempt }
                if held.is_none_or(|held| held.attempt != *attempt) =>
            {
                broken("of an attempt that does not hold it")
            }
            RunEvent::Cancelled { attempt, .. } if held.map_or(0, |held| held.attempt) != *attempt => {
                broken("cancelled by an attempt that does not hold it")
            }
            _ => Ok(()),
        }
    }

    fn check_reap(
        &self,
        fact: &Recorded,
        held: &Holder,
        rule: Rule,
        evidence: Option<&Evidence>,
    ) -> Result<(), Broken> {
        let (run, at) = (fact.run, fact.recorded_at);
        let Charge { rule: expected, version: basis, window, charged } = self.charge(run, held, at, at);
        let broken = |promise, what: String| Err(Broken::new(promise, run, format!("{what}: {fact:?}")));
        if rule != expected {
            return broken(Promise::NoReapWithoutCharge, format!("{expected} is what applies"));
        }
        if charged <= window {
            return broken(Promise::NoReapWithoutCharge, format!("it was charged {charged:?} of {window:?}"));
        }
        let told = evidence.map(|told| (told.basis.version, told.window, told.charged));
        if told != Some((basis, window, charged)) {
            return broken(Promise::NoReapWithoutCharge, format!("the evidence should be {charged:?} of {window:?}"));
        }
        if rule == Rule::HeartbeatSilence && !self.late.contains(&(run, held.attempt)) {
            return broken(Promise::NoReapOnTime, "its executor beat on time".to_owned());
        }
        Ok(())
    }

    /// Nobody was reaped while a gap was open, nor by a process that had yet to record a step of the clock.
    fn check_deaf(&self, command: &Command, fact: &ServiceRecorded) -> Result<(), Broken> {
        let ServiceEvent::Deaf { from, to, promised_until, cause } = fact.event else { return Ok(()) };
        let teller = if let Command::Beacon { process, .. } = command { Some(process) } else { None };
        let too_early = |reap: &&Recorded| match &reap.event {
            RunEvent::TimedOut { evidence, .. } => match cause {
                DeafCause::Gap => promised_until < reap.recorded_at && reap.recorded_at < to,
                DeafCause::ClockStep => {
                    let sweeper = evidence.as_ref().map(|evidence| &evidence.sweeper);
                    from < reap.recorded_at && reap.recorded_at < to && sweeper == teller
                }
            },
            _ => false,
        };
        match self.runs.values().flat_map(|history| &history.facts).find(too_early) {
            None => Ok(()),
            Some(reap) => {
                let what = format!("reaped in what turned out to be deaf time, {fact:?}: {reap:?}");
                Err(Broken::new(Promise::NoReapWhileDeaf, reap.run, what))
            }
        }
    }

    /// A report that was taken is one of who holds the run, or a late completion.
    fn check_acceptance(&self, command: &Command, appended: &[Recorded]) -> Result<(), Broken> {
        let Some(report) = report_of(command).filter(|_| !appended.is_empty()) else { return Ok(()) };
        let holder = self.holder(report.run).filter(|holder| holder.quoted_by(report));
        let adopted = matches!(appended[0].event, RunEvent::Completed { late: true, .. });
        let adopts = self.terms(self.lane(report.run), self.latest_at()).late_completion == LateCompletion::Adopt;
        if holder.is_some_and(|holder| holder.in_flight || (adopted && adopts)) {
            return Ok(());
        }
        let what = format!("{command:?} was taken, and its sender does not hold the run");
        Err(Broken::new(Promise::OneHolder, report.run, what))
    }

    /// A report that was refused is not one of who holds the run.
    fn check_refusal(&self, command: &Command, code: RefusalCode) -> Result<(), Broken> {
        let Some(report) = report_of(command) else { return Ok(()) };
        let holder = self.holder(report.run).filter(|holder| holder.in_flight && holder.quoted_by(report));
        if holder.is_none() || code == RefusalCode::NotCancelRequested {
            return Ok(());
        }
        let what = format!("{command:?} was refused as {}, and its sender holds the run", code.as_str());
        Err(Broken::new(Promise::OneHolder, report.run, what))
    }
}

/// The report that a command is, if it is one.
pub(crate) fn report_of(command: &Command) -> Option<&Report> {
    match command {
        Command::Start(report)
        | Command::AcknowledgeCancel(report)
        | Command::Heartbeat { report, .. }
        | Command::Complete { report, .. }
        | Command::Fail { report, .. } => Some(report),
        _ => None,
    }
}

fn is_ending(event: &RunEvent) -> bool {
    matches!(
        event,
        RunEvent::Completed { .. } | RunEvent::Failed { .. } | RunEvent::TimedOut { .. } | RunEvent::Cancelled { .. }
    )
}
