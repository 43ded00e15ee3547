//! A batch of commands, decided on what was read under the store's locks.
//!
//! Nothing here reads or writes. What a backend read comes in as [`Ground`]; what it is to write goes out as
//! [`Writes`]. So what is decided is the same in every backend, and each reads and writes in the way that suits it.
//!
//! A batch names each run, unique key and idempotency key at most once, and a claim never picks a run that the batch
//! names: so its commands could have come in any order.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use lastbeat_domain::decide::{Command, Context, CursorMove, IdempotencyKey, Refusal, RefusalCode};
use lastbeat_domain::event::{Event, RunEvent, ServiceEvent};
use lastbeat_domain::hold::{HoldState, Pace, turn};
use lastbeat_domain::listening::{self, Beacon, BeaconRole, ClockSample, ClockStep, Promise, clock_step};
use lastbeat_domain::{LanePolicy, Listening, Name, Recorded, Run, RunId, ServiceRecorded, Span, Timestamp, decide};
use serde_json::Value;

use crate::error::StoreError;
use crate::idempotency::{FirstAnswer, Known, fingerprint};
use crate::log::{BeatsRow, EventRow, SegmentRow};
use crate::observe::Noted;
use crate::packing::{self, Beat, PackingError};
use crate::service::ServiceLog;
use crate::{Answer, Heard, Judged, Outcome};

/// How long a lapsed run that may not be reaped is put off at first, and at the most: doubled in between.
const DELAY_MIN: Span = Span::from_seconds(1);
const DELAY_MAX: Span = Span::from_seconds(60);

/// A run of the projection with its number inside the store and its tail.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RunRow {
    pub(crate) number: i64,
    pub(crate) run: Run,
    /// The plain heartbeats that are in no segment yet, in rising order.
    pub(crate) tail: Result<Vec<Beat>, PackingError>,
}

/// The end of the log: the latest instant that the store holds, and the last numbers that were given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) latest_at: Timestamp,
    pub(crate) position: i64,
    pub(crate) beat_position: i64,
    pub(crate) run: i64,
}

/// The clocks, read under the lock: boottime, the clock of log time, boottime.
pub(crate) type Clocks = (Span, Timestamp, Span);

/// How far the drain of a lane has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LanePace {
    /// From when its next run may be reaped.
    pub(crate) reap_at: Option<Timestamp>,
    /// The last turn that was given to a run.
    pub(crate) turn_at: Option<Timestamp>,
}

/// What was read for a batch, beside the service log and the end of the log.
#[derive(Debug, Default)]
pub(crate) struct Ground {
    /// The runs that the commands name, and those that hold a unique key.
    pub(crate) runs: HashMap<RunId, RunRow>,
    /// The runs that could not be had, since another transaction is at work on them.
    pub(crate) busy: BTreeSet<RunId>,
    /// For the claims among the commands, by their index, the run that each is to have.
    pub(crate) picked: HashMap<usize, RunRow>,
    /// What the picked runs are to work on.
    pub(crate) inputs: HashMap<RunId, Value>,
    /// For lanes that are to be re-armed the next page of their open runs.
    pub(crate) pages: HashMap<Name, Vec<RunRow>>,
    /// The open runs that hold the unique keys which the commands need.
    pub(crate) key_holders: HashMap<Name, RunId>,
    /// By how much runs were put off, by their number.
    pub(crate) delays: HashMap<i64, Span>,
    /// How far the drains of lanes have come.
    pub(crate) paces: HashMap<Name, LanePace>,
    /// The first answers to idempotency keys.
    pub(crate) answered: HashMap<IdempotencyKey, Known>,
}

