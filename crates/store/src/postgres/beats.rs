//! The fast path: a batch of plain heartbeats, taken by one guarded UPDATE.
//!
//! The guard asks what [`decide`](lastbeat_domain::decide) would: is this the attempt and the claim that hold the run,
//! is it beating, and is the stamp later than the run's last fact? It asks besides whether there is room in the tail.
//! What it does not take is decided like any other command. The runs are locked by the UPDATE itself, in the order of
//! their ids, which is the order in which everybody locks them; two that lock in another order all the same are a
//! deadlock, which the database ends, and the one that it ends is run again.

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::Arc;

use lastbeat_domain::decide::Command;
use lastbeat_domain::run::{Claim, LastBeat, ProgressChange, Waiting};
use lastbeat_domain::verdict::BasisFact;
use lastbeat_domain::{ClaimId, LanePolicy, Listening, Name, Run, RunId, Span, Status, Timestamp, judge};
use sqlx::Row;
use sqlx::postgres::{PgConnection, PgRow};
use uuid::Uuid;

use super::rows::progress_changed;
use super::tail::{TAIL_BYTES_MAX, unpack_tail};
use crate::Heard;
use crate::error::StoreError;
use crate::log::{BeatsRow, SegmentRow, unsigned};
use crate::packing::{Beat, TAIL_PAUSE_MAX};
use crate::queue::{self, Told};
use crate::service::ServiceLog;

/// Log time as a batch of heartbeats is stamped with: read before anything is locked. A clock that is brought along comes
/// in as a parameter.
macro_rules! stamp {
    ($clock:literal) => {
        concat!(
            "SELECT greatest(coalesce(",
            $clock,
            ", (extract(epoch FROM clock_timestamp()) * 1000000)::bigint), \
             1 + greatest((SELECT h.latest_at FROM head h), \
                 (SELECT e.recorded_at FROM events e ORDER BY e.position DESC LIMIT 1), \
                 (SELECT b.latest_at FROM beats b ORDER BY b.position DESC LIMIT 1), \
                 (SELECT max(b.at) FROM beacons b))) AS at"
        )
    };
}

/// `$4` is the length of a full tail, `$5` the longest pause that a step of a tail can say, `$6` the simulated clock, `$7`
/// the lane that is expected, `$8` whether the claims' instants are wanted. What was taken comes back in one row, column by
/// column: a thousand rows cost more than a thousand updates. Each column of all the runs costs some percent of what
/// their updates do, so what nearly all have in common does not come back: what else is to be said is said only of those
/// that are of another lane, or to be cancelled, or whose tail is full by this heartbeat, and so to be written out as a
/// segment.
const ACCEPT: &str = concat!(
    "WITH now AS MATERIALIZED (",
    stamp!("$6"),
    "), taken AS (\
        UPDATE beating AS r SET version = r.version + 1, updated_at = (SELECT at FROM now), \
            tail = int4send(((SELECT at FROM now) - r.updated_at)::integer) \
                || CASE WHEN octet_length(r.tail) < $4 THEN r.tail ELSE '' END \
        FROM unnest($1::uuid[], $2::integer[], $3::uuid[]) WITH ORDINALITY AS b(id, attempt, claim, ordinal) \
        WHERE r.id = b.id AND r.attempt = b.attempt AND (b.claim IS NULL OR r.claim = b.claim) \
            AND r.updated_at < (SELECT at FROM now) AND r.updated_at >= (SELECT at - $5 FROM now) \
        RETURNING b.ordinal, r.number, r.version, \
            CASE WHEN r.lane <> $7 OR r.cancel_requested OR octet_length(r.tail) >= $4 OR $8 THEN \
                row(b.ordinal, r.lane, r.cancel_requested, CASE WHEN octet_length(r.tail) >= $4 THEN r.tail END, \
                    r.claimed_at) END AS more) \
    SELECT (SELECT at FROM now) AS at, pg_current_xact_id()::text AS transaction, \
        coalesce(array_agg(ordinal), '{}') AS ordinals, coalesce(array_agg(number), '{}') AS numbers, \
        coalesce(array_agg(version), '{}') AS versions, \
        coalesce(array_agg(more) FILTER (WHERE NOT more IS NULL), '{}') AS more \
    FROM taken"
);

