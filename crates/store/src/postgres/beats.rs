//! The fast path: a batch of plain heartbeats, taken by one guarded UPDATE.
//!
//! The guard asks what [`decide`](lastbeat_domain::decide) would: is this the attempt and the claim that hold the run,
//! is it beating, and is the stamp later than the run's last fact? It asks besides whether there is room in the tail.
//! What it does not take is decided like any other command. The runs are locked by the UPDATE itself, in the order of
//! their ids, which is the order in which everybody locks them; two that lock in another order all the same are a
//! deadlock, which the database ends, and the one that it ends is run again.

use std::collections::HashMap;
use std::fmt::Write;

use lastbeat_domain::decide::Command;
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

/// `$4` is the length of a full tail, and `$5` the clock of a test. The stamp is the log's now, read before a run is
/// locked. A tail that is full by this heartbeat comes back, to be written out as a segment.
const ACCEPT: &str = "\
    WITH stamp AS MATERIALIZED (SELECT greatest(lastbeat_clock($5), lastbeat_latest_at() + 1) AS at, \
        pg_current_xact_id()::text AS transaction) \
    UPDATE runs AS r SET version = r.version + 1, last_beat_at = stamp.at, since_version = 0, since_at = 0, \
        tail = int8send(stamp.at) || substring(int8send(r.version + 1) FROM 5) \
            || CASE WHEN octet_length(r.tail) < $4 THEN r.tail ELSE '' END \
    FROM stamp, unnest($1::uuid[], $2::integer[], $3::text[]) WITH ORDINALITY AS b(id, attempt, claim, ordinal) \
    WHERE r.id = b.id AND r.attempt = b.attempt AND (b.claim IS NULL OR r.claim = b.claim) \
        AND r.status = 'running' AND NOT r.quarantined AND r.last_beat_at + r.since_at < stamp.at \
    RETURNING b.ordinal, r.number, r.version, r.claimed_at, r.cancel_requested, r.lane, stamp.at, \
        CASE WHEN octet_length(r.tail) >= $4 THEN r.tail END, stamp.transaction";

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
    lane: Name,
    /// The tail, if it is full.
    full: Option<Vec<Beat>>,
}

/// The heartbeats that were taken, and their stamp.
#[derive(Debug, Default)]
pub(super) struct Taken {
    pub(super) at: Option<Timestamp>,
    /// The number of the transaction.
    pub(super) transaction: String,
    pub(super) beats: Vec<Accepted>,
}

/// Takes what plain heartbeats it may of a batch. The runs stay locked until the end of the transaction.
pub(super) async fn accept(
    connection: &mut PgConnection,
    commands: &[Command],
    simulated: Option<i64>,
) -> Result<Taken, StoreError> {
    let mut plain: Vec<(usize, &lastbeat_domain::decide::Report)> = Vec::with_capacity(commands.len());
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
    let rows = sqlx::query(ACCEPT)
        .bind(ids)
        .bind(attempts)
        .bind(claims)
        .bind(i32::try_from(TAIL_BEATS_MAX * STEP_BYTES).unwrap_or(i32::MAX))
        .bind(simulated)
        .fetch_all(connection)
        .await?;
    let Some(first) = rows.first() else { return Ok(Taken::default()) };
    let (at, transaction) = (Some(Timestamp::from_micros(first.try_get(6)?)), first.try_get(8)?);
    let beats = rows.iter().map(|row| read(row, &plain)).collect::<Result<Vec<Accepted>, StoreError>>()?;
    Ok(Taken { at, transaction, beats })
}

fn read(row: &PgRow, plain: &[(usize, &lastbeat_domain::decide::Report)]) -> Result<Accepted, StoreError> {
    let corrupt = |what: &str| StoreError::Corrupt(format!("a heartbeat came back with {what}"));
    let ordinal: i64 = row.try_get(0)?;
    let place = usize::try_from(ordinal - 1).ok().and_then(|place| plain.get(place));
    let (index, report) = place.ok_or_else(|| corrupt("a place of its own"))?;
    let lane: &str = row.try_get(5)?;
    let version = unsigned(row.try_get(2)?)?;
    let full = row.try_get::<Option<&[u8]>, _>(7)?.map(|tail| unpack_tail(tail, version)).transpose();
    Ok(Accepted {
        index: *index,
        run: report.run,
        number: row.try_get(1)?,
        attempt: report.attempt,
        version,
        claimed_at: Timestamp::from_micros(row.try_get::<Option<i64>, _>(3)?.ok_or_else(|| corrupt("no claim"))?),
        cancel_requested: row.try_get(4)?,
        lane: Name::new(lane).map_err(|error| corrupt(&error.to_string()))?,
        full: full.map_err(|error| corrupt(&error.to_string()))?,
    })
}

impl Taken {
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

    /// Answers the heartbeats that were taken, each with its index in the batch.
    pub(super) fn answers(self, service: &ServiceLog) -> Vec<(usize, Answer)> {
        let Some(at) = self.at else { return Vec::new() };
        let listening = service.listening(at);
        let mut lanes: HashMap<Name, (Run, LanePolicy)> = HashMap::new();
        let mut answers = Vec::with_capacity(self.beats.len());
        for beat in self.beats {
            if !lanes.contains_key(&beat.lane) {
                let policy = service.policy(&beat.lane, at);
                lanes.insert(beat.lane.clone(), (beating(&beat, at), policy));
            }
            if let Some((run, policy)) = lanes.get_mut(&beat.lane) {
                answers.push((beat.index, beat.answer(run, policy, &listening, at)));
            }
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
fn beating(beat: &Accepted, at: Timestamp) -> Run {
    Run {
        id: beat.run,
        lane: beat.lane.clone(),
        goal: None,
        device: None,
        unique_key: None,
        labels: std::collections::BTreeMap::new(),
        status: Status::Running,
        attempt: beat.attempt,
        claim: Some(Claim { id: None, executor: beat.lane.clone(), device: None, at: beat.claimed_at, version: 2 }),
        created_at: beat.claimed_at,
        not_before: None,
        waiting: Waiting { fact: BasisFact::Created, version: 1, due_at: beat.claimed_at },
        started_at: None,
        last_beat: Some(LastBeat { at, version: beat.version }),
        beats: 1,
        progress: None,
        cancel_requested: None,
        reaped: Vec::new(),
        outcome: None,
        version: beat.version,
        updated_at: at,
        quarantined: None,
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