/// What a batch writes.
#[derive(Debug, Default)]
pub(crate) struct Writes {
    pub(crate) events: Vec<EventRow>,
    pub(crate) segments: Vec<SegmentRow>,
    pub(crate) beats: Option<BeatsRow>,
    /// The runs of which nothing changed but what a plain heartbeat changes.
    pub(crate) beaten: Vec<RunRow>,
    /// The runs that are to be written as a whole.
    pub(crate) runs: Vec<RunRow>,
    /// When runs are to be looked at next, and by how much they were put off; `None`: not at all.
    pub(crate) due: BTreeMap<i64, Option<(Timestamp, Span)>>,
    /// The lanes that were named.
    pub(crate) lanes: BTreeSet<Name>,
    /// After which run the re-arming of a lane is to go on; `None`: it is through.
    pub(crate) rearm: BTreeMap<Name, Option<i64>>,
    pub(crate) paces: BTreeMap<Name, LanePace>,
    /// All beacons, if one changed.
    pub(crate) beacons: Option<Vec<Beacon>>,
    /// How cursors are moved.
    pub(crate) cursors: BTreeMap<Name, CursorWrite>,
    pub(crate) answers: Vec<(IdempotencyKey, FirstAnswer)>,
}

/// How a cursor is moved. Another process may have moved it meanwhile, so what is written depends on what is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CursorWrite {
    /// Where it begins, if there is none.
    pub(crate) begin: Option<i64>,
    /// Where it is moved to then, if it is behind.
    pub(crate) advance: Option<i64>,
}

/// A batch that is being decided.
pub(crate) struct Batch {
    ground: Ground,
    service: Arc<ServiceLog>,
    listening: Arc<Listening>,
    head: Head,
    /// The instant of the commit, which all its plain heartbeats share.
    beats_at: Timestamp,
    /// The plain heartbeats: run number and version.
    beats: Vec<(i64, u64)>,
    /// The clocks as they were read for this transaction.
    sample: ClockSample,
    /// A step of the clock since this process's last beacon.
    clock_step: Option<ClockStep>,
    /// Whether this process beaconed, so that the clocks are compared with `sample` from now on.
    beaconed: bool,
    /// What was appended that an observer is told of.
    noted: Vec<Noted>,
    writes: Writes,
}

/// What a decided batch leaves for its backend to do.
pub(crate) struct Decided {
    /// What to write.
    pub(crate) writes: Writes,
    /// The end of the log after it.
    pub(crate) head: Head,
    /// The clocks, if this process beaconed.
    pub(crate) beacon: Option<ClockSample>,
    /// What an observer is told of, once it is committed.
    pub(crate) noted: Vec<Noted>,
}

impl Batch {
    /// Begins on what was read; the clocks were read under the lock.
    pub(crate) fn begin(
        ground: Ground,
        service: Arc<ServiceLog>,
        mut head: Head,
        clocks: Clocks,
        last_beacon: Option<&ClockSample>,
        commands: &[Command],
    ) -> Batch {
        let (boot_before, clock, boot_after) = clocks;
        let now = clock.max(head.latest_at.next());
        let sample = ClockSample { boot_before, clock, log: now, boot_after };
        let clock_step = last_beacon.and_then(|last| clock_step(last, &sample));
        // Stamps of everything decided here increase store-wide: what is no plain heartbeat comes after those.
        let has_beats = commands.iter().any(|command| matches!(command, Command::Heartbeat { progress: None, .. }));
        head.latest_at = if has_beats { now } else { now.minus(Span::from_micros(1)) };
        let listening = Arc::new(service.listening(now));
        let (beats_at, beats, beaconed, noted, writes) = (now, Vec::new(), false, Vec::new(), Writes::default());
        Batch { ground, service, listening, head, beats_at, beats, sample, clock_step, beaconed, noted, writes }
    }

    /// Decides the commands, one after the other.
    pub(crate) fn decide_all(&mut self, commands: &[Command]) -> Result<Vec<Outcome>, StoreError> {
        commands.iter().enumerate().map(|(index, command)| self.apply(index, command)).collect()
    }

