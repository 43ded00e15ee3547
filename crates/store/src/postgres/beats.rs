//! The fast path: a batch of plain heartbeats, taken by one guarded UPDATE.
//!
//! The guard asks what [`decide`](lastbeat_domain::decide) would: is this the attempt and the claim that hold the run,
//! is it beating, and is the stamp later than the run's last fact? It asks besides whether there is room in the tail.
//! What it does not take is decided like any other command. The runs are locked by the UPDATE itself, in the order of
//! their ids, which is the order in which everybody locks them; two that lock in another order all the same are a
//! deadlock, which the database ends, and the one that it ends is run again.

use std::collections::HashMap;
use std::fmt::Write;

use lastbeat_domain::decide::{Command, Report};
use lastbeat_domain::event::RunEvent;
use lastbeat_domain::run::{Claim, LastBeat, Waiting};
use lastbeat_domain::verdict::BasisFact;
use lastbeat_domain::{LanePolicy, Listening, Name, Recorded, Run, RunId, Status, Timestamp, judge};
use sqlx::Row;
use sqlx::postgres::{PgConnection, PgRow};
use uuid::Uuid;

use super::rows::{STEP_BYTES, unpack_tail};
use crate::error::StoreError;
use crate::log::{BeatsRow, SegmentRow, unsigned};
use crate::packing::{Beat, TAIL_BEATS_MAX};
use crate::service::ServiceLog;
use crate::{Answer, Heard};

/// `$4` is the length of a full tail, `$5` the stamp. What was taken comes back in one row, column by column: a thousand
/// rows cost more than a thousand updates. A tail that is full by this heartbeat comes back too, to be written out as a
/// segment.
const ACCEPT: &str = "\
    WITH taken AS (\
        UPDATE beating AS r SET version = r.version + 1, updated_at = $5, \
            tail = int8send($5) || substring(int8send(r.version + 1) FROM 5) \
                || CASE WHEN octet_length(r.tail) < $4 THEN r.tail ELSE '' END \
        FROM unnest($1::uuid[], $2::integer[], $3::text[]) WITH ORDINALITY AS b(id, attempt, claim, ordinal) \
        WHERE r.id = b.id AND r.attempt = b.attempt AND (b.claim IS NULL OR r.claim = b.claim) \
            AND r.updated_at < $5 \
        RETURNING b.ordinal, r.number, r.version, r.claimed_at, r.cancel_requested, r.lane, \
            CASE WHEN octet_length(r.tail) >= $4 THEN r.tail END AS full_tail) \
    SELECT coalesce(array_agg(ordinal), '{}'), coalesce(array_agg(number), '{}'), coalesce(array_agg(version), '{}'), \
        coalesce(array_agg(claimed_at), '{}'), coalesce(array_agg(cancel_requested), '{}'), \
        coalesce(array_agg(lane), '{}'), \
        coalesce(array_agg(ordinal) FILTER (WHERE full_tail IS NOT NULL), '{}'), \
        coalesce(array_agg(full_tail) FILTER (WHERE full_tail IS NOT NULL), '{}') \
    FROM taken";

/// The columns are in the order of a segment's numbers.
const INSERT_SEGMENTS: &str = "INSERT INTO segments \
    (run, first_version, last_version, attempt, first_at, last_at, count, digest, data) VALUES (";

/// A heartbeat that was taken.
#[derive(Debug)]
pub(super) struct Accepted {
    /// The command's index in the batch.
    index: usize,
    run: RunId,
    number: i64,
    attempt: u32,
    version: u64,
    claimed_at: Timestamp,
    cancel_requested: bool,
    /// The lane's place among those of the batch.
    lane: usize,
    /// The tail, if it is full.
    full: Option<Vec<Beat>>,
}

/// The heartbeats that were taken.
#[derive(Debug, Default)]
pub(super) struct Taken {
    pub(super) beats: Vec<Accepted>,
    lanes: Vec<Name>,
}