/// What every batch asks of the server, prepared once for a session: the stamp of one without heartbeats, and the appending
/// of heartbeats where nothing else is to be appended. So a batch can name several of them in one message, and none is
/// planned again.
///
/// Each statement sees what was committed before it began: so what is appended begins from the end of the log that the
/// lock waited for.
pub(super) const PREPARE: &str = concat!(
    "PREPARE lastbeat_begin (bigint) AS ",
    stamp!("$1"),
    ", pg_current_xact_id()::text AS transaction; \
    PREPARE lastbeat_segments (bigint[], bigint[], bigint[], bigint[], bigint[], bigint[], bigint[], bigint[], bytea[]) \
    AS INSERT INTO segments (run, first_version, last_version, attempt, first_at, last_at, count, digest, data) \
        SELECT * FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9); \
    PREPARE lastbeat_lock AS SELECT pg_advisory_xact_lock(hashtext('lastbeat log'), hashtext(current_schema())); \
    PREPARE lastbeat_append (bigint, bigint, bytea) AS \
        INSERT INTO beats (position, recorded_at, latest_at, count, digest, data) \
        SELECT place, $1, greatest($1, latest_at), $2, lastbeat_beats_digest(place, $1, $2, $3), $3 FROM (\
            SELECT 1 + greatest(b.position, h.beat_position) AS place, b.latest_at FROM head h LEFT JOIN LATERAL (\
                SELECT position, latest_at FROM beats ORDER BY position DESC LIMIT 1) b ON true) log_end"
);

/// What is said only of some: its place, the lane, whether it is to be cancelled, the tail if it is full, and when it was
/// claimed.
type MoreFields = (i64, String, bool, Option<Vec<u8>>, i64);

/// A heartbeat that was taken: what is said of each one. It is small for the reason that [`Told`] is; [`More`] holds the
/// rest.
#[derive(Debug)]
pub(super) struct Accepted {
    /// The command's index in the batch.
    index: usize,
    run: RunId,
    number: i64,
    attempt: u32,
    version: u64,
}

/// What is said only of some heartbeats.
#[derive(Clone, Copy, Debug, Default)]
struct More {
    /// The lane's place among those of the batch.
    lane: usize,
    cancel_requested: bool,
    /// When the run was claimed, if that matters in some lane.
    claimed_at: Option<Timestamp>,
}

/// The heartbeats that were taken.
#[derive(Debug, Default)]
pub(super) struct Taken {
    pub(super) beats: Vec<Accepted>,
    lanes: Vec<Name>,
    /// What more is said of some, in the order of the heartbeats, each with its place among them. The others are in the
    /// first lane, and nobody wants them cancelled.
    more: Vec<(usize, More)>,
    /// The tails that are full now, as segments to be written.
    pub(super) segments: Vec<SegmentRow>,
    /// Of the runs whose lanes have a stall window, by their number, when their progress last changed.
    progress: HashMap<i64, ProgressChange>,
}

/// What is known before the heartbeats of a batch are taken: so what it says of all of them need not come back with each.
pub(super) struct Known {
    /// Where most of the last batch's runs were, if there was one.
    pub(super) lane: Option<Name>,
    /// The service events, by which they are answered.
    pub(super) service: Arc<ServiceLog>,
}

impl Known {
    pub(super) fn new(lane: Option<Name>, service: Arc<ServiceLog>) -> Known {
        Known { lane, service }
    }

    /// Says whether it may matter to an answer when its run was claimed. Which policy is in force is not known before the
    /// stamp is; so it is asked of all that ever were.
    fn claims_matter(&self) -> bool {
        let mut policies = self.service.lanes().flat_map(|lane| self.service.policies(lane));
        policies.any(|(_, policy)| claims_matter(policy))
    }
}

/// Says whether it matters when a beating run of a lane was claimed.
fn claims_matter(policy: &LanePolicy) -> bool {
    policy.terms.max_runtime.is_some()
}

/// A plain heartbeat that may be taken.
pub(super) struct Plain {
    /// The command's index in the batch.
    index: usize,
    run: RunId,
    attempt: u32,
    claim: Option<Uuid>,
}