    /// Returns what is to be written for what was decided.
    pub(crate) fn finish(mut self) -> Decided {
        if !self.beats.is_empty() {
            self.beats.sort_unstable();
            self.head.beat_position += 1;
            self.writes.beats = Some(BeatsRow::pack(self.head.beat_position, self.beats_at, &self.beats));
        }
        let beacon = self.beaconed.then_some(self.sample);
        Decided { writes: self.writes, head: self.head, beacon, noted: self.noted }
    }

    fn apply(&mut self, index: usize, command: &Command) -> Result<Outcome, StoreError> {
        match command {
            Command::Idempotent { key, command } => self.once(index, key, command),
            Command::Claim { .. } => self.claim(index, command),
            Command::RearmLane { lane, limit } => self.rearm_lane(lane, *limit),
            Command::MoveCursor { name, to } => Ok(self.move_cursor(name, *to)),
            _ => match command.run() {
                Some(id) => self.about_run(command, id),
                None => self.about_service(command),
            },
        }
    }

    /// Carries out a command that may be a repetition. Only what was done is remembered: what was refused appended
    /// nothing, and may be tried again.
    fn once(&mut self, index: usize, key: &IdempotencyKey, command: &Command) -> Result<Outcome, StoreError> {
        if let Some(known) = self.ground.answered.remove(key) {
            return known.repeat(key, command, &self.service);
        }
        let outcome = self.apply(index, command)?;
        if let Ok(answer) = &outcome
            && let Some(judged) = &answer.judged
        {
            let (fingerprint, run, version) = (fingerprint(command), judged.run.id, judged.run.version);
            let first = FirstAnswer { fingerprint, run, version, existing: answer.existing, at: judged.at };
            self.writes.answers.push((key.clone(), first));
        }
        Ok(outcome)
    }

    fn about_run(&mut self, command: &Command, id: RunId) -> Result<Outcome, StoreError> {
        if self.ground.busy.contains(&id) {
            let message = format!("another process is at work on run {id} at this moment");
            return Ok(Err(Refusal::new(RefusalCode::Busy, message).into()));
        }
        let row = self.ground.runs.remove(&id);
        let key_holder = self.key_holder(command, row.as_ref());
        let now = self.stamp_for(command);
        let policy = match (command, &row) {
            (Command::Create { spec, .. }, _) => self.service.policy(&spec.lane, now),
            (_, Some(row)) => self.service.policy(&row.run.lane, now),
            (_, None) => LanePolicy::default(),
        };
        let run = row.as_ref().map(|row| &row.run);
        let pace = self.pace(command, row.as_ref(), &policy, now);
        let lane = run.map(|run| run.lane.clone());
        let decision = self.decide(run, command, &Around { policy: &policy, lane, key_holder, pace }, now);
        match decision {
            Ok(events) => {
                self.take_turn(command, row.as_ref(), &events, pace, &policy, now);
                self.carry_out(command, id, row, events, policy, now)
            }
            Err(refusal) if refusal.code == RefusalCode::UniqueKeyOpen && matches!(command, Command::Create { .. }) => {
                Ok(self.existing(refusal, now))
            }
            Err(refusal) => self.refuse(command, id, row, refusal, &policy, pace, now),
        }
    }

    /// Appends what is to be recorded although the command was refused, and arms what a sweeper looked at.
    #[allow(clippy::too_many_arguments)] // They are what was decided with.
    fn refuse(
        &mut self,
        command: &Command,
        id: RunId,
        row: Option<RunRow>,
        mut refusal: Refusal,
        policy: &LanePolicy,
        pace: Pace,
        now: Timestamp,
    ) -> Result<Outcome, StoreError> {
        let events = std::mem::take(&mut refusal.events);
        let Some(row) = row else { return Ok(Err(refusal.into())) };
        if events.is_empty() && !is_sweepers(command) {
            self.ground.runs.insert(id, row);
            return Ok(Err(refusal.into()));
        }
        let may_not_be_reaped = matches!(refusal.code, RefusalCode::Shadow | RefusalCode::Held | RefusalCode::Deaf);
        let (_, row) = self.append(id, Some(row), events, now)?;
        match refusal.code {
            RefusalCode::OverRate => self.give_turn(&row, policy, pace, now),
            _ => self.arm(&row, policy, now, may_not_be_reaped),
        }
        self.ground.runs.insert(id, row);
        Ok(Err(refusal.into()))
    }

