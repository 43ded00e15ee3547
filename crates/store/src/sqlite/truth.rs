//! Reading the truth, and nothing else: events, segments, and what the commits' heartbeats hold that is in no segment
//! yet. The projection is not asked, so what is read here can be held against it, or make it anew.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use lastbeat_domain::event::RunEvent;
use lastbeat_domain::run::EvolveError;
use lastbeat_domain::{Recorded, Run, RunId, Timestamp};
use sqlx::Row;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use super::read::read_segment;
use super::rows::{read_id, unsigned};
use crate::digest;
use crate::error::StoreError;
use crate::packing::{self, Beat};
use crate::record::{Stored, decode_run_event, take_in};
use crate::verify::DamageKind;

/// How many runs are read at a time.
pub(super) const PAGE_RUNS: i64 = 256;
/// How many heartbeats of commits are held in memory at a time.
const BEATS_IN_MEMORY: i64 = 2_000_000;

/// Something that is wrong with the truth.
pub(super) type Problem = (DamageKind, String);

/// The plain heartbeats of the commits, by run number.
pub(super) type Committed = HashMap<i64, Vec<Beat>>;

/// A run as the truth says.
pub(super) struct TrueRun {
    pub(super) number: i64,
    pub(super) id: Option<RunId>,
    pub(super) stream: Vec<Stored>,
    /// The plain heartbeats that are in no segment.
    pub(super) tail: Vec<Beat>,
    pub(super) problems: Vec<Problem>,
}

impl TrueRun {
    /// Folds the stream, or says what is wrong with it.
    pub(super) fn fold(&self) -> Result<Run, Problem> {
        let mut run = None;
        for stored in &self.stream {
            take_in(&mut run, stored).map_err(|error| {
                let kind = match &error {
                    EvolveError::Version { .. } | EvolveError::NotCreated(_) => DamageKind::Hole,
                    _ if run.as_ref().is_some_and(|run| run.status.is_terminal()) => DamageKind::AfterEnd,
                    _ => DamageKind::Stream,
                };
                (kind, format!("version {}: {error}", stored.version()))
            })?;
        }
        run.ok_or_else(|| (DamageKind::Hole, "the run has no facts".to_owned()))
    }
}

/// Returns the spans of run numbers whose committed heartbeats fit into memory together, from the first on.
pub(super) async fn spans(connection: &mut SqliteConnection) -> Result<Vec<(i64, i64)>, StoreError> {
    let last: i64 = sqlx::query_scalar(
        "SELECT max(coalesce((SELECT max(run) FROM events), 0), coalesce((SELECT max(run) FROM segments), 0), \
         coalesce((SELECT max(number) FROM runs), 0))",
    )
    .fetch_one(&mut *connection)
    .await?;
    let beats: i64 = sqlx::query_scalar("SELECT coalesce(sum(count), 0) FROM beats").fetch_one(connection).await?;
    let runs = (last / (beats / BEATS_IN_MEMORY + 1)).max(PAGE_RUNS);
    let firsts = (1..=last).step_by(usize::try_from(runs).unwrap_or(usize::MAX));
    Ok(firsts.map(|first| (first, (first + runs).min(last + 1))).collect())
}

/// Reads the heartbeats of the commits after the row `after`, of the runs that are wanted. Returns the last row too.
pub(super) async fn committed(
    connection: &mut SqliteConnection,
    after: i64,
    wanted: impl Fn(i64) -> bool,
    problems: &mut Vec<Problem>,
) -> Result<(Committed, i64), StoreError> {
    let (mut beats, mut last) = (Committed::new(), after);
    loop {
        let select = "SELECT position, recorded_at, count, data, digest FROM beats WHERE position > ? ORDER BY position LIMIT 4096";
        let rows = sqlx::query(select).bind(last).fetch_all(&mut *connection).await?;
        if rows.is_empty() {
            return Ok((beats, last));
        }
        for row in rows {
            let (position, at): (i64, i64) = (row.try_get("position")?, row.try_get("recorded_at")?);
            let (count, data): (i64, Vec<u8>) = (row.try_get("count")?, row.try_get("data")?);
            last = position;
            if differs(&row, digest::of_beats(position, at, count, &data))? {
                problems.push((DamageKind::Changed, format!("beats row {position} was changed after it was written")));
            }
            match packing::unpack_beats(usize::try_from(count).unwrap_or(usize::MAX), &data) {
                Ok(packed) => {
                    for (run, version) in packed.into_iter().filter(|(run, _)| wanted(*run)) {
                        beats.entry(run).or_default().push(Beat { version, at });
                    }
                }
                Err(error) => problems.push((DamageKind::Beats, format!("beats row {position}: {error}"))),
            }
        }
    }
}

/// Reads the runs with numbers from `from` up to, and without, `to`.
pub(super) async fn page(
    connection: &mut SqliteConnection,
    from: i64,
    to: i64,
    committed: &mut Committed,
) -> Result<Vec<TrueRun>, StoreError> {
    let mut runs: BTreeMap<i64, Parts> = BTreeMap::new();
    let events = sqlx::query(
        "SELECT position, run, version, recorded_at, type, schema, run_id, body, digest FROM events \
         WHERE run >= ? AND run < ? ORDER BY run, version",
    )
    .bind(from)
    .bind(to)
    .fetch_all(&mut *connection)
    .await?;
    for row in &events {
        runs.entry(row.try_get("run")?).or_default().take_event(row)?;
    }
    let segments = sqlx::query(
        "SELECT run, first_version, last_version, attempt, first_at, last_at, count, data, digest FROM segments \
         WHERE run >= ? AND run < ? ORDER BY run, first_version",
    )
    .bind(from)
    .bind(to)
    .fetch_all(connection)
    .await?;
    for row in &segments {
        runs.entry(row.try_get("run")?).or_default().take_segment(row)?;
    }
    let numbers: BTreeSet<i64> =
        runs.keys().copied().chain(committed.keys().copied().filter(|run| (from..to).contains(run))).collect();
    let put_together = |number| {
        let beats = committed.remove(&number).unwrap_or_default();
        runs.remove(&number).unwrap_or_default().put_together(number, beats)
    };
    Ok(numbers.into_iter().map(put_together).collect())
}

