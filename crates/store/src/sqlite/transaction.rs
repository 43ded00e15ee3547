//! One transaction: a batch of commands, decided one after the other on what is committed, and written at once.

use std::sync::Arc;

use lastbeat_domain::decide::{Claimant, Command, Context, Refusal, RefusalCode};
use lastbeat_domain::event::{Event, RunEvent, ServiceEvent};
use lastbeat_domain::hold::{HoldState, Pace, turn};
use lastbeat_domain::listening::{self, BeaconRole, ClockSample, ClockStep, Promise, clock_step};
use lastbeat_domain::{LanePolicy, Listening, Name, Recorded, Run, RunId, ServiceRecorded, Span, Timestamp, decide};
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{AssertSqlSafe, Row};

use super::rows::{RUN_COLUMNS, RunRow, input_of, read_id, read_instant, read_run, signed};
use super::write::{
    Segment, insert_beats, insert_event, insert_segment, insert_service, put_beacons, put_lane, put_run, set_due,
};
use crate::error::StoreError;
use crate::packing::{self, Beat};
use crate::record;
use crate::service::ServiceLog;
use crate::{Answer, Judged, Outcome};

/// How many runs that wait are looked at for one claim before it is said that none can be had.
const CLAIM_CANDIDATES_MAX: i64 = 16;
/// How long a lapsed run that may not be reaped is put off at first, and at the most: doubled in between.
const DELAY_MIN: Span = Span::from_seconds(1);
const DELAY_MAX: Span = Span::from_seconds(60);

/// The end of the log, as it will be after the transaction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    pub(super) latest_at: Timestamp,
    pub(super) position: i64,
    pub(super) beat_position: i64,
    pub(super) run: i64,
}

impl Head {
    pub(super) async fn read(connection: &mut SqliteConnection) -> Result<Head, StoreError> {
        let row = sqlx::query("SELECT latest_at, position, beat_position, run FROM head").fetch_one(connection).await?;
        Ok(Head {
            latest_at: Timestamp::from_micros(row.try_get("latest_at")?),
            position: row.try_get("position")?,
            beat_position: row.try_get("beat_position")?,
            run: row.try_get("run")?,
        })
    }

    pub(super) async fn write(&self, connection: &mut SqliteConnection) -> Result<(), StoreError> {
        sqlx::query("UPDATE head SET latest_at = ?, position = ?, beat_position = ?, run = ?")
            .bind(self.latest_at.as_micros())
            .bind(self.position)
            .bind(self.beat_position)
            .bind(self.run)
            .execute(connection)
            .await?;
        Ok(())
    }
}

/// A transaction that holds the write lock of the file, so what it reads is what it decides on.
pub(super) struct Batch<'c> {
    connection: &'c mut SqliteConnection,
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
}

/// The clocks, read after the transaction had begun: boottime, clock, boottime.
pub(super) type Clocks = (Span, Timestamp, Span);