    /// Appends what was decided and brings the projection up to it.
    fn carry_out(
        &mut self,
        command: &Command,
        id: RunId,
        row: Option<RunRow>,
        events: Vec<Event>,
        policy: LanePolicy,
        now: Timestamp,
    ) -> Result<Outcome, StoreError> {
        let before = row.as_ref().map(|row| row.run.last_beat.is_some());
        let (service, events): (Vec<Event>, Vec<Event>) =
            events.into_iter().partition(|event| matches!(event, Event::Service(_)));
        let (appended, row) = self.append(id, row, events, now)?;
        let plain_beat = matches!(command, Command::Heartbeat { progress: None, .. }) && before == Some(true);
        let touched = !appended.is_empty() || is_sweepers(command);
        if touched && !plain_beat {
            self.arm(&row, &policy, now, false);
        }
        if let Some(key) = row.run.unique_key.as_ref().filter(|_| !row.run.status.is_terminal()) {
            self.ground.key_holders.insert(key.clone(), id);
        }
        let service = self.append_service(service);
        let input = match (command, &appended[..]) {
            (Command::Create { claim: Some(_), .. }, [created, ..]) => input_of(&created.event),
            (Command::Claim { .. } | Command::ClaimRun { .. }, _) => self.ground.inputs.get(&id).cloned(),
            _ => None,
        };
        let at = self.head.latest_at.max(now);
        let judged = Judged::new(row.run.clone(), policy, Arc::clone(&self.listening), at);
        self.ground.runs.insert(id, row);
        let answer = Answer { appended, service, input, ..Answer::default() };
        Ok(Ok(match command {
            Command::Heartbeat { .. } => Answer { heard: Some(Heard::of(&judged)), ..answer },
            _ => Answer { judged: Some(Box::new(judged)), ..answer },
        }))
    }

    fn existing(&self, refusal: Refusal, now: Timestamp) -> Outcome {
        let holder = refusal.key_holder.and_then(|holder| self.ground.runs.get(&holder));
        let Some(row) = holder else { return Err(refusal.into()) };
        let policy = self.service.policy(&row.run.lane, now);
        let judged = Judged::new(row.run.clone(), policy, Arc::clone(&self.listening), now.max(row.run.updated_at));
        Ok(Answer { judged: Some(Box::new(judged)), existing: true, ..Answer::default() })
    }

    fn claim(&mut self, index: usize, command: &Command) -> Result<Outcome, StoreError> {
        let now = self.stamp_for(command);
        let row = self.ground.picked.remove(&index);
        let policy = row.as_ref().map(|row| self.service.policy(&row.run.lane, now)).unwrap_or_default();
        let run = row.as_ref().map(|row| &row.run);
        match (self.decide(run, command, &Around::plain(&policy), now), row) {
            (Ok(events), Some(row)) => self.carry_out(command, row.run.id, Some(row), events, policy, now),
            (Err(refusal), _) => Ok(Err(refusal.into())),
            (Ok(_), None) => Err(StoreError::Corrupt("a claim without a run was granted".to_owned())),
        }
    }