/// Takes what plain heartbeats it may of a batch, with the stamp `at`. The runs stay locked until the end of the
/// transaction.
pub(super) async fn accept(
    connection: &mut PgConnection,
    commands: &[Command],
    at: Timestamp,
) -> Result<Taken, StoreError> {
    let mut plain: Vec<(usize, &Report)> = Vec::with_capacity(commands.len());
    for (index, command) in commands.iter().enumerate() {
        if let Command::Heartbeat { report, progress: None } = command {
            plain.push((index, report));
        }
    }
    if plain.is_empty() {
        return Ok(Taken::default());
    }
    plain.sort_unstable_by_key(|(_, report)| report.run);
    let ids: Vec<Uuid> = plain.iter().map(|(_, report)| report.run.as_uuid()).collect();
    // An attempt beyond the column's reach is nobody's.
    let attempts: Vec<i32> = plain.iter().map(|(_, report)| i32::try_from(report.attempt).unwrap_or(-1)).collect();
    let claims: Vec<Option<&str>> =
        plain.iter().map(|(_, report)| report.claim.as_ref().map(lastbeat_domain::ClaimId::as_str)).collect();
    let row = sqlx::query(ACCEPT)
        .bind(ids)
        .bind(attempts)
        .bind(claims)
        .bind(i32::try_from(TAIL_BEATS_MAX * STEP_BYTES).unwrap_or(i32::MAX))
        .bind(at.as_micros())
        .fetch_one(connection)
        .await?;
    Taken::read(&row, &plain)
}

impl Taken {
    fn read(row: &PgRow, plain: &[(usize, &Report)]) -> Result<Taken, StoreError> {
        let corrupt = |what: &str| StoreError::Corrupt(format!("a heartbeat came back with {what}"));
        let (ordinals, numbers): (Vec<i64>, Vec<i64>) = (row.try_get(0)?, row.try_get(1)?);
        let (versions, claimed): (Vec<i64>, Vec<i64>) = (row.try_get(2)?, row.try_get(3)?);
        let (cancelled, lanes): (Vec<bool>, Vec<String>) = (row.try_get(4)?, row.try_get(5)?);
        let (full, tails): (Vec<i64>, Vec<Vec<u8>>) = (row.try_get(6)?, row.try_get(7)?);
        let mut tails: HashMap<i64, Vec<u8>> = full.into_iter().zip(tails).collect();
        let mut taken = Taken { beats: Vec::with_capacity(ordinals.len()), lanes: Vec::new() };
        for (at, ordinal) in ordinals.into_iter().enumerate() {
            let place = usize::try_from(ordinal - 1).ok().and_then(|place| plain.get(place));
            let (index, report) = *place.ok_or_else(|| corrupt("a place of its own"))?;
            let version = unsigned(versions[at])?;
            let lane = taken.lane(&lanes[at])?;
            let full = tails.remove(&ordinal).map(|tail| unpack_tail(&tail, version)).transpose();
            taken.beats.push(Accepted {
                index,
                run: report.run,
                number: numbers[at],
                attempt: report.attempt,
                version,
                claimed_at: Timestamp::from_micros(claimed[at]),
                cancel_requested: cancelled[at],
                lane,
                full: full.map_err(|error| corrupt(&error.to_string()))?,
            });
        }
        Ok(taken)
    }

    /// Returns the place of a lane among those of the batch: they are few, and it is mostly that of the one before.
    fn lane(&mut self, lane: &str) -> Result<usize, StoreError> {
        if let Some(place) = self.lanes.iter().rposition(|known| known.as_str() == lane) {
            return Ok(place);
        }
        self.lanes.push(Name::new(lane).map_err(|error| StoreError::Corrupt(format!("a lane: {error}")))?);
        Ok(self.lanes.len() - 1)
    }

    /// Returns the heartbeats as their row of `beats` packs them: run number and version, sorted.
    pub(super) fn numbered(&self) -> Vec<(i64, u64)> {
        let mut beats: Vec<(i64, u64)> = self.beats.iter().map(|beat| (beat.number, beat.version)).collect();
        beats.sort_unstable();
        beats
    }