/// Returns the plain heartbeats of a batch, in the order in which their runs are locked; those left out that quote a
/// claim which is no UUID, since such a claim does not stand in `beating`.
pub(super) fn plain(batch: &[queue::Waiting]) -> Vec<Plain> {
    let mut plain = Vec::with_capacity(batch.len());
    for (index, waiting) in batch.iter().enumerate() {
        let Command::Heartbeat { report, progress: None } = &waiting.command else { continue };
        let claim = report.claim.as_ref().map(ClaimId::as_uuid);
        if claim != Some(None) {
            plain.push(Plain { index, run: report.run, attempt: report.attempt, claim: claim.flatten() });
        }
    }
    plain.sort_unstable_by_key(|beat| beat.run);
    plain
}

/// Takes what it may of plain heartbeats. The runs stay locked until the end of the transaction.
pub(super) async fn accept(
    connection: &mut PgConnection,
    plain: &[Plain],
    simulated: Option<i64>,
    known: &Known,
) -> Result<(Begun, Taken), StoreError> {
    let ids: Vec<Uuid> = plain.iter().map(|beat| beat.run.as_uuid()).collect();
    // An attempt beyond the column's reach is nobody's.
    let attempts: Vec<i32> = plain.iter().map(|beat| i32::try_from(beat.attempt).unwrap_or(-1)).collect();
    let claims: Vec<Option<Uuid>> = plain.iter().map(|beat| beat.claim).collect();
    let row = sqlx::query(ACCEPT)
        .bind(ids)
        .bind(attempts)
        .bind(claims)
        .bind(i32::try_from(TAIL_BYTES_MAX).unwrap_or(i32::MAX))
        .bind(TAIL_PAUSE_MAX)
        .bind(simulated)
        // No lane has an empty name: so while none is expected, each one comes back.
        .bind(known.lane.as_ref().map_or("", Name::as_str))
        .bind(known.claims_matter())
        .fetch_one(connection)
        .await?;
    let begun = Begun::read(&row)?;
    let taken = Taken::read(&row, plain, begun.at, known)?;
    Ok((begun, taken))
}

/// What a transaction says of itself at its beginning.
pub(super) struct Begun {
    /// Log time, read before anything was locked: the stamp of its plain heartbeats.
    pub(super) at: Timestamp,
    /// Its number.
    pub(super) transaction: String,
}

impl Begun {
    pub(super) fn read(row: &PgRow) -> Result<Begun, StoreError> {
        Ok(Begun { at: Timestamp::from_micros(row.try_get("at")?), transaction: row.try_get("transaction")? })
    }
}