    fn about_service(&mut self, command: &Command) -> Result<Outcome, StoreError> {
        let now = self.stamp_for(command);
        let lane = match command {
            Command::SetPolicy { lane, .. } | Command::ReviewHold { lane, .. } | Command::ReleaseHold { lane, .. } => {
                Some(lane.clone())
            }
            _ => None,
        };
        let policy = lane.as_ref().map(|lane| self.service.policy(lane, now)).unwrap_or_default();
        let events = match self.decide(None, command, &Around { lane, ..Around::plain(&policy) }, now) {
            Ok(events) => events,
            Err(refusal) => return Ok(Err(refusal.into())),
        };
        let service = self.append_service(events);
        for recorded in &service {
            match &recorded.event {
                // Sweepers go through the lane's open runs from the start.
                ServiceEvent::PolicySet { lane, .. } => self.rearm_from_start(lane),
                ServiceEvent::ReapingReleased { lane, .. } => {
                    self.rearm_from_start(lane);
                    self.put_pace(lane, LanePace { reap_at: Some(now), turn_at: None });
                }
                _ => {}
            }
        }
        match command {
            Command::Beacon { process, role, promise } => {
                let noted = listening::beacon(&self.service.beacons, process, *role, *promise, now);
                self.put_beacons(noted.beacons, now);
                self.beaconed = true;
                // Recorded by this transaction.
                self.clock_step = None;
            }
            Command::RemoveBeacon { process } => self.remove_beacon(process, now),
            Command::RetireServers { .. } => {
                let local = |beacon: &&Beacon| beacon.role == BeaconRole::Local;
                let left = self.service.beacons.iter().filter(local).cloned().collect();
                self.put_beacons(left, now);
            }
            _ => {}
        }
        Ok(Ok(Answer { service, ..Answer::default() }))
    }

    fn remove_beacon(&mut self, process: &Name, now: Timestamp) {
        let Some(role) = self.service.beacons.iter().find(|beacon| beacon.process == *process).map(|own| own.role)
        else {
            return;
        };
        let mut left = listening::beacon(&self.service.beacons, process, role, Promise::UntilAnother, now).beacons;
        left.retain(|beacon| beacon.process != *process);
        self.put_beacons(left, now);
    }

    fn put_beacons(&mut self, beacons: Vec<Beacon>, now: Timestamp) {
        self.head.latest_at = self.head.latest_at.max(now);
        Arc::make_mut(&mut self.service).beacons.clone_from(&beacons);
        self.writes.beacons = Some(beacons);
        self.listening = Arc::new(self.service.listening(self.head.latest_at.next()));
    }

    /// Moves a cursor, which may not point where the log has not come yet: it would pass over what comes there.
    fn move_cursor(&mut self, name: &Name, to: CursorMove) -> Outcome {
        let end = self.head.position;
        let position = match to {
            CursorMove::Begin => end,
            CursorMove::To(position) => i64::try_from(position).unwrap_or(i64::MAX),
        };
        if position > end {
            let message = format!("position: the log ends at {end}, so no cursor can be at {position}");
            return Err(Refusal::new(RefusalCode::Invalid, message).into());
        }
        let write = self.writes.cursors.entry(name.clone()).or_default();
        match to {
            // What came before it in the batch made the cursor.
            CursorMove::Begin if write.advance.is_some() => {}
            CursorMove::Begin => write.begin = write.begin.or(Some(position)),
            CursorMove::To(_) => write.advance = write.advance.max(Some(position)),
        }
        Ok(Answer::default())
    }

    fn rearm_from_start(&mut self, lane: &Name) {
        self.writes.lanes.insert(lane.clone());
        self.writes.rearm.insert(lane.clone(), Some(0));
    }

    /// Arms the next runs of a lane whose policy was set since they were armed.
    fn rearm_lane(&mut self, lane: &Name, limit: u32) -> Result<Outcome, StoreError> {
        let rows = self.ground.pages.remove(lane).unwrap_or_default();
        let now = self.beats_at;
        let policy = self.service.policy(lane, now);
        let last = rows.last().map(|row| row.number).filter(|_| rows.len() == limit as usize);
        let rearmed = rows.len() as u64;
        for row in rows {
            // What the batch did to the run before is newer than the page.
            let changed = self.ground.runs.get(&row.run.id).cloned();
            self.arm(&changed.unwrap_or(row), &policy, now, false);
        }
        // A policy that this very batch set calls for all of them again.
        self.writes.rearm.entry(lane.clone()).or_insert(last);
        Ok(Ok(Answer { rearmed, ..Answer::default() }))
    }