    /// Returns the statements that append the heartbeats, where nothing else is to be written, and commit: sent together,
    /// so that the log is not locked while they travel. They hold numbers and hexadecimal digits, and nothing that came
    /// from outside.
    pub(super) fn commit(&self, at: Timestamp) -> String {
        let mut statements = String::new();
        let segments = self.segments();
        for (index, segment) in segments.iter().enumerate() {
            let start = if index == 0 { INSERT_SEGMENTS } else { ", (" };
            statements.push_str(start);
            for number in segment.numbers() {
                let _ = write!(statements, "{number}, ");
            }
            let _ = write!(statements, "{}, ", segment.digest.unwrap_or_default());
            push_bytes(&mut statements, &segment.data);
            statements.push(')');
        }
        let row = BeatsRow::pack(0, at, &self.numbered());
        let _ = write!(statements, "; SELECT lastbeat_append_beats({}, {}, ", row.recorded_at, row.count);
        push_bytes(&mut statements, &row.data);
        statements.push_str("); COMMIT");
        statements
    }

    /// Returns the tails that are full now, as segments to be written.
    pub(super) fn segments(&self) -> Vec<SegmentRow> {
        let full = self.beats.iter().filter_map(|beat| beat.full.as_ref().map(|tail| (beat, tail)));
        full.map(|(beat, tail)| SegmentRow::pack(beat.number, beat.attempt, tail)).collect()
    }

    /// Says of each command of the batch whether its heartbeat was taken.
    pub(super) fn mask(&self, commands: usize) -> Vec<bool> {
        let mut mask = vec![false; commands];
        self.beats.iter().for_each(|beat| mask[beat.index] = true);
        mask
    }

    /// Answers the heartbeats that were taken, each with its index in the batch. `at` is their stamp.
    pub(super) fn answers(self, service: &ServiceLog, at: Timestamp) -> Vec<(usize, Answer)> {
        let listening = service.listening(at);
        let mut lanes: Vec<(Run, LanePolicy)> =
            self.lanes.into_iter().map(|lane| (beating(lane.clone(), at), service.policy(&lane, at))).collect();
        let mut answers = Vec::with_capacity(self.beats.len());
        for beat in self.beats {
            let (like, policy) = &mut lanes[beat.lane];
            answers.push((beat.index, beat.answer(like, policy, &listening, at)));
        }
        answers
    }
}

impl Accepted {
    fn answer(&self, like: &mut Run, policy: &LanePolicy, listening: &Listening, at: Timestamp) -> Answer {
        if let Some(claim) = &mut like.claim {
            claim.at = self.claimed_at;
        }
        like.last_beat = Some(LastBeat { at, version: self.version });
        let heard = Heard {
            run: self.run,
            attempt: self.attempt,
            version: self.version,
            at,
            cancel_requested: self.cancel_requested,
            interval: policy.terms.heartbeat_interval,
            lapses_at: judge(like, policy, listening, at).lapses_at(),
        };
        let event = RunEvent::Heartbeat { attempt: self.attempt, progress: None };
        let recorded = Recorded { run: self.run, version: self.version, recorded_at: at, event };
        Answer { heard: Some(heard), appended: vec![recorded], ..Answer::default() }
    }
}

/// A run that is beating, with no more in it than the rule reads; so that the rule, and nobody else, says when one
/// lapses.
fn beating(lane: Name, at: Timestamp) -> Run {
    Run {
        id: RunId::from_uuid(Uuid::nil()),
        goal: None,
        device: None,
        unique_key: None,
        labels: std::collections::BTreeMap::new(),
        status: Status::Running,
        attempt: 1,
        claim: Some(Claim { id: None, executor: lane.clone(), device: None, at, version: 2 }),
        created_at: at,
        not_before: None,
        waiting: Waiting { fact: BasisFact::Created, version: 1, due_at: at },
        started_at: None,
        last_beat: None,
        beats: 1,
        progress: None,
        cancel_requested: None,
        reaped: Vec::new(),
        outcome: None,
        version: 3,
        updated_at: at,
        quarantined: None,
        lane,
    }
}

/// Appends bytes as a literal.
fn push_bytes(statements: &mut String, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    statements.push_str("'\\x");
    for byte in bytes {
        statements.push(char::from(DIGITS[usize::from(byte >> 4)]));
        statements.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    statements.push_str("'::bytea");
}