impl Taken {
    fn read(row: &PgRow, plain: &[Plain], at: Timestamp, known: &Known) -> Result<Taken, StoreError> {
        let corrupt = |what: &str| StoreError::Corrupt(format!("a heartbeat came back with {what}"));
        let (ordinals, numbers): (Vec<i64>, Vec<i64>) = (row.try_get("ordinals")?, row.try_get("numbers")?);
        let versions: Vec<i64> = row.try_get("versions")?;
        let mut more = row.try_get::<Vec<MoreFields>, _>("more")?.into_iter().peekable();
        let lanes = known.lane.iter().cloned().collect();
        let mut taken = Taken { beats: Vec::with_capacity(ordinals.len()), lanes, ..Taken::default() };
        for (nth, ordinal) in ordinals.into_iter().enumerate() {
            let place = usize::try_from(ordinal - 1).ok().and_then(|place| plain.get(place));
            let beat = place.ok_or_else(|| corrupt("a place of its own"))?;
            let accepted = Accepted {
                index: beat.index,
                run: beat.run,
                number: numbers[nth],
                attempt: beat.attempt,
                version: unsigned(versions[nth])?,
            };
            // What is said of some comes in the order in which all do.
            if let Some((_, lane, cancel_requested, tail, claimed_at)) = more.next_if(|more| more.0 == ordinal) {
                if let Some(tail) = tail {
                    let last = Beat { version: accepted.version, at: at.as_micros() };
                    let tail = unpack_tail(&tail, last).map_err(|error| corrupt(&error.to_string()))?;
                    taken.segments.push(SegmentRow::pack(accepted.number, accepted.attempt, &tail));
                }
                let (lane, claimed_at) = (taken.lane(&lane)?, Some(Timestamp::from_micros(claimed_at)));
                taken.more.push((nth, More { lane, cancel_requested, claimed_at }));
            }
            taken.beats.push(accepted);
        }
        if more.next().is_some() {
            return Err(corrupt("what was said of another"));
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

    /// Returns the lane that most of the runs are in: which is to be expected of the next batch.
    pub(super) fn usual_lane(&self) -> Option<Name> {
        let mut runs = vec![0_usize; self.lanes.len()];
        self.each().for_each(|(_, more)| runs[more.lane] += 1);
        let (most, _) = runs.iter().enumerate().max_by_key(|(_, runs)| **runs)?;
        (!self.beats.is_empty()).then(|| self.lanes[most].clone())
    }

    /// Returns the heartbeats as a row of `beats`, at the position that it is to have.
    pub(super) fn row(&self, position: i64, at: Timestamp) -> BeatsRow {
        let mut beats: Vec<(i64, u64)> = self.beats.iter().map(|beat| (beat.number, beat.version)).collect();
        beats.sort_unstable();
        BeatsRow::pack(position, at, &beats)
    }

    /// Returns the statements that append the heartbeats, whose row is `row`, where nothing else is to be written: sent
    /// together with the commit, so that the log is not locked while they travel. They hold numbers and hexadecimal
    /// digits, and nothing that came from outside. The segments are in them then, and nowhere else.
    pub(super) fn appends(&mut self, row: &BeatsRow) -> String {
        let mut statements = String::new();
        let segments = std::mem::take(&mut self.segments);
        if !segments.is_empty() {
            statements.push_str("EXECUTE lastbeat_segments(");
            for column in 0..7 {
                push_array(&mut statements, segments.iter().map(|segment| segment.numbers()[column]));
            }
            push_array(&mut statements, segments.iter().map(|segment| segment.digest.unwrap_or_default()));
            for (index, segment) in segments.iter().enumerate() {
                statements.push_str(if index == 0 { "'{\"\\\\x" } else { ",\"\\\\x" });
                push_hex(&mut statements, &segment.data);
                statements.push('"');
            }
            statements.push_str("}'); ");
        }
        let _ = write!(
            statements,
            "EXECUTE lastbeat_lock; EXECUTE lastbeat_append({}, {}, '\\x",
            row.recorded_at, row.count
        );
        push_hex(&mut statements, &row.data);
        statements.push_str("'); ");
        statements
    }

    /// Returns the commands of a batch of so many that were not taken, by their index.
    pub(super) fn left_of(&self, commands: usize) -> Vec<usize> {
        let mut taken = vec![false; commands];
        self.beats.iter().for_each(|beat| taken[beat.index] = true);
        (0..commands).filter(|index| !taken[*index]).collect()
    }

    /// Returns each heartbeat with what more is said of it.
    fn each(&self) -> impl Iterator<Item = (&Accepted, More)> {
        let mut more = self.more.iter().peekable();
        self.beats.iter().enumerate().map(move |(nth, beat)| {
            let more = more.next_if(|(place, _)| *place == nth);
            (beat, more.map_or_else(More::default, |(_, more)| *more))
        })
    }

    /// Reads when the progress of runs last changed, where their lanes have a stall window: such a run may lapse although
    /// it beats. Whoever changes it must lock the rows that this transaction holds, so it stays as it is read.
    pub(super) async fn read_progress(
        &mut self,
        connection: &mut PgConnection,
        known: &Known,
        at: Timestamp,
    ) -> Result<(), StoreError> {
        let stalls = |lane: &Name| known.service.policy(lane, at).terms.stall_window.is_some();
        let lanes: Vec<bool> = self.lanes.iter().map(stalls).collect();
        let stalling = self.each().filter(|(_, more)| lanes[more.lane]);
        let numbers: Vec<i64> = stalling.map(|(beat, _)| beat.number).collect();
        if numbers.is_empty() {
            return Ok(());
        }
        let select = sqlx::query("SELECT number, rest FROM runs WHERE number = ANY($1)").bind(numbers);
        for row in select.fetch_all(connection).await? {
            if let Some(changed) = progress_changed(row.try_get("rest")?)? {
                self.progress.insert(row.try_get("number")?, changed);
            }
        }
        Ok(())
    }
}

/// What is to be answered to the heartbeats that were taken, once they are committed.
pub(super) struct Answers {
    pub(super) taken: Taken,
    lanes: Vec<Alike>,
    listening: Listening,
    at: Timestamp,
}

impl Answers {
    /// Reads all that the answers need and that is not known of each heartbeat. `at` is the stamp that they have.
    pub(super) fn new(taken: Taken, known: &Known, at: Timestamp) -> Answers {
        let alike = |lane: &Name| Alike::new(lane.clone(), &known.service, at);
        let lanes = taken.lanes.iter().map(alike).collect();
        Answers { lanes, listening: known.service.listening(at), taken, at }
    }

    /// Returns how many there are.
    pub(super) fn len(&self) -> usize {
        self.taken.beats.len()
    }

    /// Says them, each with the index of its command in the batch.
    pub(super) fn tell(mut self, mut say: impl FnMut(usize, Told)) {
        for (beat, More { lane, cancel_requested, claimed_at }) in self.taken.each() {
            let lane = &mut self.lanes[lane];
            let progress = self.taken.progress.get(&beat.number).copied();
            let heard = Heard {
                run: beat.run,
                attempt: beat.attempt,
                version: beat.version,
                at: self.at,
                cancel_requested,
                interval: lane.policy.terms.heartbeat_interval,
                lapses_at: lane.lapses_at(claimed_at, progress, &self.listening),
            };
            say(beat.index, Told::Heard(heard));
        }
    }
}

/// The runs of a lane that were heard of at the same instant. They lapse together, unless a run may last only so long:
/// then it matters when it was claimed; or it may go only so long without progress: then it matters when it made some.
struct Alike {
    run: Run,
    policy: LanePolicy,
    /// The claim and the progress for which the rule was asked, and what it said.
    last: Option<(Option<Timestamp>, Option<ProgressChange>, Option<Timestamp>)>,
}

impl Alike {
    fn new(lane: Name, service: &ServiceLog, at: Timestamp) -> Alike {
        let policy = service.policy(&lane, at);
        Alike { run: beating(lane, at), policy, last: None }
    }

    fn lapses_at(
        &mut self,
        claimed_at: Option<Timestamp>,
        progress: Option<ProgressChange>,
        listening: &Listening,
    ) -> Option<Timestamp> {
        if let Some((claimed, changed, lapses_at)) = self.last
            && (claimed == claimed_at || !claims_matter(&self.policy))
            && changed == progress
        {
            return lapses_at;
        }
        self.run.progress_changed = progress;
        if let (Some(claim), Some(claimed_at)) = (&mut self.run.claim, claimed_at) {
            claim.at = claimed_at;
        }
        let lapses_at = judge(&self.run, &self.policy, listening, self.run.updated_at).lapses_at();
        self.last = Some((claimed_at, progress, lapses_at));
        lapses_at
    }
}

/// A run that is beating, with no more in it than the rule reads; so that the rule, and nobody else, says when one
/// lapses. It was claimed before it was heard of: when, is said where it matters.
fn beating(lane: Name, at: Timestamp) -> Run {
    let claimed_at = at.minus(Span::from_micros(1));
    Run {
        id: RunId::from_uuid(Uuid::nil()),
        goal: None,
        device: None,
        unique_key: None,
        labels: std::collections::BTreeMap::new(),
        status: Status::Running,
        attempt: 1,
        claim: Some(Claim { id: None, executor: lane.clone(), device: None, at: claimed_at, version: 2 }),
        created_at: at,
        not_before: None,
        waiting: Waiting { fact: BasisFact::Created, version: 1, due_at: at },
        started_at: None,
        last_beat: Some(LastBeat { at, version: 3 }),
        beats: 1,
        progress: None,
        progress_changed: None,
        cancel_requested: None,
        reaped: Vec::new(),
        outcome: None,
        version: 3,
        updated_at: at,
        quarantined: None,
        lane,
    }
}

/// Appends numbers as the literal of an array, and a comma.
fn push_array(statements: &mut String, numbers: impl Iterator<Item = i64>) {
    statements.push_str("'{");
    for (index, number) in numbers.enumerate() {
        let _ = write!(statements, "{}{number}", if index == 0 { "" } else { "," });
    }
    statements.push_str("}', ");
}

/// Appends bytes as hexadecimal digits.
fn push_hex(statements: &mut String, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    statements.reserve(2 * bytes.len());
    for byte in bytes {
        statements.push(char::from(DIGITS[usize::from(byte >> 4)]));
        statements.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
}