    /// How far a drain has come, for the one command that asks.
    fn pace(&self, command: &Command, row: Option<&RunRow>, policy: &LanePolicy, now: Timestamp) -> Pace {
        let none = Pace { next: Timestamp::MIN };
        let (Command::Reap { .. }, Some(row)) = (command, row) else { return none };
        if !matches!(self.service.hold(&row.run.lane), HoldState::Draining { .. }) {
            return none;
        }
        // A lane whose log was imported has no pace yet.
        let first = now.minus(turn(policy.terms.reap_rate));
        Pace { next: self.lane_pace(&row.run.lane).reap_at.unwrap_or(first) }
    }

    fn lane_pace(&self, lane: &Name) -> LanePace {
        self.ground.paces.get(lane).copied().unwrap_or_default()
    }

    fn put_pace(&mut self, lane: &Name, pace: LanePace) {
        self.ground.paces.insert(lane.clone(), pace);
        self.writes.paces.insert(lane.clone(), pace);
    }

    /// Counts a sweeper's reap for silence against the rate of a lane that is drained.
    fn take_turn(
        &mut self,
        command: &Command,
        row: Option<&RunRow>,
        events: &[Event],
        pace: Pace,
        policy: &LanePolicy,
        now: Timestamp,
    ) {
        let (Command::Reap { by_hand: None, .. }, Some(row)) = (command, row) else { return };
        let silent = |event: &Event| {
            matches!(event, Event::Run(RunEvent::TimedOut { rule: lastbeat_domain::Rule::HeartbeatSilence, .. }))
        };
        let lane = &row.run.lane;
        if matches!(self.service.hold(lane), HoldState::Draining { .. }) && events.iter().any(silent) {
            let reap_at = Some(pace.after_reap(policy.terms.reap_rate, now).next);
            self.put_pace(lane, LanePace { reap_at, ..self.lane_pace(lane) });
        }
    }

    /// Puts a run off until its turn in a drain: the one after the last that was given, at most a minute away.
    fn give_turn(&mut self, row: &RunRow, policy: &LanePolicy, pace: Pace, now: Timestamp) {
        let lane = &row.run.lane;
        let last = self.lane_pace(lane).turn_at.unwrap_or(pace.next);
        let at = last.max(pace.next).max(now).plus(turn(policy.terms.reap_rate)).min(now.plus(DELAY_MAX));
        self.put_pace(lane, LanePace { reap_at: Some(pace.next), turn_at: Some(at) });
        self.put_off(row, at, DELAY_MIN);
    }

    fn put_off(&mut self, row: &RunRow, until: Timestamp, delay: Span) {
        self.writes.due.insert(row.number, Some((until, delay)));
    }

    /// Sets the instant of the next look at a run, or puts off one that has lapsed and may not be reaped.
    fn arm(&mut self, row: &RunRow, policy: &LanePolicy, now: Timestamp, put_off: bool) {
        if put_off {
            let before = self.ground.delays.get(&row.number).copied().unwrap_or(Span::ZERO);
            let delay = before.times(2).clamp(DELAY_MIN, DELAY_MAX);
            return self.put_off(row, now.plus(delay), delay);
        }
        let verdict = lastbeat_domain::judge(&row.run, policy, &self.listening, now);
        self.writes.due.insert(row.number, verdict.check_at().map(|at| (at, Span::ZERO)));
    }

    fn decide(
        &self,
        run: Option<&Run>,
        command: &Command,
        around: &Around<'_>,
        now: Timestamp,
    ) -> Result<Vec<Event>, Refusal> {
        let context = Context {
            policy: around.policy,
            listening: &self.listening,
            key_holder: around.key_holder,
            hold: around.lane.as_ref().map_or(HoldState::Free, |lane| self.service.hold(lane)),
            pace: around.pace,
            beacons: &self.service.beacons,
            clock_step: self.clock_step,
            tokens: &self.service.tokens,
        };
        decide(run, command, &context, now)
    }