impl<'c> Batch<'c> {
    /// Begins on a connection that has begun its transaction. `clock` was read after that.
    pub(super) async fn begin(
        connection: &'c mut SqliteConnection,
        service: Arc<ServiceLog>,
        clocks: Clocks,
        last_beacon: Option<&ClockSample>,
        commands: &[Command],
    ) -> Result<Batch<'c>, StoreError> {
        let mut head = Head::read(connection).await?;
        let (boot_before, clock, boot_after) = clocks;
        let now = clock.max(head.latest_at.next());
        let sample = ClockSample { boot_before, clock, log: now, boot_after };
        let clock_step = last_beacon.and_then(|last| clock_step(last, &sample));
        // Stamps of everything decided here increase store-wide: what is no plain heartbeat comes after those.
        let has_beats = commands.iter().any(|command| matches!(command, Command::Heartbeat { progress: None, .. }));
        head.latest_at = if has_beats { now } else { now.minus(Span::from_micros(1)) };
        let listening = Arc::new(service.listening(now));
        let (beats_at, beats, beaconed) = (now, Vec::new(), false);
        Ok(Batch { connection, service, listening, head, beats_at, beats, sample, clock_step, beaconed })
    }

    /// Decides and writes one command.
    pub(super) async fn apply(&mut self, command: &Command) -> Result<Outcome, StoreError> {
        match command {
            Command::Claim { lanes, claimant } => self.claim(command, lanes, claimant).await,
            Command::RearmLane { lane, limit } => self.rearm_lane(lane, *limit).await,
            _ => match command.run() {
                Some(id) => self.about_run(command, id).await,
                None => self.about_service(command).await,
            },
        }
    }

    /// Writes what the commands had in common, and returns the clocks if this process beaconed. The caller commits.
    pub(super) async fn finish(mut self) -> Result<Option<ClockSample>, StoreError> {
        if !self.beats.is_empty() {
            self.beats.sort_unstable();
            self.head.beat_position += 1;
            insert_beats(self.connection, self.head.beat_position, self.beats_at, &self.beats).await?;
        }
        self.head.write(self.connection).await?;
        Ok(self.beaconed.then_some(self.sample))
    }

    async fn about_run(&mut self, command: &Command, id: RunId) -> Result<Outcome, StoreError> {
        let row = self.load(id).await?;
        let key_holder = self.key_holder(command, row.as_ref()).await?;
        let now = self.stamp_for(command);
        let policy = match (command, &row) {
            (Command::Create { spec, .. }, _) => self.service.policy(&spec.lane, now),
            (_, Some(row)) => self.service.policy(&row.run.lane, now),
            (_, None) => LanePolicy::default(),
        };
        let run = row.as_ref().map(|row| &row.run);
        let pace = self.pace(command, row.as_ref(), &policy, now).await?;
        let lane = row.as_ref().map(|row| row.run.lane.clone());
        let decision = self.decide(run, command, &Around { policy: &policy, lane, key_holder, pace }, now);
        match decision {
            Ok(events) => {
                self.take_turn(command, row.as_ref(), &events, pace, &policy, now).await?;
                self.carry_out(command, id, row, events, policy, now).await
            }
            Err(refusal) if refusal.code == RefusalCode::UniqueKeyOpen && matches!(command, Command::Create { .. }) => {
                self.existing(refusal, now).await
            }
            Err(mut refusal) => {
                let events = std::mem::take(&mut refusal.events);
                if let (Some(row), false) = (row, events.is_empty() && !is_sweepers(command)) {
                    let may_not_be_reaped =
                        matches!(refusal.code, RefusalCode::Shadow | RefusalCode::Held | RefusalCode::Deaf);
                    let (_, row) = self.append(id, Some(row), events, now).await?;
                    match refusal.code {
                        RefusalCode::OverRate => self.give_turn(&row, &policy, pace, now).await?,
                        _ => self.arm(&row, &policy, now, may_not_be_reaped).await?,
                    }
                }
                Ok(Err(refusal.into()))
            }
        }
    }

    /// Appends what was decided and brings the projection up to it.
    async fn carry_out(
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
        let (appended, row) = self.append(id, row, events, now).await?;
        let plain_beat = matches!(command, Command::Heartbeat { progress: None, .. }) && before == Some(true);
        let touched = !appended.is_empty() || is_sweepers(command);
        if touched && !plain_beat {
            self.arm(&row, &policy, now, false).await?;
        }
        let service = self.append_service(service).await?;
        let input = match (command, &appended[..]) {
            (Command::Create { claim: Some(_), .. }, [created, ..]) => input_of(&created.event),
            _ => None,
        };
        let at = self.head.latest_at.max(now);
        let judged = Some(Box::new(Judged::new(row.run, policy, Arc::clone(&self.listening), at)));
        Ok(Ok(Answer { judged, appended, service, existing: false, input, rearmed: 0 }))
    }

    async fn existing(&mut self, refusal: Refusal, now: Timestamp) -> Result<Outcome, StoreError> {
        let Some(holder) = refusal.key_holder else {
            return Ok(Err(refusal.into()));
        };
        let Some(row) = self.load(holder).await? else {
            return Ok(Err(refusal.into()));
        };
        let policy = self.service.policy(&row.run.lane, now);
        let judged = Some(Box::new(Judged::new(row.run, policy, Arc::clone(&self.listening), now)));
        let (appended, service) = (Vec::new(), Vec::new());
        Ok(Ok(Answer { judged, appended, service, existing: true, input: None, rearmed: 0 }))
    }

    async fn claim(&mut self, command: &Command, lanes: &[Name], by: &Claimant) -> Result<Outcome, StoreError> {
        let now = self.stamp_for(command);
        let candidates = self.waiting(lanes, by, now).await?;
        for row in candidates {
            let policy = self.service.policy(&row.run.lane, now);
            if let Ok(events) = self.decide(Some(&row.run), command, &Around::plain(&policy), now) {
                let id = row.run.id;
                let mut outcome = self.carry_out(command, id, Some(row), events, policy, now).await?;
                if let Ok(answer) = &mut outcome {
                    answer.input = self.read_input(id).await?;
                }
                return Ok(outcome);
            }
        }
        let nothing = self.decide(None, command, &Around::plain(&LanePolicy::default()), now);
        Ok(Err(match nothing {
            Err(refusal) => refusal.into(),
            Ok(_) => StoreError::Corrupt("a claim without a run was granted".to_owned()).into(),
        }))
    }

    /// The runs that a claimant may have, the longest due first.
    async fn waiting(&mut self, lanes: &[Name], by: &Claimant, now: Timestamp) -> Result<Vec<RunRow>, StoreError> {
        let mut rows = Vec::new();
        for lane in lanes {
            let select = format!(
                "SELECT {RUN_COLUMNS} FROM runs WHERE status = 'pending' AND lane = ? AND due_at <= ? \
                 AND (device IS NULL OR device = ?) AND quarantined IS NULL ORDER BY due_at, number LIMIT ?"
            );
            let found = sqlx::query(AssertSqlSafe(select))
                .bind(lane.as_str())
                .bind(now.as_micros())
                .bind(by.device.as_ref().map(Name::as_str))
                .bind(CLAIM_CANDIDATES_MAX)
                .fetch_all(&mut *self.connection)
                .await?;
            for row in &found {
                rows.push(read_run(row)?);
            }
        }
        rows.sort_by_key(|row| (row.run.waiting.due_at, row.number));
        Ok(rows)
    }

    async fn about_service(&mut self, command: &Command) -> Result<Outcome, StoreError> {
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
        let service = self.append_service(events).await?;
        for recorded in &service {
            match &recorded.event {
                // Sweepers go through the lane's open runs from the start.
                ServiceEvent::PolicySet { lane, .. } => self.rearm_from_start(lane).await?,
                ServiceEvent::ReapingReleased { lane, .. } => {
                    self.rearm_from_start(lane).await?;
                    self.put_pace(lane, now, None).await?;
                }
                _ => {}
            }
        }
        match command {
            Command::Beacon { process, role, promise } => {
                let noted = listening::beacon(&self.service.beacons, process, *role, *promise, now);
                self.put_beacons(noted.beacons, now).await?;
                self.beaconed = true;
                // Recorded by this transaction.
                self.clock_step = None;
            }
            Command::RemoveBeacon { process } => {
                let own = self.service.beacons.iter().find(|beacon| beacon.process == *process).cloned();
                if let Some(own) = own {
                    let last = Promise::UntilAnother;
                    let mut left = listening::beacon(&self.service.beacons, process, own.role, last, now).beacons;
                    left.retain(|beacon| beacon.process != *process);
                    self.put_beacons(left, now).await?;
                }
            }
            Command::RetireServers { .. } => {
                let local = |beacon: &&listening::Beacon| beacon.role == BeaconRole::Local;
                let left = self.service.beacons.iter().filter(local).cloned().collect();
                self.put_beacons(left, now).await?;
            }
            _ => {}
        }
        Ok(Ok(Answer { judged: None, appended: Vec::new(), service, existing: false, input: None, rearmed: 0 }))
    }

    async fn put_beacons(&mut self, beacons: Vec<listening::Beacon>, now: Timestamp) -> Result<(), StoreError> {
        put_beacons(self.connection, &beacons).await?;
        self.head.latest_at = self.head.latest_at.max(now);
        Arc::make_mut(&mut self.service).beacons = beacons;
        self.listening = Arc::new(self.service.listening(self.head.latest_at.next()));
        Ok(())
    }

    async fn rearm_from_start(&mut self, lane: &Name) -> Result<(), StoreError> {
        sqlx::query("INSERT INTO lanes (lane, rearm_after) VALUES (?, 0) ON CONFLICT DO UPDATE SET rearm_after = 0")
            .bind(lane.as_str())
            .execute(&mut *self.connection)
            .await?;
        Ok(())
    }

    /// How far a drain has come, for the one command that asks.
    async fn pace(
        &mut self,
        command: &Command,
        row: Option<&RunRow>,
        policy: &LanePolicy,
        now: Timestamp,
    ) -> Result<Pace, StoreError> {
        let none = Pace { next: Timestamp::MIN };
        let (Command::Reap { .. }, Some(row)) = (command, row) else { return Ok(none) };
        if !matches!(self.service.hold(&row.run.lane), HoldState::Draining { .. }) {
            return Ok(none);
        }
        let reap_at = sqlx::query("SELECT reap_at FROM lanes WHERE lane = ?")
            .bind(row.run.lane.as_str())
            .fetch_one(&mut *self.connection)
            .await?;
        // A lane whose log was imported has no pace yet.
        let first = now.minus(turn(policy.terms.reap_rate));
        Ok(Pace { next: read_instant(&reap_at, "reap_at")?.unwrap_or(first) })
    }

    async fn put_pace(&mut self, lane: &Name, next: Timestamp, turn: Option<Timestamp>) -> Result<(), StoreError> {
        sqlx::query("UPDATE lanes SET reap_at = ?, turn_at = ? WHERE lane = ?")
            .bind(next.as_micros())
            .bind(turn.map(Timestamp::as_micros))
            .bind(lane.as_str())
            .execute(&mut *self.connection)
            .await?;
        Ok(())
    }

    /// Counts a sweeper's reap for silence against the rate of a lane that is drained.
    async fn take_turn(
        &mut self,
        command: &Command,
        row: Option<&RunRow>,
        events: &[Event],
        pace: Pace,
        policy: &LanePolicy,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let (Command::Reap { by_hand: None, .. }, Some(row)) = (command, row) else { return Ok(()) };
        let silent = |event: &Event| {
            matches!(event, Event::Run(RunEvent::TimedOut { rule: lastbeat_domain::Rule::HeartbeatSilence, .. }))
        };
        let draining = matches!(self.service.hold(&row.run.lane), HoldState::Draining { .. });
        if draining && events.iter().any(silent) {
            sqlx::query("UPDATE lanes SET reap_at = ? WHERE lane = ?")
                .bind(pace.after_reap(policy.terms.reap_rate, now).next.as_micros())
                .bind(row.run.lane.as_str())
                .execute(&mut *self.connection)
                .await?;
        }
        Ok(())
    }

    /// Puts a run off until its turn in a drain: the one after the last that was given, at most a minute away.
    async fn give_turn(
        &mut self,
        row: &RunRow,
        policy: &LanePolicy,
        pace: Pace,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let lane = row.run.lane.clone();
        let turns = sqlx::query("SELECT turn_at FROM lanes WHERE lane = ?")
            .bind(lane.as_str())
            .fetch_one(&mut *self.connection)
            .await?;
        let last = read_instant(&turns, "turn_at")?.unwrap_or(pace.next);
        let at = last.max(pace.next).max(now).plus(turn(policy.terms.reap_rate)).min(now.plus(DELAY_MAX));
        self.put_pace(&lane, pace.next, Some(at)).await?;
        self.put_off(row, at, DELAY_MIN).await
    }

    async fn put_off(&mut self, row: &RunRow, until: Timestamp, delay: Span) -> Result<(), StoreError> {
        sqlx::query("INSERT OR REPLACE INTO due (run, check_at, delay) VALUES (?, ?, ?)")
            .bind(row.number)
            .bind(until.as_micros())
            .bind(signed(delay.as_micros()))
            .execute(&mut *self.connection)
            .await?;
        Ok(())
    }

    async fn rearm_lane(&mut self, lane: &Name, limit: u32) -> Result<Outcome, StoreError> {
        let select = format!(
            "SELECT {RUN_COLUMNS} FROM runs WHERE lane = ?1 AND status IN ('pending', 'claimed', 'running') \
             AND number > (SELECT rearm_after FROM lanes WHERE lane = ?1) ORDER BY number LIMIT ?2"
        );
        let query = sqlx::query(AssertSqlSafe(select)).bind(lane.as_str()).bind(i64::from(limit));
        let rows = query.fetch_all(&mut *self.connection).await?;
        let rows = rows.iter().map(read_run).collect::<Result<Vec<RunRow>, StoreError>>()?;
        let now = self.beats_at;
        let policy = self.service.policy(lane, now);
        for row in &rows {
            self.arm(row, &policy, now, false).await?;
        }
        let through = rows.last().map(|row| row.number).filter(|_| rows.len() == limit as usize);
        sqlx::query("UPDATE lanes SET rearm_after = ? WHERE lane = ?")
            .bind(through)
            .bind(lane.as_str())
            .execute(&mut *self.connection)
            .await?;
        let rearmed = rows.len() as u64;
        let (appended, service) = (Vec::new(), Vec::new());
        Ok(Ok(Answer { judged: None, appended, service, existing: false, input: None, rearmed }))
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

    /// Appends facts to the stream of a run and writes its projection. The first one gets the stamp `now`.
    async fn append(
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
            let recorded = Recorded {
                run: id,
                version: row.as_ref().map_or(0, |row| row.run.version) + 1,
                recorded_at: at,
                event,
            };
            let current = self.evolve(row.take(), &recorded).await?;
            let current = row.insert(current);
            if plain {
                self.push_beat(current, &recorded).await?;
            } else {
                plain_beats_only = false;
                self.insert_event(current, &recorded).await?;
            }
            self.head.latest_at = self.head.latest_at.max(at);
            at = at.next();
            appended.push(recorded);
        }
        let Some(mut row) = row else {
            return Err(StoreError::Corrupt(format!("nothing was decided about new run {id}")));
        };
        if !row.run.status.is_in_flight() {
            self.flush_tail(&mut row).await?;
        }
        if !appended.is_empty() {
            if plain_beats_only {
                self.put_beat(&row).await?;
            } else {
                put_run(self.connection, &row).await?;
            }
        }
        Ok((appended, row))
    }

    /// Takes a fact into the run, or begins it. What was decided and cannot follow is a bug: better an error than a bad
    /// stream.
    async fn evolve(&mut self, row: Option<RunRow>, recorded: &Recorded) -> Result<RunRow, StoreError> {
        let corrupt = |source| StoreError::CorruptStream { run: recorded.run, source };
        if let Some(mut row) = row {
            row.run.evolve(recorded).map_err(corrupt)?;
            return Ok(row);
        }
        let run = Run::begin(recorded).map_err(corrupt)?;
        self.head.run += 1;
        put_lane(self.connection, &run.lane).await?;
        Ok(RunRow { number: self.head.run, run, tail: Vec::new() })
    }

    async fn insert_event(&mut self, row: &RunRow, recorded: &Recorded) -> Result<(), StoreError> {
        self.head.position += 1;
        let body = record::encode_run_event(&recorded.event);
        insert_event(self.connection, self.head.position, row.number, recorded, &body).await
    }

    async fn append_service(&mut self, events: Vec<Event>) -> Result<Vec<ServiceRecorded>, StoreError> {
        let mut appended = Vec::with_capacity(events.len());
        for event in events {
            let Event::Service(event) = event else { continue };
            self.head.latest_at = self.head.latest_at.next();
            let recorded = ServiceRecorded { recorded_at: self.head.latest_at, event };
            self.head.position += 1;
            insert_service(self.connection, self.head.position, &recorded).await?;
            // What comes after it in the batch is decided with it.
            Arc::make_mut(&mut self.service).push(recorded.clone());
            appended.push(recorded);
        }
        if !appended.is_empty() {
            self.listening = Arc::new(self.service.listening(self.head.latest_at.next()));
        }
        Ok(appended)
    }

    async fn push_beat(&mut self, row: &mut RunRow, recorded: &Recorded) -> Result<(), StoreError> {
        if packing::tail_len(&row.tail) >= packing::TAIL_BEATS_MAX {
            self.flush_tail(row).await?;
        }
        let beat = Beat { version: recorded.version, at: recorded.recorded_at.as_micros() };
        packing::push_to_tail(&mut row.tail, beat);
        self.beats.push((row.number, recorded.version));
        Ok(())
    }

    /// Writes the tail out as a segment.
    async fn flush_tail(&mut self, row: &mut RunRow) -> Result<(), StoreError> {
        if row.tail.is_empty() {
            return Ok(());
        }
        let beats = packing::unpack_tail(&row.tail)
            .map_err(|error| StoreError::Corrupt(format!("the tail of run {}: {error}", row.run.id)))?;
        insert_segment(self.connection, row.number, &Segment::pack(row.run.attempt, &beats)).await?;
        row.tail.clear();
        Ok(())
    }

    async fn put_beat(&mut self, row: &RunRow) -> Result<(), StoreError> {
        let Some(beat) = row.run.last_beat else {
            return put_run(self.connection, row).await;
        };
        sqlx::query(
            "UPDATE runs SET last_beat_at = ?, last_beat_version = ?, beats = ?, version = ?, updated_at = ?, tail = ? \
             WHERE number = ?",
        )
        .bind(beat.at.as_micros())
        .bind(signed(beat.version))
        .bind(signed(row.run.beats))
        .bind(signed(row.run.version))
        .bind(row.run.updated_at.as_micros())
        .bind(row.tail.as_slice())
        .bind(row.number)
        .execute(&mut *self.connection)
        .await?;
        Ok(())
    }

    /// Sets the instant of the next look at a run, or puts off one that has lapsed and may not be reaped.
    async fn arm(
        &mut self,
        row: &RunRow,
        policy: &LanePolicy,
        now: Timestamp,
        put_off: bool,
    ) -> Result<(), StoreError> {
        let judged = Judged::new(row.run.clone(), policy.clone(), Arc::clone(&self.listening), now);
        if !put_off {
            return set_due(self.connection, row.number, judged.verdict.check_at()).await;
        }
        let delay: Option<i64> = sqlx::query_scalar("SELECT delay FROM due WHERE run = ?")
            .bind(row.number)
            .fetch_optional(&mut *self.connection)
            .await?;
        let before = Span::from_micros(u64::try_from(delay.unwrap_or(0)).unwrap_or(0));
        let delay = before.times(2).clamp(DELAY_MIN, DELAY_MAX);
        self.put_off(row, now.plus(delay), delay).await
    }

    async fn load(&mut self, id: RunId) -> Result<Option<RunRow>, StoreError> {
        let select = format!("SELECT {RUN_COLUMNS} FROM runs WHERE id = ?");
        let row: Option<SqliteRow> = sqlx::query(AssertSqlSafe(select))
            .bind(id.as_uuid().as_bytes().to_vec())
            .fetch_optional(&mut *self.connection)
            .await?;
        row.as_ref().map(read_run).transpose()
    }

    /// The open run that has the unique key which the command needs.
    async fn key_holder(&mut self, command: &Command, row: Option<&RunRow>) -> Result<Option<RunId>, StoreError> {
        let key = match (command, row) {
            (Command::Create { spec, .. }, _) => spec.unique_key.as_ref(),
            (Command::Requeue { .. }, Some(row)) => row.run.unique_key.as_ref(),
            _ => None,
        };
        let Some(key) = key else { return Ok(None) };
        let holder: Option<SqliteRow> =
            sqlx::query("SELECT id FROM runs WHERE unique_key = ? AND status IN ('pending', 'claimed', 'running')")
                .bind(key.as_str())
                .fetch_optional(&mut *self.connection)
                .await?;
        holder.as_ref().map(|row| read_id(row, "id")).transpose()
    }

    async fn read_input(&mut self, id: RunId) -> Result<Option<serde_json::Value>, StoreError> {
        let (schema, body): (i64, String) = sqlx::query_as(
            "SELECT events.schema, events.body FROM events JOIN runs ON runs.number = events.run WHERE runs.id = ? AND events.version = 1",
        )
        .bind(id.as_uuid().as_bytes().to_vec())
        .fetch_one(&mut *self.connection)
        .await?;
        let created = record::decode_run_event(id, 1, self.beats_at, schema, &body)?;
        Ok(created.known().and_then(|recorded| input_of(&recorded.event)))
    }
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

/// Sweepers' commands set the instant of the next look even when nothing is appended.
fn is_sweepers(command: &Command) -> bool {
    matches!(command, Command::Reap { .. } | Command::Rearm { .. })
}
