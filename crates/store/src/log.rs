//! The rows of the truth, as they stand in every backend.
//!
//! `events` has every fact but the plain heartbeats, `beats` the plain heartbeats of each commit, and `segments` those
//! of each run, once its tail was full or its attempt ended. Each row carries a [digest] of what it says.

use std::borrow::Cow;

use lastbeat_domain::{Recorded, RunId, ServiceRecorded, Timestamp};

use crate::digest;
use crate::error::StoreError;
use crate::packing::{self, Beat, PackingError};
use crate::record::{self, schema_of};

/// A row of `events`. A service event has neither run nor version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EventRow {
    pub(crate) position: i64,
    pub(crate) run: Option<i64>,
    pub(crate) version: Option<i64>,
    pub(crate) recorded_at: i64,
    pub(crate) type_name: Cow<'static, str>,
    pub(crate) schema: i64,
    /// The run's UUID, in the row of its first fact.
    pub(crate) run_id: Option<Vec<u8>>,
    pub(crate) body: String,
    /// As it was stored; `None` in rows that were written before there were digests.
    pub(crate) digest: Option<i64>,
}

impl EventRow {
    /// Makes the row of a run's fact.
    pub(crate) fn of_run(position: i64, number: i64, recorded: &Recorded) -> EventRow {
        let type_name = recorded.event.type_name();
        EventRow {
            position,
            run: Some(number),
            version: Some(signed(recorded.version)),
            recorded_at: recorded.recorded_at.as_micros(),
            type_name: Cow::Borrowed(type_name),
            schema: schema_of(type_name),
            run_id: (recorded.version == 1).then(|| recorded.run.as_uuid().as_bytes().to_vec()),
            body: record::encode_run_event(&recorded.event),
            digest: None,
        }
        .sealed()
    }

    /// Makes the row of a service event.
    pub(crate) fn of_service(position: i64, recorded: &ServiceRecorded) -> EventRow {
        let type_name = recorded.event.type_name();
        EventRow {
            position,
            run: None,
            version: None,
            recorded_at: recorded.recorded_at.as_micros(),
            type_name: Cow::Borrowed(type_name),
            schema: schema_of(type_name),
            run_id: None,
            body: record::encode_service_event(&recorded.event),
            digest: None,
        }
        .sealed()
    }

    fn sealed(self) -> EventRow {
        EventRow { digest: Some(self.computed_digest()), ..self }
    }

    fn computed_digest(&self) -> i64 {
        digest::of_event(
            self.position,
            self.run,
            self.version,
            self.recorded_at,
            &self.type_name,
            self.schema,
            self.run_id.as_deref(),
            &self.body,
        )
    }

    /// Says whether the row is not what was written.
    pub(crate) fn was_changed(&self) -> bool {
        self.digest.is_some_and(|digest| digest != self.computed_digest())
    }
}

/// A row of `beats`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BeatsRow {
    pub(crate) position: i64,
    pub(crate) recorded_at: i64,
    pub(crate) count: i64,
    pub(crate) data: Vec<u8>,
    pub(crate) digest: Option<i64>,
}

impl BeatsRow {
    /// Packs the plain heartbeats of a commit, (run number, version) each, sorted by number.
    pub(crate) fn pack(position: i64, at: Timestamp, beats: &[(i64, u64)]) -> BeatsRow {
        let (recorded_at, count, data) = (at.as_micros(), signed(beats.len() as u64), packing::pack_beats(beats));
        let digest = Some(digest::of_beats(position, recorded_at, count, &data));
        BeatsRow { position, recorded_at, count, data, digest }
    }

    /// Returns how many bytes it says it with: 8 for each number, and the packed ones.
    pub(crate) fn bytes(&self) -> u64 {
        4 * 8 + self.data.len() as u64
    }

    /// Unpacks the heartbeats, (run number, version) each.
    pub(crate) fn unpack(&self) -> Result<Vec<(i64, u64)>, PackingError> {
        packing::unpack_beats(usize::try_from(self.count).unwrap_or(usize::MAX), &self.data)
    }

    /// Says whether the row is not what was written.
    pub(crate) fn was_changed(&self) -> bool {
        let computed = digest::of_beats(self.position, self.recorded_at, self.count, &self.data);
        self.digest.is_some_and(|digest| digest != computed)
    }
}

/// A row of `segments`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SegmentRow {
    pub(crate) run: i64,
    pub(crate) first_version: i64,
    pub(crate) last_version: i64,
    pub(crate) attempt: i64,
    pub(crate) first_at: i64,
    pub(crate) last_at: i64,
    pub(crate) count: i64,
    pub(crate) data: Vec<u8>,
    pub(crate) digest: Option<i64>,
}

impl SegmentRow {
    /// Packs a run's plain heartbeats of one attempt: at least one, in rising order.
    pub(crate) fn pack(run: i64, attempt: u32, beats: &[Beat]) -> SegmentRow {
        let none = Beat { version: 0, at: 0 };
        let (first, last) = (beats.first().copied().unwrap_or(none), beats.last().copied().unwrap_or(none));
        let mut row = SegmentRow {
            run,
            first_version: signed(first.version),
            last_version: signed(last.version),
            attempt: i64::from(attempt),
            first_at: first.at,
            last_at: last.at,
            count: signed(beats.len() as u64),
            data: packing::pack_segment(beats),
            digest: None,
        };
        row.digest = Some(digest::of_segment(row.numbers(), &row.data));
        row
    }

    /// Unpacks the attempt and its heartbeats.
    ///
    /// # Errors
    /// If the row says what no program writes. `run` is named in the error.
    pub(crate) fn unpack(&self, run: RunId) -> Result<(u32, Vec<Beat>), StoreError> {
        self.unpacked()
            .map_err(|PackingError| StoreError::Corrupt(format!("a segment of run {run} cannot be unpacked")))
    }

    /// The same where the run is known by its number alone.
    pub(crate) fn unpack_by_number(&self) -> Result<(u32, Vec<Beat>), StoreError> {
        let number = self.run;
        let damaged =
            |PackingError| StoreError::Corrupt(format!("a segment of run number {number} cannot be unpacked"));
        self.unpacked().map_err(damaged)
    }

    /// Returns how many bytes it says it with: 8 for each number, and the packed heartbeats.
    pub(crate) fn bytes(&self) -> u64 {
        8 * 8 + self.data.len() as u64
    }

    fn unpacked(&self) -> Result<(u32, Vec<Beat>), PackingError> {
        let number = |stored: i64| u64::try_from(stored).map_err(|_| PackingError);
        let first = Beat { version: number(self.first_version)?, at: self.first_at };
        let count = usize::try_from(self.count).map_err(|_| PackingError)?;
        let attempt = u32::try_from(self.attempt).map_err(|_| PackingError)?;
        Ok((attempt, packing::unpack_segment(first, count, &self.data)?))
    }

    /// Returns the numbers in the order of the columns.
    pub(crate) fn numbers(&self) -> [i64; 7] {
        [self.run, self.first_version, self.last_version, self.attempt, self.first_at, self.last_at, self.count]
    }

    /// Says whether the row is not what was written.
    pub(crate) fn was_changed(&self) -> bool {
        self.digest.is_some_and(|digest| digest != digest::of_segment(self.numbers(), &self.data))
    }
}

/// Counts are stored as signed integers; none comes near the sign.
pub(crate) fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Reads a count that was stored as a signed integer.
pub(crate) fn unsigned(stored: i64) -> Result<u64, StoreError> {
    u64::try_from(stored).map_err(|_| StoreError::Corrupt(format!("a count is negative: {stored}")))
}