    /// The log time at which a command is decided, which is that of the first fact it appends.
    fn stamp_for(&self, command: &Command) -> Timestamp {
        match command {
            Command::Heartbeat { progress: None, .. } => self.beats_at,
            _ => self.head.latest_at.next(),
        }
    }

    /// The open run that has the unique key which the command needs.
    fn key_holder(&self, command: &Command, row: Option<&RunRow>) -> Option<RunId> {
        needed_key(command, row.map(|row| &row.run)).and_then(|key| self.ground.key_holders.get(key)).copied()
    }

    /// Appends facts to the stream of a run and brings its projection up to them. The first one gets the stamp `now`.
    fn append(
        &mut self,
        id: RunId,
        mut row: Option<RunRow>,
        events: Vec<Event>,
        now: Timestamp,
    ) -> Result<(Vec<Recorded>, RunRow), StoreError> {
        let mut appended = Vec::with_capacity(events.len());
        let mut plain_beats_only = true;
        let mut at = now;
        for event in events {
            let Event::Run(event) = event else { continue };
            let plain = at == self.beats_at && is_plain_beat(row.as_ref(), &event);
            if !plain && !self.writes.events.is_empty() {
                // A heartbeat that gets a row, and what a refused one leaves behind, come with the stamp of the plain
                // ones. Rows stand in the order of their stamps, so that the last one has the latest.
                at = at.max(self.head.latest_at.next());
            }
            let version = row.as_ref().map_or(0, |row| row.run.version) + 1;
            let recorded = Recorded { run: id, version, recorded_at: at, event };
            let evolved = self.evolve(row.take(), &recorded)?;
            let current = row.insert(evolved);
            self.noted.extend(noted(&current.run.lane, &recorded.event));
            self.keep_tail(current, &recorded, plain)?;
            if !plain {
                plain_beats_only = false;
                self.head.position += 1;
                self.writes.events.push(EventRow::of_run(self.head.position, current.number, &recorded));
            }
            self.head.latest_at = self.head.latest_at.max(at);
            at = at.next();
            appended.push(recorded);
        }
        let Some(mut row) = row else {
            return Err(StoreError::Corrupt(format!("nothing was decided about new run {id}")));
        };
        if !row.run.status.is_in_flight() {
            self.flush_tail(&mut row)?;
        }
        match (appended.is_empty(), plain_beats_only) {
            (true, _) => {}
            (false, true) => self.writes.beaten.push(row.clone()),
            (false, false) => self.writes.runs.push(row.clone()),
        }
        Ok((appended, row))
    }

    /// Takes a fact into the run, or begins it. What was decided and cannot follow is a bug: better an error than a bad
    /// stream.
    fn evolve(&mut self, row: Option<RunRow>, recorded: &Recorded) -> Result<RunRow, StoreError> {
        let corrupt = |source| StoreError::CorruptStream { run: recorded.run, source };
        if let Some(mut row) = row {
            row.run.evolve(recorded).map_err(corrupt)?;
            return Ok(row);
        }
        let run = Run::begin(recorded).map_err(corrupt)?;
        self.head.run += 1;
        self.writes.lanes.insert(run.lane.clone());
        Ok(RunRow { number: self.head.run, run, tail: Ok(Vec::new()) })
    }

    fn append_service(&mut self, events: Vec<Event>) -> Vec<ServiceRecorded> {
        let mut appended = Vec::with_capacity(events.len());
        for event in events {
            let Event::Service(event) = event else { continue };
            self.head.latest_at = self.head.latest_at.next();
            let recorded = ServiceRecorded { recorded_at: self.head.latest_at, event };
            self.head.position += 1;
            self.writes.events.push(EventRow::of_service(self.head.position, &recorded));
            // What comes after it in the batch is decided with it.
            Arc::make_mut(&mut self.service).push(recorded.clone());
            self.noted.push(Noted::Service(recorded.event.clone()));
            appended.push(recorded);
        }
        if !appended.is_empty() {
            self.listening = Arc::new(self.service.listening(self.head.latest_at.next()));
        }
        appended
    }