/// The rows of one run, before they are put together.
#[derive(Default)]
struct Parts {
    id: Option<RunId>,
    facts: Vec<Stored>,
    /// The heartbeats of the segments, with their attempt.
    packed: BTreeMap<u64, (i64, u32)>,
    problems: Vec<Problem>,
}

impl Parts {
    fn take_event(&mut self, row: &SqliteRow) -> Result<(), StoreError> {
        let (position, number, version): (i64, i64, i64) =
            (row.try_get("position")?, row.try_get("run")?, row.try_get("version")?);
        let (at, schema): (i64, i64) = (row.try_get("recorded_at")?, row.try_get("schema")?);
        let (type_name, body): (String, String) = (row.try_get("type")?, row.try_get("body")?);
        let run_id: Option<Vec<u8>> = row.try_get("run_id")?;
        if version == 1 {
            self.id = Some(read_id(row, "run_id")?);
        }
        let digest =
            digest::of_event(position, Some(number), Some(version), at, &type_name, schema, run_id.as_deref(), &body);
        if differs(row, digest)? {
            let message =
                format!("the row of version {version} (position {position}) was changed after it was written");
            self.problems.push((DamageKind::Changed, message));
        }
        let id = self.id.unwrap_or(RunId::from_uuid(uuid::Uuid::nil()));
        match decode_run_event(id, unsigned(version)?, Timestamp::from_micros(at), schema, &body) {
            Ok(fact) => self.facts.push(fact),
            Err(error) => self.problems.push((DamageKind::Stream, error.to_string())),
        }
        Ok(())
    }

    fn take_segment(&mut self, row: &SqliteRow) -> Result<(), StoreError> {
        let names = ["run", "first_version", "last_version", "attempt", "first_at", "last_at", "count"];
        let mut numbers = [0_i64; 7];
        for (number, name) in numbers.iter_mut().zip(names) {
            *number = row.try_get(name)?;
        }
        let data: Vec<u8> = row.try_get("data")?;
        if differs(row, digest::of_segment(numbers, &data))? {
            let message = format!("the segment from version {} on was changed after it was written", numbers[1]);
            self.problems.push((DamageKind::Changed, message));
        }
        let id = self.id.unwrap_or(RunId::from_uuid(uuid::Uuid::nil()));
        match read_segment(id, row) {
            Ok((attempt, beats)) => {
                let last = beats.last().map(|beat| (beat.version, beat.at));
                if last != Some((unsigned(numbers[2])?, numbers[5])) {
                    let message = format!("the segment from version {} on does not end where it says", numbers[1]);
                    self.problems.push((DamageKind::Beats, message));
                }
                self.packed.extend(beats.into_iter().map(|beat| (beat.version, (beat.at, attempt))));
            }
            Err(error) => self.problems.push((DamageKind::Beats, error.to_string())),
        }
        Ok(())
    }

    fn put_together(mut self, number: i64, committed: Vec<Beat>) -> TrueRun {
        let mut tail = Vec::new();
        for beat in committed {
            match self.packed.get(&beat.version) {
                None => tail.push(beat),
                Some((at, _)) if *at == beat.at => {}
                Some((at, _)) => {
                    let (committed, packed) = (Timestamp::from_micros(beat.at), Timestamp::from_micros(*at));
                    let message =
                        format!("version {} was committed at {committed}; its segment says {packed}", beat.version);
                    self.problems.push((DamageKind::Beats, message));
                }
            }
        }
        tail.sort_by_key(|beat| beat.version);
        if self.id.is_none() {
            self.problems.push((DamageKind::Hole, format!("run number {number}: version 1 is missing")));
        }
        let id = self.id.unwrap_or(RunId::from_uuid(uuid::Uuid::nil()));
        let plain = |version, at, attempt| {
            let event = RunEvent::Heartbeat { attempt, progress: None };
            Stored::Known(Recorded { run: id, version, recorded_at: Timestamp::from_micros(at), event })
        };
        let mut stream = self.facts;
        stream.extend(self.packed.iter().map(|(version, (at, attempt))| plain(*version, *at, *attempt)));
        // A commit does not say of which attempt its heartbeats are; they are of the one that was claimed last.
        let attempts: Vec<(u64, u32)> = stream.iter().filter_map(claimed).collect();
        let attempt_at =
            |version| attempts.iter().rev().find(|(claimed, _)| *claimed < version).map_or(0, |found| found.1);
        stream.extend(tail.iter().map(|beat| plain(beat.version, beat.at, attempt_at(beat.version))));
        stream.sort_by_key(Stored::version);
        TrueRun { number, id: self.id, stream, tail, problems: self.problems }
    }
}

fn claimed(fact: &Stored) -> Option<(u64, u32)> {
    match &fact.known()?.event {
        RunEvent::Claimed { attempt, .. } => Some((fact.version(), *attempt)),
        _ => None,
    }
}

/// Says whether a row is not what its digest says; rows from before there were digests have none.
pub(super) fn differs(row: &SqliteRow, computed: i64) -> Result<bool, StoreError> {
    Ok(row.try_get::<Option<i64>, _>("digest")?.is_some_and(|stored| stored != computed))
}