    /// Brings the tail up to a fact of its run, which is a plain heartbeat or not, and writes it out where it has come to
    /// its bounds. So a tail that spans all that it may never stands in a projection without being a segment too.
    fn keep_tail(&mut self, row: &mut RunRow, recorded: &Recorded, plain: bool) -> Result<(), StoreError> {
        let fact = Beat { version: recorded.version, at: recorded.recorded_at.as_micros() };
        if tail_of(row)?.last().is_some_and(|last| fact.at - last.at > packing::TAIL_PAUSE_MAX) {
            self.flush_tail(row)?;
        }
        if plain {
            tail_of(row)?.push(fact);
            self.beats.push((row.number, fact.version));
        }
        let spans = |first: &Beat| fact.version - first.version + 1;
        if tail_of(row)?.first().is_some_and(|first| spans(first) >= packing::TAIL_FACTS_MAX as u64) {
            self.flush_tail(row)?;
        }
        Ok(())
    }

    /// Writes the tail out as a segment.
    fn flush_tail(&mut self, row: &mut RunRow) -> Result<(), StoreError> {
        let (number, attempt) = (row.number, row.run.attempt);
        let tail = tail_of(row)?;
        if !tail.is_empty() {
            self.writes.segments.push(SegmentRow::pack(number, attempt, tail));
            tail.clear();
        }
        Ok(())
    }
}

fn tail_of(row: &mut RunRow) -> Result<&mut Vec<Beat>, StoreError> {
    let id = row.run.id;
    row.tail.as_mut().map_err(|error| StoreError::Corrupt(format!("the tail of run {id}: {error}")))
}

/// What a command is decided with, beside what is the same for all commands of the batch.
struct Around<'a> {
    policy: &'a LanePolicy,
    lane: Option<Name>,
    key_holder: Option<RunId>,
    pace: Pace,
}

impl<'a> Around<'a> {
    fn plain(policy: &'a LanePolicy) -> Around<'a> {
        Around { policy, lane: None, key_holder: None, pace: Pace { next: Timestamp::MIN } }
    }
}

/// A heartbeat without progress that is not the first of its attempt.
fn is_plain_beat(row: Option<&RunRow>, event: &RunEvent) -> bool {
    matches!(event, RunEvent::Heartbeat { progress: None, .. }) && row.is_some_and(|row| row.run.last_beat.is_some())
}

/// What an observer is told of a fact of a run.
fn noted(lane: &Name, event: &RunEvent) -> Option<Noted> {
    match event {
        RunEvent::TimedOut { rule, .. } => Some(Noted::Reaped { lane: lane.clone(), rule: *rule }),
        RunEvent::LateSignal { signal, .. } => Some(Noted::LateSignal { lane: lane.clone(), signal: *signal }),
        _ => None,
    }
}

/// Sweepers' commands set the instant of the next look even when nothing is appended.
pub(crate) fn is_sweepers(command: &Command) -> bool {
    matches!(command, Command::Reap { .. } | Command::Rearm { .. })
}

/// Returns the unique key that must be free for the command, given the run that it names.
pub(crate) fn needed_key<'a>(command: &'a Command, run: Option<&'a Run>) -> Option<&'a Name> {
    match command.inner() {
        Command::Create { spec, .. } => spec.unique_key.as_ref(),
        Command::Requeue { .. } => run.and_then(|run| run.unique_key.as_ref()),
        _ => None,
    }
}

/// Returns what `created` says that the projection does not carry.
pub(crate) fn input_of(event: &RunEvent) -> Option<Value> {
    match event {
        RunEvent::Created { input, .. } => input.clone(),
        _ => None,
    }
}
